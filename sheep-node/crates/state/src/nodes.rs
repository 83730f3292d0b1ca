//! Nodes as the replicated state knows them.

use serde::{Deserialize, Serialize};
use sheep_types::{Epoch, Incarnation, LogIndex, Member, NodeId};
use std::net::SocketAddr;

/// What a node does in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Stores objects, may vote, and is a gateway too.
    Storage,
    /// Serves VDIs, stores nothing, never votes, is in no epoch.
    Gateway,
    /// Votes and keeps the log, stores no objects, is in no epoch.
    Witness,
}

/// Why a node is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownCause {
    /// It was not in the configuration that an install entry lists.
    Left,
    /// It was listed with another incarnation: its former run is over.
    Restarted,
    /// Its data path does not work, as reports decided.
    Reported,
}

/// State of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Running with the recorded incarnation.
    Up,
    /// Not running, or not with the recorded incarnation; keeps its place in the hash ring.
    Down {
        /// Index of the entry that said so.
        since: LogIndex,
        /// Why.
        cause: DownCause,
    },
    /// Running and serving, but its data is moving off.
    Leaving,
    /// Down for so long that its place in the hash ring was given away; in no epoch.
    Out {
        /// Index of the entry that said so.
        since: LogIndex,
        /// First epoch without it.
        epoch: Epoch,
    },
}

impl NodeState {
    /// Whether the node runs: up or leaving.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Up | Self::Leaving)
    }
}

/// State of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DiskState {
    /// In use.
    Up,
    /// Failed or taken away: what it held is not current.
    Failed,
    /// Not in use any more, and empty: what it held is on other disks.
    Empty,
}

/// One disk or directory of a storage node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Random identity, made with the disk's contents.
    pub id: u64,
    /// Its own run: ends with a failed flush or a replacement. Only the very same incarnation may say that a
    /// copy was never current.
    pub incarnation: Incarnation,
    /// Whether it works.
    pub state: DiskState,
    /// Share of the node's objects, relative to its other disks.
    pub weight: u32,
}

/// Where a node can be reached. Addresses change; the node id does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Data path, in order of preference.
    pub data: Vec<SocketAddr>,
    /// Ring traffic.
    pub ring: Vec<SocketAddr>,
    /// Control interface.
    pub grpc: Vec<SocketAddr>,
    /// Metrics and health.
    pub http: Vec<SocketAddr>,
}

/// What the replicated state knows of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node.
    pub node: NodeId,
    /// Its newest run known here.
    pub incarnation: Incarnation,
    /// What it does.
    pub role: Role,
    /// Host name, for people.
    pub name: String,
    /// Failure domain; an empty one means that the node is a zone of its own.
    pub zone: String,
    /// Share of objects that the node announced.
    pub weight: u32,
    /// Share ordered by an operator, or because the node is too full; overrides `weight`.
    pub weight_override: Option<u32>,
    /// Where it is.
    pub addresses: Addresses,
    /// Data shards: a connection per shard.
    pub shards: u16,
    /// Bytes it can store.
    pub capacity: u64,
    /// Bytes it stores, as last reported.
    pub used: u64,
    /// Up, down, leaving, out.
    pub state: NodeState,
    /// The epoch that began its leaving.
    pub leaving_since: Option<Epoch>,
    /// Its disks, by id.
    pub disks: Vec<DiskRecord>,
    /// Index of the entry that made it known.
    pub joined: LogIndex,
    /// Index of the entry that last brought it up.
    pub up_since: LogIndex,
    /// Newest epoch in which it holds everything it must.
    pub recovered: Epoch,
}

impl NodeRecord {
    /// The node in its recorded run.
    pub fn member(&self) -> Member {
        Member { node: self.node, incarnation: self.incarnation }
    }

    /// Share of objects it gets now: none while it leaves, and less while disks of it do not work.
    pub fn effective_weight(&self) -> u32 {
        if self.leaving_since.is_some() {
            return 0;
        }
        let weight = self.weight_override.unwrap_or(self.weight);
        let (all, up) = (weight_of(&self.disks, false), weight_of(&self.disks, true));
        if up == all || weight == 0 {
            return weight;
        }
        // The last working disk, however small, keeps the node in the ring.
        if up == 0 { 0 } else { scaled(weight, up, all) }
    }

    /// Whether one of its disks does not work, and was not given up either.
    pub fn has_failed_disk(&self) -> bool {
        self.disks.iter().any(|disk| disk.state == DiskState::Failed)
    }

    /// Whether exactly this run is up.
    pub fn is_up_as(&self, incarnation: Incarnation) -> bool {
        self.state.is_up() && self.incarnation == incarnation
    }
}

/// Weight of all disks of a list, or of those that work.
pub(crate) fn weight_of(disks: &[DiskRecord], working: bool) -> u64 {
    let counted = disks.iter().filter(|disk| !working || disk.state == DiskState::Up);
    counted.map(|disk| u64::from(disk.weight)).sum()
}

/// A weight times `share / of`; not zero.
pub(crate) fn scaled(weight: u32, share: u64, of: u64) -> u32 {
    let scaled = u128::from(weight) * u128::from(share) / u128::from(of.max(1));
    u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
}
