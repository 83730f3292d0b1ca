//! Attachments: which nodes may ask for a VDI's lock.

use super::{Result, Step};
use crate::limits::MAX_ATTACHMENTS;
use crate::{AccessMode, Attachment, ClusterState, Limited, Outcome, Refusal, VdiRecord};
use sheep_types::{LogIndex, Member, NodeId, VdiId};
use std::sync::Arc;

impl ClusterState {
    pub(crate) fn attach(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        node: NodeId,
        mode: AccessMode,
        share: bool,
    ) -> Result {
        let record = self.existing(vdi)?;
        if record.is_snapshot() && mode == AccessMode::Write {
            return Err(Refusal::IsSnapshot);
        }
        if self.node(node).is_none() {
            return Err(Refusal::NoSuchNode(node));
        }
        if let Some(present) = record.attachments.iter().find(|attachment| attachment.node == node) {
            // Asked again, for instance because the answer was lost.
            let same = present.mode == mode;
            let attachment = present.index;
            return if same { Ok(Outcome::Attached { attachment }) } else { Err(Refusal::Attached(node)) };
        }
        check_attach(record, node, mode, share)?;
        let record = Arc::clone(record);
        // Who flattens it gives it back, for the node that it is attached to.
        self.ask_for_lock(step, &record);
        let index = step.at;
        self.edit_vdi(vdi, &mut step.changes, |record| {
            record.attachments.push(Attachment { index, node, mode });
        });
        Ok(Outcome::Attached { attachment: index })
    }

    /// Ends an attachment and, in the same entry, what its node holds: two fences that know each other.
    pub(crate) fn detach(&mut self, step: &mut Step, vdi: VdiId, attachment: LogIndex) -> Result {
        let record = Arc::clone(self.existing(vdi)?);
        let Some(present) = record.attachments.iter().find(|present| present.index == attachment).copied()
        else {
            // Ended before, as it was wanted.
            return Ok(Outcome::Done);
        };
        if !self.ignores_attachments() {
            self.end_locks(step, vdi, |holder: Member| holder.node == present.node);
        }
        self.edit_vdi(vdi, &mut step.changes, |record| {
            record.attachments.retain(|present| present.index != attachment);
        });
        Ok(Outcome::Done)
    }

    /// A lock request must name a present attachment of its node, or none if there is none. An attachment for
    /// writing allows reading too.
    pub(crate) fn check_attachment(
        &self,
        record: &VdiRecord,
        node: NodeId,
        mode: AccessMode,
        attachment: Option<LogIndex>,
    ) -> Result<()> {
        if self.ignores_attachments() {
            return Ok(());
        }
        let named = |index: LogIndex| {
            let present = record.attachments.iter().find(|present| present.index == index);
            present.is_some_and(|present| {
                present.node == node && (present.mode == mode || mode == AccessMode::Read)
            })
        };
        match attachment {
            Some(index) if named(index) => Ok(()),
            None if record.attachments.is_empty() => Ok(()),
            Some(_) | None => Err(Refusal::NotAttached),
        }
    }

    fn ignores_attachments(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::LockIgnoresAttachment);
        #[cfg(not(feature = "mutants"))]
        false
    }
}

fn check_attach(record: &VdiRecord, node: NodeId, mode: AccessMode, share: bool) -> Result<()> {
    if record.attachments.len() >= MAX_ATTACHMENTS {
        return Err(Refusal::Limit { what: Limited::Attachments, limit: MAX_ATTACHMENTS as u64 });
    }
    // Used without attachment by somebody else.
    let lock = record.lock.filter(|lock| !lock.background);
    if let Some(lock) = lock
        && lock.attachment.is_none()
        && lock.holder.node != node
    {
        return Err(Refusal::Locked { holder: lock.holder, generation: lock.generation });
    }
    let first = record.attachments.first();
    let allowed = match (first, mode) {
        (None, AccessMode::Read) => lock.is_none(),
        (None, AccessMode::Write) => record.readers.is_empty(),
        (Some(first), AccessMode::Read) => first.mode == AccessMode::Read,
        // A migrating VM: two at most.
        (Some(first), AccessMode::Write) => {
            first.mode == AccessMode::Write && share && record.attachments.len() == 1
        }
    };
    match (allowed, first, record.lock) {
        (true, ..) => Ok(()),
        (false, Some(first), _) => Err(Refusal::Attached(first.node)),
        (false, None, Some(lock)) => {
            Err(Refusal::Locked { holder: lock.holder, generation: lock.generation })
        }
        (false, None, None) => Err(Refusal::InUseByReaders(record.readers.len() as u32)),
    }
}
