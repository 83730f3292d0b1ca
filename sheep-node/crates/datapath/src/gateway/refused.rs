//! Writes that a member cannot store: who waits for them is told so, and they are sent on and on, for copies must be equal
//! in the end, and the member may find room or leave the set.
//!
//! A write that nobody was told of *fails*, and with it what was sent behind it. One that was answered already is refused
//! only by a member that is new to the set: it stays answered, but what needs it durable on all members fails, for as long
//! as that lasts. So does what needs map entries that a member cannot store.

use super::api::{OpenError, VolumeError};
use super::io::IoKind;
use super::object::{Failed, ObjectWrites, Owner};
use super::shared::Core;
use super::volume::{Phase, Volume};
use sheep_types::ObjectId;
use std::time::Duration;

/// Wait before a write is sent again to a member that cannot store it.
pub(super) const NO_SPACE_PAUSE: Duration = Duration::from_secs(1);

impl Volume {
    /// A member has refused a write.
    pub(super) fn fail_write(
        &mut self,
        core: &mut Core,
        number: u64,
        (object, sequence): (ObjectId, u64),
        error: VolumeError,
    ) {
        core.back_off(number, NO_SPACE_PAUSE);
        let Some(writes) = self.objects.get_mut(&object) else { return };
        // Nor can it store what comes behind; it would say only that this one is missing.
        let failed = writes.refuse_from(sequence, error);
        let Some(found) = writes.get(sequence) else { return };
        let (holds_up, fills) = (found.holds_up_flushes(), found.owner == Owner::Fill);
        let mut lost = Vec::new();
        for Failed { sequence, owner, lost: is_lost, .. } in self.set_aside(core, failed) {
            lost.extend(is_lost.then_some(sequence));
            match owner {
                Owner::Client { io } => self.part_done(core, io, Err(error), false),
                Owner::Fill => self.fill.refused(core.now),
                Owner::Map | Owner::Nobody => {}
            }
        }
        if !lost.is_empty() {
            self.tell_lost(core, &lost, error);
        }
        if holds_up {
            self.awaited.insert(sequence);
            if fills {
                self.fill.refused(core.now);
            }
            self.fail_flush(core, sequence, error);
        }
    }

    /// Failed writes: nobody waits for them, and they do not count for other volumes any more.
    pub(super) fn set_aside(&mut self, core: &mut Core, failed: Vec<Failed>) -> Vec<Failed> {
        for Failed { sequence, bytes, .. } in &failed {
            self.stuck.insert(*sequence);
            self.awaited.remove(sequence);
            self.set_aside += bytes;
            core.free(*bytes);
        }
        failed
    }

    /// Writes that were answered are on no member any more. Flushes do not wait for them now, but one has to say so, or whoever
    /// relies on it would take them for durable.
    fn tell_lost(&mut self, core: &mut Core, lost: &[u64], error: VolumeError) {
        let ios = &self.ios;
        let is_flush = |io: &u64| ios.get(io).is_some_and(|io| matches!(io.kind, IoKind::Flush));
        for io in self.flusher.lose(lost, is_flush) {
            self.part_done(core, io, Err(error), false);
        }
        self.fail_still(core, error);
        self.again = true;
    }

    /// A write is on all members, although it had failed or been refused perhaps.
    pub(super) fn take_back(&mut self, core: &mut Core, sequence: u64, bytes: u64) {
        self.flush_late(core, sequence);
        self.flusher.is_found(sequence);
        self.awaited.remove(&sequence);
        if self.stuck.remove(&sequence) {
            self.set_aside -= bytes;
            core.retained += bytes;
        }
    }

    /// Nothing is kept any more.
    pub(super) fn free_all(&mut self, core: &mut Core) {
        core.free(self.retained - self.set_aside);
        (self.retained, self.set_aside) = (0, 0);
        self.stuck.clear();
        self.awaited.clear();
    }

    /// A member cannot store what a flush is to make durable, or to enter in the map: who waits for that is told, and who
    /// waits for everything to be at rest. The cycle goes on trying; only an opening ends by it.
    fn fail_flush(&mut self, core: &mut Core, sequence: u64, error: VolumeError) {
        for io in self.flusher.give_up(sequence) {
            self.part_done(core, io, Err(error), false);
        }
        self.fail_still(core, error);
        self.again = true;
        if matches!(self.phase, Phase::Entering) {
            let no_space = error == VolumeError::NoSpace;
            self.open_error = Some(if no_space { OpenError::NoSpace } else { OpenError::MapLost });
            core.cancel_all(self.handle);
            self.unlock(core, false);
        }
    }

    /// Whether a flush of all there is cannot end before some member finds room.
    pub(super) fn cannot_flush(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Why what is kept cannot be made durable: for want of room, unless something worse is the matter.
    pub(super) fn why_refused(&self) -> VolumeError {
        let mut refused = self.objects.values().filter_map(ObjectWrites::refused);
        refused.find(|error| *error != VolumeError::NoSpace).unwrap_or(VolumeError::NoSpace)
    }

    /// Whether nothing but failed writes is left.
    pub(super) fn has_only_failed_writes(&self) -> bool {
        let mut left = self.objects.values().flat_map(|writes| writes.writes.iter()).peekable();
        left.peek().is_some() && left.all(|write| write.failed().is_some())
    }

    /// Whether all objects that are not in the map failed to be made.
    pub(super) fn has_only_failed_creations(&self) -> bool {
        let own = |index: &u32| self.objects.get(&ObjectId::data(self.vid, *index));
        self.pending.keys().all(|index| own(index).is_some_and(ObjectWrites::fails_to_be_made))
    }
}
