//! The gateway: serves volumes to frontends, numbers their writes, and sends them to all replicas.
//!
//! Methods by kind: `handle_*` take what happened, [`Gateway::open`], [`Gateway::submit`] and [`Gateway::close`]
//! what a frontend wants, and after any of them [`Gateway::poll_output`] gives the effects until it is empty;
//! [`Gateway::poll_timeout`] says when to call [`Gateway::handle_timeout`] at the latest.
//!
//! | Module | What it does |
//! |--------|--------------|
//! | `open` | lock, lease of the former holder, giving the lock back |
//! | `settle`, `coverage` | after a holder that did not end cleanly: copies made equal |
//! | `io`, `habit` | operations cut into parts, and put together again; whether a flush will follow a write |
//! | `write`, `object` | versions, members that hold a write, sending again |
//! | `read` | choosing a member, checking what it sends |
//! | `refused` | writes that a member has no room for |
//! | `flush`, `map` | durability, map entries, discards |
//! | `diff`, `stack`, `verdict` | which blocks differ from a snapshot |
//! | `sweep`, `replaced` | what nobody reaches of deleted volumes and snapshots goes |
//! | `fill` | clones get what they read from their origin |
//! | `check` | what all copies of an object are; giving up a lost one |
//! | `volume` | a volume's phases, and where replies and time go |
//! | `pressure` | whether clients wait longer than before a recovery |
//! | `shared` | requests under way, their timers, the lease, the view |
//!
//! Why it is right: `docs/internals/gateway.md`.

mod api;
mod check;
mod contents;
mod coverage;
mod diff;
mod discard;
mod edges;
mod fill;
mod flush;
mod habit;
mod io;
mod map;
mod object;
mod open;
mod pressure;
mod read;
mod refused;
mod replaced;
mod settle;
mod shared;
mod snapshot;
mod stack;
mod sweep;
mod verdict;
mod volume;
mod write;

pub use fill::{FillProgress, FillState};

pub use api::{
    BlockExtent, CopyState, DiffExtent, Difference, GatewayConfig, GatewayOutput, LostReason, ObjectCheck,
    OpenError, OpenMode, OpenWait, ReadExtent, VolumeError, VolumeOp, VolumeReply,
};

use crate::View;
use shared::Core;
use sheep_state::{Outcome, Refusal};
use sheep_types::{ClusterId, Member, Time, VdiId};
use sheep_wire::{Header, Reply};
use std::collections::BTreeMap;
use std::sync::Arc;
pub use sweep::SweepStatus;
use sweep::Sweeper;
use volume::{Phase, Volume};

/// The gateway part of one shard. See the module text for the order of calls.
#[derive(Debug)]
pub struct Gateway {
    core: Core,
    volumes: BTreeMap<u64, Volume>,
    sweeper: Sweeper,
}

impl Gateway {
    /// A gateway without volumes. `me` is the node in its present run.
    pub fn new(config: GatewayConfig, me: Member, cluster: ClusterId, now: Time) -> Self {
        let core = Core::new(config, me, cluster, now);
        Self { core, volumes: BTreeMap::new(), sweeper: Sweeper::default() }
    }

    /// Takes a newer view over. Older ones are ignored.
    pub fn handle_view(&mut self, now: Time, view: Arc<View>) {
        self.core.now = now;
        if self.core.view.as_ref().is_some_and(|known| known.index >= view.index) {
            return;
        }
        let before = self.core.epoch();
        self.core.cluster = view.cluster;
        self.core.set_view(view);
        for volume in self.volumes.values_mut() {
            volume.handle_view(&mut self.core, before);
        }
        self.sweeper.handle_view(&mut self.core);
        self.pump_all();
    }

    /// The lease holds until `deadline`: nothing is written, and no success told, from then on. An earlier
    /// deadline than before ends it early.
    pub fn handle_lease(&mut self, now: Time, deadline: Time) {
        self.core.now = now;
        let held = self.core.lease_valid();
        self.core.lease = deadline;
        if !held && self.core.lease_valid() {
            for volume in self.volumes.values_mut() {
                volume.again = true;
            }
            self.pump_all();
        }
    }

    /// Opens a VDI under a handle of the caller's choice. Answered by [`GatewayOutput::Opened`] or
    /// [`GatewayOutput::OpenFailed`].
    pub fn open(&mut self, now: Time, handle: u64, vdi: VdiId, mode: OpenMode) {
        self.core.now = now;
        let failed = |error| GatewayOutput::OpenFailed { handle, error };
        if handle == sweep::HANDLE || self.volumes.contains_key(&handle) {
            return self.core.outputs.push_back(failed(OpenError::HandleInUse));
        }
        // One volume per VDI: a second lock of the same gateway would end the first one's.
        if self.volumes.values().any(|volume| volume.vdi == vdi) {
            return self.core.outputs.push_back(failed(OpenError::AlreadyOpen));
        }
        match open::lock_command(&self.core, vdi, mode) {
            Ok(command) => {
                let geometry = self.core.view().state.geometry();
                let token = self.core.propose(handle, command);
                self.volumes.insert(handle, Volume::new((handle, vdi), mode, geometry, token));
            }
            Err(error) => self.core.outputs.push_back(failed(error)),
        }
    }

    /// How far volumes are that are being flattened here.
    pub fn flattening(&self) -> impl Iterator<Item = (VdiId, FillProgress)> {
        self.volumes.values().filter_map(|volume| Some((volume.vdi, volume.fill_progress()?)))
    }

    /// Closes a volume: everything accepted is carried out and made durable first. Answered by
    /// [`GatewayOutput::Closed`], or [`GatewayOutput::OpenFailed`] if it was not open yet. The caller keeps
    /// polling until then.
    pub fn close(&mut self, now: Time, handle: u64) {
        self.core.now = now;
        match self.volumes.get_mut(&handle) {
            Some(volume) => volume.close(&mut self.core),
            None => self.core.outputs.push_back(GatewayOutput::Closed { handle }),
        }
        self.pump(handle);
    }

    /// Hands an operation over; answered exactly once by [`GatewayOutput::Done`]. `io` is unique in the life of the
    /// handle.
    ///
    /// # Panics
    /// If an unanswered operation of the handle has the same number.
    pub fn submit(&mut self, now: Time, handle: u64, io: u64, op: VolumeOp) {
        self.core.now = now;
        match self.volumes.get_mut(&handle) {
            Some(volume) => volume.submit(&mut self.core, io, op),
            None => {
                let result = Err(VolumeError::ShuttingDown);
                self.core.outputs.push_back(GatewayOutput::Done { handle, io, result });
            }
        }
        self.pump(handle);
    }

    /// Takes a reply to one of this gateway's requests. What does not fit a request under way is ignored.
    pub fn handle_reply(&mut self, now: Time, header: Header, reply: Reply) {
        self.core.now = now;
        let refused = matches!(reply, Reply::Refused(_));
        let Some(call) = self.core.accepts(&header, refused) else { return };
        let (handle, tag) = (call.handle, call.tag);
        if handle == sweep::HANDLE {
            self.sweeper.handle_reply(&mut self.core, header.request, tag, header.from, reply);
            return self.sweeper.step(&mut self.core);
        }
        if let Some(volume) = self.volumes.get_mut(&handle) {
            volume.handle_reply(&mut self.core, header.request, tag, header.from, reply);
        }
        self.pump(handle);
    }

    /// Takes the result of a proposal: the command was applied, or refused, in the committed order.
    pub fn handle_proposed(&mut self, now: Time, token: u64, result: Result<Outcome, Refusal>) {
        self.core.now = now;
        let Some(handle) = self.core.take_token(token) else { return };
        if handle == sweep::HANDLE {
            self.sweeper.handle_proposed(&mut self.core, token, &result);
            return self.sweeper.step(&mut self.core);
        }
        if let Some(volume) = self.volumes.get_mut(&handle) {
            volume.handle_proposed(&mut self.core, token, result);
        }
        self.pump(handle);
    }

    /// A proposal will have no result: it was not taken, or carried out and the answer lost. It comes again, under the same
    /// token.
    pub fn handle_unanswered(&mut self, now: Time, token: u64) {
        self.core.now = now;
        self.core.unanswered(token);
    }

    /// Time has come to [`Gateway::poll_timeout`], or has just passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.core.now = now;
        let volumes = &self.volumes;
        self.core.propose_again(|handle| handle == sweep::HANDLE || volumes.contains_key(&handle));
        for (number, handle) in self.core.due_calls() {
            if let Some(volume) = self.volumes.get_mut(&handle) {
                volume.handle_due(&mut self.core, number);
            } else {
                self.core.note_silence(number);
                self.core.resend(number);
            }
        }
        for volume in self.volumes.values_mut() {
            if volume.next_timeout(&self.core).is_some_and(|time| time <= now) {
                volume.handle_time(&mut self.core);
            }
        }
        self.pump_all();
    }

    /// When [`Gateway::handle_timeout`] must be called at the latest.
    pub fn poll_timeout(&self) -> Option<Time> {
        let volumes = self.volumes.values().filter_map(|volume| volume.next_timeout(&self.core)).min();
        [volumes, self.core.next_due(), self.sweeper.next_timeout()].into_iter().flatten().min()
    }

    /// The next effect, in order.
    pub fn poll_output(&mut self) -> Option<GatewayOutput> {
        self.core.outputs.pop_front()
    }

    /// Bytes of acknowledged or unanswered writes that are kept until a flush, over all volumes.
    pub fn unflushed_bytes(&self) -> u64 {
        self.core.retained
    }

    /// Contents that came damaged over the network, and were asked for again.
    pub fn garbled(&self) -> u64 {
        self.core.garbled
    }

    /// What sweeps of this node have done.
    pub fn sweep_status(&self) -> SweepStatus {
        self.sweeper.status
    }

    /// Number of volumes, those being opened or closed included.
    pub fn volumes(&self) -> usize {
        self.volumes.len()
    }

    /// What a volume that is being opened waits for; `None` if it is open, or unknown.
    pub fn waits_for(&self, handle: u64) -> Option<OpenWait> {
        let volume = self.volumes.get(&handle)?;
        Some(match &volume.phase {
            Phase::Locking { .. } | Phase::Granted | Phase::Marking { .. } => OpenWait::Order,
            Phase::Waiting { .. } => OpenWait::Lease,
            Phase::Settling(settle) if settle.is_missing_members() => {
                OpenWait::Nodes(coverage::missing(&self.core.view(), volume.settled_before(&self.core)))
            }
            Phase::Settling(_) | Phase::Entering => OpenWait::Copies,
            Phase::Serving | Phase::Draining | Phase::Unlocking { .. } | Phase::Failed | Phase::Gone => {
                return None;
            }
        })
    }

    /// What is being done with each volume, in words, for diagnosis.
    pub fn describe(&self) -> Vec<String> {
        let one = |volume: &Volume| {
            let Volume { handle, vdi, phase, ios, queue, reads, held, pending, unconfirmed, .. } = volume;
            let (ios, queue, reads, held) = (ios.len(), queue.len(), reads.len(), held.len());
            let (pending, unconfirmed) = (pending.len(), unconfirmed.len());
            format!(
                "{handle} (VDI {vdi}) {phase:?}: {ios} operations, {queue} writes without version, {reads} reads, \
                 {held} answers held, {pending} pending objects, {unconfirmed} unconfirmed writes"
            )
        };
        self.volumes.values().map(one).collect()
    }

    fn pump(&mut self, handle: u64) {
        let Some(volume) = self.volumes.get_mut(&handle) else { return };
        volume.pump(&mut self.core);
        if matches!(volume.phase, Phase::Gone) {
            self.volumes.remove(&handle);
        }
        self.share_room();
    }

    fn pump_all(&mut self) {
        for volume in self.volumes.values_mut() {
            volume.pump(&mut self.core);
        }
        self.volumes.retain(|_, volume| !matches!(volume.phase, Phase::Gone));
        self.share_room();
        self.sweeper.step(&mut self.core);
    }

    /// Room that one volume has freed may be what another one waits for.
    fn share_room(&mut self) {
        if !std::mem::take(&mut self.core.room_freed) {
            return;
        }
        for volume in self.volumes.values_mut().filter(|volume| !volume.queue.is_empty()) {
            volume.again = true;
            volume.pump(&mut self.core);
        }
        self.volumes.retain(|_, volume| !matches!(volume.phase, Phase::Gone));
    }
}
