//! Standing still for a snapshot: everything answered is durable and in the map, and nothing further is taken until the
//! order has shown the snapshot, or that there will be none.
//!
//! The snapshot of one volume is ordered by its holder, who goes on under the volume's new vid. For a group each holder
//! orders a pause; somebody orders the snapshot of all, or that the volume goes on.

use super::api::{LostReason, OpenMode, VolumeError, VolumeReply};
use super::shared::Core;
use super::volume::Volume;
use sheep_state::{Command, Guard, Outcome, Refusal, SnapshotItem, VdiRecord};
use sheep_types::{LogIndex, Time, Vid};
use std::time::Duration;

/// A pause for a group ends by itself after so long.
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
    /// The command is being ordered.
    Ordering { token: u64 },
    /// The snapshot was taken; the view does not show it yet.
    Taken { outcome: Outcome, working: Vid },
    /// Paused since the entry at this index.
    Paused { at: LogIndex, until: Time },
}

/// An operation that makes the volume stand still.
#[derive(Debug)]
pub(super) struct Still {
    io: u64,
    what: StillFor,
    stage: Stage,
}

impl Still {
    pub(super) fn new(io: u64, what: StillFor) -> Self {
        Self { io, what, stage: Stage::Draining }
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
            let io = *io;
            self.end_still();
            self.part_done(core, io, Err(error), false);
        }
    }

    /// When a pause has lasted long enough.
    pub(super) fn still_deadline(&self) -> Option<Time> {
        match self.stills.front()?.stage {
            Stage::Paused { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Goes on with what the volume stands still for.
    pub(super) fn step_still(&mut self, core: &mut Core) {
        let Some(still) = self.stills.front() else { return };
        let given_up = !self.ios.contains_key(&still.io);
        match still.stage {
            Stage::Draining if given_up => self.end_still(),
            Stage::Draining if self.has_only_failed_writes() => self.fail_still(core, VolumeError::NoSpace),
            Stage::Draining if self.is_at_rest() => {
                if self.say_replaced(core) {
                    self.order_still(core);
                }
            }
            Stage::Draining if !self.flusher.wanted && self.flusher.dirty_since.is_some() => {
                self.flusher.wanted = true;
                self.again = true;
            }
            Stage::Paused { until, .. } if until <= core.now => self.order_resume(core),
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
        let Some(still) = self.stills.front_mut() else { return };
        let command = match &still.what {
            StillFor::Snapshot(item) => {
                let item = SnapshotItem { guard: Guard::Held(generation), ..(**item).clone() };
                Command::Snapshot { items: vec![item] }
            }
            StillFor::Group { token } => Command::Pause { vdi, generation, token: *token },
        };
        still.stage = Stage::Ordering { token: core.propose(self.handle, command) };
    }

    /// Nobody has taken the snapshot in time. It may still be: the order decides.
    fn order_resume(&mut self, core: &mut Core) {
        let (vdi, generation) = (self.vdi, self.generation);
        let Some(still) = self.stills.front_mut() else { return };
        let StillFor::Group { token } = still.what else { return };
        if let Stage::Paused { until, .. } = &mut still.stage {
            *until = core.now + PAUSE_LIMIT;
        }
        core.propose(self.handle, Command::Resume { vdi, generation, token });
    }

    /// The result of a command of this page; false if it is none.
    pub(super) fn handle_still_ordered(
        &mut self,
        core: &mut Core,
        token: u64,
        result: &Result<Outcome, Refusal>,
    ) -> bool {
        let Some(still) = self.stills.front_mut() else { return false };
        if !matches!(still.stage, Stage::Ordering { token: waiting } if waiting == token) {
            return false;
        }
        let io = still.io;
        match result {
            Ok(Outcome::Snapshots(made)) => {
                let working = made.first().map_or(self.vid, |made| made.working);
                still.stage = Stage::Taken { outcome: Outcome::Snapshots(made.clone()), working };
                self.end_if_taken(core);
            }
            Ok(Outcome::Paused { at }) => {
                still.stage = Stage::Paused { at: *at, until: core.now + PAUSE_LIMIT };
                self.tell_ordered(core, io, Ok(Outcome::Paused { at: *at }));
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
        let Some(Still { what: StillFor::Group { token }, stage: Stage::Paused { at, .. }, .. }) =
            self.stills.front()
        else {
            return;
        };
        let view = core.view();
        let lock = view.state.vdi(self.vdi).and_then(|record| record.lock);
        if view.index >= *at && lock.is_none_or(|lock| lock.paused != Some(*token)) {
            self.end_still();
        }
    }

    fn end_still(&mut self) {
        self.stills.pop_front();
        self.again = true;
    }

    fn tell_ordered(&mut self, core: &mut Core, io: u64, result: Result<Outcome, Refusal>) {
        // It may have been given up for taking too long.
        if self.ios.remove(&io).is_some() {
            self.again = true;
            self.answer(core, io, Ok(VolumeReply::Ordered(Box::new(result))));
        }
    }
}
