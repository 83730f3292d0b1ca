//! The log.
use crate::api::{Configuration, Delivery, LogStats, Note, Output, PersistId, ProposeError, TokenSeen};
use crate::config::LogConfig;
use crate::record::Recovered;
use bytes::Bytes;
use core::time::Duration;
use sheep_types::{ClusterId, CommandSeq, LogIndex, Member, NodeId, Place, Term, Time};
use std::collections::VecDeque;

/// The global log of one node.
#[derive(Debug)]
pub struct Log {
    outputs: VecDeque<Output>,
}

#[allow(missing_docs, unused_variables)]
impl Log {
    /// The first contents of the durable file of the first node of a new cluster. `command` goes into the
    /// genesis entry, for the layer above.
    pub fn format(cluster: ClusterId, first_voter: NodeId, command: Bytes) -> Bytes {
        Bytes::new()
    }
    /// Opens the log of `me`; outputs (restore, commit of what is known to be committed) are ready at once.
    pub fn open(config: LogConfig, me: Member, recovered: Recovered, now: Time) -> Self {
        Self { outputs: VecDeque::new() }
    }
    pub fn handle_configuration(&mut self, now: Time, configuration: Configuration) {}
    pub fn handle_delivery(&mut self, now: Time, delivery: Delivery) {}
    pub fn handle_token(&mut self, now: Time, token: TokenSeen) {}
    pub fn handle_message(&mut self, now: Time, from: NodeId, message: &[u8]) {}
    pub fn handle_durable(&mut self, now: Time, upto: PersistId) {}
    pub fn handle_timeout(&mut self, now: Time) {}
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }
    pub fn propose(&mut self, now: Time, command: Bytes) -> Result<CommandSeq, ProposeError> {
        Err(ProposeError::NotPrimary)
    }
    pub fn propose_voters(&mut self, now: Time, list: Vec<NodeId>) -> Result<(), ProposeError> {
        Err(ProposeError::NotPrimary)
    }
    /// Makes the ring's number durable in this log's file; compare with `handle_durable`'s argument.
    pub fn persist_number(&mut self, number: u64) -> PersistId {
        PersistId(0)
    }
    /// The state at applied index `at`, encoded by the engine.
    pub fn snapshot_written(&mut self, now: Time, at: LogIndex, snapshot: Bytes) {}
    /// The applied state (after a restore) has this as the last number of this node's present run.
    pub fn restored(&mut self, last: CommandSeq) {}
    /// The cluster's lease setting, when applied.
    pub fn set_lease(&mut self, lease: Duration) {}
    /// False: the applied state does not show this node up in its present incarnation; ends the lease.
    pub fn set_lease_allowed(&mut self, allowed: bool) {}
    pub fn lease_deadline(&self, now: Time) -> Option<Time> {
        None
    }
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
    pub fn cluster(&self) -> ClusterId {
        ClusterId(0)
    }
    pub fn term(&self) -> Term {
        Term::default()
    }
    pub fn is_primary(&self) -> bool {
        false
    }
    /// Primary, and the term's install entry is committed: the configuration may act.
    pub fn is_installed(&self) -> bool {
        false
    }
    pub fn last(&self) -> Place {
        Place::default()
    }
    pub fn durable(&self) -> Place {
        Place::default()
    }
    pub fn commit(&self) -> Place {
        Place::default()
    }
    pub fn applied(&self) -> LogIndex {
        LogIndex(0)
    }
    pub fn voters(&self) -> Vec<NodeId> {
        Vec::new()
    }
    pub fn note(&self) -> Note {
        Note::default()
    }
    /// Highest number of any term or configuration seen; for the ring's `observe_number`.
    pub fn number(&self) -> u64 {
        0
    }
    pub fn stats(&self) -> LogStats {
        LogStats::default()
    }
}
