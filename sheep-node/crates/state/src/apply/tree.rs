//! What happens to the tree of vids when one is made or deleted, and what is forgotten.

use super::{Result, Step};
use crate::limits::{
    MAX_CLONE_DEPTH, MAX_LINEAGE_VIDS, MAX_REPLACED_PER_COMMAND, MAX_SWEPT_PER_COMMAND, MAX_VIDS, VID_LIMIT,
};
use crate::{ClusterState, Limited, Outcome, Refusal, SweptVid, VidKind, VidRecord};
use sheep_types::{Generation, LogIndex, VdiId, Vid};
use std::sync::Arc;

impl ClusterState {
    /// Whether so many vids can be made at once.
    pub(crate) fn check_new_vids(&self, count: usize) -> Result<()> {
        let limit = |limit: usize| Err(Refusal::Limit { what: Limited::Vids, limit: limit as u64 });
        if (VID_LIMIT.saturating_sub(self.next_vid) as usize) < count {
            return limit(VID_LIMIT as usize - 1);
        }
        if self.vids.len().saturating_add(count) > MAX_VIDS {
            return limit(MAX_VIDS);
        }
        Ok(())
    }

    /// Whether the lineage of a vid can have one more.
    pub(crate) fn check_lineage(&self, vid: Vid) -> Result<()> {
        let full = self.lineage_of(vid).is_some_and(|lineage| lineage.vids >= MAX_LINEAGE_VIDS);
        let limit = u64::from(MAX_LINEAGE_VIDS);
        if full { Err(Refusal::Limit { what: Limited::LineageVids, limit }) } else { Ok(()) }
    }

    /// Whether a clone of the vid would not be too far from the first volume that it inherits from.
    pub(crate) fn check_depth(&self, vid: Vid) -> Result<()> {
        let below = |vid: &Vid| {
            let inherits = self.vid(*vid).is_some_and(|record| record.inherits);
            self.lineage_of(*vid).and_then(|lineage| lineage.origin).filter(|_| inherits)
        };
        let deep = core::iter::successors(Some(vid), below).nth(MAX_CLONE_DEPTH).is_some();
        let limit = MAX_CLONE_DEPTH as u64;
        if deep { Err(Refusal::Limit { what: Limited::CloneDepth, limit }) } else { Ok(()) }
    }

    /// Takes the next vid. A number once used is never used again: a node that slept through the deletion would
    /// take old objects for those of the new VDI.
    pub(crate) fn new_vid(&mut self) -> Vid {
        #[cfg(feature = "mutants")]
        if self.is_mutant(crate::Mutant::VidReuse)
            && let Some(free) = (1..self.next_vid).map(Vid).find(|vid| self.vid(*vid).is_none())
        {
            return free;
        }
        let vid = Vid(self.next_vid);
        self.next_vid += 1;
        vid
    }

    /// Enters a new vid; its lineage is known.
    pub(crate) fn add_vid(&mut self, step: &mut Step, record: VidRecord) {
        if let Some(parent) = record.parent {
            self.edit_kin(parent, |kin| kin.children.insert(record.vid));
        }
        for (index, owner) in record.maps.iter() {
            self.name_map(*owner, *index);
        }
        if let Some(lineage) = self.lineages.get_mut(&record.lineage) {
            lineage.vids += 1;
            lineage.inheriting += u32::from(record.inherits);
        }
        step.changes.vids.push(record.vid);
        self.vids.insert(record.vid, record);
    }

    /// A vid's VDI is deleted, or went on with another one.
    pub(crate) fn bury(&mut self, step: &mut Step, vid: Vid) {
        if !self.has_children(vid) || self.buries_too_deep() {
            return self.forget_upward(step, vid);
        }
        let Some(record) = self.vids.get_mut(&vid) else { return };
        let since = match record.kind {
            VidKind::Snapshot { since } | VidKind::Dead { since } => since,
            VidKind::Working => step.at,
        };
        (record.kind, record.vdi) = (VidKind::Dead { since }, None);
        step.changes.vids.push(vid);
        self.mark_due(step, vid);
        self.mark_dead_above(step, vid);
        if !self.has_clones(vid) || self.drops_maps_of_origins() {
            self.close_table(step, vid);
        }
    }

    /// Forgets a vid without children, and dead ones above that have no other.
    fn forget_upward(&mut self, step: &mut Step, vid: Vid) {
        let mut parent = self.forget(step, vid);
        while let Some(above) = parent.filter(|above| self.is_dead(*above) && !self.has_children(*above)) {
            parent = self.forget(step, above);
        }
        for above in self.dead_from(parent) {
            self.mark_due(step, above);
        }
    }

    /// Forgets a vid whose map nobody reads and whose objects nobody reaches. Its children become its parent's, who is
    /// returned.
    fn forget(&mut self, step: &mut Step, vid: Vid) -> Option<Vid> {
        self.close_table(step, vid);
        let record = self.vids.remove(&vid)?;
        self.due.remove(&vid);
        step.changes.vids.push(vid);
        let children: Vec<Vid> = self.children(vid).collect();
        for child in &children {
            if let Some(child) = self.vids.get_mut(child) {
                child.parent = record.parent;
            }
        }
        step.changes.vids.extend(&children);
        self.edit_kin(vid, |kin| kin.children.clear());
        if let Some(parent) = record.parent {
            self.edit_kin(parent, |kin| {
                kin.children.remove(&vid);
                kin.children.extend(&children);
            });
        }
        if let Some(lineage) = self.lineages.get_mut(&record.lineage) {
            lineage.vids = lineage.vids.saturating_sub(1);
            if lineage.vids == 0 {
                self.lineages.remove(&record.lineage);
            }
        }
        record.parent
    }

    /// Nobody reads the map of a vid any more: what it named may be free, and it does not inherit. So may it be with
    /// the map of a dead origin that nobody else inherits from, and so on.
    fn close_table(&mut self, step: &mut Step, vid: Vid) {
        let mut next = Some(vid);
        while let Some(vid) = next {
            let Some(record) = self.vids.get_mut(&vid) else { return };
            let maps = std::mem::take(&mut record.maps);
            step.changes.vids.push(vid);
            for (index, owner) in maps.iter() {
                if self.unname_map(*owner, *index) {
                    self.mark_due(step, *owner);
                }
            }
            next = self.end_inheriting(step, vid).filter(|origin| !self.has_clones(*origin));
        }
    }

    /// A vid reads nothing through its lineage's origin any more. Returns the origin if it is dead and the lineage was
    /// released from it.
    fn end_inheriting(&mut self, step: &mut Step, vid: Vid) -> Option<Vid> {
        let record = self.vids.get_mut(&vid)?;
        if !std::mem::take(&mut record.inherits) {
            return None;
        }
        step.changes.vids.push(vid);
        let key = record.lineage;
        let lineage = self.lineages.get_mut(&key)?;
        lineage.inheriting = lineage.inheriting.saturating_sub(1);
        if lineage.inheriting > 0 {
            return None;
        }
        let origin = lineage.origin.take()?;
        self.edit_kin(origin, |kin| kin.clones.remove(&key));
        self.mark_due(step, origin);
        Some(origin).filter(|origin| self.is_dead(*origin))
    }

    /// A dead vid's objects are to be looked through: some may have become free.
    fn mark_due(&mut self, step: &mut Step, vid: Vid) {
        if self.is_dead(vid) {
            self.due.insert(vid, step.at);
            step.changes.sweeps = true;
        }
    }

    /// The dead vids that have this one in their frontier.
    fn dead_above(&self, vid: Vid) -> Vec<Vid> {
        self.dead_from(self.vid(vid).and_then(|record| record.parent))
    }

    /// This vid and those above it, as far up as they are dead.
    fn dead_from(&self, vid: Option<Vid>) -> Vec<Vid> {
        let dead = |vid: Vid| self.vid(vid).filter(|record| !record.is_alive());
        let above = std::iter::successors(vid.and_then(dead), |record| record.parent.and_then(dead));
        above.map(|record| record.vid).collect()
    }

    pub(crate) fn mark_dead_above(&mut self, step: &mut Step, vid: Vid) {
        if self.leaves_sweeps_alone() {
            return;
        }
        for above in self.dead_above(vid) {
            self.mark_due(step, above);
        }
    }

    /// A node has looked through the objects of dead vids, with the frontier that each had at `seen`.
    pub(crate) fn swept(&mut self, step: &mut Step, vids: &[SweptVid], seen: LogIndex) -> Result {
        self.require_storage(step.origin)?;
        if vids.len() > MAX_SWEPT_PER_COMMAND {
            let limit = MAX_SWEPT_PER_COMMAND as u64;
            return Err(Refusal::Limit { what: Limited::Swept, limit });
        }
        if seen > step.at {
            return Err(Refusal::StaleView);
        }
        for SweptVid { vid, empty } in vids {
            let stale = self.due.get(vid).is_some_and(|due| **due > seen) && !self.takes_old_sweeps();
            if stale || !self.is_dead(*vid) {
                continue;
            }
            self.due.remove(vid);
            step.changes.sweeps = true;
            if *empty && self.ends_when_empty(*vid) {
                self.forget(step, *vid);
            }
        }
        Ok(Outcome::Done)
    }

    /// The holder has replaced, confirmed everywhere, entries of its map that named these vids.
    pub(crate) fn replaced(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        generation: Generation,
        vids: &[Vid],
    ) -> Result {
        if vids.len() > MAX_REPLACED_PER_COMMAND {
            let limit = MAX_REPLACED_PER_COMMAND as u64;
            return Err(Refusal::Limit { what: Limited::Replaced, limit });
        }
        let vid = self.held_vid(step, vdi, generation)?;
        // One further up is also reached from above this vid.
        for above in self.dead_above(vid).into_iter().filter(|above| vids.is_empty() || vids.contains(above))
        {
            self.mark_due(step, above);
        }
        Ok(Outcome::Done)
    }

    /// The holder's map has no absent block, no partial entry and no entry of another lineage left.
    pub(crate) fn flattened(&mut self, step: &mut Step, vdi: VdiId, generation: Generation) -> Result {
        let vid = self.held_vid(step, vdi, generation)?;
        self.mark_dead_above(step, vid);
        let origin = self.end_inheriting(step, vid);
        if let Some(origin) = origin.filter(|origin| !self.has_clones(*origin)) {
            self.close_table(step, origin);
        }
        self.edit_vdi(vdi, &mut step.changes, |record| record.flatten = false);
        Ok(Outcome::Done)
    }

    /// A clone is to become one that needs nothing of its origin, or is not any more. There is nothing to do for one that
    /// does not inherit.
    pub(crate) fn want_flat(&mut self, step: &mut Step, vdi: VdiId, wanted: bool) -> Result {
        let vid = self.volume(vdi)?.vid;
        let inherits = self.vid(vid).is_some_and(|record| record.inherits);
        self.edit_vdi(vdi, &mut step.changes, |record| record.flatten = wanted && inherits);
        Ok(Outcome::Done)
    }

    /// The vid that the origin of the command writes to, settled, under this generation.
    pub(crate) fn held_vid(&self, step: &Step, vdi: VdiId, generation: Generation) -> Result<Vid> {
        let record = self.existing(vdi)?;
        if !record.is_held_by(step.origin, generation) {
            return Err(Refusal::StaleGuard);
        }
        if !record.is_settled() {
            return Err(Refusal::NotClean);
        }
        Ok(record.vid)
    }

    pub(crate) fn map_exists(
        &mut self,
        step: &mut Step,
        vid: Vid,
        maps: &[u32],
        generation: Generation,
    ) -> Result {
        self.check_maps(maps)?;
        if !self.writable(vid) {
            return Err(Refusal::NotWritable(vid));
        }
        if !self.vdi_of(vid).is_some_and(|vdi| vdi.is_held_by(step.origin, generation)) {
            return Err(Refusal::StaleGuard);
        }
        for index in maps {
            let Some(record) = self.vids.get_mut(&vid) else { continue };
            let former = Arc::make_mut(&mut record.maps).insert(*index, vid);
            if former != Some(vid) {
                self.name_map(vid, *index);
            }
            if let Some(former) = former.filter(|former| *former != vid)
                && self.unname_map(former, *index)
            {
                self.mark_due(step, former);
            }
        }
        step.changes.vids.push(vid);
        Ok(Outcome::Done)
    }

    fn drops_maps_of_origins(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::OriginsMapDropped);
        #[cfg(not(feature = "mutants"))]
        false
    }

    fn leaves_sweeps_alone(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::DeathLeavesSweepsAlone);
        #[cfg(not(feature = "mutants"))]
        false
    }

    fn takes_old_sweeps(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::SweptOfOldState);
        #[cfg(not(feature = "mutants"))]
        false
    }

    fn buries_too_deep(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::DeletedVidForgotten);
        #[cfg(not(feature = "mutants"))]
        false
    }
}
