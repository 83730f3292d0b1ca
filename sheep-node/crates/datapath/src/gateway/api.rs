//! What goes into a gateway and what comes out of it, as plain values.

use bytes::Bytes;
use sheep_state::{Command, Outcome, Refusal as OrderRefusal};
use sheep_types::{Member, NodeId, VdiId, Version};
use sheep_wire::Packet;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use thiserror::Error;

/// Settings of one gateway that are not the cluster's.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// First wait for an answer before a request is sent again; doubled each time up to `retry_max`.
    pub retry: Duration,
    /// Longest wait between two attempts.
    pub retry_max: Duration,
    /// First wait after "not current" or "busy"; doubled each time up to `retry_max`.
    pub not_ready: Duration,
    /// A node that owes an answer and has said nothing for so long is reported.
    pub report_after: Duration,
    /// Least time between two reports of one node.
    pub report_every: Duration,
    /// Unflushed bytes kept over all volumes of this gateway; writes wait when there are more.
    pub buffer_bytes: u64,
    /// Map blocks (4 KiB each) cached per volume.
    pub map_blocks: usize,
    /// Largest client request, bytes.
    pub request_bytes: u64,
    /// Largest discard, zeroing or status request, bytes.
    pub range_bytes: u64,
    /// Added to the lease that a take-over waits for, beside one percent for clock rates.
    pub lease_margin: Duration,
    /// Rules to break on purpose, for tests of the checkers.
    pub mutants: crate::Mutants,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            retry: Duration::from_millis(300),
            retry_max: Duration::from_secs(2),
            not_ready: Duration::from_millis(20),
            report_after: Duration::from_millis(1500),
            report_every: Duration::from_secs(5),
            buffer_bytes: 1 << 30,
            map_blocks: 4096,
            request_bytes: 64 << 20,
            range_bytes: 4 << 30,
            lease_margin: Duration::from_millis(50),
            mutants: crate::Mutants::default(),
        }
    }
}

/// What a volume is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading and writing: takes the VDI's lock.
    Write,
    /// Reading, shared with other readers; only while nobody writes.
    Read,
    /// As for writing, but by nobody: a clone is flattened. It is closed when that is done, or when somebody else asks
    /// for it.
    Flatten,
}

/// An operation on a volume. Offsets and lengths are in bytes and multiples of 512.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeOp {
    /// Answered with [`VolumeReply::Read`].
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Answered with [`VolumeReply::Done`].
    Write {
        /// First byte.
        offset: u64,
        /// The contents.
        data: Bytes,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Answered with [`VolumeReply::Done`] when everything answered before is durable.
    Flush,
    /// A hint: the range may afterwards read as before or as zeros.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Durable before it is answered.
        fua: bool,
    },
    /// The range reads as zeros from the answer on.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Durable before it is answered.
        fua: bool,
        /// The range must be allocated afterwards: zeros are written out.
        no_hole: bool,
        /// Refuse with [`VolumeError::NotSupported`] rather than write zeros out.
        fast_zero: bool,
    },
    /// Which parts are allocated. Answered with [`VolumeReply::BlockStatus`].
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Only the first extent is wanted.
        req_one: bool,
    },
    /// Which parts differ from a snapshot that this volume has contents in common with; without one, from a disk full of
    /// zeros. Answered with [`VolumeReply::Diff`]. Of what is written meanwhile either may be said.
    Diff {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The snapshot.
        since: Option<VdiId>,
    },
    /// What all copies of an object are. Answered with [`VolumeReply::Checked`].
    Check {
        /// A map object; else one with contents.
        map: bool,
        /// Number of the object.
        index: u32,
    },
    /// The volume's present contents become a snapshot of this tag. Answered with [`VolumeReply::Ordered`].
    Snapshot {
        /// Name of the snapshot within the volume.
        tag: String,
        /// Free attributes of the snapshot.
        attributes: BTreeMap<String, String>,
        /// Wall-clock time at the client, milliseconds since 1970.
        created_unix_ms: u64,
    },
    /// An object of which no copy can be trusted any more becomes zeros, durably. Refused with
    /// [`VolumeError::NotLost`] while anybody has it, and with [`VolumeError::MayComeBack`] while somebody who is
    /// away may have it.
    AcceptLoss {
        /// Number of the object.
        index: u32,
        /// Whatever nodes that are away may have.
        force: bool,
    },
}

/// Success of a [`VolumeOp`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeReply {
    /// Contents: in order, together exactly as long as asked for.
    Read(Vec<ReadExtent>),
    /// Done.
    Done,
    /// Consecutive extents from the offset on; they may cover less than the range.
    BlockStatus(Vec<BlockExtent>),
    /// Consecutive extents from the offset on; they may cover less than the range, but not nothing.
    Diff(Vec<DiffExtent>),
    /// All copies of an object.
    Checked(ObjectCheck),
    /// What the order said to a command of the volume's.
    Ordered(Box<Result<Outcome, OrderRefusal>>),
}

/// How the copy of one node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// It may serve.
    Current {
        /// Its version.
        version: Version,
        /// Checksum over what all its blocks are.
        sum: u32,
    },
    /// What its blocks should be is damaged.
    Damaged,
    /// It is not up to date yet, or nobody knows whether it is.
    NotCurrent,
    /// There is none that can be trusted, on no node, as far as this one has found out.
    Lost,
    /// The node does not run, or cannot be reached.
    Down,
}

/// All copies of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectCheck {
    /// The map says that the object exists.
    pub exists: bool,
    /// The nodes of its set.
    pub copies: BTreeMap<NodeId, CopyState>,
    /// Nodes that are away and were to have a copy in an epoch that is remembered.
    pub may_hold: BTreeSet<NodeId>,
    /// Blocks that a current copy has lost: first byte in the object, and length.
    pub lost: Vec<(u32, u32)>,
}

/// A piece of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadExtent {
    /// Contents.
    Data(Bytes),
    /// So many zero bytes.
    Hole(u32),
}

impl ReadExtent {
    /// Bytes of the volume this stands for.
    pub fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Hole(len) => *len as usize,
        }
    }

    /// Whether it stands for nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Allocation of a piece of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockExtent {
    /// Bytes, not zero.
    pub len: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeros.
    pub zero: bool,
}

/// What became of a piece of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// As it was, for sure.
    Same,
    /// It may be different, and may have contents.
    Data,
    /// It may be different, and reads as zeros.
    Zero,
}

/// A piece of the volume in comparison with what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffExtent {
    /// Bytes, not zero.
    pub len: u64,
    /// What became of it.
    pub difference: Difference,
}

/// Why an operation on a volume failed. Of a failed write it is unknown how much took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VolumeError {
    /// The volume is open for reading only.
    #[error("operation not permitted")]
    NotPermitted,
    /// Contents are lost or damaged on every copy, or could not be reached for too long.
    #[error("input/output error")]
    Io,
    /// Range or alignment make no sense.
    #[error("invalid argument")]
    Invalid,
    /// A node that must store the write is full, or the write goes past the end.
    #[error("no space left")]
    NoSpace,
    /// The object is not lost: it is not given up.
    #[error("the object is not lost")]
    NotLost,
    /// Nodes that are away may have the object.
    #[error("nodes that are away may have the object")]
    MayComeBack,
    /// There is no such snapshot, or none that the volume has anything in common with.
    #[error("not a snapshot that the volume has to do with")]
    NotRelated,
    /// Cannot be done the way asked for.
    #[error("operation not supported")]
    NotSupported,
    /// The volume is being closed, or is not open.
    #[error("volume is shut down")]
    ShuttingDown,
    /// The right to serve the volume is gone; it must be opened anew.
    #[error("volume is lost to this gateway")]
    Lost,
}

/// Why a volume could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// No such VDI.
    #[error("no such VDI")]
    NoSuchVdi,
    /// The handle is in use.
    #[error("handle is in use")]
    HandleInUse,
    /// This gateway has the VDI open, or is opening or closing it.
    #[error("VDI is open here")]
    AlreadyOpen,
    /// The cluster refused the lock.
    #[error("{0}")]
    Refused(OrderRefusal),
    /// Contents that must exist are lost: the map of the volume cannot be read.
    #[error("the volume's map is lost")]
    MapLost,
    /// A node has no room for the map entries of what the last holder made.
    #[error("no space left on a node for the volume's map")]
    NoSpace,
    /// This version cannot serve the VDI.
    #[error("not supported")]
    NotSupported,
    /// The lock ended while the volume was being opened.
    #[error("lock ended while opening")]
    LockEnded,
    /// It was closed while being opened.
    #[error("closed while opening")]
    Closed,
}

/// What a volume that is being opened waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenWait {
    /// An order of the cluster.
    Order,
    /// The end of the lease of its last holder.
    Lease,
    /// Nodes that may have answered writes in memory that nobody else has.
    Nodes(BTreeSet<NodeId>),
    /// Copies that are current, on enough nodes, to be compared and made equal.
    Copies,
}

/// Why an open volume can no longer be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LostReason {
    /// The lock ended: revoked, detached, or the node was taken for dead.
    #[error("lock ended")]
    LockEnded,
    /// The VDI was deleted.
    #[error("VDI deleted")]
    Deleted,
    /// Acknowledged writes can no longer be brought to a copy that lacks them.
    #[error("acknowledged writes are missing on a copy")]
    WritesMissing,
}

/// An effect of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayOutput {
    /// Send this; to the own node without a network.
    Send(Packet),
    /// Order a command; its result comes back by [`super::Gateway::handle_proposed`] with the token.
    Propose {
        /// Names the proposal.
        token: u64,
        /// What to order.
        command: Command,
    },
    /// A volume is ready.
    Opened {
        /// The volume.
        handle: u64,
        /// Its size, bytes.
        size: u64,
        /// Whether it refuses changes.
        read_only: bool,
    },
    /// A volume could not be opened; the handle is free again.
    OpenFailed {
        /// The volume.
        handle: u64,
        /// Why.
        error: OpenError,
    },
    /// An operation is done, exactly once for each.
    Done {
        /// The volume.
        handle: u64,
        /// The operation.
        io: u64,
        /// What came of it.
        result: Result<VolumeReply, VolumeError>,
    },
    /// A volume has another size.
    Resized {
        /// The volume.
        handle: u64,
        /// New size, bytes.
        size: u64,
    },
    /// A volume failed for good: every operation is answered with [`VolumeError::Lost`] until it is closed.
    Lost {
        /// The volume.
        handle: u64,
        /// Why.
        reason: LostReason,
    },
    /// A volume is closed; the handle is free again.
    Closed {
        /// The volume.
        handle: u64,
    },
    /// A node owes answers and says nothing.
    Report {
        /// The node in its run.
        suspect: Member,
    },
}
