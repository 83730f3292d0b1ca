//! What goes into a store and what comes out of it.

use crate::{DiskError, Mutant};
use bytes::Bytes;
use sheep_types::{Birth, ClusterId, Epoch, Geometry, NodeId, ObjectId, Version};
use thiserror::Error;

/// Settings of one store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// How disks are cut into objects. An existing store must have been made with the same.
    pub geometry: Geometry,
    /// Most bytes the store may take, its own records included; `None` leaves it to the disk. At most 16 TiB
    /// are used in any case.
    pub capacity_limit: Option<u64>,
    /// Bytes of the metadata log. Only used when a store is made; see [`StoreConfig::log_bytes_for`].
    pub log_bytes: u64,
    /// Bytes of records after which a batch is committed although nobody asked for a flush. Only used when a
    /// store is made.
    pub batch_bytes: u32,
    /// Bytes of payload written since the last commit after which one is made unasked.
    pub commit_bytes: u64,
    /// Bytes of payload handed to the disk and not yet written, above which writes are answered only when the
    /// disk has taken some.
    pub inflight_bytes: u64,
    /// Checksums kept in memory since the last checkpoint (8 bytes each) after which one is made.
    pub delta_limit: u64,
    /// Checksums of one object outside its page above which a checkpoint writes a new page for it.
    pub fold_above: usize,
    /// Pieces of one object above which its map gets a page too.
    pub inline_runs: usize,
    /// Checksum pages (4 KiB each) kept in memory for reads.
    pub page_cache: usize,
    /// Bytes of memory for maps that are in pages too; what does not fit is read when it is needed. By default
    /// 256 MiB per tebibyte, from 64 MiB to 1 GiB.
    pub map_cache: u64,
    /// Write space once with zeros before small writes use it: worth while on a filesystem, where the first write of a
    /// block takes longer to become durable.
    pub prewrite: bool,
    /// Which rule to break on purpose, for tests of the checkers.
    pub mutant: Mutant,
}

impl StoreConfig {
    /// Defaults for a store of about `capacity` bytes.
    pub fn new(geometry: Geometry, capacity: u64) -> Self {
        Self {
            geometry,
            capacity_limit: Some(capacity),
            log_bytes: Self::log_bytes_for(capacity),
            batch_bytes: 64 << 10,
            commit_bytes: 64 << 20,
            inflight_bytes: 32 << 20,
            delta_limit: 8 << 20,
            fold_above: 32,
            inline_runs: 64,
            page_cache: 16 << 10,
            prewrite: true,
            map_cache: (capacity / 4096).clamp(64 << 20, 1 << 30),
            mutant: Mutant::None,
        }
    }

    /// Log size that goes with a capacity: 1/1024 of it, from 4 MiB to 1 GiB.
    pub fn log_bytes_for(capacity: u64) -> u64 {
        (capacity / 1024).clamp(4 << 20, 1 << 30).next_multiple_of(4096)
    }

    /// Defaults scaled down for simulations: a log of 256 KiB, batches of 4 KiB, everything else to match.
    pub fn small(geometry: Geometry, capacity: u64) -> Self {
        Self {
            log_bytes: 256 << 10,
            batch_bytes: 4 << 10,
            commit_bytes: 1 << 20,
            inflight_bytes: 1 << 20,
            delta_limit: 1 << 12,
            fold_above: 4,
            inline_runs: 4,
            page_cache: 64,
            map_cache: 1 << 10,
            prewrite: false,
            ..Self::new(geometry, capacity)
        }
    }
}

/// Whose store this is; kept in its superblock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The cluster whose objects it holds.
    pub cluster: ClusterId,
    /// The node it belongs to.
    pub node: NodeId,
    /// Random number drawn when the store was made; sets it apart from everything else that was ever on the
    /// same disk. Not compared when an existing store is opened.
    pub store: u64,
}

impl StoreIdentity {
    /// Whose store it is, from the two copies of its superblock: the first 4096 bytes of the file, and those from
    /// [`StoreIdentity::SECOND`] on.
    ///
    /// # Errors
    /// [`StoreError::NotFormatted`] if no store was ever finished here; others if neither copy can be used.
    pub fn of(first: &[u8], second: &[u8]) -> Result<Self, StoreError> {
        crate::superblock::Superblock::choose(first, second).map(|superblock| superblock.identity)
    }

    /// Where the second copy begins.
    pub const SECOND: u64 = 8 * 4096;
}

/// What is known about the copy of an object besides its contents; durable together with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub id: ObjectId,
    /// Log index of the entry that created its vid.
    pub birth: Birth,
    /// Version of the contents.
    pub version: Version,
    /// Newest epoch in which the copy was known to be current.
    pub validated: Epoch,
    /// The object's map entry is not confirmed yet.
    pub pending: bool,
}

/// Contents of a range of blocks, as given by a writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Bytes, with the CRC-32C of each 4096 of them. The store checks them and refuses what does not match.
    Data {
        /// The bytes, a multiple of 4096.
        payload: Bytes,
        /// One checksum per block.
        crcs: Vec<u32>,
    },
    /// Zeros: `len` bytes, a multiple of 4096.
    Zero {
        /// Number of bytes.
        len: u32,
    },
    /// Lost blocks: contents that no copy has any more. They read as [`StoreError::Corrupt`] until they are written.
    Lost {
        /// The checksum that each should have; zero: that is not known.
        crcs: Vec<u32>,
    },
}

impl Body {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Data { payload, .. } => payload.len(),
            Self::Zero { len } => *len as usize,
            Self::Lost { crcs } => crcs.len() * sheep_types::BLOCK_SIZE as usize,
        }
    }

    /// True if it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A range of an object given to [`Op::Replace`] or [`Op::Patch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte in the object, a multiple of 4096.
    pub offset: u32,
    /// What is there.
    pub body: Body,
}

impl Piece {
    pub(crate) fn parts(&self) -> (u32, &Body) {
        (self.offset, &self.body)
    }
}

/// State of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockState {
    /// Never written here: the contents are the parent's.
    Absent,
    /// Zeros, hiding the parent.
    Zero,
    /// Data.
    Data,
    /// Lost: no copy had its contents when this one was made, see [`Body::Lost`].
    Lost,
    /// Data that can't be read or that fails its checksum. Only [`Op::Salvage`] says so; [`Op::Inspect`], which does not
    /// look, where the checksum itself is gone.
    Damaged,
}

impl BlockState {
    /// Whether results have a checksum for each block of it: the right one, or zero if that is not known.
    pub fn has_sums(self) -> bool {
        matches!(self, Self::Data | Self::Lost | Self::Damaged)
    }
}

/// A range of blocks in the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the object.
    pub offset: u32,
    /// Number of bytes.
    pub len: u32,
    /// Their state.
    pub state: BlockState,
}

/// Something to be done.
///
/// Operations on one object take effect in the order of submission, and later ones see earlier ones at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a range of blocks and take `header` over. Answered when the write is in memory; durable after a
    /// [`Op::Flush`]. With `create` whatever the store has under this name is first replaced by an empty
    /// object; without, the object must exist.
    Write {
        /// The header that holds from now on; names the object.
        header: Header,
        /// Start from an empty object.
        create: bool,
        /// First byte, a multiple of 4096.
        offset: u32,
        /// What to write. May be empty (a creation without contents).
        body: Body,
    },
    /// Read a range of blocks.
    Read {
        /// The object.
        object: ObjectId,
        /// First byte, a multiple of 4096.
        offset: u32,
        /// Number of bytes, a multiple of 4096.
        len: u32,
    },
    /// Read what can be read: as [`Op::Read`], but bad blocks are told by their state and do not make it fail.
    Salvage {
        /// The object.
        object: ObjectId,
        /// First byte, a multiple of 4096.
        offset: u32,
        /// Number of bytes, a multiple of 4096.
        len: u32,
    },
    /// States and checksums of all blocks, without their contents. Does not check the contents.
    Inspect {
        /// The object.
        object: ObjectId,
    },
    /// States of all blocks, and which of them are kept in the same place as the same blocks of `other`, so that they are
    /// equal whatever they hold. Reads nothing from the disk but maps.
    Layout {
        /// The object.
        object: ObjectId,
        /// Another one, in the same store.
        other: Option<ObjectId>,
    },
    /// Change the header and nothing else. The object must exist.
    SetHeader {
        /// The new header.
        header: Header,
    },
    /// Make the whole object exactly this, in one step: blocks that no piece covers are absent. The object
    /// need not exist.
    Replace {
        /// The new header.
        header: Header,
        /// The contents, in order of offset, not overlapping.
        pieces: Vec<Piece>,
    },
    /// Change some ranges of an object and take `header` over, in one step: blocks that no piece covers stay as
    /// they are. The object must exist. Durable after a [`Op::Flush`], all or nothing.
    Patch {
        /// The new header.
        header: Header,
        /// The new contents, in order of offset, not overlapping.
        pieces: Vec<Piece>,
    },
    /// Make (or replace) the object named by `header` with the blocks of `from`, which must exist. The two
    /// share their blocks until one of them is written.
    CloneBlocks {
        /// The object to clone.
        from: ObjectId,
        /// Header of the clone.
        header: Header,
    },
    /// Forget the object. Answered with success if there is none.
    Delete {
        /// The object.
        object: ObjectId,
    },
    /// Answered when everything submitted before is durable.
    Flush,
}

/// Result of a successful operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A write, header change, replacement, clone, delete or flush is done.
    Done,
    /// Result of [`Op::Read`] and [`Op::Salvage`].
    Read(ReadResult),
    /// Result of [`Op::Inspect`].
    Inspect(InspectResult),
    /// Result of [`Op::Layout`].
    Layout(LayoutResult),
}

/// Result of [`Op::Read`] or [`Op::Salvage`]: one instant of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadResult {
    /// Version of what was read.
    pub version: Version,
    /// The range that was asked for, cut by state, in order and without gaps. Neighbouring extents may have the
    /// same state.
    pub extents: Vec<Extent>,
    /// One buffer per extent in state [`BlockState::Data`], of the extent's length.
    pub data: Vec<Bytes>,
    /// CRC-32C of each block of `data`, and of bad blocks if they are told, in order.
    pub crcs: Vec<u32>,
}

/// Result of [`Op::Inspect`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectResult {
    /// The header.
    pub header: Header,
    /// The whole object cut by state, in order and without gaps.
    pub extents: Vec<Extent>,
    /// Checksum of each block whose state [has them](BlockState::has_sums), in order.
    pub crcs: Vec<u32>,
}

/// Result of [`Op::Layout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutResult {
    /// Version of the object.
    pub version: Version,
    /// The whole object cut by state, in order and without gaps.
    pub extents: Vec<Extent>,
    /// Data that is kept in the same place as the other object's: first byte and length, in order.
    pub shared: Vec<(u32, u32)>,
}

/// Why an operation, or the whole store, failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store has no such object.
    #[error("object {0} is not here")]
    NotFound(ObjectId),
    /// The block's contents do not match its checksum, or the checksum itself is lost. It counts as missing.
    #[error("block {block} of object {object} is corrupt")]
    Corrupt {
        /// The object.
        object: ObjectId,
        /// Number of the first bad block in it.
        block: u32,
    },
    /// The disk could not read the block. It counts as missing.
    #[error("block {block} of object {object} can't be read")]
    Unreadable {
        /// The object.
        object: ObjectId,
        /// Number of the first unread block.
        block: u32,
    },
    /// There is no room for the write. Reads, deletes and flushes go on.
    #[error("no space left in the store")]
    NoSpace,
    /// The request is not block-aligned, reaches beyond the object, has the wrong number of checksums, or
    /// pieces out of order.
    #[error("malformed request")]
    Malformed,
    /// Payload and checksum of a write do not match; nothing was written.
    #[error("block {block} of the write does not match its checksum")]
    BadChecksum {
        /// Number of the block in the object.
        block: u32,
    },
    /// The store failed (see [`Event::Failed`]) or was not ready yet.
    #[error("the store has failed")]
    Failed,
    /// The store is not used any more.
    #[error("the store was closed")]
    Closed,
    /// The store's file does not exist or was never formatted.
    #[error("there is no store here")]
    NotFormatted,
    /// A store was to be made where one is.
    #[error("there is a store here already")]
    AlreadyFormatted,
    /// Both superblocks are damaged.
    #[error("the superblock is damaged")]
    SuperblockCorrupt,
    /// The store was written by a newer release.
    #[error("format {found} is newer than this program understands ({known})")]
    NewerFormat {
        /// Version on disk.
        found: u32,
        /// Newest version understood.
        known: u32,
    },
    /// The store belongs to another cluster.
    #[error("the store belongs to cluster {found}")]
    WrongCluster {
        /// Its cluster.
        found: ClusterId,
    },
    /// The store belongs to another node.
    #[error("the store belongs to node {found}")]
    WrongNode {
        /// Its node.
        found: NodeId,
    },
    /// Another store of the same node is where this one was.
    #[error("store {found:016x} is in its place")]
    WrongStore {
        /// Its number.
        found: u64,
    },
    /// The store was made for another object size.
    #[error("the store was made for objects of {found} bytes")]
    WrongGeometry {
        /// Its object size.
        found: u32,
    },
    /// Settings that cannot work: the log or the capacity is too small.
    #[error("log or capacity is too small")]
    BadConfig,
    /// A flushed record of the metadata log is damaged.
    #[error("the metadata log is damaged")]
    LogCorrupt,
    /// The log has no room: the store was stopped many times before it could make a checkpoint.
    #[error("the metadata log is full")]
    LogFull,
    /// The checkpoint is damaged.
    #[error("the checkpoint is damaged")]
    CheckpointCorrupt,
    /// A disk operation that the store can't do without failed.
    #[error("disk: {0}")]
    Disk(#[from] DiskError),
}

/// Something the store has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Start-up is done; operations are accepted.
    Ready,
    /// An operation is done.
    Done {
        /// As given to [`crate::Store::submit`].
        token: u64,
        /// Its result.
        result: Result<Outcome, StoreError>,
    },
    /// The store is of no use any more: start-up failed, or a write or sync failed, so that nobody knows what
    /// is on the disk. The disk's incarnation ends. Every operation, waiting or to come, is answered with
    /// [`StoreError::Failed`]. Said once.
    Failed(StoreError),
    /// Less than a sixteenth of the capacity is left for data. Said again only after an eighth was.
    SpaceLow,
}

/// How full a store is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What the store may take.
    pub capacity: u64,
    /// What it takes, its own records included, and freed space that can't be reused yet.
    pub used: u64,
    /// Number of objects.
    pub objects: u64,
}

/// What a store has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches made durable.
    pub commits: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Checksum and map pages written.
    pub pages: u64,
    /// Map pages read, those of start-up included.
    pub maps: u64,
}
