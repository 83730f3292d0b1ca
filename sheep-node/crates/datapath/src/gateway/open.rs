//! From asking for the lock to serving, and back.

use super::api::{GatewayOutput, LostReason, OpenError, OpenMode};
use super::map::{Layer, MapCache};
use super::shared::Core;
use super::volume::{Phase, Volume};
use crate::View;
use sheep_state::{AccessMode, Command, Outcome, PastLease, Refusal, VdiRecord};
use sheep_types::{Generation, LogIndex, NodeId, Time, VdiId, Vid};
use std::sync::Arc;
use std::time::Duration;

/// The command that asks for the lock of a VDI, or why asking makes no sense.
pub(super) fn lock_command(core: &Core, vdi: VdiId, mode: OpenMode) -> Result<Command, OpenError> {
    let view = core.view.as_ref().ok_or(OpenError::NoSuchVdi)?;
    let record = view.state.vdi(vdi).ok_or(OpenError::NoSuchVdi)?;
    let mode = match mode {
        OpenMode::Write => AccessMode::Write,
        OpenMode::Read => AccessMode::Read,
        OpenMode::Flatten => return Ok(Command::LockToFlatten { vdi }),
    };
    Ok(Command::Lock { vdi, attachment: attachment(record, core.me.node, mode), mode, take_from: None })
}

/// The attachment of this node that fits; a VDI without attachments needs none.
fn attachment(record: &VdiRecord, node: NodeId, mode: AccessMode) -> Option<LogIndex> {
    let own = record.attachments.iter().filter(|attachment| attachment.node == node);
    own.filter(|attachment| attachment.mode == mode || mode == AccessMode::Read)
        .map(|attachment| attachment.index)
        .max()
}

impl Volume {
    /// The result of a proposal of this volume.
    pub(super) fn handle_proposed(&mut self, core: &mut Core, token: u64, result: Result<Outcome, Refusal>) {
        let is_mine = self.handle_replaced_ordered(token)
            || self.handle_still_ordered(core, token, &result)
            || self.handle_fill_ordered(core, token, &result);
        if is_mine {
            return;
        }
        match self.phase {
            Phase::Locking { token: waiting } if waiting == token => self.handle_lock_result(core, result),
            Phase::Marking { token: waiting } if waiting == token => match result {
                Ok(_) => self.serve(core),
                Err(_) => self.lose(core, LostReason::LockEnded),
            },
            Phase::Unlocking { token: waiting } if waiting == token => self.finish_close(core),
            _ => self.handle_maps_ordered(core, token, &result),
        }
        self.again = true;
    }

    fn handle_lock_result(&mut self, core: &mut Core, result: Result<Outcome, Refusal>) {
        match result {
            Ok(Outcome::Locked { generation, clean, .. }) => {
                self.generation = generation;
                self.granted_clean = clean;
                self.phase = Phase::Granted;
                let epoch = core.epoch();
                self.handle_view(core, epoch);
            }
            Ok(_) => self.fail_locking(core, OpenError::LockEnded),
            // Granted to the same command before, whose answer was lost. Nobody knows in what state, and nobody uses it.
            Err(Refusal::Locked { holder, generation }) if holder == core.me => {
                self.open_error = Some(OpenError::LockEnded);
                self.generation = generation;
                self.unlock(core, false);
            }
            Err(refusal) => self.fail_locking(core, OpenError::Refused(refusal)),
        }
    }

    fn fail_locking(&mut self, core: &mut Core, error: OpenError) {
        self.open_error = Some(error);
        self.finish_close(core);
    }

    /// The view shows the grant.
    pub(super) fn handle_grant(&mut self, core: &mut Core) {
        let view = core.view();
        let found = view.state.vdi(self.vdi).and_then(|record| Some((record, view.vid(record.vid)?)));
        let Some((record, vid)) = found else { return self.lose(core, LostReason::Deleted) };
        self.vid = record.vid;
        self.birth = vid.birth;
        self.size = record.size;
        self.map = MapCache::new(self.geometry, core.config.map_blocks, layers(&view, self.vid));
        let must_wait = record.wait_after(core.me.node);
        if self.abandoned {
            let clean = self.granted_clean && record.ended.is_empty();
            self.open_error = Some(OpenError::Closed);
            return self.unlock(core, clean);
        }
        match must_wait {
            Some(ended) if self.mode == OpenMode::Write => {
                self.phase = Phase::Waiting { until: lease_end(core, ended) };
            }
            Some(_) | None => self.begin_settling(core),
        }
    }

    /// Former holders know that they are none any more.
    pub(super) fn begin_settling(&mut self, core: &mut Core) {
        if self.mode == OpenMode::Read {
            return self.serve(core);
        }
        let view = core.view();
        if self.granted_clean && view.state.vdi(self.vdi).is_some_and(|record| record.ended.is_empty()) {
            return self.serve(core);
        }
        if self.granted_clean {
            return self.order_settled(core);
        }
        self.phase = Phase::Settling(Box::default());
        self.step_settle(core);
    }

    /// All copies are equal and durable, and the map complete: says so in the order, so that what an earlier
    /// holder left half created is no longer taken for the last one's.
    pub(super) fn order_settled(&mut self, core: &mut Core) {
        let command = Command::MarkSettled { vdi: self.vdi, generation: self.generation };
        self.phase = Phase::Marking { token: core.propose(self.handle, command) };
    }

    fn serve(&mut self, core: &mut Core) {
        self.phase = Phase::Serving;
        let read_only = self.mode == OpenMode::Read;
        core.outputs.push_back(GatewayOutput::Opened { handle: self.handle, size: self.size, read_only });
        if self.abandoned {
            self.phase = Phase::Draining;
        }
        if let Some(record) = core.view().state.vdi(self.vdi) {
            self.follow_fill(core, record);
        }
    }

    /// Close was asked for.
    pub(super) fn close(&mut self, core: &mut Core) {
        match self.phase {
            Phase::Serving => self.phase = Phase::Draining,
            Phase::Failed => self.close_failed(core),
            Phase::Waiting { .. } | Phase::Settling(_) => {
                self.open_error = Some(OpenError::Closed);
                core.cancel_all(self.handle);
                self.unlock(core, false);
            }
            // The lock may be granted any moment, or writes are under way: goes on until it can be given back.
            Phase::Locking { .. } | Phase::Granted | Phase::Entering | Phase::Marking { .. } => {
                self.abandoned = true;
            }
            Phase::Draining | Phase::Unlocking { .. } | Phase::Gone => {}
        }
        self.again = true;
    }

    /// A lost volume is closed: a lock that is still held is given back, and the next holder settles.
    pub(super) fn close_failed(&mut self, core: &mut Core) {
        if self.keeps_lock { self.unlock(core, false) } else { self.finish_close(core) }
    }

    /// Gives the lock back once everything accepted is done and durable.
    pub(super) fn step_close(&mut self, core: &mut Core) {
        if !matches!(self.phase, Phase::Draining)
            || !self.ios.is_empty()
            || !self.held.is_empty()
            || self.is_still()
        {
            return;
        }
        let stuck = self.has_only_failed_writes() || self.cannot_flush();
        let clean = self.objects.is_empty() && self.pending.is_empty() && self.flusher.is_idle();
        if clean || stuck {
            if !self.say_replaced(core) {
                return;
            }
            core.cancel_all(self.handle);
            self.unlock(core, clean);
        }
    }

    pub(super) fn unlock(&mut self, core: &mut Core, clean: bool) {
        let command = Command::Unlock { vdi: self.vdi, generation: self.generation, clean };
        self.phase = Phase::Unlocking { token: core.propose(self.handle, command) };
    }

    pub(super) fn finish_close(&mut self, core: &mut Core) {
        core.cancel_all(self.handle);
        self.free_all(core);
        self.phase = Phase::Gone;
        let handle = self.handle;
        core.outputs.push_back(match self.open_error.take() {
            Some(error) => GatewayOutput::OpenFailed { handle, error },
            None => GatewayOutput::Closed { handle },
        });
    }

    /// The generation whose pending objects, and those of later ones, may have been acknowledged.
    pub(super) fn settled_before(&self, core: &Core) -> Generation {
        let view = core.view();
        view.state.vdi(self.vdi).map_or(Generation(0), |record| record.last_settled)
    }
}

/// A vid's map, that of the snapshot that its lineage was cloned from, and so on.
pub(super) fn layers(view: &View, vid: Vid) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut next = view.vid(vid);
    while let Some(record) = next {
        layers.push(Layer { vid: record.vid, lineage: record.lineage, maps: Arc::clone(&record.maps) });
        let origin = view.state.lineage_of(record.vid).and_then(|lineage| lineage.origin);
        next = origin.filter(|_| record.inherits).and_then(|origin| view.vid(origin));
    }
    layers
}

/// When nobody can believe any more in a lease that the entry at `ended` ended. A setting that was replaced
/// counts until one such lease has passed since.
fn lease_end(core: &Core, ended: LogIndex) -> Time {
    let view = core.view();
    let counts = |past: &PastLease| {
        core.now.since(core.applied_at(past.replaced_at)) <= Duration::from_millis(past.lease_ms)
    };
    let lease = Duration::from_millis(view.state.lease_wait(counts));
    core.applied_at(ended) + lease + lease / 100 + core.config.lease_margin
}
