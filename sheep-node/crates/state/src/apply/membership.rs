//! Configurations: who is up, and what ends when a node is not.

use super::Step;
use crate::{ClusterState, DownCause, EndedLock, NodeRecord, NodeState};
use sheep_types::{ConfigId, Generation, Member, NodeId, VdiId};
use std::collections::BTreeMap;
use std::sync::Arc;

impl ClusterState {
    /// A term starts. Whoever is not in its configuration, or is there in another run, is down; all at once,
    /// so that a lost rack is one epoch.
    pub(crate) fn apply_install(&mut self, step: &mut Step, term: ConfigId, members: &[Member]) {
        self.term = term;
        self.configuration = Arc::new(members.to_vec());
        let present: BTreeMap<NodeId, _> = members.iter().map(|m| (m.node, m.incarnation)).collect();
        let cause = |record: &NodeRecord| match present.get(&record.node) {
            Some(incarnation) if *incarnation == record.incarnation => None,
            Some(_) => Some(DownCause::Restarted),
            None => Some(DownCause::Left),
        };
        let down: Vec<(NodeId, DownCause)> = self
            .nodes
            .values()
            .filter(|record| record.state.is_up())
            .filter_map(|record| Some((record.node, cause(record)?)))
            .filter(|(_, cause)| !self.overlooks_restart(*cause))
            .collect();
        for (node, cause) in down {
            self.node_down(step, node, cause);
        }
        // Reports tell something about the network as it is; a new configuration means that it changed.
        let before = self.reports.len();
        self.reports.retain(|report| report.open);
        step.changes.reports |= before != self.reports.len();
    }

    /// A node is no longer up: its locks end, unconfirmed.
    pub(crate) fn node_down(&mut self, step: &mut Step, node: NodeId, cause: DownCause) {
        let at = step.at;
        self.edit_node(node, &mut step.changes, |record| record.state = NodeState::Down { since: at, cause });
        self.end_locks_of(step, node);
    }

    /// Ends every lock and shared reader of a node, in whatever run.
    pub(crate) fn end_locks_of(&mut self, step: &mut Step, node: NodeId) {
        let used: Vec<VdiId> = self.vdis_used_by(node).collect();
        for vdi in used {
            let held = |member: Member| member.node == node;
            self.end_locks(step, vdi, held);
        }
    }

    /// Ends the locks of a VDI whose holder is meant. The next holder waits for them.
    pub(crate) fn end_locks(&mut self, step: &mut Step, vdi: VdiId, meant: impl Fn(Member) -> bool) {
        let Some(record) = self.vdi(vdi) else { return };
        let mut ended: Vec<EndedLock> = Vec::new();
        if let Some(lock) = record.lock.filter(|lock| meant(lock.holder)) {
            ended.push(EndedLock { holder: lock.holder, generation: lock.generation, at: step.at });
        }
        for reader in record.readers.iter().filter(|reader| meant(reader.holder)) {
            let generation = Generation(reader.granted.0);
            ended.push(EndedLock { holder: reader.holder, generation, at: step.at });
        }
        self.end_unconfirmed(step, vdi, &ended);
    }

    /// Ends these grants, whether of the writer or of readers.
    pub(crate) fn end_unconfirmed(&mut self, step: &mut Step, vdi: VdiId, ended: &[EndedLock]) {
        if ended.is_empty() {
            return;
        }
        self.edit_vdi(vdi, &mut step.changes, |record| {
            for end in ended {
                if record.lock.is_some_and(|lock| lock.generation == end.generation) {
                    record.lock = None;
                }
                record.readers.retain(|reader| reader.granted.0 != end.generation.0);
                remember_end(&mut record.ended, *end);
            }
        });
        step.changes.ended.extend(ended.iter().map(|end| (vdi, *end)));
    }

    fn overlooks_restart(&self, cause: DownCause) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::RestartWithoutEpoch) && cause == DownCause::Restarted;
        #[cfg(not(feature = "mutants"))]
        {
            let _ = cause;
            false
        }
    }

    /// Broken on purpose: if only incarnations of up members changed, the present epoch changes in place.
    #[cfg(feature = "mutants")]
    pub(crate) fn quick_restart_without_epoch(&mut self, step: &Step) -> bool {
        let next = self.epoch_members();
        let current = self.epochs.current();
        let quick = self.is_mutant(crate::Mutant::RestartWithoutEpoch)
            && !step.force_epoch
            && current.len() == next.len()
            && next
                .values()
                .all(|member| current.get(member.node).is_some_and(|old| old.state == member.state));
        if quick {
            Arc::make_mut(&mut self.epochs).replace_current(&next);
        }
        quick
    }
}

/// Adds an end and keeps the list bounded: the two oldest become one that everybody waits for.
fn remember_end(ended: &mut Vec<EndedLock>, end: EndedLock) {
    ended.push(end);
    if ended.len() > crate::limits::MAX_ENDED {
        let oldest = ended.remove(0);
        if let Some(next) = ended.first_mut()
            && next.holder.node != oldest.holder.node
        {
            next.holder.node = NodeId(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::{Incarnation, LogIndex};

    #[test]
    fn forgotten_ends_are_still_waited_for() {
        let mut ended = Vec::new();
        for at in 1..=40u64 {
            let holder = Member { node: NodeId(at % 2 + 1), incarnation: Incarnation(1) };
            remember_end(&mut ended, EndedLock { holder, generation: Generation(at), at: LogIndex(at) });
        }
        assert_eq!(ended.len(), crate::limits::MAX_ENDED);
        assert!(ended.is_sorted_by_key(|end| end.at));
        assert_eq!(ended.first().map(|end| end.holder.node), Some(NodeId(0)));
    }
}
