//! Random trees of snapshots and clones, with volumes that are written and sweeps that remove: a world that keeps
//! objects and maps as nodes do, by the rules of the documentation, beside a list of what each volume was given. What
//! is read through the maps must be what was given, and in the end nothing may be left over.

mod tree;

use crate::cluster::Cluster;
use proptest::prelude::*;
use sheep_state::{ClusterState, Command, VdiRecord, VidRecord};
use sheep_types::{Birth, LogIndex, VdiId, Vid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Objects of a volume; two to a block of a map object, two blocks to a map object.
const OBJECTS: u32 = 8;
const PER_MAP: u32 = 4;
const PER_BLOCK: u32 = 2;

/// What a map says of an object: whose it is (0: nobody's), and whether absent parts are the base's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    owner: Vid,
    partial: bool,
}

type MapObject = [Option<[Entry; PER_BLOCK as usize]>; 2];
/// An object has two parts, each absent or with some value.
type Object = [Option<u32>; 2];
type Contents = [[u32; 2]; OBJECTS as usize];

#[derive(Clone, Debug)]
enum Op {
    Write { vdi: usize, object: u32, part: usize },
    Discard { vdi: usize, object: u32 },
    Fill { vdi: usize, object: u32 },
    Flatten { vdi: usize },
    Create,
    Open { vdi: usize },
    Close { vdi: usize },
    Snapshot { vdi: usize },
    Group { vdi: usize, other: usize },
    Late { vdi: usize, kind: usize },
    Clone { vdi: usize },
    Rollback { vdi: usize, snapshot: usize },
    Delete { vdi: usize },
    BeginSweep { which: usize },
    EndSweep { which: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let vdi = || 0..12usize;
    let object = || 0..OBJECTS;
    prop_oneof![
        12 => (vdi(), object(), 0..2usize).prop_map(|(vdi, object, part)| Op::Write { vdi, object, part }),
        2 => (vdi(), object()).prop_map(|(vdi, object)| Op::Discard { vdi, object }),
        2 => (vdi(), object()).prop_map(|(vdi, object)| Op::Fill { vdi, object }),
        1 => vdi().prop_map(|vdi| Op::Flatten { vdi }),
        1 => Just(Op::Create),
        1 => vdi().prop_map(|vdi| Op::Open { vdi }),
        3 => vdi().prop_map(|vdi| Op::Close { vdi }),
        6 => vdi().prop_map(|vdi| Op::Snapshot { vdi }),
        2 => (vdi(), vdi()).prop_map(|(vdi, other)| Op::Group { vdi, other }),
        2 => (vdi(), 0..4usize).prop_map(|(vdi, kind)| Op::Late { vdi, kind }),
        4 => vdi().prop_map(|vdi| Op::Clone { vdi }),
        2 => (vdi(), vdi()).prop_map(|(vdi, snapshot)| Op::Rollback { vdi, snapshot }),
        7 => vdi().prop_map(|vdi| Op::Delete { vdi }),
        3 => (0..4usize).prop_map(|which| Op::BeginSweep { which }),
        3 => (0..4usize).prop_map(|which| Op::EndSweep { which }),
    ]
}

/// A sweep that has been worked out and is yet to be done.
#[derive(Debug)]
struct Sweep {
    vid: Vid,
    seen: LogIndex,
    needed: BTreeSet<u32>,
}

struct World {
    cluster: Cluster,
    objects: BTreeMap<(Vid, u32), (Birth, Object)>,
    maps: BTreeMap<(Vid, u32), (Birth, MapObject)>,
    given: BTreeMap<VdiId, Contents>,
    sweeps: Vec<Sweep>,
    number: u32,
}

/// The gateway that holds everything.
const HOLDER: u64 = 100;

impl World {
    fn new(cluster: Cluster) -> Self {
        let (objects, maps, given) = Default::default();
        Self { cluster, objects, maps, given, sweeps: Vec::new(), number: 0 }
    }

    fn live(&mut self, ops: &[Op]) {
        self.create();
        for op in ops {
            self.take(op);
            self.drop_unneeded();
            self.check();
        }
        self.sweep_all();
        self.check();
        let (objects, maps) = self.reached();
        assert_eq!(self.objects.keys().copied().collect::<BTreeSet<_>>(), objects, "exactly what is reached");
        assert_eq!(self.maps.keys().copied().collect::<BTreeSet<_>>(), maps, "and so the map objects");
        let state = &self.cluster.state;
        assert_eq!(ClusterState::decode_snapshot(&state.encode_snapshot()).as_ref(), Ok(state));
        self.delete_all();
    }

    /// Everything goes, in an order that depends on what happened before.
    fn delete_all(&mut self) {
        while !self.given.is_empty() {
            self.number = self.number.wrapping_mul(7).wrapping_add(3);
            self.take(&Op::Delete { vdi: self.number as usize % 1000 });
            self.drop_unneeded();
            self.check();
        }
        assert!(self.objects.is_empty() && self.maps.is_empty(), "{:?} {:?}", self.objects, self.maps);
        let state = &self.cluster.state;
        assert!(state.vids().is_empty() && state.lineages().is_empty() && state.sweeps_due().is_empty());
    }

    fn take(&mut self, op: &Op) {
        match *op {
            Op::Create => self.create(),
            Op::Write { vdi, object, part } => {
                if let Some(volume) = self.open(vdi) {
                    self.write(&volume, object, part);
                }
            }
            Op::Discard { vdi, object } => {
                if let Some(volume) = self.open(vdi) {
                    self.discard(&volume, object);
                }
            }
            Op::Fill { vdi, object } => {
                if let Some(volume) = self.open(vdi) {
                    self.fill(volume.vid, volume.id, object);
                }
            }
            Op::Flatten { vdi } => self.flatten(vdi),
            Op::Open { vdi } => drop(self.open(vdi)),
            Op::Close { vdi } => drop(self.pick(vdi, false).map(|record| self.close(&record))),
            Op::Snapshot { vdi } => drop(self.pick(vdi, false).map(|record| self.snapshot(&[record]))),
            Op::Group { vdi, other } => self.group(vdi, other),
            Op::Late { vdi, kind } => self.late(vdi, kind),
            Op::Clone { vdi } => self.clone_of(vdi),
            Op::Rollback { vdi, snapshot } => self.rollback(vdi, snapshot),
            Op::Delete { vdi } => self.delete(vdi),
            Op::BeginSweep { which } => self.begin_sweep(which),
            Op::EndSweep { which } => {
                if !self.sweeps.is_empty() {
                    let sweep = self.sweeps.swap_remove(which % self.sweeps.len());
                    let _ = self.end_sweep(&sweep);
                }
            }
        }
    }

    fn pick(&self, which: usize, snapshot: bool) -> Option<Arc<VdiRecord>> {
        let all = self.cluster.state.vdis();
        let all: Vec<_> = all.into_iter().filter(|record| record.is_snapshot() == snapshot).collect();
        all.get(which % all.len().max(1)).map(|record| Arc::clone(record))
    }

    fn vid(&self, vid: Vid) -> &VidRecord {
        self.cluster.state.vid(vid).unwrap_or_else(|| panic!("{vid} is known"))
    }

    fn name(&mut self) -> String {
        self.number += 1;
        format!("v{}", self.number)
    }

    fn create(&mut self) {
        let name = self.name();
        let (vdi, _) = self.cluster.vdi(&name);
        self.given.insert(vdi, Contents::default());
    }

    fn open(&mut self, which: usize) -> Option<Arc<VdiRecord>> {
        let record = self.pick(which, false)?;
        if record.lock.is_none() {
            self.cluster.open(record.id);
        }
        self.cluster.state.vdi(record.id).map(Arc::clone)
    }

    fn close(&mut self, record: &VdiRecord) {
        if record.lock.is_some() {
            self.cluster.close(record.id);
        }
    }

    // What holders do.

    fn write(&mut self, volume: &VdiRecord, index: u32, part: usize) {
        self.number += 1;
        let (vid, value) = (volume.vid, self.number);
        let entry = self.entry(vid, index);
        let own_lineage = |owner: Vid| self.vid(owner).lineage == self.vid(vid).lineage;
        let (mut object, partial) = match entry.owner {
            Vid(0) => (Object::default(), false),
            owner if owner == vid || own_lineage(owner) => (self.objects[&(owner, index)].1, entry.partial),
            _ => (Object::default(), true),
        };
        object[part] = Some(value);
        self.put(volume, index, object, partial);
        self.given.get_mut(&volume.id).unwrap()[index as usize][part] = value;
    }

    fn put(&mut self, volume: &VdiRecord, index: u32, object: Object, partial: bool) {
        let birth = self.vid(volume.vid).birth;
        self.objects.insert((volume.vid, index), (birth, object));
        self.set_entry(volume.vid, volume.id, index, Entry { owner: volume.vid, partial });
    }

    fn discard(&mut self, volume: &VdiRecord, index: u32) {
        self.set_entry(volume.vid, volume.id, index, Entry::default());
        self.objects.remove(&(volume.vid, index));
        self.given.get_mut(&volume.id).unwrap()[index as usize] = [0, 0];
    }

    fn fill(&mut self, vid: Vid, vdi: VdiId, index: u32) {
        let entry = self.entry(vid, index);
        if entry == (Entry { owner: vid, partial: true }) {
            let contents = self.read(vid, index).map(Some);
            self.objects.get_mut(&(vid, index)).unwrap().1 = contents;
            self.set_entry(vid, vdi, index, Entry { owner: vid, partial: false });
        }
    }

    /// Everything that the map takes from other lineages becomes the volume's own.
    fn flatten(&mut self, which: usize) {
        let Some(volume) = self.open(which) else { return };
        for index in 0..OBJECTS {
            let entry = self.entry(volume.vid, index);
            let foreign =
                entry.owner != Vid(0) && self.vid(entry.owner).lineage != self.vid(volume.vid).lineage;
            if entry.partial || foreign {
                let contents = self.read(volume.vid, index).map(Some);
                self.put(&volume, index, contents, false);
            } else {
                self.set_entry(volume.vid, volume.id, index, entry);
            }
        }
        let generation = volume.last_generation;
        self.cluster.run(HOLDER, Command::Flattened { vdi: volume.id, generation }).unwrap();
        assert_eq!(self.cluster.state.origin_of(volume.vid), None);
    }

    /// Writes a map entry, in a map object of the vid itself, and says which dead vids are reached no more by it.
    fn set_entry(&mut self, vid: Vid, vdi: VdiId, index: u32, entry: Entry) {
        let before = self.reach(vid, index);
        let map = index / PER_MAP;
        let block = (index % PER_MAP / PER_BLOCK) as usize;
        let generation = self.cluster.generation(vdi).unwrap();
        let inherited: Vec<Entry> =
            (0..PER_BLOCK).map(|e| self.entry(vid, index - index % PER_BLOCK + e)).collect();
        let record = self.vid(vid);
        let (birth, from) = (record.birth, record.maps.get(&map).copied());
        let mut object = from.map_or([None; 2], |owner| self.maps[&(owner, map)].1);
        let entries = object[block].get_or_insert([inherited[0], inherited[1]]);
        entries[(index % PER_BLOCK) as usize] = entry;
        self.maps.insert((vid, map), (birth, object));
        if from != Some(vid) {
            self.cluster.run(HOLDER, Command::MapExists { vid, maps: vec![map], generation }).unwrap();
        }
        let after = self.reach(vid, index);
        let vids: Vec<Vid> = before.difference(&after).copied().collect();
        if vids.iter().any(|vid| self.cluster.state.is_dead(*vid)) {
            self.cluster.run(HOLDER, Command::Replaced { vdi, generation, vids }).unwrap();
        }
    }

    // What readers see.

    fn entry(&self, vid: Vid, index: u32) -> Entry {
        let block = (index % PER_MAP / PER_BLOCK) as usize;
        let map = index / PER_MAP;
        if let Some(owner) = self.vid(vid).maps.get(&map) {
            let found = self.maps.get(&(*owner, map));
            let (_, object) = found.unwrap_or_else(|| panic!("map object {map} of {owner}, for {vid}"));
            if let Some(entries) = object[block] {
                return entries[(index % PER_BLOCK) as usize];
            }
        }
        self.cluster.state.origin_of(vid).map_or(Entry::default(), |origin| self.entry(origin, index))
    }

    fn read(&self, vid: Vid, index: u32) -> [u32; 2] {
        let entry = self.entry(vid, index);
        if entry.owner == Vid(0) {
            return [0, 0];
        }
        let found = self.objects.get(&(entry.owner, index));
        let (_, object) = found.unwrap_or_else(|| panic!("object {index} of {}, for {vid}", entry.owner));
        [0, 1].map(|part: usize| match object[part] {
            Some(value) => value,
            None if entry.partial => {
                let base = self.cluster.state.base_of(entry.owner).expect("a partial object has a base");
                self.read(base, index)[part]
            }
            None => 0,
        })
    }

    /// Whose objects a vid reads at an index.
    fn reach(&self, vid: Vid, index: u32) -> BTreeSet<Vid> {
        let entry = self.entry(vid, index);
        if entry.owner == Vid(0) {
            return BTreeSet::new();
        }
        let mut found = BTreeSet::from([entry.owner]);
        if entry.partial {
            let base = self.cluster.state.base_of(entry.owner).expect("a partial object has a base");
            found.extend(self.reach(base, index));
        }
        found
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_reached_stays_and_the_rest_goes(ops in prop::collection::vec(op(), 1..150)) {
        World::new(Cluster::with(2)).live(&ops);
    }
}

/// Every broken variant is noticed.
#[cfg(feature = "mutants")]
mod broken {
    use super::*;
    use proptest::test_runner::{Config, TestRunner};
    use sheep_state::Mutant;

    #[test]
    fn variants_are_caught() {
        for mutant in [
            Mutant::SnapshotUnguarded,
            Mutant::DeletedVidForgotten,
            Mutant::FrontierOverlooksSiblings,
            Mutant::OriginsMapDropped,
            Mutant::DeathLeavesSweepsAlone,
            Mutant::SweptOfOldState,
        ] {
            let config =
                Config { cases: 5_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
            let mut runner = TestRunner::new_with_rng(config, TestRunner::deterministic().new_rng());
            let result = runner.run(&prop::collection::vec(op(), 1..150), |ops| {
                let mut cluster = Cluster::with(2);
                cluster.state.set_mutant(Some(mutant));
                World::new(cluster).live(&ops);
                Ok(())
            });
            assert!(result.is_err(), "{mutant:?} was not noticed");
        }
    }
}
