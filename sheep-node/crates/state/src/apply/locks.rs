//! Locks. Every grant is a new generation; a lock that ends without its holder's word is remembered, so that
//! the next holder waits until the old one's lease has run out.

use super::{Result, Step};
use crate::limits::MAX_READERS;
use crate::{AccessMode, ClusterState, EndedLock, Limited, Lock, Outcome, Reader, Refusal, VdiRecord};
use sheep_types::{Generation, LogIndex, VdiId};
use std::sync::Arc;

impl ClusterState {
    pub(crate) fn lock(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        attachment: Option<LogIndex>,
        mode: AccessMode,
        take_from: Option<Generation>,
    ) -> Result {
        let origin = step.origin;
        self.require_up(origin)?;
        let record = Arc::clone(self.existing(vdi)?);
        if record.is_snapshot() && mode == AccessMode::Write {
            return Err(Refusal::IsSnapshot);
        }
        if let Err(refusal) = self.check_attachment(&record, origin.node, mode, attachment) {
            // It may have been granted already, under other attachments, and the answer lost: who has it gives it back.
            let granted = record.granted_to(origin);
            return Err(granted.map_or(refusal, |generation| Refusal::Locked { holder: origin, generation }));
        }
        match mode {
            AccessMode::Write => self.lock_for_writing(step, &record, attachment, take_from, false),
            AccessMode::Read => self.lock_for_reading(step, &record, attachment),
        }
    }

    /// The lock of a volume that is to be flattened and that nobody else uses.
    pub(crate) fn lock_to_flatten(&mut self, step: &mut Step, vdi: VdiId) -> Result {
        self.require_up(step.origin)?;
        let record = Arc::clone(self.volume(vdi)?);
        if let Some(lock) = record.lock {
            return Err(Refusal::Locked { holder: lock.holder, generation: lock.generation });
        }
        if !record.readers.is_empty() {
            return Err(Refusal::InUseByReaders(record.readers.len() as u32));
        }
        if let Some(attachment) = record.attachments.first() {
            return Err(Refusal::Attached(attachment.node));
        }
        if !record.flatten {
            return Err(Refusal::StaleView);
        }
        self.lock_for_writing(step, &record, None, None, true)
    }

    /// Who holds the volume only to flatten it is to close it; nothing to do if nobody does.
    pub(crate) fn yield_lock(&mut self, step: &mut Step, vdi: VdiId) -> Result {
        let record = Arc::clone(self.existing(vdi)?);
        self.ask_for_lock(step, &record);
        Ok(Outcome::Done)
    }

    /// Somebody wants a volume that is perhaps held only to flatten it. Whether it is.
    pub(crate) fn ask_for_lock(&mut self, step: &mut Step, record: &VdiRecord) -> bool {
        let Some(lock) = record.lock.filter(|lock| lock.background) else { return false };
        if !lock.asked && !self.leaves_flattening_alone() {
            self.edit_vdi(record.id, &mut step.changes, |record| {
                record.lock = Some(Lock { asked: true, ..lock });
            });
        }
        true
    }

    fn lock_for_writing(
        &mut self,
        step: &mut Step,
        record: &VdiRecord,
        attachment: Option<LogIndex>,
        take_from: Option<Generation>,
        background: bool,
    ) -> Result {
        let holder = step.origin;
        let readers = record.readers.iter().filter(|reader| reader.holder.node != holder.node).count();
        if readers > 0 {
            return Err(Refusal::InUseByReaders(readers as u32));
        }
        let mut generation = Generation(step.at.0);
        if let Some(lock) = record.lock.filter(|lock| lock.holder.node != holder.node) {
            // "Writer = me": from one attached node to the other, and only from the lock that was seen.
            let between_attached = attachment.is_some() && lock.attachment.is_some();
            if take_from != Some(lock.generation) || !between_attached {
                self.ask_for_lock(step, record);
                return Err(Refusal::Locked { holder: lock.holder, generation: lock.generation });
            }
            generation = self.taken_generation(lock, generation);
        }
        // Whatever the node itself held before ends too: a reader, or the lock of an earlier opening.
        self.end_locks(step, record.id, |_| true);
        let granted = self.edit_vdi(record.id, &mut step.changes, |record| {
            let granted_clean = record.is_clean();
            record.clean_since = None;
            record.last_generation = generation;
            if granted_clean {
                record.last_settled = generation;
            }
            let (settled, paused, asked) = (false, None, false);
            record.lock = Some(Lock {
                holder,
                generation,
                attachment,
                granted_clean,
                settled,
                paused,
                background,
                asked,
                pause_asked: None,
            });
            Outcome::Locked { generation, clean: granted_clean, wait_after: record.wait_after(holder.node) }
        });
        granted.ok_or(Refusal::NoSuchVdi)
    }

    fn taken_generation(&self, from: Lock, own: Generation) -> Generation {
        #[cfg(feature = "mutants")]
        if self.is_mutant(crate::Mutant::SharedGeneration) {
            return from.generation;
        }
        let _ = from;
        own
    }

    fn lock_for_reading(
        &mut self,
        step: &mut Step,
        record: &VdiRecord,
        attachment: Option<LogIndex>,
    ) -> Result {
        let holder = step.origin;
        if let Some(lock) = record.lock {
            self.ask_for_lock(step, record);
            return Err(Refusal::Locked { holder: lock.holder, generation: lock.generation });
        }
        if !record.is_clean() {
            return Err(Refusal::NotClean);
        }
        let wait_after = None;
        if let Some(present) = record.readers.iter().find(|reader| reader.holder == holder) {
            return Ok(Outcome::Locked {
                generation: Generation(present.granted.0),
                clean: true,
                wait_after,
            });
        }
        if record.readers.len() >= MAX_READERS {
            return Err(Refusal::Limit { what: Limited::Readers, limit: MAX_READERS as u64 });
        }
        let granted = step.at;
        self.edit_vdi(record.id, &mut step.changes, |record| {
            record.readers.push(Reader { holder, granted, attachment });
        });
        // A VDI is clean only after every former writer was waited for, and readers disturb no reader.
        Ok(Outcome::Locked { generation: Generation(granted.0), clean: true, wait_after })
    }

    pub(crate) fn unlock(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        generation: Generation,
        clean: bool,
    ) -> Result {
        let origin = step.origin;
        let record = self.existing(vdi)?;
        let at = step.at;
        if record.is_held_by(origin, generation) {
            self.edit_vdi(vdi, &mut step.changes, |record| {
                // Clean is believed only of a holder that began on settled copies.
                let settled = record.lock.take().is_some_and(|lock| lock.settled || lock.granted_clean);
                record.clean_since = (clean && settled).then_some(at);
            });
            return Ok(Outcome::Done);
        }
        let is_own = |reader: &Reader| reader.holder == origin && reader.granted.0 == generation.0;
        if !record.readers.iter().any(is_own) {
            return Err(Refusal::StaleGuard);
        }
        self.edit_vdi(vdi, &mut step.changes, |record| record.readers.retain(|reader| !is_own(reader)));
        Ok(Outcome::Done)
    }

    pub(crate) fn revoke(&mut self, step: &mut Step, vdi: VdiId, generation: Generation) -> Result {
        let record = self.existing(vdi)?;
        let writer = record.lock.filter(|lock| lock.generation == generation).map(|lock| lock.holder);
        let reader = || record.readers.iter().find(|reader| reader.granted.0 == generation.0);
        let holder = writer.or_else(|| reader().map(|reader| reader.holder)).ok_or(Refusal::StaleGuard)?;
        self.end_unconfirmed(step, vdi, &[EndedLock { holder, generation, at: step.at }]);
        Ok(Outcome::Done)
    }

    /// Only the node that held the lock knows that it has stopped, in that run or, because one process at a time
    /// runs on a store, in a later one.
    pub(crate) fn confirm_ended(&mut self, step: &mut Step, vdi: VdiId, generation: Generation) -> Result {
        let origin = step.origin;
        let record = self.existing(vdi)?;
        let own = |end: &EndedLock| {
            end.generation == generation
                && end.holder.node == origin.node
                && end.holder.incarnation <= origin.incarnation
        };
        if !record.ended.iter().any(own) {
            return Err(Refusal::StaleGuard);
        }
        self.edit_vdi(vdi, &mut step.changes, |record| record.ended.retain(|end| !own(end)));
        Ok(Outcome::Done)
    }

    pub(crate) fn mark_settled(&mut self, step: &mut Step, vdi: VdiId, generation: Generation) -> Result {
        let record = self.existing(vdi)?;
        if !record.is_held_by(step.origin, generation) {
            return Err(Refusal::StaleGuard);
        }
        let vid = record.vid;
        self.edit_vdi(vdi, &mut step.changes, |record| {
            record.ended.clear();
            record.last_settled = generation;
            if let Some(lock) = &mut record.lock {
                lock.settled = true;
            }
        });
        // The former holder may have replaced entries and not said so any more.
        self.mark_dead_above(step, vid);
        Ok(Outcome::Done)
    }

    fn leaves_flattening_alone(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::FlatteningDoesNotYield);
        #[cfg(not(feature = "mutants"))]
        false
    }
}
