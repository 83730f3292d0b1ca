//! Rules that broken variants of the gateway leave out: each is a scenario that says whether the rule held.

use crate::serving::{read, write};
use crate::world::{BLOCK, OBJECT, World, ms};
use sheep_datapath::{GatewayConfig, OpenMode, VolumeError, VolumeOp, VolumeReply};
use sheep_state::Settings;
use sheep_types::{Incarnation, Member, NodeId, ObjectId, VdiId};
use std::time::Duration;

fn world(config: &GatewayConfig) -> (World, VdiId, u64) {
    let settings = Settings { flush_interval_ms: 600_000, ..Settings::default() };
    let mut world = World::new(3, settings, 11);
    for node in [100, 101] {
        let me = Member { node: NodeId(node), incarnation: Incarnation(1) };
        world.start_gateway_with(me, config.clone());
    }
    let vdi = world.create(4 << 20);
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    (world, vdi, handle)
}

fn on_all_disks(world: &World, object: ObjectId, tag: u8) -> bool {
    world.replicas.values().all(|replica| replica.disk[&object].blocks[&0][0] == tag)
}

/// A flush covers the members of the present sets in their present runs, whoever acknowledged the writes.
pub(crate) fn a_flush_asks_the_present_members(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = world(config);
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    for node in 1..=3 {
        world.crash(node);
        world.start(node);
    }
    world.recover();
    world.run(Duration::from_secs(3));
    world.act(100, handle, VolumeOp::Flush).unwrap();
    on_all_disks(&world, ObjectId::data(world.vid(vdi), 0), 2)
}

/// What a new holder shows is durable: the old one, which kept it, is gone.
pub(crate) fn settling_ends_with_a_flush(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = world(config);
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    world.kill_gateway(100);
    world.open(101, vdi);
    on_all_disks(&world, ObjectId::data(world.vid(vdi), 0), 2)
}

/// The map on a disk never names an object that is not durable there.
pub(crate) fn the_map_names_only_durable_objects(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = world(config);
    let vid = world.vid(vdi);
    world.act(100, handle, write(3 * OBJECT, BLOCK, 2)).unwrap();
    for node in 1..=3 {
        world.deaf.insert((NodeId(node), "flush"));
    }
    world.submit(100, handle, VolumeOp::Flush);
    world.run(ms(500));
    world.replicas.values().all(|replica| {
        let named = replica.disk[&ObjectId::map(vid, 0)].blocks[&0][12..16] == vid.0.to_le_bytes();
        !named || replica.disk.contains_key(&ObjectId::data(vid, 3))
    })
}

/// A member that never heard that the object is in the map leaves while the object is being discarded, and all lose
/// power after that. Its copy, marked as new, is not entered in the map again.
pub(crate) fn a_discard_holds_though_a_member_leaves(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = world(config);
    world.deaf.extend([(NodeId(3), "clear"), (NodeId(3), "remove")]);
    world.act(100, handle, write(OBJECT, BLOCK, 3)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let discard = world.submit(100, handle, VolumeOp::Discard { offset: OBJECT, len: OBJECT, fua: true });
    world.run(ms(100));
    assert_eq!(world.answer(discard), None, "a member has not removed it");
    world.cut(3);
    world.run(Duration::from_secs(1));
    assert_eq!(world.answer(discard), Some(Ok(VolumeReply::Done)));
    assert!(world.replicas[&NodeId(3)].disk[&ObjectId::data(world.vid(vdi), 1)].pending);
    world.kill_gateway(100);
    for node in 1..=3 {
        world.crash(node);
        world.start(node);
    }
    world.deaf.clear();
    world.recover();
    let handle = world.open(101, vdi);
    read(&mut world, 101, handle, OBJECT, BLOCK as u32) == vec![0; BLOCK]
}

/// With fewer members than `min_copies` a take-over decides nothing: what it chose might be lost with the next node.
pub(crate) fn a_take_over_waits_for_enough_members(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = world(config);
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    world.kill_gateway(100);
    world.crash(2);
    world.crash(3);
    let handle = world.begin_open(101, vdi, OpenMode::Write);
    world.run(Duration::from_secs(20));
    if world.opened(101, handle) {
        return false;
    }
    world.start(3);
    world.recover();
    world.run(Duration::from_secs(5));
    world.opened(101, handle)
}

/// A map object that was there, and that nobody has any more, does not make the volume empty.
pub(crate) fn a_lost_map_is_no_empty_map(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = world(config);
    let now = world.now;
    world.gateway(100).close(now, handle);
    world.run(ms(100));
    let map = ObjectId::map(world.vid(vdi), 0);
    for replica in world.replicas.values_mut() {
        replica.memory.remove(&map);
        replica.disk.remove(&map);
        replica.current.remove(&map);
    }
    let handle = world.open(101, vdi);
    let read = world.submit(101, handle, VolumeOp::Read { offset: 0, len: 4096 });
    world.run(Duration::from_secs(5));
    world.answer(read) == Some(Err(VolumeError::Io))
}

/// Where a block is damaged on all members, a write of a part of it fails: the rest of the block is not known. A write of
/// all of it heals it.
#[test]
fn a_part_of_a_damaged_block_cannot_be_written() {
    let (mut world, _, handle) = world(&GatewayConfig::default());
    world.replicas.values_mut().for_each(|replica| replica.damaged = true);
    assert_eq!(world.act(100, handle, write(512, 512, 3)), Err(VolumeError::Io));
    assert_eq!(world.act(100, handle, write(0, BLOCK, 4)), Ok(VolumeReply::Done));
    world.replicas.values_mut().for_each(|replica| replica.damaged = false);
    assert_eq!(read(&mut world, 100, handle, 0, BLOCK as u32), vec![4; BLOCK]);
}

/// A member leaves after a discard was decided and before anything of it was done, with an answered write that it
/// never flushed. Were the object removed now, and all lost power, that member's copy would lack a flushed write.
#[test]
fn nothing_is_removed_when_a_member_has_left() {
    let (mut world, vdi, handle) = world(&GatewayConfig::default());
    world.act(100, handle, write(OBJECT, BLOCK, 3)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    world.act(100, handle, write(OBJECT, BLOCK, 4)).unwrap();
    world.deaf.insert((NodeId(3), "flush"));
    let discard = world.submit(100, handle, VolumeOp::Discard { offset: OBJECT, len: OBJECT, fua: false });
    world.run(ms(100));
    assert_eq!(world.answer(discard), None, "its flush is under way");
    world.deaf.extend([(NodeId(1), "remove"), (NodeId(2), "remove")]);
    world.cut(3);
    world.run(Duration::from_secs(1));
    assert_eq!(world.answer(discard), Some(Ok(VolumeReply::Done)), "nothing is to be removed");
    let object = ObjectId::data(world.vid(vdi), 1);
    for node in 1..=2 {
        let replica = &world.replicas[&NodeId(node)];
        assert_ne!(replica.disk[&ObjectId::map(object.vid(), 0)].blocks[&0][4..8], [0; 4]);
        assert!(replica.memory.contains_key(&object));
    }
    assert_eq!(read(&mut world, 100, handle, OBJECT, BLOCK as u32), vec![0; BLOCK]);
}

#[test]
fn all_hold() {
    let config = GatewayConfig::default();
    assert!(a_flush_asks_the_present_members(&config));
    assert!(settling_ends_with_a_flush(&config));
    assert!(the_map_names_only_durable_objects(&config));
    assert!(a_discard_holds_though_a_member_leaves(&config));
    assert!(a_take_over_waits_for_enough_members(&config));
    assert!(a_lost_map_is_no_empty_map(&config));
}
