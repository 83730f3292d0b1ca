//! What scrubbing tells.

use core::time::Duration;
use sheep_types::{NodeId, ObjectId};

/// An order to the scrub of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubOrder {
    /// Begin a pass now, unless one is under way; ends a pause.
    Start,
    /// Stop where it is, until told otherwise or restarted.
    Pause,
    /// End a pause.
    Resume,
}

/// How far scrubbing is. What is counted "ever" is counted since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// A pass is under way.
    pub running: bool,
    /// It was told to pause.
    pub paused: bool,
    /// Objects looked at in this pass, or in the last one.
    pub objects: u64,
    /// Objects that the store has.
    pub objects_total: u64,
    /// Objects of this pass that are to be looked at once more, because they were being written or recovered.
    pub objects_again: u64,
    /// Complete passes ever.
    pub passes: u64,
    /// When the last complete pass ended, since the Unix epoch; this one survives restarts.
    pub last_pass: Option<Duration>,
    /// Objects looked at ever.
    pub objects_ever: u64,
    /// Bytes read ever.
    pub bytes_ever: u64,
    /// Copies found with a block that fails its checksum or can't be read, by scrubbing or by a client's read.
    pub damaged: u64,
    /// Copies whose contents were not what most copies of the same version have.
    pub mismatches: u64,
    /// Copies that lacked writes that all should have.
    pub behind: u64,
    /// Copies of this node that were made good.
    pub repaired: u64,
    /// Copies that nobody has better.
    pub unrepairable: u64,
    /// Objects whose copies differ, and nobody can say which is right.
    pub unresolved: u64,
    /// Objects that never came to rest during a pass.
    pub skipped: u64,
    /// Copies of this node that are known to be damaged now.
    pub damaged_now: u64,
    /// Copies of this node with blocks that are lost: no copy had them when this one was made.
    pub lost_objects: u64,
    /// These blocks.
    pub lost_blocks: u64,
}

/// Something that an operator should know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A block of the own copy fails its checksum, or can't be read.
    Damaged(ObjectId),
    /// The own copy is not what most have.
    Mismatch(ObjectId),
    /// The own copy lacks writes that all should have.
    Behind(ObjectId),
    /// A copy was made good.
    Repaired(ObjectId),
    /// Nobody has a better copy.
    Unrepairable(ObjectId),
    /// The copies on these nodes differ, and nobody can say which is right.
    Unresolved(ObjectId, Vec<NodeId>),
    /// Nobody has these parts of the object, as offsets and lengths in bytes.
    BlocksLost(ObjectId, Vec<(u32, u32)>),
    /// No copy of the object can be trusted.
    Lost(ObjectId),
}
