//! Who may come into a ring that works: only a node that every member hears and that hears every member,
//! and not again at once if it was refused or did not stay.

use super::{Phase, Ring};
use crate::codec::Token;
use crate::config::RingConfig;
use crate::limits::{MAX_CANDIDATES, MAX_MEMBERS, MAX_PEERS};
use sheep_types::{Member, NodeId, Time};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug)]
struct Backoff {
    count: u32,
    until: Time,
}

/// Memory of who was let in and who was refused.
#[derive(Debug, Default)]
pub(super) struct Admission {
    backoff: BTreeMap<NodeId, Backoff>,
    /// Invited since the last configuration.
    attempts: BTreeSet<NodeId>,
    /// Members that came in, and when.
    admitted: BTreeMap<NodeId, Time>,
}

impl Admission {
    /// Nodes are being taken in.
    pub(super) fn attempt(&mut self, nodes: &[Member]) {
        for member in nodes {
            if self.attempts.len() < MAX_PEERS {
                self.attempts.insert(member.node);
            }
        }
    }

    /// Whether a node must wait.
    pub(super) fn blocks(&self, node: NodeId, now: Time) -> bool {
        self.backoff.get(&node).is_some_and(|b| now < b.until)
    }

    /// A configuration is installed. Returns how many nodes were refused.
    pub(super) fn installed(
        &mut self,
        before: &[Member],
        after: &[Member],
        me: Member,
        now: Time,
        config: &RingConfig,
    ) -> u64 {
        let is_in = |list: &[Member], node: NodeId| list.iter().any(|m| m.node == node);
        let attempts = core::mem::take(&mut self.attempts);
        let mut refused: BTreeSet<NodeId> =
            attempts.into_iter().filter(|node| !is_in(after, *node)).collect();
        let left: Vec<(NodeId, Time)> =
            self.admitted.iter().filter(|(node, _)| !is_in(after, **node)).map(|(n, at)| (*n, *at)).collect();
        // Who stays behind when this node moves to others has not failed.
        let grown = after.iter().any(|m| !before.contains(m));
        for (node, since) in left {
            self.admitted.remove(&node);
            if grown {
                continue;
            }
            if now.since(since) < config.stable_time() {
                refused.insert(node);
            } else {
                self.backoff.remove(&node);
            }
        }
        for node in &refused {
            self.refuse(*node, now, config);
        }
        for member in after.iter().filter(|m| **m != me && !before.contains(m)) {
            self.admitted.insert(member.node, now);
        }
        refused.len() as u64
    }

    fn refuse(&mut self, node: NodeId, now: Time, config: &RingConfig) {
        if self.backoff.len() >= MAX_PEERS && !self.backoff.contains_key(&node) {
            let oldest = self.backoff.iter().min_by_key(|(_, b)| b.until).map(|(n, _)| *n);
            oldest.map(|n| self.backoff.remove(&n));
        }
        let backoff = self.backoff.entry(node).or_insert(Backoff { count: 0, until: now });
        backoff.count += 1;
        let wait = config.token_loss * (1 << (backoff.count - 1).min(16));
        backoff.until = now + wait.min(config.max_backoff);
    }
}

impl Ring {
    /// Foreign nodes that hear this one and are heard by it, and that it would take in.
    pub(super) fn candidates(&self, now: Time) -> Vec<Member> {
        let Some(order) = self.order.as_ref().filter(|_| matches!(self.phase, Phase::Operational)) else {
            return Vec::new();
        };
        if order.config.members.len() >= MAX_MEMBERS {
            return Vec::new();
        }
        let since = now - self.config.probe_window();
        let recent = |at: Option<Time>| at.is_some_and(|at| at >= since);
        let wanted = |(member, peer): &(Member, &super::peers::Peer)| {
            !order.config.contains(*member)
                && recent(peer.heard_at)
                && recent(peer.hears_me_at)
                // A primary configuration takes others in and is not taken in.
                && !peer.primary
                // Else only who gains by the move: see `join_in_ring`.
                && (self.primary || self.ring_size.with(peer.weight) > peer.ring)
                && !self.admission.blocks(member.node, now)
                && !self.accuses(*member, peer.rejoins, now)
        };
        self.peers.iter().filter(wanted).map(|(member, _)| member).take(MAX_CANDIDATES).collect()
    }

    /// Takes in the nodes that all members name. Returns whether there were any.
    pub(super) fn admit_agreed(&mut self, now: Time, token: &Token) -> bool {
        let mut slots = token.slots.iter();
        let Some(first) = slots.next() else { return false };
        let mut agreed = first.candidates.clone();
        slots.for_each(|slot| agreed.retain(|m| slot.candidates.contains(m)));
        if agreed.is_empty() {
            return false;
        }
        self.gather(now, &agreed);
        true
    }
}
