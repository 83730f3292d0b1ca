//! Standing still for a snapshot: everything answered is durable and in the map, and nothing further is taken until the
//! order has shown the snapshot, or that there will be none.
//!
//! The snapshot of one volume is ordered by its holder, who goes on under the volume's new vid. For a group each holder
//! is asked, in the order, to pause, and says there when it does; somebody orders the snapshot of all, or that the volume
//! goes on.

use super::api::{LostReason, OpenMode, VolumeError, VolumeReply};
use super::shared::Core;
use super::volume::{Phase, Volume};
use crate::Mutant;
use sheep_state::{Command, Guard, Outcome, Refusal, SnapshotItem, SnapshotMade, VdiRecord};
use sheep_types::{LogIndex, Time, VdiId, Vid};
use std::time::Duration;

/// A pause for a group ends by itself after so long, and so does the attempt at one.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);

/// What the volume stands still for.
#[derive(Clone, Debug)]
pub(super) enum StillFor {
    /// A snapshot of it; the guard is still to be set.
    Snapshot(Box<SnapshotItem>),
    /// The snapshot of a group with this token.
    Group { token: u64 },
}

/// How far it is.
#[derive(Debug)]
enum Stage {
    /// What was taken is carried out and made durable.
    Draining,
    /// The command is being ordered, for the contents of this vid.
    Ordering { token: u64, vid: Vid },
    /// The snapshot was taken; the view does not show it yet.
    Taken { outcome: Outcome, working: Vid },
    /// Paused since the entry at this index.
    Paused { at: LogIndex },
}

/// What makes the volume stand still.
#[derive(Debug)]
pub(super) struct Still {
    /// The operation, if it is one.
    io: Option<u64>,
    what: StillFor,
    stage: Stage,
    /// When it began, or when it was last ordered to end.
    since: Time,
    /// That it ends is being ordered.
    resuming: Option<u64>,
}

impl Still {
    pub(super) fn new(now: Time, io: Option<u64>, what: StillFor) -> Self {
        Self { io, what, stage: Stage::Draining, since: now, resuming: None }
    }

    /// When there has been enough of it.
    fn deadline(&self) -> Option<Time> {
        let waits = matches!(self.stage, Stage::Draining | Stage::Paused { .. });
        (waits && matches!(self.what, StillFor::Group { .. })).then(|| self.since + PAUSE_LIMIT)
    }
}

impl Volume {
    /// Whether no change may begin.
    pub(super) fn is_still(&self) -> bool {
        !self.stills.is_empty()
    }

    /// Whether everything is at rest, and a command that depends on it is being ordered.
    pub(super) fn is_at_a_standstill(&self) -> bool {
        matches!(self.stills.front(), Some(still) if !matches!(still.stage, Stage::Draining))
    }

    /// What was begun cannot be made durable or entered in the map: there is no snapshot now.
    pub(super) fn fail_still(&mut self, core: &mut Core, error: VolumeError) {
        if let Some(Still { io, stage: Stage::Draining, .. }) = self.stills.front() {
            match *io {
                Some(io) => {
                    self.end_still();
                    self.part_done(core, io, Err(error), false);
                }
                None => self.order_resume(core),
            }
        }
    }

    /// When a pause has lasted long enough.
    pub(super) fn still_deadline(&self) -> Option<Time> {
        self.stills.front()?.deadline()
    }

    /// Goes on with what the volume stands still for.
    pub(super) fn step_still(&mut self, core: &mut Core) {
        let Some(still) = self.stills.front() else { return };
        let given_up = still.io.is_some_and(|io| !self.ios.contains_key(&io));
        match still.stage {
            _ if still.deadline().is_some_and(|deadline| deadline <= core.now) => self.order_resume(core),
            Stage::Draining if given_up => self.end_still(),
            Stage::Draining if self.has_only_failed_writes() => self.fail_still(core, self.why_refused()),
            Stage::Draining if self.is_at_rest() || core.config.mutants.is(Mutant::SnapshotUndrained) => {
                if self.say_replaced(core) {
                    self.order_still(core);
                }
            }
            Stage::Draining if !self.flusher.wanted && self.flusher.dirty_since.is_some() => {
                self.flusher.wanted = true;
                self.again = true;
            }
            Stage::Draining | Stage::Ordering { .. } | Stage::Taken { .. } | Stage::Paused { .. } => {}
        }
    }

    /// Everything that was begun is durable on all members and in the map.
    fn is_at_rest(&self) -> bool {
        self.objects.is_empty()
            && self.pending.is_empty()
            && self.unconfirmed.is_empty()
            && self.queries.is_empty()
            && self.flusher.is_idle()
    }

    fn order_still(&mut self, core: &mut Core) {
        let (vdi, generation) = (self.vdi, self.generation);
        let vid = self.vid;
        let Some(still) = self.stills.front_mut() else { return };
        let command = match &still.what {
            StillFor::Snapshot(item) => {
                let item = SnapshotItem { guard: Guard::Held(generation), ..(**item).clone() };
                Command::Snapshot { items: vec![item] }
            }
            StillFor::Group { token } => Command::Pause { vdi, generation, token: *token },
        };
        still.stage = Stage::Ordering { token: core.propose(self.handle, command), vid };
    }

    /// Nobody has taken the snapshot in time. It may still be: the order decides.
    fn order_resume(&mut self, core: &mut Core) {
        let (vdi, generation) = (self.vdi, self.generation);
        let Some(still) = self.stills.front_mut() else { return };
        let StillFor::Group { token } = still.what else { return };
        if core.config.mutants.is(Mutant::PauseEndsByItself) {
            return self.end_still();
        }
        still.since = core.now;
        if still.resuming.is_none() {
            still.resuming = Some(core.propose(self.handle, Command::Resume { vdi, generation, token }));
        }
    }

    /// The result of a command of this page; false if it is none.
    pub(super) fn handle_still_ordered(
        &mut self,
        core: &mut Core,
        token: u64,
        result: &Result<Outcome, Refusal>,
    ) -> bool {
        let Some(still) = self.stills.front_mut() else { return false };
        if still.resuming == Some(token) {
            still.resuming = None;
            return true;
        }
        let Stage::Ordering { token: waiting, vid } = still.stage else { return false };
        if waiting != token {
            return false;
        }
        let io = still.io;
        let result = &made_before(core, (self.vdi, vid), result).map_or_else(|| result.clone(), Ok);
        match result {
            Ok(Outcome::Snapshots(made)) => {
                let working = made.first().map_or(self.vid, |made| made.working);
                still.stage = Stage::Taken { outcome: Outcome::Snapshots(made.clone()), working };
                self.end_if_taken(core);
            }
            Ok(Outcome::Paused { at }) => {
                (still.stage, still.since) = (Stage::Paused { at: *at }, core.now);
                self.end_if_resumed(core);
            }
            other => {
                self.end_still();
                self.tell_ordered(core, io, other.clone());
            }
        }
        true
    }

    /// A newer view. The volume goes on under the vid that it shows, if that is another one.
    pub(super) fn follow_vid(&mut self, core: &mut Core, record: &VdiRecord) {
        if record.vid != self.vid {
            let view = core.view();
            // A snapshot of what is only read changes nothing. What is open for writing stands still for it.
            let stands = self.mode == OpenMode::Read
                || self.is_at_a_standstill() && self.objects.is_empty() && self.pending.is_empty();
            let Some(vid) = view.vid(record.vid).filter(|_| stands) else {
                // Nobody else takes a snapshot of an open volume.
                return self.lose(core, LostReason::LockEnded);
            };
            (self.vid, self.birth) = (record.vid, vid.birth);
            self.map.go_on_as(record.vid, vid.maps.clone());
            self.last.clear();
            self.restart_fill(core);
            if matches!(self.stills.front(), Some(still) if matches!(still.stage, Stage::Paused { .. })) {
                self.end_still();
            }
        }
        self.end_if_taken(core);
        self.end_if_resumed(core);
        self.pause_if_asked(core, record);
    }

    /// Somebody wants a snapshot of a group that this volume is in.
    fn pause_if_asked(&mut self, core: &Core, record: &VdiRecord) {
        let Some(token) =
            record.lock.and_then(|lock| lock.pause_asked).filter(|_| self.mode == OpenMode::Write)
        else {
            return;
        };
        let known = |still: &Still| matches!(still.what, StillFor::Group { token: known } if known == token);
        if matches!(self.phase, Phase::Serving) && !self.stills.iter().any(known) {
            self.stills.push_back(Still::new(core.now, None, StillFor::Group { token }));
        }
    }

    fn end_if_taken(&mut self, core: &mut Core) {
        let Some(Still { io, stage: Stage::Taken { outcome, working }, .. }) = self.stills.front() else {
            return;
        };
        if *working == self.vid {
            let (io, outcome) = (*io, outcome.clone());
            self.end_still();
            self.tell_ordered(core, io, Ok(outcome));
        }
    }

    fn end_if_resumed(&mut self, core: &Core) {
        let Some(Still { what: StillFor::Group { token }, stage, .. }) = self.stills.front() else { return };
        let view = core.view();
        let lock = view.state.vdi(self.vdi).and_then(|record| record.lock);
        let over = match stage {
            Stage::Draining => lock.is_none_or(|lock| lock.pause_asked != Some(*token)),
            Stage::Paused { at } => view.index >= *at && lock.is_none_or(|lock| lock.paused != Some(*token)),
            Stage::Ordering { .. } | Stage::Taken { .. } => false,
        };
        if over {
            self.end_still();
        }
    }

    fn end_still(&mut self) {
        self.stills.pop_front();
        self.again = true;
    }

    fn tell_ordered(&mut self, core: &mut Core, io: Option<u64>, result: Result<Outcome, Refusal>) {
        // It may have been given up for taking too long.
        if let Some(io) = io.filter(|io| self.ios.remove(io).is_some()) {
            self.again = true;
            self.answer(core, io, Ok(VolumeReply::Ordered(Box::new(result))));
        }
    }
}

/// A snapshot that is refused because it is there may be the very one, when the command was made again for want of an
/// answer: it has the contents that it was ordered for.
fn made_before(
    core: &Core,
    (volume, vid): (VdiId, Vid),
    result: &Result<Outcome, Refusal>,
) -> Option<Outcome> {
    let Err(Refusal::NameTaken { vdi }) = result else { return None };
    let view = core.view();
    let of = |record: &VdiRecord| record.vid == vid && record.snapshot_of.is_some_and(|of| of.vdi == volume);
    view.state.vdi(*vdi).filter(|record| of(record))?;
    let working = view.state.vdi(volume)?.vid;
    Some(Outcome::Snapshots(vec![SnapshotMade { vdi: *vdi, vid, volume, working }]))
}
