//! Clones that get everything from their origin, beside what clients do and whatever happens.

mod room;

use crate::serving::{read, write};
use crate::snapshots::{clone_of, close, made, read_only, snapshot_op};
use crate::world::{BLOCK, Net, OBJECT, Random, World, ms};
use bytes::Bytes;
use sheep_datapath::{FillState, GatewayConfig, GatewayOutput, OpenMode, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{Command, Settings};
use sheep_types::{Incarnation, Member, NodeId, ObjectId, VdiId, Vid};
use std::time::Duration;

const OBJECTS: u64 = 24;
const SIZE: u64 = OBJECTS * OBJECT;
const BLOCKS: u64 = OBJECT / BLOCK as u64;

fn me(node: u64) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(1) }
}

pub(crate) fn want(world: &mut World, vdi: VdiId, wanted: bool) {
    let anybody = world.gateways.values().next().unwrap().0;
    world.order_now(anybody, Command::Flatten { vdi, wanted }).unwrap();
    world.publish();
    world.run(ms(5));
}

fn inherits(world: &World, vdi: VdiId) -> bool {
    world.state.vid(world.vid(vdi)).unwrap().inherits
}

/// A volume with some objects whole, some with holes, some not there; its contents; its snapshot; a clone of that.
pub(crate) struct Clone {
    pub(crate) world: World,
    origin: VdiId,
    snapshot: VdiId,
    pub(crate) vdi: VdiId,
    model: Vec<u8>,
}

impl Clone {
    pub(crate) fn new(seed: u64, config: &GatewayConfig) -> Self {
        let settings = Settings { pending_limit: 8, ..Settings::default() };
        let mut world = World::new(4, settings, seed);
        for node in [100, 101] {
            world.start_gateway_with(me(node), config.clone());
        }
        let origin = world.create(SIZE);
        let handle = world.open(100, origin);
        let mut model = vec![0; SIZE as usize];
        let mut put = |world: &mut World, at: u64, len: usize, tag: u8| {
            model[at as usize..at as usize + len].fill(tag);
            world.act(100, handle, write(at, len, tag)).unwrap();
        };
        let mut random = Random::new(seed + 5);
        for object in 0..OBJECTS {
            match random.below(4) {
                0 => {}
                1 => put(&mut world, object * OBJECT, OBJECT as usize, 1 + object as u8),
                _ => {
                    for _ in 0..3 {
                        let block = random.below(BLOCKS);
                        put(&mut world, object * OBJECT + block * BLOCK as u64, BLOCK, 50 + block as u8);
                    }
                }
            }
        }
        let taken = made(world.act(100, handle, snapshot_op("one")).unwrap());
        close(&mut world, 100, handle);
        let vdi = clone_of(&mut world, taken.vdi, "clone");
        Self { world, origin, snapshot: taken.vdi, vdi, model }
    }

    /// A write, zeros, or the discard of an object.
    fn change(&mut self, random: &mut Random, tag: u8) -> VolumeOp {
        let sector = random.below(SIZE / 512);
        let offset = sector * 512;
        let most = (SIZE - offset).min(3 * BLOCK as u64);
        let len = (1 + random.below(most / 512)) * 512;
        let (offset, len) = match random.below(8) {
            0 => (offset / OBJECT * OBJECT, OBJECT),
            _ => (offset, len),
        };
        let range = offset as usize..(offset + len) as usize;
        match random.below(10) {
            0..2 => {
                self.model[range].fill(0);
                VolumeOp::WriteZeroes { offset, len, fua: false, no_hole: false, fast_zero: false }
            }
            2 => {
                let offset = offset / OBJECT * OBJECT;
                self.model[offset as usize..(offset + OBJECT) as usize].fill(0);
                VolumeOp::Discard { offset, len: OBJECT, fua: false }
            }
            _ => {
                self.model[range].fill(tag);
                let fua = random.chance(20);
                VolumeOp::Write { offset, data: Bytes::from(vec![tag; len as usize]), fua }
            }
        }
    }

    pub(crate) fn differs(&mut self, node: u64, handle: u64) -> Option<u64> {
        (0..OBJECTS * 4).map(|part| part * OBJECT / 4).find(|at| {
            let got = read(&mut self.world, node, handle, *at, OBJECT as u32 / 4);
            got[..] != self.model[*at as usize..(*at + OBJECT / 4) as usize]
        })
    }

    /// Drops everything that does not belong to the clone.
    pub(crate) fn drop_origin(&mut self, but: &[Vid]) {
        for replica in self.world.replicas.values_mut() {
            let stays = |object: &ObjectId| but.contains(&object.vid());
            replica.memory.retain(|object, _| stays(object));
            replica.disk.retain(|object, _| stays(object));
            replica.current.retain(|object, _| stays(object));
        }
    }

    pub(crate) fn run_until_flat(&mut self) -> bool {
        for _ in 0..400 {
            if !inherits(&self.world, self.vdi) {
                return true;
            }
            self.world.run(ms(50));
        }
        false
    }
}

#[test]
fn a_clone_needs_its_origin_no_more() {
    let mut clone = Clone::new(1, &GatewayConfig::default());
    let vdi = clone.vdi;
    let handle = clone.world.open(101, vdi);
    want(&mut clone.world, vdi, true);
    let begun: Vec<_> = clone.world.gateway(101).flattening().collect();
    assert!(matches!(begun[..], [(of, progress)] if of == vdi && progress.total == OBJECTS), "{begun:?}");
    assert!(clone.run_until_flat());
    clone.world.run(ms(100));
    assert_eq!(clone.world.gateway(101).flattening().count(), 0);
    assert!(!clone.world.state.vdi(vdi).unwrap().flatten);
    let own = clone.world.vid(vdi);
    clone.drop_origin(&[own]);
    assert_eq!(clone.differs(101, handle), None);
    // An object that was nowhere is nowhere still.
    let there =
        |index| clone.world.replicas.values().any(|r| r.memory.contains_key(&ObjectId::data(own, index)));
    let nowhere = (0..OBJECTS).filter(|index| !there(*index as u32)).count();
    assert!(nowhere > 2 && nowhere < OBJECTS as usize, "{nowhere}");
    // Writes go on as in any volume, and for the next holder too.
    clone.world.act(101, handle, write(0, BLOCK, 9)).unwrap();
    clone.world.act(101, handle, write((SIZE - OBJECT) + 512, 512, 8)).unwrap();
    clone.model[..BLOCK].fill(9);
    clone.model[(SIZE - OBJECT) as usize + 512..][..512].fill(8);
    close(&mut clone.world, 101, handle);
    let handle = clone.world.open(100, vdi);
    assert_eq!(clone.differs(100, handle), None);
    assert_eq!(clone.world.state.lineage_of(own).unwrap().origin, None);
}

#[test]
fn a_snapshot_of_the_clone_reads_through_the_origin_still() {
    let mut clone = Clone::new(2, &GatewayConfig::default());
    let vdi = clone.vdi;
    let handle = clone.world.open(101, vdi);
    let taken = made(clone.world.act(101, handle, snapshot_op("early")).unwrap());
    let was = clone.model.clone();
    clone.world.act(101, handle, write(0, BLOCK, 7)).unwrap();
    clone.model[..BLOCK].fill(7);
    want(&mut clone.world, vdi, true);
    assert!(clone.run_until_flat());
    assert_eq!(clone.differs(101, handle), None);
    let reader = read_only(&mut clone.world, 100, taken.vdi);
    clone.model = was;
    assert_eq!(clone.differs(100, reader), None);
    assert!(clone.world.state.vid(taken.vid).unwrap().inherits);
}

/// One run of changes beside flattening, with restarts of members, dead holders and snapshots. Whether all was as it
/// ought to be.
pub(crate) fn writes_win(seed: u64, config: &GatewayConfig) -> bool {
    let mut clone = Clone::new(seed, config);
    let mut random = Random::new(seed + 100);
    let vdi = clone.vdi;
    let (mut node, mut handle) = (101, clone.world.open(101, vdi));
    clone.world.net = Net { lose: 2, double: 3, delay_us: 2_000 };
    clone.world.view_delay_us = 3_000;
    clone.world.silent = (20, 50);
    let mut snapshots = Vec::new();
    for round in 0..60u32 {
        if round == 5 {
            want(&mut clone.world, vdi, true);
        }
        for _ in 0..1 + random.below(6) {
            // What is filled meanwhile meets what is changed.
            let tag = 100 + (round % 100) as u8;
            let ios: Vec<u64> = (0..1 + random.below(3))
                .map(|_| {
                    let op = clone.change(&mut random, tag);
                    clone.world.submit(node, handle, op)
                })
                .collect();
            for _ in 0..20_000 {
                if ios.iter().all(|io| clone.world.answer(*io).is_some()) {
                    break;
                }
                clone.world.run(ms(1));
            }
            let open = clone.world.gateway(node).describe();
            assert!(
                ios.iter().all(|io| clone.world.answer(*io).is_some()),
                "seed {seed} round {round}: {open:?}"
            );
            assert!(ios.iter().all(|io| clone.world.answer(*io) == Some(Ok(VolumeReply::Done))));
        }
        match random.below(12) {
            0 => drop(clone.world.act(node, handle, VolumeOp::Flush).unwrap()),
            1 if snapshots.len() < 3 => {
                let op = snapshot_op(&format!("s{round}"));
                let taken = made(clone.world.act(node, handle, op).unwrap());
                snapshots.push((taken.vdi, clone.model.clone()));
            }
            2 => {
                let storage = 1 + random.below(4);
                clone.world.crash(storage);
                clone.world.run(ms(random.below(50)));
                clone.world.recover();
                clone.world.start(storage);
                clone.world.run(ms(random.below(50)));
                clone.world.recover();
            }
            3 => {
                let dead = clone.world.gateways[&NodeId(node)].0;
                clone.world.kill_gateway(node);
                let before = node;
                node = if node == 100 { 101 } else { 100 };
                handle = clone.world.open(node, vdi);
                clone.world.restart_gateway(before, dead);
            }
            4 => {
                close(&mut clone.world, node, handle);
                handle = clone.world.open(node, vdi);
            }
            _ => clone.world.run(ms(random.below(20))),
        }
        if random.chance(20) && clone.differs(node, handle).is_some() {
            return false;
        }
    }
    if !clone.run_until_flat() {
        panic!("seed {seed}: never flat: {:?}", clone.world.gateway(node).flattening().collect::<Vec<_>>());
    }
    if snapshots.is_empty() {
        let own = clone.world.vid(vdi);
        clone.drop_origin(&[own]);
    }
    let mut good = clone.differs(node, handle).is_none();
    close(&mut clone.world, node, handle);
    let handle = clone.world.open(201 - node, vdi);
    good &= clone.differs(201 - node, handle).is_none();
    for (snapshot, model) in snapshots {
        let reader = read_only(&mut clone.world, node, snapshot);
        clone.model = model;
        good &= clone.differs(node, reader).is_none();
        close(&mut clone.world, node, reader);
    }
    good
}

#[test]
fn what_clients_write_meanwhile_stays() {
    let seeds = std::env::var("GATEWAY_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    for seed in 0..seeds {
        assert!(writes_win(seed, &GatewayConfig::default()), "seed {seed}");
    }
}

/// Whether at no time an entry on a disk says that nothing is absent of an object that some current copy has not wholly.
pub(crate) fn entries_name_what_is_there(seed: u64, config: &GatewayConfig) -> bool {
    let mut clone = Clone::new(seed, config);
    let mut random = Random::new(seed);
    let vdi = clone.vdi;
    let handle = clone.world.open(101, vdi);
    let own = clone.world.vid(vdi);
    clone.world.net = Net { lose: 5, double: 3, delay_us: 2_000 };
    want(&mut clone.world, vdi, true);
    let was = clone.model.clone();
    let had = |index: u64| was[(index * OBJECT) as usize..][..OBJECT as usize].iter().any(|byte| *byte != 0);
    for _ in 0..600 {
        if random.chance(10) {
            clone.world.submit(101, handle, write(random.below(OBJECTS) * OBJECT, BLOCK, 9));
        }
        if random.chance(5) {
            clone.world.submit(101, handle, VolumeOp::Flush);
        }
        clone.world.run(Duration::from_micros(random.below(3_000)));
        for replica in clone.world.replicas.values() {
            let Some(map) = replica.disk.get(&ObjectId::map(own, 0)) else { continue };
            let entries = map.blocks.get(&0).map(|block| block.as_chunks::<4>().0.to_vec());
            for (index, entry) in entries.into_iter().flatten().enumerate() {
                let object = ObjectId::data(own, index as u32);
                if u32::from_le_bytes(entry) != own.0 || index as u64 >= OBJECTS || !had(index as u64) {
                    continue;
                }
                let mut copies = clone.world.replicas.values().filter(|replica| replica.is_current(object));
                if copies
                    .any(|copy| copy.disk.get(&object).is_none_or(|copy| copy.blocks.len() < BLOCKS as usize))
                {
                    return false;
                }
            }
        }
    }
    true
}

#[test]
fn entries_are_never_ahead_of_their_objects() {
    for seed in 0..8 {
        assert!(entries_name_what_is_there(seed, &GatewayConfig::default()), "seed {seed}");
    }
}

/// What is opened for nobody is given back as soon as somebody comes, and goes on where it was.
#[test]
fn who_comes_meanwhile_gets_the_volume() {
    let mut clone = Clone::new(3, &GatewayConfig::default());
    let vdi = clone.vdi;
    assert!(clone.world.order_now(me(1), Command::LockToFlatten { vdi }).is_err(), "nobody wants it flat");
    want(&mut clone.world, vdi, true);
    clone.world.net.delay_us = 30_000;
    let background = clone.world.begin_open(100, vdi, OpenMode::Flatten);
    clone.world.run(ms(700));
    assert!(clone.world.opened(100, background));
    assert!(inherits(&clone.world, vdi), "it is not that quick");
    let gone = |world: &World, handle| {
        world
            .said
            .iter()
            .any(|(_, said)| matches!(said, GatewayOutput::Closed { handle: of } if *of == handle))
    };
    let began = clone.world.now;
    let handle = loop {
        let handle = clone.world.begin_open(101, vdi, OpenMode::Write);
        clone.world.run(ms(20));
        if clone.world.opened(101, handle) {
            break handle;
        }
        assert!(clone.world.now.since(began) < Duration::from_secs(1));
    };
    assert!(gone(&clone.world, background));
    // Clean: nothing had to be settled. The client writes, and it goes on.
    clone.world.act(101, handle, write(0, BLOCK, 3)).unwrap();
    clone.model[..BLOCK].fill(3);
    clone.world.net.delay_us = 200;
    close(&mut clone.world, 101, handle);
    let background = clone.world.begin_open(100, vdi, OpenMode::Flatten);
    assert!(clone.run_until_flat());
    clone.world.run(ms(200));
    assert!(gone(&clone.world, background), "done: closed by itself");
    assert!(clone.world.state.vdi(vdi).unwrap().is_clean());
    let own = clone.world.vid(vdi);
    clone.drop_origin(&[own]);
    let handle = clone.world.open(101, vdi);
    assert_eq!(clone.differs(101, handle), None);
}

#[test]
fn what_cannot_be_read_is_left_and_told() {
    let mut clone = Clone::new(4, &GatewayConfig::default());
    let (vdi, handle) = (clone.vdi, clone.world.open(101, clone.vdi));
    let below = clone.world.state.vdi(clone.snapshot).unwrap().vid;
    let lost: Vec<ObjectId> = clone.world.replicas.values().flat_map(|r| r.memory.keys().copied()).collect();
    let lost = *lost.iter().find(|object| **object == ObjectId::data(below, object.index())).unwrap();
    let saved: Vec<_> =
        clone.world.replicas.values_mut().map(|replica| replica.memory.remove(&lost)).collect();
    want(&mut clone.world, vdi, true);
    clone.world.run(Duration::from_secs(5));
    let told: Vec<_> = clone.world.gateway(101).flattening().collect();
    assert!(
        matches!(told[..], [(_, told)] if told.left == 1 && told.state == FillState::Unreadable),
        "{told:?}"
    );
    // It does not try again all the time.
    let reads = |world: &World| world.replicas.values().map(|r| r.requests["read"]).sum::<u64>();
    let before = reads(&clone.world);
    clone.world.run(Duration::from_secs(20));
    assert!(reads(&clone.world) < before + 10);
    for (replica, saved) in clone.world.replicas.values_mut().zip(saved) {
        saved.into_iter().for_each(|copy| drop(replica.memory.insert(lost, copy)));
    }
    clone.world.run(Duration::from_secs(60));
    assert!(clone.run_until_flat());
    assert_eq!(clone.differs(101, handle), None);
}

/// What was read is the origin's object's, and when it arrives the clone has an object of its own.
#[test]
fn an_object_that_a_client_makes_meanwhile_gets_the_rest() {
    let mut clone = Clone::new(1, &GatewayConfig::default());
    let handle = clone.world.open(101, clone.vdi);
    clone.world.held_back = Some(Vec::new());
    want(&mut clone.world, clone.vdi, true);
    clone.world.run(ms(20));
    assert!(clone.world.held_back.as_ref().is_some_and(|held| !held.is_empty()), "it is being read");
    for object in 0..OBJECTS {
        let at = object * OBJECT + BLOCK as u64;
        clone.model[at as usize..at as usize + BLOCK].fill(200);
        clone.world.submit(101, handle, write(at, BLOCK, 200));
    }
    clone.world.run(ms(50));
    clone.world.let_go();
    assert!(clone.run_until_flat());
    assert_eq!(clone.differs(101, handle), None);
}

#[test]
fn it_can_be_called_off_and_taken_up_again() {
    let mut clone = Clone::new(6, &GatewayConfig::default());
    let (vdi, handle) = (clone.vdi, clone.world.open(101, clone.vdi));
    clone.world.net.delay_us = 20_000;
    want(&mut clone.world, vdi, true);
    clone.world.run(ms(300));
    want(&mut clone.world, vdi, false);
    clone.world.run(ms(300));
    assert_eq!(clone.world.gateway(101).flattening().count(), 0);
    let writes = |world: &World| world.replicas.values().map(|r| r.requests["write"]).sum::<u64>();
    let before = writes(&clone.world);
    clone.world.run(Duration::from_secs(10));
    assert!(writes(&clone.world) <= before + 6, "but for the map");
    assert!(inherits(&clone.world, vdi));
    assert_eq!(clone.differs(101, handle), None);
    // Only what has an origin can be flattened; others are so already.
    let origin = clone.origin;
    want(&mut clone.world, origin, true);
    assert!(!clone.world.state.vdi(origin).unwrap().flatten);
    want(&mut clone.world, vdi, true);
    assert!(clone.run_until_flat());
    assert_eq!(clone.differs(101, handle), None);
}

/// A write of a whole object leaves nothing absent, and says so.
#[test]
fn a_whole_object_is_not_partial() {
    let mut clone = Clone::new(7, &GatewayConfig::default());
    let (vdi, handle) = (clone.vdi, clone.world.open(101, clone.vdi));
    for object in 0..OBJECTS {
        clone.world.act(101, handle, write(object * OBJECT, OBJECT as usize, 5)).unwrap();
    }
    clone.model.fill(5);
    clone.world.act(101, handle, VolumeOp::Flush).unwrap();
    let own = clone.world.vid(vdi);
    let map = clone.world.replicas.values().find_map(|r| r.disk.get(&ObjectId::map(own, 0))).unwrap();
    let entries = map.blocks[&0].as_chunks::<4>().0;
    assert!(entries[..OBJECTS as usize].iter().all(|entry| u32::from_le_bytes(*entry) == own.0));
    assert_eq!(clone.differs(101, handle), None);
    let refused = clone.world.act(101, handle, write(SIZE, BLOCK, 1));
    assert_eq!(refused, Err(VolumeError::NoSpace));
}
