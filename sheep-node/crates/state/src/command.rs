//! Entries of the log and the commands in them.

use crate::{AccessMode, Addresses, CacheMode, DiskRecord, Role, Settings};
use serde::{Deserialize, Serialize};
use sheep_types::{
    ClusterId, CommandSeq, ConfigId, Epoch, Generation, Geometry, Incarnation, LogIndex, Member, NodeId,
    VdiId, Vid,
};
use std::collections::BTreeMap;

/// The first entry of a log: makes the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// Random, not zero.
    pub cluster: ClusterId,
    /// Sizes of objects.
    pub geometry: Geometry,
    /// First settings.
    pub settings: Settings,
    /// First voters; odd.
    pub voters: Vec<NodeId>,
}

/// A committed entry, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Makes the cluster; index 1 only.
    Genesis(Genesis),
    /// A term starts in this configuration.
    Install {
        /// The term.
        term: ConfigId,
        /// Everybody in the configuration that orders it.
        members: Vec<Member>,
    },
    /// An entry that this version does not understand: takes its index and changes nothing.
    Unknown,
    /// The list of voters is replaced.
    Voters {
        /// The new list.
        voters: Vec<NodeId>,
    },
    /// A command of a node.
    Command {
        /// Who ordered it.
        origin: Member,
        /// Its number at the origin, from 1.
        seq: CommandSeq,
        /// What to do.
        command: Command,
    },
}

/// What a node says of itself when it comes up. It is about the origin of the command and nobody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUp {
    /// What it does.
    pub role: Role,
    /// Host name.
    pub name: String,
    /// Failure domain, or empty.
    pub zone: String,
    /// Share of objects, by capacity; not zero for storage nodes.
    pub weight: u32,
    /// Where it is.
    pub addresses: Addresses,
    /// Data shards.
    pub shards: u16,
    /// Bytes it can store.
    pub capacity: u64,
    /// Its disks.
    pub disks: Vec<DiskRecord>,
    /// If the state showed this very run down or out: since when. The command does nothing if the node has gone
    /// down anew in the meantime.
    pub seen_down_since: Option<LogIndex>,
}

/// What a new VDI looks like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVdi {
    /// Unique name.
    pub name: String,
    /// Size, bytes; a multiple of 512.
    pub size: u64,
    /// Copies, or the cluster's setting.
    pub copies: Option<u8>,
    /// Least copies for writes, or the cluster's setting (at most `copies`).
    pub min_copies: Option<u8>,
    /// When writes become durable.
    pub cache: CacheMode,
    /// Free attributes.
    pub attributes: BTreeMap<String, String>,
    /// Wall-clock time at the client, milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// The state of a VDI that a command was made under. If it is another when the command is applied, the
/// command does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guard {
    /// The origin holds the lock with this generation.
    Held(Generation),
    /// Nobody holds it, and it is settled.
    ClosedClean,
    /// Nobody holds it, and the last grant was this one (zero: none); it need not be settled. Only for
    /// deletion and rollback.
    Closed(Generation),
    /// Somebody, not necessarily the origin, holds the lock with this generation and has paused for the snapshot with
    /// this token. Only for snapshots.
    Paused {
        /// Of the holder.
        generation: Generation,
        /// Of the group.
        token: u64,
    },
}

/// A snapshot to be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotItem {
    /// The volume.
    pub vdi: VdiId,
    /// What it was like.
    pub guard: Guard,
    /// The snapshot's name is the volume's, `@` and this.
    pub tag: String,
    /// Free attributes of the snapshot.
    pub attributes: BTreeMap<String, String>,
    /// Wall-clock time at the client, milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// A dead vid that was swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweptVid {
    /// The vid.
    pub vid: Vid,
    /// Nobody in the frontier reaches anything of it: it can be forgotten, and what is left of it with it.
    pub empty: bool,
}

/// What a clone looks like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneVdi {
    /// The snapshot that it begins with.
    pub snapshot: VdiId,
    /// Unique name.
    pub name: String,
    /// Size, bytes: at least the snapshot's, which is meant if there is none.
    pub size: Option<u64>,
    /// Copies, or as many as the snapshot has.
    pub copies: Option<u8>,
    /// Least copies for writes, or as the snapshot (at most `copies`).
    pub min_copies: Option<u8>,
    /// When writes become durable.
    pub cache: CacheMode,
    /// Free attributes.
    pub attributes: BTreeMap<String, String>,
    /// Wall-clock time at the client, milliseconds since 1970.
    pub created_unix_ms: u64,
}

/// What a node may order. Everything conditional names what its origin saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Bytes that this version does not understand; takes its number and is refused.
    Unknown,
    /// The origin is up in this run. Proposed after each new term in which the state shows otherwise.
    NodeUp(NodeUp),
    /// The origin's disks changed, for instance because one failed.
    SetDisks {
        /// All its disks.
        disks: Vec<DiskRecord>,
    },
    /// How full the origin is.
    Usage {
        /// Bytes it can store.
        capacity: u64,
        /// Bytes it stores.
        used: u64,
    },
    /// A node's weight is set, or what it announced counts again.
    SetWeight {
        /// The node.
        node: NodeId,
        /// Share of objects, or `None` for what the node announced.
        weight: Option<u32>,
    },
    /// A node's data moves off, or the node stays after all.
    NodeLeaving {
        /// The node.
        node: NodeId,
        /// Begin or call off.
        leaving: bool,
    },
    /// A node is forgotten.
    NodeRemove {
        /// The node.
        node: NodeId,
        /// Also if that may lose copies.
        force: bool,
    },
    /// A node that is down gives up its place in the hash ring.
    ProposeOut {
        /// The node.
        node: NodeId,
        /// Its run, as seen.
        incarnation: Incarnation,
        /// Since when it was seen down.
        down_since: LogIndex,
        /// An operator wants it: the limits for automatic proposals do not hold.
        by_operator: bool,
    },
    /// The origin holds all it must hold in this epoch, validated and durable.
    Recovered {
        /// The epoch.
        epoch: Epoch,
    },
    /// The origin gets no answer on the data path of a node whose ring traffic works.
    Report {
        /// The other node.
        suspect: Member,
        /// The epoch, as seen.
        epoch: Epoch,
    },
    /// The origin has tested the node of a report.
    ReportResult {
        /// Index of the report.
        report: LogIndex,
        /// Whether it answered.
        reachable: bool,
    },
    /// Time is up: those who have not tested count as having reached it.
    CloseReport {
        /// Index of the report.
        report: LogIndex,
    },
    /// All settings are replaced.
    ChangeSettings {
        /// The new ones.
        settings: Settings,
        /// Index of the last change, as seen; so that two operators do not undo each other's change unseen.
        seen: LogIndex,
    },
    /// A VDI is made.
    CreateVdi(CreateVdi),
    /// A VDI is deleted with all its data.
    DeleteVdi {
        /// The VDI.
        vdi: VdiId,
        /// What it was like; not `Held`.
        guard: Guard,
    },
    /// A VDI gets another size.
    ResizeVdi {
        /// The VDI.
        vdi: VdiId,
        /// New size, bytes.
        size: u64,
        /// What it was like.
        guard: Guard,
        /// Allow a smaller size; what lay beyond must have been discarded under the generation that `Closed` names.
        shrink: bool,
    },
    /// A VDI gets another name.
    RenameVdi {
        /// The VDI.
        vdi: VdiId,
        /// New name.
        name: String,
    },
    /// An attribute is set or removed.
    SetAttribute {
        /// The VDI.
        vdi: VdiId,
        /// Its key.
        key: String,
        /// Its value, or `None` to remove it.
        value: Option<String>,
    },
    /// Copies of a VDI and its snapshots change; makes an epoch, because sets of objects change.
    SetCopies {
        /// The VDI.
        vdi: VdiId,
        /// Copies.
        copies: u8,
        /// Least copies for writes.
        min_copies: u8,
    },
    /// A VDI is made available to a node.
    Attach {
        /// The VDI.
        vdi: VdiId,
        /// The node of the gateway.
        node: NodeId,
        /// What it may do.
        mode: AccessMode,
        /// Allow a second node beside another one that may write (a VM migrates).
        share: bool,
    },
    /// An attachment ends, and with it its lock.
    Detach {
        /// The VDI.
        vdi: VdiId,
        /// Index of the attachment.
        attachment: LogIndex,
    },
    /// The origin asks for the right to serve a VDI.
    Lock {
        /// The VDI.
        vdi: VdiId,
        /// Index of its attachment; `None` only if the VDI has none.
        attachment: Option<LogIndex>,
        /// Writing or shared reading.
        mode: AccessMode,
        /// "Writer = me": the generation of another attached node's lock that this one ends.
        take_from: Option<Generation>,
    },
    /// The holder has stopped: drained, flushed, nothing more will be sent.
    Unlock {
        /// The VDI.
        vdi: VdiId,
        /// Generation, or the index of the grant for a reader.
        generation: Generation,
        /// All copies are equal and durable and the maps complete.
        clean: bool,
    },
    /// A lock or a shared reader is ended from outside.
    Revoke {
        /// The VDI.
        vdi: VdiId,
        /// Generation, or the index of the grant for a reader.
        generation: Generation,
    },
    /// The node of an ended lock says that it has stopped: nobody needs to wait for it.
    ConfirmEnded {
        /// The VDI.
        vdi: VdiId,
        /// The ended generation.
        generation: Generation,
    },
    /// The holder has waited for all former holders and has settled.
    MarkSettled {
        /// The VDI.
        vdi: VdiId,
        /// Its generation.
        generation: Generation,
    },
    /// Map objects of a vid exist.
    MapExists {
        /// The vid.
        vid: Vid,
        /// Their indexes.
        maps: Vec<u32>,
        /// Generation of the holder.
        generation: Generation,
    },
    /// Snapshots are taken, of several volumes at one instant: all, or none.
    Snapshot {
        /// Of what; each volume once.
        items: Vec<SnapshotItem>,
    },
    /// The holder, which was [asked](Self::AskPause), has drained and flushed everything, map entries included, and takes
    /// nothing further until it sees, in the order, the snapshot with this token or [`Resume`](Self::Resume).
    Pause {
        /// The volume.
        vdi: VdiId,
        /// Generation of the holder.
        generation: Generation,
        /// Of the group.
        token: u64,
    },
    /// A pause ends without a snapshot; anybody may say so.
    Resume {
        /// The volume.
        vdi: VdiId,
        /// Generation of the holder.
        generation: Generation,
        /// Of the group.
        token: u64,
    },
    /// A volume is made that begins with the contents of a snapshot.
    CloneVdi(CloneVdi),
    /// A closed and clean volume gets the contents of one of its snapshots again.
    Rollback {
        /// The volume.
        vdi: VdiId,
        /// Its snapshot.
        snapshot: VdiId,
        /// What the volume was like: `ClosedClean`, or better `Closed`, which a later use of the volume does not fulfil;
        /// it must be clean in any case.
        guard: Guard,
    },
    /// The holder has replaced entries of its map, durable and confirmed on all members, that named objects of these
    /// dead vids. Said once.
    Replaced {
        /// The volume.
        vdi: VdiId,
        /// Generation of the holder.
        generation: Generation,
        /// The vids; those that are not dead are passed over. None: it may have been objects of any.
        vids: Vec<Vid>,
    },
    /// The origin, a storage node, has swept dead vids: removed from all members what nobody in their frontiers
    /// reaches. Best all at once that have the same frontier.
    Swept {
        /// The vids.
        vids: Vec<SweptVid>,
        /// Index of the state that the frontiers were taken from. What became due later is still due.
        seen: LogIndex,
    },
    /// A clone is to get everything that it reads from its origin, or is not any more. Whoever holds it does that; while
    /// nobody does, a storage node opens it for the purpose.
    Flatten {
        /// The clone.
        vdi: VdiId,
        /// Begin or call off.
        wanted: bool,
    },
    /// The origin asks for the right to write a volume that it was asked to flatten, until somebody else asks for it.
    LockToFlatten {
        /// The volume.
        vdi: VdiId,
    },
    /// Who holds the volume only to flatten it is to close it.
    Yield {
        /// The volume.
        vdi: VdiId,
    },
    /// The map of a clone has no absent block, no partial entry and no entry of another lineage left: it does not read
    /// through its origin any more.
    Flattened {
        /// The clone.
        vdi: VdiId,
        /// Generation of the holder.
        generation: Generation,
    },
    /// The holder is asked to pause for the snapshot of a group, one at a time; anybody may ask.
    #[allow(missing_docs)]
    AskPause { vdi: VdiId, generation: Generation, token: u64 },
    /// Attributes are set and removed together, if those that are named are as expected; otherwise nothing changes. What
    /// is `None` is not there.
    #[allow(missing_docs)]
    ChangeAttributes {
        vdi: VdiId,
        expected: BTreeMap<String, Option<String>>,
        changes: BTreeMap<String, Option<String>>,
    },
}
