//! Members that restart, lag or rot.

use crate::serving::{read, write};
use crate::world::{BLOCK, OBJECT, World, ms};
use sheep_datapath::{GatewayOutput, LostReason, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{Command, Settings, WhenUnavailable};
use sheep_types::{NodeId, ObjectId, VdiId};
use std::time::Duration;

fn open(storage: u64, settings: Settings) -> (World, u64, VdiId) {
    let mut world = World::new(storage, settings, 5);
    let vdi = world.create(4 << 20);
    let handle = world.open(100, vdi);
    (world, handle, vdi)
}

fn slow_flush() -> Settings {
    Settings { flush_interval_ms: 600_000, ..Settings::default() }
}

#[test]
fn answered_writes_outlive_the_restart_of_all_replicas() {
    let (mut world, handle, vdi) = open(3, slow_flush());
    world.act(100, handle, write(0, 3 * BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    world.act(100, handle, write(BLOCK as u64, BLOCK, 3)).unwrap();
    for node in 1..=3 {
        world.crash(node);
    }
    for node in 1..=3 {
        world.start(node);
    }
    world.recover();
    world.run(Duration::from_secs(5));
    let got = read(&mut world, 100, handle, 0, 3 * BLOCK as u32);
    assert_eq!((got[0], got[BLOCK], got[2 * BLOCK]), (2, 3, 1));
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    assert!(world.replicas.values().all(|replica| replica.disk[&object].blocks[&0][0] == 2));
}

#[test]
fn a_creation_is_repeated_after_the_restart_of_all_replicas() {
    let (mut world, handle, _) = open(3, slow_flush());
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    world.act(100, handle, write(BLOCK as u64, BLOCK, 3)).unwrap();
    for node in 1..=3 {
        world.crash(node);
        world.start(node);
    }
    world.recover();
    world.run(Duration::from_secs(3));
    let got = read(&mut world, 100, handle, 0, 2 * BLOCK as u32);
    assert_eq!((got[0], got[BLOCK]), (2, 3));
}

#[test]
fn a_read_asks_only_members_that_hold_what_was_answered() {
    let (mut world, handle, _) = open(3, slow_flush());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    // Node 2 loses the second write, and no write reaches it again for now. Recovery, wrongly, leaves it there.
    world.crash(2);
    world.start(2);
    let old = world.replicas[&NodeId(2)].memory.keys().copied().collect::<Vec<_>>();
    for object in old {
        world.replicas.get_mut(&NodeId(2)).unwrap().current.insert(object, true);
    }
    world.deaf.insert((NodeId(2), "write"));
    for _ in 0..20 {
        assert_eq!(read(&mut world, 100, handle, 0, 512), vec![2; 512]);
    }
}

#[test]
fn a_member_that_lacks_more_than_is_kept_ends_the_volume() {
    let (mut world, handle, vdi) = open(3, slow_flush());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    let early = world.replicas[&NodeId(2)].memory[&object].clone();
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    // Its disk goes back in time, unnoticed.
    world.replicas.get_mut(&NodeId(2)).unwrap().memory.insert(object, early);
    let io = world.submit(100, handle, write(BLOCK as u64, BLOCK, 3));
    world.run(Duration::from_secs(2));
    assert_eq!(world.answer(io), Some(Err(VolumeError::Lost)));
    let lost = GatewayOutput::Lost { handle, reason: LostReason::WritesMissing };
    assert!(world.said.contains(&(NodeId(100), lost)));
    let now = world.now;
    world.gateway(100).close(now, handle);
    world.run(ms(100));
    let record = world.state.vdi(vdi).unwrap();
    assert!(record.lock.is_none() && !record.is_clean(), "the next holder settles");
}

#[test]
fn below_min_copies_writes_wait_and_reads_go_on() {
    let (mut world, handle, _) = open(3, Settings::default());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.crash(2);
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    world.crash(3);
    world.run(ms(50));
    let io = world.submit(100, handle, write(0, BLOCK, 3));
    world.run(Duration::from_secs(3));
    assert_eq!(world.answer(io), None);
    assert_eq!(read(&mut world, 100, handle, 0, 512), vec![2; 512]);
    world.start(3);
    world.recover();
    world.run(Duration::from_secs(3));
    assert_eq!(world.answer(io), Some(Ok(VolumeReply::Done)));
}

#[test]
fn lower_min_copies_release_what_is_under_way() {
    let (mut world, handle, vdi) = open(3, slow_flush());
    let me = world.gateways[&NodeId(100)].0;
    let copies = |min_copies| Command::SetCopies { vdi, copies: 3, min_copies };
    world.order_now(me, copies(3)).unwrap();
    world.publish();
    // Answered, and not flushed: one more member must have it, since there are too few without that.
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.crash(3);
    let flush = world.submit(100, handle, VolumeOp::Flush);
    let late = world.submit(100, handle, write(0, BLOCK, 2));
    world.run(Duration::from_secs(3));
    assert_eq!((world.answer(flush), world.answer(late)), (None, None));
    let epoch = world.state.epoch();
    world.order_now(me, copies(2)).unwrap();
    world.publish();
    assert_eq!(world.state.epoch(), epoch, "sets are the same");
    world.run(Duration::from_secs(3));
    assert_eq!(world.answer(flush), Some(Ok(VolumeReply::Done)));
    assert_eq!(world.answer(late), Some(Ok(VolumeReply::Done)));
}

#[test]
fn requests_fail_in_time_if_so_set() {
    let settings =
        Settings { when_unavailable: WhenUnavailable::ErrorAfter { ms: 1000 }, ..Settings::default() };
    let (mut world, handle, _) = open(3, settings);
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    for node in 1..=3 {
        world.crash(node);
    }
    let ios =
        [write(0, BLOCK, 3), VolumeOp::Read { offset: 0, len: 512 }].map(|op| world.submit(100, handle, op));
    world.run(ms(900));
    assert!(ios.iter().all(|io| world.answer(*io).is_none()));
    world.run(ms(200));
    assert!(ios.iter().all(|io| world.answer(*io) == Some(Err(VolumeError::Io))));
}

#[test]
fn a_silent_member_is_reported_and_its_loss_unblocks_writes() {
    let (mut world, handle, _) = open(3, Settings::default());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.deaf.insert((NodeId(2), "write"));
    world.deaf.insert((NodeId(2), "flush"));
    let io = world.submit(100, handle, write(0, BLOCK, 2));
    world.run(Duration::from_secs(4));
    assert_eq!(world.answer(io), None);
    let reports = |world: &World| {
        let suspects = world.said.iter().filter_map(|(_, said)| match said {
            GatewayOutput::Report { suspect } => Some(suspect.node),
            _ => None,
        });
        suspects.collect::<Vec<_>>()
    };
    assert_eq!(reports(&world), [NodeId(2)], "once, not each time it is asked");
    world.crash(2);
    world.run(ms(50));
    assert_eq!(world.answer(io), Some(Ok(VolumeReply::Done)));
}

#[test]
fn lost_messages_are_sent_again_and_do_no_harm_twice() {
    let (mut world, handle, _) = open(3, Settings::default());
    world.net.lose = 20;
    world.net.double = 20;
    let ios: Vec<u64> =
        (0..64).map(|part| world.submit(100, handle, write(part % 8 * 4096, 4096, part as u8))).collect();
    world.run(Duration::from_secs(40));
    assert!(ios.iter().all(|io| world.answer(*io) == Some(Ok(VolumeReply::Done))));
    for part in 0..8 {
        assert_eq!(read(&mut world, 100, handle, part * 4096, 512), vec![56 + part as u8; 512]);
    }
    assert!(!world.said.iter().any(|(_, said)| matches!(said, GatewayOutput::Lost { .. })));
}

#[test]
fn damage_is_read_around_and_told_when_it_is_everywhere() {
    let (mut world, handle, _) = open(3, Settings::default());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    for node in 1..=3 {
        assert_eq!(read(&mut world, 100, handle, 0, 512), vec![1; 512]);
        world.replicas.get_mut(&NodeId(node)).unwrap().damaged = true;
    }
    assert_eq!(world.act(100, handle, VolumeOp::Read { offset: 0, len: 512 }), Err(VolumeError::Io));
}

#[test]
fn a_lost_object_is_an_error_never_zeros() {
    let (mut world, handle, vdi) = open(3, Settings::default());
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    for replica in world.replicas.values_mut() {
        replica.memory.remove(&object);
    }
    assert_eq!(world.act(100, handle, VolumeOp::Read { offset: 0, len: 512 }), Err(VolumeError::Io));
    assert_eq!(world.act(100, handle, write(0, BLOCK, 2)), Err(VolumeError::Io));
    world.act(100, handle, write(OBJECT, BLOCK, 2)).unwrap();
    assert_eq!(read(&mut world, 100, handle, OBJECT, 512), vec![2; 512], "only that object is");
    // Nor does a lost map make a hole of anything.
    let now = world.now;
    world.gateway(100).close(now, handle);
    world.run(ms(300));
    for replica in world.replicas.values_mut() {
        replica.memory.clear();
    }
    let handle = world.open(101, vdi);
    assert_eq!(world.act(101, handle, VolumeOp::Read { offset: 0, len: 512 }), Err(VolumeError::Io));
    assert_eq!(world.act(101, handle, write(0, BLOCK, 1)), Err(VolumeError::Io));
}

#[test]
fn a_flush_covers_members_that_joined_since() {
    let (mut world, handle, vdi) = open(4, slow_flush());
    for part in 0..8 {
        world.act(100, handle, write(part * OBJECT, BLOCK, 1)).unwrap();
    }
    world.act(100, handle, VolumeOp::Flush).unwrap();
    for part in 0..8 {
        world.act(100, handle, write(part * OBJECT, BLOCK, 2)).unwrap();
    }
    // Out of the ring goes node 1: other nodes take its places.
    world.crash(1);
    world.out(1);
    world.recover();
    world.run(Duration::from_secs(3));
    world.act(100, handle, VolumeOp::Flush).unwrap();
    for part in 0..8 {
        let object = ObjectId::data(world.vid(vdi), part);
        for node in 2..=4 {
            let disk = &world.replicas[&NodeId(node)].disk;
            assert_eq!(disk[&object].blocks[&0][0], 2, "object {part} on node {node}");
        }
    }
}
