//! State Recovery: members that come from the same configuration bring each other to the same messages,
//! then all install the new configuration (Amir et al. 1995, section 6).

use super::token::Run;
use super::{Phase, Ring};
use crate::codec::{CommitEntry, CommitToken, Multicast, Recovered, RingSize, Token};
use crate::mutant::Mutant;
use crate::order::{Order, Stored};
use crate::types::{Configuration, ConfigurationKind, Output};
use sheep_types::{ConfigId, Member, Time};
use std::collections::{BTreeSet, VecDeque};

/// What state Recovery keeps.
#[derive(Debug)]
pub(super) struct Recovery {
    /// The new configuration.
    pub order: Order,
    /// What it counts for.
    size: RingSize,
    /// Members that come from the same configuration as this node, itself included: the members of the
    /// transitional configuration.
    moving: Vec<Member>,
    /// All of them have everything up to here.
    low: u64,
    /// None of them has anything above this.
    high: u64,
    /// At least one of them has everything up to here.
    complete: u64,
    /// Messages of the last configuration that this node sends again.
    to_send: VecDeque<u64>,
    /// Those that somebody sent again.
    seen: BTreeSet<u64>,
}

impl Ring {
    /// With all that members said about their last configurations.
    pub(super) fn enter_recovery(&mut self, now: Time, token: &CommitToken) {
        let members: Vec<Member> = token.entries.iter().map(|e| e.member).collect();
        let previous = self.previous();
        let same = |e: &&CommitEntry| {
            e.member == self.me || (e.previous == previous && previous != ConfigId::default())
        };
        let group: Vec<&CommitEntry> = token.entries.iter().filter(same).collect();
        let low = group.iter().map(|e| e.aru).min().unwrap_or(0);
        let high = group.iter().map(|e| e.high).max().unwrap_or(0);
        let complete = group.iter().map(|e| e.aru).max().unwrap_or(0);
        let first_with = |seq: u64| group.iter().find(|e| e.aru >= seq).map(|e| e.member);
        // What somebody has without a gap is sent by the first that has it; the rest by whoever has it.
        let mine = |seq: &u64| *seq > complete || first_with(*seq) == Some(self.me);
        let kept = self.order.as_ref().map(|o| o.kept(low, high)).unwrap_or_default();
        let to_send = if group.len() > 1 && !self.config.mutants.is(Mutant::NoExchange) {
            kept.into_iter().filter(mine).collect()
        } else {
            VecDeque::new()
        };
        let moving = group.iter().map(|e| e.member).collect();
        let config = Configuration {
            id: token.config,
            kind: ConfigurationKind::Regular,
            members: members.clone(),
            previous: Some(previous).filter(|id| *id != ConfigId::default()),
        };
        let void_joins = token.entries.iter().map(|e| (e.member.node, e.join)).collect();
        for member in members.iter().filter(|m| **m != self.me) {
            self.peers.remember(*member, |node| members.iter().any(|m| m.node == node));
        }
        self.run = Run::new(token.config, &members, self.me, void_joins, now + self.config.token_loss);
        let order = Order::new(config);
        let size = token.entries.iter().fold(RingSize::default(), |size, e| size.with(e.weight));
        self.phase = Phase::Recovery(Recovery {
            order,
            size,
            moving,
            low,
            high,
            complete,
            to_send,
            seen: BTreeSet::new(),
        });
    }

    /// Messages of the last configuration for this visit, at most `budget`, and whether some are left.
    pub(super) fn recover(&mut self, token: &Token, budget: u64) -> (Vec<Multicast>, bool) {
        let Phase::Recovery(recovery) = &mut self.phase else { return (Vec::new(), false) };
        let Some(old) = &self.order else { return (Vec::new(), false) };
        let mut out = Vec::new();
        while (out.len() as u64) < budget {
            let Some(seq) = recovery.to_send.pop_front() else { break };
            if seq > recovery.complete && recovery.seen.contains(&seq) {
                continue;
            }
            let Some(message) = old.get(seq) else { continue };
            // What was itself recovered then has no payload of that configuration.
            let payloads = if message.recovered.is_some() { Vec::new() } else { message.payloads };
            out.push(Multicast {
                config: token.config,
                seq: token.seq + 1 + out.len() as u64,
                origin: self.me.node,
                recovered: Some(Recovered { config: old.config.id, seq, origin: message.origin }),
                payloads,
            });
        }
        self.stats.recovered += out.len() as u64;
        let left =
            recovery.to_send.iter().any(|seq| *seq <= recovery.complete || !recovery.seen.contains(seq));
        (out, left)
    }

    /// A message of some last configuration was sent again: of this node's?
    pub(super) fn take_recovered(&mut self, message: &Multicast) {
        let (Some(recovered), Some(old)) = (message.recovered, &mut self.order) else { return };
        let Phase::Recovery(recovery) = &mut self.phase else { return };
        let wanted = recovered.config == old.config.id
            && recovered.seq > recovery.low
            && recovered.seq <= recovery.high;
        if !wanted {
            return;
        }
        recovery.seen.insert(recovered.seq);
        let stored = Stored { origin: recovered.origin, recovered: None, payloads: message.payloads.clone() };
        old.insert(recovered.seq, stored, 2 * self.config.outstanding());
    }

    /// Whether everybody has sent and everybody has received what there was: a whole rotation went by
    /// without anything to send, and all of it is safe.
    pub(super) fn is_recovered(&self, token: &Token, safe: u64) -> bool {
        matches!(self.phase, Phase::Recovery(_))
            && token.rotation >= token.recovering + 2
            && safe >= token.recovered_seq
    }

    /// Installs the new configuration: first what is left of the old one.
    pub(super) fn install(&mut self, now: Time) {
        let Phase::Recovery(recovery) = core::mem::replace(&mut self.phase, Phase::Operational) else {
            return;
        };
        let Recovery { mut order, size, moving, .. } = recovery;
        self.ring_size = size;
        let previous = self.order.take();
        let before = previous.as_ref().map(|o| o.config.members.clone()).unwrap_or_default();
        if let Some(mut old) = previous {
            old.deliver(&mut self.out, &mut self.stats);
            if self.config.mutants.is(Mutant::OrderAcrossHole) {
                old.deliver_across_holes(&mut self.out, &mut self.stats);
            }
            self.out.push_back(Output::Configuration(Configuration {
                id: order.config.id,
                kind: ConfigurationKind::Transitional,
                members: moving.clone(),
                previous: Some(old.config.id),
            }));
            old.deliver_rest(&moving, &mut self.out, &mut self.stats);
        }
        order.installed = true;
        self.out.push_back(Output::Configuration(order.config.clone()));
        self.stats.configurations += 1;
        self.stats.admissions_refused +=
            self.admission.installed(&before, &order.config.members, self.me, now, &self.config);
        self.primary = false;
        self.accused_by_others &= order.config.members.len() == 1;
        self.probe_at = now;
        order.deliver(&mut self.out, &mut self.stats);
        self.order = Some(order);
    }
}
