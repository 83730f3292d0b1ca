//! What the rest of the process (gRPC, HTTP) may ask of the running node.
//!
//! Control and data run on threads of their own; this handle reaches them by messages and reads what they
//! publish. Nothing here touches their state.

use crate::control::ControlMessage;
use crate::data::DataMessage;
use crate::disks::{DiskControl, DiskSpec};
use crate::inbox::{SendError, Sender};
use bytes::Bytes;
use sheep_datapath::{BlockExtent, DiffExtent, FillProgress, ObjectCheck, ScrubStatus};
use sheep_engine::Published;
use sheep_state::{Command, Outcome, Refusal};
use sheep_types::{ClusterId, ConfigId, LogIndex, Member, NodeId, VdiId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

/// Longest time that an API call waits for its command to be ordered.
pub(crate) const ORDER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the node says about itself, as of now.
#[derive(Clone, Debug)]
pub(crate) struct NodeStatus {
    /// This node in this run.
    pub(crate) me: Member,
    /// Zero: waits for a cluster.
    pub(crate) cluster: ClusterId,
    /// In the primary component, which may act.
    pub(crate) primary: bool,
    /// State of the ring, for people.
    pub(crate) ring_state: &'static str,
    /// Members of the ring's configuration.
    pub(crate) ring_members: Vec<Member>,
    /// Present term.
    pub(crate) term: ConfigId,
    /// What is known to be committed.
    pub(crate) commit: LogIndex,
    /// Voters of the log.
    pub(crate) voters: Vec<NodeId>,
    /// The applied state.
    pub(crate) published: Option<Published>,
    /// Counters of ring and log, name and value, for metrics.
    pub(crate) counters: Vec<(&'static str, u64)>,
    /// Why the node stopped for ever, if it did.
    pub(crate) fatal: Option<String>,
}

/// What the data path says about itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct DataStatus {
    /// Bytes the store can hold.
    pub(crate) capacity: u64,
    /// Bytes it holds.
    pub(crate) used: u64,
    /// Objects it holds.
    pub(crate) objects: u64,
    /// Open volumes.
    pub(crate) open_vdis: u32,
    /// What volumes that are being opened wait for, as sentences.
    pub(crate) waits: Vec<String>,
    /// Epoch that recovery works on.
    pub(crate) recovery_epoch: u64,
    /// Objects to be validated or fetched in it.
    pub(crate) recovery_total: u64,
    /// Of these, done.
    pub(crate) recovery_done: u64,
    /// Bytes fetched from other nodes in it.
    pub(crate) recovery_bytes: u64,
    /// Bytes thought to be fetched yet.
    pub(crate) recovery_bytes_left: u64,
    /// Time until all is done, at the pace so far, if there is one.
    pub(crate) recovery_time_left: Option<Duration>,
    /// Bytes fetched from other nodes since the node started.
    pub(crate) recovery_bytes_ever: u64,
    /// Everything this node must hold is validated.
    pub(crate) recovered: bool,
    /// Bytes per second that recovery is held to because clients waited.
    pub(crate) recovery_pace: Option<u64>,
    /// How far scrubbing is.
    pub(crate) scrub: ScrubStatus,
    /// How many objects of which volume are lost, as far as this node knows.
    pub(crate) lost: BTreeMap<VdiId, u64>,
    /// How far volumes are that are flattened here.
    pub(crate) flattening: BTreeMap<VdiId, FillProgress>,
    /// Counters, name and value, for metrics.
    pub(crate) counters: Vec<(&'static str, u64)>,
    /// The store has failed.
    pub(crate) failed: Option<String>,
    /// Disks of the store.
    pub(crate) disks: Vec<DiskStatus>,
    /// Objects moved between disks since the node started, and whether more are about to be.
    pub(crate) moved: (u64, bool),
}

/// One disk of this node.
#[derive(Clone, Debug)]
pub(crate) struct DiskStatus {
    /// What the store knows of it.
    pub(crate) disk: sheep_store::Disk,
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Objects on it.
    pub(crate) objects: u64,
}

/// Disks of a running node come and go.
pub(crate) enum DiskRequest {
    /// Use one more.
    Plug { disk: DiskSpec, answer: oneshot::Sender<bool> },
    /// Move everything off one. `false`: there is no other.
    Empty { id: u64, answer: oneshot::Sender<bool> },
    /// Use one no more, whatever is on it. `false`: there is no other.
    GiveUp { id: u64, answer: oneshot::Sender<bool> },
}

/// Why a command has no result.
#[derive(Debug, Error)]
pub(crate) enum OrderError {
    /// The state machine refused it.
    #[error(transparent)]
    Refused(Refusal),
    /// Not ordered in time: this node is not in the primary component, or the cluster is overloaded. It may
    /// still be carried out later.
    #[error("not ordered within {seconds} s: {0}", seconds = ORDER_TIMEOUT.as_secs())]
    Timeout(&'static str),
    /// The control thread did not take it.
    #[error(transparent)]
    NotSent(SendError),
    /// The log did not take it.
    #[error("{0}")]
    NotTaken(#[from] sheep_log::ProposeError),
    /// Carried out or refused, but the answer is inside a snapshot.
    #[error("the answer was lost while this node caught up; look whether the command took effect")]
    AnswerLost,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// Why volume data could not be read or written.
#[derive(Debug, Error)]
pub(crate) enum VolumeAccessError {
    /// It cannot be opened: held elsewhere, unknown, not in the primary component.
    #[error("cannot open: {0}")]
    Open(String),
    /// An I/O error.
    #[error("I/O error: {0}")]
    Io(String),
    /// It has nothing in common with what it is to be compared with.
    #[error("they have no snapshot in common: there is nothing to compare")]
    NotRelated,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// Why a lost object was not given up.
#[derive(Debug, Error)]
pub(crate) enum AcceptLossError {
    /// Somebody has it.
    #[error("it is not lost")]
    NotLost,
    /// Somebody who is away may have it.
    #[error("nodes that are away may have it")]
    MayComeBack,
    /// Something else.
    #[error(transparent)]
    Access(#[from] VolumeAccessError),
}

/// To the control thread.
pub(crate) enum ControlRequest {
    /// Order a command.
    Propose { command: Command, answer: oneshot::Sender<Result<Outcome, OrderError>> },
    /// Make this node the first of a new cluster.
    Format { genesis: sheep_state::Genesis, answer: oneshot::Sender<Result<ClusterId, String>> },
    /// Stop the process in order.
    Stop,
}

/// A snapshot to be taken.
#[derive(Clone, Debug)]
pub(crate) struct WantedSnapshot {
    /// Behind the `@` of its name.
    pub(crate) tag: String,
    /// Free attributes.
    pub(crate) attributes: BTreeMap<String, String>,
    /// Now, as the creator says.
    pub(crate) created_unix_ms: u64,
}

/// Takes what came of it.
pub(crate) type SnapshotAnswer = oneshot::Sender<Result<Result<Outcome, Refusal>, VolumeAccessError>>;

/// To the data thread.
pub(crate) enum VolumeRequest {
    /// Open a volume; the lock is taken. The answer is a number for the other requests. `alone`: refused if others on this
    /// node use it; who comes later waits until it is closed.
    Open {
        vdi: VdiId,
        read_only: bool,
        alone: bool,
        answer: oneshot::Sender<Result<OpenVolume, VolumeAccessError>>,
    },
    /// Read bytes.
    Read {
        handle: u64,
        offset: u64,
        len: u32,
        answer: oneshot::Sender<Result<Bytes, VolumeAccessError>>,
    },
    /// Write bytes.
    Write {
        handle: u64,
        offset: u64,
        data: Bytes,
        answer: oneshot::Sender<Result<(), VolumeAccessError>>,
    },
    /// Make a range read as zeros.
    Discard {
        handle: u64,
        offset: u64,
        len: u64,
        answer: oneshot::Sender<Result<(), VolumeAccessError>>,
    },
    WriteZeroes {
        handle: u64,
        offset: u64,
        len: u64,
        answer: oneshot::Sender<Result<(), VolumeAccessError>>,
    },
    /// Make everything durable.
    Flush {
        handle: u64,
        answer: oneshot::Sender<Result<(), VolumeAccessError>>,
    },
    /// Which parts exist; as much of the range as can be told at once.
    Status {
        handle: u64,
        offset: u64,
        len: u64,
        answer: oneshot::Sender<Result<Vec<BlockExtent>, VolumeAccessError>>,
    },
    /// What differs from a snapshot, or is there at all; as much of the range as can be told at once.
    Diff {
        handle: u64,
        offset: u64,
        len: u64,
        since: Option<VdiId>,
        answer: oneshot::Sender<Result<Vec<DiffExtent>, VolumeAccessError>>,
    },
    /// What all copies of an object are.
    Check {
        handle: u64,
        map: bool,
        index: u32,
        answer: oneshot::Sender<Result<ObjectCheck, VolumeAccessError>>,
    },
    /// A lost object becomes zeros.
    AcceptLoss {
        handle: u64,
        index: u32,
        force: bool,
        answer: oneshot::Sender<Result<(), AcceptLossError>>,
    },
    /// Take a snapshot of a volume that is open for writing.
    Snapshot {
        handle: u64,
        wanted: WantedSnapshot,
        answer: SnapshotAnswer,
    },
    /// Drain, flush, release the lock.
    Close {
        handle: u64,
        answer: oneshot::Sender<()>,
    },
    /// Close all volumes, and open none any more.
    CloseAll,
}

/// An open volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenVolume {
    /// Its number.
    pub(crate) handle: u64,
    /// Its size, bytes.
    pub(crate) size: u64,
}

/// The running node, as gRPC and HTTP see it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct NodeHandle {
    pub(crate) control: Sender<ControlMessage>,
    pub(crate) volumes: Sender<DataMessage>,
    pub(crate) status: watch::Receiver<Arc<NodeStatus>>,
    pub(crate) data: watch::Receiver<Arc<DataStatus>>,
    pub(crate) started: Instant,
    pub(crate) disks: Arc<DiskControl>,
}

impl NodeHandle {
    /// Sends a request about disks to the data thread and waits for its answer.
    pub(crate) async fn disk(
        &self,
        request: impl FnOnce(oneshot::Sender<bool>) -> DiskRequest,
    ) -> Result<bool, VolumeAccessError> {
        let (answer, wait) = oneshot::channel();
        self.volumes.send(DataMessage::Disks(request(answer))).map_err(|_| VolumeAccessError::Stopping)?;
        wait.await.map_err(|_| VolumeAccessError::Stopping)
    }

    /// Orders a command and waits for its answer.
    pub(crate) async fn order(&self, command: Command) -> Result<Outcome, OrderError> {
        let (answer, wait) = oneshot::channel();
        let request = ControlRequest::Propose { command, answer };
        self.control.send(ControlMessage::Request(request)).map_err(OrderError::NotSent)?;
        match tokio::time::timeout(ORDER_TIMEOUT, wait).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(OrderError::Stopping),
            Err(_) if self.status.borrow().primary => Err(OrderError::Timeout("the cluster is overloaded")),
            Err(_) => Err(OrderError::Timeout("this node is not in the primary component of the cluster")),
        }
    }

    /// The node's present status.
    pub(crate) fn status(&self) -> Arc<NodeStatus> {
        self.status.borrow().clone()
    }

    /// The data path's present status.
    pub(crate) fn data(&self) -> Arc<DataStatus> {
        self.data.borrow().clone()
    }

    /// Sends a request to the data thread and waits for its answer.
    pub(crate) async fn volume<T, E: From<VolumeAccessError>>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, E>>) -> VolumeRequest,
    ) -> Result<T, E> {
        let (answer, wait) = oneshot::channel();
        self.volumes.send(DataMessage::Volume(request(answer))).map_err(|_| VolumeAccessError::Stopping)?;
        wait.await.map_err(|_| VolumeAccessError::Stopping)?
    }
}
