//! Which store does what.

use super::{Condition, INTERNAL, Inner, NOTES, SetEvent, StoreSet};
use crate::{Header, Op, Piece, StoreError};
use sheep_types::ObjectId;

impl Op {
    /// The object that it is about.
    pub(super) fn object(&self) -> Option<ObjectId> {
        match self {
            Self::Write { header, .. }
            | Self::SetHeader { header }
            | Self::Replace { header, .. }
            | Self::Patch { header, .. } => Some(header.id),
            Self::Read { object, .. }
            | Self::Salvage { object, .. }
            | Self::Inspect { object }
            | Self::Layout { object, .. }
            | Self::Delete { object } => Some(*object),
            // A clone shares blocks with its source, which only one disk has.
            Self::CloneBlocks { from, .. } => Some(*from),
            Self::Flush => None,
        }
    }
}

impl Op {
    /// Whether it changes nothing.
    fn only_looks(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Salvage { .. } | Self::Inspect { .. } | Self::Layout { .. })
    }
}

impl StoreSet {
    /// Asks for an operation; its result comes as [`SetEvent::Done`] with the same token, which is below 2^63. An
    /// object that is on no disk is made on `home`. A flush is done when all disks have flushed, and fails if one of
    /// them does.
    pub fn submit(&mut self, token: u64, op: Op, home: u8) {
        debug_assert!(token & INTERNAL == 0, "token of the set itself");
        if let [only] = self.slots.as_mut_slice() {
            return match &mut only.store {
                Some(store) => store.submit(token, op),
                None => self.events.push_back(SetEvent::Done { token, result: Err(StoreError::Failed) }),
            };
        }
        let Some(object) = op.object() else { return self.submit_to_all(token, &op) };
        if object.vid() == NOTES && !op.only_looks() {
            return self.submit_to_all(token, &op);
        }
        if let Op::Delete { object } = op {
            return self.delete(token, object);
        }
        if let Op::CloneBlocks { from, header } = &op
            && let (Some((source, _)), Some((target, _))) = (self.find(*from), self.find(header.id))
            && source != target
        {
            // Should power fail in between, the clone is the later one of the two.
            if self.spares.remove(&(header.id, source)) {
                self.hidden.remove(&(header.id, source));
            }
            self.hidden.insert((header.id, target));
            self.delete_hidden(header.id, target);
        }
        let slot = self.find(object).map_or(usize::from(home), |(slot, _)| slot);
        let slot = if self.store(slot).is_some() { Some(slot) } else { self.any_working() };
        self.submit_to(slot, token, op);
    }

    fn any_working(&self) -> Option<usize> {
        (0..self.slots.len()).find(|slot| self.store(*slot).is_some())
    }

    pub(super) fn submit_to(&mut self, slot: Option<usize>, token: u64, op: Op) {
        let store = slot.and_then(|slot| self.slots.get_mut(slot)).and_then(|slot| slot.store.as_mut());
        match store {
            Some(store) => store.submit(token, op),
            None => self.events.push_back(SetEvent::Done { token, result: Err(StoreError::Failed) }),
        }
    }

    pub(super) fn inner(&mut self, inner: Inner) -> u64 {
        let token = INTERNAL | self.next_inner;
        self.next_inner += 1;
        self.inner.insert(token, inner);
        token
    }

    pub(super) fn working_slots(&self) -> Vec<usize> {
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.condition == Condition::Working).map(|(number, _)| number).collect()
    }

    fn submit_to_all(&mut self, token: u64, op: &Op) {
        let slots = self.working_slots();
        self.submit_joined(token, op, &slots);
    }

    fn submit_joined(&mut self, token: u64, op: &Op, slots: &[usize]) {
        if slots.is_empty() {
            return self.submit_to(None, token, op.clone());
        }
        let inner = self.inner(Inner::Join { token, left: slots.len(), result: Ok(()) });
        for slot in slots {
            self.submit_to(Some(*slot), inner, op.clone());
        }
    }

    /// Copies that do not count go with the one that does.
    fn delete(&mut self, token: u64, object: ObjectId) {
        let hidden = |slot: &usize| self.hidden.contains(&(object, *slot));
        let has = |slot: &usize| self.store(*slot).is_some_and(|store| store.header(object).is_some());
        let mut slots: Vec<usize> =
            self.working_slots().into_iter().filter(|slot| hidden(slot) || has(slot)).collect();
        for slot in &slots {
            self.hidden.remove(&(object, *slot));
            self.spares.remove(&(object, *slot));
        }
        slots.extend(self.any_working().filter(|_| slots.is_empty()));
        self.submit_joined(token, &Op::Delete { object }, &slots);
    }

    pub(super) fn delete_hidden(&mut self, object: ObjectId, slot: usize) {
        let token = self.inner(Inner::Delete { object, slot });
        self.submit_to(Some(slot), token, Op::Delete { object });
    }

    /// Writes a copy of an object to another disk; it does not count before [`StoreSet::finish_move`], and is
    /// durable after a flush. Nothing else may change the object meanwhile.
    pub fn begin_move(&mut self, token: u64, header: Header, pieces: Vec<Piece>, to: u8) {
        let to = usize::from(to);
        if self.store(to).is_none()
            || self.spares.contains(&(header.id, to))
            || self.find(header.id).is_none_or(|(slot, _)| slot == to)
        {
            return self.submit_to(None, token, Op::Flush);
        }
        self.hidden.insert((header.id, to));
        self.submit_to(Some(to), token, Op::Replace { header, pieces });
    }

    /// From now on the copy on `to` counts, and the other one is deleted; or it does not, and goes.
    pub fn finish_move(&mut self, object: ObjectId, to: u8, done: bool) {
        let to = usize::from(to);
        if !self.hidden.contains(&(object, to)) || self.store(to).is_none() {
            return;
        }
        let from = self.find(object).map(|(slot, _)| slot);
        let loser = if done { from } else { Some(to) };
        if done {
            self.hidden.remove(&(object, to));
        }
        if let Some(loser) = loser {
            self.hidden.insert((object, loser));
            self.delete_hidden(object, loser);
        }
    }
}
