//! What the token says: confirmations, the commit place, and what is put out to be applied.

use super::Log;
use super::term::{Current, Phase};
use crate::api::{CommittedEntry, CommittedKind, Note, Output, TokenSeen};
use crate::chain::VoterList;
use crate::entry::{Body, Entry, valid_voters};
use crate::mutant::Mutant;
use sheep_types::{LogIndex, NodeId, Place, Time};

/// Entries in one [`Output::Commit`].
const COMMIT_BATCH: usize = 256;

impl Log {
    /// The token visits this node.
    pub fn handle_token(&mut self, now: Time, token: TokenSeen) {
        if self.stopped {
            return;
        }
        let here = |c: &Current| c.config.id == token.config && !matches!(c.phase, Phase::Ended);
        if self.current.as_ref().is_some_and(here) {
            for (member, note) in &token.notes {
                if member.node != self.me.node && self.is_member(member) {
                    self.take_note(member.node, note);
                }
            }
            // A fetch may have waited for a place to aim at.
            self.advance(now);
            self.update_commit(now);
            self.renew_lease(now, &token);
        } else if self.without(Mutant::LeaseWithoutSupport) {
            self.renew_lease(now, &token);
        }
        self.refresh_note();
    }

    fn is_member(&self, member: &sheep_types::Member) -> bool {
        self.current.as_ref().is_some_and(|c| c.config.members.contains(member))
    }

    fn take_note(&mut self, node: NodeId, note: &Note) {
        self.learn_commit(note.commit);
        let by_index = self.without(Mutant::PlaceByIndex);
        let any_term = self.without(Mutant::CommitOldTerm) || by_index;
        let last = self.chain.last();
        let Some(current) = &mut self.current else { return };
        // Only a voter that promised this very term, and only a place of this term: everything before it
        // is then durable there too.
        if note.term != current.config.id
            || !(note.promised || any_term)
            || (note.durable.term != note.term && !any_term)
        {
            return;
        }
        let confirmed = current.confirmed.entry(node).or_default();
        confirmed.latest = note.durable;
        if note.durable.index > last.index {
            confirmed.ahead.get_or_insert(note.durable);
        } else if self.chain.contains(&note.durable) {
            if note.durable.index > confirmed.known.index {
                confirmed.known = note.durable;
            }
        } else if by_index {
            confirmed.known = self.chain.place(note.durable.index).unwrap_or_default();
        } else {
            self.stats.dropped += 1;
        }
    }

    /// Somebody says that a place is committed.
    pub(super) fn learn_commit(&mut self, place: Place) {
        if place.index <= self.commit.index {
            return;
        }
        if place.index > self.chain.last().index {
            self.commit_ahead.get_or_insert(place);
        } else if self.chain.contains(&place) {
            self.set_commit(place);
        } else if self.without(Mutant::PlaceByIndex)
            && let Some(own) = self.chain.place(place.index)
        {
            self.set_commit(own);
        }
    }

    /// Looks at everything that may have become committed.
    pub(super) fn update_commit(&mut self, _now: Time) {
        if self.stopped {
            return;
        }
        self.compare_commit_ahead();
        if let Some(place) = self.confirmed_by_majorities() {
            self.set_commit(place);
        }
    }

    /// The log may have reached the committed place that was ahead of it.
    pub(super) fn compare_commit_ahead(&mut self) {
        if let Some(place) = self.commit_ahead.take_if(|p| p.index <= self.chain.last().index) {
            self.learn_commit(place);
        }
    }

    /// The highest place of the present term that majorities of all lists that count hold durably.
    fn confirmed_by_majorities(&mut self) -> Option<Place> {
        let lists = self.lists();
        let own = self.own_confirmation();
        let last = self.chain.last();
        let any_term = self.without(Mutant::CommitOldTerm);
        let current = self.current.as_mut()?;
        if !matches!(current.phase, Phase::Started(_)) || lists.is_empty() {
            return None;
        }
        for confirmed in current.confirmed.values_mut() {
            if let Some(place) = confirmed.ahead.take_if(|p| p.index <= last.index) {
                if self.chain.contains(&place) {
                    confirmed.known = place;
                } else {
                    self.stats.dropped += 1;
                }
            }
        }
        let index_of = |node: &NodeId| {
            if *node == self.me.node { own } else { current.confirmed.get(node).map(|c| c.known.index) }
        };
        let reached = lists.iter().map(|list| {
            let mut indexes: Vec<LogIndex> = list.iter().map(|n| index_of(n).unwrap_or_default()).collect();
            indexes.sort_unstable_by(|a, b| b.cmp(a));
            // The element in the middle: a majority is there or further.
            indexes.get(list.len() / 2).copied().unwrap_or_default()
        });
        let index = reached.min()?;
        let place = self.chain.place(index).filter(|_| index > self.commit.index)?;
        // Entries of earlier terms are committed by one of this term after them, never by themselves.
        (place.term == current.config.id || any_term).then_some(place)
    }

    /// How far this node's own durable log counts in this term.
    fn own_confirmation(&self) -> Option<LogIndex> {
        let place = self.note_place();
        let counts = place.term == self.term() || self.without(Mutant::CommitOldTerm);
        (counts && self.chain.contains(&place)).then_some(place.index)
    }

    fn note_place(&self) -> Place {
        if self.without(Mutant::ConfirmNotDurable) { self.chain.last() } else { self.durable }
    }

    pub(super) fn set_commit(&mut self, place: Place) {
        assert!(place.index > self.commit.index, "the commit place only grows");
        self.commit = place;
        if self.chain.settle(place.index) {
            // Written down, since after a restart of all the replaced voters may be gone for good.
            self.writer.commit(place);
            self.recorded_commit = place.index;
        }
        self.apply();
    }

    /// Puts out the committed entries that were not yet.
    pub(super) fn apply(&mut self) {
        let mut batch = Vec::new();
        while self.applied.index < self.commit.index {
            let Some(entry) = self.chain.get(LogIndex(self.applied.index.0 + 1)).cloned() else { break };
            self.applied_bytes += entry.body.len();
            self.applied = entry.place;
            self.stats.committed += 1;
            batch.push(self.committed(&entry));
            if batch.len() == COMMIT_BATCH {
                self.outputs.push_back(Output::Commit(core::mem::take(&mut batch)));
            }
        }
        if !batch.is_empty() {
            self.outputs.push_back(Output::Commit(batch));
        }
        self.grant_lease();
        if self.applied_bytes >= self.config.snapshot_bytes {
            self.applied_bytes = 0;
            self.outputs.push_back(Output::SnapshotWanted);
        }
    }

    fn committed(&mut self, entry: &Entry) -> CommittedEntry {
        let Place { term, index, checksum } = entry.place;
        let kind = match Body::decode(&entry.body) {
            Body::Genesis { cluster, first_voter, command } => {
                self.applied_voters = VoterList { at: entry.place, list: vec![first_voter] };
                CommittedKind::Genesis { cluster, first_voter, command }
            }
            Body::Install { term, members } => CommittedKind::Install { term, members },
            Body::Voters { replaces, list } => {
                if self.applied_voters.at == replaces && valid_voters(&list) {
                    self.applied_voters = VoterList { at: entry.place, list };
                }
                CommittedKind::Voters { list: self.applied_voters.list.clone() }
            }
            Body::Command { origin, seq, command } => {
                if origin == self.me {
                    let any_order = self.without(Mutant::DropOutOfOrder);
                    self.queue.committed(seq, any_order);
                }
                CommittedKind::Command { origin, seq, command }
            }
            Body::Unknown => CommittedKind::Unknown,
        };
        CommittedEntry { index, term, checksum, kind }
    }
}
