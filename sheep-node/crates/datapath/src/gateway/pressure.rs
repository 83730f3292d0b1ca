//! Whether clients wait longer while something is recovered than they did before. Then the replicas that this gateway
//! talks to are asked to move less.

use super::api::GatewayOutput;
use super::shared::Core;
use core::time::Duration;
use sheep_types::Time;
use sheep_wire::{Message, Packet, Request};

/// Complaints are not made more often.
const AGAIN: Duration = Duration::from_millis(100);
/// A replica that has answered in this time is one that clients of this gateway wait for.
const TALKS: Duration = Duration::from_secs(1);
/// Waits that are longer by no more than this are not worth a complaint.
const SLACK: u64 = 500_000;
/// So many operations make a habit.
const HABIT: u32 = 64;

/// An estimate of the wait that 19 of 20 operations stay below, in nanoseconds. Each operation moves it a little: up by
/// 19 parts if it took longer, else down by one part.
#[derive(Clone, Copy, Debug, Default)]
struct Usual {
    nanos: u64,
    seen: u32,
}

impl Usual {
    /// `parts`: how much is the twentieth part of a step; more is slower and steadier.
    fn add(&mut self, nanos: u64, parts: u64) {
        self.seen = self.seen.saturating_add(1);
        if self.nanos == 0 {
            self.nanos = nanos.max(1);
        } else if nanos > self.nanos {
            self.nanos += (19 * self.nanos / parts).max(1);
        } else {
            self.nanos -= (self.nanos / parts).min(self.nanos - 1);
        }
    }
}

/// Waits of one kind of operation.
#[derive(Clone, Copy, Debug, Default)]
struct Waits {
    /// While nothing is recovered.
    before: Usual,
    /// Now.
    now: Usual,
}

impl Waits {
    fn add(&mut self, nanos: u64, recovering: bool) {
        self.now.add(nanos, 400);
        if !recovering {
            self.before.add(nanos, 2_000);
        }
    }

    fn are_long(&self) -> bool {
        let usual = self.before.nanos;
        self.before.seen >= HABIT && self.now.nanos > 2 * usual + SLACK
    }
}

/// What a gateway knows of its clients' waits.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    reads: Waits,
    writes: Waits,
    told: Option<Time>,
}

impl Core {
    /// A client's operation was carried out. Ones that wait for a flush do not count: these take what they take.
    pub(super) fn took(&mut self, reads: bool, since: Time) {
        let recovering = self.recovering;
        let waits = if reads { &mut self.pressure.reads } else { &mut self.pressure.writes };
        waits.add(u64::try_from(self.now.since(since).as_nanos()).unwrap_or(u64::MAX), recovering);
        if recovering && waits.are_long() {
            self.complain();
        }
    }

    fn complain(&mut self) {
        let now = self.now;
        if self.pressure.told.is_some_and(|at| now.since(at) < AGAIN) {
            return;
        }
        self.pressure.told = Some(now);
        let view = self.view();
        let heard = self.peers.iter().filter(|(_, peer)| now.since(peer.heard) < TALKS);
        let members: Vec<_> = heard.filter_map(|(node, _)| view.member_now(*node)).collect();
        for member in members {
            let (_, header) = self.header(member, super::shared::Basis::default());
            let message = Message::Request(Request::GiveWay);
            self.outputs.push_back(GatewayOutput::Send(Packet { to: member.node, header, message }));
        }
    }

    /// Whether some node does not yet hold all that it must.
    pub(super) fn is_recovering(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.state.recovering().next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_waits_are_noticed_and_forgotten() {
        let mut waits = Waits::default();
        let spread = |n: u64| 100_000 + n % 20 * 10_000;
        (0..5000).for_each(|n| waits.add(spread(n), false));
        let usual = waits.before.nanos;
        assert!((250_000..350_000).contains(&usual), "{usual}");
        (0..1000).for_each(|n| waits.add(spread(n) * 2, true));
        assert!(!waits.are_long(), "twice as long is let pass");
        (0..200).for_each(|n| waits.add(spread(n) * 8, true));
        assert!(waits.are_long());
        assert_eq!(waits.before.nanos, usual, "what recovery does is no habit");
        (0..2000).for_each(|n| waits.add(spread(n), true));
        assert!(!waits.are_long());
    }

    #[test]
    fn a_new_gateway_does_not_complain() {
        let mut waits = Waits::default();
        (0..10).for_each(|_| waits.add(1, false));
        (0..1000).for_each(|_| waits.add(9_000_000, true));
        assert!(!waits.are_long());
    }
}
