//! Commands about nodes.

use super::{Result, Step, is_printable};
use crate::limits::{MAX_ADDRESSES, MAX_DISKS, MAX_NODES, MAX_WEIGHT};
use crate::nodes::{scaled, weight_of};
use crate::{
    Addresses, ClusterState, DiskRecord, DiskState, Limited, NodeRecord, NodeState, NodeUp, Outcome, Refusal,
    Role,
};
use sheep_types::{Epoch, LogIndex, Member, NodeId, VdiId};
use std::sync::Arc;

impl ClusterState {
    pub(crate) fn node_up(&mut self, step: &mut Step, up: &NodeUp) -> Result {
        check_announcement(up)?;
        let Member { node, incarnation } = step.origin;
        if self.origins.is_removed(step.origin) {
            return Err(Refusal::Removed(node));
        }
        let Some(known) = self.node(node) else {
            if self.nodes.len() >= MAX_NODES {
                return Err(Refusal::Limit { what: Limited::Nodes, limit: MAX_NODES as u64 });
            }
            let record = new_record(step, up);
            self.removed_voters.remove(&node);
            Arc::make_mut(&mut self.nodes).insert(node, Arc::new(record));
            step.changes.nodes.push(node);
            return Ok(Outcome::Done);
        };
        if known.role != up.role {
            return Err(Refusal::RoleChanged(node));
        }
        let restarted = incarnation > known.incarnation;
        let was_up = known.state.is_up();
        let disks = with_missing(&up.disks, &known.disks);
        if let NodeState::Down { since, .. } | NodeState::Out { since, .. } = known.state
            && !restarted
            && up.seen_down_since != Some(since)
        {
            // It went down anew after it said that it was up: it must look again.
            return Err(Refusal::StaleView);
        }
        if restarted {
            // Its former run is over, and with it what that held.
            self.end_locks_of(step, node);
        }
        let came_up = restarted || !was_up;
        let at = step.at;
        self.edit_node(node, &mut step.changes, |record| {
            let state = if record.leaving_since.is_some() { NodeState::Leaving } else { NodeState::Up };
            let up_since = if came_up { at } else { record.up_since };
            *record = NodeRecord {
                incarnation,
                state,
                up_since,
                joined: record.joined,
                weight_override: record.weight_override,
                leaving_since: record.leaving_since,
                recovered: record.recovered,
                used: record.used,
                // Its disks may have changed since it began to run.
                weight: if restarted { up.weight } else { record.weight },
                disks,
                ..announced(node, up)
            };
        });
        if came_up {
            self.forget_reports_of(step, node);
        }
        Ok(Outcome::Done)
    }

    pub(crate) fn set_disks(&mut self, step: &mut Step, disks: &[DiskRecord]) -> Result {
        let node = self.require_storage(step.origin)?;
        check_disks(disks)?;
        self.edit_node(node, &mut step.changes, |record| {
            // Disks that are added or given up change what the node can hold; one that fails may come back.
            let (before, after) = (weight_of(&record.disks, false), weight_of(disks, false));
            if before > 0 && after > 0 && before != after {
                record.weight = scaled(record.weight, after, before).min(MAX_WEIGHT);
            }
            record.disks = sorted(disks);
        });
        Ok(Outcome::Done)
    }

    pub(crate) fn usage(&mut self, step: &mut Step, capacity: u64, used: u64) -> Result {
        let node = self.require_storage(step.origin)?;
        self.edit_node(node, &mut step.changes, |record| (record.capacity, record.used) = (capacity, used));
        Ok(Outcome::Done)
    }

    pub(crate) fn set_weight(&mut self, step: &mut Step, node: NodeId, weight: Option<u32>) -> Result {
        let record = self.storage(node)?;
        if weight.is_some_and(|weight| weight > MAX_WEIGHT) {
            return Err(Refusal::BadNode(format!("weights are at most {MAX_WEIGHT}")));
        }
        let gives_data = weight.unwrap_or(record.weight) > 0;
        if !gives_data && !self.another_takes_data(node) {
            return Err(Refusal::LastNode);
        }
        self.edit_node(node, &mut step.changes, |record| record.weight_override = weight);
        Ok(Outcome::Done)
    }

    pub(crate) fn node_leaving(&mut self, step: &mut Step, node: NodeId, leaving: bool) -> Result {
        let record = self.storage(node)?;
        if leaving == record.leaving_since.is_some() {
            return Ok(Outcome::Done);
        }
        if leaving && !self.another_takes_data(node) {
            return Err(Refusal::LastNode);
        }
        let next = Epoch(self.epoch().0 + 1);
        self.edit_node(node, &mut step.changes, |record| {
            record.leaving_since = leaving.then_some(next);
            record.state = match record.state {
                NodeState::Up | NodeState::Leaving if leaving => NodeState::Leaving,
                NodeState::Up | NodeState::Leaving => NodeState::Up,
                down @ (NodeState::Down { .. } | NodeState::Out { .. }) => down,
            };
        });
        Ok(Outcome::Done)
    }

    pub(crate) fn node_remove(&mut self, step: &mut Step, node: NodeId, force: bool) -> Result {
        let record = self.node(node).ok_or(Refusal::NoSuchNode(node))?;
        if record.role == Role::Storage && !force && !self.is_drained(record) {
            return Err(Refusal::NotDrained(node));
        }
        let incarnation = record.incarnation;
        self.end_locks_of(step, node);
        let attached: Vec<VdiId> = self.vdis_used_by(node).collect();
        for vdi in attached {
            self.edit_vdi(vdi, &mut step.changes, |record| {
                record.attachments.retain(|attachment| attachment.node != node);
            });
        }
        // Its last command stays known to the duplicate filter, so that an old copy of its store cannot return.
        Arc::make_mut(&mut self.origins).remove(node, incarnation);
        Arc::make_mut(&mut self.nodes).remove(&node);
        step.changes.nodes.push(node);
        if self.voters.contains(&node) {
            self.removed_voters.insert(node);
        }
        Ok(Outcome::Done)
    }

    pub(crate) fn propose_out(
        &mut self,
        step: &mut Step,
        member: Member,
        down_since: LogIndex,
        by_operator: bool,
    ) -> Result {
        let record = self.storage(member.node)?;
        let still = matches!(record.state, NodeState::Down { since, .. } if since == down_since);
        if !still || record.incarnation != member.incarnation {
            return Err(Refusal::StaleView);
        }
        if !by_operator {
            self.check_automatic_out(record)?;
        }
        let (since, epoch) = (step.at, Epoch(self.epoch().0 + 1));
        self.edit_node(member.node, &mut step.changes, |record| {
            record.state = NodeState::Out { since, epoch }
        });
        Ok(Outcome::Done)
    }

    /// A broken switch must not make the rest of the cluster copy everything: never a whole zone of more than
    /// one node, never more than a quarter of the nodes.
    fn check_automatic_out(&self, record: &NodeRecord) -> Result<()> {
        let peers =
            || self.storage_nodes().filter(|peer| peer.zone == record.zone && peer.node != record.node);
        let labelled = !record.zone.is_empty();
        if labelled && peers().next().is_some() && !peers().any(|peer| peer.state.is_up()) {
            return Err(Refusal::WholeZone(record.zone.clone()));
        }
        let total = self.storage_nodes().count() as u32;
        let out =
            self.storage_nodes().filter(|node| matches!(node.state, NodeState::Out { .. })).count() as u32;
        if out + 1 > (total / 4).max(1) {
            return Err(Refusal::TooManyOut { out, total });
        }
        Ok(())
    }

    pub(crate) fn recovered(&mut self, step: &mut Step, epoch: Epoch) -> Result {
        let node = self.require_storage(step.origin)?;
        if epoch > self.epoch() {
            return Err(Refusal::StaleView);
        }
        self.edit_node(node, &mut step.changes, |record| record.recovered = record.recovered.max(epoch));
        Ok(Outcome::Done)
    }

    /// Nothing is lost with this node: it is out, or it leaves and all others have recovered since.
    fn is_drained(&self, record: &NodeRecord) -> bool {
        match (record.state, record.leaving_since) {
            (NodeState::Out { .. }, _) => true,
            (_, Some(since)) => self
                .storage_nodes()
                .filter(|other| other.node != record.node && other.state.is_up())
                .all(|other| other.recovered >= since),
            (_, None) => false,
        }
    }

    fn another_takes_data(&self, but: NodeId) -> bool {
        self.members().iter().any(|member| member.node != but && member.is_placed())
    }

    fn storage(&self, node: NodeId) -> Result<&NodeRecord> {
        let record = self.node(node).ok_or(Refusal::NoSuchNode(node))?;
        if record.role == Role::Storage { Ok(record) } else { Err(Refusal::NotStorage(node)) }
    }

    /// The origin is a storage node and up in the run that speaks.
    pub(crate) fn require_storage(&self, member: Member) -> Result<NodeId> {
        self.require_up(member)?;
        Ok(self.storage(member.node)?.node)
    }
}

fn new_record(step: &Step, up: &NodeUp) -> NodeRecord {
    let Member { node, incarnation } = step.origin;
    NodeRecord { incarnation, joined: step.at, up_since: step.at, ..announced(node, up) }
}

/// What a record takes from an announcement; the rest is as for a node never seen before.
fn announced(node: NodeId, up: &NodeUp) -> NodeRecord {
    NodeRecord {
        node,
        incarnation: sheep_types::Incarnation(0),
        role: up.role,
        name: up.name.clone(),
        zone: up.zone.clone(),
        weight: up.weight,
        weight_override: None,
        addresses: up.addresses.clone(),
        shards: up.shards,
        capacity: up.capacity,
        used: 0,
        state: NodeState::Up,
        leaving_since: None,
        disks: sorted(&up.disks),
        joined: LogIndex(0),
        up_since: LogIndex(0),
        recovered: Epoch(0),
    }
}

/// The disks that a node announces, and as failed those that it had and says nothing of: a disk is given up only by
/// [`Command::SetDisks`](crate::Command::SetDisks), for it may have the only copies of something.
fn with_missing(announced: &[DiskRecord], known: &[DiskRecord]) -> Vec<DiskRecord> {
    let missing = known.iter().filter(|disk| announced.iter().all(|new| new.id != disk.id));
    let missing = missing.filter(|disk| disk.state != DiskState::Empty);
    let missing = missing.map(|disk| DiskRecord { state: DiskState::Failed, ..*disk });
    let mut disks: Vec<DiskRecord> = announced.iter().copied().chain(missing).collect();
    disks.truncate(MAX_DISKS);
    disks.sort_unstable();
    disks
}

fn sorted(disks: &[DiskRecord]) -> Vec<DiskRecord> {
    let mut disks = disks.to_vec();
    disks.sort_unstable();
    disks
}

fn check_announcement(up: &NodeUp) -> Result<()> {
    let bad = |why: &str| Err(Refusal::BadNode(why.to_owned()));
    if !is_printable(&up.name) || !(up.zone.is_empty() || is_printable(&up.zone)) {
        return bad("name and zone have 1 to 255 printable bytes");
    }
    if up.role == Role::Storage && up.weight == 0 || up.weight > MAX_WEIGHT {
        return bad("the weight of a storage node is 1 to 16777216");
    }
    let Addresses { data, ring, grpc, http } = &up.addresses;
    if [data, ring, grpc, http].iter().any(|list| list.len() > MAX_ADDRESSES) {
        return bad("too many addresses");
    }
    check_disks(&up.disks)
}

fn check_disks(disks: &[DiskRecord]) -> Result<()> {
    let mut ids: Vec<u64> = disks.iter().map(|disk| disk.id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != disks.len()
        || disks.len() > MAX_DISKS
        || disks.iter().any(|disk| disk.weight > MAX_WEIGHT)
    {
        return Err(Refusal::BadNode(
            "at most 256 disks with different ids and weights up to 16777216".to_owned(),
        ));
    }
    Ok(())
}
