//! The visit of the token: what was received, what is sent, and to whom the token goes.

use super::commit::successor;
use super::{Phase, Ring};
use crate::codec::{Multicast, Packet, Slot, Token};
use crate::limits::MAX_REQUESTS;
use crate::mutant::Mutant;
use crate::order::{Order, Stored};
use crate::types::{Destination, Note, Output};
use bytes::Bytes;
use sheep_types::{ConfigId, Member, NodeId, Time};
use std::collections::BTreeMap;

/// How a member follows the token of one configuration.
#[derive(Debug)]
pub(super) struct Run {
    pub id: ConfigId,
    pub index: usize,
    pub members: usize,
    pub representative: NodeId,
    successor: NodeId,
    pub predecessor: NodeId,
    /// Joins of members up to these numbers were sent before this configuration was agreed on.
    pub void_joins: BTreeMap<NodeId, u64>,
    /// Hop of the newest token taken or sent.
    pub hop: u64,
    /// Rotation of the newest token.
    pub rotation: u64,
    /// `seq` and `aru` of the token when it was last sent.
    last_seq: u64,
    pub last_aru: u64,
    /// Messages this node sent at its last visit.
    last_sent: u32,
    pub busy_until: u64,
    /// Before the token was sent last.
    pub passed_at: Option<Time>,
    pub loss_at: Time,
    /// The packet last sent to the successor, until something shows that it went on.
    pub sent: Option<Bytes>,
    pub retransmit_at: Time,
    /// The representative holds the token of an idle ring.
    pub held: Option<(Token, Time)>,
    /// A member asked for the token while it was on its way.
    pub skip_hold: bool,
    /// This node asked for it since its last visit.
    pub asked: bool,
    /// Who holds the ring back at which place, for how many rotations, since when.
    pub stuck: Option<(NodeId, u64, u32, Time)>,
}

impl Run {
    /// `None` only if `me` is not a member.
    pub(super) fn new(
        id: ConfigId,
        members: &[Member],
        me: Member,
        void_joins: BTreeMap<NodeId, u64>,
        loss_at: Time,
    ) -> Option<Self> {
        let index = members.iter().position(|m| *m == me)?;
        let before = index.checked_sub(1).unwrap_or(members.len() - 1);
        Some(Self {
            id,
            index,
            members: members.len(),
            representative: members.first()?.node,
            successor: successor(members, me.node)?,
            predecessor: members.get(before)?.node,
            void_joins,
            hop: 0,
            rotation: 0,
            last_seq: 0,
            last_aru: 0,
            last_sent: 0,
            busy_until: 0,
            passed_at: None,
            loss_at,
            sent: None,
            retransmit_at: loss_at,
            held: None,
            skip_hold: false,
            asked: false,
            stuck: None,
        })
    }

    /// Whether the regular token was seen.
    pub(super) fn started(&self) -> bool {
        self.rotation > 0
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    pub(super) fn successor(&self) -> NodeId {
        self.successor
    }

    pub(super) fn alone(&self) -> bool {
        self.members == 1
    }

    pub(super) fn wake_at(&self) -> Time {
        let mut at = self.loss_at;
        if self.sent.is_some() {
            at = at.min(self.retransmit_at);
        }
        self.held.as_ref().map_or(at, |(_, until)| at.min(*until))
    }

    /// Lowers the token's aru to what this node has, or raises it again if this node had lowered it.
    fn mark_received(&self, token: &mut Token, aru: u64, me: NodeId) {
        let aru = aru.min(token.seq);
        if aru < token.aru || token.aru_setter == me || token.aru_setter == NodeId(0) {
            token.aru = aru;
            token.aru_setter = if aru == token.seq { NodeId(0) } else { me };
        }
    }
}

/// The order that the token belongs to.
pub(super) fn running<'a>(order: &'a mut Option<Order>, phase: &'a mut Phase) -> Option<&'a mut Order> {
    match phase {
        Phase::Operational => order.as_mut(),
        Phase::Recovery(recovery) => Some(&mut recovery.order),
        _ => None,
    }
}

impl Ring {
    /// As representative: the first regular token of a configuration.
    pub(super) fn start_token(&mut self, now: Time) {
        let Some(run) = &mut self.run else { return };
        run.rotation = 1;
        let token = Token {
            config: run.id,
            hop: 0,
            rotation: 1,
            seq: 0,
            aru: 0,
            aru_setter: NodeId(0),
            sent: 0,
            busy_until: 0,
            recovering: 0,
            recovered_seq: 0,
            slots: vec![Slot::default(); run.members],
            requests: Vec::new(),
        };
        if run.alone() {
            self.install(now);
        }
        self.visit(now, token);
    }

    /// The token is here.
    pub(super) fn visit(&mut self, now: Time, mut token: Token) {
        let Some(run) = &mut self.run else { return };
        run.loss_at = now + self.config.token_loss;
        run.sent = None;
        let index = run.index;
        let Some(order) = running(&mut self.order, &mut self.phase) else { return };
        run.mark_received(&mut token, order.aru, self.me.node);
        let twice = !self.config.mutants.is(Mutant::SafeAtOnce);
        let safe = if twice { run.last_aru.min(token.aru) } else { token.aru };
        order.deliver(&mut self.out, &mut self.stats);
        order.advance_safe(safe, &mut self.out);
        if self.is_recovered(&token, safe) {
            self.install(now);
            token.busy_until = token.busy_until.max(token.rotation + 3);
        }
        self.stats.visits += 1;
        self.write_slot(now, index, &mut token);
        if matches!(self.phase, Phase::Operational) {
            if self.found_stuck(now, &token) || self.admit_agreed(now, &token) {
                return;
            }
            self.report_visit(now, &token);
        }
        if self.may_hold(&token)
            && let Some(run) = &mut self.run
        {
            run.held = Some((token, now + self.config.idle_hold));
            return;
        }
        self.pass(now, token);
    }

    fn report_visit(&mut self, now: Time, token: &Token) {
        let (Some(run), Some(order)) = (&self.run, &self.order) else { return };
        let receipt = self.config.mutants.is(Mutant::LeaseFromReceipt);
        let notes =
            order.config.members.iter().copied().zip(token.slots.iter().map(|slot| slot.note)).collect();
        self.out.push_back(Output::Token(crate::types::TokenSeen {
            config: run.id,
            rotation: token.rotation,
            passed_previous: if receipt { Some(now) } else { run.passed_at },
            notes,
        }));
    }

    /// Sends what is to be sent in this visit, and the token.
    pub(super) fn pass(&mut self, now: Time, mut token: Token) {
        let Some(mut run) = self.run.take() else { return };
        // Again, for what changed while the token was held.
        self.write_slot(now, run.index, &mut token);
        let share = (self.config.window_size / u32::try_from(run.members).unwrap_or(1)).max(1);
        let others = token.sent.saturating_sub(run.last_sent);
        // Nobody starves: who finds the global window full still sends its share.
        let window = self.config.window_size.saturating_sub(others).max(share);
        let budget = u64::from(window.min(self.config.max_messages_per_visit));
        let repeated = self.retransmit(&mut token, budget);
        let room = (token.aru + self.config.outstanding()).saturating_sub(token.seq);
        let fresh = self.new_messages(&mut token, (budget - repeated).min(room));
        let sent = u32::try_from(repeated + fresh.len() as u64).unwrap_or(u32::MAX);
        if let Some(order) = running(&mut self.order, &mut self.phase) {
            let reach = 2 * self.config.outstanding();
            for m in &fresh {
                let stored =
                    Stored { origin: m.origin, recovered: m.recovered, payloads: m.payloads.clone() };
                order.insert(m.seq, stored, reach);
            }
            token.seq += fresh.len() as u64;
            run.mark_received(&mut token, order.aru, self.me.node);
            // Messages of this rotation may still be on their way: only older ones are asked for.
            let free = MAX_REQUESTS - token.requests.len().min(MAX_REQUESTS);
            let missing = order.missing(run.last_seq.min(token.seq), reach, MAX_REQUESTS);
            let missing: Vec<u64> = missing.into_iter().filter(|seq| !token.requests.contains(seq)).collect();
            token.requests.extend(missing.into_iter().take(free));
        }
        if sent > 0 {
            token.busy_until = token.busy_until.max(token.rotation + 3);
        }
        token.sent = others.saturating_add(sent);
        token.hop += 1;
        run.hop = token.hop;
        run.last_seq = token.seq;
        run.last_aru = token.aru;
        run.last_sent = sent;
        run.busy_until = token.busy_until;
        run.asked = false;
        run.skip_hold = false;
        // Taken before the token is sent: leases run from here.
        run.passed_at = Some(now);
        self.stats.messages_sent += fresh.len() as u64;
        self.send_visit(now, &mut run, token, &fresh);
        let alone = run.alone();
        self.run = Some(run);
        if let Some(order) = running(&mut self.order, &mut self.phase) {
            order.deliver(&mut self.out, &mut self.stats);
        }
        if alone {
            self.order_alone();
        }
    }

    /// This member's part of the token.
    fn write_slot(&mut self, now: Time, index: usize, token: &mut Token) {
        let candidates = self.candidates(now);
        let Some(slot) = token.slots.get_mut(index) else { return };
        if self.note_changed || slot.candidates != candidates {
            // One rotation to tell all, one to hear what they make of it.
            token.busy_until = token.busy_until.max(token.rotation + 2);
        }
        slot.note = Note { written_rotation: token.rotation, ..self.note };
        slot.candidates = candidates;
        self.note_changed = false;
    }

    /// The accelerated token: it leaves before the last messages of the visit do.
    fn send_visit(&mut self, now: Time, run: &mut Run, token: Token, fresh: &[Multicast]) {
        let idle = token.rotation >= token.busy_until;
        if run.alone() {
            run.held = Some((token, now + self.config.idle_hold));
            return;
        }
        let after = fresh.len().min(self.config.accelerated_window as usize);
        let (first, rest) = fresh.split_at(fresh.len() - after);
        for message in first {
            self.send(Destination::Members, &Packet::Multicast(message.clone()));
        }
        run.sent = Some(self.send(Destination::Node(run.successor), &Packet::Token(token)));
        let hold = if idle { self.config.idle_hold } else { core::time::Duration::ZERO };
        run.retransmit_at = now + self.config.token_retransmit + hold;
        for message in rest {
            self.send(Destination::Members, &Packet::Multicast(message.clone()));
        }
    }

    /// Sends again what others miss. Returns how many.
    fn retransmit(&mut self, token: &mut Token, budget: u64) -> u64 {
        let Some(order) = running(&mut self.order, &mut self.phase) else { return 0 };
        let safe = order.safe();
        let mut repeat = Vec::new();
        token.requests.retain(|seq| {
            let message = if (repeat.len() as u64) < budget { order.get(*seq) } else { None };
            let keep = message.is_none() && *seq > safe;
            repeat.extend(message);
            keep
        });
        let count = repeat.len() as u64;
        self.stats.retransmits += count;
        for message in repeat {
            self.send(Destination::Members, &Packet::Multicast(message));
        }
        count
    }

    /// New messages of this visit: recovered ones in Recovery, queued payloads in Operational.
    fn new_messages(&mut self, token: &mut Token, budget: u64) -> Vec<Multicast> {
        if matches!(self.phase, Phase::Operational) {
            return self.pack(token, budget);
        }
        let (messages, left) = self.recover(token, budget);
        if left || !messages.is_empty() {
            token.recovering = token.rotation;
            token.recovered_seq = token.recovered_seq.max(token.seq + messages.len() as u64);
        }
        messages
    }

    /// Packs queued payloads into messages.
    pub(super) fn pack(&mut self, token: &Token, budget: u64) -> Vec<Multicast> {
        let room = self.config.max_datagram - crate::codec::MULTICAST_OVERHEAD;
        let mut out: Vec<Multicast> = Vec::new();
        while (out.len() as u64) < budget && !self.queue.is_empty() {
            let mut payloads = Vec::new();
            let mut size = 0;
            while let Some(payload) = self.queue.front() {
                size += Multicast::payload_size(payload);
                if !payloads.is_empty() && (size > room || payloads.len() >= usize::from(u16::MAX)) {
                    break;
                }
                payloads.extend(self.queue.pop_front());
            }
            out.push(Multicast {
                config: token.config,
                seq: token.seq + 1 + out.len() as u64,
                origin: self.me.node,
                recovered: None,
                payloads,
            });
        }
        out
    }
}
