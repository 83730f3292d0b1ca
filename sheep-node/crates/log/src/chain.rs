//! The log in memory: a run of entries after a root, and the voter lists in it.

use crate::entry::{Body, Entry, valid_voters};
use bytes::Bytes;
use sheep_types::{ClusterId, LogIndex, NodeId, Place};
use std::collections::VecDeque;
use twox_hash::XxHash3_64;

/// A voter list and the entry that brought it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VoterList {
    pub(crate) at: Place,
    pub(crate) list: Vec<NodeId>,
}

/// A state at a place, as the engine encoded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) at: Place,
    pub(crate) cluster: ClusterId,
    /// The list in force at the place.
    pub(crate) voters: VoterList,
    pub(crate) data: Bytes,
    checksum: u64,
}

impl Snapshot {
    pub(crate) fn new(at: Place, cluster: ClusterId, voters: VoterList, data: Bytes) -> Self {
        Self { at, cluster, voters, checksum: XxHash3_64::oneshot(&data), data }
    }

    /// XXH3, 64 bits, of the data.
    pub(crate) fn checksum(&self) -> u64 {
        self.checksum
    }
}

/// Entries, each of which follows the one before it by the hash chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// The place before the first entry.
    root: Place,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// The newest list, and before it the one that it replaces while that still counts.
    voters: Vec<VoterList>,
    cluster: ClusterId,
}

impl Chain {
    /// An empty chain after a place of which only the voters are known.
    pub(crate) fn after(root: Place, voters: VoterList, cluster: ClusterId) -> Self {
        Self { root, entries: VecDeque::new(), bytes: 0, voters: vec![voters], cluster }
    }

    pub(crate) fn root(&self) -> Place {
        self.root
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn last(&self) -> Place {
        self.entries.back().map_or(self.root, |e| e.place)
    }

    pub(crate) fn get(&self, index: LogIndex) -> Option<&Entry> {
        let offset = index.0.checked_sub(self.root.index.0)?.checked_sub(1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The place at an index, if it is at the root or after it.
    pub(crate) fn place(&self, index: LogIndex) -> Option<Place> {
        if index == self.root.index { Some(self.root) } else { self.get(index).map(|e| e.place) }
    }

    /// Whether this very place is in the log. False for what is before the root: unknown.
    pub(crate) fn contains(&self, place: &Place) -> bool {
        self.place(place.index) == Some(*place)
    }

    pub(crate) fn entries_after(&self, index: LogIndex) -> impl Iterator<Item = &Entry> {
        let skip = index.0.saturating_sub(self.root.index.0);
        self.entries.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }

    /// Appends an entry, which must follow the last one. Not the place to judge input: a caller that
    /// appends something else has a bug.
    pub(crate) fn push(&mut self, entry: Entry) {
        assert_eq!(entry.place.index.0, self.last().index.0 + 1, "entries are appended without gaps");
        assert!(entry.place.term >= self.last().term, "terms never fall along the log");
        match Body::decode(&entry.body) {
            Body::Genesis { cluster, first_voter, .. } if entry.place.index == LogIndex(1) => {
                self.cluster = cluster;
                self.voters = vec![VoterList { at: entry.place, list: vec![first_voter] }];
            }
            Body::Voters { replaces, list } if self.replaces_newest(&replaces, &list) => {
                // Whoever ordered this knew the replaced list to be committed, so the one before that no
                // longer counts, whether or not this node knows it by itself.
                self.voters.drain(..self.voters.len() - 1);
                self.voters.push(VoterList { at: entry.place, list });
            }
            _ => {}
        }
        self.bytes += entry.body.len();
        self.entries.push_back(entry);
    }

    /// A change takes effect only if it was made from the newest list: two made from the same one would
    /// otherwise be pending together. The log itself decides this, so all nodes decide alike.
    fn replaces_newest(&self, replaces: &Place, list: &[NodeId]) -> bool {
        self.voters.last().is_some_and(|v| v.at == *replaces) && valid_voters(list)
    }

    /// Removes all entries after `index`; says how many.
    pub(crate) fn cut_after(&mut self, index: LogIndex) -> u64 {
        assert!(index >= self.root.index, "what was compacted is never cut");
        let mut cut = 0;
        while self.last().index > index {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= entry.body.len();
                cut += 1;
            }
        }
        // The older of two lists is committed, so it is never cut.
        while self.voters.len() > 1 && self.voters.last().is_some_and(|v| v.at.index > index) {
            self.voters.pop();
        }
        cut
    }

    /// Forgets entries from the front, up to `index` at most, until about `keep` bytes before it are left.
    pub(crate) fn compact(&mut self, index: LogIndex, keep: usize) {
        let after: usize = self.entries_after(index).map(|e| e.body.len()).sum();
        while self.entries.front().is_some_and(|e| e.place.index <= index) && self.bytes - after > keep {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry.body.len();
                self.root = entry.place;
            }
        }
    }

    /// A commit place is known: the list before a committed one no longer counts. True if that changed.
    pub(crate) fn settle(&mut self, commit: LogIndex) -> bool {
        let settled = self.voters.len() > 1 && self.voters.last().is_some_and(|v| v.at.index <= commit);
        if settled {
            self.voters.remove(0);
        }
        settled
    }

    /// The lists that count: the newest, and the one before while the change is not known to be committed.
    pub(crate) fn lists(&self) -> &[VoterList] {
        &self.voters
    }
}
