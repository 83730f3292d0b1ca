//! What is known of other nodes from their own packets.

use crate::codec::{Probe, RingSize};
use crate::limits::MAX_PEERS;
use sheep_types::{ConfigId, Incarnation, Member, NodeId, Time};
use std::collections::BTreeMap;

/// One other node, in its newest known incarnation.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub incarnation: Incarnation,
    /// Last packet of any kind.
    pub heard_at: Option<Time>,
    /// Number of its newest join.
    pub join: u64,
    /// Last probe that listed this node as heard.
    pub hears_me_at: Option<Time>,
    /// Whether its last probe came from a primary configuration.
    pub primary: bool,
    /// Configuration that its last probe named.
    pub config: ConfigId,
    pub rejoins: u32,
    /// What that configuration counts for, and the node alone.
    pub ring: RingSize,
    pub weight: u16,
    /// Last answer sent to it.
    pub answered_at: Option<Time>,
    /// It has said that this run of it is over.
    pub left: bool,
}

impl Peer {
    fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            heard_at: None,
            join: 0,
            hears_me_at: None,
            primary: false,
            config: ConfigId::default(),
            rejoins: 0,
            ring: RingSize::default(),
            weight: 0,
            answered_at: None,
            left: false,
        }
    }
}

/// What a packet's sender turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Current,
    /// An incarnation that is gone.
    Old,
    /// A newer incarnation than was known.
    Restarted,
    /// No room to remember it.
    Full,
}

/// A bounded table of nodes.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    table: BTreeMap<NodeId, Peer>,
}

impl Peers {
    /// Notes a packet. `keep` tells which nodes must not be forgotten to make room.
    pub(crate) fn hear(&mut self, sender: Member, now: Time, keep: impl Fn(NodeId) -> bool) -> Known {
        if self.is_gone(sender) {
            return Known::Old;
        }
        let known = match self.table.get(&sender.node).map(|p| p.incarnation) {
            Some(i) if i < sender.incarnation => Known::Restarted,
            Some(_) => Known::Current,
            None if self.make_room(keep) => Known::Current,
            None => return Known::Full,
        };
        let peer = self.table.entry(sender.node).or_insert_with(|| Peer::new(sender.incarnation));
        if known == Known::Restarted {
            *peer = Peer::new(sender.incarnation);
        }
        peer.heard_at = Some(now);
        known
    }

    /// Makes sure that a member is known, without having heard it.
    pub(crate) fn remember(&mut self, member: Member, keep: impl Fn(NodeId) -> bool) {
        if self.table.contains_key(&member.node) || self.make_room(keep) {
            let peer = self.table.entry(member.node).or_insert_with(|| Peer::new(member.incarnation));
            if peer.incarnation < member.incarnation {
                *peer = Peer::new(member.incarnation);
            }
        }
    }

    /// Forgets whoever was silent longest, if the table is full.
    fn make_room(&mut self, keep: impl Fn(NodeId) -> bool) -> bool {
        if self.table.len() < MAX_PEERS {
            return true;
        }
        let oldest = self.table.iter().filter(|(node, _)| !keep(**node)).min_by_key(|(_, p)| p.heard_at);
        match oldest.map(|(node, _)| *node) {
            Some(node) => self.table.remove(&node).is_some(),
            None => false,
        }
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<&Peer> {
        self.table.get(&node)
    }

    pub(crate) fn get_mut(&mut self, node: NodeId) -> Option<&mut Peer> {
        self.table.get_mut(&node)
    }

    /// Takes over what a node says of itself in a probe.
    pub(crate) fn note_probe(&mut self, sender: Member, probe: &Probe, me: Member, now: Time) {
        if let Some(peer) = self.table.get_mut(&sender.node) {
            peer.primary = probe.primary;
            peer.config = probe.config;
            peer.ring = probe.ring;
            peer.weight = probe.weight;
            peer.rejoins = peer.rejoins.max(probe.rejoins);
            peer.hears_me_at = probe.heard.contains(&me).then_some(now);
        }
    }

    /// Whether this very run of a node was heard since `since`.
    pub(crate) fn heard_since(&self, member: Member, since: Time) -> bool {
        self.table
            .get(&member.node)
            .is_some_and(|p| p.incarnation == member.incarnation && p.heard_at.is_some_and(|at| at >= since))
    }

    /// This run of a node, which was just heard, is over.
    pub(crate) fn leave(&mut self, member: Member) {
        if let Some(peer) = self.table.get_mut(&member.node).filter(|p| p.incarnation == member.incarnation) {
            peer.left = true;
            (peer.heard_at, peer.hears_me_at) = (None, None);
        }
    }

    /// Whether this run of a node is known to be over: it has said so, or a newer one is known.
    pub(crate) fn is_gone(&self, member: Member) -> bool {
        self.table.get(&member.node).is_some_and(|p| {
            p.incarnation > member.incarnation || p.left && p.incarnation == member.incarnation
        })
    }

    /// All nodes in their newest incarnations.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Member, &Peer)> {
        self.table.iter().map(|(node, p)| (Member { node: *node, incarnation: p.incarnation }, p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_bounded_and_keeps_members() {
        let mut peers = Peers::default();
        let at = Time::from_nanos;
        for n in 1..=500u64 {
            let sender = Member { node: NodeId(n), incarnation: Incarnation(1) };
            peers.hear(sender, at(n), |node| node == NodeId(1));
        }
        assert_eq!(peers.table.len(), MAX_PEERS);
        assert!(
            peers.get(NodeId(1)).is_some()
                && peers.get(NodeId(2)).is_none()
                && peers.get(NodeId(500)).is_some()
        );
    }

    #[test]
    fn a_restart_voids_what_the_old_run_said() {
        let mut peers = Peers::default();
        let run = |i| Member { node: NodeId(1), incarnation: Incarnation(i) };
        assert_eq!(peers.hear(run(2), Time::ZERO, |_| false), Known::Current);
        peers.get_mut(NodeId(1)).unwrap().join = 9;
        assert_eq!(peers.hear(run(1), Time::ZERO, |_| false), Known::Old);
        assert_eq!(peers.hear(run(3), Time::ZERO, |_| false), Known::Restarted);
        assert_eq!(peers.get(NodeId(1)).unwrap().join, 0);
        assert!(peers.is_gone(run(2)));
    }

    #[test]
    fn who_has_left_is_heard_no_more_until_it_runs_again() {
        let mut peers = Peers::default();
        let run = |i| Member { node: NodeId(1), incarnation: Incarnation(i) };
        assert_eq!(peers.hear(run(2), Time::ZERO, |_| false), Known::Current);
        peers.leave(run(1));
        assert!(!peers.is_gone(run(2)), "another run has left");
        peers.leave(run(2));
        assert!(peers.is_gone(run(2)) && !peers.heard_since(run(2), Time::ZERO));
        assert_eq!(peers.hear(run(2), Time::ZERO, |_| false), Known::Old);
        assert_eq!(peers.hear(run(3), Time::ZERO, |_| false), Known::Restarted);
        assert!(!peers.is_gone(run(3)));
    }
}
