//! What applying an entry gives.

use crate::EndedLock;
use serde::{Deserialize, Serialize};
use sheep_types::{CommandSeq, Epoch, Generation, LogIndex, Member, NodeId, VdiId, Vid};
use thiserror::Error;

/// Result of a command that did something, or had nothing left to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, or already so.
    Done,
    /// A VDI was made.
    Created {
        /// Its identity.
        vdi: VdiId,
        /// Its vid.
        vid: Vid,
    },
    /// Attached, now or already.
    Attached {
        /// The attachment.
        attachment: LogIndex,
    },
    /// The lock was granted.
    Locked {
        /// Its generation, or the index of the grant for a reader.
        generation: Generation,
        /// The VDI was clean: nothing to settle.
        clean: bool,
        /// Wait one lease after this entry was applied here, before serving.
        wait_after: Option<LogIndex>,
    },
    /// Snapshots were taken, in the order of the command.
    Snapshots(Vec<SnapshotMade>),
    /// A volume is paused, until the state after some later entry shows that it is not.
    Paused {
        /// Index of this entry.
        at: LogIndex,
    },
    /// A volume has the contents of a snapshot again.
    RolledBack {
        /// The vid that writes go to now.
        vid: Vid,
    },
    /// A report is open.
    Reported {
        /// Its index.
        report: LogIndex,
    },
}

/// A snapshot that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMade {
    /// Its identity.
    pub vdi: VdiId,
    /// Its vid, which was the volume's.
    pub vid: Vid,
    /// The volume.
    pub volume: VdiId,
    /// The vid that writes to the volume go to now.
    pub working: Vid,
}

/// Why a command did nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// Written by a newer version, or damaged before it was ordered.
    #[error("this version of Sheepdog does not understand the command")]
    Unknown,
    /// The origin's run is over: a newer one of the same node is known. An identity that comes back with an
    /// older store is refused for ever.
    #[error(
        "node has run as incarnation {known} since; this older run, or older copy of its store, is refused"
    )]
    OldIncarnation {
        /// Newest run known.
        known: u64,
    },
    /// What the origin saw no longer holds.
    #[error("the cluster has changed since the command was made")]
    StaleView,
    /// No such node.
    #[error("no node {0}")]
    NoSuchNode(NodeId),
    /// The node does not run, or not in this run.
    #[error("node {0} is not up in this run")]
    NodeNotUp(NodeId),
    /// It was removed, and would be back at once; after a restart it may join again.
    #[error("node {0} was removed in this run")]
    Removed(NodeId),
    /// The command is for storage nodes.
    #[error("node {0} stores nothing")]
    NotStorage(NodeId),
    /// A node cannot change its role.
    #[error("node {0} was known in another role; a role goes with the store it was made for")]
    RoleChanged(NodeId),
    /// Something in a node's announcement is out of range.
    #[error("node announcement: {0}")]
    BadNode(String),
    /// Removing the node could lose the last copy of something.
    #[error("node {0} may hold the last copy of some objects; remove it only by force")]
    NotDrained(NodeId),
    /// At least one storage node must take data.
    #[error("no storage node would be left to take data")]
    LastNode,
    /// Automatic limits: whole zone.
    #[error("all of zone {0} is down; a whole zone is taken out only by an operator")]
    WholeZone(String),
    /// Automatic limits: number of nodes.
    #[error("{out} of {total} storage nodes are out already; more are taken out only by an operator")]
    TooManyOut {
        /// Nodes that are out.
        out: u32,
        /// Storage nodes.
        total: u32,
    },
    /// A setting is out of range.
    #[error("setting {setting} {why}")]
    BadSetting {
        /// Which.
        setting: String,
        /// Why.
        why: String,
    },
    /// No such VDI.
    #[error("no such VDI")]
    NoSuchVdi,
    /// No such vid, or not one that can be written.
    #[error("vid {0} does not exist or is read-only")]
    NotWritable(Vid),
    /// The name is in use.
    #[error("a VDI of this name exists")]
    NameTaken {
        /// The VDI that has it.
        vdi: VdiId,
    },
    /// The name cannot be used.
    #[error("a name must be 1 to 255 printable bytes without @, and without spaces or slashes at its ends")]
    BadName,
    /// The size cannot be used.
    #[error("size {size} is not a multiple of 512 from {min} to {max} bytes")]
    BadSize {
        /// Asked for.
        size: u64,
        /// Least.
        min: u64,
        /// Most.
        max: u64,
    },
    /// Making a VDI smaller needs the flag, and the lock.
    #[error(
        "the VDI would shrink from {size} bytes; that must be asked for explicitly, by who holds its lock"
    )]
    WouldShrink {
        /// Present size.
        size: u64,
    },
    /// Redundancy cannot be used.
    #[error("copies must be 1 to 16, and min_copies at least 1 and at most copies")]
    BadCopies,
    /// Data whose only place would be on a node that is down would wait for it.
    #[error(
        "copies cannot be made fewer while storage node {0} is down: it may be the place of the ones that stay"
    )]
    CopiesAway(NodeId),
    /// The VDI is not in the state that the command was made under.
    #[error("the VDI's lock has changed hands since the command was made, or it is not closed and clean")]
    StaleGuard,
    /// Somebody else holds the lock.
    #[error("locked by node {}", .holder.node)]
    Locked {
        /// Who.
        holder: Member,
        /// Under which generation.
        generation: Generation,
    },
    /// Shared readers are there.
    #[error("in use by {0} shared readers")]
    InUseByReaders(u32),
    /// Shared readers, snapshots and the like need settled copies.
    #[error("the VDI was not closed cleanly; it must be opened for writing and closed once before")]
    NotClean,
    /// It is attached elsewhere.
    #[error("attached to node {0}")]
    Attached(NodeId),
    /// The lock request names no present attachment of this node and mode.
    #[error("the attachment named is not a present one of this node")]
    NotAttached,
    /// Snapshots stay as they are.
    #[error("this is a snapshot, which cannot be changed")]
    IsSnapshot,
    /// Clones are made of snapshots.
    #[error("this is not a snapshot")]
    NotASnapshot,
    /// A volume goes back to its own snapshots only.
    #[error("this is a snapshot of another volume")]
    NotItsSnapshot,
    /// Something is wrong with the list of a snapshot of several volumes.
    #[error("a snapshot names at least one volume, and each once")]
    BadGroup,
    /// A snapshot of another group is under way.
    #[error("the volume is paused for another snapshot")]
    Paused,
    /// An attribute is too large.
    #[error("attribute keys have 1 to 255 bytes, values at most 4096")]
    BadAttribute,
    /// A table is full.
    #[error("the cluster's limit of {limit} {what} is reached")]
    Limit {
        /// Of what.
        what: Limited,
        /// How many.
        limit: u64,
    },
    /// No such report, or it is decided.
    #[error("no such open report")]
    NoSuchReport,
    /// An index is out of range.
    #[error("map index {0} is beyond the largest volume")]
    BadMapIndex(u32),
}

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limited {
    /// VDIs of the cluster.
    Vdis,
    /// Vids ever used, or known at once.
    Vids,
    /// Vids of a lineage.
    LineageVids,
    /// Nodes of the cluster.
    Nodes,
    /// Attributes of a VDI.
    Attributes,
    /// Attachments of a VDI.
    Attachments,
    /// Shared readers of a VDI.
    Readers,
    /// Reports of unreachable nodes.
    Reports,
    /// Map objects in a command.
    Maps,
    /// Snapshots in a command.
    Snapshots,
    /// Vids in a command about replaced entries.
    Replaced,
    /// Vids in a command about sweeps.
    Swept,
    /// Changes of a VDI's copies that nodes have not yet followed.
    CopiesChanges,
    /// Volumes below each other.
    CloneDepth,
    /// Bytes of a command.
    CommandBytes,
}

impl core::fmt::Display for Limited {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Vdis => "VDIs",
            Self::Vids => "vids",
            Self::LineageVids => "snapshots of a volume, deleted ones included",
            Self::Nodes => "nodes",
            Self::Attributes => "attributes",
            Self::Attachments => "attachments",
            Self::Readers => "readers",
            Self::Reports => "reports",
            Self::Maps => "map objects",
            Self::Snapshots => "snapshots in one command",
            Self::Replaced | Self::Swept => "vids in one command",
            Self::CopiesChanges => "unrecovered changes of copies",
            Self::CloneDepth => "clones of clones in a row (one that is flattened begins anew)",
            Self::CommandBytes => "bytes in one command",
        })
    }
}

/// Answer to one command of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whose command.
    pub origin: Member,
    /// Which.
    pub seq: CommandSeq,
    /// What came of it.
    pub result: Result<Outcome, Refusal>,
}

/// What an entry changed, so that views are refreshed without comparing states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The new epoch, if the entry made one.
    pub epoch: Option<Epoch>,
    /// VDIs made, changed or deleted, without repetition.
    pub vdis: Vec<VdiId>,
    /// Vids made, changed or deleted, without repetition.
    pub vids: Vec<Vid>,
    /// Nodes whose record changed, without repetition.
    pub nodes: Vec<NodeId>,
    /// Locks and readers that ended without being confirmed.
    pub ended: Vec<(VdiId, EndedLock)>,
    /// Settings changed.
    pub settings: bool,
    /// Voters changed.
    pub voters: bool,
    /// Reports changed: look for new ones to test.
    pub reports: bool,
    /// Sweeps became due, or are due no more.
    pub sweeps: bool,
    /// Old epochs were dropped.
    pub history: bool,
}

/// Result of applying one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The answer, if the entry was a command that was not filtered as a duplicate.
    pub answer: Option<Answer>,
    /// What changed.
    pub changes: Changes,
}
