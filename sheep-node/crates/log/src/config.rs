//! Settings of the log.

use core::time::Duration;

/// Limits and times of a [`Log`](crate::Log). All nodes of a cluster should run with the same
/// `max_payload`; the others may differ from node to node.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// How long after the time stamp of a token the lease lasts, until a setting of the cluster replaces it
    /// (see [`Log::set_lease`](crate::Log::set_lease)). Default 5 s: five token-loss timeouts.
    pub lease: Duration,
    /// Largest message that may be given to the ring, in bytes. Default 8 KiB.
    pub max_payload: usize,
    /// Most commands of this node that may wait to be committed. Default 1,024.
    pub queue_commands: usize,
    /// Most bytes of commands that may wait to be committed. Default 4 MiB.
    pub queue_bytes: usize,
    /// Most ordered messages kept while the base is being fetched; older ones are fetched afterwards.
    /// Default 4,096.
    pub buffer_messages: usize,
    /// Most bytes of ordered messages kept while the base is being fetched. Default 8 MiB.
    pub buffer_bytes: usize,
    /// Bytes of entries after the last snapshot from which a new snapshot is asked for. Default 16 MiB.
    pub snapshot_bytes: usize,
    /// Entries before a snapshot that are kept for nodes that are a little behind, in bytes. Default 1 MiB.
    pub keep_bytes: usize,
    /// Largest snapshot taken from another node, in bytes. Default 256 MiB.
    pub max_snapshot: usize,
    /// Largest answer to a fetch, in bytes, at most 32 KiB: one datagram. An install entry of a very large
    /// configuration may be the only thing in it. Default 24 KiB.
    pub fetch_bytes: usize,
    /// Time after which an unanswered fetch is sent again, to another peer. Default 100 ms.
    pub fetch_retry: Duration,
    /// Time without any progress of a fetch after which the ring is asked to form again. Default 3 s.
    pub fetch_timeout: Duration,
    /// How far behind the end of the log, in entries, a node may be that becomes a voter. Default 1,000.
    pub voter_lag: u64,
    /// Most voters. Default 9.
    pub max_voters: usize,
    /// The rule that is left out. Exists only to show that the checkers notice.
    #[cfg(feature = "mutants")]
    pub mutant: Option<crate::Mutant>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(5),
            max_payload: 8 << 10,
            queue_commands: 1_024,
            queue_bytes: 4 << 20,
            buffer_messages: 4_096,
            buffer_bytes: 8 << 20,
            snapshot_bytes: 16 << 20,
            keep_bytes: 1 << 20,
            max_snapshot: 256 << 20,
            fetch_bytes: 24 << 10,
            fetch_retry: Duration::from_millis(100),
            fetch_timeout: Duration::from_secs(3),
            voter_lag: 1_000,
            max_voters: 9,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }
}

/// A value of [`LogConfig`] outside its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log setting {name} is {value}, but must be {limits}")]
pub struct ConfigError {
    /// Name of the field.
    pub name: &'static str,
    /// Its value, as text.
    pub value: String,
    /// What is allowed, as text.
    pub limits: &'static str,
}

impl LogConfig {
    /// Checks all values.
    ///
    /// # Errors
    /// The first one that is outside its limits.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let err = |name, value: &dyn core::fmt::Debug, limits| {
            Err(ConfigError { name, value: format!("{value:?}"), limits })
        };
        if self.lease.is_zero() {
            return err("lease", &self.lease, "longer than zero");
        }
        if !(512..=64 << 10).contains(&self.max_payload) {
            return err("max_payload", &self.max_payload, "512 bytes to 64 KiB");
        }
        if self.queue_commands == 0 {
            return err("queue_commands", &self.queue_commands, "at least 1");
        }
        if self.queue_bytes < self.max_payload {
            return err("queue_bytes", &self.queue_bytes, "at least max_payload");
        }
        if self.buffer_messages == 0 || self.buffer_bytes < self.max_payload {
            return err("buffer_bytes", &self.buffer_bytes, "at least one message of max_payload");
        }
        if !(1 << 10..=crate::codec::MAX_FETCH_REPLY).contains(&self.fetch_bytes) {
            return err("fetch_bytes", &self.fetch_bytes, "1 KiB to 32 KiB");
        }
        if self.fetch_retry.is_zero() || self.fetch_timeout < self.fetch_retry {
            return err("fetch_timeout", &self.fetch_timeout, "at least fetch_retry, which is not zero");
        }
        if self.max_voters.is_multiple_of(2) || self.max_voters > 63 {
            return err("max_voters", &self.max_voters, "odd, at most 63");
        }
        Ok(())
    }
}
