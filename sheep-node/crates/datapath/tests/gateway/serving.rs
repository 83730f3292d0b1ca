//! Reading and writing while nothing goes wrong.

use crate::world::{BLOCK, OBJECT, World, ms};
use bytes::Bytes;
use sheep_datapath::{GatewayOutput, OpenMode, ReadExtent, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{Command, Guard, Settings};
use sheep_types::{NodeId, ObjectId};

const MIB: u64 = 1 << 20;

pub(crate) fn write(offset: u64, len: usize, tag: u8) -> VolumeOp {
    VolumeOp::Write { offset, data: Bytes::from(vec![tag; len]), fua: false }
}

pub(crate) fn read(world: &mut World, node: u64, handle: u64, offset: u64, len: u32) -> Vec<u8> {
    match world.act(node, handle, VolumeOp::Read { offset, len }).unwrap() {
        VolumeReply::Read(extents) => {
            let mut all = Vec::new();
            for extent in extents {
                match extent {
                    ReadExtent::Data(data) => all.extend_from_slice(&data),
                    ReadExtent::Hole(len) => all.resize(all.len() + len as usize, 0),
                }
            }
            assert_eq!(all.len(), len as usize);
            all
        }
        other => panic!("{other:?}"),
    }
}

fn open() -> (World, u64, sheep_types::VdiId) {
    let mut world = World::new(3, Settings::default(), 1);
    let vdi = world.create(4 * MIB);
    let handle = world.open(100, vdi);
    (world, handle, vdi)
}

#[test]
fn what_was_written_is_read() {
    let (mut world, handle, vdi) = open();
    assert_eq!(read(&mut world, 100, handle, 0, 8192), vec![0; 8192], "never written");
    // Across the boundary of two objects.
    world.act(100, handle, write(OBJECT - 4096, 8192, 7)).unwrap();
    assert_eq!(read(&mut world, 100, handle, OBJECT - 8192, 16384)[4096..12288], vec![7; 8192]);
    let first = ObjectId::data(world.vid(vdi), 0);
    for replica in world.replicas.values() {
        assert!(replica.memory.contains_key(&first), "copies on all three");
        assert!(!replica.disk.contains_key(&first), "nobody asked for durability");
    }
}

#[test]
fn sectors_are_completed_to_blocks() {
    let (mut world, handle, _) = open();
    world.act(100, handle, write(0, 4 * BLOCK, 1)).unwrap();
    // Partly the first and the third block, in flight together with neighbours in the same blocks.
    let a = world.submit(100, handle, write(512, 8192, 2));
    let b = world.submit(100, handle, write(0, 512, 3));
    let c = world.submit(100, handle, write(8704, 512, 4));
    world.run(ms(100));
    for io in [a, b, c] {
        assert_eq!(world.answer(io), Some(Ok(VolumeReply::Done)));
    }
    let mut expected = vec![1; 4 * BLOCK];
    expected[512..8704].fill(2);
    expected[..512].fill(3);
    expected[8704..9216].fill(4);
    assert_eq!(read(&mut world, 100, handle, 0, 4 * BLOCK as u32), expected);
    // In an object that does not exist there is nothing to read first.
    world.act(100, handle, write(3 * OBJECT + 512, 512, 5)).unwrap();
    let got = read(&mut world, 100, handle, 3 * OBJECT, 2048);
    assert_eq!((&got[..512], &got[512..1024], &got[1024..]), (&[0; 512][..], &[5; 512][..], &[0; 1024][..]));
}

#[test]
fn flush_makes_data_and_map_durable() {
    let (mut world, handle, vdi) = open();
    let vid = world.vid(vdi);
    world.act(100, handle, write(5 * OBJECT, 4096, 9)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let (data, map) = (ObjectId::data(vid, 5), ObjectId::map(vid, 0));
    for replica in world.replicas.values() {
        assert!(replica.disk.contains_key(&data));
        let block = &replica.disk[&map].blocks[&0];
        assert_eq!(block[20..24], vid.0.to_le_bytes(), "entry of object 5");
    }
    assert!(world.state.vid(vid).unwrap().maps.contains_key(&0), "the map object is known");
    world.run(ms(100));
    assert!(
        world
            .replicas
            .values()
            .all(|replica| !replica.memory[&data].pending && !replica.memory[&map].pending)
    );
    assert_eq!(world.gateway(100).unflushed_bytes(), 0);
    let before: u64 = world.replicas.values().map(|replica| replica.requests["flush"]).sum();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let after: u64 = world.replicas.values().map(|replica| replica.requests["flush"]).sum();
    assert_eq!(before, after, "nothing to flush");
}

#[test]
fn fua_is_durable_when_answered() {
    let (mut world, handle, vdi) = open();
    let object = ObjectId::data(world.vid(vdi), 0);
    for (tag, place) in [(1, "in a new object"), (2, "in an old one")] {
        let op = VolumeOp::Write { offset: 0, data: Bytes::from(vec![tag; 4096]), fua: true };
        let io = world.submit(100, handle, op);
        while world.answer(io).is_none() {
            world.run(ms(1));
        }
        for replica in world.replicas.values() {
            assert_eq!(replica.disk[&object].blocks[&0][0], tag, "{place}");
        }
        assert!(world.state.vid(world.vid(vdi)).unwrap().maps.contains_key(&0));
    }
}

#[test]
fn who_flushes_after_every_write_needs_no_flush() {
    let (mut world, handle, vdi) = open();
    let object = ObjectId::data(world.vid(vdi), 0);
    let flushes = |world: &World| -> u64 {
        world.replicas.values().map(|replica| replica.requests.get("flush").copied().unwrap_or(0)).sum()
    };
    let is_durable = |world: &World, tag: u8| {
        let has = |copy: &crate::replica::Copy| copy.blocks[&0][0] == tag;
        world.replicas.values().all(|replica| replica.disk.get(&object).is_some_and(has))
    };
    for tag in 1..=20 {
        let before = flushes(&world);
        world.act(100, handle, write(0, 4096, tag)).unwrap();
        assert_eq!(is_durable(&world, tag), tag > 8, "write {tag}");
        world.act(100, handle, VolumeOp::Flush).unwrap();
        assert!(is_durable(&world, tag));
        assert_eq!(flushes(&world) == before, tag > 8, "write {tag}");
    }
    // One is more than is needed; after it the habit is forgotten.
    world.act(100, handle, write(0, 4096, 21)).unwrap();
    world.act(100, handle, write(0, 4096, 22)).unwrap();
    assert!(!is_durable(&world, 22));
    world.act(100, handle, VolumeOp::Flush).unwrap();
    assert!(is_durable(&world, 22));
}

#[test]
fn a_write_beside_another_one_waits_for_its_flush() {
    let (mut world, handle, vdi) = open();
    let object = ObjectId::data(world.vid(vdi), 0);
    for _ in 0..20 {
        world.act(100, handle, write(0, 2 * BLOCK, 1)).unwrap();
        world.act(100, handle, VolumeOp::Flush).unwrap();
    }
    let first = world.submit(100, handle, write(0, BLOCK, 2));
    let second = world.submit(100, handle, write(BLOCK as u64, BLOCK, 3));
    world.run(ms(100));
    for io in [first, second] {
        assert_eq!(world.answer(io), Some(Ok(VolumeReply::Done)));
    }
    for replica in world.replicas.values() {
        let copy = &replica.disk[&object];
        assert_eq!((copy.blocks[&0][0], copy.blocks[&1][0]), (2, 1));
    }
}

#[test]
fn the_gateway_flushes_by_itself() {
    let (mut world, handle, vdi) = open();
    world.act(100, handle, write(0, 4096, 1)).unwrap();
    assert!(world.gateway(100).unflushed_bytes() > 0);
    world.run(ms(1500));
    assert_eq!(world.gateway(100).unflushed_bytes(), 0, "after the flush interval");
    assert!(world.replicas[&NodeId(1)].disk.contains_key(&ObjectId::data(world.vid(vdi), 0)));
}

#[test]
fn the_write_buffer_is_bounded() {
    let settings =
        Settings { write_buffer_bytes: 4 << 20, flush_interval_ms: 600_000, ..Settings::default() };
    let mut world = World::new(3, settings, 1);
    let vdi = world.create(16 * MIB);
    let handle = world.open(100, vdi);
    let ios: Vec<u64> = (0..128)
        .map(|part| world.submit(100, handle, write(part * OBJECT, OBJECT as usize, part as u8)))
        .collect();
    for _ in 0..1000 {
        assert!(world.gateway(100).unflushed_bytes() <= 4 << 20);
        world.run(ms(1));
    }
    assert!(ios.iter().all(|io| world.answer(*io) == Some(Ok(VolumeReply::Done))), "but it goes on");
    assert_eq!(read(&mut world, 100, handle, 127 * OBJECT, 512), vec![127; 512]);
}

#[test]
fn pending_objects_are_bounded() {
    let settings = Settings { pending_limit: 8, flush_interval_ms: 600_000, ..Settings::default() };
    let mut world = World::new(3, settings, 1);
    let vdi = world.create(16 * MIB);
    let vid = world.vid(vdi);
    let handle = world.open(100, vdi);
    let ios: Vec<u64> =
        (0..100).map(|part| world.submit(100, handle, write(part * OBJECT, 4096, 1))).collect();
    for _ in 0..1000 {
        let pending = |id: &ObjectId| *id != ObjectId::map(vid, 0);
        let memory = &world.replicas[&NodeId(1)].memory;
        let unentered = memory.iter().filter(|(id, copy)| pending(id) && copy.pending).count();
        // Clearing the mark takes a moment longer than the bound.
        assert!(unentered <= 16, "{unentered}");
        world.run(ms(1));
    }
    assert!(ios.iter().all(|io| world.answer(*io) == Some(Ok(VolumeReply::Done))));
}

#[test]
fn discards_free_objects_and_zeroes_blocks() {
    let (mut world, handle, vdi) = open();
    let vid = world.vid(vdi);
    world.act(100, handle, write(0, 3 * OBJECT as usize, 1)).unwrap();
    // Object 1 wholly, object 2 by one whole block and a bit.
    let op = VolumeOp::Discard { offset: OBJECT, len: OBJECT + 4096 + 512, fua: false };
    world.act(100, handle, op).unwrap();
    let got = read(&mut world, 100, handle, 0, 3 * OBJECT as u32);
    let (object, block) = (OBJECT as usize, BLOCK);
    assert_eq!(got[..object], vec![1; object]);
    assert_eq!(got[object..2 * object + block], vec![0; object + block]);
    assert_eq!(got[2 * object + block..], vec![1; object - block], "a part of a block stays");
    assert!(world.replicas.values().all(|replica| !replica.disk.contains_key(&ObjectId::data(vid, 1))));
    // Written again, it is a new object.
    world.act(100, handle, write(OBJECT, 512, 3)).unwrap();
    assert_eq!(read(&mut world, 100, handle, OBJECT, 1024)[..512], vec![3; 512]);
    assert_eq!(read(&mut world, 100, handle, OBJECT + 512, 4096), vec![0; 4096]);
}

/// A member is cut off before it hears that the object is in the map, and comes back after a discard, still with the
/// object as it was then.
#[test]
fn a_discarded_object_does_not_come_back_with_a_node() {
    let (mut world, handle, vdi) = open();
    let object = ObjectId::data(world.vid(vdi), 1);
    world.act(100, handle, write(OBJECT, 4096, 1)).unwrap();
    world.cut(3);
    world.act(100, handle, write(OBJECT, 4096, 2)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    world.act(100, handle, VolumeOp::Discard { offset: OBJECT, len: OBJECT, fua: false }).unwrap();
    assert_eq!(read(&mut world, 100, handle, OBJECT, 4096), vec![0; 4096]);
    assert!(world.replicas[&NodeId(3)].memory[&object].pending);
    world.rejoin(3);
    world.recover();
    world.kill_gateway(100);
    let handle = world.open(101, vdi);
    assert_eq!(read(&mut world, 101, handle, OBJECT, 4096), vec![0; 4096]);
    // Nobody is away any more: now it goes.
    world.act(101, handle, VolumeOp::Discard { offset: OBJECT, len: OBJECT, fua: false }).unwrap();
    assert!(world.replicas.values().all(|replica| !replica.memory.contains_key(&object)));
}

#[test]
fn writes_behind_a_discard_wait_for_it() {
    let (mut world, handle, _) = open();
    world.act(100, handle, write(0, OBJECT as usize, 1)).unwrap();
    let discard = world.submit(100, handle, VolumeOp::Discard { offset: 0, len: OBJECT, fua: false });
    let after = world.submit(100, handle, write(4096, 4096, 2));
    world.run(ms(200));
    assert_eq!(
        (world.answer(discard), world.answer(after)),
        (Some(Ok(VolumeReply::Done)), Some(Ok(VolumeReply::Done)))
    );
    let got = read(&mut world, 100, handle, 0, 8192);
    assert_eq!((&got[..4096], &got[4096..]), (&[0; 4096][..], &[2; 4096][..]));
}

#[test]
fn zeroes_are_exact() {
    let (mut world, handle, vdi) = open();
    let vid = world.vid(vdi);
    world.act(100, handle, write(0, OBJECT as usize, 1)).unwrap();
    let zeroes =
        |offset, len, no_hole| VolumeOp::WriteZeroes { offset, len, fua: false, no_hole, fast_zero: false };
    world.act(100, handle, zeroes(512, 8192, false)).unwrap();
    let got = read(&mut world, 100, handle, 0, 12288);
    assert_eq!(got[..512], vec![1; 512]);
    assert_eq!(got[512..8704], vec![0; 8192]);
    assert_eq!(got[8704..], vec![1; 3584]);
    // Where nothing is, nothing is made, unless it must not be a hole.
    world.act(100, handle, zeroes(4 * OBJECT, 4096 + 512, false)).unwrap();
    assert!(!world.replicas[&NodeId(1)].memory.contains_key(&ObjectId::data(vid, 4)));
    world.act(100, handle, zeroes(4 * OBJECT, 4096 + 512, true)).unwrap();
    assert!(world.replicas[&NodeId(1)].memory.contains_key(&ObjectId::data(vid, 4)));
    let fast = VolumeOp::WriteZeroes { offset: 0, len: 4096, fua: false, no_hole: true, fast_zero: true };
    assert_eq!(world.act(100, handle, fast), Err(VolumeError::NotSupported));
}

#[test]
fn status_tells_objects_from_holes() {
    let (mut world, handle, _) = open();
    world.act(100, handle, write(OBJECT, 2 * OBJECT as usize, 1)).unwrap();
    let status = |req_one| VolumeOp::BlockStatus { offset: 512, len: 4 * OBJECT, req_one };
    let VolumeReply::BlockStatus(all) = world.act(100, handle, status(false)).unwrap() else { panic!() };
    let all: Vec<(u64, bool)> = all.iter().map(|extent| (extent.len, extent.hole)).collect();
    assert_eq!(all, [(OBJECT - 512, true), (2 * OBJECT, false), (OBJECT + 512, true)]);
    let VolumeReply::BlockStatus(one) = world.act(100, handle, status(true)).unwrap() else { panic!() };
    assert_eq!(one.len(), 1);
}

#[test]
fn senseless_operations_are_refused() {
    let (mut world, handle, _) = open();
    for (op, error) in [
        (VolumeOp::Read { offset: 1, len: 512 }, VolumeError::Invalid),
        (VolumeOp::Read { offset: 0, len: 0 }, VolumeError::Invalid),
        (VolumeOp::Read { offset: 4 * MIB - 512, len: 1024 }, VolumeError::Invalid),
        (write(4 * MIB - 512, 1024, 1), VolumeError::NoSpace),
        (write(u64::MAX - 511, 512, 1), VolumeError::NoSpace),
        (write(0, 100, 1), VolumeError::Invalid),
    ] {
        assert_eq!(world.act(100, handle, op), Err(error));
    }
    assert_eq!(world.act(100, 999, VolumeOp::Flush), Err(VolumeError::ShuttingDown));
}

#[test]
fn closing_leaves_a_clean_disk_that_readers_share() {
    let (mut world, handle, vdi) = open();
    world.act(100, handle, write(0, 4096, 1)).unwrap();
    let now = world.now;
    world.gateway(100).close(now, handle);
    world.run(ms(200));
    assert!(world.said.contains(&(NodeId(100), GatewayOutput::Closed { handle })));
    assert!(world.state.vdi(vdi).unwrap().is_clean());
    assert_eq!(world.gateway(100).volumes(), 0);
    let readers: Vec<u64> = [100, 101].map(|node| world.begin_open(node, vdi, OpenMode::Read)).into();
    world.run(ms(200));
    for (node, handle) in [(100, readers[0]), (101, readers[1])] {
        assert!(world.opened(node, handle));
        assert_eq!(read(&mut world, node, handle, 0, 4096), vec![1; 4096]);
        assert_eq!(world.act(node, handle, write(0, 512, 2)), Err(VolumeError::NotPermitted));
    }
}

#[test]
fn a_volume_follows_its_size() {
    let (mut world, handle, vdi) = open();
    let me = world.gateways[&NodeId(100)].0;
    let lock = world.state.vdi(vdi).unwrap().lock.unwrap();
    let guard = Guard::Held(lock.generation);
    world.order_now(me, Command::ResizeVdi { vdi, size: 8 * MIB, guard, shrink: false }).unwrap();
    world.publish();
    world.run(ms(10));
    assert!(world.said.contains(&(NodeId(100), GatewayOutput::Resized { handle, size: 8 * MIB })));
    world.act(100, handle, write(8 * MIB - 512, 512, 1)).unwrap();
}
