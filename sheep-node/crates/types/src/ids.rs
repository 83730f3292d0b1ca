//! Names of things: nodes, clusters, configurations, places in the log, VDIs.

use core::fmt;
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

/// A node. Random, made with the node's store, and gone with it; never an address. Zero names nobody.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{:x}", self.0)
    }
}

/// A cluster. Random, made by the first entry of its log; clusters with different ids never merge.
/// Zero: the node belongs to no cluster yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

number! {
    /// One run of one node: counted up durably in the node's store before each start. A restart is a new
    /// incarnation, and what a copy held only in memory died with the old one.
    Incarnation, u64
}
number! {
    /// Number of a membership list in the replicated state; grows by one with every change.
    Epoch, u64
}
number! {
    /// Place of an entry in the global log, from 1.
    LogIndex, u64
}
number! {
    /// Number of a command of one origin (node, incarnation), from 1 without gaps.
    CommandSeq, u64
}
number! {
    /// A virtual disk image's working vid or snapshot, never reused. Below 2^31; zero names none.
    Vid, u32
}
number! {
    /// Stable identity of a virtual disk: the log index of the entry that created it. A snapshot changes a
    /// disk's vid, never its `VdiId`.
    VdiId, u64
}
number! {
    /// Log index of the entry that created a vid; part of every object's header.
    Birth, u64
}
number! {
    /// Log index of the grant of a lock. Every grant is a new generation; zero is "never locked".
    Generation, u64
}

/// Identifier of a ring configuration: a number larger than any its members had seen, and the
/// representative that formed it. Totally ordered and never reused, across all rings and restarts.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConfigId {
    /// The ring sequence number.
    pub number: u64,
    /// The member that formed the configuration.
    pub representative: NodeId,
}

impl fmt::Display for ConfigId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.number, self.representative)
    }
}

impl fmt::Debug for ConfigId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.number, self.representative.0)
    }
}

/// A term of the log is the identifier of the configuration that gives the global order.
pub type Term = ConfigId;

/// A place in the log. It counts or is applied only where the hash chain agrees, so it carries the checksum
/// of the entry, which covers the entry and its predecessor's checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Term in which the entry was first appended.
    pub term: Term,
    /// Its index.
    pub index: LogIndex,
    /// Hash chain value at the entry.
    pub checksum: u64,
}

impl Place {
    /// Order of logs: the better log has the higher last term, then the higher index.
    pub fn rank(&self) -> (Term, LogIndex) {
        (self.term, self.index)
    }
}

/// A node in one of its runs, as configurations and epochs list it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
}
