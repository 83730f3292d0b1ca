//! Compaction.

use super::Log;
use crate::chain::Snapshot;
use bytes::Bytes;
use sheep_types::{LogIndex, Time};

impl Log {
    /// The state at applied index `at`, encoded by the engine: the log forgets entries up to there, except a
    /// few for nodes that are a little behind, and rewrites its file. False if the snapshot is of no use:
    /// not newer than the last one, beyond what is applied, or older than the newest voter list applied.
    pub fn snapshot_written(&mut self, _now: Time, at: LogIndex, snapshot: Bytes) -> bool {
        let newer = self.snapshot.as_ref().is_none_or(|s| at > s.at.index);
        if self.stopped || !newer || at > self.applied.index || self.applied_voters.at.index > at {
            return false;
        }
        if snapshot.len() > self.config.max_snapshot {
            return false;
        }
        let Some(place) = self.chain.place(at).filter(|_| at.0 > 0) else { return false };
        let (cluster, voters) = (self.chain.cluster(), self.applied_voters.clone());
        self.snapshot = Some(Snapshot::new(place, cluster, voters, snapshot));
        self.chain.compact(at, self.config.keep_bytes);
        self.rewrite();
        true
    }
}
