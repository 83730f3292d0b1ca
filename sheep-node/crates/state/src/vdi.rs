//! VDIs, vids, attachments and locks.

use serde::{Deserialize, Serialize};
use sheep_types::{Birth, Epoch, Generation, LogIndex, Member, NodeId, VdiId, Vid};
use std::collections::{BTreeMap, BTreeSet};

/// When a write is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheMode {
    /// At the next FLUSH.
    #[default]
    WriteBack,
    /// Before it is answered.
    WriteThrough,
}

/// What an attachment or a lock allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AccessMode {
    /// Reading and writing, one holder.
    Write,
    /// Reading, shared with others; keeps the VDI from being deleted and from being written.
    Read,
}

/// A VDI made available to a node by an ordered entry. A migrating VM has two for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Index of the entry that made it; a lock request names it.
    pub index: LogIndex,
    /// The node whose gateway may ask for the lock.
    pub node: NodeId,
    /// What it may do.
    pub mode: AccessMode,
}

/// The right to write a VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The gateway in its run.
    pub holder: Member,
    /// Log index of the grant.
    pub generation: Generation,
    /// The attachment it was asked under, if the VDI is attached.
    pub attachment: Option<LogIndex>,
    /// The VDI was clean when the lock was granted: nothing to settle.
    pub granted_clean: bool,
    /// The holder has said that it settled.
    pub settled: bool,
}

/// A shared right to read a VDI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reader {
    /// The gateway in its run.
    pub holder: Member,
    /// Log index of the grant.
    pub granted: LogIndex,
    /// The attachment it was asked under, if the VDI is attached.
    pub attachment: Option<LogIndex>,
}

/// A lock that ended without its holder saying that it stopped. The holder may believe in it until its lease
/// runs out, so the next holder waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedLock {
    /// The gateway that held it. Node 0 stands for several forgotten ones.
    pub holder: Member,
    /// Its generation, or the index of the grant for a reader.
    pub generation: Generation,
    /// Index of the entry that ended it.
    pub at: LogIndex,
}

/// A number of copies that held until some epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastCopies {
    /// First epoch in which another number held.
    pub until: Epoch,
    /// The number before.
    pub copies: u8,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdiRecord {
    /// Stable identity: index of the creating entry.
    pub id: VdiId,
    /// Unique name.
    pub name: String,
    /// The vid that writes go to.
    pub vid: Vid,
    /// Size, bytes.
    pub size: u64,
    /// Copies of each object of the lineage.
    pub copies: u8,
    /// Copies below which writes wait.
    pub min_copies: u8,
    /// Former numbers of copies, oldest first, as far back as the epoch history goes.
    pub past_copies: Vec<PastCopies>,
    /// When writes become durable.
    pub cache: CacheMode,
    /// Wall-clock time of creation, milliseconds since 1970, as the creator said.
    pub created_unix_ms: u64,
    /// Free attributes, bounded.
    pub attributes: BTreeMap<String, String>,
    /// Set while all copies are known to be equal, durable and entered in the maps, and nobody writes.
    pub clean_since: Option<LogIndex>,
    /// The writer.
    pub lock: Option<Lock>,
    /// Generation of the last grant; zero if never locked.
    pub last_generation: Generation,
    /// Generation of the last holder that had settled, or had nothing to settle. What it and later holders
    /// created without a map entry is entered by the next one; what earlier ones left is not.
    pub last_settled: Generation,
    /// Locks that ended unconfirmed since the last holder settled, oldest first.
    pub ended: Vec<EndedLock>,
    /// Who may ask for a lock; nobody in particular while it is empty.
    pub attachments: Vec<Attachment>,
    /// Shared readers.
    pub readers: Vec<Reader>,
}

impl VdiRecord {
    /// Closed and clean: nobody holds it, and its copies are settled.
    pub fn is_clean(&self) -> bool {
        self.clean_since.is_some()
    }

    /// The entry after whose application `me` must wait one lease before it serves as the new holder, or
    /// `None` if it need not wait. A lock that an earlier run of `me` itself held needs no wait: its process is
    /// gone.
    pub fn wait_after(&self, me: NodeId) -> Option<LogIndex> {
        self.ended.iter().filter(|ended| ended.holder.node != me).map(|ended| ended.at).max()
    }

    /// Whether this is the present writer.
    pub fn is_held_by(&self, holder: Member, generation: Generation) -> bool {
        self.lock.is_some_and(|lock| lock.holder == holder && lock.generation == generation)
    }

    /// Number of copies that objects had in `epoch`.
    pub fn copies_at(&self, epoch: Epoch) -> u8 {
        self.past_copies.iter().find(|past| epoch < past.until).map_or(self.copies, |past| past.copies)
    }
}

/// What a vid is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VidKind {
    /// The VDI's present contents.
    Working,
    /// Read-only for ever, since the entry at this index.
    Snapshot {
        /// When it became read-only.
        since: LogIndex,
    },
    /// Deleted, but objects of it are still reached by others.
    Dead,
}

/// One vid: a working copy or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VidRecord {
    /// Its number, never reused.
    pub vid: Vid,
    /// The VDI it belongs to.
    pub vdi: VdiId,
    /// First vid of its line of snapshots: what placement hashes.
    pub lineage: Vid,
    /// Index of the entry that created it; stands in every object's header.
    pub birth: Birth,
    /// The vid that reads fall through to.
    pub parent: Option<Vid>,
    /// Number of vids whose parent this is.
    pub children: u32,
    /// Working, snapshot or dead.
    pub kind: VidKind,
    /// Size, bytes.
    pub size: u64,
    /// Indexes of the map objects that exist.
    pub maps: BTreeSet<u32>,
}
