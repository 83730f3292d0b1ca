//! What the store asks of a disk, as values.
//!
//! A disk layer takes [`DiskOp`]s from [`crate::Store::poll_disk`], may run any number of them at once and in
//! any order, and gives each result back once with [`crate::Store::handle_disk`]. The store itself waits for
//! the results it depends on before it asks for more; it never has two writes to the same bytes under way,
//! and never reads what it is writing.
//!
//! What the disk layer promises:
//! - a read after a completed write sees it; bytes that were never written, and bytes past the end, read as
//!   zeros;
//! - a completed [`DiskOpKind::Sync`] made every write that had *completed before the sync was asked for*
//!   survive a power cut. Nothing else is promised about order or survival: an unsynced write may survive
//!   whole, not at all, or by halves, down to sectors of 512 bytes, each of which is its old or new self;
//! - after a failed sync the file is not used again by the running store. When it is opened again the first
//!   reads must come from the medium and not from a page cache that may hold pages which were never written
//!   (open with O_DIRECT, or drop the cached pages first).

use bytes::Bytes;

/// One of the files of a store. A store has one today; the number leaves room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u8);

impl FileId {
    /// The file (or raw block device) that holds everything.
    pub const BLOCKS: Self = Self(0);

    /// Its name inside the store's directory.
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "blocks",
            _ => "unknown",
        }
    }
}

/// Names one disk operation until its result is given back; never reused by one [`crate::Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskOpId(pub u64);

impl DiskOpId {
    /// First name of operations of a disk in a [`crate::StoreSet`]: the slot has 8 bits, its use by one disk after the
    /// other 8, and 48 count.
    pub(crate) fn first(slot: u8, opening: u8) -> u64 {
        u64::from(slot) << 56 | u64::from(opening) << 48 | 1
    }

    /// Slot of the disk that is meant.
    pub fn slot(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

/// One operation for the disk layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOp {
    /// Its name in [`crate::Store::handle_disk`].
    pub id: DiskOpId,
    /// What to do.
    pub kind: DiskOpKind,
}

/// What to do. Offsets and lengths are in bytes and multiples of 4096.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOpKind {
    /// Open the file; if `create`, make it if it is not there. Result: [`DiskDone::Opened`], or
    /// [`DiskError::NotFound`].
    Open {
        /// Which file.
        file: FileId,
        /// Make it if it is missing.
        create: bool,
    },
    /// Read `len` bytes. Result: [`DiskDone::Read`] with exactly that many.
    Read {
        /// Which file.
        file: FileId,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
    },
    /// Write the buffers one after the other from `offset` on.
    Write {
        /// Which file.
        file: FileId,
        /// First byte.
        offset: u64,
        /// What to write; the total is a multiple of 4096 bytes, and so is every buffer.
        data: Vec<Bytes>,
    },
    /// Make completed writes durable (fdatasync).
    Sync {
        /// Which file.
        file: FileId,
    },
    /// Make the directory entry of a created file durable. A raw device answers at once.
    SyncDirectory,
    /// Reserve space (fallocate), so that writes to the range cannot fail for want of it. What is there
    /// stays. [`DiskError::NoSpace`] if there is none. Nothing to do where space can't be reserved.
    Allocate {
        /// Which file.
        file: FileId,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Give space back (hole punch, discard). Advice: an error is ignored. The range then reads as anything.
    Punch {
        /// Which file.
        file: FileId,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

/// What a successful operation gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskDone {
    /// The file is open.
    Opened,
    /// The bytes that were asked for.
    Read(Bytes),
    /// Write, sync, allocate or punch is done.
    Done,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The medium or the path to it failed (EIO and everything not named here).
    #[error("input/output error")]
    Io,
    /// No space left on the filesystem.
    #[error("no space left on the filesystem")]
    NoSpace,
    /// The file or filesystem can't be written (EROFS, EACCES).
    #[error("the filesystem is read-only")]
    ReadOnly,
    /// The file does not exist.
    #[error("no such file")]
    NotFound,
}

/// Result of a disk operation.
pub type DiskResult = Result<DiskDone, DiskError>;
