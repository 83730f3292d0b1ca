//! The contract between a frontend and a volume, as plain values.
//!
//! A frontend turns whatever its client speaks (NBD today; ublk or FUSE the same way) into [`Request`]s and
//! sends the [`Reply`] of each back. What a frontend promises, and what it may rely on:
//!
//! * **Range and alignment.** The frontend has checked that a range lies inside the volume as large as it was
//!   last told, that it is not empty, and that offset and length are multiples of the sector (512 bytes).
//!   The volume checks again where it matters, because it may have shrunk meanwhile.
//! * **Order.** Requests in flight are concurrent: the volume may carry out and answer them in any order.
//!   A client that wants order waits for the answer. Two overlapping requests in flight together may
//!   take effect in either order, sector by sector, but a sector is never torn.
//! * **Read.** Returns what the latest answered write left, or any write in flight. Extents come in order and add
//!   up to exactly the length asked for. Never-written and discarded ranges read as zeroes.
//! * **Write.** May be answered before it is durable unless `fua` is set, but is visible to every reader of the
//!   volume, on whatever connection, from its answer on.
//! * **Flush.** Answered once every write, discard and write-zeroes *answered* before the flush was handed
//!   over is durable, whichever connection it came from.
//! * **Discard** ([`Op::Trim`]). A hint; the range may afterwards read as before or as zeroes.
//! * **Write zeroes.** The range reads as zeroes from the answer on. It may become a hole unless `no_hole` is
//!   set. With `fast_zero` the volume answers [`ErrorKind::NotSupported`] at once if it would have
//!   to write the zeroes out, and has then changed nothing.
//! * **Size change.** The volume's owner tells each frontend the new size; a frontend passes it on if its
//!   protocol can. Growing never disturbs requests in flight; shrinking makes requests past the new end fail.
//! * **Once.** Each request is answered exactly once.

use bytes::Bytes;

/// Names a request within its connection until it is answered. Not the number the client chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestHandle(pub(crate) u64);

/// Something to be done by a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// To be given back with the reply.
    pub handle: RequestHandle,
    /// What to do.
    pub op: Op,
}

/// An operation on a volume. Offsets and lengths are in bytes and multiples of 512; see the module text for
/// what each must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Answered with [`Reply::Read`].
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u32,
    },
    /// Answered with [`Reply::Done`].
    Write {
        /// First byte.
        offset: u64,
        /// The contents, not empty. The address in memory and `offset` are equal modulo [`crate::ALIGNMENT`]
        /// when the frontend received the data itself.
        data: Bytes,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Answered with [`Reply::Done`].
    Flush,
    /// Discard. Answered with [`Reply::Done`].
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u64,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Answered with [`Reply::Done`].
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u64,
        /// Durable before it is answered.
        fua: bool,
        /// The range must stay allocated, so that later writes cannot run out of space.
        no_hole: bool,
        /// Refuse with [`ErrorKind::NotSupported`] rather than be as slow as writing.
        fast_zero: bool,
    },
    /// Which parts are allocated. Answered with [`Reply::BlockStatus`].
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u64,
        /// Only the first extent is wanted; a volume may stop there.
        req_one: bool,
    },
    /// Which parts differ from a snapshot of the volume. Answered with [`Reply::Changes`], or with
    /// [`ErrorKind::Invalid`] if there is none.
    ChangedSince {
        /// Its tag, or its whole name.
        tag: String,
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u64,
    },
    /// A hint that the range will be read soon. Answered with [`Reply::Done`], at once if the volume does
    /// not read ahead.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes, not zero.
        len: u64,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Contents for [`Op::Read`]: in order, together exactly as long as asked for.
    Read(Vec<Extent>),
    /// Success of an operation without contents.
    Done,
    /// It failed; for a write that means: unknown how much of it took effect.
    Error(ErrorKind),
    /// For [`Op::BlockStatus`]: consecutive extents from its offset on, at least one, none empty. They may
    /// cover less than the range, and the last may reach beyond it.
    BlockStatus(Vec<BlockExtent>),
    /// For [`Op::ChangedSince`], in the same way.
    Changes(Vec<ChangeExtent>),
}

/// A piece of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Contents. Passed to the socket without being copied.
    Data(Bytes),
    /// So many zero bytes, which need not be sent if the protocol knows holes.
    Hole(u32),
}

impl Extent {
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

    pub(crate) fn is_hole(&self) -> bool {
        matches!(self, Self::Hole(_))
    }
}

/// Allocation of a piece of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockExtent {
    /// Bytes, not zero.
    pub len: u64,
    /// Not allocated: a write there may run out of space.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// A piece of the volume in comparison with what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeExtent {
    /// Bytes, not zero.
    pub len: u64,
    /// It may be different.
    pub changed: bool,
    /// It is different, and reads as zeroes.
    pub zero: bool,
}

/// Why an operation failed, as coarse as block protocols can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// The volume may not be changed through this frontend.
    #[error("operation not permitted")]
    NotPermitted,
    /// Contents could not be read or written.
    #[error("input/output error")]
    Io,
    /// A request that can never work: bad range, alignment, flag or command.
    #[error("invalid argument")]
    Invalid,
    /// The cluster is full, or the write goes past the end.
    #[error("no space left")]
    NoSpace,
    /// Too long to be answered in the form asked for.
    #[error("value too large")]
    TooLarge,
    /// Cannot be done the way asked for (fast zeroing).
    #[error("operation not supported")]
    NotSupported,
    /// The server is going away; try another connection.
    #[error("server is shutting down")]
    ShuttingDown,
}
