//! Discarding whole objects: the map entry goes, then the object, on all members.
//!
//! Nothing may be left that brings the object back. A node that is away, or leaves while this goes on, may keep a copy
//! that is marked as new because it never heard of its map entry; if all others have lost theirs, a take-over enters that
//! copy in the map, with what was in it before the discard. So an object is removed only while every node that may have a
//! copy is there, and if that is no longer so in the end, it is made anew, as zeros, which any old copy must give way
//! to.

use super::flush::Stage;
use super::io::{Action, Piece};
use super::object::Owner;
use super::shared::{Core, Tag};
use super::volume::Volume;
use super::write::{NewWrite, Step};
use crate::Mutant;
use sheep_types::{Member, ObjectId, Version};
use sheep_wire::{Body, Request};
use std::collections::BTreeSet;

/// A whole object to be discarded, for a part of an operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Discard {
    /// The operation, unless it was answered: its object goes all the same.
    pub(super) io: Option<u64>,
    pub(super) index: u32,
}

impl Volume {
    /// Discards an object once its writes are answered and its map entry is there. If a node that is away may have
    /// a copy, the object stays and its blocks go.
    pub(super) fn step_discard(&mut self, core: &mut Core, piece: &mut Piece, object: ObjectId) -> Step {
        let careless = core.config.mutants.is(Mutant::DiscardForgetsLeavers);
        if !core.view().is_gathered(object) && !careless {
            piece.action = Action::Zero;
            return self.step_piece(core, piece);
        }
        let unanswered =
            self.objects.get(&object).is_some_and(|writes| writes.unanswered(0, u32::MAX, u64::MAX));
        if unanswered {
            return Step::Wait;
        }
        if self.pending.contains_key(&piece.index) {
            self.flusher.wanted = true;
            return self.wait_for_flush(core, piece);
        }
        self.fill.void(piece.index);
        self.flusher.discard(Discard { io: Some(piece.io), index: piece.index });
        Step::Done
    }

    /// Discards of objects that a node may have that has left since they were decided: their blocks become zeros,
    /// before anything that has waited for them. Nothing of them is gone yet, and what is durable on all members now is
    /// all that was written, so from here on a copy that stays behind has the object's last contents.
    pub(super) fn zero_instead(&mut self, core: &Core) {
        let view = core.view();
        let vid = self.vid;
        let gathered = |discard: &Discard| view.is_gathered(ObjectId::data(vid, discard.index));
        let (stay, zero): (Vec<_>, Vec<_>) = self.flusher.discards.drain(..).partition(gathered);
        self.flusher.discards = stay;
        for Discard { io, index } in zero.into_iter().rev() {
            let Some(io) = io else { continue };
            let id = self.next_piece;
            self.next_piece += 1;
            let end = self.geometry.object_size();
            let edges = Vec::new();
            let action = Action::Zero;
            self.queue.push_front(Piece { id, io, index, start: 0, end, action, only_existing: true, edges });
            self.again = true;
        }
    }

    /// Their map entries are gone durably: the objects go.
    pub(super) fn remove_objects(&mut self, core: &mut Core) -> bool {
        self.flusher.stage = Stage::Remove;
        self.flusher.asked.clear();
        let version = Version { generation: self.generation, sequence: self.sequence };
        let birth = self.birth;
        for discard in self.flusher.clearing.clone() {
            let object = ObjectId::data(self.vid, discard.index);
            self.last.remove(&object);
            for member in &self.placed(core, object).members {
                let request = Request::Remove { object, birth, version };
                let number = self.call(core, Tag::Remove, *member, request);
                self.flusher.asked.insert(number);
            }
        }
        true
    }

    /// A copy that came back with a restart, marked as new, would look like one that the map does not name yet.
    pub(super) fn flush_removed(&mut self, core: &mut Core) -> bool {
        self.flusher.stage = Stage::Removed;
        let mut members: BTreeSet<Member> = BTreeSet::new();
        for discard in self.flusher.clearing.clone() {
            members.extend(&self.placed(core, ObjectId::data(self.vid, discard.index)).members);
        }
        self.flush_members(core, members);
        true
    }

    /// The objects are gone on all present members, durably. If a node that was to have a copy has left meanwhile
    /// the object is made anew.
    pub(super) fn end_discards(&mut self, core: &mut Core) {
        let view = core.view();
        for Discard { io, index } in std::mem::take(&mut self.flusher.clearing) {
            let object = ObjectId::data(self.vid, index);
            if view.is_gathered(object) || core.config.mutants.is(Mutant::DiscardForgetsLeavers) {
                io.into_iter().for_each(|io| self.part_done(core, io, Ok(()), false));
                continue;
            }
            self.create_zeros(core, io, index);
        }
    }

    /// Makes an object that has no contents but zeros, for a part of an operation if one waits. Whatever copy there is has a lower
    /// version and is replaced.
    pub(super) fn create_zeros(&mut self, core: &mut Core, io: Option<u64>, index: u32) {
        let object = ObjectId::data(self.vid, index);
        let body = Body::Zero { len: self.geometry.object_size() };
        let owner = io.map_or(Owner::Nobody, |io| Owner::Client { io });
        let write = NewWrite {
            object,
            create: true,
            inherits: false,
            base: None,
            offset: 0,
            body,
            durable: false,
            owner,
        };
        let sequence = self.write(core, write);
        self.pending.insert(index, sequence);
        self.again = true;
    }
}
