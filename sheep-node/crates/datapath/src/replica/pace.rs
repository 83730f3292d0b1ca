//! How fast blocks are moved for recovery, by their receiver and by their source.
//!
//! As fast as it goes, or as the settings allow; slower where gateways say that their clients wait longer than they
//! did before. Then the pace is halved, and grows again while nobody complains. What a client waits for is never
//! held back.

use super::{Replica, Timer};
use crate::View;
use core::time::Duration;
use sheep_types::Time;
use sheep_wire::{Header, Request};
use std::collections::VecDeque;

/// The pace changes once in such a time, and what was moved is measured over it.
const STEP: Duration = Duration::from_millis(100);
/// However much clients complain, so many bytes per second are moved: a cluster that never heals is worse.
const FLOOR: u64 = 8 << 20;
/// Where clients are served, a recovery begins at this pace, and grows from there.
const START: u64 = 64 << 20;
/// Clients that have asked for nothing in this time, and a recovery that has moved nothing, are not there.
const LATELY: Duration = Duration::from_secs(1);
/// A pace above this is none.
const CEILING: u64 = 8 << 30;
/// Of a higher pace this part is added in each step without complaints.
const GROWTH: u64 = 8;
/// Requests of others that wait for their turn.
const DELAYED: usize = 256;

/// The pace of one replica.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Bytes per second since somebody complained; none: nobody has, lately.
    rate: Option<u64>,
    /// When the next bytes may be moved.
    free_at: Time,
    /// When bytes were last moved, and when a client was last served.
    last: Option<Time>,
    client: Option<Time>,
    /// The present step: when it began, what was moved in it, whether anybody complained.
    began: Time,
    moved: u64,
    complained: bool,
    /// Bytes per second in the step before.
    lately: u64,
    /// What others have asked for too early.
    delayed: VecDeque<(Header, Request)>,
}

impl Pace {
    pub(super) fn new(now: Time) -> Self {
        Self {
            rate: None,
            free_at: now,
            last: None,
            client: None,
            began: now,
            moved: 0,
            complained: false,
            lately: 0,
            delayed: VecDeque::new(),
        }
    }

    /// Whether bytes may be moved now.
    fn allows(&self, now: Time) -> bool {
        self.free_at <= now
    }

    /// Whether clients are served here.
    fn is_shared(&self, now: Time) -> bool {
        self.client.is_some_and(|at| now.since(at) < LATELY)
    }

    /// So many bytes are being moved. `cap`: bytes per second that the settings allow; zero: any.
    fn spend(&mut self, now: Time, cap: u64, bytes: u64) {
        self.step(now);
        let goes_on = self.last.is_some_and(|at| now.since(at) < LATELY);
        if self.rate.is_none() && !goes_on && self.is_shared(now) {
            self.rate = Some(START);
        }
        self.last = Some(now);
        self.moved += bytes;
        let cap = if cap == 0 { u64::MAX } else { cap };
        let rate = self.rate.unwrap_or(u64::MAX).min(cap);
        if rate < u64::MAX {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            self.free_at = self.free_at.max(now) + Duration::from_nanos(nanos);
        }
    }

    /// Somebody's clients wait longer than they did.
    fn give_way(&mut self, now: Time) {
        self.step(now);
        let moved = self.lately.max(self.moved);
        if moved == 0 || core::mem::replace(&mut self.complained, true) {
            return;
        }
        self.rate = Some((self.rate.unwrap_or(u64::MAX).min(moved) / 2).max(FLOOR));
    }

    /// Closes steps that are over.
    fn step(&mut self, now: Time) {
        let took = now.since(self.began);
        if took < STEP {
            return;
        }
        let nanos = took.as_nanos().max(1);
        let per_second = u128::from(self.moved) * 1_000_000_000 / nanos;
        self.lately = u64::try_from(per_second).unwrap_or(u64::MAX);
        let quiet = (nanos / STEP.as_nanos()) as u32 - u32::from(self.complained);
        for _ in 0..quiet.min(64) {
            self.rate = self.rate.map(|rate| rate + rate / GROWTH).filter(|rate| *rate < CEILING);
        }
        (self.began, self.moved, self.complained) = (now, 0, false);
    }

    /// Bytes per second that recovery is held to now; none: it is not.
    pub(super) fn rate(&self) -> Option<u64> {
        self.rate
    }
}

impl Replica {
    /// Whether blocks may be moved now that nobody waits for. If not, things go on when they may.
    pub(crate) fn may_move(&mut self, now: Time) -> bool {
        let allows = self.pace.allows(now);
        if !allows {
            self.timers.set(self.pace.free_at, Timer::Pace);
        }
        allows
    }

    /// Requests for blocks of one object at once, and the bytes of each.
    pub(crate) fn pieces(&self, now: Time) -> (usize, u32) {
        match self.pace.is_shared(now) {
            true => (self.config.shared_fetch_pipeline, self.config.shared_fetch_bytes),
            false => (self.config.fetch_pipeline, self.config.fetch_bytes),
        }
    }

    /// Whether blocks that nobody waits for may be read for another node now. If not, it is tried again when they may, or
    /// when something that is being read is done.
    pub(super) fn may_serve(&mut self, now: Time) -> bool {
        let room = !self.pace.is_shared(now) || self.gathers.len() < self.config.shared_sources;
        room && self.may_move(now)
    }

    /// Counts blocks that are being moved.
    pub(crate) fn moves(&mut self, now: Time, view: &View, bytes: u64) {
        self.pace.spend(now, view.state.settings().recovery_bytes_per_second, bytes);
    }

    /// A client is served.
    pub(super) fn serves_client(&mut self, now: Time) {
        self.pace.client = Some(now);
    }

    /// A gateway asks for less of it.
    pub(super) fn give_way(&mut self, now: Time) {
        self.pace.give_way(now);
    }

    /// Keeps a request for blocks until its turn comes; gives it back if too many wait.
    pub(super) fn delay(&mut self, header: Header, request: Request) -> bool {
        let room = self.pace.delayed.len() < DELAYED;
        if room {
            self.pace.delayed.push_back((header, request));
        }
        room
    }

    /// The time has come for more.
    pub(super) fn move_on(&mut self, now: Time) {
        while !self.pace.delayed.is_empty() && self.may_serve(now) {
            if let Some((header, request)) = self.pace.delayed.pop_front() {
                self.serve(now, header, request, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    /// Moves pieces of 1 MiB as fast as it may for a second.
    fn second(pace: &mut Pace, from: u64, cap: u64) -> u64 {
        let mut moved = 0;
        for now in from..from + 1000 {
            // What a disk can do.
            for _ in 0..4 {
                if pace.allows(at(now)) {
                    pace.spend(at(now), cap, 1 << 20);
                    moved += 1;
                }
            }
        }
        moved
    }

    #[test]
    fn nothing_is_held_back_unasked() {
        assert_eq!(second(&mut Pace::new(at(0)), 0, 0), 4000);
    }

    #[test]
    fn where_clients_are_served_it_begins_slowly() {
        let mut pace = Pace::new(at(0));
        pace.client = Some(at(900));
        let first = second(&mut pace, 1000, 0);
        assert!((64..200).contains(&first), "{first}");
        let third = second(&mut pace, 2000, 0) + second(&mut pace, 3000, 0);
        assert!(third > 900, "{third}: nobody complains");
    }

    #[test]
    fn the_settings_cap_it() {
        let moved = second(&mut Pace::new(at(0)), 0, 100 << 20);
        assert!((99..=102).contains(&moved), "{moved}");
    }

    #[test]
    fn complaints_halve_it_and_it_comes_back() {
        let mut pace = Pace::new(at(0));
        second(&mut pace, 0, 0);
        for _ in 0..10 {
            pace.give_way(at(1000));
        }
        let after = pace.rate().unwrap() >> 20;
        assert!((1900..=2000).contains(&after), "{after}: many complaints at once are one");
        for step in 0..40 {
            pace.spend(at(1100 + step * 100), 0, 1 << 16);
            pace.give_way(at(1100 + step * 100));
        }
        assert_eq!(pace.rate(), Some(FLOOR));
        let moved = second(&mut pace, 5100, 0);
        assert!((8..32).contains(&moved), "{moved}");
        second(&mut pace, 6100, 0);
        pace.step(at(20_000));
        assert_eq!(pace.rate(), None);
    }

    #[test]
    fn a_complaint_while_nothing_moves_changes_nothing() {
        let mut pace = Pace::new(at(0));
        pace.give_way(at(500));
        assert_eq!(pace.rate(), None);
    }
}
