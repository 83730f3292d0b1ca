//! Snapshots of several volumes at one instant: who has them open is asked to stand still, and when all do, or are closed,
//! one command takes all of them. Now and then whoever asked is never heard of again.

use super::What;
use super::operator::snapshot_item;
use crate::world::World;
use sheep_state::{ClusterState, Command, Guard, VdiRecord};
use sheep_types::{Generation, VdiId};
use std::sync::Arc;

/// After so long the group is called off.
const PATIENCE: u64 = 4_000_000_000;

/// A group that is to be.
#[derive(Debug)]
pub(crate) struct Group {
    token: u64,
    /// The volumes, and the generation of those that were open.
    members: Vec<(VdiId, Option<Generation>)>,
    since: u64,
}

impl World {
    fn state_at(&self, at: usize) -> Option<Arc<ClusterState>> {
        Some(Arc::clone(&self.nodes[at].running.as_ref()?.view.as_ref()?.state))
    }

    /// Asks for one.
    pub(super) fn begins_group(&mut self) {
        let at = self.rng.index(self.nodes.len());
        let Some(state) = self.state_at(at).filter(|_| self.tree.group.is_none()) else { return };
        let volumes: Vec<VdiId> = self
            .tree
            .alive()
            .filter(|(_, item)| !item.is_snapshot() && !item.busy)
            .map(|(vdi, _)| vdi)
            .collect();
        let mut members: Vec<(VdiId, Option<Generation>)> = Vec::new();
        for _ in 0..self.rng.range(2, 4) {
            let Some(vdi) = self.rng.pick(&volumes).copied() else { return };
            let Some(record) = state.vdi(vdi) else { continue };
            if members.iter().all(|(other, _)| *other != vdi) {
                members.push((vdi, record.lock.map(|lock| lock.generation)));
            }
        }
        let token = self.tree.number();
        for (vdi, generation) in &members {
            if let Some(generation) = *generation {
                self.order(at, &Command::AskPause { vdi: *vdi, generation, token });
            }
        }
        // Nobody comes for it.
        if !self.rng.chance(200_000) {
            self.tree.group = Some(Group { token, members, since: self.now });
        }
    }

    /// Takes the snapshots when all stand still, or calls it off.
    pub(super) fn carries_group_on(&mut self) {
        let Some(group) = self.tree.group.take() else { return };
        let at = self.rng.index(self.nodes.len());
        let guards = self.state_at(at).and_then(|state| guards(&state, &group));
        let late = self.now - group.since > PATIENCE;
        // Also when it is too late: then it must do nothing.
        if let Some(guards) = guards.filter(|_| !late || self.rng.chance(300_000)) {
            return self.takes_group(at, &group, &guards);
        }
        if !late {
            self.tree.group = Some(group);
            return;
        }
        for (vdi, generation) in group.members {
            if let Some(generation) = generation {
                self.order(at, &Command::Resume { vdi, generation, token: group.token });
            }
        }
    }

    fn takes_group(&mut self, at: usize, group: &Group, guards: &[Guard]) {
        let tag = format!("g{}", group.token);
        let volumes = || group.members.iter().map(|(vdi, _)| *vdi);
        // One that is closed must stay so, or the reference would not know what was taken.
        let mut unfit = |(vdi, guard): (VdiId, &Guard)| {
            let item = self.tree.item(vdi);
            item.dead || item.busy || *guard == Guard::ClosedClean && item.user.is_some()
        };
        // Nor may somebody have been faster whose rollback nobody has heard of yet.
        if volumes().zip(guards).any(&mut unfit) || volumes().any(|vdi| !self.is_quiet(vdi)) {
            return;
        }
        let taken = volumes().map(|vdi| self.tree.taken(vdi, &tag)).collect();
        let items = volumes().zip(guards).map(|(vdi, guard)| snapshot_item(vdi, *guard, tag.clone()));
        let Some(by) = self.order_at(at, &Command::Snapshot { items: items.collect() }) else { return };
        self.counts.groups += 1;
        self.tree.begin_busy(by, What::Snapshots { taken, closed: true });
    }
}

/// What all volumes are like, if all are ready.
fn guards(state: &ClusterState, group: &Group) -> Option<Vec<Guard>> {
    let ready = |record: &VdiRecord| match record.lock {
        Some(lock) if lock.paused == Some(group.token) => {
            Some(Guard::Paused { generation: lock.generation, token: group.token })
        }
        None if record.is_clean() => Some(Guard::ClosedClean),
        _ => None,
    };
    group.members.iter().map(|(vdi, _)| state.vdi(*vdi).and_then(|record| ready(record))).collect()
}
