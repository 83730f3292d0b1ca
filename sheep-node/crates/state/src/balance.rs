//! A node that is much fuller than the others gets a smaller share of objects, by order, before it is full.

use crate::{ClusterState, NodeRecord, NodeState};
use sheep_types::NodeId;

/// A node this full, in percent, gives objects away,
const FULL: u64 = 85;
/// if the others are on average no fuller than this,
const ROOM: u64 = 75;
/// and gets the weight that makes it as full as this, supposed that fullness follows weight.
const TARGET: u64 = 75;

impl ClusterState {
    /// The fullest node that should get a smaller weight, and that weight. None while anything is being moved, for what
    /// the nodes say of their fullness then means little; and none where every node holds every object anyway.
    pub fn overfull_node(&self) -> Option<(NodeId, u32)> {
        let takes = |node: &&NodeRecord| {
            node.state == NodeState::Up && node.capacity > 0 && node.effective_weight() > 0
        };
        let nodes: Vec<&NodeRecord> = self.storage_nodes().filter(takes).collect();
        let moving = nodes.iter().any(|node| node.recovered < self.epoch());
        if moving || nodes.len() <= usize::from(self.settings().copies) {
            return None;
        }
        let fullness = |node: &NodeRecord| percent(node.used, node.capacity);
        let fullest = nodes.iter().max_by_key(|node| fullness(node))?;
        let others = || nodes.iter().filter(|node| node.node != fullest.node);
        let used = others().map(|node| node.used).fold(0, u64::saturating_add);
        let capacity = others().map(|node| node.capacity).fold(0, u64::saturating_add);
        let (full, weight) = (fullness(fullest), fullest.effective_weight());
        if full < FULL || percent(used, capacity) > ROOM || weight <= 1 {
            return None;
        }
        let less = u64::from(weight) * TARGET / full;
        Some((fullest.node, u32::try_from(less).unwrap_or(weight).max(1)))
    }
}

fn percent(used: u64, capacity: u64) -> u64 {
    u64::try_from(u128::from(used) * 100 / u128::from(capacity.max(1))).unwrap_or(u64::MAX)
}
