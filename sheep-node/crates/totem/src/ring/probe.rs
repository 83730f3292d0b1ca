//! Probes: rings find each other, and nodes show whom they hear.

use super::peers::Peer;
use super::{Phase, Ring};
use crate::codec::{Packet, Probe};
use crate::limits::{MAX_HEARD, MAX_KNOWN};
use crate::types::Destination;
use sheep_types::{ConfigId, Member, Time};

impl Ring {
    fn probe(&self, now: Time) -> Packet {
        let since = now - self.config.probe_window();
        // Whom this node would not take does not count as heard: nobody shall try in vain.
        let takes = |m: Member, p: &Peer| {
            let member = self.order.as_ref().is_some_and(|o| o.config.contains(m));
            member || (!self.admission.blocks(m.node, now) && !self.accuses(m, p.rejoins, now))
        };
        let heard = self.peers.iter().filter(|(_, p)| p.heard_at.is_some_and(|at| at >= since));
        let heard = heard.filter(|(m, p)| takes(*m, p));
        Packet::Probe(Probe {
            config: if matches!(self.phase, Phase::Operational) {
                self.previous()
            } else {
                ConfigId::default()
            },
            primary: self.primary,
            ring: self.ring_size,
            weight: self.weight,
            rejoins: self.rejoins,
            number: self.numbers.highest(),
            layout: 0,
            heard: heard.map(|(member, _)| member).take(MAX_HEARD).collect(),
            accused: self.holds_failed().take(MAX_KNOWN).collect(),
        })
    }

    /// The representative probes always, others only while there is somebody to be found: an idle ring
    /// stays quiet.
    pub(super) fn probe_everyone(&mut self, now: Time) {
        self.probe_at = self.jittered(now, self.config.merge_probe_interval);
        let since = now - self.config.probe_window() * 2;
        let Some(order) = &self.order else { return };
        let foreign = |(member, peer): (Member, &Peer)| {
            !order.config.contains(member) && peer.heard_at.is_some_and(|at| at >= since)
        };
        let representative = order.config.members.first() == Some(&self.me);
        if representative || self.peers.iter().any(foreign) {
            let packet = self.probe(now);
            self.send(Destination::Everyone, &packet);
        }
    }

    /// Tells a foreign node that it is heard, but not more often than need be.
    pub(super) fn answer(&mut self, now: Time, to: Member) {
        let pause = self.config.merge_probe_interval / 4;
        let Some(peer) = self.peers.get_mut(to.node) else { return };
        if peer.answered_at.is_some_and(|at| now.since(at) < pause) {
            return;
        }
        peer.answered_at = Some(now);
        let packet = self.probe(now);
        self.send(Destination::Node(to.node), &packet);
    }

    pub(super) fn on_probe(&mut self, now: Time, sender: Member, probe: &Probe) {
        self.numbers.observe(probe.number.max(probe.config.number), &mut self.out);
        let first = self.peers.get(sender.node).is_some_and(|p| p.answered_at.is_none());
        let before = self.candidates(now);
        self.peers.note_probe(sender, probe, self.me, now);
        // Between rings there are no joins that would say it, and the sender takes nobody in whom it holds failed.
        if probe.accused.contains(&self.me) {
            self.accused_by_others = true;
        }
        if !matches!(self.phase, Phase::Operational) || self.members().contains(&sender) {
            return;
        }
        if first || !probe.heard.contains(&self.me) {
            self.answer(now, sender);
        }
        let candidates = self.candidates(now);
        if self.run.as_ref().is_some_and(|run| run.alone()) && !candidates.is_empty() {
            self.gather(now, &candidates);
        } else if candidates != before {
            self.hurry_token();
        }
    }
}
