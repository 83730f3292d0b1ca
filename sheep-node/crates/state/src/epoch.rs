//! Epochs: numbered membership lists, and their history as changes.

use crate::limits::MAX_EPOCHS;
use crate::{DiskRecord, DiskState};
use serde::{Deserialize, Serialize};
use sheep_types::{Epoch, Incarnation, LogIndex, Member, NodeId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// State of a storage node in an epoch. A node that is out is in no epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// Serves.
    Up,
    /// Does not serve, keeps its place in the hash ring.
    Down,
    /// Serves, but gets no new objects (its weight is zero).
    Leaving,
}

/// A storage node in an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochMember {
    /// The node.
    pub node: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
    /// Whether it serves.
    pub state: MemberState,
    /// Failure domain; an empty one means that the node is a zone of its own.
    pub zone: String,
    /// Share of objects in the hash ring; zero while it leaves.
    pub weight: u32,
    /// Its disks, by id.
    pub disks: Vec<DiskRecord>,
}

impl EpochMember {
    /// Whether it serves: up or leaving.
    pub fn is_up(&self) -> bool {
        matches!(self.state, MemberState::Up | MemberState::Leaving)
    }

    /// Whether it has a place in the hash ring.
    pub fn is_placed(&self) -> bool {
        self.weight > 0
    }

    /// The node in its run.
    pub fn member(&self) -> Member {
        Member { node: self.node, incarnation: self.incarnation }
    }

    /// Whether this very run of this disk works in the epoch.
    pub fn has_disk(&self, id: u64, incarnation: Incarnation) -> bool {
        self.disk_run(id) == Some(incarnation)
    }

    /// The run of a disk that works in the epoch.
    pub fn disk_run(&self, id: u64) -> Option<Incarnation> {
        let disk = self.working_disks().find(|disk| disk.id == id)?;
        Some(disk.incarnation)
    }

    /// Its disks that work in the epoch.
    pub fn working_disks(&self) -> impl Iterator<Item = &DiskRecord> {
        self.disks.iter().filter(|disk| disk.state == DiskState::Up)
    }

    /// Whether the disk belongs to the node in the epoch, working or not.
    pub fn lists_disk(&self, id: u64) -> bool {
        self.disks.iter().any(|disk| disk.id == id)
    }
}

/// The storage members of one epoch. Cheap to clone: records are shared between epochs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochMembers {
    /// Its number; zero is "before the first".
    pub epoch: Epoch,
    /// Index of the entry that made it.
    pub at: LogIndex,
    /// Weight that stands for the standard number of points in the hash ring. Ordered, so that the ring changes
    /// little with each node, and the same way everywhere.
    pub weight_unit: u32,
    members: BTreeMap<NodeId, Arc<EpochMember>>,
}

impl EpochMembers {
    /// For tests and tools: an epoch with these members.
    pub fn from_members(
        epoch: Epoch,
        weight_unit: u32,
        members: impl IntoIterator<Item = EpochMember>,
    ) -> Self {
        let members = members.into_iter().map(|member| (member.node, Arc::new(member))).collect();
        Self { epoch, at: LogIndex(0), weight_unit, members }
    }

    /// All members, by node.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &EpochMember> {
        self.members.values().map(Arc::as_ref)
    }

    /// One member.
    pub fn get(&self, node: NodeId) -> Option<&EpochMember> {
        self.members.get(&node).map(Arc::as_ref)
    }

    /// Number of members: storage nodes that are not out.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether exactly this run of the node serves in the epoch.
    pub fn is_up(&self, member: Member) -> bool {
        self.get(member.node).is_some_and(|found| found.incarnation == member.incarnation && found.is_up())
    }

    /// Number of members with a place in the hash ring.
    pub fn placed(&self) -> usize {
        self.iter().filter(|member| member.is_placed()).count()
    }

    /// Copies that an object wanted in `copies` copies really has: fewer while there are fewer nodes.
    pub fn effective_copies(&self, copies: u8) -> usize {
        usize::from(copies).min(self.placed())
    }

    /// Copies below which writes wait.
    pub fn effective_min_copies(&self, copies: u8, min_copies: u8) -> usize {
        usize::from(min_copies).min(self.effective_copies(copies))
    }

    fn apply(&mut self, delta: &EpochDelta) {
        self.epoch = delta.epoch;
        self.at = delta.at;
        self.weight_unit = delta.weight_unit;
        for node in &delta.removed {
            self.members.remove(node);
        }
        for member in &delta.changed {
            self.members.insert(member.node, Arc::clone(member));
        }
    }

    fn delta_to(
        &self,
        epoch: Epoch,
        at: LogIndex,
        next: &BTreeMap<NodeId, EpochMember>,
        unit: u32,
    ) -> EpochDelta {
        let changed = next
            .values()
            .filter(|member| self.get(member.node) != Some(*member))
            .map(|member| Arc::new(member.clone()))
            .collect();
        let removed = self.members.keys().filter(|node| !next.contains_key(node)).copied().collect();
        EpochDelta { epoch, at, weight_unit: unit, changed, removed }
    }
}

/// What one epoch changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EpochDelta {
    epoch: Epoch,
    at: LogIndex,
    weight_unit: u32,
    changed: Vec<Arc<EpochMember>>,
    removed: Vec<NodeId>,
}

/// A whole list is kept for every so many epochs, so that any list is rebuilt from few changes.
const KEYFRAME: u64 = 64;

/// Epochs that still matter, as the oldest list and changes (a list per epoch would take a hundred megabytes
/// when a thousand nodes flap). Lists in between are kept sparsely and not encoded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Encoded", into = "Encoded")]
pub(crate) struct EpochHistory {
    oldest: Arc<EpochMembers>,
    deltas: VecDeque<Arc<EpochDelta>>,
    current: Arc<EpochMembers>,
    keyframes: BTreeMap<Epoch, Arc<EpochMembers>>,
}

#[derive(Serialize, Deserialize)]
struct Encoded {
    oldest: Arc<EpochMembers>,
    deltas: VecDeque<Arc<EpochDelta>>,
}

impl From<EpochHistory> for Encoded {
    fn from(history: EpochHistory) -> Self {
        Self { oldest: history.oldest, deltas: history.deltas }
    }
}

impl From<Encoded> for EpochHistory {
    fn from(encoded: Encoded) -> Self {
        let mut history = Self::starting_at(encoded.oldest);
        for delta in encoded.deltas {
            history.append(delta);
        }
        history
    }
}

impl EpochHistory {
    /// Starts with an epoch without members.
    pub(crate) fn begin(epoch: Epoch, at: LogIndex) -> Self {
        Self::starting_at(Arc::new(EpochMembers { epoch, at, weight_unit: 1, ..EpochMembers::default() }))
    }

    fn starting_at(oldest: Arc<EpochMembers>) -> Self {
        let current = Arc::clone(&oldest);
        Self { oldest, deltas: VecDeque::new(), current, keyframes: BTreeMap::new() }
    }

    /// The present epoch.
    pub(crate) fn current(&self) -> &Arc<EpochMembers> {
        &self.current
    }

    /// Number of the oldest epoch that is remembered.
    pub(crate) fn oldest(&self) -> Epoch {
        self.oldest.epoch
    }

    /// A remembered epoch.
    pub(crate) fn at(&self, epoch: Epoch) -> Option<Arc<EpochMembers>> {
        if epoch == self.current.epoch {
            return Some(Arc::clone(&self.current));
        }
        if epoch < self.oldest() || epoch > self.current.epoch {
            return None;
        }
        let start = self.keyframes.range(..=epoch).next_back().map_or(&self.oldest, |(_, list)| list);
        let (skip, end) = (self.offset(start.epoch), self.offset(epoch));
        if skip == end {
            return Some(Arc::clone(start));
        }
        let mut list = EpochMembers::clone(start);
        for delta in self.deltas.range(skip..end) {
            list.apply(delta);
        }
        Some(Arc::new(list))
    }

    /// Number of changes between the oldest epoch and this one, which is remembered.
    fn offset(&self, epoch: Epoch) -> usize {
        usize::try_from(epoch.0 - self.oldest().0).unwrap_or(usize::MAX).min(self.deltas.len())
    }

    /// Adds the next epoch and returns its number.
    pub(crate) fn push(
        &mut self,
        at: LogIndex,
        next: &BTreeMap<NodeId, EpochMember>,
        weight_unit: u32,
    ) -> Epoch {
        let epoch = Epoch(self.current.epoch.0 + 1);
        let delta = self.current.delta_to(epoch, at, next, weight_unit);
        self.append(Arc::new(delta));
        if self.deltas.len() >= MAX_EPOCHS {
            self.drop_before(Epoch(self.oldest().0 + 1));
        }
        epoch
    }

    fn append(&mut self, delta: Arc<EpochDelta>) {
        Arc::make_mut(&mut self.current).apply(&delta);
        self.deltas.push_back(delta);
        if self.current.epoch.0.is_multiple_of(KEYFRAME) {
            self.keyframes.insert(self.current.epoch, Arc::clone(&self.current));
        }
    }

    /// Forgets epochs before `floor`, never the present one. Says whether any were.
    pub(crate) fn drop_before(&mut self, floor: Epoch) -> bool {
        let floor = floor.min(self.current.epoch);
        if floor <= self.oldest() {
            return false;
        }
        let Some(oldest) = self.at(floor) else { return false };
        let drop = self.offset(floor);
        self.deltas.drain(..drop);
        self.oldest = oldest;
        // The oldest list itself is no keyframe.
        self.keyframes = self.keyframes.split_off(&Epoch(floor.0 + 1));
        true
    }

    /// Broken on purpose: the present epoch changes without getting a new number.
    #[cfg(feature = "mutants")]
    pub(crate) fn replace_current(&mut self, next: &BTreeMap<NodeId, EpochMember>) {
        let current = &self.current;
        let delta = current.delta_to(current.epoch, current.at, next, current.weight_unit);
        Arc::make_mut(&mut self.current).apply(&delta);
        if self.deltas.is_empty() {
            self.oldest = Arc::clone(&self.current);
        } else {
            let last = self.deltas.len() - 1;
            let epoch = Epoch(self.current.epoch.0 - 1);
            let before = self.at(epoch).unwrap_or_default();
            let members =
                self.current.members.iter().map(|(node, m)| (*node, EpochMember::clone(m))).collect();
            let delta =
                before.delta_to(self.current.epoch, self.current.at, &members, self.current.weight_unit);
            if let Some(slot) = self.deltas.get_mut(last) {
                *slot = Arc::new(delta);
            }
        }
    }
}
