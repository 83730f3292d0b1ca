//! Members that have no room.

use crate::serving::{read, write};
use crate::snapshots::{snapshot_op, take};
use crate::world::{BLOCK, OBJECT, World, ms};
use bytes::Bytes;
use sheep_datapath::{GatewayConfig, GatewayOutput, OpenError, OpenMode, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{Command, Settings};
use sheep_types::{NodeId, ObjectId, VdiId};
use std::time::Duration;

const NO_SPACE: Option<Result<VolumeReply, VolumeError>> = Some(Err(VolumeError::NoSpace));
const DONE: Option<Result<VolumeReply, VolumeError>> = Some(Ok(VolumeReply::Done));

fn slow_flush() -> Settings {
    Settings { flush_interval_ms: 600_000, ..Settings::default() }
}

fn open(storage: u64, settings: Settings) -> (World, u64, VdiId) {
    let mut world = World::new(storage, settings, 5);
    let vdi = world.create(4 << 20);
    let handle = world.open(100, vdi);
    (world, handle, vdi)
}

fn set_full(world: &mut World, node: u64, full: bool) {
    world.replicas.get_mut(&NodeId(node)).unwrap().full = full;
}

fn durable(offset: u64, len: usize, tag: u8) -> VolumeOp {
    VolumeOp::Write { offset, data: Bytes::from(vec![tag; len]), fua: true }
}

/// A storage node that has a copy of the object goes for good; the one that takes its place is full.
fn replace_by_a_full_one(world: &mut World, object: ObjectId) -> u64 {
    let has = |world: &World, node: u64| world.replicas[&NodeId(node)].memory.contains_key(&object);
    let nodes: Vec<u64> = world.replicas.keys().map(|node| node.0).collect();
    let [lacks] = nodes.iter().copied().filter(|node| !has(world, *node)).collect::<Vec<_>>()[..] else {
        panic!("there is one more node than copies")
    };
    let leaves = nodes.into_iter().find(|node| *node != lacks).unwrap();
    set_full(world, lacks, true);
    world.crash(leaves);
    world.out(leaves);
    world.run(Duration::from_secs(2));
    lacks
}

#[test]
fn a_full_member_fails_writes_but_not_the_volume() {
    let (mut world, handle, _) = open(3, Settings::default());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    world.replicas.get_mut(&NodeId(2)).unwrap().full = true;
    assert_eq!(world.act(100, handle, write(5 * OBJECT, BLOCK, 2)), Err(VolumeError::NoSpace));
    assert_eq!(
        world.act(100, handle, VolumeOp::Read { offset: 5 * OBJECT, len: 512 }),
        Err(VolumeError::NoSpace),
        "copies differ there"
    );
    assert_eq!(read(&mut world, 100, handle, 0, 512), vec![1; 512]);
    world.act(100, handle, VolumeOp::Flush).unwrap();
    world.replicas.get_mut(&NodeId(2)).unwrap().full = false;
    world.run(Duration::from_secs(3));
    assert_eq!(read(&mut world, 100, handle, 5 * OBJECT, 512), vec![2; 512], "equal in the end");
}

#[test]
fn a_flush_that_cannot_enter_objects_fails() {
    let (mut world, handle, vdi) = open(3, slow_flush());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.replicas.get_mut(&NodeId(2)).unwrap().full = true;
    assert_eq!(world.act(100, handle, VolumeOp::Flush), Err(VolumeError::NoSpace));
    world.replicas.get_mut(&NodeId(2)).unwrap().full = false;
    world.run(Duration::from_secs(3));
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let map = ObjectId::map(world.vid(vdi), 0);
    assert!(world.replicas.values().all(|replica| replica.disk.contains_key(&map)));
}

#[test]
fn nobody_waits_for_a_map_that_cannot_be_stored() {
    let (mut world, handle, vdi) = open(3, slow_flush());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.replicas.get_mut(&NodeId(2)).unwrap().full = true;
    let ops = [VolumeOp::Flush, VolumeOp::Flush, snapshot_op("s")];
    for op in ops {
        let io = world.submit(100, handle, op);
        world.run(Duration::from_secs(5));
        assert_eq!(world.answer(io), Some(Err(VolumeError::NoSpace)));
    }
    let now = world.now;
    world.gateway(100).close(now, handle);
    world.run(Duration::from_secs(5));
    let record = world.state.vdi(vdi).unwrap();
    assert!(record.lock.is_none() && !record.is_clean(), "the next holder settles");
    world.replicas.get_mut(&NodeId(2)).unwrap().full = false;
    let handle = world.open(101, vdi);
    assert_eq!(read(&mut world, 101, handle, 0, 512), vec![1; 512]);
}

/// Behind a write that a member cannot store nothing can be stored there: who waits for that is told so, nobody waits for
/// ever, and nothing is sent all the time.
#[test]
fn what_comes_behind_a_refused_write_is_refused_too() {
    let (mut world, handle, _) = open(3, slow_flush());
    world.act(100, handle, write(0, 8 * BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    world.replicas.get_mut(&NodeId(2)).unwrap().full = true;
    let ios: Vec<u64> =
        (0..4).map(|block| world.submit(100, handle, write(block * BLOCK as u64, BLOCK, 2))).collect();
    let flush = world.submit(100, handle, VolumeOp::Flush);
    world.run(ms(500));
    for io in ios {
        assert_eq!(world.answer(io), Some(Err(VolumeError::NoSpace)));
    }
    assert_eq!(world.answer(flush), Some(Ok(VolumeReply::Done)));
    let sent = |world: &World| world.replicas[&NodeId(2)].requests["write"];
    let before = sent(&world);
    world.run(Duration::from_secs(10));
    assert!(sent(&world) < before + 150, "{} writes in ten seconds", sent(&world) - before);
    world.replicas.get_mut(&NodeId(2)).unwrap().full = false;
    world.run(Duration::from_secs(5));
    assert_eq!(read(&mut world, 100, handle, 0, 4 * BLOCK as u32), vec![2; 4 * BLOCK]);
    world.act(100, handle, write(0, BLOCK, 3)).unwrap();
}

/// What was answered stays so when a member is new to the set and has no room: it is read, and no flush says that it is
/// where it is not.
#[test]
fn what_was_answered_outlives_a_new_member_without_room() {
    let (mut world, handle, vdi) = open(4, slow_flush());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    let full = replace_by_a_full_one(&mut world, object);
    for _ in 0..2 {
        let flush = world.submit(100, handle, VolumeOp::Flush);
        let snapshot = world.submit(100, handle, snapshot_op("s"));
        world.run(Duration::from_secs(5));
        assert_eq!((world.answer(flush), world.answer(snapshot)), (NO_SPACE, NO_SPACE));
        assert_eq!(read(&mut world, 100, handle, 0, 512), vec![1; 512]);
    }
    assert_eq!(world.act(100, handle, write(0, BLOCK, 3)), Err(VolumeError::NoSpace), "behind it");
    set_full(&mut world, full, false);
    world.run(Duration::from_secs(5));
    world.act(100, handle, VolumeOp::Flush).unwrap();
    assert_eq!(world.replicas[&NodeId(full)].disk[&object].blocks[&0][0], 1);
    world.act(100, handle, write(0, BLOCK, 4)).unwrap();
}

/// The same where the object takes the place of a snapshot's.
#[test]
fn what_was_answered_is_not_replaced_by_what_was_before() {
    let (mut world, handle, vdi) = open(4, slow_flush());
    world.act(100, handle, write(0, 2 * BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    take(&mut world, handle, "s");
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    replace_by_a_full_one(&mut world, object);
    let got = read(&mut world, 100, handle, 0, 2 * BLOCK as u32);
    assert_eq!((got[0], got[BLOCK]), (2, 1));
}

/// The volume is closed all the same; nobody has been told that everything is durable, and nothing is lost.
#[test]
fn a_volume_is_closed_although_a_new_member_has_no_room() {
    let (mut world, handle, vdi) = open(4, slow_flush());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    let full = replace_by_a_full_one(&mut world, object);
    let now = world.now;
    world.gateway(100).close(now, handle);
    world.run(Duration::from_secs(5));
    let record = world.state.vdi(vdi).unwrap();
    assert!(record.lock.is_none() && !record.is_clean(), "the next holder settles");
    set_full(&mut world, full, false);
    world.recover();
    let handle = world.open(101, vdi);
    assert_eq!(read(&mut world, 101, handle, 0, 512), vec![1; 512]);
}

/// Failed writes are all that is kept, and more than may be: what comes then fails, instead of asking for cycle after cycle.
#[test]
fn failed_writes_fill_the_buffer_and_nothing_spins() {
    let settings = Settings { write_buffer_bytes: 4 << 20, pending_limit: 8, ..slow_flush() };
    let mut world = World::new(3, settings, 5);
    let vdi = world.create(8 << 20);
    let handle = world.open(100, vdi);
    for number in 0..65 {
        world.act(100, handle, write(number * OBJECT, BLOCK, 1)).unwrap();
    }
    world.act(100, handle, VolumeOp::Flush).unwrap();
    set_full(&mut world, 2, true);
    // New objects, more than may be without an entry in the map.
    for number in 70..80 {
        let op = write(number * OBJECT, BLOCK, 2);
        assert_eq!(world.act(100, handle, op), Err(VolumeError::NoSpace));
    }
    // Objects that exist, whole and durable.
    for number in 0..64 {
        let op = durable(number * OBJECT, OBJECT as usize, 2);
        assert_eq!(world.act(100, handle, op), Err(VolumeError::NoSpace));
    }
    let flushes = world.replicas[&NodeId(1)].requests["flush"];
    world.run(Duration::from_secs(10));
    assert_eq!(world.replicas[&NodeId(1)].requests["flush"], flushes);
    assert_eq!(read(&mut world, 100, handle, 64 * OBJECT, 512), vec![1; 512]);
    set_full(&mut world, 2, false);
    world.run(Duration::from_secs(5));
    world.act(100, handle, write(90 * OBJECT, BLOCK, 3)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    assert_eq!(world.gateway(100).unflushed_bytes(), 0);
}

/// What one volume could not write takes no room from others.
#[test]
fn failed_writes_do_not_count_for_other_volumes() {
    let mut world = World::new(3, slow_flush(), 5);
    let me = world.gateways[&NodeId(100)].0;
    world.start_gateway_with(me, GatewayConfig { buffer_bytes: 4 * OBJECT, ..GatewayConfig::default() });
    let [one, other] = ["a", "b"].map(|name| {
        let vdi = world.create(4 << 20);
        world.order_now(me, Command::RenameVdi { vdi, name: name.to_owned() }).unwrap();
        world.open(100, vdi)
    });
    world.act(100, other, write(0, BLOCK, 1)).unwrap();
    world.act(100, other, VolumeOp::Flush).unwrap();
    set_full(&mut world, 2, true);
    for number in 0..8 {
        let op = write(number * OBJECT, OBJECT as usize, 2);
        assert_eq!(world.act(100, one, op), Err(VolumeError::NoSpace));
    }
    set_full(&mut world, 2, false);
    // The refused ones are sent again only after a while.
    let io = world.submit(100, other, write(0, OBJECT as usize, 3));
    world.run(ms(20));
    assert_eq!(world.answer(io), DONE);
    world.run(Duration::from_secs(5));
    for handle in [one, other] {
        world.act(100, handle, VolumeOp::Flush).unwrap();
    }
    assert_eq!(world.gateway(100).unflushed_bytes(), 0);
}

/// Whoever opens a volume whose map cannot be completed is told so.
#[test]
fn a_volume_whose_map_has_no_room_cannot_be_opened() {
    let (mut world, handle, vdi) = open(3, slow_flush());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.kill_gateway(100);
    set_full(&mut world, 2, true);
    let handle = world.begin_open(101, vdi, OpenMode::Write);
    world.run(Duration::from_secs(30));
    let failed = GatewayOutput::OpenFailed { handle, error: OpenError::NoSpace };
    assert!(world.said.contains(&(NodeId(101), failed)), "{:?}", world.said);
    assert!(world.state.vdi(vdi).unwrap().lock.is_none());
    set_full(&mut world, 2, false);
    let handle = world.open(101, vdi);
    assert_eq!(read(&mut world, 101, handle, 0, 512), vec![1; 512]);
}

/// Discards whose map entries cannot be written fail, and what waits for them does; the volume is closed.
#[test]
fn discards_do_not_wait_for_room() {
    for closes in [false, true] {
        let (mut world, handle, vdi) = open(3, slow_flush());
        for number in 0..4 {
            world.act(100, handle, write(number * OBJECT, BLOCK, 1)).unwrap();
        }
        world.act(100, handle, VolumeOp::Flush).unwrap();
        world.act(100, handle, write(4 * OBJECT, BLOCK, 1)).unwrap();
        set_full(&mut world, 2, true);
        let discard = |first: u64, objects: u64| VolumeOp::Discard {
            offset: first * OBJECT,
            len: objects * OBJECT,
            fua: false,
        };
        // The first two of one operation; one that waits for the next cycle; one that is not in the map yet; a write behind.
        let ops = [discard(0, 2), discard(2, 1), discard(4, 1), write(0, BLOCK, 2)];
        let mut ios = Vec::new();
        for op in ops {
            ios.push(world.submit(100, handle, op));
            world.run(ms(5));
        }
        world.run(Duration::from_secs(5));
        assert_eq!(ios.iter().map(|io| world.answer(*io)).collect::<Vec<_>>(), vec![NO_SPACE; 4]);
        if closes {
            let now = world.now;
            world.gateway(100).close(now, handle);
            world.run(Duration::from_secs(5));
            let record = world.state.vdi(vdi).unwrap();
            assert!(record.lock.is_none() && !record.is_clean(), "the next holder settles");
        }
        set_full(&mut world, 2, false);
        let (node, handle) = if closes { (101, world.open(101, vdi)) } else { (100, handle) };
        world.run(Duration::from_secs(5));
        world.act(node, handle, write(0, BLOCK, 3)).unwrap();
        world.act(node, handle, VolumeOp::Flush).unwrap();
        for (number, tag) in [(0, 3), (2, 1), (3, 1), (4, 1)] {
            assert_eq!(read(&mut world, node, handle, number * OBJECT, 512), vec![tag; 512], "{number}");
        }
        world.act(node, handle, discard(0, 5)).unwrap();
        world.act(node, handle, VolumeOp::Flush).unwrap();
        assert_eq!(read(&mut world, node, handle, 0, 5 * OBJECT as u32), vec![0; 5 * OBJECT as usize]);
    }
}
