//! Getting what this log lacks before the base of a term, or within the term.
//!
//! Nothing is touched until everything up to the target is here and the hash chain ends exactly in the
//! target. Then it is adopted as a whole, under the authority of the present term.

use super::Log;
use super::term::{Current, Phase};
use crate::api::{LogError, Output};
use crate::chain::{Chain, Snapshot, VoterList};
use crate::entry::Entry;
use crate::fetch_message::{Chunk, FetchKind, FetchMessage};
use crate::mutant::Mutant;
use core::time::Duration;
use sheep_types::{LogIndex, NodeId, Place, Term, Time};

/// Longest wait for the base, as a power of two times the timeout: a node that hears nobody must not make
/// the ring form again all the time.
const MAX_BACKOFF: u32 = 6;

/// A fetch under way.
#[derive(Debug)]
pub(super) struct Fetch {
    target: Place,
    /// Place in this node's log (or the snapshot's) after which `segment` begins.
    start: Place,
    segment: Vec<Entry>,
    /// A snapshot that replaces everything before `segment`.
    snapshot: Option<Snapshot>,
    partial: Option<Partial>,
    /// Whom to ask, the base's holder first.
    peers: Vec<NodeId>,
    peer: usize,
    /// Questions since the last useful answer.
    unanswered: usize,
    retry_at: Time,
    give_up_at: Time,
}

/// A snapshot of which some is here.
#[derive(Debug)]
struct Partial {
    at: Place,
    voters: VoterList,
    total: u64,
    checksum: u64,
    data: Vec<u8>,
}

impl Fetch {
    /// End of what is here.
    fn tip(&self) -> Place {
        self.segment.last().map_or(self.start, |e| e.place)
    }
}

/// What an answer was good for.
enum Progress {
    Some,
    Complete,
    None,
    /// An answer that came twice, or for a snapshot begun anew.
    Stale,
}

impl Log {
    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.fetch().map(|f| f.retry_at.min(f.give_up_at))
    }

    /// The time of [`poll_timeout`](Self::poll_timeout) has come. Early or needless calls do nothing.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.stopped {
            return;
        }
        let better_target = self.place_of_term(LogIndex(0));
        let (retry, timeout) = (self.config.fetch_retry, self.fetch_timeout());
        let Some(fetch) = self.fetch_mut() else { return };
        if now >= fetch.give_up_at {
            fetch.give_up_at = now + timeout;
            self.fetch_failures = self.fetch_failures.saturating_add(1);
            self.stats.form_again += 1;
            self.outputs.push_back(Output::FormAgain);
        } else if now >= fetch.retry_at {
            fetch.retry_at = now + retry;
            fetch.peer = fetch.peer.wrapping_add(1);
            // The peers may have compacted the target away. What they confirmed since, they have, and in
            // this term it lies behind the base on the same chain.
            if fetch.unanswered > fetch.peers.len()
                && let Some(better) = better_target.filter(|p| p.index > fetch.target.index)
            {
                fetch.target = better;
            }
            self.send_request();
        }
    }

    /// A datagram from another node's log. It was authenticated; it may be old, repeated or malformed.
    pub fn handle_message(&mut self, now: Time, from: NodeId, message: &[u8]) {
        if self.stopped {
            return;
        }
        let Ok(message) = FetchMessage::decode(message) else {
            self.stats.dropped += 1;
            return;
        };
        let (ours, theirs) = (self.chain.cluster(), message.cluster);
        if ours.0 != 0 && theirs.0 != 0 && ours != theirs {
            self.stats.dropped += 1;
            return;
        }
        if let FetchKind::Request { snapshot, offset } = message.kind {
            self.serve(from, &message, snapshot, offset);
        } else {
            self.take_answer(now, message);
            self.update_commit(now);
            self.refresh_note();
        }
    }

    fn fetch(&self) -> Option<&Fetch> {
        match &self.current {
            Some(Current { phase: Phase::Started(started), .. }) => started.fetch.as_ref(),
            _ => None,
        }
    }

    fn fetch_mut(&mut self) -> Option<&mut Fetch> {
        match &mut self.current {
            Some(Current { phase: Phase::Started(started), .. }) => started.fetch.as_mut(),
            _ => None,
        }
    }

    fn fetch_timeout(&self) -> Duration {
        self.config.fetch_timeout * (1 << self.fetch_failures.min(MAX_BACKOFF))
    }

    pub(super) fn start_fetch(&mut self, now: Time, target: Place) {
        let last = self.chain.last();
        // What follows the commit place may differ from the target's log; if this log is longer, it does.
        let start = if last.index < target.index { last } else { self.commit };
        let (retry_at, give_up_at) = (now + self.config.fetch_retry, now + self.fetch_timeout());
        let me = self.me.node;
        let Some(Current { config, phase: Phase::Started(started), .. }) = &mut self.current else { return };
        let holder = started.holder;
        let others = config.members.iter().map(|m| m.node).filter(|n| *n != me && *n != holder);
        let peers = core::iter::once(holder).filter(|n| *n != me).chain(others).collect();
        started.fetch = Some(Fetch {
            target,
            start,
            segment: Vec::new(),
            snapshot: None,
            partial: None,
            peers,
            peer: 0,
            unanswered: 0,
            retry_at,
            give_up_at,
        });
        self.send_request();
    }

    fn send_request(&mut self) {
        let cluster = self.chain.cluster();
        let Some(fetch) = self.fetch_mut() else { return };
        fetch.unanswered += 1;
        let Some(to) = fetch.peers.get(fetch.peer % fetch.peers.len().max(1)).copied() else { return };
        let (snapshot, offset) = match &fetch.partial {
            Some(partial) => (partial.at, partial.data.len() as u64),
            None => (Place::default(), 0),
        };
        let kind = FetchKind::Request { snapshot, offset };
        let message = FetchMessage { cluster, target: fetch.target, after: fetch.tip(), kind }.encode();
        self.stats.fetches += 1;
        self.outputs.push_back(Output::Send { to, message });
    }

    fn take_answer(&mut self, now: Time, message: FetchMessage) {
        let (retry, timeout, term) = (self.config.fetch_retry, self.fetch_timeout(), self.term());
        let careless = self.without(Mutant::FetchWithoutChain);
        let (commit, max_snapshot) = (self.commit, self.config.max_snapshot);
        let Some(fetch) = self.fetch_mut() else { return };
        if message.target != fetch.target || message.after != fetch.tip() {
            // The answer to an older question.
            return;
        }
        let progress = match message.kind {
            FetchKind::Entries(entries) => fetch.take_entries(entries, term, careless),
            FetchKind::Chunk(chunk) => fetch.take_chunk(chunk, message.cluster, commit, max_snapshot),
            FetchKind::Differs if fetch.tip() == commit => {
                return self.stop(LogError::CommittedConflict { committed: commit, term });
            }
            FetchKind::Differs => {
                fetch.restart(commit);
                Progress::Some
            }
            FetchKind::Absent | FetchKind::Request { .. } => Progress::None,
        };
        match progress {
            Progress::Complete => self.finish_fetch(now),
            Progress::Some => {
                fetch.unanswered = 0;
                (fetch.retry_at, fetch.give_up_at) = (now + retry, now + timeout);
                self.send_request();
            }
            Progress::Stale => {}
            Progress::None => {
                fetch.peer = fetch.peer.wrapping_add(1);
                // Round the peers once without waiting; after that with the timer.
                if fetch.unanswered < fetch.peers.len() {
                    self.send_request();
                }
            }
        }
    }

    /// Everything up to the target is here: adopt it.
    fn finish_fetch(&mut self, now: Time) {
        let term = self.term();
        let fetch = match &mut self.current {
            Some(Current { phase: Phase::Started(started), .. }) => started.fetch.take(),
            _ => None,
        };
        let Some(Fetch { snapshot, segment, .. }) = fetch else { return };
        let adopted = match snapshot {
            Some(snapshot) => self.adopt_snapshot(snapshot, segment),
            None => self.adopt_entries(segment),
        };
        if !adopted {
            return self.stop(LogError::CommittedConflict { committed: self.commit, term });
        }
        self.fetch_failures = 0;
        // A write of its own, so that confirming the base and confirming the term stay two things.
        self.flush();
        self.advance(now);
    }

    /// False if something committed is not in the segment.
    fn adopt_entries(&mut self, segment: Vec<Entry>) -> bool {
        let common = segment.iter().take_while(|e| self.chain.contains(&e.place)).count();
        let Some(first) = segment.get(common) else { return true };
        let before = LogIndex(first.place.index.0 - 1);
        if before < self.commit.index {
            return false;
        }
        self.stats.replaced += self.chain.cut_after(before);
        segment.into_iter().skip(common).for_each(|entry| self.append(entry));
        true
    }

    fn adopt_snapshot(&mut self, snapshot: Snapshot, segment: Vec<Entry>) -> bool {
        if snapshot.at.index <= self.commit.index {
            return false;
        }
        self.stats.restores += 1;
        self.stats.replaced += self.chain.cut_after(self.chain.root().index);
        self.chain = Chain::after(snapshot.at, snapshot.voters.clone(), snapshot.cluster);
        self.applied = snapshot.at;
        self.applied_voters = snapshot.voters.clone();
        self.applied_bytes = 0;
        self.commit = snapshot.at;
        self.outputs.push_back(Output::Restore { snapshot: snapshot.data.clone(), at: snapshot.at });
        self.snapshot = Some(snapshot);
        // The term of the snapshot's end counts as held from now on.
        self.promised = self.promised.max(self.commit.term);
        for entry in segment {
            self.append(entry);
        }
        self.rewrite();
        self.grant_lease();
        true
    }
}

impl Fetch {
    fn restart(&mut self, commit: Place) {
        self.start = commit;
        self.segment.clear();
        self.snapshot = None;
        self.partial = None;
    }

    fn take_entries(
        &mut self,
        entries: Vec<(Term, bytes::Bytes)>,
        authority: Term,
        careless: bool,
    ) -> Progress {
        let before = self.segment.len();
        for (term, body) in entries {
            let tip = self.tip();
            if term < tip.term || term > authority || tip.index >= self.target.index {
                break;
            }
            self.segment.push(Entry::after(&tip, term, body));
        }
        let tip = self.tip();
        if tip == self.target || (careless && tip.index >= self.target.index) {
            Progress::Complete
        } else if tip.index >= self.target.index {
            // The peer's entries do not lead to the target: none of them can be trusted.
            self.segment.truncate(before);
            Progress::None
        } else if self.segment.len() > before {
            Progress::Some
        } else {
            Progress::None
        }
    }

    fn take_chunk(
        &mut self,
        chunk: Chunk,
        cluster: sheep_types::ClusterId,
        commit: Place,
        max_snapshot: usize,
    ) -> Progress {
        let tip = self.tip();
        if chunk.at.index <= tip.index
            || chunk.at.index <= commit.index
            || chunk.at.index > self.target.index
            || chunk.at.term > self.target.term
            || chunk.total > max_snapshot as u64
            || cluster.0 == 0
        {
            return Progress::None;
        }
        let same = |p: &Partial| p.at == chunk.at && p.checksum == chunk.checksum;
        if chunk.offset == 0 && !self.partial.as_ref().is_some_and(same) {
            self.partial = Some(Partial {
                at: chunk.at,
                voters: chunk.voters,
                total: chunk.total,
                checksum: chunk.checksum,
                data: Vec::new(),
            });
        }
        let Some(partial) = &mut self.partial else { return Progress::Stale };
        let next = partial.data.len() as u64;
        if (partial.at, partial.total, partial.checksum, next)
            != (chunk.at, chunk.total, chunk.checksum, chunk.offset)
        {
            return Progress::Stale;
        }
        if next + chunk.data.len() as u64 > partial.total || (chunk.data.is_empty() && partial.total > 0) {
            return Progress::None;
        }
        partial.data.extend_from_slice(&chunk.data);
        if (partial.data.len() as u64) < partial.total {
            return Progress::Some;
        }
        let Some(partial) = self.partial.take() else { return Progress::None };
        let at = partial.at;
        let snapshot = Snapshot::new(at, cluster, partial.voters, partial.data.into());
        if snapshot.checksum() != partial.checksum {
            return Progress::None;
        }
        self.snapshot = Some(snapshot);
        self.start = at;
        self.segment.clear();
        if at == self.target { Progress::Complete } else { Progress::Some }
    }
}
