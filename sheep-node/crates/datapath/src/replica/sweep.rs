//! Copies that nobody needs any more: those that belong to nothing, and those of dead vids that nobody reaches.

use super::admit::Served;
use super::{Job, Replica, Timer};
use crate::{Mutant, View};
use core::time::Duration;
use sheep_store::Op;
use sheep_types::{ObjectId, ObjectKind, Time, Vid};
use sheep_wire::{Header, ObjectRun, Refusal, Reply};

/// Copies that are deleted at once: requests must not wait for long.
const DELETED: usize = 64;
/// Before the next ones are.
const PAUSE: Duration = Duration::from_millis(5);
/// Copies that one request of a sweep looks at.
const LOOKED_AT: usize = 4096;
/// Bounds of a request.
const MOST_VIDS: usize = 1024;
const MOST_RUNS: usize = 64 << 10;

impl Replica {
    /// Deletes objects that belong to no vid, or to another birth, some at a time. Nothing is answered for them: their
    /// vid is not known. Births that this view does not reach yet are not judged.
    pub(super) fn drop_gone(&mut self, now: Time) {
        let keeps = self.config.mutants.is(Mutant::KeepsForgotten);
        let Some(view) = self.view.clone().filter(|_| self.is_serving() && !keeps) else { return };
        if !self.stalled.is_empty() {
            return self.timers.set(now + PAUSE, Timer::Gone);
        }
        let unknown: Vec<Vid> = self.vids.iter().copied().filter(|vid| view.vid(*vid).is_none()).collect();
        let mut room = DELETED;
        for vid in unknown {
            let mut later = false;
            let mut gone: Vec<ObjectId> = Vec::new();
            for header in self.headers_from(first_of(vid)).take_while(|header| header.id.vid() == vid) {
                if gone.len() > room {
                    break;
                }
                if view.is_gone(header.id, header.birth) { gone.push(header.id) } else { later = true }
            }
            let more = gone.len() > room;
            gone.truncate(room);
            room -= gone.len();
            for object in gone {
                self.recovery.forget(object);
                self.delete_copy(object, Job::Forget);
            }
            if more {
                return self.timers.set(now + PAUSE, Timer::Gone);
            }
            if !later {
                self.vids.remove(&vid);
                self.hot.forget_vid(vid);
            }
        }
    }

    /// Deletes copies of dead vids, whatever their version: who asks has found, in a state that this node has applied
    /// too, that nobody who is alive reaches them, and nobody ever will again. A copy stays while a node that is away
    /// may have one and bring it back.
    pub(super) fn serve_sweep(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        vids: &[Vid],
        (first, last): (u32, u32),
        keep: &[ObjectRun],
        from: ObjectId,
    ) -> Served {
        let ascending = keep.is_sorted_by(|one, next| (one.vid, one.last) < (next.vid, next.first))
            && keep.iter().all(|run| run.first <= run.last);
        let fits = vids.len() <= MOST_VIDS && keep.len() <= MOST_RUNS && last < ObjectId::INDEX_LIMIT;
        if !fits || first > last || !ascending || !vids.is_sorted() {
            return Err(Refusal::Malformed);
        }
        if view.up_members().first() != Some(&header.from) {
            return Err(Refusal::NotMember);
        }
        let (free, next) = self.unreached(view, vids, (first, last), keep, from);
        let is_free = |object: ObjectId| {
            let data = object.kind() == Some(ObjectKind::Data) && (first..=last).contains(&object.index());
            data && vids.binary_search(&object.vid()).is_ok() && !is_kept(keep, object)
        };
        self.recovery.forget_lost(is_free);
        let careless = self.config.mutants.is(Mutant::SweepForgetsLeavers);
        let (mut dropped, mut left) = (0, 0);
        let mut needed: Vec<Vid> = Vec::new();
        for object in free {
            let gathered = view.is_gathered(object);
            let last = self.may_be_last(now, view, object, gathered);
            if last && needed.last() != Some(&object.vid()) {
                needed.push(object.vid());
            }
            if last || self.replacing.contains(&object) || !(careless || gathered) {
                left += 1;
                continue;
            }
            self.recovery.forget(object);
            self.delete_copy(object, Job::Forget);
            dropped += 1;
        }
        self.submit(Op::Flush, Job::Answer(header, Reply::Swept { dropped, left, needed, next }));
        Ok(None)
    }

    /// Whether a copy may have blocks that a younger vid's copy on this node has lost. Once everybody is there who may have
    /// them (`gathered`), and this node has asked for them in vain, it does not: so what is lost for good holds up nothing.
    fn may_be_last(&mut self, now: Time, view: &View, object: ObjectId, gathered: bool) -> bool {
        let wounded = !self.damaged.is_empty() || self.store.lost().next().is_some();
        let is_member = || view.up_set(object).contains(&self.me);
        if !wounded || !is_member() || self.config.mutants.is(Mutant::SweepTakesTheLast) {
            return false;
        }
        let mut below = vec![object.vid()];
        while let Some(vid) = below.pop() {
            let copy = object.of(vid);
            if copy != object && self.is_wounded(copy) && (!gathered || self.is_healing(now, copy)) {
                return true;
            }
            below.extend(view.state.children(vid).filter(|child| view.are_related(vid, *child)));
        }
        false
    }

    /// Some of the copies that are not needed, and where to go on.
    fn unreached(
        &self,
        view: &View,
        vids: &[Vid],
        (first, last): (u32, u32),
        keep: &[ObjectRun],
        from: ObjectId,
    ) -> (Vec<ObjectId>, Option<ObjectId>) {
        let mut free = Vec::new();
        let mut looked_at = 0;
        for vid in vids.iter().copied().filter(|vid| view.state.is_dead(*vid)) {
            for kind in [ObjectKind::Data, ObjectKind::Map] {
                let (begin, end) = (ObjectId::new(vid, kind, first), ObjectId::new(vid, kind, last));
                for header in self.headers_from(begin.max(from)).take_while(|header| header.id <= end) {
                    let object = header.id;
                    if looked_at == LOOKED_AT || free.len() == DELETED {
                        return (free, Some(object));
                    }
                    looked_at += 1;
                    let is_needed = match kind {
                        ObjectKind::Data => is_kept(keep, object),
                        _ => view.state.map_is_needed(vid, object.index()),
                    };
                    if !is_needed {
                        free.push(object);
                    }
                }
            }
        }
        (free, None)
    }
}

fn first_of(vid: Vid) -> ObjectId {
    ObjectId::data(vid, 0)
}

fn is_kept(keep: &[ObjectRun], object: ObjectId) -> bool {
    let key = (object.vid(), object.index());
    let after = keep.partition_point(|run| (run.vid, run.first) <= key);
    let run = after.checked_sub(1).and_then(|before| keep.get(before));
    run.is_some_and(|run| run.vid == object.vid() && object.index() <= run.last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_keep_what_is_in_them() {
        let run = |vid, first, last| ObjectRun { vid: Vid(vid), first, last };
        let keep = [run(3, 0, 0), run(3, 5, 9), run(7, 2, 2)];
        let kept = |vid| (0..12).filter(|i| is_kept(&keep, ObjectId::data(Vid(vid), *i))).collect::<Vec<_>>();
        assert_eq!(kept(3), [0, 5, 6, 7, 8, 9]);
        assert_eq!(kept(7), [2]);
        assert!(kept(2).is_empty() && kept(5).is_empty() && kept(8).is_empty());
    }
}
