//! What one node asks of another.

use bytes::Bytes;
use sheep_types::{Birth, Epoch, Member, NodeId, ObjectId, Version, Vid};
use smallvec::SmallVec;

/// Checksums of a write's blocks. Those of a small write are kept in place: it is cloned for each member.
pub type Crcs = SmallVec<[u32; 4]>;

/// The new contents of a range of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Bytes, a multiple of the block size, with one CRC-32C per block.
    Data {
        /// The bytes.
        payload: Bytes,
        /// One checksum per block of the payload, in order.
        crcs: Crcs,
    },
    /// This many bytes become zeros, a multiple of the block size; no data is stored.
    Zero {
        /// Length in bytes.
        len: u32,
    },
}

impl Body {
    /// Length of the range in bytes.
    pub fn len(&self) -> u32 {
        match self {
            Self::Data { payload, .. } => payload.len() as u32,
            Self::Zero { len } => *len,
        }
    }

    /// Whether the range is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which writes of a VDI its holder knows to be on all up members: every sequence of the header's
/// generation up to `upto`, except the listed ones (writes in flight). A copy whose version is
/// not covered is *hot*: a take-over must look at it. Versions of older generations are covered, for a
/// generation writes only after it has settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// Highest sequence.
    pub upto: u64,
    /// Sequences at or below `upto` that are not confirmed yet, ascending.
    pub except: SmallVec<[u64; 4]>,
}

impl Confirmed {
    /// Whether a write with this sequence, of the generation this mark belongs to, is known on all members.
    pub fn covers(&self, sequence: u64) -> bool {
        sequence <= self.upto && self.except.binary_search(&sequence).is_err()
    }
}

/// One versioned write to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteRequest {
    /// The object.
    pub object: ObjectId,
    /// Birth of the object's vid.
    pub birth: Birth,
    /// Version of the object before this write; `None` for the first write to the object in a generation
    /// (the copy is validated and settled, so whatever version it has is the right one).
    pub previous: Option<Version>,
    /// Version after this write.
    pub version: Version,
    /// The object is new: whatever copy there is with a lower version is an orphan and is replaced by an
    /// empty one before the write. The new copy is *pending* until its map entry is confirmed.
    pub create: bool,
    /// With `create`: the object begins as a clone of this vid's object of the same kind and index, block by block, from
    /// the receiver's own copy of that one, which must be current. Both vids are of one lineage.
    pub base: Option<Vid>,
    /// First byte within the object, a multiple of the block size.
    pub offset: u32,
    /// New contents.
    pub body: Body,
    /// Answer only after the write is durable.
    pub durable: bool,
    /// Confirmed writes of the VDI when this was sent.
    pub confirmed: Confirmed,
}

/// Data objects of one vid whose indexes follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRun {
    /// The vid.
    pub vid: Vid,
    /// First index.
    pub first: u32,
    /// Last index.
    pub last: u32,
}

/// What one node asks of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Gateway to replica: a versioned write. Answered [`crate::Reply::Done`] once the replica holds it in
    /// memory (or durably, if so asked), also when it has it already; [`crate::Reply::Behind`] with the
    /// copy's version when the previous write is missing there.
    Write(WriteRequest),
    /// Gateway to replica: read a range of blocks of a current copy.
    Read {
        /// The object.
        object: ObjectId,
        /// Its vid's birth.
        birth: Birth,
        /// First byte, a multiple of the block size.
        offset: u32,
        /// Length in bytes, a multiple of the block size.
        len: u32,
    },
    /// Gateway to replica: all writes of this vid answered before are durable when this is answered.
    Flush {
        /// The vid.
        vid: Vid,
    },
    /// Gateway to replica, first message of a generation: from the applied grant on, older generations are
    /// refused; lists the hot objects of the vid in id order.
    Settle {
        /// The vid.
        vid: Vid,
        /// Continue after this object (the list comes in pages).
        after: Option<ObjectId>,
    },
    /// Gateway or deciding replica to replica: make the local copy equal to the source's at this version, even
    /// if the local version is higher; answered when durable. Does not validate the copy.
    Equalize {
        /// The object.
        object: ObjectId,
        /// Its vid's birth.
        birth: Birth,
        /// Who has it; the receiver itself only flushes if it is the source.
        source: Member,
        /// The version the source said it has.
        version: Version,
    },
    /// Deciding replica to replica: every up member of the set has this version durably; the copy is
    /// validated in the header's epoch if it still has it.
    Adopt {
        /// The object.
        object: ObjectId,
        /// The version all have.
        version: Version,
    },
    /// Gateway to replica: everything of older generations is settled; and what is confirmed now.
    Settled {
        /// The vid.
        vid: Vid,
        /// Confirmed writes of the header's generation.
        confirmed: Confirmed,
    },
    /// Gateway to replica: the map entries of these objects are confirmed; they are no longer pending.
    ClearPending {
        /// The objects, all of one vid.
        objects: Vec<ObjectId>,
    },
    /// Gateway to replica: a settled, durable map says that the object is gone; a copy with a version up to
    /// this one is deleted.
    Remove {
        /// The object.
        object: ObjectId,
        /// Its vid's birth.
        birth: Birth,
        /// Copies with a higher version stay.
        version: Version,
    },
    /// Replica to replica: how does your copy of each object stand, with respect to epoch `at`?
    Standing {
        /// Which objects.
        objects: Vec<ObjectId>,
        /// The epoch asked about, not above the header's.
        at: Epoch,
    },
    /// Replica to replica: list your objects whose present set includes `member`, in id order.
    List {
        /// Who asks.
        member: NodeId,
        /// Continue after this object.
        after: Option<ObjectId>,
    },
    /// Replica to replica: which blocks of the object hold what, by checksum, in one version.
    Digest {
        /// The object.
        object: ObjectId,
        /// Its vid's birth.
        birth: Birth,
        /// Answer only from a copy with exactly this version; without, only from a current copy.
        version: Option<Version>,
    },
    /// Replica to replica: the contents of some ranges of a copy of exactly this version. Refused with
    /// [`crate::Refusal::OtherVersion`] when the copy has gone on.
    Blocks {
        /// The object.
        object: ObjectId,
        /// Its vid's birth.
        birth: Birth,
        /// The version.
        version: Version,
        /// First byte and length of each range, multiples of the block size, in order, not overlapping.
        ranges: Vec<(u32, u32)>,
        /// A client waits for it: the source's pace does not matter.
        urgent: bool,
    },
    /// Deciding replica to replica, for many objects at once what [`Request::Equalize`] is for one: these copies
    /// have these versions already and need only be durable. Answered [`crate::Reply::Which`].
    Secure {
        /// Objects and the version that each copy must have.
        objects: Vec<(ObjectId, Version)>,
    },
    /// Deciding replica to replica: [`Request::Adopt`] for many objects. Answered [`crate::Reply::Which`].
    AdoptAll {
        /// Objects and the version that all have.
        objects: Vec<(ObjectId, Version)>,
    },
    /// Gateway to replica: what the blocks of a current copy are, and which of them hold the same as those of another
    /// vid's object of the same kind and index, whose copy must be current too. Both vids are of one lineage. Answered
    /// [`crate::Reply::Compared`].
    Compare {
        /// The object.
        object: ObjectId,
        /// Its vid's birth.
        birth: Birth,
        /// The vid of the other object and its birth; none: there is nothing to compare with.
        other: Option<(Vid, Birth)>,
    },
    /// Sweeping gateway to replica: what these dead vids have in a range of indexes, and nobody reaches, is deleted.
    /// Answered [`crate::Reply::Swept`] when that is durable.
    Sweep {
        /// The vids. The receiver passes over those that are not dead.
        vids: Vec<Vid>,
        /// First index.
        first: u32,
        /// Last index.
        last: u32,
        /// Data objects that are reached, as runs of indexes of a vid: ascending, not overlapping.
        keep: Vec<ObjectRun>,
        /// Go on with this object.
        from: ObjectId,
    },
    /// Any node to any node: does the data path work?
    Ping,
    /// Gateway to replica: clients wait longer than they did before this recovery, so let it move less. Not answered.
    GiveWay,
}
