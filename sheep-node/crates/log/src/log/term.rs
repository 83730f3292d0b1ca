//! From a configuration to a term: promises, the base, the start.

use super::Log;
use super::fetch::Fetch;
use crate::api::{Configuration, Delivery, LogError, Output};
use crate::chain::VoterList;
use crate::codec::{KIND_PROMISE, Promise};
use crate::mutant::Mutant;
use bytes::Bytes;
use sheep_types::{LogIndex, Member, NodeId, Place, Term, Time};
use std::collections::{BTreeMap, VecDeque};

/// The present regular configuration.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) config: Configuration,
    /// Position of the last message delivered without a gap.
    delivered: u64,
    pub(super) promise: PromiseStep,
    pub(super) phase: Phase,
    /// What the members have confirmed, by their notes.
    pub(super) confirmed: BTreeMap<NodeId, Confirmed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PromiseStep {
    /// Not promised: not a voter, as far as is known here.
    None,
    /// Being made durable.
    Writing,
    /// Given to the ring.
    Sent,
}

/// How far a configuration has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// Voters promise; what they have promised in the order so far.
    Forming(BTreeMap<NodeId, Promise>),
    /// Primary.
    Started(Box<Started>),
    /// A hole, or a transitional configuration: nothing of this configuration enters the log any more.
    Ended,
}

/// A configuration that is the primary component.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) base: Place,
    /// The voter whose log is the base.
    pub(super) holder: NodeId,
    /// Index of the next ordered message.
    next: u64,
    /// Ordered messages that cannot be appended yet, with their index.
    waiting: VecDeque<(u64, Bytes)>,
    waiting_bytes: usize,
    pub(super) fetch: Option<Fetch>,
}

/// What one member has confirmed in this term.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Confirmed {
    /// The highest place that is also in this node's log.
    pub(super) known: Place,
    /// A place beyond the end of this node's log, compared when the log has grown.
    pub(super) ahead: Option<Place>,
    /// The last one named, whether or not it was compared: something to aim a fetch at.
    pub(super) latest: Place,
}

pub(super) fn is_majority<'a>(list: &[NodeId], of: impl Iterator<Item = &'a NodeId>) -> bool {
    of.filter(|node| list.contains(node)).count() * 2 > list.len()
}

impl Log {
    /// The ring entered a configuration.
    pub fn handle_configuration(&mut self, now: Time, configuration: Configuration) {
        if self.stopped {
            return;
        }
        if !configuration.regular {
            if !self.without(Mutant::IndexAfterHole) {
                self.end_term();
            }
            self.refresh_note();
            return;
        }
        self.end_term();
        let term = configuration.id;
        self.current = Some(Current {
            config: configuration,
            delivered: 0,
            promise: PromiseStep::None,
            phase: Phase::Forming(BTreeMap::new()),
            confirmed: BTreeMap::new(),
        });
        self.outputs.push_back(Output::NewTerm { term, primary: false });
        if self.lists().iter().any(|list| list.contains(&self.me.node)) {
            self.promise(now);
        }
        self.refresh_note();
    }

    /// The ring delivered an ordered message.
    pub fn handle_delivery(&mut self, now: Time, delivery: Delivery) {
        let loose = self.without(Mutant::IndexAfterHole);
        let Some(current) = self.current.as_mut().filter(|c| c.config.id == delivery.config) else {
            return;
        };
        if self.stopped || matches!(current.phase, Phase::Ended) || delivery.position <= current.delivered {
            return;
        }
        if !loose && (delivery.transitional || delivery.position != current.delivered + 1) {
            // Other members may have another message here: what follows has no place in the log.
            self.end_term();
            self.refresh_note();
            return;
        }
        current.delivered = delivery.position;
        match (&mut current.phase, delivery.payload.first() == Some(&KIND_PROMISE)) {
            (Phase::Forming(_), true) => match Promise::decode(delivery.payload) {
                Ok(promise) => self.ordered_promise(now, delivery.sender, promise),
                Err(_) => self.stats.dropped += 1,
            },
            // Ordered before the start: not in the log. Its origin sends it again at the start.
            (Phase::Forming(_), false) => {}
            // A promise that came after the start has no place in the log.
            (Phase::Started(_), true) | (Phase::Ended, _) => {}
            (Phase::Started(started), false) => {
                started.waiting_bytes += delivery.payload.len();
                started.waiting.push_back((started.next, delivery.payload));
                started.next += 1;
                self.advance(now);
            }
        }
        // Confirmations come with the token; here only the log has grown.
        self.compare_commit_ahead();
        self.refresh_note();
    }

    fn end_term(&mut self) {
        if self.is_primary() {
            self.outputs.push_back(Output::Primary(false));
        }
        if let Some(current) = &mut self.current {
            current.phase = Phase::Ended;
        }
    }

    /// The voter lists that count by this node's log.
    pub(super) fn lists(&self) -> Vec<Vec<NodeId>> {
        let list = |v: &VoterList| v.list.clone();
        if self.without(Mutant::VotersFromApplied) {
            return vec![list(&self.applied_voters)];
        }
        let lists = self.chain.lists();
        let skip = if self.without(Mutant::NewVotersOnly) { lists.len().saturating_sub(1) } else { 0 };
        lists.iter().skip(skip).map(list).collect()
    }

    /// Promises the present configuration, durably first.
    fn promise(&mut self, _now: Time) {
        let Some(current) = &mut self.current else { return };
        let term = current.config.id;
        if current.promise != PromiseStep::None || term <= self.promised.max(self.chain.last().term) {
            return;
        }
        current.promise = PromiseStep::Writing;
        self.promised = term;
        self.writer.promise(term);
        if self.without(Mutant::PromiseNotDurable) {
            self.durable_promise = term;
            self.send_promise();
        }
    }

    /// Orders the promise, when it is durable and still of use.
    pub(super) fn send_promise(&mut self) {
        let lists = self.lists();
        let Some(current) = &mut self.current else { return };
        if current.promise != PromiseStep::Writing || self.durable_promise < current.config.id {
            return;
        }
        current.promise = PromiseStep::Sent;
        // After the start only the note counts, which says "promised" from now on.
        if !matches!(current.phase, Phase::Forming(_)) || lists.is_empty() {
            return;
        }
        let voters_at = self.chain.lists().last().map(|v| v.at).unwrap_or_default();
        let (cluster, term, last) = (self.chain.cluster(), current.config.id, self.chain.last());
        let promise = Promise { cluster, term, last, voters_at, lists };
        self.outputs.push_back(Output::Multicast(promise.encode()));
    }

    fn ordered_promise(&mut self, now: Time, sender: Member, promise: Promise) {
        let ours = self.chain.cluster();
        if ours.0 != 0 && promise.cluster != ours {
            return self.stop(LogError::ForeignCluster { node: sender.node, theirs: promise.cluster, ours });
        }
        let any_term = self.without(Mutant::PromiseOfAnyTerm);
        let named = promise.lists.iter().any(|list| list.contains(&self.me.node));
        let Some(Current { config, phase: Phase::Forming(promises), .. }) = &mut self.current else { return };
        if promise.term != config.id && !any_term {
            // Made in an earlier configuration and ordered in this one: its sender's log may have grown.
            return;
        }
        // The term is above everything that its promisers hold: anything else is not a promise.
        if !config.members.contains(&sender) || promise.last.term >= config.id {
            self.stats.dropped += 1;
            return;
        }
        promises.entry(sender.node).or_insert(promise);
        if let Some((holder, base)) = self.elected() {
            self.start(now, holder, base);
        } else if named {
            // This node may vote without knowing it: the entry that made it a voter has not reached it.
            self.promise(now);
        }
    }

    /// The base, if the promises so far make a majority of every list that counts by it. The same at the
    /// same place of the order on all members, since it looks at nothing but the order.
    fn elected(&self) -> Option<(NodeId, Place)> {
        let Some(Current { config, phase: Phase::Forming(promises), .. }) = &self.current else {
            return None;
        };
        // Of equally good logs the one that knows a change to be committed, so that one list is enough.
        let best = |(node, p): &(&NodeId, &Promise)| {
            (p.last.rank(), core::cmp::Reverse(p.lists.len()), core::cmp::Reverse(**node))
        };
        let (holder, base) = promises.iter().max_by_key(best)?;
        let lists = base.lists.iter().map(|list| {
            if self.without(Mutant::MinorityInstall) {
                let here = |node: &&NodeId| config.members.iter().any(|m| m.node == **node);
                list.iter().filter(here).copied().collect()
            } else {
                list.clone()
            }
        });
        let elected = lists.into_iter().all(|list| is_majority(&list, promises.keys()));
        elected.then_some((*holder, base.last))
    }

    /// Here the promises reached a majority: the configuration is primary, and this is the start of its term.
    fn start(&mut self, now: Time, holder: NodeId, base: Place) {
        let own = self.chain.last();
        let own_base = self.without(Mutant::OwnBase);
        let Some(current) = &mut self.current else { return };
        let term = current.config.id;
        let base = if own_base { own } else { base };
        let next = base.index.0 + 2;
        let (waiting, waiting_bytes, fetch) = (VecDeque::new(), 0, None);
        let started = Started { base, holder, next, waiting, waiting_bytes, fetch };
        current.phase = Phase::Started(Box::new(started));
        self.stats.terms += 1;
        self.outputs.push_back(Output::NewTerm { term, primary: true });
        self.outputs.push_back(Output::Primary(true));
        if term < self.promised {
            // Promised a later one: nothing of this term may be appended here. The ring must form again,
            // with a number above the promise.
            self.stats.form_again += 1;
            self.outputs.push_back(Output::FormAgain);
            return self.end_term();
        }
        if self.chain.place(base.index).is_some_and(|p| p != base) && base.index <= self.commit.index
            || base.index < self.commit.index
        {
            return self.stop(LogError::CommittedConflict { committed: self.commit, term });
        }
        self.resend_queue();
        self.advance(now);
    }

    /// Appends all that can be appended, and fetches what is missing before the rest.
    pub(super) fn advance(&mut self, now: Time) {
        loop {
            let last = self.chain.last();
            let Some(current) = &mut self.current else { return };
            let term = current.config.id;
            let Phase::Started(started) = &mut current.phase else { return };
            if started.fetch.is_some() {
                break;
            }
            if last.term != term {
                let base = started.base;
                if !self.chain.contains(&base) {
                    return self.start_fetch(now, base);
                }
                let members = core::mem::take(&mut current.config.members);
                self.append_install(base, term, &members);
                if let Some(current) = &mut self.current {
                    current.config.members = members;
                }
                continue;
            }
            match started.waiting.front() {
                Some((index, _)) if *index > last.index.0 + 1 => {
                    // The buffer was too small. Whatever a member confirmed in this term is in its order.
                    if let Some(target) = self.place_of_term(last.index) {
                        self.start_fetch(now, target);
                    }
                    break;
                }
                Some(_) => {
                    if let Some((index, payload)) = started.waiting.pop_front() {
                        started.waiting_bytes -= payload.len();
                        if index == last.index.0 + 1 {
                            self.append_ordered(term, payload);
                        }
                    }
                }
                None => break,
            }
        }
        self.limit_waiting();
    }

    fn limit_waiting(&mut self) {
        let Some(Current { phase: Phase::Started(started), .. }) = &mut self.current else { return };
        while started.waiting.len() > self.config.buffer_messages
            || started.waiting_bytes > self.config.buffer_bytes
        {
            if let Some((_, payload)) = started.waiting.pop_front() {
                started.waiting_bytes -= payload.len();
            }
        }
    }

    /// The highest place of the present term that a member named, if it is beyond an index.
    pub(super) fn place_of_term(&self, beyond: LogIndex) -> Option<Place> {
        let current = self.current.as_ref()?;
        let term: Term = current.config.id;
        let places = current.confirmed.values().map(|c| c.latest);
        places.filter(|p| p.term == term && p.index > beyond).max_by_key(|p| p.index)
    }
}
