//! Snapshots, clones, deletion and sweeps in the world, and what must always be so.

use super::{HOLDER, OBJECTS, Sweep, World};
use crate::cluster::item;
use sheep_state::{Command, Guard, Outcome, SnapshotItem, SweptVid, VdiRecord};
use sheep_types::{Generation, VdiId, Vid};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Objects, or map objects.
type Numbers = BTreeSet<(Vid, u32)>;

impl World {
    fn guard(record: &VdiRecord) -> Guard {
        record.lock.map_or(Guard::ClosedClean, |lock| Guard::Held(lock.generation))
    }

    pub(super) fn snapshot(&mut self, records: &[Arc<VdiRecord>]) {
        let tag = self.name();
        let items = records.iter().map(|record| item(record.id, Self::guard(record), &tag)).collect();
        self.order_snapshots(items);
    }

    fn order_snapshots(&mut self, items: Vec<SnapshotItem>) {
        let Ok(Outcome::Snapshots(made)) = self.cluster.run(HOLDER, Command::Snapshot { items }) else {
            panic!("a snapshot that nothing speaks against")
        };
        for made in made {
            let contents = self.given[&made.volume];
            assert!(self.given.insert(made.vdi, contents).is_none(), "an id of its own");
            assert_eq!(self.cluster.state.vdi(made.volume).unwrap().vid, made.working);
        }
    }

    /// Two volumes at one instant: those that are held pause first, and somebody else orders the snapshot.
    pub(super) fn group(&mut self, vdi: usize, other: usize) {
        let (Some(first), Some(second)) = (self.pick(vdi, false), self.pick(other, false)) else { return };
        if first.id == second.id {
            return;
        }
        let tag = self.name();
        let token = u64::from(self.number);
        let mut items = Vec::new();
        for record in [first, second] {
            let guard = match record.lock {
                None => Guard::ClosedClean,
                Some(lock) => {
                    let (vdi, generation) = (record.id, lock.generation);
                    self.cluster.run(1, Command::AskPause { vdi, generation, token }).unwrap();
                    self.cluster.run(HOLDER, Command::Pause { vdi, generation, token }).unwrap();
                    Guard::Paused { generation, token }
                }
            };
            items.push(item(record.id, guard, &tag));
        }
        self.order_snapshots(items);
    }

    /// A snapshot that was ordered too late, or by somebody else, does nothing.
    pub(super) fn late(&mut self, vdi: usize, kind: usize) {
        let Some(record) = self.pick(vdi, false) else { return };
        let generation = record.last_generation;
        let (node, guard) = match (kind, record.lock) {
            (0, Some(_)) => (HOLDER, Guard::ClosedClean),
            (1, Some(_)) => (101, Guard::Held(generation)),
            (2, _) => (HOLDER, Guard::Held(Generation(generation.0.wrapping_sub(1)))),
            (_, _) => (HOLDER, Guard::Paused { generation, token: 0 }),
        };
        let tag = self.name();
        let command = Command::Snapshot { items: vec![item(record.id, guard, &tag)] };
        assert!(self.cluster.run(node, command).is_err(), "{guard:?}");
    }

    pub(super) fn clone_of(&mut self, which: usize) {
        let Some(record) = self.pick(which, true) else { return };
        let name = self.name();
        let (vdi, _) = self.cluster.clone_of(record.id, &name);
        self.given.insert(vdi, self.given[&record.id]);
    }

    pub(super) fn rollback(&mut self, vdi: usize, snapshot: usize) {
        let Some(record) = self.pick(vdi, false) else { return };
        let state = &self.cluster.state;
        let snapshots: Vec<VdiId> = state.snapshots_of(record.id).iter().map(|record| record.id).collect();
        let Some(snapshot) = snapshots.get(snapshot % snapshots.len().max(1)).copied() else { return };
        self.close(&record);
        let guard = Guard::Closed(record.last_generation);
        self.cluster.run(1, Command::Rollback { vdi: record.id, snapshot, guard }).unwrap();
        self.given.insert(record.id, self.given[&snapshot]);
    }

    pub(super) fn delete(&mut self, which: usize) {
        let all = self.cluster.state.vdis();
        let Some(record) = all.get(which % all.len().max(1)).map(|record| Arc::clone(record)) else { return };
        self.close(&record);
        self.cluster.delete(record.id);
        self.given.remove(&record.id);
    }

    // What storage nodes do.

    /// Objects that a vid's frontier reaches; as a node finds it out that sweeps.
    fn needed(&self, vid: Vid) -> BTreeSet<u32> {
        let frontier = self.cluster.state.frontier(vid);
        let reached = |index: &u32| frontier.iter().any(|below| self.reach(*below, *index).contains(&vid));
        (0..OBJECTS).filter(reached).collect()
    }

    pub(super) fn begin_sweep(&mut self, which: usize) {
        let due = self.cluster.state.sweeps_due();
        if let Some((vid, _)) = due.get(which % due.len().max(1)) {
            let seen = self.cluster.state.applied();
            self.sweeps.push(Sweep { vid: *vid, seen, needed: self.needed(*vid) });
        }
    }

    pub(super) fn end_sweep(&mut self, sweep: &Sweep) -> bool {
        self.objects.retain(|(vid, index), _| *vid != sweep.vid || sweep.needed.contains(index));
        let vids = vec![SweptVid { vid: sweep.vid, empty: sweep.needed.is_empty() }];
        self.cluster.run(1, Command::Swept { vids, seen: sweep.seen }).unwrap();
        self.cluster.state.sweeps_due().iter().all(|(vid, _)| *vid != sweep.vid)
    }

    pub(super) fn sweep_all(&mut self) {
        for sweep in std::mem::take(&mut self.sweeps) {
            self.end_sweep(&sweep);
            self.drop_unneeded();
        }
        while !self.cluster.state.sweeps_due().is_empty() {
            self.begin_sweep(0);
            let sweep = self.sweeps.pop().unwrap();
            assert!(self.end_sweep(&sweep), "nothing has happened in between");
            self.drop_unneeded();
        }
    }

    pub(super) fn drop_unneeded(&mut self) {
        let state = &self.cluster.state;
        self.objects.retain(|(vid, _), (birth, _)| !state.is_gone(*vid, *birth));
        self.maps.retain(|(vid, index), (birth, _)| {
            !state.is_gone(*vid, *birth) && state.map_is_needed(*vid, *index)
        });
    }

    // What must be.

    /// Everything that somebody alive reaches, found by looking at everybody.
    pub(super) fn reached(&self) -> (Numbers, Numbers) {
        let (mut objects, mut maps) = (BTreeSet::new(), BTreeSet::new());
        for record in self.cluster.state.vdis() {
            for index in 0..OBJECTS {
                objects.extend(self.reach(record.vid, index).into_iter().map(|owner| (owner, index)));
            }
            let mut next = Some(record.vid);
            while let Some(vid) = next {
                maps.extend(self.vid(vid).maps.iter().map(|(index, owner)| (*owner, *index)));
                next = self.cluster.state.origin_of(vid);
            }
        }
        (objects, maps)
    }

    pub(super) fn check(&self) {
        let state = &self.cluster.state;
        assert!(state.vdis().iter().map(|record| record.id).eq(self.given.keys().copied()));
        for (vdi, contents) in &self.given {
            let vid = state.vdi(*vdi).unwrap().vid;
            assert!(state.is_alive(vid) && self.vid(vid).vdi == Some(*vdi));
            let seen: Vec<[u32; 2]> = (0..OBJECTS).map(|index| self.read(vid, index)).collect();
            assert_eq!(seen, contents, "{vdi:?} {vid}");
        }
        // Asking the frontier finds everything that asking everybody does.
        let (objects, _) = self.reached();
        for record in state.vids().into_iter().filter(|record| !record.is_alive()) {
            let all = objects.iter().filter(|(vid, _)| *vid == record.vid).map(|(_, index)| *index);
            assert_eq!(self.needed(record.vid), all.collect(), "{}", record.vid);
            assert!(!state.frontier(record.vid).is_empty() && !state.writable(record.vid));
        }
        for record in state.lineages() {
            let all: Vec<_> = state.vids().into_iter().filter(|vid| vid.lineage == record.lineage).collect();
            let inheriting = all.iter().filter(|vid| vid.inherits).count();
            assert_eq!((record.vids, record.inheriting), (all.len() as u32, inheriting as u32));
            assert_eq!(record.origin.is_some(), inheriting > 0);
        }
    }
}
