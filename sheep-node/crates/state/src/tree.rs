//! How vids hang together: who was made from whom, who reads through whom, and who keeps which map objects. What is
//! derived from the records is in [`Kin`].

use crate::ClusterState;
use crate::VdiRecord;
use crate::shared_map::SharedMap;
use sheep_types::{LogIndex, VdiId, Vid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What other records say of a vid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kin {
    /// Vids whose parent it is.
    pub(crate) children: BTreeSet<Vid>,
    /// Lineages whose origin it is.
    pub(crate) clones: BTreeSet<Vid>,
    /// Its map objects that tables name, and how many do.
    pub(crate) maps: BTreeMap<u32, u32>,
}

impl Kin {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.clones.is_empty() && self.maps.is_empty()
    }
}

impl ClusterState {
    /// Whether a vid is the contents of a VDI.
    pub fn is_alive(&self, vid: Vid) -> bool {
        self.vid(vid).is_some_and(|record| record.is_alive())
    }

    /// Whether a vid is deleted, but known: others may reach objects of it.
    pub fn is_dead(&self, vid: Vid) -> bool {
        self.vid(vid).is_some_and(|record| !record.is_alive())
    }

    /// The vid that reads go on to where the map of this one says nothing; zeros if there is none.
    pub fn origin_of(&self, vid: Vid) -> Option<Vid> {
        if !self.vid(vid)?.inherits {
            return None;
        }
        self.lineage_of(vid)?.origin
    }

    /// The vid that has, at the same index, what is in the absent blocks of partial objects of this vid, whoever
    /// names them.
    pub fn base_of(&self, owner: Vid) -> Option<Vid> {
        self.lineage_of(owner)?.origin
    }

    /// The nearest vids below this one that are alive. Of everybody who may reach its objects they are the only ones
    /// to be asked: if one further down reaches something, so does the one above. Looks at every dead vid between.
    pub fn frontier(&self, vid: Vid) -> Vec<Vid> {
        let mut found = Vec::new();
        let mut next: Vec<Vid> = self.children(vid).collect();
        while let Some(child) = next.pop() {
            if self.is_alive(child) {
                found.push(child);
                if self.overlooks_siblings() {
                    break;
                }
            } else {
                next.extend(self.children(child));
            }
        }
        found.sort_unstable();
        found
    }

    /// Vids that were made from this one, or from one between that is forgotten.
    pub fn children(&self, vid: Vid) -> impl Iterator<Item = Vid> {
        self.kin.get(&vid).into_iter().flat_map(|kin| kin.children.iter().copied())
    }

    /// Lineages that read through this vid, by their first vid.
    pub fn clones(&self, vid: Vid) -> impl Iterator<Item = Vid> {
        self.kin.get(&vid).into_iter().flat_map(|kin| kin.clones.iter().copied())
    }

    /// Dead vids whose objects ought to be looked through, and since which entry. Sorts.
    pub fn sweeps_due(&self) -> Vec<(Vid, LogIndex)> {
        self.due.sorted().into_iter().map(|(vid, since)| (*vid, **since)).collect()
    }

    /// Whether any dead vid ought to be looked through.
    pub fn has_sweeps_due(&self) -> bool {
        self.due.len() > 0
    }

    /// Whether a dead vid is forgotten once nobody in its frontier reaches anything of it. Of a dead vid that stays so.
    pub fn ends_when_empty(&self, vid: Vid) -> bool {
        !self.has_clones(vid) && !self.has_named_maps(vid)
    }

    /// Of a dead vid and those that surely have the same frontier, the ones that are due, by number: from a dead vid
    /// that has no other child up and down.
    pub fn due_together(&self, vid: Vid) -> Vec<Vid> {
        let only_child = |vid: Vid| {
            let mut children = self.children(vid);
            children.next().filter(|_| children.next().is_none())
        };
        let up = std::iter::successors(Some(vid), |vid| {
            let parent = self.vid(*vid)?.parent?;
            (self.is_dead(parent) && only_child(parent).is_some()).then_some(parent)
        });
        let down =
            std::iter::successors(Some(vid), |vid| only_child(*vid).filter(|child| self.is_dead(*child)));
        let mut together: Vec<Vid> =
            up.chain(down.skip(1)).filter(|vid| self.due.get(vid).is_some()).collect();
        together.sort_unstable();
        together
    }

    /// Whether a map object under this vid's number may still be read or is yet to be entered. One of a dead vid that
    /// nobody's table names may be dropped by whoever has it. `true` if the vid is not known: then
    /// [`is_gone`](Self::is_gone) tells.
    pub fn map_is_needed(&self, vid: Vid, index: u32) -> bool {
        !self.is_dead(vid) || self.kin.get(&vid).is_some_and(|kin| kin.maps.contains_key(&index))
    }

    /// Snapshots of a volume, in the order in which they were taken; also after it was deleted.
    pub fn snapshots_of(&self, volume: VdiId) -> Vec<&Arc<VdiRecord>> {
        let ids = self.snapshots.get(&volume).into_iter().flat_map(|ids| ids.iter());
        let mut all: Vec<&Arc<VdiRecord>> = ids.filter_map(|id| self.vdi(*id)).collect();
        all.sort_by_key(|record| record.snapshot_of.map(|of| of.since));
        all
    }

    pub(crate) fn has_children(&self, vid: Vid) -> bool {
        self.children(vid).next().is_some()
    }

    pub(crate) fn has_clones(&self, vid: Vid) -> bool {
        self.clones(vid).next().is_some()
    }

    pub(crate) fn has_named_maps(&self, vid: Vid) -> bool {
        self.kin.get(&vid).is_some_and(|kin| !kin.maps.is_empty())
    }

    /// Changes what is derived about a vid. Nothing is kept of one about whom there is nothing to say, so that the
    /// same records always give the same.
    pub(crate) fn edit_kin<R>(&mut self, vid: Vid, edit: impl FnOnce(&mut Kin) -> R) -> R {
        if let Some(kin) = self.kin.get_mut(&vid) {
            let result = edit(kin);
            if kin.is_empty() {
                self.kin.remove(&vid);
            }
            return result;
        }
        let mut kin = Kin::default();
        let result = edit(&mut kin);
        if !kin.is_empty() {
            self.kin.insert(vid, kin);
        }
        result
    }

    /// A table names a map object.
    pub(crate) fn name_map(&mut self, owner: Vid, index: u32) {
        self.edit_kin(owner, |kin| *kin.maps.entry(index).or_insert(0) += 1);
    }

    /// A table names a map object no more. Returns whether nobody's does now.
    pub(crate) fn unname_map(&mut self, owner: Vid, index: u32) -> bool {
        self.edit_kin(owner, |kin| match kin.maps.get_mut(&index) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(_) => kin.maps.remove(&index).is_some(),
            None => false,
        })
    }

    /// Enters a snapshot among those of its volume, or takes it out.
    pub(crate) fn index_snapshot(&mut self, record: &VdiRecord, present: bool) {
        let Some(of) = record.snapshot_of else { return };
        if self.snapshots.get(&of.vdi).is_none() {
            self.snapshots.insert(of.vdi, BTreeSet::new());
        }
        let Some(ids) = self.snapshots.get_mut(&of.vdi) else { return };
        if present {
            ids.insert(record.id)
        } else {
            ids.remove(&record.id)
        };
        if ids.is_empty() {
            self.snapshots.remove(&of.vdi);
        }
    }

    /// Makes what is derived of vids and lineages anew, after decoding.
    pub(crate) fn rebuild_kin(&mut self) {
        self.kin = SharedMap::default();
        let vids: Vec<_> = self.vids().into_iter().map(Arc::clone).collect();
        for record in vids {
            if let Some(parent) = record.parent {
                self.edit_kin(parent, |kin| kin.children.insert(record.vid));
            }
            for (index, owner) in record.maps.iter() {
                self.name_map(*owner, *index);
            }
        }
        let lineages: Vec<_> = self.lineages().into_iter().map(Arc::clone).collect();
        for record in lineages {
            if let Some(origin) = record.origin {
                self.edit_kin(origin, |kin| kin.clones.insert(record.lineage));
            }
        }
    }

    fn overlooks_siblings(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::FrontierOverlooksSiblings);
        #[cfg(not(feature = "mutants"))]
        false
    }
}
