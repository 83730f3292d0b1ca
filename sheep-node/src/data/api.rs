//! Volume requests of the control API.

use super::clients::Changed;
use super::volumes::{Opened, VolumeId, Waiter};
use super::{DataThread, IoOwner};
use crate::handle::{
    AcceptLossError, DataStatus, OpenVolume, SnapshotAnswer, VolumeAccessError, VolumeRequest, WantedSnapshot,
};
use bytes::{Bytes, BytesMut};
use mio::Token;
use sheep_datapath::{
    BlockExtent, DiffExtent, ObjectCheck, OpenError, ReadExtent, Shard, VolumeError, VolumeOp, VolumeReply,
};
use sheep_frontend::RequestHandle;
use sheep_state::SNAPSHOT_MARK;
use sheep_types::Time;
use tokio::sync::oneshot;

/// A call that waits for an operation.
pub(super) enum ApiIo {
    Read(oneshot::Sender<Result<Bytes, VolumeAccessError>>),
    Done(oneshot::Sender<Result<(), VolumeAccessError>>),
    Status(oneshot::Sender<Result<Vec<BlockExtent>, VolumeAccessError>>),
    Diff(oneshot::Sender<Result<Vec<DiffExtent>, VolumeAccessError>>),
    Check(oneshot::Sender<Result<ObjectCheck, VolumeAccessError>>),
    AcceptLoss(oneshot::Sender<Result<(), AcceptLossError>>),
    Snapshot(SnapshotAnswer),
}

impl ApiIo {
    pub(super) fn done(self, result: Result<VolumeReply, VolumeError>) {
        if let Self::AcceptLoss(answer) = self {
            let _ = answer.send(result.map(|_| ()).map_err(accept_loss_error));
            return;
        }
        let result = result.map_err(|error| match error {
            VolumeError::NotRelated => VolumeAccessError::NotRelated,
            error => VolumeAccessError::Io(error.to_string()),
        });
        match self {
            Self::AcceptLoss(_) => {}
            Self::Snapshot(answer) => {
                let _ = answer.send(result.and_then(|reply| match reply {
                    VolumeReply::Ordered(result) => Ok(*result),
                    _ => Err(VolumeAccessError::Io("the volume does not say what came of it".into())),
                }));
            }
            Self::Status(answer) => {
                let _ = answer.send(result.map(|reply| match reply {
                    VolumeReply::BlockStatus(extents) => extents,
                    _ => Vec::new(),
                }));
            }
            Self::Diff(answer) => {
                let _ = answer.send(result.map(|reply| match reply {
                    VolumeReply::Diff(extents) => extents,
                    _ => Vec::new(),
                }));
            }
            Self::Check(answer) => {
                let _ = answer.send(result.map(|reply| match reply {
                    VolumeReply::Checked(check) => check,
                    _ => ObjectCheck::default(),
                }));
            }
            Self::Read(answer) => {
                let _ = answer.send(result.map(|reply| match reply {
                    VolumeReply::Read(extents) => contents(extents),
                    _ => Bytes::new(),
                }));
            }
            Self::Done(answer) => {
                let _ = answer.send(result.map(|_| ()));
            }
        }
    }
}

fn accept_loss_error(error: VolumeError) -> AcceptLossError {
    match error {
        VolumeError::NotLost => AcceptLossError::NotLost,
        VolumeError::MayComeBack => AcceptLossError::MayComeBack,
        other => VolumeAccessError::Io(other.to_string()).into(),
    }
}

fn contents(extents: Vec<ReadExtent>) -> Bytes {
    let mut all = BytesMut::with_capacity(extents.iter().map(ReadExtent::len).sum());
    for extent in extents {
        match extent {
            ReadExtent::Data(data) => all.extend_from_slice(&data),
            ReadExtent::Hole(len) => all.resize(all.len() + len as usize, 0),
        }
    }
    all.freeze()
}

/// Tells a call that its volume is open. `false`: the caller has gone.
pub(super) fn opened(
    answer: oneshot::Sender<Result<OpenVolume, VolumeAccessError>>,
    volume: VolumeId,
    opened: Opened,
) -> bool {
    answer.send(Ok(OpenVolume { handle: volume, size: opened.size })).is_ok()
}

pub(super) fn open_failed(
    answer: oneshot::Sender<Result<OpenVolume, VolumeAccessError>>,
    problem: &OpenError,
) {
    let _ = answer.send(Err(VolumeAccessError::Open(problem.to_string())));
}

impl DataThread {
    pub(super) fn api(&mut self, now: Time, request: VolumeRequest) {
        match request {
            VolumeRequest::Open { vdi, read_only, alone, answer } => {
                if self.shard.is_none() {
                    let why = "this node does not know its cluster yet".to_string();
                    let _ = answer.send(Err(VolumeAccessError::Open(why)));
                } else if alone && self.volumes.is_used(vdi) {
                    open_failed(answer, &OpenError::AlreadyOpen);
                } else {
                    self.open(now, vdi, read_only, alone, Waiter::Api(answer));
                }
            }
            VolumeRequest::Read { handle, offset, len, answer } => {
                self.api_io(now, handle, VolumeOp::Read { offset, len }, ApiIo::Read(answer));
            }
            VolumeRequest::Write { handle, offset, data, answer } => {
                let op = VolumeOp::Write { offset, data, fua: false };
                self.api_io(now, handle, op, ApiIo::Done(answer));
            }
            VolumeRequest::Discard { handle, offset, len, answer } => {
                let op = VolumeOp::Discard { offset, len, fua: false };
                self.api_io(now, handle, op, ApiIo::Done(answer));
            }
            VolumeRequest::WriteZeroes { handle, offset, len, answer } => {
                let op = VolumeOp::WriteZeroes { offset, len, fua: false, no_hole: false, fast_zero: false };
                self.api_io(now, handle, op, ApiIo::Done(answer));
            }
            VolumeRequest::Flush { handle, answer } => {
                self.api_io(now, handle, VolumeOp::Flush, ApiIo::Done(answer));
            }
            VolumeRequest::Status { handle, offset, len, answer } => {
                let op = VolumeOp::BlockStatus { offset, len, req_one: false };
                self.api_io(now, handle, op, ApiIo::Status(answer));
            }
            VolumeRequest::Diff { handle, offset, len, since, answer } => {
                self.api_io(now, handle, VolumeOp::Diff { offset, len, since }, ApiIo::Diff(answer));
            }
            VolumeRequest::Check { handle, map, index, answer } => {
                self.api_io(now, handle, VolumeOp::Check { map, index }, ApiIo::Check(answer));
            }
            VolumeRequest::AcceptLoss { handle, index, force, answer } => {
                self.api_io(now, handle, VolumeOp::AcceptLoss { index, force }, ApiIo::AcceptLoss(answer));
            }
            VolumeRequest::Snapshot { handle, wanted, answer } => {
                let WantedSnapshot { tag, attributes, created_unix_ms } = wanted;
                let op = VolumeOp::Snapshot { tag, attributes, created_unix_ms };
                self.api_io(now, handle, op, ApiIo::Snapshot(answer));
            }
            VolumeRequest::CloseAll => self.close_all(now),
            VolumeRequest::Close { handle, answer } => {
                let action = self.volumes.release(handle);
                self.act(now, action);
                let _ = answer.send(());
            }
        }
    }

    /// Compares a volume with one of its snapshots for a client.
    pub(super) fn client_compares(
        &mut self,
        now: Time,
        client: Token,
        handle: RequestHandle,
        volume: VolumeId,
        name: &str,
        range: &Changed,
    ) {
        let volume_name = name.split(SNAPSHOT_MARK).next().unwrap_or(name);
        let full = match range.tag.contains(SNAPSHOT_MARK) {
            true => range.tag.clone(),
            false => format!("{volume_name}{SNAPSHOT_MARK}{}", range.tag),
        };
        let found = self.view.as_ref().and_then(|view| Some(view.state.vdi_by_name(&full)?.id));
        let (Some(since), Some(shard)) = (found, &mut self.shard) else {
            return self.clients.done(client, handle, Err(VolumeError::NotRelated));
        };
        self.last_io += 1;
        self.ios.insert(self.last_io, IoOwner::Client(client, handle));
        let op = VolumeOp::Diff { offset: range.offset, len: range.len, since: Some(since) };
        shard.gateway().submit(now, volume, self.last_io, op);
    }

    /// Closes all volumes in order; nobody gets one any more.
    pub(super) fn close_all(&mut self, now: Time) {
        self.closing = true;
        for volume in self.volumes.ids() {
            self.clients.lost(volume);
            let action = self.volumes.lost(volume);
            self.act(now, action);
        }
    }

    fn api_io(&mut self, now: Time, volume: VolumeId, op: VolumeOp, waiting: ApiIo) {
        self.last_io += 1;
        self.ios.insert(self.last_io, IoOwner::Api(waiting));
        if let Some(shard) = &mut self.shard {
            shard.gateway().submit(now, volume, self.last_io, op);
        }
    }
}

/// Fills in what the shard says of itself.
pub(super) fn describe(shard: &Shard, status: &mut DataStatus) {
    let sweeps = shard.sweep_status();
    status.counters.extend([
        ("gateway_payloads_damaged", shard.garbled()),
        ("sweep_rounds", sweeps.rounds),
        ("sweep_rounds_failed", sweeps.failed),
        ("sweep_objects_deleted", sweeps.dropped),
        ("sweep_vids_forgotten", sweeps.empty),
    ]);
    let Some(replica) = shard.replica() else { return };
    let (usage, progress, counters) = (replica.store().usage(), replica.progress(), replica.status());
    status.capacity = usage.capacity;
    status.used = usage.used;
    status.objects = replica.objects();
    status.recovery_epoch = progress.epoch.0;
    status.recovery_total = progress.objects_left + progress.objects_done;
    status.recovery_done = progress.objects_done;
    status.recovery_bytes = progress.bytes_done;
    status.recovery_bytes_left = progress.bytes_left;
    status.recovery_time_left = progress.time_left;
    status.recovery_bytes_ever = progress.bytes_ever;
    status.recovered = progress.complete;
    status.recovery_pace = counters.pace;
    let scrub = replica.scrub_status();
    status.scrub = scrub;
    status.counters.extend([
        ("replica_requests_waiting", counters.waiting as u64),
        ("replica_requests_refused_busy", counters.busy),
        ("replica_payloads_damaged", counters.garbled),
        ("replica_packets_foreign", counters.foreign),
        ("recovery_objects_confirmed", progress.confirmed_ever),
        ("recovery_objects_lost", progress.objects_lost),
        ("scrub_objects", scrub.objects_ever),
        ("scrub_passes", scrub.passes),
        ("scrub_copies_damaged", scrub.damaged),
        ("scrub_copies_mismatched", scrub.mismatches),
        ("scrub_copies_behind", scrub.behind),
        ("scrub_copies_repaired", scrub.repaired),
        ("scrub_copies_unrepairable", scrub.unrepairable),
        ("scrub_objects_unresolved", scrub.unresolved),
        ("scrub_objects_skipped", scrub.skipped),
        ("recovery_objects_surplus", progress.objects_surplus),
    ]);
}
