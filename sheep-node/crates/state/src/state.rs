//! The state itself and the bookkeeping that all commands share.

use crate::epoch::EpochHistory;
use crate::origins::Origins;
use crate::shared_map::SharedMap;
use crate::tree::Kin;
use crate::{
    Changes, EpochMember, MemberState, NodeRecord, NodeState, PastLease, ReportRecord, Role, Settings,
};
use crate::{LineageRecord, VdiRecord, VidRecord};
use serde::{Deserialize, Serialize};
use sheep_types::{ClusterId, ConfigId, Epoch, Geometry, LogIndex, Member, NodeId, VdiId, Vid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// State of the cluster after some prefix of the log. A clone shares nearly everything with its original and is
/// cheap enough to be published after each batch of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    pub(crate) applied: LogIndex,
    pub(crate) cluster: ClusterId,
    pub(crate) geometry: Geometry,
    pub(crate) settings: Arc<Settings>,
    pub(crate) settings_at: LogIndex,
    pub(crate) past_leases: Vec<PastLease>,
    pub(crate) term: ConfigId,
    pub(crate) configuration: Arc<Vec<Member>>,
    pub(crate) voters: Vec<NodeId>,
    pub(crate) voters_at: LogIndex,
    /// Voters that were removed as nodes and wait to be replaced.
    pub(crate) removed_voters: BTreeSet<NodeId>,
    pub(crate) nodes: Arc<BTreeMap<NodeId, Arc<NodeRecord>>>,
    pub(crate) origins: Arc<Origins>,
    pub(crate) epochs: Arc<EpochHistory>,
    pub(crate) reports: Vec<ReportRecord>,
    pub(crate) next_vid: u32,
    pub(crate) vdis: SharedMap<VdiId, VdiRecord>,
    pub(crate) vids: SharedMap<Vid, VidRecord>,
    pub(crate) lineages: SharedMap<Vid, LineageRecord>,
    /// Dead vids whose sweep is due: the last entry that may have freed objects of them.
    pub(crate) due: SharedMap<Vid, LogIndex>,
    /// Derived: names of `vdis`.
    #[serde(skip)]
    pub(crate) names: SharedMap<String, VdiId>,
    /// Derived: VDIs that a node holds, reads or has attached.
    #[serde(skip)]
    pub(crate) uses: Arc<BTreeMap<NodeId, Arc<BTreeSet<VdiId>>>>,
    /// Derived: what records say of other vids.
    #[serde(skip)]
    pub(crate) kin: SharedMap<Vid, Kin>,
    /// Derived: snapshots of a volume, also of a deleted one.
    #[serde(skip)]
    pub(crate) snapshots: SharedMap<VdiId, BTreeSet<VdiId>>,
    /// Derived: volumes that are to be flattened.
    #[serde(skip)]
    pub(crate) flattening: Arc<BTreeSet<VdiId>>,
    #[cfg(feature = "mutants")]
    #[serde(skip)]
    pub(crate) mutant: MutantSlot,
}

/// The broken variant in force. Equal to any other: it is no part of the state.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MutantSlot(pub(crate) Option<crate::Mutant>);

#[cfg(feature = "mutants")]
impl PartialEq for MutantSlot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(feature = "mutants")]
impl Eq for MutantSlot {}

impl ClusterState {
    /// The state before the first entry: no cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves a rule out.
    #[cfg(feature = "mutants")]
    pub fn set_mutant(&mut self, mutant: Option<crate::Mutant>) {
        self.mutant = MutantSlot(mutant);
    }

    /// Changes a node's record, if there is one.
    pub(crate) fn edit_node<R>(
        &mut self,
        node: NodeId,
        changes: &mut Changes,
        edit: impl FnOnce(&mut NodeRecord) -> R,
    ) -> Option<R> {
        if !self.nodes.contains_key(&node) {
            return None;
        }
        let record = Arc::make_mut(&mut self.nodes).get_mut(&node)?;
        changes.nodes.push(node);
        Some(edit(Arc::make_mut(record)))
    }

    /// Changes a VDI's record, if there is one, and keeps the index of users.
    pub(crate) fn edit_vdi<R>(
        &mut self,
        vdi: VdiId,
        changes: &mut Changes,
        edit: impl FnOnce(&mut VdiRecord) -> R,
    ) -> Option<R> {
        let record = self.vdis.get_mut(&vdi)?;
        let before = users(record);
        let result = edit(record);
        let after = users(record);
        let flatten = record.flatten;
        changes.vdis.push(vdi);
        self.index_users(vdi, &before, &after);
        self.index_flattening(vdi, flatten);
        Some(result)
    }

    /// Enters a volume among those that are to be flattened, or takes it out.
    pub(crate) fn index_flattening(&mut self, vdi: VdiId, flatten: bool) {
        if self.flattening.contains(&vdi) != flatten {
            let flattening = Arc::make_mut(&mut self.flattening);
            if flatten {
                flattening.insert(vdi)
            } else {
                flattening.remove(&vdi)
            };
        }
    }

    pub(crate) fn index_users(&mut self, vdi: VdiId, before: &BTreeSet<NodeId>, after: &BTreeSet<NodeId>) {
        if before == after {
            return;
        }
        let uses = Arc::make_mut(&mut self.uses);
        for node in before.difference(after) {
            if let Some(vdis) = uses.get_mut(node) {
                Arc::make_mut(vdis).remove(&vdi);
                if vdis.is_empty() {
                    uses.remove(node);
                }
            }
        }
        for node in after.difference(before) {
            Arc::make_mut(uses.entry(*node).or_default()).insert(vdi);
        }
    }

    /// Makes the derived indexes anew, after decoding.
    pub(crate) fn rebuild_indexes(&mut self) {
        self.names = SharedMap::default();
        self.uses = Arc::default();
        self.snapshots = SharedMap::default();
        self.flattening = Arc::default();
        self.rebuild_kin();
        let records: Vec<Arc<VdiRecord>> =
            self.vdis.sorted().into_iter().map(|(_, record)| Arc::clone(record)).collect();
        for record in records {
            self.names.insert(record.name.clone(), record.id);
            self.index_snapshot(&record, true);
            self.index_users(record.id, &BTreeSet::new(), &users(&record));
            self.index_flattening(record.id, record.flatten);
        }
    }

    /// Makes a new epoch if the storage members differ from the present one's; always if `force`.
    pub(crate) fn refresh_epoch(&mut self, at: LogIndex, force: bool, changes: &mut Changes) {
        let next = self.epoch_members();
        let current = self.epochs.current();
        let unit = weight_unit(current.weight_unit, &next);
        let same = current.weight_unit == unit
            && current.len() == next.len()
            && next.values().all(|member| current.get(member.node) == Some(member));
        if !same || force {
            changes.epoch = Some(Arc::make_mut(&mut self.epochs).push(at, &next, unit));
        }
    }

    /// Storage nodes that are not out, as an epoch lists them.
    pub(crate) fn epoch_members(&self) -> BTreeMap<NodeId, EpochMember> {
        self.nodes
            .values()
            .filter_map(|record| epoch_member(record))
            .map(|member| (member.node, member))
            .collect()
    }

    /// Forgets epochs that nobody needs any more to tell which copies are current: everybody has recovered in the
    /// present one. A recovery in an earlier one says nothing of copies on nodes that were away then. Nodes that are
    /// down or out count too, until they are removed: theirs may turn out to be the only copies of something that
    /// the others never heard of. So may those on a failed disk, until it is given up. ([`MAX_EPOCHS`](crate::limits::MAX_EPOCHS) bounds it.)
    pub(crate) fn drop_recovered_epochs(&mut self, changes: &mut Changes) {
        let storage = self.nodes.values().filter(|node| node.role == Role::Storage);
        if storage.clone().any(|node| node.has_failed_disk()) {
            return;
        }
        let floor = storage.map(|node| node.recovered).min().unwrap_or(Epoch(0));
        if floor >= self.epoch() && floor > self.epochs.oldest() {
            changes.history |= Arc::make_mut(&mut self.epochs).drop_before(floor);
        }
    }
}

/// Nodes that hold, read or have attached a VDI.
pub(crate) fn users(record: &VdiRecord) -> BTreeSet<NodeId> {
    let locks = record.lock.iter().map(|lock| lock.holder.node);
    let readers = record.readers.iter().map(|reader| reader.holder.node);
    let attachments = record.attachments.iter().map(|attachment| attachment.node);
    locks.chain(readers).chain(attachments).collect()
}

fn epoch_member(record: &NodeRecord) -> Option<EpochMember> {
    if record.role != Role::Storage {
        return None;
    }
    let state = match record.state {
        NodeState::Up => MemberState::Up,
        NodeState::Leaving => MemberState::Leaving,
        NodeState::Down { .. } => MemberState::Down,
        NodeState::Out { .. } => return None,
    };
    Some(EpochMember {
        node: record.node,
        incarnation: record.incarnation,
        state,
        zone: record.zone.clone(),
        weight: record.effective_weight(),
        disks: record.disks.clone(),
    })
}

/// The weight that stands for the standard number of points in the hash ring. It follows the median only when
/// that has moved far: every change of it moves data.
fn weight_unit(unit: u32, members: &BTreeMap<NodeId, EpochMember>) -> u32 {
    let mut weights: Vec<u32> =
        members.values().map(|member| member.weight).filter(|weight| *weight > 0).collect();
    weights.sort_unstable();
    let Some(&median) = weights.get(weights.len() / 2) else { return unit.max(1) };
    let fits = median >= unit / 4 && median <= unit.saturating_mul(4);
    if unit > 0 && fits { unit } else { median }
}
