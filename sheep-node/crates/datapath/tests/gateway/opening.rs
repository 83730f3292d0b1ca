//! Locks, leases, and taking over from a holder that did not end cleanly.

use crate::serving::{read, write};
use crate::world::{BLOCK, OBJECT, World, ms};
use sheep_datapath::{GatewayOutput, LostReason, OpenError, OpenMode, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{Command, Refusal, Settings};
use sheep_types::{NodeId, ObjectId, VdiId};
use std::time::Duration;

fn world() -> (World, VdiId) {
    let mut world = World::new(3, Settings::default(), 3);
    let vdi = world.create(4 << 20);
    (world, vdi)
}

fn failure(world: &World, handle: u64) -> Option<OpenError> {
    world.said.iter().find_map(|(_, said)| match said {
        GatewayOutput::OpenFailed { handle: failed, error } if *failed == handle => Some(error.clone()),
        _ => None,
    })
}

#[test]
fn one_holder_at_a_time() {
    let (mut world, vdi) = world();
    world.open(100, vdi);
    let second = world.begin_open(101, vdi, OpenMode::Write);
    world.run(ms(100));
    assert!(matches!(failure(&world, second), Some(OpenError::Refused(Refusal::Locked { .. }))));
    let again = world.begin_open(100, vdi, OpenMode::Write);
    assert_eq!(failure(&world, again), None);
    world.run(ms(10));
    assert_eq!(failure(&world, again), Some(OpenError::AlreadyOpen));
    let none = world.begin_open(101, VdiId(999), OpenMode::Write);
    world.run(ms(10));
    assert_eq!(failure(&world, none), Some(OpenError::NoSuchVdi));
}

#[test]
fn a_take_over_waits_for_the_lease_and_sees_every_answered_write() {
    let (mut world, vdi) = world();
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, 8192, 1)).unwrap();
    world.kill_gateway(100);
    let next = world.begin_open(101, vdi, OpenMode::Write);
    world.run(Duration::from_millis(5050));
    assert!(!world.opened(101, next), "the former holder's lease may last: 5 s, 1 % and a margin");
    world.run(ms(500));
    assert!(world.opened(101, next));
    assert_eq!(read(&mut world, 101, next, 0, 8192), vec![1; 8192]);
    let record = world.state.vdi(vdi).unwrap();
    assert!(record.lock.unwrap().settled && record.ended.is_empty());
    // What was answered and never flushed is durable now, and in the map.
    let object = ObjectId::data(world.vid(vdi), 0);
    for replica in world.replicas.values() {
        assert!(replica.disk.contains_key(&object));
    }
    let now = world.now;
    world.gateway(101).close(now, next);
    world.run(ms(300));
    for node in 1..=3 {
        world.crash(node);
    }
    for node in 1..=3 {
        world.start(node);
    }
    world.recover();
    let last = world.open(101, vdi);
    assert_eq!(read(&mut world, 101, last, 0, 8192), vec![1; 8192]);
}

#[test]
fn a_take_over_makes_copies_equal() {
    let (mut world, vdi) = world();
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, 8192, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    // A write that only one replica gets, and one in a new object.
    for node in [2, 3] {
        world.deaf.insert((NodeId(node), "write"));
    }
    let parts = [write(0, 4096, 2), write(3 * OBJECT, 4096, 3)];
    let lost: Vec<u64> = parts.into_iter().map(|op| world.submit(100, handle, op)).collect();
    world.run(ms(50));
    assert!(lost.iter().all(|io| world.answer(*io).is_none()));
    world.kill_gateway(100);
    world.deaf.clear();
    let next = world.open(101, vdi);
    let vid = world.vid(vdi);
    for index in [0, 3] {
        let object = ObjectId::data(vid, index);
        let copies: Vec<_> = world.replicas.values().map(|replica| &replica.memory[&object]).collect();
        assert!(copies.windows(2).all(|pair| pair[0].blocks == pair[1].blocks), "object {index}");
        assert!(world.replicas.values().all(|replica| replica.is_current(object)));
    }
    assert_eq!(read(&mut world, 101, next, 0, 4096), vec![2; 4096]);
    assert_eq!(read(&mut world, 101, next, 3 * OBJECT, 4096), vec![3; 4096]);
}

#[test]
fn pages_of_hot_objects_are_all_read() {
    let (mut world, vdi) = world();
    let handle = world.open(100, vdi);
    for part in 0..20 {
        world.act(100, handle, write(part * OBJECT, 4096, part as u8 + 1)).unwrap();
    }
    world.kill_gateway(100);
    let next = world.open(101, vdi);
    for part in 0..20 {
        assert_eq!(read(&mut world, 101, next, part * OBJECT, 512), vec![part as u8 + 1; 512]);
    }
}

#[test]
fn objects_left_by_holders_before_the_last_are_orphans() {
    let (mut world, vdi) = world();
    let vid = world.vid(vdi);
    let handle = world.open(100, vdi);
    // Only node 1 gets a creation; it is away while the next holder settles.
    for node in [2, 3] {
        world.deaf.insert((NodeId(node), "write"));
    }
    world.submit(100, handle, write(0, BLOCK, 9));
    world.run(ms(20));
    let object = ObjectId::data(vid, 0);
    let left = world.replicas[&NodeId(1)].memory[&object].clone();
    world.replicas.get_mut(&NodeId(1)).unwrap().disk.insert(object, left);
    world.kill_gateway(100);
    world.deaf.clear();
    world.crash(1);
    let next = world.open(101, vdi);
    assert_eq!(read(&mut world, 101, next, 0, 4096), vec![0; 4096]);
    let me = world.gateways[&NodeId(101)].0;
    world.kill_gateway(101);
    world.start(1);
    // Even if recovery brought the orphan back everywhere, it must not come up again.
    world.recover();
    world.restart_gateway(101, me);
    let third = world.open(101, vdi);
    assert_eq!(read(&mut world, 101, third, 0, 4096), vec![0; 4096]);
    // And a new object replaces it.
    world.act(101, third, write(4096, 4096, 1)).unwrap();
    let got = read(&mut world, 101, third, 0, 8192);
    assert_eq!((&got[..4096], &got[4096..]), (&[0; 4096][..], &[1; 4096][..]));
}

#[test]
fn without_a_lease_nothing_is_written_or_told() {
    let (mut world, vdi) = world();
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, 4096, 1)).unwrap();
    let early = world.submit(100, handle, VolumeOp::Read { offset: 0, len: 512 });
    world.leases = false;
    let now = world.now;
    world.gateway(100).handle_lease(now, now);
    let writes = world.replicas[&NodeId(1)].requests["write"];
    let late = world.submit(100, handle, write(0, 4096, 2));
    world.run(Duration::from_secs(1));
    assert_eq!(world.replicas[&NodeId(1)].requests["write"], writes, "not even sent");
    assert_eq!((world.answer(early), world.answer(late)), (None, None));
    world.leases = true;
    world.run(ms(100));
    assert!(matches!(world.answer(early), Some(Ok(VolumeReply::Read(_)))));
    assert_eq!(world.answer(late), Some(Ok(VolumeReply::Done)));
}

#[test]
fn a_revoked_lock_ends_everything() {
    let (mut world, vdi) = world();
    let handle = world.open(100, vdi);
    for node in 1..=3 {
        world.deaf.insert((NodeId(node), "write"));
    }
    let open = world.submit(100, handle, write(0, 4096, 1));
    world.run(ms(10));
    let generation = world.state.vdi(vdi).unwrap().lock.unwrap().generation;
    let me = world.gateways[&NodeId(101)].0;
    world.order_now(me, Command::Revoke { vdi, generation }).unwrap();
    world.publish();
    world.run(ms(10));
    assert_eq!(world.answer(open), Some(Err(VolumeError::Lost)));
    assert!(
        world.said.contains(&(NodeId(100), GatewayOutput::Lost { handle, reason: LostReason::LockEnded }))
    );
    assert_eq!(world.act(100, handle, VolumeOp::Flush), Err(VolumeError::Lost));
    assert_eq!(world.gateway(100).unflushed_bytes(), 0);
    let now = world.now;
    world.gateway(100).close(now, handle);
    world.run(ms(10));
    assert!(world.said.contains(&(NodeId(100), GatewayOutput::Closed { handle })));
}

#[test]
fn closing_early_gives_the_lock_back() {
    let (mut world, vdi) = world();
    let handle = world.begin_open(100, vdi, OpenMode::Write);
    let now = world.now;
    world.gateway(100).close(now, handle);
    world.run(ms(100));
    assert_eq!(failure(&world, handle), Some(OpenError::Closed));
    assert!(world.state.vdi(vdi).unwrap().lock.is_none());
    world.open(101, vdi);
}

#[test]
fn settling_begins_again_when_the_epoch_changes() {
    let (mut world, vdi) = world();
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, 4096, 1)).unwrap();
    world.kill_gateway(100);
    let next = world.begin_open(101, vdi, OpenMode::Write);
    world.run(Duration::from_millis(5095));
    // Replica 3 answers nothing: settling cannot end before it is down.
    world.deaf.insert((NodeId(3), "other"));
    world.run(Duration::from_secs(3));
    assert!(!world.opened(101, next));
    assert!(
        world
            .said
            .iter()
            .any(|(_, said)| matches!(said, GatewayOutput::Report { suspect } if suspect.node == NodeId(3)))
    );
    world.crash(3);
    world.run(ms(500));
    assert!(world.opened(101, next));
    assert_eq!(read(&mut world, 101, next, 0, 4096), vec![1; 4096]);
}

/// Five nodes, two copies: the members of a new object are cut off together with its holder.
fn cut_off() -> (World, VdiId, u64, Vec<u64>) {
    let settings = Settings { copies: 2, min_copies: 1, flush_interval_ms: 600_000, ..Settings::default() };
    let mut world = World::new(5, settings, 7);
    let vdi = world.create(4 << 20);
    let handle = world.open(100, vdi);
    world.act(100, handle, write(0, 4096, 1)).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    let holders = world.replicas.iter().filter(|(_, replica)| replica.memory.contains_key(&object));
    let holders: Vec<u64> = holders.map(|(node, _)| node.0).collect();
    assert_eq!(holders.len(), 2);
    for node in &holders {
        world.cut(*node);
    }
    world.kill_gateway(100);
    let next = world.begin_open(101, vdi, OpenMode::Write);
    world.run(Duration::from_secs(10));
    assert!(!world.opened(101, next), "nobody who could know of new objects is there");
    (world, vdi, next, holders)
}

#[test]
fn a_take_over_waits_for_those_who_may_know_of_new_objects() {
    let (mut world, _, next, holders) = cut_off();
    // The first to be cut off cannot tell what the other one was given when it was alone.
    world.rejoin(holders[0]);
    world.recover();
    world.run(Duration::from_secs(1));
    assert!(!world.opened(101, next));
    world.rejoin(holders[1]);
    world.recover();
    world.run(Duration::from_secs(1));
    assert!(world.opened(101, next));
    assert_eq!(read(&mut world, 101, next, 0, 4096), vec![1; 4096]);
}

#[test]
fn members_that_are_out_are_given_up() {
    let (mut world, _, next, holders) = cut_off();
    world.out(holders[0]);
    world.run(Duration::from_secs(1));
    assert!(!world.opened(101, next), "one may still come back");
    world.out(holders[1]);
    world.run(Duration::from_secs(1));
    assert!(world.opened(101, next));
    assert_eq!(read(&mut world, 101, next, 0, 4096), vec![0; 4096]);
}

#[test]
fn restarted_members_know_what_they_know() {
    let (mut world, _, next, holders) = cut_off();
    for node in &holders {
        world.crash(*node);
        world.start(*node);
    }
    world.recover();
    world.run(Duration::from_secs(1));
    assert!(world.opened(101, next), "what they had in memory is lost for good");
}
