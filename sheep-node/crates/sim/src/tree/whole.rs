//! What must hold in the end, when nothing is under way any more.

use super::Tree;
use crate::world::World;
use sheep_state::ClusterState;
use sheep_types::VdiId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

impl Tree {
    /// Narrows what everything may contain by what it goes on from.
    fn agree(&mut self) -> Result<(), String> {
        let mut done = BTreeSet::new();
        let all: Vec<VdiId> = self.items.keys().copied().collect();
        for vdi in all {
            let mut line = vec![vdi];
            while let Some(base) = line.last().and_then(|last| self.items.get(last)?.base) {
                line.push(base);
            }
            for pair in line.windows(2).rev() {
                let [vdi, base] = *pair else { continue };
                if done.insert(vdi) {
                    let base = self.item(base).oracle.clone();
                    let item = self.item(vdi);
                    item.oracle.agree(&base).map_err(|problem| format!("{}: {problem}", item.name))?;
                }
            }
        }
        Ok(())
    }
}

impl World {
    fn states(&self) -> impl Iterator<Item = (usize, &Arc<ClusterState>)> {
        self.nodes.iter().filter_map(|node| Some((node.index, node.running.as_ref()?.control.state())))
    }

    /// Everybody knows what was done by now.
    pub(crate) fn end_of_limbo(&mut self) -> Result<(), String> {
        self.look_into_limbo();
        let newest = self.states().map(|(_, state)| state).max_by_key(|state| state.applied()).cloned();
        newest.map_or(Ok(()), |state| self.tree.settled(&state))
    }

    /// Every node knows exactly what was made and not deleted.
    pub(crate) fn same_tree(&self) -> Result<(), String> {
        let wanted: BTreeMap<VdiId, &str> =
            self.tree.alive().map(|(vdi, item)| (vdi, item.name.as_str())).collect();
        for (node, state) in self.states() {
            let known: BTreeMap<VdiId, &str> =
                state.vdis().into_iter().map(|record| (record.id, record.name.as_str())).collect();
            if known != wanted {
                return Err(format!("node {node} knows {known:?}, but there are {wanted:?}"));
            }
        }
        Ok(())
    }

    /// What was not written since is as in what it goes on from.
    pub(crate) fn agree(&mut self) -> Result<(), String> {
        self.tree.agree()
    }

    /// Whether a volume is settled.
    pub(crate) fn is_clean(&self, vdi: VdiId) -> bool {
        let state = self.states().next().map(|(_, state)| state);
        state.and_then(|state| state.vdi(vdi)).is_some_and(|record| record.is_clean() || record.is_snapshot())
    }
}
