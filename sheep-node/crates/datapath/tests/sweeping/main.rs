//! Deletion in any order: in the end the nodes have exactly what somebody who is alive reaches.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lost;
#[cfg(feature = "mutants")]
mod mutants;
mod rules;
#[path = "../support/mod.rs"]
mod support;

use bytes::Bytes;
use core::time::Duration;
use sheep_datapath::{GatewayOutput, Mutants, OpenMode, ReadExtent, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{CloneVdi, Command, Guard, Outcome, SnapshotMade};
use sheep_types::{NodeId, ObjectId, ObjectKind, VdiId, Vid};
use std::collections::{BTreeMap, BTreeSet};
use support::{HAND, Net, Rng};

const GATEWAY: NodeId = NodeId(101);
const OBJECTS: u32 = 6;
/// Written at once: two blocks, so that objects of clones are partial.
const WRITTEN: usize = 8192;

/// What a vid's map says: whose object, and whether it is partial.
type Map = BTreeMap<u32, (Vid, bool)>;

#[derive(Clone)]
struct Contents {
    vid: Vid,
    map: Map,
    /// The snapshot that it was cloned from.
    origin: Option<Vid>,
    /// First byte of each object.
    bytes: [u8; OBJECTS as usize],
}

struct Tree {
    net: Net,
    rng: Rng,
    next: u64,
    tag: u8,
    /// What is alive.
    alive: BTreeMap<VdiId, Contents>,
    /// Snapshots, and of which volume.
    snapshots: BTreeMap<VdiId, VdiId>,
    open: BTreeMap<VdiId, u64>,
    /// Maps of all vids that can be the base of something, dead ones too.
    maps: BTreeMap<Vid, (Map, Option<Vid>)>,
}

impl Tree {
    fn new(seed: u64) -> Self {
        Self::without(seed, Mutants::default())
    }

    /// One in which a rule may be left out.
    fn without(seed: u64, mutants: Mutants) -> Self {
        let mut net = Net::with_mutants(seed, 4, 1, 2, 1, mutants);
        let (vdi, vid) = net.vdi("volume", u64::from(OBJECTS));
        net.run_for(Duration::from_millis(50));
        let contents = Contents { vid, map: Map::new(), origin: None, bytes: [0; OBJECTS as usize] };
        let (alive, snapshots) = (BTreeMap::from([(vdi, contents)]), BTreeMap::new());
        let (open, maps) = (BTreeMap::new(), BTreeMap::new());
        let rng = Rng::new(seed ^ 77);
        let mut tree = Self { net, rng, next: 1, tag: 0, alive, snapshots, open, maps };
        tree.lease();
        tree
    }

    /// The gateway has a lease for the rest of the time.
    fn lease(&mut self) {
        let now = self.net.now;
        let shard = self.net.nodes.get_mut(&GATEWAY).unwrap().shard.as_mut().unwrap();
        shard.handle_lease(now, now + Duration::from_secs(1_000_000));
    }

    fn act(&mut self, act: impl FnOnce(&mut sheep_datapath::Gateway, sheep_types::Time)) {
        let now = self.net.now;
        act(self.net.nodes.get_mut(&GATEWAY).unwrap().shard.as_mut().unwrap().gateway(), now);
        self.net.drain(GATEWAY);
    }

    fn until<T>(&mut self, find: impl Fn(&GatewayOutput) -> Option<T>) -> T {
        for _ in 0..6000 {
            if let Some(found) = self.net.said.iter().find_map(|(_, said)| find(said)) {
                return found;
            }
            self.net.run_for(Duration::from_millis(5));
        }
        panic!("no answer: {:?}", self.net.said.last());
    }

    fn open(&mut self, vdi: VdiId) -> u64 {
        if let Some(handle) = self.open.get(&vdi) {
            return *handle;
        }
        self.next += 1;
        let handle = self.next;
        self.open.insert(vdi, handle);
        let mode = if self.snapshots.contains_key(&vdi) { OpenMode::Read } else { OpenMode::Write };
        self.act(|gateway, now| gateway.open(now, handle, vdi, mode));
        self.until(|said| match said {
            GatewayOutput::Opened { handle: opened, .. } => (*opened == handle).then_some(()),
            GatewayOutput::OpenFailed { handle: failed, error } if *failed == handle => panic!("{error:?}"),
            _ => None,
        });
        handle
    }

    fn close(&mut self, vdi: VdiId) {
        let Some(handle) = self.open.remove(&vdi) else { return };
        self.act(|gateway, now| gateway.close(now, handle));
        self.until(|said| {
            matches!(said, GatewayOutput::Closed { handle: closed } if *closed == handle).then_some(())
        });
        self.net.run_for(Duration::from_millis(20));
    }

    fn run(&mut self, vdi: VdiId, op: VolumeOp) -> VolumeReply {
        self.try_run(vdi, op).unwrap()
    }

    fn try_run(&mut self, vdi: VdiId, op: VolumeOp) -> Result<VolumeReply, VolumeError> {
        let handle = self.open(vdi);
        self.next += 1;
        let io = self.next;
        self.act(|gateway, now| gateway.submit(now, handle, io, op));
        self.until(|said| match said {
            GatewayOutput::Done { io: done, result, .. } if *done == io => Some(result.clone()),
            _ => None,
        })
    }

    fn offset(index: u32) -> u64 {
        u64::from(index) * u64::from(support::geometry().object_size())
    }

    fn order(&mut self, command: Command) -> Outcome {
        let outcome = self.net.log.run(HAND, command).unwrap();
        self.net.distribute();
        self.net.run_for(Duration::from_millis(20));
        outcome
    }

    fn write(&mut self, vdi: VdiId, index: u32) {
        self.tag = self.tag % 250 + 1;
        let data = Bytes::from(vec![self.tag; WRITTEN]);
        self.run(vdi, VolumeOp::Write { offset: Self::offset(index), data, fua: false });
        let (tag, maps) = (self.tag, &self.maps);
        let contents = self.alive.get_mut(&vdi).unwrap();
        let old = entry(contents.vid, &contents.map, contents.origin, maps, index);
        let foreign = |vid: Vid| self.net.log.state.vid(vid).unwrap().lineage;
        let own = foreign(contents.vid);
        let partial = old.is_some_and(|(vid, partial)| partial || foreign(vid) != own);
        contents.map.insert(index, (contents.vid, partial));
        contents.bytes[index as usize] = tag;
    }

    fn snapshot(&mut self, vdi: VdiId) -> VdiId {
        self.next += 1;
        let tag = format!("s{}", self.next);
        let op = VolumeOp::Snapshot { tag, attributes: BTreeMap::new(), created_unix_ms: 1 };
        let VolumeReply::Ordered(result) = self.run(vdi, op) else { panic!("not ordered") };
        let Ok(Outcome::Snapshots(made)) = *result else { panic!("{result:?}") };
        let SnapshotMade { vdi: snapshot, vid, working, .. } = made[0];
        let contents = self.alive.get_mut(&vdi).unwrap();
        assert_eq!(contents.vid, vid);
        self.maps.insert(vid, (contents.map.clone(), contents.origin));
        let frozen = contents.clone();
        contents.vid = working;
        self.alive.insert(snapshot, frozen);
        self.snapshots.insert(snapshot, vdi);
        snapshot
    }

    fn clone_of(&mut self, snapshot: VdiId) -> VdiId {
        self.next += 1;
        let clone = CloneVdi {
            snapshot,
            name: format!("clone{}", self.next),
            size: None,
            copies: None,
            min_copies: None,
            cache: Default::default(),
            attributes: BTreeMap::new(),
            created_unix_ms: 1,
        };
        let Outcome::Created { vdi, vid } = self.order(Command::CloneVdi(clone)) else {
            panic!("not cloned")
        };
        let Contents { vid: origin, bytes, .. } = self.alive[&snapshot];
        self.alive.insert(vdi, Contents { vid, map: Map::new(), origin: Some(origin), bytes });
        vdi
    }

    fn delete(&mut self, vdi: VdiId) {
        self.close(vdi);
        self.order(Command::DeleteVdi { vdi, guard: Guard::ClosedClean });
        self.alive.remove(&vdi);
        self.snapshots.remove(&vdi);
    }

    fn rollback(&mut self, snapshot: VdiId) {
        let volume = self.snapshots[&snapshot];
        if !self.alive.contains_key(&volume) {
            return;
        }
        self.close(volume);
        let command = Command::Rollback { vdi: volume, snapshot, guard: Guard::ClosedClean };
        let Outcome::RolledBack { vid } = self.order(command) else { panic!("not rolled back") };
        let from = self.alive[&snapshot].clone();
        self.alive.insert(volume, Contents { vid, ..from });
    }

    /// Everything is closed, and sweeps come to their end.
    fn settle(&mut self) {
        for vdi in self.alive.keys().copied().collect::<Vec<_>>() {
            self.close(vdi);
        }
        self.net.settle();
        for _ in 0..600 {
            self.net.run_for(Duration::from_millis(500));
            if self.net.log.state.sweeps_due().is_empty() {
                break;
            }
        }
        assert_eq!(self.net.log.state.sweeps_due(), []);
        self.net.run_for(Duration::from_secs(1));
    }

    /// What is on the disks of all nodes, by name.
    fn stored(&self) -> BTreeSet<ObjectId> {
        let nodes = (1..=4).filter(|node| self.net.is_running(*node));
        let headers = nodes.flat_map(|node| self.net.replica(node).store().objects(ObjectId(0)));
        headers.map(|header| header.id).filter(|id| id.vid() != Vid(u32::MAX)).collect()
    }

    /// The data objects that somebody reaches.
    fn reached(&self) -> BTreeSet<ObjectId> {
        let mut reached = BTreeSet::new();
        for contents in self.alive.values() {
            for index in 0..OBJECTS {
                let mut next = entry(contents.vid, &contents.map, contents.origin, &self.maps, index);
                while let Some((vid, partial)) = next {
                    reached.insert(ObjectId::data(vid, index));
                    let record = self.net.log.state.vid(vid).unwrap();
                    let base = self.net.log.state.lineage_of(record.vid).and_then(|lineage| lineage.origin);
                    next = base.filter(|_| partial).and_then(|base| {
                        let (map, origin) = &self.maps[&base];
                        entry(base, map, *origin, &self.maps, index)
                    });
                }
            }
        }
        reached
    }

    fn check(&mut self) {
        for vdi in self.alive.keys().copied().collect::<Vec<_>>() {
            for index in 0..OBJECTS {
                let reply = self.run(vdi, VolumeOp::Read { offset: Self::offset(index), len: 4096 });
                let VolumeReply::Read(extents) = reply else { panic!("{reply:?}") };
                let first = match &extents[0] {
                    ReadExtent::Data(data) => data[0],
                    _ => 0,
                };
                assert_eq!(first, self.alive[&vdi].bytes[index as usize], "object {index} of VDI {vdi}");
            }
            self.close(vdi);
        }
        let (stored, reached) = (self.stored(), self.reached());
        let data: BTreeSet<ObjectId> =
            stored.iter().copied().filter(|id| id.kind() == Some(ObjectKind::Data)).collect();
        assert_eq!(data, reached, "left is what is stored, right is what is reached");
        let known: BTreeSet<Vid> = self.net.log.state.vids().iter().map(|record| record.vid).collect();
        assert!(stored.iter().all(|id| known.contains(&id.vid())));
        for map in stored.iter().filter(|id| id.kind() == Some(ObjectKind::Map)) {
            assert!(self.net.log.state.map_is_needed(map.vid(), map.index()), "{map} is not needed");
        }
    }

    fn step(&mut self) {
        let volumes: Vec<VdiId> =
            self.alive.keys().copied().filter(|vdi| !self.snapshots.contains_key(vdi)).collect();
        let snapshots: Vec<VdiId> = self.snapshots.keys().copied().collect();
        let pick =
            |rng: &mut Rng, list: &[VdiId]| list.get(rng.below(list.len().max(1) as u64) as usize).copied();
        let index = self.rng.below(u64::from(OBJECTS)) as u32;
        let (volume, snapshot) = (pick(&mut self.rng, &volumes), pick(&mut self.rng, &snapshots));
        match (self.rng.below(20), volume, snapshot) {
            (0..10, Some(volume), _) => self.write(volume, index),
            (10..13, Some(volume), _) if snapshots.len() < 5 => drop(self.snapshot(volume)),
            (13..15, _, Some(snapshot)) if volumes.len() < 4 => drop(self.clone_of(snapshot)),
            (15..18, _, Some(snapshot)) => self.delete(snapshot),
            (18, Some(volume), _) if volumes.len() > 1 => self.delete(volume),
            (19, _, Some(snapshot)) => self.rollback(snapshot),
            _ => {}
        }
    }
}

/// What a vid's map says of an object: what it says itself, or else its origin's, in blocks; there is one block here.
fn entry(
    vid: Vid,
    map: &Map,
    origin: Option<Vid>,
    maps: &BTreeMap<Vid, (Map, Option<Vid>)>,
    index: u32,
) -> Option<(Vid, bool)> {
    let _ = vid;
    if let Some(found) = map.get(&index) {
        return Some(*found);
    }
    let origin = origin?;
    let (map, further) = &maps[&origin];
    entry(origin, map, *further, maps, index)
}

fn only(tree: &Tree) -> VdiId {
    *tree.alive.keys().next().unwrap()
}

#[test]
fn random_trees_take_exactly_what_they_reach() {
    let from = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    for seed in from..from + seeds {
        let mut tree = Tree::new(seed);
        for _ in 0..3 {
            for _ in 0..60 {
                tree.step();
            }
            tree.settle();
            tree.check();
        }
        println!("seed {seed}: {} vids, {} alive", tree.net.log.state.vids().len(), tree.alive.len());
    }
}
