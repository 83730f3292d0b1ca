//! What survives a restart: how far the pass is, and when the last one ended. One small record in the store,
//! beside the floors, written now and then; what a crash takes back is done again.

use crate::recovery::FLOORS;
use crate::replica::{Job, Replica};
use core::time::Duration;
use sheep_store::{Body, Header as CopyHeader, Op};
use sheep_types::{Birth, Epoch, Generation, ObjectId, Version};

/// Name of the record: floors of epochs do not come so far.
const RECORD: ObjectId = ObjectId(((FLOORS.0 as u64) << 32) | 0xffff_ffff);

/// A pass that is under way has a cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScrubRecord {
    /// Where the pass goes on.
    pub(super) cursor: Option<ObjectId>,
    /// End of the last complete pass, milliseconds since the Unix epoch; zero: none.
    pub(super) last_pass: u64,
    /// There was none: that is when the node was first told the time.
    pub(super) never: bool,
}

impl ScrubRecord {
    /// Reads the record, if this is its header.
    pub(crate) fn of(header: &CopyHeader) -> Option<Self> {
        (header.id == RECORD).then(|| Self {
            cursor: header.version.generation.0.checked_sub(1).map(ObjectId),
            last_pass: header.version.sequence,
            never: header.validated != Epoch(0),
        })
    }

    fn header(self) -> CopyHeader {
        CopyHeader {
            id: RECORD,
            birth: Birth(0),
            version: Version {
                // One more, so that zero says that there is none.
                generation: Generation(self.cursor.map_or(0, |cursor| cursor.0.saturating_add(1))),
                sequence: self.last_pass,
            },
            validated: Epoch(u64::from(self.never)),
            pending: false,
        }
    }

    pub(super) fn ended(self) -> Option<Duration> {
        (self.last_pass > 0 && !self.never).then(|| Duration::from_millis(self.last_pass))
    }
}

impl Replica {
    pub(super) fn note_scrub(&mut self) {
        let header = self.scrub.record().header();
        let body = Body::Zero { len: 0 };
        // Nobody waits for it to be durable.
        self.submit(Op::Write { header, create: true, offset: 0, body }, Job::Forget);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back() {
        for cursor in [None, Some(ObjectId(0)), Some(ObjectId(77 << 32))] {
            let record = ScrubRecord { cursor, last_pass: 1_790_000_000_000, never: cursor.is_none() };
            assert_eq!(ScrubRecord::of(&record.header()), Some(record));
        }
        assert_eq!(ScrubRecord::of(&CopyHeader::default()), None);
    }
}
