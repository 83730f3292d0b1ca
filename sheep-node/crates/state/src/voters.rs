//! Automatic choice of voters. The choice is only proposed from here; the log decides when a change may be
//! appended, and that a new voter's log is near the head.

use crate::{ClusterState, NodeRecord, NodeState, Role};
use sheep_types::NodeId;
use std::collections::BTreeMap;

impl ClusterState {
    /// The list of voters that should replace the present one, sorted, or `None` if that is right.
    ///
    /// One voter stays alone until three nodes can vote, then there are three at once: two voters would stop
    /// when either dies. The number is odd and grows by two up to the setting. A voter that is out, removed or
    /// leaving is replaced, one at a time; one that is only down never is, because voters that were replaced for
    /// being down could not come back as a majority. Where nobody can take the place of one that goes for good,
    /// another one gives up its vote with it: of five with four left no more may fail than of three, and the last
    /// two of three would stop when either dies.
    pub fn desired_voters(&self) -> Option<Vec<NodeId>> {
        if !self.settings.automatic_voters || self.voters.is_empty() {
            return None;
        }
        let most = usize::from(self.settings.max_voters);
        let gone: Vec<NodeId> =
            self.voters.iter().copied().filter(|node| self.is_gone_as_voter(*node)).collect();
        let staying: Vec<NodeId> = self.voters.iter().copied().filter(|node| !gone.contains(node)).collect();
        let mut next = self.voters.clone();
        if self.voters.len() > most {
            // The setting was lowered.
            self.drop_two(&mut next, &gone);
        } else if let Some(lost) = gone.first() {
            if let Some(candidate) = self.best_candidate(&next) {
                next.retain(|node| node != lost);
                next.push(candidate);
            } else if next.len() >= 3 && gone.iter().any(|node| self.goes_for_good(*node))
                || next.len() > 3 && gone.len() >= 2
            {
                self.drop_two(&mut next, &gone);
            }
        } else if next.len() + 2 <= most && staying.len() == next.len() {
            self.grow_by_two(&mut next);
        }
        next.sort_unstable();
        (next != self.voters).then_some(next)
    }

    /// Whether a node may be made a voter: it stores or is a witness, is up, and is to stay.
    fn can_become_voter(&self, record: &NodeRecord) -> bool {
        record.role != Role::Gateway && record.state == NodeState::Up && record.leaving_since.is_none()
    }

    fn is_gone_as_voter(&self, node: NodeId) -> bool {
        let out = |record: &NodeRecord| matches!(record.state, NodeState::Out { .. });
        self.goes_for_good(node) || self.node(node).is_some_and(out)
    }

    /// Somebody wants this node to go. A first voter that has not come up yet is not known as a node, and not gone.
    fn goes_for_good(&self, node: NodeId) -> bool {
        self.removed_voters.contains(&node)
            || self.node(node).is_some_and(|record| record.leaving_since.is_some())
    }

    /// The zone with the fewest voters first, then the lowest id.
    fn best_candidate(&self, voters: &[NodeId]) -> Option<NodeId> {
        let load = self.voters_per_zone(voters);
        self.nodes
            .values()
            .filter(|record| self.can_become_voter(record) && !voters.contains(&record.node))
            .min_by_key(|record| (load.get(record.zone.as_str()).copied().unwrap_or(0), record.node))
            .map(|record| record.node)
    }

    fn grow_by_two(&self, voters: &mut Vec<NodeId>) {
        let mut more = voters.clone();
        for _ in 0..2 {
            match self.best_candidate(&more) {
                Some(candidate) => more.push(candidate),
                // An even number would be no better than one less.
                None => return,
            }
        }
        *voters = more;
    }

    /// Drops two: gone ones first, then from the fullest zones, the highest id first.
    fn drop_two(&self, voters: &mut Vec<NodeId>, gone: &[NodeId]) {
        for _ in 0..2 {
            let load = self.voters_per_zone(voters);
            let zone = |node: &NodeId| self.node(*node).map_or("", |record| record.zone.as_str());
            let worst = voters
                .iter()
                .copied()
                .max_by_key(|node| (gone.contains(node), load.get(zone(node)).copied().unwrap_or(0), *node));
            voters.retain(|node| Some(*node) != worst);
        }
    }

    /// Voters per labelled zone; a node without one is a zone of its own.
    fn voters_per_zone(&self, voters: &[NodeId]) -> BTreeMap<&str, usize> {
        let mut load = BTreeMap::new();
        for record in
            voters.iter().filter_map(|node| self.node(*node)).filter(|record| !record.zone.is_empty())
        {
            *load.entry(record.zone.as_str()).or_insert(0) += 1;
        }
        load
    }
}
