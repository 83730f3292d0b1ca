//! VDIs, vids, attachments and locks.

#[cfg(doc)]
use crate::LineageRecord;
use serde::{Deserialize, Serialize};
use sheep_types::{Birth, Generation, LogIndex, Member, NodeId, VdiId, Vid};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Stands between the name of a volume and the tag of its snapshot.
pub const SNAPSHOT_MARK: char = '@';

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
    /// The holder has drained and flushed everything and takes nothing further, for the snapshot of a group with
    /// this token.
    pub paused: Option<u64>,
    /// It is held to flatten the volume, and given back when somebody else asks for it.
    pub background: bool,
    /// Somebody else has asked for it.
    pub asked: bool,
    /// The holder is asked to pause for the snapshot of a group with this token, or has done so.
    pub pause_asked: Option<u64>,
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

/// What a snapshot was taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOf {
    /// The volume; it may be deleted since.
    pub vdi: VdiId,
    /// Index of the entry that took it.
    pub since: LogIndex,
}

/// A virtual disk, or a snapshot of one: a disk that nobody can write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VdiRecord {
    /// Stable identity: index of the creating entry; for a snapshot of a group, its place in the group in the upper
    /// 16 bits.
    pub id: VdiId,
    /// Unique name: without `@` for a volume, `volume@tag` for a snapshot.
    pub name: String,
    /// The volume that this is a snapshot of.
    pub snapshot_of: Option<SnapshotOf>,
    /// The vid that writes go to, or the snapshot's.
    pub vid: Vid,
    /// Size, bytes.
    pub size: u64,
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
    /// Generation of the last grant, or of the last rollback, which takes the place of one; zero if there was neither.
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
    /// It is a clone that is to get everything that it reads from its origin.
    pub flatten: bool,
}

impl VdiRecord {
    /// A new one that nobody has used, with vid 0.
    pub(crate) fn new(id: VdiId, name: String, size: u64, at: LogIndex, created_unix_ms: u64) -> Self {
        Self {
            id,
            name,
            snapshot_of: None,
            vid: Vid(0),
            size,
            cache: CacheMode::default(),
            created_unix_ms,
            attributes: BTreeMap::new(),
            // Nothing was ever written, or everything is settled.
            clean_since: Some(at),
            lock: None,
            last_generation: Generation(0),
            last_settled: Generation(0),
            ended: Vec::new(),
            attachments: Vec::new(),
            readers: Vec::new(),
            flatten: false,
        }
    }

    /// Held, and the holder began on settled copies or has settled them.
    pub fn is_settled(&self) -> bool {
        self.lock.is_some_and(|lock| lock.settled || lock.granted_clean)
    }

    /// Whether this is a snapshot.
    pub fn is_snapshot(&self) -> bool {
        self.snapshot_of.is_some()
    }

    /// The tag of a snapshot.
    pub fn tag(&self) -> Option<&str> {
        self.name.split_once(SNAPSHOT_MARK).map(|(_, tag)| tag)
    }

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

    /// What a gateway holds of it, for writing or reading.
    pub(crate) fn granted_to(&self, holder: Member) -> Option<Generation> {
        let lock = self.lock.filter(|lock| lock.holder == holder).map(|lock| lock.generation);
        let reader = || self.readers.iter().find(|reader| reader.holder == holder);
        lock.or_else(|| Some(Generation(reader()?.granted.0)))
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
    /// Deleted, but others may still reach objects of it.
    Dead {
        /// When it became read-only.
        since: LogIndex,
    },
}

/// One vid: a working copy, a snapshot, or a deleted one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VidRecord {
    /// Its number, never reused.
    pub vid: Vid,
    /// The VDI it belongs to; a dead one belongs to none.
    pub vdi: Option<VdiId>,
    /// First vid of its line of snapshots: what placement hashes, and the key of its [`LineageRecord`].
    pub lineage: Vid,
    /// Index of the entry that created it; stands in every object's header.
    pub birth: Birth,
    /// The vid that it was made from; the next one further up when that is forgotten.
    pub parent: Option<Vid>,
    /// Working, snapshot or dead.
    pub kind: VidKind,
    /// Size, bytes.
    pub size: u64,
    /// What its map says nothing of is as in the origin of its lineage; otherwise zeros.
    pub inherits: bool,
    /// The map objects that exist, and under which vid's number each is kept. Shared between snapshots.
    pub maps: Arc<BTreeMap<u32, Vid>>,
}

impl VidRecord {
    /// A working one in a lineage of its own.
    pub(crate) fn new(vid: Vid, vdi: VdiId, birth: Birth, size: u64) -> Self {
        Self {
            vid,
            vdi: Some(vdi),
            lineage: vid,
            birth,
            parent: None,
            kind: VidKind::Working,
            size,
            inherits: false,
            maps: Arc::default(),
        }
    }

    /// Whether it is the contents of a VDI.
    pub fn is_alive(&self) -> bool {
        !matches!(self.kind, VidKind::Dead { .. })
    }
}
