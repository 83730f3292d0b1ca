//! Flattening: clones that are to need nothing of their origins any more. Who holds one does it, and while nobody does
//! some node opens it for the purpose.

use super::{Tree, What};
use crate::world::World;
use sheep_datapath::{OpenMode, View};
use sheep_state::{ClusterState, Command, VidRecord};
use sheep_types::{VdiId, Vid};
use std::collections::BTreeMap;

/// In an entry of a map: absent blocks of the object are those of its base.
const PARTIAL: u32 = 1 << 31;
/// Handles of volumes that are open for nobody: a number that no client has.
const NOBODY: u64 = 63;

impl Tree {
    /// Whether a volume began as a clone.
    pub(crate) fn is_clone(&self, vdi: VdiId) -> bool {
        let base = |vdi: &VdiId| self.items.get(vdi).and_then(|item| item.base);
        let mut bases = std::iter::successors(base(&vdi), base);
        bases.any(|base| self.items.get(&base).is_some_and(|base| base.of != Some(vdi)))
    }
}

impl World {
    /// Some volume is to be flattened, or not any more.
    pub(super) fn flattens(&mut self) {
        let Some(vdi) = self.pick_item(|item| !item.is_snapshot()) else { return };
        let wanted = self.rng.chance(850_000);
        let Some(by) = self.order_of(&Command::Flatten { vdi, wanted }) else { return };
        self.tree.begin(by, What::Flatten);
    }

    /// A node opens a volume that is to be flattened and that nobody uses, as far as it knows.
    pub(super) fn flattens_unused(&mut self) {
        let Some(view) = self.some_view().filter(|view| view.state.flattening().next().is_some()) else {
            return;
        };
        let is_unused = |vdi: &VdiId| {
            let record = view.state.vdi(*vdi);
            record.is_some_and(|record| record.lock.is_none() && record.readers.is_empty())
        };
        let unused: Vec<VdiId> = view.state.flattening().filter(is_unused).collect();
        let node = self.rng.index(self.nodes.len());
        let Some(vdi) = self.rng.pick(&unused).copied() else { return };
        if self.nodes[node].paused_until > self.now || self.rng.chance(500_000) {
            return;
        }
        let handle = (self.background.len() as u64 + 1) * 64 + NOBODY;
        self.background.insert(handle, vdi);
        let at = self.nodes[node].clock(self.now);
        self.with_shard(node, |shard| shard.gateway().open(at, handle, vdi, OpenMode::Flatten));
    }

    /// A volume is open that is perhaps open for nobody. Whoever had it before will do nothing more, and what all who held it
    /// have forgotten may be gone.
    pub(crate) fn nobody_opened(&mut self, node: usize, handle: u64) {
        let Some(vdi) = self.background.get(&handle).copied() else { return };
        self.begins_session(vdi, node);
        let view = self.nodes[node].running.as_ref().and_then(|running| running.view.clone());
        if let Some(view) = view
            && let Err(problem) = self.tree.opened(vdi, &view.state, true)
        {
            self.violate(problem);
        }
    }

    /// A volume is lost that was perhaps open for nobody.
    pub(crate) fn nobody_loses(&mut self, node: usize, handle: u64) {
        if self.background.contains_key(&handle) {
            let at = self.nodes[node].clock(self.now);
            self.with_shard(node, |shard| shard.gateway().close(at, handle));
        }
    }

    fn some_view(&self) -> Option<std::sync::Arc<View>> {
        self.nodes.iter().find_map(|node| node.running.as_ref()?.view.clone())
    }

    /// Volumes that are to be flattened, or that are open for that.
    pub(crate) fn flattening(&self) -> Vec<VdiId> {
        let Some(view) = self.some_view() else { return Vec::new() };
        let held = |vdi: &VdiId| {
            view.state.vdi(*vdi).and_then(|record| record.lock).is_some_and(|lock| lock.background)
        };
        let all = view.state.vdis().into_iter().map(|record| record.id);
        let wanted: Vec<VdiId> = view.state.flattening().collect();
        all.filter(|vdi| held(vdi) || wanted.contains(vdi)).collect()
    }

    /// What does not inherit names nothing but whole objects of its own lineage.
    pub(super) fn check_flat(
        &mut self,
        state: &ClusterState,
        maps: &BTreeMap<Vid, Option<Vec<u32>>>,
    ) -> Result<(), String> {
        let lineage = |vid: Vid| state.vid(vid).map(|record| record.lineage);
        let names_others = |record: &VidRecord| {
            let entries = record.maps.get(&0).and_then(|owner| maps.get(owner)?.as_ref());
            let mut entries = entries.into_iter().flatten().filter(|entry| **entry != 0);
            entries
                .any(|entry| entry & PARTIAL != 0 || lineage(Vid(entry & !PARTIAL)) != Some(record.lineage))
        };
        for record in state.vids().iter().filter(|record| record.is_alive() && !record.inherits) {
            if names_others(record) {
                return Err(format!("{} counts as flat, but its map names what is not its own", record.vid));
            }
        }
        let flat = |vdi: &VdiId| {
            let record = state.vdi(*vdi).and_then(|vdi| state.vid(vdi.vid));
            record.is_some_and(|record| !record.inherits)
        };
        let clones = self.tree.alive().map(|(vdi, _)| vdi).filter(|vdi| self.tree.is_clone(*vdi));
        self.counts.flattened += clones.filter(flat).count() as u64;
        Ok(())
    }
}
