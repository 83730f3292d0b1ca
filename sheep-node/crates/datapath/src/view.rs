//! What control publishes to the data path: the applied state, and placement derived from it.

use sheep_placement::{Key, PlacementMember, Ring};
use sheep_state::{ClusterState, EpochMembers, MemberState, NodeState, VdiRecord, VidKind, VidRecord};
use sheep_types::{Birth, ClusterId, Epoch, Generation, LogIndex, Member, NodeId, ObjectId, Vid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

/// One remembered epoch. Its hash ring is built when it is first asked for: most old epochs never are.
#[derive(Debug)]
struct EpochView {
    members: Arc<EpochMembers>,
    ring: OnceLock<Ring>,
}

impl EpochView {
    fn ring(&self) -> &Ring {
        self.ring.get_or_init(|| {
            let placed = self.members.iter().filter(|member| member.is_placed());
            let members: Vec<PlacementMember> = placed
                .map(|member| PlacementMember {
                    node: member.node,
                    zone: member.zone.clone(),
                    weight: member.weight,
                })
                .collect();
            Ring::build(&members, self.members.weight_unit)
        })
    }
}

/// An immutable picture of the cluster after some prefix of the log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct View {
    /// This node in its run.
    pub me: Member,
    /// The cluster.
    pub cluster: ClusterId,
    /// Index of the last entry in it.
    pub index: LogIndex,
    /// The replicated state after that entry.
    pub state: Arc<ClusterState>,
    epochs: Arc<BTreeMap<Epoch, Arc<EpochView>>>,
}

impl View {
    /// The next view. Hash rings of epochs that `previous` knew are taken over. `index` never goes back.
    pub fn advance(
        previous: Option<&Self>,
        me: Member,
        cluster: ClusterId,
        index: LogIndex,
        state: Arc<ClusterState>,
    ) -> Self {
        let (oldest, newest) = (state.oldest_epoch(), state.epoch());
        if let Some(previous) = previous {
            assert!(previous.index <= index, "views go forward");
            if previous.oldest_epoch() == oldest && previous.epoch() == newest {
                return Self { me, cluster, index, state, epochs: Arc::clone(&previous.epochs) };
            }
        }
        let known = |epoch: &Epoch| previous.and_then(|previous| previous.epochs.get(epoch)).map(Arc::clone);
        let epochs = (oldest.0..=newest.0)
            .map(Epoch)
            .filter_map(|epoch| {
                let made = || {
                    let members = state.members_at(epoch)?;
                    Some(Arc::new(EpochView { members, ring: OnceLock::new() }))
                };
                Some((epoch, known(&epoch).or_else(made)?))
            })
            .collect();
        Self { me, cluster, index, state, epochs: Arc::new(epochs) }
    }

    /// The present epoch.
    pub fn epoch(&self) -> Epoch {
        self.state.epoch()
    }

    /// The oldest epoch that is remembered. A copy validated before it proves nothing.
    pub fn oldest_epoch(&self) -> Epoch {
        self.state.oldest_epoch()
    }

    /// Storage members of an epoch, those that were down included; `None` if it is forgotten or to come.
    pub fn members_at(&self, epoch: Epoch) -> Option<&EpochMembers> {
        self.epochs.get(&epoch).map(|view| view.members.as_ref())
    }

    /// A storage node that is up now, with its present incarnation.
    pub fn member_now(&self, node: NodeId) -> Option<Member> {
        let member = self.state.members().get(node)?;
        member.is_up().then(|| member.member())
    }

    /// All storage nodes that are up now, by id.
    pub fn up_members(&self) -> Vec<Member> {
        let members = self.state.members().iter().filter(|member| member.is_up());
        members.map(|member| member.member()).collect()
    }

    /// Whether all storage nodes that are up hold, in the present epoch, everything that they must.
    pub fn has_recovered(&self) -> bool {
        let recovered = |node| self.state.node(node).is_some_and(|record| record.recovered >= self.epoch());
        self.up_members().iter().all(|member| recovered(member.node))
    }

    /// The incarnation with which a storage node was up in an epoch; `None` if it was not up, or the epoch is
    /// forgotten.
    pub fn up_at(&self, epoch: Epoch, node: NodeId) -> Option<Member> {
        let member = self.members_at(epoch)?.get(node)?;
        member.is_up().then(|| member.member())
    }

    /// Whether a node has had, from one epoch to a later one, every disk that worked in it at some time, in one run.
    /// If not, it may have lost what it had not flushed, although it did not restart. `false` if it is not known.
    pub fn kept_disks(&self, node: NodeId, from: Epoch, to: Epoch) -> bool {
        (from.0..to.0).all(|epoch| {
            let Some(members) = self.members_at(Epoch(epoch)) else { return false };
            let Some(next) = self.members_at(Epoch(epoch + 1)).and_then(|next| next.get(node)) else {
                return false;
            };
            members.get(node).is_some_and(|member| {
                member.working_disks().all(|disk| next.has_disk(disk.id, disk.incarnation))
            })
        })
    }

    /// Whether a storage node was a member in an epoch at all, up or down.
    pub fn was_member(&self, epoch: Epoch, node: NodeId) -> bool {
        self.members_at(epoch).is_some_and(|members| members.get(node).is_some())
    }

    /// The whole set of an object in an epoch, members that were down included, in order of preference. `None`
    /// if the epoch is forgotten or to come, or the object's vid or kind is unknown.
    pub fn set_at(&self, epoch: Epoch, object: ObjectId) -> Option<Vec<NodeId>> {
        self.places(epoch, object).map(Iterator::collect)
    }

    /// The nodes of a set, one after the other. Worked out from the ring each time, without allocations: that is as
    /// quick as looking it up somewhere, and never out of date.
    fn places(&self, epoch: Epoch, object: ObjectId) -> Option<impl Iterator<Item = NodeId>> {
        let view = self.epochs.get(&epoch)?;
        let key = Key::of(self.state.place_of(object.vid())?, object)?;
        Some(view.ring().list(key).take(self.state.copies_in(object.vid(), &view.members)))
    }

    /// Whether a node is in the set of an object in an epoch.
    pub fn in_set_at(&self, epoch: Epoch, object: ObjectId, node: NodeId) -> bool {
        self.places(epoch, object).is_some_and(|mut places| places.any(|place| place == node))
    }

    /// Whether a node, in this run, is an up member of the object's present set.
    pub fn in_up_set(&self, object: ObjectId, member: Member) -> bool {
        self.up_at(self.epoch(), member.node) == Some(member)
            && self.in_set_at(self.epoch(), object, member.node)
    }

    /// Members of an object's set that were up in an epoch, with the incarnation they had then.
    pub fn up_set_at(&self, epoch: Epoch, object: ObjectId) -> Option<Vec<Member>> {
        Some(self.places(epoch, object)?.filter_map(|node| self.up_at(epoch, node)).collect())
    }

    /// Nodes that are away, not given up, and were to have a copy of the object in an epoch that is remembered.
    pub fn absent_holders(&self, object: ObjectId) -> BTreeSet<NodeId> {
        let known = (self.oldest_epoch().0..=self.epoch().0).map(Epoch);
        let holders = known.flat_map(|epoch| self.set_at(epoch, object).unwrap_or_default());
        let away = |node: &NodeId| {
            let record = self.state.node(*node);
            record.is_some_and(|record| matches!(record.state, NodeState::Down { .. }))
        };
        holders.filter(away).collect()
    }

    /// Whether no node but the up members of the object's present set can have a copy that it would ever bring back.
    /// One that was away while the object was entered in the map, changed and removed still has the copy marked as
    /// not entered: a take-over would enter it again, with contents from long before the removal.
    pub fn is_gathered(&self, object: ObjectId) -> bool {
        let (oldest, present) = (self.oldest_epoch().0, self.epoch());
        let members = self.up_set(object);
        let recovered = |node| self.state.node(node).is_some_and(|record| record.recovered >= present);
        let is_member = |node| members.iter().any(|member| member.node == node);
        // A failed disk may come back, and with it a copy.
        let whole = |node| self.state.node(node).is_some_and(|record| !record.has_failed_disk());
        (oldest..=present.0).all(|epoch| {
            let set = self.set_at(Epoch(epoch), object).unwrap_or_default();
            set.into_iter().all(|node| is_member(node) && recovered(node) && whole(node))
        })
    }

    /// The object's whole present set, members that are down included; empty if the vid is unknown.
    pub fn set(&self, object: ObjectId) -> Vec<NodeId> {
        self.set_at(self.epoch(), object).unwrap_or_default()
    }

    /// Members of the object's present set that are up.
    pub fn up_set(&self, object: ObjectId) -> Vec<Member> {
        self.up_set_at(self.epoch(), object).unwrap_or_default()
    }

    /// Copies that the object has now when nothing is down.
    pub fn copies(&self, object: ObjectId) -> usize {
        self.state.copies_in(object.vid(), self.state.members())
    }

    /// Up members below which writes to the object wait; never zero.
    pub fn min_copies(&self, object: ObjectId) -> usize {
        self.state.min_copies(object.vid()).max(1)
    }

    /// Record of a vid.
    pub fn vid(&self, vid: Vid) -> Option<&VidRecord> {
        self.state.vid(vid).map(Arc::as_ref)
    }

    /// Whether two vids are of one lineage: their objects with one index are on the same nodes.
    pub fn are_related(&self, one: Vid, other: Vid) -> bool {
        let lineage = |vid| self.vid(vid).map(|record| record.lineage);
        lineage(one).is_some() && lineage(one) == lineage(other)
    }

    /// Record of the VDI that a vid belongs to.
    pub fn vdi_of(&self, vid: Vid) -> Option<&VdiRecord> {
        self.state.vdi_of(vid).map(Arc::as_ref)
    }

    /// Whether the vid takes writes at all.
    pub fn writable(&self, vid: Vid) -> bool {
        self.state.writable(vid)
    }

    /// Generation of the present holder of the vid's VDI, if there is one and the vid is the working one.
    pub fn generation(&self, vid: Vid) -> Option<Generation> {
        let working = self.vid(vid)?.kind == VidKind::Working;
        if working { self.state.generation(vid) } else { None }
    }

    /// Whether `birth` is the birth of the vid of `object`.
    pub fn is_born(&self, object: ObjectId, birth: Birth) -> bool {
        self.vid(object.vid()).is_some_and(|record| record.birth == birth)
    }

    /// Whether an object of this birth belongs to nothing any more, as far as this view can judge: births after
    /// its last entry are not judged.
    pub fn is_gone(&self, object: ObjectId, birth: Birth) -> bool {
        self.state.is_gone(object.vid(), birth)
    }

    /// Whether the node is leaving: it serves what it has, and gets nothing new.
    pub fn is_leaving(&self, node: NodeId) -> bool {
        self.state.members().get(node).is_some_and(|member| member.state == MemberState::Leaving)
    }
}
