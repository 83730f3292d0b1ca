//! Settings of the control engine.

use core::time::Duration;
use sheep_log::LogConfig;
use sheep_state::{Addresses, DiskRecord, NodeUp, Role};
use sheep_totem::RingConfig;

/// What a node tells the cluster about itself.
#[derive(Clone, Debug)]
pub struct NodeProfile {
    /// What it does.
    pub role: Role,
    /// Host name, for people.
    pub name: String,
    /// Failure domain, or empty.
    pub zone: String,
    /// Share of objects; not zero for storage nodes.
    pub weight: u32,
    /// Where it can be reached.
    pub addresses: Addresses,
    /// Number of data shards.
    pub shards: u16,
    /// Bytes it can store.
    pub capacity: u64,
    /// Its disks.
    pub disks: Vec<DiskRecord>,
}

impl NodeProfile {
    pub(crate) fn announcement(&self) -> NodeUp {
        NodeUp {
            role: self.role,
            name: self.name.clone(),
            zone: self.zone.clone(),
            weight: self.weight,
            addresses: self.addresses.clone(),
            shards: self.shards,
            capacity: self.capacity,
            disks: self.disks.clone(),
            seen_down_since: None,
        }
    }
}

/// Settings of one node's control engine.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// The ring's timers and sizes.
    pub ring: RingConfig,
    /// The log's limits.
    pub log: LogConfig,
    /// What the node tells the cluster about itself.
    pub profile: NodeProfile,
    /// How often the engine looks whether something is to be proposed (voters, nodes that stay down).
    pub maintain_interval: Duration,
    /// How long the answer to a report of an unreachable node is waited for.
    pub report_timeout: Duration,
    /// Rule of the replicated state to break on purpose, for tests of the checkers.
    #[cfg(feature = "mutants")]
    pub state_mutant: Option<sheep_state::Mutant>,
}

impl ControlConfig {
    /// Defaults around the ring's timers.
    pub fn new(ring: RingConfig, profile: NodeProfile) -> Self {
        let token_loss = ring.token_loss;
        let log = LogConfig {
            lease: token_loss * 5,
            fetch_retry: token_loss / 10,
            fetch_timeout: token_loss * 3,
            ..LogConfig::default()
        };
        Self {
            ring,
            log,
            profile,
            maintain_interval: token_loss / 4,
            report_timeout: token_loss * 2,
            #[cfg(feature = "mutants")]
            state_mutant: None,
        }
    }
}
