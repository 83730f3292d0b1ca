//! Blocks that the source of a fetch does not have: lost there, or damaged.
//!
//! Everybody who is up is asked for them, in exactly the version that is fetched: whoever has that has the right
//! contents, whether or not the copy counts. Only when all have said that they do not have them, these blocks are
//! stored as lost, so that the rest of the object has as many copies as it should.

use super::AskKind;
use super::compare::{Cell, ranges_of};
use super::fetch::Fetch;
use crate::View;
use crate::replica::Replica;
use sheep_types::{Member, ObjectId, Time};
use sheep_wire::{ReadData, Refusal, Reply, Request};
use std::collections::{BTreeSet, VecDeque};

/// Blocks of one question.
const AT_ONCE: usize = 64;
/// Attempts that end because somebody could not say whether it has the blocks. Then they count as lost all the same:
/// whoever has them makes them good later.
const UNSURE: u32 = 6;

/// Blocks that are asked for elsewhere.
#[derive(Debug, Default)]
pub(super) struct Help {
    lost: BTreeSet<u32>,
    /// Who is still to be asked for which of them; none: nobody was asked yet.
    questions: Option<VecDeque<(Member, Vec<u32>)>>,
    /// Somebody could not say.
    unsure: bool,
}

impl Help {
    pub(super) fn new(lost: BTreeSet<u32>) -> Self {
        Self { lost, ..Self::default() }
    }

    /// Blocks that nobody has, as ranges of bytes.
    pub(super) fn left(&self) -> Vec<(u32, u32)> {
        ranges_of(self.lost.iter().copied())
    }

    fn begin(&mut self, members: impl Iterator<Item = Member>) {
        let lost: Vec<u32> = self.lost.iter().copied().collect();
        let question = |member| lost.chunks(AT_ONCE).map(move |blocks| (member, blocks.to_vec()));
        self.questions = Some(members.flat_map(question).collect());
    }

    /// The next question, for what nobody has given yet.
    fn next(&mut self) -> Option<(Member, Vec<(u32, u32)>)> {
        while let Some((member, blocks)) = self.questions.as_mut().and_then(VecDeque::pop_front) {
            let ranges = ranges_of(blocks.into_iter().filter(|block| self.lost.contains(block)));
            if !ranges.is_empty() {
                return Some((member, ranges));
            }
        }
        None
    }
}

impl Fetch {
    /// The source does not have these.
    pub(super) fn note_lost(&mut self, blocks: &[u32]) {
        let Some((_, cells)) = &mut self.digest else { return };
        for block in blocks {
            if let Some(cell) = cells.get_mut(*block as usize) {
                if let Cell::Data(crc) = *cell {
                    *cell = Cell::Lost(crc);
                }
                self.help.lost.insert(*block);
            }
        }
    }

    /// What came of these is not lost any more.
    fn note_found(&mut self, ranges: &[(u32, u32)]) {
        let Some((_, cells)) = &mut self.digest else { return };
        for block in ranges.iter().flat_map(|(offset, len)| *offset / 4096..(*offset + *len) / 4096) {
            let crc = self.blocks.crc(block).filter(|_| self.help.lost.contains(&block));
            if let (Some(crc), Some(cell)) = (crc, cells.get_mut(block as usize))
                && (*cell == Cell::Lost(crc) || *cell == Cell::Lost(0))
            {
                *cell = Cell::Data(crc);
                self.help.lost.remove(&block);
            }
        }
    }
}

impl Replica {
    /// Everything that the source has is here. Asks the next one for what it has not; false if nothing is left to be
    /// asked.
    pub(super) fn ask_for_help(&mut self, now: Time, view: &View, number: u64) -> bool {
        let Some(fetch) = self.recovery.fetches.all.get_mut(&number) else { return true };
        if fetch.help.lost.is_empty() {
            return false;
        }
        if fetch.help.questions.is_none() {
            let asked = [self.me, fetch.source];
            fetch.help.begin(view.up_members().into_iter().filter(|member| !asked.contains(member)));
        }
        if let Some((member, ranges)) = fetch.help.next() {
            let Some((digest, _)) = &fetch.digest else { return true };
            let (object, birth, version) = (fetch.object, fetch.birth, digest.version);
            fetch.asked += 1;
            let request = Request::Blocks { object, birth, version, ranges: ranges.clone(), urgent: true };
            self.ask_for(now, view, member, request, AskKind::Help { fetch: number, ranges });
            return true;
        }
        let (object, lost, unsure) = (fetch.object, !fetch.help.lost.is_empty(), fetch.help.unsure);
        let tries = self.recovery.unsure.entry(object).or_default();
        if lost && unsure && *tries < UNSURE {
            *tries += 1;
            self.fetch_failed(now, number, Refusal::Busy);
            return true;
        }
        false
    }

    /// Somebody has said what it has of them. None: no answer.
    pub(super) fn take_help(&mut self, fetch: u64, ranges: &[(u32, u32)], reply: Option<Reply>) {
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        state.asked -= 1;
        match reply {
            Some(Reply::Read(data)) => {
                let bytes = self.take_found(fetch, ranges, data);
                self.recovery.bytes_done += bytes;
                self.recovery.bytes_ever += bytes;
            }
            Some(Reply::Refused(Refusal::NoCopy | Refusal::Damaged)) => {}
            _ => state.help.unsure = true,
        }
    }

    fn take_found(&mut self, fetch: u64, ranges: &[(u32, u32)], data: ReadData) -> u64 {
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return 0 };
        let Some((digest, cells)) = &state.digest else { return 0 };
        let bytes: u64 = data.data.iter().map(|data| data.len() as u64).sum();
        if data.version != digest.version || state.blocks.take(data, ranges, Some(cells)).is_none() {
            state.help.unsure = true;
            return 0;
        }
        state.note_found(ranges);
        state.bytes += bytes;
        bytes
    }

    /// A copy was to be made good, and there is nothing to be put into it.
    pub(super) fn end_heal(&mut self, object: ObjectId, left: Vec<(u32, u32)>) {
        self.recovery.forget(object);
        self.wake(object);
        if left.is_empty() {
            // What was damaged has been written over.
            self.damaged.remove(&object);
            self.scrub.whole(object);
        } else {
            self.tell_lost(object, &left);
            self.not_repaired(object);
        }
    }
}
