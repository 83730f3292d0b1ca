//! What nodes answer.

use bytes::Bytes;
use sheep_types::{Birth, Epoch, ObjectId, Version, Vid};
use thiserror::Error;

/// What a range of blocks of an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentState {
    /// Never written here: the parent's contents show through (zeros without a parent).
    Absent,
    /// Zeros.
    Zero,
    /// Bytes, carried beside the extents in order.
    Data,
    /// Lost, or damaged in the copy that was asked: of the contents only checksums are known, zero where not even these.
    Lost,
}

impl ExtentState {
    /// Whether checksums of its blocks are carried.
    pub fn has_sums(self) -> bool {
        matches!(self, Self::Data | Self::Lost)
    }
}

/// A run of blocks in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte within the object.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
    /// What is there.
    pub state: ExtentState,
}

/// The contents of a range: extents without gaps, and the bytes and checksums of the data ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadData {
    /// Version of the copy that was read.
    pub version: Version,
    /// In order, covering the range.
    pub extents: Vec<Extent>,
    /// One buffer per data extent.
    pub data: Vec<Bytes>,
    /// One CRC-32C per block of data and lost extents, in order.
    pub crcs: Vec<u32>,
}

/// What a copy holds, in one version, without the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObjectDigest {
    /// Birth of its vid.
    pub birth: Birth,
    /// Created, but its map entry is not confirmed yet.
    pub pending: bool,
    /// The copy's version is not known to be on all members; the mark goes with the data.
    pub hot: bool,
    /// Version of the copy.
    pub version: Version,
    /// In order, covering the whole object.
    pub extents: Vec<Extent>,
    /// One CRC-32C per block of data and lost extents, in order.
    pub crcs: Vec<u32>,
}

/// Blocks in a row of an object that was compared with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compared {
    /// Length in bytes, not zero.
    pub len: u32,
    /// What is there.
    pub state: ExtentState,
    /// What is there in the other object; absent if there is none.
    pub other: ExtentState,
    /// Both are data, and equal for sure. Without it they may differ.
    pub same: bool,
}

/// An object whose last write is not known to be on all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotObject {
    /// The object.
    pub object: ObjectId,
    /// Version of the answering node's copy.
    pub version: Version,
    /// Its map entry is not confirmed.
    pub pending: bool,
    /// Whether the answering node's copy is current in the header's epoch (else it only hints that the
    /// object exists).
    pub current: bool,
}

/// How a copy stands with respect to an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandingKind {
    /// Was current in that epoch, and the node has not restarted since.
    Live,
    /// Was current in that epoch, but the node has restarted since: it has all that was flushed.
    Restarted,
    /// The very disk incarnation of that epoch: it was up and its copy was never current then. Proves that
    /// nothing was acknowledged in that epoch.
    Never,
    /// Nothing can be said (another disk incarnation, not a member then, no record).
    Unknown,
    /// The copy is being made equal or validated at this moment, and how it will stand is open: ask again.
    Busy,
}

/// Answer to [`crate::Request::Standing`] for one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How it stands.
    pub kind: StandingKind,
    /// Version of the copy there is, if any.
    pub version: Option<Version>,
    /// Epoch the copy was last validated in, zero without a copy.
    pub validated: Epoch,
    /// The copy's last write is not known to be on all members. Who takes the copy for equal to its own because
    /// the versions are equal takes the mark over too.
    pub hot: bool,
    /// Blocks of the copy are lost, or known to be damaged.
    pub wounded: bool,
}

/// One line of an object listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The object.
    pub object: ObjectId,
    /// Birth of its vid.
    pub birth: Birth,
    /// Version of the lister's copy.
    pub version: Version,
    /// Epoch it was last validated in.
    pub validated: Epoch,
    /// It is current in the header's epoch: who has the same version needs to ask nobody else.
    pub live: bool,
    /// Its last write is not known to be on all members; see [`Standing::hot`].
    pub hot: bool,
}

/// Why a request was not done. The asker's next step follows from the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The receiver has applied a newer epoch: look at the present one and ask again.
    #[error("epoch is over, the present one is {0}")]
    StaleEpoch(Epoch),
    /// Another run of the receiver is there now.
    #[error("another incarnation")]
    WrongIncarnation,
    /// The lock has a newer generation, or none.
    #[error("lock generation is over")]
    StaleGeneration,
    /// The vid is a snapshot, dead or unknown at the receiver's applied index.
    #[error("vid is not writable")]
    NotWritable,
    /// The receiver is not in the object's set.
    #[error("not a member of the object's set")]
    NotMember,
    /// The copy is not validated yet; ask again later or elsewhere.
    #[error("copy is not current")]
    NotCurrent,
    /// The copy has another version than asked for.
    #[error("copy has another version")]
    OtherVersion,
    /// There is no copy.
    #[error("no copy")]
    NoCopy,
    /// The object that the new one is to begin as is lost.
    #[error("the object to be cloned is lost")]
    BaseLost,
    /// The disk is full.
    #[error("no space")]
    NoSpace,
    /// Stored data fails its checksum, or the disk gives a read error there. Of a write: its contents came damaged.
    #[error("stored data is damaged")]
    Damaged,
    /// The disk or the node is failing; its incarnation ends.
    #[error("store has failed")]
    StoreFailed,
    /// Too much is waiting here.
    #[error("busy")]
    Busy,
    /// The request makes no sense (range, alignment, checksum): a bug or a hostile peer.
    #[error("malformed request")]
    Malformed,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// The copy lacks earlier writes: it has this version (none: there is no copy).
    Behind(Option<Version>),
    /// Contents of a range.
    Read(ReadData),
    /// Hot objects, and whether more follow.
    Hot(Vec<HotObject>, bool),
    /// Standings in the order of the question.
    Standings(Vec<Standing>),
    /// Objects, and whether more follow.
    Listing(Vec<Listed>, bool),
    /// What a copy holds.
    Digest(Box<ObjectDigest>),
    /// What the blocks of an object are, in order, the whole object, in comparison with another one.
    Compared(Vec<Compared>),
    /// For which of the objects asked about it was done, in the order of the question.
    Which(Vec<bool>),
    /// What a sweep of a range has done.
    Swept {
        /// Objects that were deleted.
        dropped: u32,
        /// Objects that nobody reaches and that had to stay: somebody who is away may bring them back.
        left: u32,
        /// Vids of which something had to stay because a younger vid's copy has lost blocks that it may have.
        needed: Vec<Vid>,
        /// There is more in the range, from here on.
        next: Option<ObjectId>,
    },
    /// Not done.
    Refused(Refusal),
}
