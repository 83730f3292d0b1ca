//! Hung disks: a node whose log is not made durable must not hold up the others.
//!
//! A node notices that its own disk hangs and leaves the ring until a write is durable again. In case it does
//! not, the others see on the token that its durable place stands still while theirs move on.

use crate::control::Control;
use core::time::Duration;
use sheep_log::PersistId;
use sheep_totem::TokenSeen;
use sheep_types::{LogIndex, NodeId, Time};
use std::collections::{BTreeMap, VecDeque};

/// Writes that are not durable yet, and how far the other members are.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    patience: Duration,
    pending: VecDeque<(PersistId, Time)>,
    left: bool,
    members: BTreeMap<NodeId, (LogIndex, Time)>,
}

impl DiskWatch {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, pending: VecDeque::new(), left: false, members: BTreeMap::new() }
    }

    pub(crate) fn persist(&mut self, now: Time, id: PersistId) {
        self.pending.push_back((id, now));
    }

    /// Says whether the disk hung until now and the node may come back.
    pub(crate) fn durable(&mut self, id: PersistId) -> bool {
        self.pending.retain(|(waiting, _)| *waiting > id);
        self.pending.is_empty() && core::mem::replace(&mut self.left, false)
    }

    /// Says, once, that the oldest write has taken too long.
    pub(crate) fn hangs(&mut self, now: Time) -> bool {
        let hangs = self.pending.front().is_some_and(|(_, since)| now.since(*since) > self.patience);
        hangs && !core::mem::replace(&mut self.left, true)
    }

    pub(crate) fn new_configuration(&mut self) {
        self.members.clear();
    }

    /// Who stands still: behind what is committed, for too long, without moving.
    fn stuck(&mut self, now: Time, places: &[(NodeId, LogIndex)], commit: LogIndex) -> Option<NodeId> {
        let mut stuck = None;
        for &(node, durable) in places {
            let entry = self.members.entry(node).or_insert((durable, now));
            if entry.0 != durable || durable >= commit {
                *entry = (durable, now);
            } else if now.since(entry.1) > self.patience * 2 {
                stuck = Some(node);
            }
        }
        stuck
    }
}

impl Control {
    pub(crate) fn watch_members(&mut self, now: Time, token: &TokenSeen) {
        if !self.primary {
            return;
        }
        let commit = token.notes.iter().map(|(_, note)| note.commit.index).max().unwrap_or_default();
        let places: Vec<(NodeId, LogIndex)> = token
            .notes
            .iter()
            .filter(|(member, note)| *member != self.me && note.promised)
            .map(|(member, note)| (member.node, note.durable.index))
            .collect();
        if let Some(node) = self.watch.stuck(now, &places, commit) {
            self.note(format!("node {node} makes nothing durable any more: going on without it"));
            self.watch.new_configuration();
            self.ring.exclude(now, node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_hung_disk_is_told_once_and_forgiven_when_all_is_durable() {
        let mut watch = DiskWatch::new(PATIENCE);
        watch.persist(at(0), PersistId(1));
        watch.persist(at(500), PersistId(2));
        assert!(!watch.hangs(at(1000)));
        assert!(watch.hangs(at(1001)));
        assert!(!watch.hangs(at(1002)), "told once");
        assert!(!watch.durable(PersistId(1)), "a write still waits");
        assert!(watch.durable(PersistId(2)));
        assert!(!watch.hangs(at(9000)));
    }

    #[test]
    fn only_a_member_that_stands_still_behind_the_commit_is_stuck() {
        let mut watch = DiskWatch::new(PATIENCE);
        let (slow, hung) = (NodeId(1), NodeId(2));
        let look = |watch: &mut DiskWatch, ms, slow_at, commit| {
            watch.stuck(at(ms), &[(slow, LogIndex(slow_at)), (hung, LogIndex(5))], LogIndex(commit))
        };
        assert_eq!(look(&mut watch, 0, 5, 5), None);
        assert_eq!(look(&mut watch, 10_000, 5, 5), None, "nothing to do is not standing still");
        assert_eq!(look(&mut watch, 11_000, 6, 9), None);
        assert_eq!(look(&mut watch, 12_500, 7, 20), Some(hung));
    }
}
