//! From committed entries to the applied state.

use crate::control::{Control, ControlOutput, Published};
use crate::convert;
use core::time::Duration;
use sheep_log::{CommittedEntry, LogError};
use sheep_state::{ClusterState, Role};
use sheep_types::{Place, Time};
use std::sync::Arc;

impl Control {
    pub(crate) fn apply(&mut self, now: Time, entries: &[CommittedEntry]) {
        for entry in entries {
            let applied = Arc::make_mut(&mut self.state).apply(entry.index, &convert::entry(&entry.kind));
            if let Some(epoch) = applied.changes.epoch {
                self.outputs.push_back(ControlOutput::Note(self.describe_epoch(epoch.0)));
            }
            self.housekeeping.applied(now, &applied.changes);
            let answer = applied.answer.and_then(|answer| self.proposals.answered(self.me, answer));
            if let Some((token, result)) = answer {
                // The state that the answer speaks of must be there before the answer.
                self.publish();
                self.outputs.push_back(ControlOutput::Answered { token, result });
            }
        }
        self.after_apply();
    }

    pub(crate) fn restore(&mut self, snapshot: &[u8], at: Place) {
        match ClusterState::decode_snapshot(snapshot) {
            Ok(state) => {
                self.state = Arc::new(state);
                self.break_state();
                self.outputs
                    .push_back(ControlOutput::Note(format!("took over the state as of entry {}", at.index)));
            }
            Err(_) => {
                self.outputs
                    .push_back(ControlOutput::Fatal(LogError::Inconsistent("the state cannot be decoded")));
                return;
            }
        }
        if let Some((incarnation, last)) = self.state.last_command(self.me.node)
            && incarnation == self.me.incarnation
        {
            self.log.restored(last);
            let lost = self.proposals.lost(last);
            self.publish();
            self.outputs.extend(lost.into_iter().map(|token| ControlOutput::AnswerLost { token }));
        }
        self.after_apply();
    }

    fn after_apply(&mut self) {
        self.ring.set_cluster(self.log.cluster());
        self.log.set_lease(Duration::from_millis(self.state.settings().lease_ms));
        // The lease of a run that the cluster does not know, or knows to be over, is void.
        let up = self.state.is_up(self.me);
        if !up {
            self.outputs.push_back(ControlOutput::Lease(Time::ZERO));
        }
        self.log.set_lease_allowed(up);
    }

    /// The log renewed the lease, which took all entries put out before to be applied. One of them may have said
    /// that this node is not up; and what they ended must be known where the lease is used, before it is.
    pub(crate) fn renewed(&mut self, deadline: Time) {
        if self.state.is_up(self.me) {
            self.publish();
            self.outputs.push_back(ControlOutput::Lease(deadline));
        }
    }

    /// Publishes the state if it has moved on.
    pub(crate) fn publish(&mut self) {
        let index = self.state.applied();
        if index > self.published {
            self.published = index;
            let state = Arc::clone(&self.state);
            self.outputs.push_back(ControlOutput::Publish(Published { index, state }));
        }
    }

    fn describe_epoch(&self, epoch: u64) -> String {
        let nodes = || self.state.nodes().filter(|node| node.role == Role::Storage);
        let up = nodes().filter(|node| node.state.is_up()).count();
        let missing: Vec<String> = nodes()
            .filter(|node| !node.state.is_up())
            .map(|node| if node.name.is_empty() { node.node.to_string() } else { node.name.clone() })
            .collect();
        if missing.is_empty() {
            format!("epoch {epoch}: all {up} storage nodes up")
        } else {
            format!("epoch {epoch}: {up} storage nodes up, not up: {}", missing.join(", "))
        }
    }
}
