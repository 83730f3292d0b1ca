//! State Operational, and what Recovery shares with it: receiving messages and tokens, holding the token
//! of an idle ring.

use super::token::running;
use super::{Phase, Ring};
use crate::codec::{Multicast, Packet, Token, Wanted};
use crate::order::{Inserted, Stored};
use crate::types::{Destination, Output};
use core::time::Duration;
use sheep_types::{Member, NodeId, Time};

/// Least time between two rotations of a ring of one.
const SINGLE_SPACING: Duration = Duration::from_micros(100);

impl Ring {
    pub(super) fn on_multicast(&mut self, sender: Member, message: Multicast) {
        let reach = 2 * self.config.outstanding();
        let runs = self.run.as_ref().is_some_and(|run| run.id == message.config);
        // While others are gathered, messages that were on their way still count. Once the commit token has
        // said what this node has, they do not.
        let late = matches!(self.phase, Phase::Gather(_)) && self.previous() == message.config;
        let order = if late { self.order.as_mut() } else { running(&mut self.order, &mut self.phase) };
        let Some(order) = order.filter(|_| runs || late) else {
            self.stats.foreign_config += 1;
            return;
        };
        if !order.config.contains(sender) {
            self.stats.refused += 1;
            return;
        }
        let stored = Stored {
            origin: message.origin,
            recovered: message.recovered,
            payloads: message.payloads.clone(),
        };
        match order.insert(message.seq, stored, reach) {
            Inserted::New => {}
            Inserted::Duplicate => {
                self.stats.stale += 1;
                return;
            }
            Inserted::Refused => {
                self.stats.refused += 1;
                return;
            }
        }
        if runs {
            self.take_recovered(&message);
            self.note_progress(message.seq);
        }
        let order = if late { self.order.as_mut() } else { running(&mut self.order, &mut self.phase) };
        if let Some(order) = order {
            order.deliver(&mut self.out, &mut self.stats);
        }
    }

    /// A message newer than the token this node sent shows that the token went on.
    fn note_progress(&mut self, seq: u64) {
        if let Some(run) = &mut self.run
            && (!run.started() || seq > run.last_seq())
        {
            run.sent = None;
        }
    }

    pub(super) fn on_token(&mut self, now: Time, sender: Member, mut token: Token) {
        let outstanding = self.config.outstanding();
        let Some(run) = self.run.as_mut().filter(|run| run.id == token.config) else {
            self.stats.foreign_config += 1;
            return;
        };
        let Some(order) = running(&mut self.order, &mut self.phase) else { return };
        if token.hop <= run.hop || run.held.is_some() {
            self.stats.stale += 1;
            return;
        }
        let representative = run.representative == self.me.node;
        let rotation = token.rotation + u64::from(representative);
        let plausible = sender.node == run.predecessor
            && order.config.contains(sender)
            && token.slots.len() == run.members
            && rotation > run.rotation
            && token.seq <= order.aru + 2 * outstanding
            && (!representative || run.started());
        if !plausible {
            self.stats.refused += 1;
            return;
        }
        token.rotation = rotation;
        run.rotation = rotation;
        run.hop = token.hop;
        self.visit(now, token);
    }

    /// Whether the representative may keep the token for a while: nobody has work.
    pub(super) fn may_hold(&self, token: &Token) -> bool {
        let Some(run) = &self.run else { return false };
        matches!(self.phase, Phase::Operational)
            && !run.alone()
            && run.representative == self.me.node
            && !run.skip_hold
            && token.aru == token.seq
            && token.requests.is_empty()
            && self.queue.is_empty()
            && token.rotation > token.busy_until
    }

    pub(super) fn on_wanted(&mut self, now: Time, sender: Member, wanted: Wanted) {
        let member = self.members().contains(&sender);
        let Some(run) = self.run.as_mut().filter(|run| run.id == wanted.config && member) else {
            self.stats.foreign_config += 1;
            return;
        };
        if run.held.is_some() {
            self.release(now);
        } else {
            run.skip_hold = true;
        }
    }

    /// Passes on the token that is held.
    fn release(&mut self, now: Time) {
        if let Some((token, _)) = self.run.as_mut().and_then(|run| run.held.take()) {
            self.pass(now, token);
        }
    }

    /// There is a payload to send.
    pub(super) fn want_token(&mut self, now: Time) {
        if !matches!(self.phase, Phase::Operational) {
            return;
        }
        let Some(run) = &self.run else { return };
        if run.alone() {
            self.order_alone();
        } else if run.held.is_some() {
            self.release(now);
        } else {
            self.hurry_token();
        }
    }

    /// There is something for the token: it is asked for if it rests, or is about to.
    pub(super) fn hurry_token(&mut self) {
        if !matches!(self.phase, Phase::Operational) {
            return;
        }
        let Some(run) = &mut self.run else { return };
        let soon = run.passed_at.map_or(Time::ZERO, |at| at + SINGLE_SPACING);
        if let Some((_, until)) = &mut run.held {
            *until = (*until).min(soon);
        } else if run.representative == self.me.node {
            run.skip_hold = true;
        } else if !run.asked && run.rotation >= run.busy_until {
            run.asked = true;
            let (to, config) = (run.representative, run.id);
            self.send(Destination::Node(to), &Packet::Wanted(Wanted { config }));
        }
    }

    /// A ring of one orders at once; its token only serves to renew what hangs on rotations.
    pub(super) fn order_alone(&mut self) {
        let Some((mut token, until)) = self.run.as_mut().and_then(|run| run.held.take()) else { return };
        let messages = self.pack(&token, u64::MAX);
        if let Some(order) = &mut self.order {
            for m in messages {
                let stored = Stored { origin: m.origin, recovered: None, payloads: m.payloads };
                order.insert(m.seq, stored, 2 * self.config.outstanding());
                token.seq = m.seq;
                order.deliver(&mut self.out, &mut self.stats);
                order.advance_safe(m.seq, &mut self.out);
                self.stats.messages_sent += 1;
            }
            token.aru = token.seq;
        }
        if let Some(run) = &mut self.run {
            run.last_aru = token.seq;
            run.held = Some((token, until));
        }
    }

    /// Gives the configuration up if the token did not come in time.
    pub(super) fn check_token_loss(&mut self, now: Time) {
        let lost = self.run.as_ref().is_some_and(|run| !run.alone() && run.loss_at <= now);
        if lost {
            self.stats.token_losses += 1;
            self.gather(now, &[]);
        }
    }

    pub(super) fn token_timeout(&mut self, now: Time) {
        let Some(run) = &mut self.run else { return };
        if let Some((_, until)) = &run.held {
            if *until <= now {
                if run.alone() { self.rotate_alone(now) } else { self.release(now) }
            }
            return;
        }
        if let Some(packet) = run.sent.clone().filter(|_| run.retransmit_at <= now) {
            run.retransmit_at = now + self.config.token_retransmit;
            let to = Destination::Node(run.successor());
            self.stats.token_retransmits += 1;
            self.out.push_back(Output::Send { to, packet });
        }
    }

    fn rotate_alone(&mut self, now: Time) {
        let Some(run) = &mut self.run else { return };
        if let Some((mut token, _)) = run.held.take() {
            token.rotation += 1;
            run.rotation = token.rotation;
            self.visit(now, token);
        }
    }

    /// A member that holds back what all others have received is failed.
    pub(super) fn found_stuck(&mut self, now: Time, token: &Token) -> bool {
        let Some(run) = &mut self.run else { return false };
        let setter = token.aru_setter;
        if setter == NodeId(0) || setter == self.me.node || token.aru == token.seq {
            run.stuck = None;
            return false;
        }
        let (count, since) = match run.stuck {
            Some((node, aru, count, since)) if node == setter && aru == token.aru => (count + 1, since),
            _ => (1, now),
        };
        run.stuck = Some((setter, token.aru, count, since));
        let limit = self.config.token_loss;
        if count < self.config.fail_to_receive || now.since(since) < limit {
            return false;
        }
        self.stats.failed_to_receive += 1;
        self.accuse(now, setter, Some(now + self.config.max_backoff));
        true
    }
}
