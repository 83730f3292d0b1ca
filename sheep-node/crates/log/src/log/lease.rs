//! The lease: the only place where time decides.
//!
//! A token renews it if a majority of the voters of every list that counts have written, since this node
//! last passed the token on, that they promised the term of the token and no higher one. Whoever excludes
//! this node later needs promises of a majority, one of which belongs to a voter that supported the term
//! after that moment: so the exclusion is ordered, and applied anywhere, later than the time stamp. An
//! exclusion before it is at or below the highest commit place on the token, which must be applied first.

use super::Log;
use super::term::{Current, Phase, is_majority};
use crate::api::{Output, TokenSeen};
use crate::mutant::Mutant;
use core::time::Duration;
use sheep_types::{LogIndex, NodeId, Time};
use std::collections::VecDeque;

/// Renewals that may wait for entries to be applied. The oldest wait shortest, so new ones are left out.
const MAX_WAITING: usize = 64;

#[derive(Debug)]
pub(super) struct Lease {
    duration: Duration,
    allowed: bool,
    deadline: Option<Time>,
    /// Time stamps whose tokens renew the lease as soon as an index is applied.
    waiting: VecDeque<(Time, LogIndex)>,
}

impl Lease {
    pub(super) fn new(duration: Duration) -> Self {
        Self { duration, allowed: true, deadline: None, waiting: VecDeque::new() }
    }

    pub(super) fn deadline(&self, now: Time) -> Option<Time> {
        self.deadline.filter(|d| now < *d)
    }

    pub(super) fn set_duration(&mut self, duration: Duration) {
        self.duration = duration;
    }

    pub(super) fn set_allowed(&mut self, allowed: bool) {
        self.allowed = allowed;
        if !allowed {
            self.end();
        }
    }

    pub(super) fn end(&mut self) {
        self.deadline = None;
        self.waiting.clear();
    }

    fn remember(&mut self, now: Time, stamp: Time, index: LogIndex) {
        // What would end before now is of no use to anybody.
        self.waiting.retain(|(stamp, _)| *stamp + self.duration > now);
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back((stamp, index));
        }
    }

    /// The new end, if it is later than the present one.
    fn grant(&mut self, applied: LogIndex) -> Option<Time> {
        let ready = self.waiting.iter().filter(|(_, index)| *index <= applied);
        let stamp = ready.map(|(stamp, _)| *stamp).max()?;
        self.waiting.retain(|(_, index)| *index > applied);
        let deadline = stamp + self.duration;
        if !self.allowed || self.deadline.is_some_and(|d| deadline <= d) {
            return None;
        }
        self.deadline = Some(deadline);
        Some(deadline)
    }
}

impl Log {
    /// A token of the present configuration, or of any for a broken variant.
    pub(super) fn renew_lease(&mut self, now: Time, token: &TokenSeen) {
        let careless = self.without(Mutant::LeaseWithoutSupport);
        let stamp = if self.without(Mutant::LeaseFromReceipt) { Some(now) } else { token.passed_previous };
        let Some(stamp) = stamp else { return };
        let renews = careless || (self.is_installed() && self.is_supported(token));
        if !renews {
            return;
        }
        let highest = token.notes.iter().map(|(_, note)| note.commit.index).max().unwrap_or_default();
        let index = if self.without(Mutant::LeaseWithoutApplied) {
            LogIndex(0)
        } else {
            highest.max(self.commit.index)
        };
        self.lease.remember(now, stamp, index);
        self.grant_lease();
    }

    /// Grants what waited for entries that are now applied, or put out before this to be applied.
    pub(super) fn grant_lease(&mut self) {
        if let Some(deadline) = self.lease.grant(self.applied.index) {
            self.stats.renewals += 1;
            self.outputs.push_back(Output::LeaseRenewed(deadline));
        }
    }

    /// Whether majorities of all lists that count supported the term in the last whole rotation.
    fn is_supported(&self, token: &TokenSeen) -> bool {
        let Some(Current { config, phase: Phase::Started(_), .. }) = &self.current else { return false };
        let supporters: Vec<NodeId> = token
            .notes
            .iter()
            .filter(|(member, note)| {
                if *member == self.me {
                    // This node handles the token right now. A higher promise would show here.
                    return self.promised == config.id && self.durable_promise == config.id;
                }
                config.members.contains(member)
                    && note.term == config.id
                    && note.promised
                    && note.written_rotation.saturating_add(1) >= token.rotation
            })
            .map(|(member, _)| member.node)
            .collect();
        let lists = self.lists();
        !lists.is_empty() && lists.iter().all(|list| is_majority(list, supporters.iter()))
    }
}
