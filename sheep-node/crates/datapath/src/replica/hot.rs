//! Which copies are hot: their last write is not known to be on all members, so a take-over must look at
//! them. Kept in memory only: a copy whose node has restarted is made equal to a current one before it counts,
//! and takes the mark over from there.

use sheep_types::{Generation, ObjectId, Version, Vid};
use sheep_wire::Confirmed;
use std::collections::{BTreeMap, BTreeSet};

/// Marks of one vid.
#[derive(Debug, Default)]
struct VidMarks {
    generation: Generation,
    /// Objects written in `generation` that the mark does not cover: last sequence.
    written: BTreeMap<ObjectId, u64>,
    /// The same by sequence; a sequence names one write of the whole VDI.
    by_sequence: BTreeMap<u64, ObjectId>,
    /// Hot objects of earlier generations, until those are settled.
    older: BTreeSet<ObjectId>,
}

impl VidMarks {
    fn begin(&mut self, generation: Generation) {
        // A generation writes only after it has settled: nothing older is hot any more.
        *self = Self { generation, ..Self::default() };
    }

    /// Whatever the order in which marks arrive, what one of them covers was on all members then. A member that
    /// restarted since gets the write again, and is hot itself.
    fn take_mark(&mut self, confirmed: &Confirmed) {
        for (_, object) in self.by_sequence.extract_if(..=confirmed.upto, |s, _| confirmed.covers(*s)) {
            self.written.remove(&object);
        }
    }

    fn mark(&mut self, object: ObjectId, sequence: u64) {
        if let Some(before) = self.written.insert(object, sequence) {
            self.by_sequence.remove(&before);
        }
        self.by_sequence.insert(sequence, object);
    }

    fn forget(&mut self, object: ObjectId) {
        if let Some(sequence) = self.written.remove(&object) {
            self.by_sequence.remove(&sequence);
        }
        self.older.remove(&object);
    }
}

/// Hot marks of all copies of a node.
#[derive(Debug, Default)]
pub(crate) struct HotMarks {
    vids: BTreeMap<Vid, VidMarks>,
}

impl HotMarks {
    /// A write was applied, sent with this mark.
    pub(crate) fn written(&mut self, object: ObjectId, version: Version, confirmed: &Confirmed) {
        let marks = self.vids.entry(object.vid()).or_default();
        if version.generation > marks.generation {
            marks.begin(version.generation);
        }
        if version.generation < marks.generation {
            return;
        }
        marks.take_mark(confirmed);
        // Only the mark in the write's own message says whether the write itself is on all members: a resend
        // to a member that restarted may carry a sequence that an earlier mark covered.
        marks.forget(object);
        if !confirmed.covers(version.sequence) {
            marks.mark(object, version.sequence);
        }
    }

    /// Only the mark of a message that changed nothing here.
    pub(crate) fn confirmed(&mut self, vid: Vid, generation: Generation, confirmed: &Confirmed) {
        if let Some(marks) = self.vids.get_mut(&vid).filter(|marks| marks.generation == generation) {
            marks.take_mark(confirmed);
        }
    }

    /// The copy became equal to one with this mark.
    pub(crate) fn inherit(&mut self, object: ObjectId, version: Version, hot: bool) {
        let marks = self.vids.entry(object.vid()).or_default();
        marks.forget(object);
        if !hot {
            return;
        }
        if version.generation == marks.generation && version.generation != Generation(0) {
            marks.mark(object, version.sequence);
        } else {
            marks.older.insert(object);
        }
    }

    /// The holder of `generation` has settled everything older.
    pub(crate) fn settled(&mut self, vid: Vid, generation: Generation, confirmed: &Confirmed) {
        let marks = self.vids.entry(vid).or_default();
        if generation > marks.generation {
            marks.begin(generation);
        }
        if generation == marks.generation {
            marks.older.clear();
            marks.take_mark(confirmed);
        }
    }

    /// The copy is gone.
    pub(crate) fn forget(&mut self, object: ObjectId) {
        if let Some(marks) = self.vids.get_mut(&object.vid()) {
            marks.forget(object);
        }
    }

    /// The vid is gone.
    pub(crate) fn forget_vid(&mut self, vid: Vid) {
        self.vids.remove(&vid);
    }

    /// Whether the copy is hot.
    pub(crate) fn is_hot(&self, object: ObjectId) -> bool {
        self.vids
            .get(&object.vid())
            .is_some_and(|marks| marks.written.contains_key(&object) || marks.older.contains(&object))
    }

    /// Hot copies of a vid.
    pub(crate) fn of(&self, vid: Vid) -> BTreeSet<ObjectId> {
        let Some(marks) = self.vids.get(&vid) else { return BTreeSet::new() };
        marks.written.keys().chain(&marks.older).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VID: Vid = Vid(1);

    fn object(index: u32) -> ObjectId {
        ObjectId::data(VID, index)
    }

    fn version(generation: u64, sequence: u64) -> Version {
        Version { generation: Generation(generation), sequence }
    }

    fn mark(upto: u64, except: &[u64]) -> Confirmed {
        Confirmed { upto, except: except.into() }
    }

    fn hot(marks: &HotMarks) -> Vec<u32> {
        marks.of(VID).into_iter().map(ObjectId::index).collect()
    }

    #[test]
    fn a_mark_cools_what_it_covers() {
        let mut marks = HotMarks::default();
        marks.written(object(0), version(5, 1), &mark(0, &[]));
        marks.written(object(1), version(5, 2), &mark(0, &[]));
        assert_eq!(hot(&marks), [0, 1]);
        marks.written(object(2), version(5, 3), &mark(2, &[1]));
        assert_eq!(hot(&marks), [0, 2]);
        marks.written(object(2), version(5, 4), &mark(2, &[]));
        assert_eq!(hot(&marks), [2]);
        marks.confirmed(VID, Generation(5), &mark(4, &[]));
        assert!(hot(&marks).is_empty());
    }

    #[test]
    fn a_write_sent_again_is_hot_although_it_was_confirmed_before() {
        let mut marks = HotMarks::default();
        marks.written(object(0), version(5, 9), &mark(8, &[]));
        marks.confirmed(VID, Generation(5), &mark(9, &[]));
        assert!(hot(&marks).is_empty());
        // A member restarted; the holder takes back what it said and sends again.
        marks.written(object(1), version(5, 3), &mark(2, &[]));
        assert_eq!(hot(&marks), [1]);
    }

    #[test]
    fn inherited_marks_stay_until_settled_or_covered() {
        let mut marks = HotMarks::default();
        marks.inherit(object(0), version(4, 7), true);
        marks.inherit(object(1), version(4, 8), false);
        assert_eq!(hot(&marks), [0]);
        marks.settled(VID, Generation(6), &mark(0, &[]));
        assert!(hot(&marks).is_empty());
        marks.inherit(object(0), version(6, 1), true);
        assert_eq!(hot(&marks), [0]);
        marks.confirmed(VID, Generation(6), &mark(1, &[]));
        assert!(hot(&marks).is_empty());
    }

    #[test]
    fn the_first_write_of_a_generation_cools_older_ones() {
        let mut marks = HotMarks::default();
        marks.written(object(0), version(5, 1), &mark(0, &[]));
        marks.written(object(1), version(6, 1), &mark(0, &[]));
        assert_eq!(hot(&marks), [1]);
        // A late write of the old generation (it was refused by admission already) changes nothing.
        marks.written(object(2), version(5, 2), &mark(1, &[]));
        assert_eq!(hot(&marks), [1]);
    }
}
