//! Questions about the state. All are cheap unless said otherwise.

use crate::{ClusterState, EpochMembers, Guard, NodeRecord, PastLease, Reader, ReportRecord, Role, Settings};
use crate::{LineageRecord, Lock, VdiRecord, VidKind, VidRecord};
use sheep_types::{
    Birth, ClusterId, CommandSeq, ConfigId, Epoch, Generation, Geometry, Incarnation, LogIndex, Member,
    NodeId, VdiId, Vid,
};
use std::sync::Arc;

impl ClusterState {
    /// Index of the last entry that was applied.
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// The cluster; zero before the first entry.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Sizes of objects.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Term of the last install entry.
    pub fn term(&self) -> ConfigId {
        self.term
    }

    /// Members of the configuration that the last install entry lists.
    pub fn configuration(&self) -> &[Member] {
        &self.configuration
    }

    /// Volumes that are to be flattened.
    pub fn flattening(&self) -> impl Iterator<Item = VdiId> {
        self.flattening.iter().copied()
    }

    /// Settings of the cluster.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Index of the entry that set them; a change names it.
    pub fn settings_at(&self) -> LogIndex {
        self.settings_at
    }

    /// Lease settings that were replaced, oldest first. One counts until `lease_ms` after its `replaced_at`
    /// was applied on this node (a node that does not know when counts from its start).
    pub fn past_leases(&self) -> &[PastLease] {
        &self.past_leases
    }

    /// How long a take-over waits, milliseconds, without the margin for clock rate: the longest lease that
    /// somebody may still hold. `counts` says whether a former setting may still be in use.
    pub fn lease_wait(&self, counts: impl Fn(&PastLease) -> bool) -> u64 {
        let past = self.past_leases.iter().filter(|past| counts(past)).map(|past| past.lease_ms);
        past.max().unwrap_or(0).max(self.settings.lease_ms)
    }

    /// The committed list of voters, sorted.
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// Index of the entry that set it.
    pub fn voters_at(&self) -> LogIndex {
        self.voters_at
    }

    /// All known nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeRecord>> {
        self.nodes.values()
    }

    /// Storage nodes that are known, whatever their state.
    pub fn storage_nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().map(Arc::as_ref).filter(|record| record.role == Role::Storage)
    }

    /// Storage nodes that are up and do not yet hold everything they must.
    pub fn recovering(&self) -> impl Iterator<Item = &NodeRecord> {
        self.storage_nodes().filter(|record| record.state.is_up() && record.recovered < self.epoch())
    }

    /// One node.
    pub fn node(&self, node: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&node).map(Arc::as_ref)
    }

    /// Whether exactly this run of the node is up, as storage node, gateway or witness. When it is not, its
    /// lease is over.
    pub fn is_up(&self, member: Member) -> bool {
        self.node(member.node).is_some_and(|record| record.is_up_as(member.incarnation))
    }

    /// The run of a node and the number of its last command that took effect.
    pub fn last_command(&self, node: NodeId) -> Option<(Incarnation, CommandSeq)> {
        self.origins.last(node)
    }

    /// The present epoch's members.
    pub fn members(&self) -> &Arc<EpochMembers> {
        self.epochs.current()
    }

    /// Number of the present epoch.
    pub fn epoch(&self) -> Epoch {
        self.epochs.current().epoch
    }

    /// Members of a remembered epoch. Rebuilt from changes: keep the answer.
    pub fn members_at(&self, epoch: Epoch) -> Option<Arc<EpochMembers>> {
        self.epochs.at(epoch)
    }

    /// The oldest epoch that is remembered. A copy from before it proves nothing.
    pub fn oldest_epoch(&self) -> Epoch {
        self.epochs.oldest()
    }

    /// Reports of unreachable nodes that are not decided.
    pub fn open_reports(&self) -> impl Iterator<Item = &ReportRecord> {
        self.reports.iter().filter(|report| report.open)
    }

    /// Number of VDIs.
    pub fn vdi_count(&self) -> usize {
        self.vdis.len()
    }

    /// All VDIs by id. Sorts; for listings.
    pub fn vdis(&self) -> Vec<&Arc<VdiRecord>> {
        self.vdis.sorted().into_iter().map(|(_, record)| record).collect()
    }

    /// One VDI.
    pub fn vdi(&self, vdi: VdiId) -> Option<&Arc<VdiRecord>> {
        self.vdis.get(&vdi)
    }

    /// The VDI of this name.
    pub fn vdi_by_name(&self, name: &str) -> Option<&Arc<VdiRecord>> {
        self.vdi(**self.names.get(name)?)
    }

    /// VDIs that a node holds, reads or has attached.
    pub fn vdis_used_by(&self, node: NodeId) -> impl Iterator<Item = VdiId> {
        self.uses.get(&node).into_iter().flat_map(|vdis| vdis.iter().copied())
    }

    /// All vids. Sorts; for listings and for dropping what belongs to none.
    pub fn vids(&self) -> Vec<&Arc<VidRecord>> {
        self.vids.sorted().into_iter().map(|(_, record)| record).collect()
    }

    /// One vid.
    pub fn vid(&self, vid: Vid) -> Option<&Arc<VidRecord>> {
        self.vids.get(&vid)
    }

    /// The VDI of a vid; dead ones have none.
    pub fn vdi_of(&self, vid: Vid) -> Option<&Arc<VdiRecord>> {
        self.vdi(self.vid(vid)?.vdi?)
    }

    /// All lineages. Sorts; for listings.
    pub fn lineages(&self) -> Vec<&Arc<LineageRecord>> {
        self.lineages.sorted().into_iter().map(|(_, record)| record).collect()
    }

    /// The lineage of a vid, dead or alive.
    pub fn lineage_of(&self, vid: Vid) -> Option<&Arc<LineageRecord>> {
        self.lineages.get(&self.vid(vid)?.lineage)
    }

    /// The generation that writes to a vid must carry; `None` if nobody may write it.
    pub fn write_generation(&self, vid: Vid) -> Option<Generation> {
        if !self.writable(vid) {
            return None;
        }
        self.vdi_of(vid)?.lock.map(|lock| lock.generation)
    }

    /// Generation of the present holder of the VDI that a vid belongs to.
    pub fn generation(&self, vid: Vid) -> Option<Generation> {
        self.vdi_of(vid)?.lock.map(|lock| lock.generation)
    }

    /// Whether a vid exists and takes writes at all.
    pub fn writable(&self, vid: Vid) -> bool {
        self.vid(vid).is_some_and(|record| record.kind == VidKind::Working)
    }

    /// Whether an object of this vid and birth belongs to nothing any more and may be dropped. Births after
    /// the last applied entry are not judged.
    pub fn is_gone(&self, vid: Vid, birth: Birth) -> bool {
        let judged = birth.0 <= self.applied.0 || self.judges_the_unborn();
        judged && self.vid(vid).is_none_or(|record| record.birth != birth)
    }

    /// The vid whose number says where the objects of this one are: so all of a lineage with one index are in one place,
    /// and what is cloned stays where it is.
    pub fn place_of(&self, vid: Vid) -> Option<Vid> {
        let lineage = self.vid(vid)?.lineage;
        Some(if self.places_by_vid() { vid } else { lineage })
    }

    /// Since which entry the contents of a vid cannot have changed: it is or was a snapshot, or its VDI is closed
    /// and clean. `None` if they may change now.
    pub fn unchanged_since(&self, vid: Vid) -> Option<LogIndex> {
        match self.vid(vid)?.kind {
            VidKind::Snapshot { since } | VidKind::Dead { since } => Some(since),
            VidKind::Working => self.vdi_of(vid)?.clean_since,
        }
    }

    /// Whether nothing has been written to a vid since before the entry at `index`: a copy that was current and
    /// durable then needs no validation.
    pub fn untouched_since(&self, vid: Vid, index: LogIndex) -> bool {
        self.unchanged_since(vid).is_some_and(|since| since <= index)
    }

    /// Copies of a vid's objects in an epoch, no more than there were nodes for. Zero if the vid or the epoch
    /// is not known.
    pub fn copies_in(&self, vid: Vid, members: &EpochMembers) -> usize {
        let lineage = self.lineage_of(vid);
        lineage.map_or(0, |lineage| members.effective_copies(lineage.copies_at(members.epoch)))
    }

    /// Copies of a vid below which writes wait in the present epoch.
    pub fn min_copies(&self, vid: Vid) -> usize {
        let members = self.members();
        let lineage = self.lineage_of(vid);
        lineage.map_or(0, |lineage| members.effective_min_copies(lineage.copies, lineage.min_copies))
    }

    /// Whether a VDI is in the state that a command was made under.
    pub fn guard_holds(&self, vdi: &VdiRecord, guard: Guard, origin: Member) -> bool {
        match guard {
            Guard::Held(generation) => vdi.is_held_by(origin, generation),
            Guard::ClosedClean => vdi.lock.is_none() && vdi.is_clean(),
            Guard::Closed(last) => vdi.lock.is_none() && vdi.last_generation == last,
            Guard::Paused { generation, token } => {
                let paused = |lock: &Lock| lock.paused == Some(token) || self.takes_any_pause();
                vdi.lock.is_some_and(|lock| lock.generation == generation && paused(&lock))
            }
        }
    }

    /// The shared reader of a gateway, if it is one.
    pub fn reader(&self, vdi: VdiId, holder: Member) -> Option<Reader> {
        self.vdi(vdi)?.readers.iter().find(|reader| reader.holder == holder).copied()
    }

    fn judges_the_unborn(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::UnbornIsGone);
        #[cfg(not(feature = "mutants"))]
        false
    }

    fn places_by_vid(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::PlacesByVid);
        #[cfg(not(feature = "mutants"))]
        false
    }

    fn takes_any_pause(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::GroupUnpaused);
        #[cfg(not(feature = "mutants"))]
        false
    }
}
