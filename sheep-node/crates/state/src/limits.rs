//! Bounds of the replicated state. What would exceed one is refused, so that neither a client nor a broken
//! peer can make every node's memory grow.

/// Most VDIs of a cluster.
pub const MAX_VDIS: usize = 1_000_000;
/// Longest name of a VDI, a node or a zone, bytes.
pub const MAX_NAME: usize = 255;
/// Most attributes of one VDI.
pub const MAX_ATTRIBUTES: usize = 64;
/// Longest attribute value, bytes; its key is bounded by [`MAX_NAME`].
pub const MAX_ATTRIBUTE_VALUE: usize = 4096;
/// Most nodes of a cluster, of all roles.
pub const MAX_NODES: usize = 4096;
/// Most nodes whose last incarnation and command are remembered, removed ones included.
pub const MAX_ORIGINS: usize = 4 * MAX_NODES;
/// Most disks of one node.
pub const MAX_DISKS: usize = 256;
/// Most addresses of one kind that a node may announce.
pub const MAX_ADDRESSES: usize = 16;
/// Most attachments of one VDI.
pub const MAX_ATTACHMENTS: usize = 256;
/// Most shared readers of one VDI.
pub const MAX_READERS: usize = 256;
/// Most ended locks that one VDI remembers until the next holder has settled.
pub const MAX_ENDED: usize = 16;
/// Most reports of unreachable nodes, open and decided.
pub const MAX_REPORTS: usize = 256;
/// Most map objects that one command may name.
pub const MAX_MAPS_PER_COMMAND: usize = 256;
/// Most former values of the lease setting that are remembered.
pub const MAX_PAST_LEASES: usize = 8;
/// Most copies of an object.
pub const MAX_COPIES: u8 = 16;
/// Most epochs that are remembered while nodes have not recovered; the oldest go first.
pub const MAX_EPOCHS: usize = 65_536;
/// Most changes of one VDI's number of copies that are remembered while nodes have not recovered.
pub const MAX_PAST_COPIES: usize = 64;
/// Most vids that are known at once, dead ones included.
pub const MAX_VIDS: usize = 4 * MAX_VDIS;
/// Most vids of one lineage that are known at once: a volume, its snapshots, and dead ones.
pub const MAX_LINEAGE_VIDS: u32 = 65_536;
/// Most snapshots that one command may take.
pub const MAX_SNAPSHOTS_PER_COMMAND: usize = 256;
/// Most vids of which one command may say that entries that named them were replaced.
pub const MAX_REPLACED_PER_COMMAND: usize = 256;
/// Most vids that one command may say were swept.
pub const MAX_SWEPT_PER_COMMAND: usize = 1024;
/// Largest weight of a node or disk.
pub const MAX_WEIGHT: u32 = 1 << 24;
/// Vids are below this: the top bit of a map entry is a flag, and the last two values beneath it name no vid.
pub const VID_LIMIT: u32 = (1 << 31) - 2;
/// Most volumes in a row of which each is a clone of the one before and not flattened: a read may have to look at the
/// map of each.
pub const MAX_CLONE_DEPTH: usize = 256;
