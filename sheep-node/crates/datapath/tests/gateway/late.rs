//! Writes that come onto a member after it was asked to flush, and answered ones that are lost: what a flush says then.

use crate::serving::{read, write};
use crate::snapshots::snapshot_op;
use crate::world::{BLOCK, OBJECT, World, ms};
use sheep_datapath::{VolumeError, VolumeOp, VolumeReply};
use sheep_state::Settings;
use sheep_types::{NodeId, ObjectId, VdiId};
use sheep_wire::Refusal;
use std::time::Duration;

const NO_SPACE: Option<Result<VolumeReply, VolumeError>> = Some(Err(VolumeError::NoSpace));
const IO: Option<Result<VolumeReply, VolumeError>> = Some(Err(VolumeError::Io));
const DONE: Option<Result<VolumeReply, VolumeError>> = Some(Ok(VolumeReply::Done));

fn open(storage: u64) -> (World, u64, VdiId) {
    let settings = Settings { flush_interval_ms: 600_000, pending_limit: 8, ..Settings::default() };
    let mut world = World::new(storage, settings, 5);
    let vdi = world.create(4 << 20);
    let handle = world.open(100, vdi);
    (world, handle, vdi)
}

/// Index of the first object of a volume that has, or has not, a copy on the node.
fn object_on(world: &World, vdi: VdiId, node: u64, has: bool) -> ObjectId {
    let view = world.replicas[&NodeId(1)].view.clone().unwrap();
    let vid = world.vid(vdi);
    let on = |object: &ObjectId| view.up_set(*object).iter().any(|member| member.node == NodeId(node));
    (0..64).map(|index| ObjectId::data(vid, index)).find(|object| on(object) == has).unwrap()
}

/// All machines lose power, and are back.
fn power_cut(world: &mut World, storage: u64) {
    world.kill_gateway(100);
    (1..=storage).for_each(|node| world.crash(node));
    (1..=storage).for_each(|node| world.start(node));
    world.recover();
}

/// A new object that no member has room for. They find some after they have flushed, while another node has not done so.
fn stored_during_the_flush() -> (World, u64, VdiId, ObjectId, u64) {
    let (mut world, handle, vdi) = open(4);
    let late = object_on(&world, vdi, 4, false);
    let other = object_on(&world, vdi, 4, true);
    let at = |object: ObjectId| u64::from(object.index()) * OBJECT;
    world.act(100, handle, write(at(other), BLOCK, 1)).unwrap();
    world.replicas.values_mut().for_each(|replica| replica.full = true);
    assert_eq!(world.act(100, handle, write(at(late), BLOCK, 2)), Err(VolumeError::NoSpace));
    world.deaf.insert((NodeId(4), "flush"));
    let flush = world.submit(100, handle, VolumeOp::Flush);
    world.run(ms(100));
    world.replicas.values_mut().for_each(|replica| replica.full = false);
    world.run(ms(1200));
    let has = world.replicas.values().filter(|replica| replica.memory.contains_key(&late)).count();
    assert_eq!((world.answer(flush), has), (None, 3), "it came while the flush was under way");
    world.deaf.clear();
    world.run(Duration::from_secs(2));
    assert_eq!(world.answer(flush), DONE);
    (world, handle, vdi, late, at(late))
}

#[test]
fn what_comes_after_a_member_has_flushed_is_flushed_once_more() {
    let (mut world, handle, _, late, at) = stored_during_the_flush();
    assert_eq!(read(&mut world, 100, handle, at, 512), vec![2; 512]);
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let durable = |node: u64| world.replicas[&NodeId(node)].disk.contains_key(&late);
    assert_eq!([1, 2, 3].map(durable), [true; 3], "it was read, and flushed after");
}

#[test]
fn the_map_names_nothing_that_came_after_its_members_had_flushed() {
    let (mut world, _, vdi, _, at) = stored_during_the_flush();
    power_cut(&mut world, 4);
    let handle = world.open(101, vdi);
    let got = world.act(101, handle, VolumeOp::Read { offset: at, len: 512 });
    assert!(got.is_ok(), "the map names an object that nobody has");
}

/// An answered write to an object of which then all copies are lost, with an operation that waits for its being durable.
fn lose_all_copies(ops: &[VolumeOp]) -> (World, u64, Vec<u64>) {
    let (mut world, handle, vdi) = open(3);
    world.act(100, handle, write(0, 4 * BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    for node in 1..=3 {
        world.crash(node);
        let replica = world.replicas.get_mut(&NodeId(node)).unwrap();
        replica.disk.remove(&object);
        replica.memory.remove(&object);
    }
    let ios = ops.iter().map(|op| world.submit(100, handle, op.clone())).collect();
    (1..=3).for_each(|node| world.start(node));
    world.recover();
    world.run(Duration::from_secs(3));
    assert_eq!(world.act(100, handle, VolumeOp::Read { offset: 0, len: 512 }), Err(VolumeError::Io));
    (world, handle, ios)
}

#[test]
fn a_flush_that_waits_for_what_is_lost_says_so() {
    let (mut world, handle, ios) = lose_all_copies(&[VolumeOp::Flush, snapshot_op("s")]);
    assert_eq!(ios.iter().map(|io| world.answer(*io)).collect::<Vec<_>>(), [IO, IO]);
    // It is said once; what else there is can be made durable. But there is no snapshot of what is lost.
    world.act(100, handle, write(OBJECT, BLOCK, 3)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let snapshot = world.submit(100, handle, snapshot_op("s"));
    world.run(Duration::from_secs(2));
    assert_eq!(world.answer(snapshot), IO, "and not for want of room");
}

#[test]
fn the_next_flush_says_what_none_was_told() {
    // Another operation that waits for a flush is no flush.
    let durable = VolumeOp::Write { offset: OBJECT, data: vec![3; BLOCK].into(), fua: true };
    let (mut world, handle, _) = lose_all_copies(&[durable]);
    assert_eq!(world.act(100, handle, VolumeOp::Flush), Err(VolumeError::Io));
    world.act(100, handle, VolumeOp::Flush).unwrap();
}

/// What fails because of a write that cannot be stored fails for the reason why that cannot be stored.
#[test]
fn want_of_room_is_told_from_other_trouble() {
    for (refusal, told) in [(Refusal::NoSpace, NO_SPACE), (Refusal::BaseLost, IO)] {
        let (mut world, handle, vdi) = open(5);
        world.act(100, handle, write(0, BLOCK, 1)).unwrap();
        let object = ObjectId::data(world.vid(vdi), 0);
        let has = |world: &World, node: u64| world.replicas[&NodeId(node)].memory.contains_key(&object);
        let (leaves, stays) =
            match [1, 2, 3, 4, 5].into_iter().filter(|n| has(&world, *n)).collect::<Vec<_>>()[..] {
                [one, other, _] => (one, other),
                _ => panic!("three have it"),
            };
        for replica in world.replicas.values_mut() {
            (replica.full, replica.refusal) = (!replica.memory.contains_key(&object), refusal);
        }
        world.crash(leaves);
        world.out(leaves);
        world.run(Duration::from_secs(2));
        let view = world.replicas[&NodeId(stays)].view.clone().unwrap();
        let joined = view.up_set(object).into_iter().find(|member| !has(&world, member.node.0)).unwrap().node;
        for op in [VolumeOp::Flush, snapshot_op("s")] {
            let io = world.submit(100, handle, op);
            world.run(Duration::from_secs(3));
            assert_eq!(world.answer(io), told, "{refusal:?}");
        }
        // Others are stored, but no more than may be without an entry in the map.
        world.replicas.values_mut().for_each(|replica| replica.full = replica.me.node == joined);
        let elsewhere = |index: &u32| {
            let object = ObjectId::data(object.vid(), *index);
            view.up_set(object).iter().all(|member| member.node != joined)
        };
        let others: Vec<u32> = (1..64).filter(elsewhere).take(8).collect();
        for (number, index) in others.iter().enumerate() {
            let io = world.submit(100, handle, write(u64::from(*index) * OBJECT, BLOCK, 2));
            world.run(ms(50));
            assert_eq!(
                world.answer(io),
                if number < 7 { DONE } else { told.clone() },
                "{refusal:?}, write {number}"
            );
        }
    }
}
