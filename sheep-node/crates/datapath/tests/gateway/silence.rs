//! Commands that get no answer: not taken, or carried out and the answer lost.

use crate::serving::{read, write};
use crate::snapshots::{ask_pause, close, is_paused, made, read_only, snapshot_op};
use crate::world::{BLOCK, World, ms};
use sheep_datapath::{GatewayOutput, OpenMode, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{AccessMode, Command, Settings};
use sheep_types::{Incarnation, Member, NodeId};
use std::time::Duration;

const OTHER: Member = Member { node: NodeId(101), incarnation: Incarnation(1) };

/// Nothing is answered for a second, whether carried out or not, and then everything.
fn silence(world: &mut World, done: bool) {
    world.silent = (100, if done { 100 } else { 0 });
    world.run(Duration::from_secs(1));
    world.silent = (0, 0);
}

#[test]
fn nobody_waits_for_ever_for_an_answer_that_never_comes() {
    for done in [false, true] {
        let mut world = World::new(4, Settings::default(), 9);
        let vdi = world.create(4 << 20);
        // Opening, on settled copies and after a holder that has died.
        for dies in [true, false] {
            let handle = world.begin_open(100, vdi, OpenMode::Write);
            silence(&mut world, done);
            assert!(!world.opened(100, handle));
            world.run(Duration::from_secs(1));
            assert!(world.opened(100, handle), "{done}");
            world.act(100, handle, write(0, BLOCK, 1)).unwrap();
            let dead = world.gateways[&NodeId(100)].0;
            if dies {
                world.kill_gateway(100);
                world.restart_gateway(100, dead);
            } else {
                close(&mut world, 100, handle);
            }
        }
        let handle = world.open(100, vdi);
        // A new map object.
        world.act(100, handle, write(0, BLOCK, 1)).unwrap();
        let flush = world.submit(100, handle, VolumeOp::Flush);
        silence(&mut world, done);
        world.run(Duration::from_secs(1));
        assert_eq!(world.answer(flush), Some(Ok(VolumeReply::Done)));
        // A snapshot: one, and its maker is told so.
        let io = world.submit(100, handle, snapshot_op("one"));
        let after = world.submit(100, handle, write(0, BLOCK, 2));
        silence(&mut world, done);
        assert_eq!((world.answer(io), world.answer(after)), (None, None));
        world.run(Duration::from_secs(1));
        let taken = made(world.answer(io).unwrap().unwrap());
        assert_eq!(world.answer(after), Some(Ok(VolumeReply::Done)));
        assert_eq!((taken.volume, taken.working), (vdi, world.vid(vdi)));
        assert_eq!(world.state.snapshots_of(vdi).len(), 1);
        let reader = read_only(&mut world, 101, taken.vdi);
        assert_eq!(read(&mut world, 101, reader, 0, 512), vec![1; 512]);
        // Another one of that name is told of the first.
        let again = world.act(100, handle, snapshot_op("one")).unwrap();
        assert!(matches!(again, VolumeReply::Ordered(result) if result.is_err()));
        // A pause, and its end.
        ask_pause(&mut world, vdi, 5);
        silence(&mut world, done);
        world.run(Duration::from_secs(1));
        assert!(is_paused(&world, vdi));
        let waits = world.submit(100, handle, write(0, BLOCK, 3));
        world.run(Duration::from_secs(8));
        assert_eq!(world.answer(waits), None);
        silence(&mut world, done);
        world.run(Duration::from_secs(2));
        assert_eq!(world.answer(waits), Some(Ok(VolumeReply::Done)));
        // Closing.
        let now = world.now;
        world.gateway(100).close(now, handle);
        silence(&mut world, done);
        world.run(Duration::from_secs(1));
        assert!(world.said.iter().any(|(_, said)| *said == GatewayOutput::Closed { handle }));
        assert!(world.state.vdi(vdi).unwrap().is_clean());
    }
}

/// The lock was granted, but nobody knows: it is given back.
#[test]
fn a_lock_that_nobody_knows_of_is_given_back() {
    let mut world = World::new(4, Settings::default(), 9);
    let origin = world.create(4 << 20);
    let handle = world.open(100, origin);
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    let taken = made(world.act(100, handle, snapshot_op("one")).unwrap());
    let vdi = crate::snapshots::clone_of(&mut world, taken.vdi, "clone");
    world.order_now(OTHER, Command::Flatten { vdi, wanted: true }).unwrap();
    world.publish();
    world.run(ms(10));
    let background = world.begin_open(100, vdi, OpenMode::Flatten);
    silence(&mut world, true);
    assert!(world.state.vdi(vdi).unwrap().lock.is_some());
    world.run(Duration::from_secs(1));
    assert!(!world.opened(100, background));
    assert!(world.state.vdi(vdi).unwrap().lock.is_none());
    world.open(101, vdi);
}

/// Writes that some member has no room for let nobody take a snapshot; that is said once, not with everything that
/// happens.
#[test]
fn a_pause_that_cannot_be_is_called_off_once() {
    let mut world = World::new(4, Settings::default(), 9);
    let vdi = world.create(4 << 20);
    let handle = world.open(100, vdi);
    world.replicas.values_mut().for_each(|replica| replica.full = true);
    assert_eq!(world.act(100, handle, write(0, BLOCK, 1)), Err(VolumeError::NoSpace));
    world.silent = (100, 0);
    ask_pause(&mut world, vdi, 5);
    world.run(ms(5));
    let before = world.proposals;
    for _ in 0..50 {
        world.act(100, handle, VolumeOp::Read { offset: 1 << 20, len: 512 }).unwrap();
    }
    assert!(world.proposals <= before + 8, "{} proposals", world.proposals - before);
    world.silent = (0, 0);
    world.run(Duration::from_secs(1));
    assert_eq!(world.state.vdi(vdi).unwrap().lock.unwrap().pause_asked, None);
}

/// The lock was granted and nobody knows; by the time it is asked for again it takes an attachment.
#[test]
fn a_lock_that_would_not_be_granted_again_is_given_back() {
    let modes = [(OpenMode::Write, AccessMode::Write, 100), (OpenMode::Read, AccessMode::Read, 101)];
    for (open, mode, node) in modes {
        let mut world = World::new(3, Settings::default(), 9);
        let vdi = world.create(4 << 20);
        let handle = world.begin_open(100, vdi, open);
        silence(&mut world, true);
        let attach = Command::Attach { vdi, node: NodeId(node), mode, share: false };
        world.order_now(OTHER, attach).unwrap();
        world.publish();
        world.run(Duration::from_secs(2));
        assert!(!world.opened(100, handle));
        let record = world.state.vdi(vdi).unwrap();
        assert!(record.lock.is_none() && record.readers.is_empty(), "{record:?}");
        let handle = world.begin_open(node, vdi, open);
        world.run(Duration::from_secs(1));
        assert!(world.opened(node, handle));
    }
}
