//! Writes to one object that are kept until they are durable, and who holds them.

use super::api::VolumeError;
use core::ops::Range;
use sheep_types::{BLOCK_SIZE, Generation, Member, ObjectId, Version, Vid};
use sheep_wire::{Body, Confirmed, WriteRequest};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::Arc;

/// Counted for each retained write beside its payload, so that many small ones are bounded too.
const WRITE_OVERHEAD: u64 = 512;

/// Who is told when a write is on all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A client's operation.
    Client { io: u64 },
    /// It gives an object what was read there before.
    Fill,
    /// The map stage of a flush, which looks for itself.
    Map,
    /// Nobody any more.
    Nobody,
}

/// A write with its version.
#[derive(Debug)]
pub(super) struct RetainedWrite {
    pub(super) sequence: u64,
    /// Sequence of the object's write before this one; `None` for the first one of the generation.
    pub(super) previous: Option<u64>,
    pub(super) create: bool,
    /// A creation that takes the place of another vid's object: what it does not write, that one says.
    pub(super) inherits: bool,
    /// It changes nothing of what is read.
    pub(super) fills: bool,
    /// The vid whose object it is created as a clone of.
    pub(super) base: Option<Vid>,
    pub(super) offset: u32,
    pub(super) body: Body,
    pub(super) durable: bool,
    pub(super) owner: Owner,
    /// Requests under way.
    pub(super) calls: SmallVec<[(Member, u64); 4]>,
    /// Every up member of the present set holds it, and there are enough of them. Complete writes come before all others.
    pub(super) complete: bool,
    /// Its owner was answered once; stays when the write becomes incomplete again. Answered writes come before all
    /// others.
    pub(super) answered: bool,
    /// A member cannot store it, or nobody waits for it any more. It is still sent, for copies must be equal in the end.
    pub(super) refused: Option<VolumeError>,
    /// A member lacked a predecessor that is flushed; asked once more before the volume is given up.
    pub(super) doubted: Vec<Member>,
    /// Who had it when its owner was answered; kept only for a broken variant.
    pub(super) acknowledged: Vec<Member>,
}

impl RetainedWrite {
    pub(super) fn end(&self) -> u32 {
        self.offset + self.body.len()
    }

    /// A creation changes every block: before it there is nothing.
    pub(super) fn overlaps(&self, start: u32, end: u32) -> bool {
        self.create || (self.offset < end && start < self.end())
    }

    /// Whether it gives the range other contents: a creation does not where it inherits them.
    fn changes(&self, start: u32, end: u32) -> bool {
        !self.fills
            && self.overlaps(start, end)
            && (!self.inherits || self.offset < end && start < self.end())
    }

    pub(super) fn weight(&self) -> u64 {
        weight(&self.body)
    }

    /// Why it failed, if it did: its owner was told so. What was answered before it was refused, by a member that is new
    /// to the set, stays answered; and a flush looks for its map entries itself.
    pub(super) fn failed(&self) -> Option<VolumeError> {
        self.refused.filter(|_| !self.answered && self.owner != Owner::Map)
    }

    /// Whether flushes that are to cover it cannot end before a member finds room.
    pub(super) fn holds_up_flushes(&self) -> bool {
        self.refused.is_some() && self.failed().is_none()
    }

    pub(super) fn call_to(&self, member: Member) -> Option<u64> {
        self.calls.iter().find(|(to, _)| *to == member).map(|(_, number)| *number)
    }

    pub(super) fn request(
        &self,
        object: ObjectId,
        birth: sheep_types::Birth,
        generation: Generation,
        confirmed: Confirmed,
    ) -> WriteRequest {
        let version = |sequence| Version { generation, sequence };
        WriteRequest {
            object,
            birth,
            previous: self.previous.map(version),
            version: version(self.sequence),
            create: self.create,
            base: self.base,
            offset: self.offset,
            body: self.body.clone(),
            durable: self.durable,
            confirmed,
        }
    }
}

/// Bytes that a retained write counts for.
pub(super) fn weight(body: &Body) -> u64 {
    let payload = match body {
        Body::Data { payload, .. } => payload.len() as u64,
        Body::Zero { .. } => 0,
    };
    payload + WRITE_OVERHEAD
}

/// Where an object belongs at present.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Placed {
    /// Up members of its set.
    pub(super) members: Vec<Member>,
    /// Number of them below which writes wait.
    pub(super) min_copies: usize,
}

impl Placed {
    /// Whether writes may be answered.
    pub(super) fn is_enough(&self) -> bool {
        self.members.len() >= self.min_copies
    }
}

/// A write that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) sequence: u64,
    /// Who is told so.
    pub(super) owner: Owner,
    pub(super) bytes: u64,
    /// It changed something and was answered: whoever flushes is to be told.
    pub(super) lost: bool,
}

/// An object with unflushed writes.
#[derive(Debug, Default)]
pub(super) struct ObjectWrites {
    /// In order of version; a prefix of them is on every member.
    pub(super) writes: VecDeque<RetainedWrite>,
    /// Members that said what they have, in the run in which they said so, and the last write of it.
    held: Vec<(Member, u64)>,
    /// A write was refused since the object had none.
    any_refused: bool,
    /// Where they belong, in the epoch that they are sent in.
    pub(super) placed: Arc<Placed>,
    /// Members that were in the set, up and in the same run, since the epoch before.
    pub(super) stayed: Vec<Member>,
}

impl ObjectWrites {
    pub(super) fn position(&self, sequence: u64) -> Option<usize> {
        self.writes.binary_search_by_key(&sequence, |write| write.sequence).ok()
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&RetainedWrite> {
        self.writes.get(self.position(sequence)?)
    }

    /// Last write that a member has; it has all before it, for a copy is a prefix of the writes.
    pub(super) fn held_upto(&self, member: Member) -> u64 {
        self.held.iter().find(|(holder, _)| *holder == member).map_or(0, |(_, upto)| *upto)
    }

    /// Members that have a write.
    pub(super) fn holders(&self, sequence: u64) -> Vec<Member> {
        self.held.iter().filter(|(_, upto)| *upto >= sequence).map(|(member, _)| *member).collect()
    }

    /// Whatever a member said before, it has nothing after this write.
    pub(super) fn lacks_after(&mut self, member: Member, sequence: u64) {
        for (_, upto) in self.held.iter_mut().filter(|(holder, _)| *holder == member) {
            *upto = sequence.min(*upto);
        }
    }

    /// What only these members hold still counts.
    pub(super) fn keep_holders(&mut self, stayed: &[Member]) {
        self.held.retain(|(holder, _)| stayed.contains(holder));
    }

    /// A member cannot store a write, nor what comes behind it. What was answered stays so, unless all copies are lost.
    /// Returns what has failed by that.
    pub(super) fn refuse_from(&mut self, sequence: u64, error: VolumeError) -> Vec<Failed> {
        let is_lost = error == VolumeError::Io && self.holders(sequence).is_empty();
        self.any_refused = true;
        let first = self.writes.partition_point(|write| write.sequence < sequence);
        // Nobody was told of what changes nothing.
        let is_untold = self.writes.range(first..).all(|write| write.fills || !write.answered);
        let mut failed = Vec::new();
        for write in self.writes.range_mut(first..).filter(|write| write.failed().is_none()) {
            let told = write.answered && !write.fills;
            write.answered &= !is_lost && !is_untold;
            if write.sequence == sequence || !write.answered {
                write.refused = Some(error);
            }
            if write.failed().is_some() {
                let (sequence, owner, bytes) = (write.sequence, write.owner, write.weight());
                failed.push(Failed { sequence, owner, bytes, lost: told });
                write.owner = Owner::Nobody;
            }
        }
        failed
    }

    /// An operation was given up: its unanswered writes count as failed until all members have them.
    pub(super) fn disown(&mut self, io: u64, error: VolumeError) -> Vec<Failed> {
        let owner = Owner::Client { io };
        let mut failed = Vec::new();
        for write in self.writes.iter_mut().filter(|write| write.owner == owner) {
            (write.refused, write.owner, self.any_refused) = (Some(error), Owner::Nobody, true);
            failed.push(Failed { sequence: write.sequence, owner, bytes: write.weight(), lost: false });
        }
        failed
    }

    /// Other members are asked than those who refused. What failed has failed.
    pub(super) fn forget_refusals(&mut self) {
        for write in self.writes.iter_mut().filter(|write| write.failed().is_none()) {
            write.refused = None;
        }
    }

    pub(super) fn find(&mut self, sequence: u64) -> Option<&mut RetainedWrite> {
        let place = self.position(sequence)?;
        self.writes.get_mut(place)
    }

    /// Whether a write that nobody has been told of yet, up to this version, touches the range. One that makes the object
    /// counts in any case: a member that does not have it would say that there is nothing, and never was.
    pub(super) fn unanswered(&self, start: u32, end: u32, upto: u64) -> bool {
        let first = self.writes.partition_point(|write| write.answered);
        let mut rest = self.writes.range(first..);
        // What fills the object and cannot be stored on some member is there all the same, below.
        let stuck = |write: &RetainedWrite| write.fills && !write.create && write.failed().is_some();
        rest.any(|write| {
            !stuck(write) && (write.create || write.sequence <= upto && write.overlaps(start, end))
        })
    }

    /// Whether the range has a write that failed: its contents are anybody's guess.
    pub(super) fn failed(&self, start: u32, end: u32) -> Option<VolumeError> {
        let mut refused = self.writes.iter().filter(|_| self.any_refused);
        refused.find_map(|write| write.failed().filter(|_| write.changes(start, end)))
    }

    /// Why a member refused a write, if one did: nothing behind it can be stored there.
    pub(super) fn refused(&self) -> Option<VolumeError> {
        self.writes.iter().filter(|_| self.any_refused).find_map(|write| write.refused)
    }

    /// Whether the object could not be made on some member.
    pub(super) fn fails_to_be_made(&self) -> bool {
        self.any_refused && self.writes.iter().any(|write| write.create && write.failed().is_some())
    }

    /// Whether the object was to take another one's place and failed to be made on some member.
    pub(super) fn fails_to_replace(&self) -> bool {
        self.any_refused && self.writes.iter().any(|write| write.inherits && write.failed().is_some())
    }

    /// Whether a member holds every answered write to the range.
    pub(super) fn is_fresh(&self, member: Member, start: u32, end: u32) -> bool {
        let held = self.held_upto(member);
        let first = self.writes.partition_point(|write| write.sequence <= held);
        self.writes.range(first..).all(|write| !write.answered || !write.overlaps(start, end))
    }

    /// Takes note that a member holds a write, and thus, a copy being a prefix, all before it. That says nothing of
    /// their being durable, unless this one is: a flush makes all durable that there is. Durable writes that an
    /// answer to a later one stands for need a flush then. `settled` is told the requests that need no answer any more.
    pub(super) fn hold(&mut self, member: Member, sequence: u64, mut settled: impl FnMut(u64)) {
        let durable = self.get(sequence).is_some_and(|write| write.durable);
        let held = self.held_upto(member);
        match self.held.iter_mut().find(|(holder, _)| *holder == member) {
            Some((_, upto)) => *upto = sequence.max(*upto),
            None => self.held.push((member, sequence)),
        }
        // What it was known to have is not asked for any more, but for this write perhaps.
        let first = self.writes.partition_point(|write| write.sequence <= held.min(sequence - 1));
        for write in self.writes.range_mut(first..).take_while(|write| write.sequence <= sequence) {
            write.durable &= durable || write.sequence <= held;
            if let Some(place) = write.calls.iter().position(|(to, _)| *to == member) {
                settled(write.calls.swap_remove(place).1);
            }
        }
    }

    /// Recomputes which writes are complete; returns the places of those that became so, or no longer are, and which
    /// of the two.
    pub(super) fn review(&mut self) -> (Range<usize>, bool) {
        let members = &self.placed.members;
        let on_all = members.iter().map(|member| self.held_upto(*member)).min();
        let on_all = on_all.filter(|_| self.placed.is_enough()).unwrap_or(0);
        let was = self.writes.partition_point(|write| write.complete);
        let is = self.writes.partition_point(|write| write.sequence <= on_all);
        let changed = was.min(is)..was.max(is);
        self.writes.range_mut(changed.clone()).for_each(|write| write.complete = is > was);
        (changed, is > was)
    }
}

/// Body with checksums. The payload is whole blocks.
pub(super) fn data_body(payload: bytes::Bytes) -> Body {
    assert!(payload.len().is_multiple_of(BLOCK_SIZE as usize), "payload is whole blocks");
    let crcs = payload.chunks(BLOCK_SIZE as usize).map(crc32c::crc32c).collect();
    Body::Data { payload, crcs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::{Incarnation, NodeId};

    fn write(sequence: u64, durable: bool) -> RetainedWrite {
        RetainedWrite {
            sequence,
            previous: sequence.checked_sub(1),
            create: false,
            inherits: false,
            fills: false,
            base: None,
            offset: 0,
            body: Body::Zero { len: BLOCK_SIZE },
            durable,
            owner: Owner::Nobody,
            calls: SmallVec::new(),
            complete: false,
            answered: false,
            refused: None,
            doubted: Vec::new(),
            acknowledged: Vec::new(),
        }
    }

    #[test]
    fn a_later_answer_does_not_make_a_write_durable() {
        let member = |node| Member { node: NodeId(node), incarnation: Incarnation(1) };
        let mut object = ObjectWrites::default();
        let writes = [(1, true), (2, false), (3, true), (4, true), (5, false)];
        object.writes.extend(writes.map(|(sequence, durable)| write(sequence, durable)));
        let durable = |object: &ObjectWrites| object.writes.iter().map(|w| w.durable).collect::<Vec<_>>();
        object.hold(member(1), 1, |_| ());
        object.hold(member(1), 2, |_| ());
        assert!(durable(&object)[0], "it was answered itself");
        // A flush makes all durable that there is.
        object.hold(member(1), 4, |_| ());
        assert_eq!(durable(&object), [true, false, true, true, false]);
        object.hold(member(2), 3, |_| ());
        object.hold(member(2), 5, |_| ());
        assert_eq!(durable(&object), [true, false, true, false, false]);
    }

    #[test]
    fn nothing_is_asked_of_an_object_that_is_being_made() {
        let mut object = ObjectWrites::default();
        object.writes.push_back(RetainedWrite { create: true, inherits: true, ..write(5, false) });
        let block = BLOCK_SIZE;
        assert!(object.unanswered(4 * block, 5 * block, 3), "although the read came before it");
        object.writes[0].answered = true;
        assert!(!object.unanswered(4 * block, 5 * block, 3));
    }

    #[test]
    fn what_was_answered_stays_so_when_it_is_refused_or_is_told_to_be_lost() {
        let answered = |sequence| RetainedWrite { answered: true, ..write(sequence, false) };
        let fill = |sequence| RetainedWrite { fills: true, ..answered(sequence) };
        let refuse = |writes: Vec<RetainedWrite>, error, holds: bool| -> (Vec<u64>, Vec<u64>, bool) {
            let mut object = ObjectWrites { writes: writes.into(), ..ObjectWrites::default() };
            if holds {
                object.hold(Member { node: NodeId(1), incarnation: Incarnation(1) }, 9, |_| ());
            }
            let failed = object.refuse_from(2, error);
            let lost = failed.iter().filter(|failed| failed.lost).map(|failed| failed.sequence).collect();
            let failed = failed.iter().map(|failed| failed.sequence).collect();
            let held_up = object.writes.iter().any(RetainedWrite::holds_up_flushes);
            (failed, lost, held_up)
        };
        let (full, io) = (VolumeError::NoSpace, VolumeError::Io);
        let plain = || vec![answered(1), answered(2), answered(3), write(4, false)];
        assert_eq!(refuse(plain(), full, false), (vec![4], vec![], true));
        assert_eq!(refuse(plain(), io, true), (vec![4], vec![], true), "a member has it");
        assert_eq!(refuse(plain(), io, false), (vec![2, 3, 4], vec![2, 3], false), "no flush may hide it");
        assert_eq!(
            refuse(vec![answered(1), write(2, false), write(3, false)], full, true),
            (vec![2, 3], vec![], false)
        );
        // What was filled in is missed by nobody, but for who wrote behind it.
        assert_eq!(refuse(vec![answered(1), fill(2), fill(3)], full, true), (vec![2, 3], vec![], false));
        assert_eq!(refuse(vec![answered(1), fill(2), answered(3)], full, true), (vec![], vec![], true));
        assert_eq!(refuse(vec![fill(2), answered(3)], io, false), (vec![2, 3], vec![3], false));
    }
}
