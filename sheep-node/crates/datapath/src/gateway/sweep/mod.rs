//! Sweeping: what dead vids have, and nobody who is alive reaches, is deleted on all nodes.
//!
//! One node does it, the first storage node that is up; if it is another one by now that does no harm: who does not
//! reach an object of a dead vid at some index of the log never will again, so what was found out long ago is true
//! still. A round takes dead vids that have the same frontier and goes over the whole range of indexes, one window after
//! the other: it reads what the maps of the frontier say there, and tells all nodes what to keep. Only what is
//! confirmed counts: of a map object that may be written all up members are read, and they make durable what they have
//! before anything is deleted.
//!
//! A round that has deleted something is followed by another one, because recovery may have made a copy meanwhile. One
//! that finds nothing to delete says so in the order. So does one that finds that nobody reaches a vid at all: then the
//! vid is forgotten, and nodes that are away drop what they have of it when they hear of that.

mod reach;
mod round;

use super::shared::{Core, Tag};
use crate::{Mutant, View};
use round::Round;
use sheep_state::{Command, Outcome, Refusal, Role, SweptVid};
use sheep_types::{Epoch, Member, Time, Vid};
use sheep_wire::Reply;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The handle that the sweeper's requests and proposals go under. No volume has it.
pub(super) const HANDLE: u64 = u64::MAX;

/// After a sweep became due: whoever is on the way to what may be deleted arrives.
const GRACE: Duration = Duration::from_secs(2);
/// Vids looked through together.
const TOGETHER: usize = 256;
/// Before vids are looked at again of which something had to stay, or whose round failed; longer each time.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(600);
/// A round that has deleted something is followed by another one after so many times the time that it took.
const REST: u32 = 10;
/// A proposal that is not answered within this time may never have been taken.
const ANSWERED: Duration = Duration::from_secs(10);

/// What sweeps have done since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepStatus {
    /// Rounds that came to their end.
    pub rounds: u64,
    /// Rounds that were broken off.
    pub failed: u64,
    /// Objects that were deleted, on all nodes.
    pub dropped: u64,
    /// Vids that were found to be reached by nobody.
    pub empty: u64,
}

#[derive(Clone, Copy, Debug)]
struct Postponed {
    until: Time,
    wait: Duration,
}

/// What the sweeper is doing.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Running(Box<Round>),
    /// What was found out is being ordered.
    Ordering {
        token: u64,
        until: Time,
    },
}

/// The sweeper of a gateway.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    stage: Stage,
    /// When to look for something to do, or to go on.
    wake: Option<Time>,
    postponed: BTreeMap<Vid, Postponed>,
    epoch: Epoch,
    pub(super) status: SweepStatus,
}

impl Sweeper {
    /// A newer view.
    pub(super) fn handle_view(&mut self, core: &mut Core) {
        let view = core.view();
        if view.epoch() != self.epoch {
            self.epoch = view.epoch();
            // Members are others: what some have answered says nothing of the present ones.
            core.cancel_all(HANDLE);
            self.postponed.clear();
            if matches!(self.stage, Stage::Running(_)) {
                self.stage = Stage::Idle;
            }
        }
        if !is_sweeper(core, &view) {
            core.cancel_all(HANDLE);
            (self.stage, self.wake) = (Stage::Idle, None);
        } else if matches!(self.stage, Stage::Idle) && self.wake.is_none() && view.state.has_sweeps_due() {
            self.wake = Some(core.now);
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.wake
    }

    /// Goes on, if it is time.
    pub(super) fn step(&mut self, core: &mut Core) {
        if self.wake.is_none_or(|wake| wake > core.now) {
            return;
        }
        self.wake = None;
        if matches!(self.stage, Stage::Ordering { until, .. } if until <= core.now) {
            self.stage = Stage::Idle;
        }
        if matches!(self.stage, Stage::Idle) {
            self.begin(core);
        }
        self.go_on(core);
    }

    fn go_on(&mut self, core: &mut Core) {
        let Stage::Running(round) = &mut self.stage else { return };
        match round.step(core) {
            round::Next::Wait(until) => self.wake = until,
            round::Next::Failed => self.fail(core),
            round::Next::Done => self.finish(core),
        }
    }

    /// An answer to one of the sweeper's requests.
    pub(super) fn handle_reply(
        &mut self,
        core: &mut Core,
        number: u64,
        tag: Tag,
        from: Member,
        reply: Reply,
    ) {
        core.cancel(number);
        if let (Tag::Sweep, Stage::Running(round)) = (tag, &mut self.stage) {
            round.handle_reply(core, number, from, reply);
            self.go_on(core);
        }
    }

    /// The result of a proposal.
    pub(super) fn handle_proposed(&mut self, core: &mut Core, token: u64, result: &Result<Outcome, Refusal>) {
        if matches!(self.stage, Stage::Ordering { token: waiting, .. } if waiting == token) {
            self.stage = Stage::Idle;
            self.wake = Some(if result.is_ok() { core.now } else { core.now + AGAIN });
        }
    }

    /// Looks for dead vids that are to be swept together.
    fn begin(&mut self, core: &Core) {
        let Some(view) = core.view.clone().filter(|view| is_sweeper(core, view)) else { return };
        let due = view.state.sweeps_due();
        self.postponed.retain(|vid, _| due.binary_search_by_key(vid, |(vid, _)| *vid).is_ok());
        let mut next: Option<Time> = None;
        let mut ready = BTreeMap::new();
        for (vid, since) in due {
            let postponed = self.postponed.get(&vid).map(|postponed| postponed.until);
            let at = (core.applied_at(since) + GRACE).max(postponed.unwrap_or_default());
            if at <= core.now {
                ready.insert(vid, ());
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        let Some((vid, ())) = ready.first_key_value() else {
            self.wake = next;
            return;
        };
        let together = view.state.due_together(*vid).into_iter().filter(|vid| ready.contains_key(vid));
        let vids: Vec<Vid> = together.take(TOGETHER).collect();
        self.stage = Stage::Running(Box::new(Round::new(core.now, &view, vids)));
    }

    /// The round has gone over everything.
    fn finish(&mut self, core: &mut Core) {
        let Stage::Running(round) = std::mem::take(&mut self.stage) else { return };
        self.status.rounds += 1;
        self.status.dropped += round.dropped;
        let state = &round.view.state;
        let view = core.view();
        let met = meets_everybody(&view) || core.config.mutants.is(Mutant::SweptWhileAway);
        // Who recovers may find that blocks are lost, and look for them in older objects.
        let settled = view.has_recovered() || core.config.mutants.is(Mutant::SweptUnrecovered);
        let quiet = round.dropped == 0 && round.left == 0 && met;
        let ends = |vid: Vid, reached: bool| {
            !reached && settled && !round.needed.contains(&vid) && state.ends_when_empty(vid)
        };
        let done = round.vids.iter().filter(|(vid, reached)| quiet || ends(**vid, **reached));
        let vids: Vec<SweptVid> =
            done.map(|(vid, reached)| SweptVid { vid: *vid, empty: !reached }).collect();
        self.status.empty += vids.iter().filter(|swept| swept.empty).count() as u64;
        let rest = round.vids.iter().filter(|(vid, reached)| !quiet && !ends(**vid, **reached));
        let rest: Vec<Vid> = rest.map(|(vid, _)| *vid).collect();
        if round.left > 0 || !met {
            self.postpone(core, &rest);
        } else {
            let wait = GRACE.max(core.now.since(round.begun) * REST);
            let until = core.now + wait;
            self.postponed.extend(rest.into_iter().map(|vid| (vid, Postponed { until, wait: AGAIN / 2 })));
        }
        if vids.is_empty() {
            self.wake = Some(core.now);
            return;
        }
        let seen = round.view.index;
        let until = core.now + ANSWERED;
        self.stage = Stage::Ordering { token: core.propose(HANDLE, Command::Swept { vids, seen }), until };
        self.wake = Some(until);
    }

    fn fail(&mut self, core: &mut Core) {
        core.cancel_all(HANDLE);
        let Stage::Running(round) = std::mem::take(&mut self.stage) else { return };
        self.status.failed += 1;
        let vids: Vec<Vid> = round.vids.keys().copied().collect();
        self.postpone(core, &vids);
        self.wake = Some(core.now);
    }

    fn postpone(&mut self, core: &Core, vids: &[Vid]) {
        for vid in vids {
            let before = self.postponed.get(vid).map(|postponed| postponed.wait * 2);
            let wait = before.unwrap_or(AGAIN).min(AGAIN_MAX);
            self.postponed.insert(*vid, Postponed { until: core.now + wait, wait });
        }
    }
}

/// Whether all storage nodes are there with all that they have: nobody can bring back what was deleted.
fn meets_everybody(view: &View) -> bool {
    let mut nodes = view.state.nodes().filter(|record| record.role == Role::Storage);
    nodes.all(|record| record.state.is_up() && record.recovered >= view.epoch() && !record.has_failed_disk())
}

/// Whether it is this node's turn.
fn is_sweeper(core: &Core, view: &Arc<View>) -> bool {
    view.up_members().first() == Some(&core.me)
}
