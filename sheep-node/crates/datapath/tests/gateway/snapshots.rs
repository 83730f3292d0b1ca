//! Snapshots and clones of volumes that are open or closed.

use crate::serving::{read, write};
use crate::world::{BLOCK, OBJECT, World, ms};
use sheep_datapath::{GatewayOutput, OpenMode, VolumeError, VolumeOp, VolumeReply};
use sheep_state::{CloneVdi, Command, Guard, Outcome, Settings, SnapshotItem, SnapshotMade};
use sheep_types::{Incarnation, Member, NodeId, ObjectId, VdiId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Six storage nodes, three copies; a volume of 4 MiB that is open at node 100.
fn open() -> (World, VdiId, u64) {
    let mut world = World::new(6, Settings::default(), 9);
    let vdi = world.create(4 << 20);
    let handle = world.open(100, vdi);
    (world, vdi, handle)
}

pub(crate) fn snapshot_op(tag: &str) -> VolumeOp {
    VolumeOp::Snapshot { tag: tag.to_owned(), attributes: BTreeMap::new(), created_unix_ms: 1 }
}

pub(crate) fn made(reply: VolumeReply) -> SnapshotMade {
    match reply {
        VolumeReply::Ordered(result) => match *result {
            Ok(Outcome::Snapshots(made)) => made[0],
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

pub(crate) fn take(world: &mut World, handle: u64, tag: &str) -> SnapshotMade {
    made(world.act(100, handle, snapshot_op(tag)).unwrap())
}

pub(crate) fn clone_of(world: &mut World, snapshot: VdiId, name: &str) -> VdiId {
    let clone = CloneVdi {
        snapshot,
        name: name.to_owned(),
        size: None,
        copies: None,
        min_copies: None,
        cache: Default::default(),
        attributes: BTreeMap::new(),
        created_unix_ms: 1,
    };
    let me = Member { node: NodeId(101), incarnation: Incarnation(1) };
    let Ok(Outcome::Created { vdi, .. }) = world.order_now(me, Command::CloneVdi(clone)) else {
        panic!("not cloned")
    };
    world.publish();
    world.run(ms(5));
    vdi
}

pub(crate) fn read_only(world: &mut World, node: u64, vdi: VdiId) -> u64 {
    let handle = world.begin_open(node, vdi, OpenMode::Read);
    world.run(Duration::from_secs(1));
    assert!(world.opened(node, handle));
    handle
}

pub(crate) fn close(world: &mut World, node: u64, handle: u64) {
    let now = world.now;
    world.gateway(node).close(now, handle);
    let closed = GatewayOutput::Closed { handle };
    for _ in 0..10 {
        world.run(Duration::from_secs(1));
        if world.said.iter().rev().any(|(_, said)| *said == closed) {
            return;
        }
    }
    panic!("not closed");
}

fn tags(world: &mut World, node: u64, handle: u64, objects: u64) -> Vec<u8> {
    (0..objects).map(|index| read(world, node, handle, index * OBJECT, BLOCK as u32)[0]).collect()
}

#[test]
fn a_snapshot_keeps_what_was_and_the_volume_goes_on() {
    let (mut world, vdi, handle) = open();
    let old = world.vid(vdi);
    world.act(100, handle, write(0, OBJECT as usize, 1)).unwrap();
    world.act(100, handle, write(OBJECT, BLOCK, 2)).unwrap();
    let made = take(&mut world, handle, "one");
    assert_eq!((made.vid, made.working), (old, world.vid(vdi)));
    assert_ne!(made.working, old);
    // A part of a block, a new object, an object that stays shared.
    world.act(100, handle, write(512, 512, 3)).unwrap();
    world.act(100, handle, write(2 * OBJECT, BLOCK, 4)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let got = read(&mut world, 100, handle, 0, 2 * BLOCK as u32);
    assert_eq!((got[0], got[512], got[1024], got[BLOCK]), (1, 3, 1, 1));
    assert_eq!(tags(&mut world, 100, handle, 4), [1, 2, 4, 0]);
    let snapshot = read_only(&mut world, 101, made.vdi);
    assert_eq!(tags(&mut world, 101, snapshot, 4), [1, 2, 0, 0]);
    assert_eq!(read(&mut world, 101, snapshot, 512, 512), vec![1; 512]);
    let refused = world.act(101, snapshot, write(0, BLOCK, 9));
    assert_eq!(refused, Err(VolumeError::NotPermitted));
    // Each of them has what is its own.
    let has =
        |vid, index| world.replicas.values().any(|r| r.memory.contains_key(&ObjectId::data(vid, index)));
    assert_eq!([has(made.working, 0), has(made.working, 1), has(made.working, 2)], [true, false, true]);
    // It is all there for the next holder.
    close(&mut world, 100, handle);
    let handle = world.open(101, vdi);
    assert_eq!(tags(&mut world, 101, handle, 4), [1, 2, 4, 0]);
}

#[test]
fn a_chain_of_snapshots_shows_every_instant() {
    let (mut world, _, handle) = open();
    let mut snapshots = Vec::new();
    for tag in 1..=12u8 {
        world.act(100, handle, write(u64::from(tag % 3) * OBJECT, BLOCK, tag)).unwrap();
        snapshots.push(take(&mut world, handle, &format!("t{tag}")).vdi);
    }
    for (place, snapshot) in snapshots.iter().enumerate() {
        let newest = place as u8 + 1;
        let shows = |object: u8| (1..=newest).rev().find(|tag| tag % 3 == object).unwrap_or(0);
        let handle = read_only(&mut world, 101, *snapshot);
        assert_eq!(tags(&mut world, 101, handle, 3), [shows(0), shows(1), shows(2)]);
        close(&mut world, 101, handle);
    }
}

#[test]
fn writes_wait_for_a_snapshot_and_are_not_in_it() {
    let (mut world, _, handle) = open();
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    let before = world.submit(100, handle, write(0, BLOCK, 2));
    let snapshot = world.submit(100, handle, snapshot_op("one"));
    let after = world.submit(100, handle, write(0, BLOCK, 3));
    let second = world.submit(100, handle, snapshot_op("two"));
    world.run(Duration::from_secs(1));
    for io in [before, after] {
        assert_eq!(world.answer(io), Some(Ok(VolumeReply::Done)));
    }
    let first = made(world.answer(snapshot).unwrap().unwrap());
    let second = made(world.answer(second).unwrap().unwrap());
    let shown = |world: &mut World, vdi| {
        let handle = read_only(world, 101, vdi);
        let shown = tags(world, 101, handle, 1);
        close(world, 101, handle);
        shown
    };
    assert_eq!((shown(&mut world, first.vdi), shown(&mut world, second.vdi)), (vec![2], vec![2]));
    assert_eq!(tags(&mut world, 100, handle, 1), [3]);
}

#[test]
fn a_name_that_is_taken_is_refused_and_the_volume_goes_on() {
    let (mut world, _, handle) = open();
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    take(&mut world, handle, "one");
    let again = world.act(100, handle, snapshot_op("one")).unwrap();
    assert!(matches!(again, VolumeReply::Ordered(result) if result.is_err()));
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    assert_eq!(tags(&mut world, 100, handle, 1), [2]);
}

#[test]
fn a_clone_reads_through_and_fills_block_by_block() {
    let (mut world, vdi, handle) = open();
    world.act(100, handle, write(0, 4 * BLOCK, 1)).unwrap();
    world.act(100, handle, write(OBJECT, 4 * BLOCK, 2)).unwrap();
    let made = take(&mut world, handle, "one");
    let clone = clone_of(&mut world, made.vdi, "clone");
    let own = world.open(101, clone);
    assert_eq!(tags(&mut world, 101, own, 3), [1, 2, 0]);
    // Parts of a block, zeros, and a discard hide what is below, and nothing else.
    world.act(101, own, write(BLOCK as u64 + 512, 512, 3)).unwrap();
    let zeroes = VolumeOp::WriteZeroes {
        offset: 2 * BLOCK as u64,
        len: BLOCK as u64,
        fua: false,
        no_hole: false,
        fast_zero: false,
    };
    world.act(101, own, zeroes).unwrap();
    world.act(101, own, VolumeOp::Discard { offset: OBJECT, len: OBJECT, fua: false }).unwrap();
    world.act(100, handle, write(3 * BLOCK as u64, BLOCK, 9)).unwrap();
    let shows = |world: &mut World, node, handle| {
        let got = read(world, node, handle, 0, 4 * BLOCK as u32);
        let firsts: Vec<u8> = got.chunks(BLOCK).map(|block| block[0]).collect();
        (firsts, got[BLOCK + 512], got[BLOCK + 1024], read(world, node, handle, OBJECT, 512)[0])
    };
    assert_eq!(shows(&mut world, 101, own), (vec![1, 1, 0, 1], 3, 1, 0));
    assert_eq!(shows(&mut world, 100, handle), (vec![1, 1, 1, 9], 1, 1, 2));
    world.act(101, own, VolumeOp::Flush).unwrap();
    close(&mut world, 101, own);
    let own = world.open(101, clone);
    assert_eq!(shows(&mut world, 101, own), (vec![1, 1, 0, 1], 3, 1, 0));
    let vid = world.vid(clone);
    let object = world.replicas.values().find_map(|r| r.memory.get(&ObjectId::data(vid, 0))).unwrap();
    assert_eq!(object.blocks.len(), 2, "only what was written");
    // A snapshot of the clone, and a clone of that, see through two objects.
    let of_clone = made_by(&mut world, 101, own, "deep");
    close(&mut world, 100, handle);
    let deep = clone_of(&mut world, of_clone.vdi, "deeper");
    let deep = world.open(100, deep);
    world.act(100, deep, write(0, BLOCK, 7)).unwrap();
    assert_eq!(shows(&mut world, 100, deep), (vec![7, 1, 0, 1], 3, 1, 0));
    world.act(101, own, write(0, BLOCK, 8)).unwrap();
    assert_eq!(shows(&mut world, 101, own), (vec![8, 1, 0, 1], 3, 1, 0));
    assert_eq!(shows(&mut world, 100, deep), (vec![7, 1, 0, 1], 3, 1, 0));
    let _ = vdi;
}

fn made_by(world: &mut World, node: u64, handle: u64, tag: &str) -> SnapshotMade {
    made(world.act(node, handle, snapshot_op(tag)).unwrap())
}

/// The gateway dies with created objects that the map does not name yet, in a volume with a snapshot and in a clone.
#[test]
fn a_take_over_knows_which_objects_lack_blocks() {
    let (mut world, vdi, handle) = open();
    world.act(100, handle, write(0, 2 * BLOCK, 1)).unwrap();
    let made = take(&mut world, handle, "one");
    let clone = clone_of(&mut world, made.vdi, "clone");
    let own = world.open(100, clone);
    world.act(100, handle, write(0, BLOCK, 2)).unwrap();
    world.act(100, own, write(0, BLOCK, 3)).unwrap();
    world.kill_gateway(100);
    for (volume, tag) in [(vdi, 2), (clone, 3)] {
        let handle = world.open(101, volume);
        let got = read(&mut world, 101, handle, 0, 2 * BLOCK as u32);
        assert_eq!((got[0], got[BLOCK]), (tag, 1));
    }
}

/// A member has no room for the object that a write after a snapshot makes: what the write does not change can be read.
#[test]
fn a_full_member_leaves_the_rest_of_an_object_readable() {
    let (mut world, vdi, handle) = open();
    world.act(100, handle, write(0, 4 * BLOCK, 1)).unwrap();
    let made = take(&mut world, handle, "one");
    let clone = clone_of(&mut world, made.vdi, "clone");
    let own = world.open(101, clone);
    world.replicas.values_mut().for_each(|replica| replica.full = true);
    for (node, handle) in [(100, handle), (101, own)] {
        assert_eq!(world.act(node, handle, write(0, BLOCK, 2)), Err(VolumeError::NoSpace));
        assert_eq!(read(&mut world, node, handle, BLOCK as u64, BLOCK as u32), vec![1; BLOCK]);
        let what_failed = world.act(node, handle, VolumeOp::Read { offset: 0, len: BLOCK as u32 });
        assert_eq!(what_failed, Err(VolumeError::NoSpace));
        assert_eq!(world.act(node, handle, write(BLOCK as u64, BLOCK, 2)), Err(VolumeError::NoSpace));
    }
    world.replicas.values_mut().for_each(|replica| replica.full = false);
    world.run(Duration::from_secs(3));
    for (node, handle) in [(100, handle), (101, own)] {
        let got = read(&mut world, node, handle, 0, 4 * BLOCK as u32);
        assert_eq!((got[0], got[BLOCK], got[3 * BLOCK]), (2, 1, 1));
    }
    let _ = vdi;
}

/// More map blocks are to be changed than the cache holds.
#[test]
fn a_flush_needs_no_more_of_the_map_than_fits() {
    let mut world = World::new(3, Settings::default(), 9);
    let config = sheep_datapath::GatewayConfig { map_blocks: 8, ..Default::default() };
    world.start_gateway_with(Member { node: NodeId(100), incarnation: Incarnation(1) }, config);
    let vdi = world.create(4 << 30);
    let handle = world.open(100, vdi);
    let round = |world: &mut World, handle, tag| {
        // One object of each block of the map.
        for block in 0..40 {
            world.act(100, handle, write(block * 1024 * OBJECT, 512, tag)).unwrap();
        }
        world.act(100, handle, VolumeOp::Flush).unwrap();
    };
    round(&mut world, handle, 1);
    let made = take(&mut world, handle, "one");
    round(&mut world, handle, 2);
    assert_eq!(read(&mut world, 100, handle, 39 * 1024 * OBJECT, 512), vec![2; 512]);
    let snapshot = read_only(&mut world, 101, made.vdi);
    assert_eq!(read(&mut world, 101, snapshot, 39 * 1024 * OBJECT, 512), vec![1; 512]);
}

/// A lost object is given up by a write, and none may happen while a snapshot is on its way.
#[test]
fn nothing_is_given_up_during_a_pause() {
    let (mut world, vdi, handle) = open();
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    let object = ObjectId::data(world.vid(vdi), 0);
    for replica in world.replicas.values_mut() {
        replica.memory.remove(&object);
        replica.disk.remove(&object);
        replica.current.remove(&object);
    }
    ask_pause(&mut world, vdi, 5);
    world.run(ms(100));
    assert!(is_paused(&world, vdi));
    let given_up = world.submit(100, handle, VolumeOp::AcceptLoss { index: 0, force: true });
    world.run(Duration::from_secs(2));
    assert_eq!(world.answer(given_up), None);
    assert!(world.replicas.values().all(|replica| !replica.memory.contains_key(&object)));
}

/// A snapshot of a volume that several nodes only read takes nothing from them.
#[test]
fn readers_go_on_under_a_snapshot() {
    let (mut world, vdi, handle) = open();
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    close(&mut world, 100, handle);
    let reader = read_only(&mut world, 101, vdi);
    let item = SnapshotItem {
        vdi,
        guard: Guard::ClosedClean,
        tag: "one".to_owned(),
        attributes: BTreeMap::new(),
        created_unix_ms: 1,
    };
    let other = Member { node: NodeId(100), incarnation: Incarnation(1) };
    world.order_now(other, Command::Snapshot { items: vec![item] }).unwrap();
    world.publish();
    world.run(ms(100));
    assert_eq!(tags(&mut world, 101, reader, 2), [1, 0]);
}

/// All members of a group stand still until the one command, or until they are told to go on.
#[test]
fn a_group_is_one_instant() {
    let (mut world, vdi, handle) = open();
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    ask_pause(&mut world, vdi, 5);
    world.run(ms(200));
    assert!(is_paused(&world, vdi));
    let waits = world.submit(100, handle, write(0, BLOCK, 2));
    world.run(ms(500));
    assert_eq!(world.answer(waits), None);
    assert_eq!(tags(&mut world, 100, handle, 1), [1], "it can be read");
    let generation = world.state.vdi(vdi).unwrap().lock.unwrap().generation;
    let item = |token| SnapshotItem {
        vdi,
        guard: Guard::Paused { generation, token },
        tag: "group".to_owned(),
        attributes: BTreeMap::new(),
        created_unix_ms: 1,
    };
    let other = Member { node: NodeId(101), incarnation: Incarnation(1) };
    assert!(world.order_now(other, Command::Snapshot { items: vec![item(6)] }).is_err(), "another group's");
    assert!(world.order_now(other, Command::Snapshot { items: vec![item(5)] }).is_ok());
    world.publish();
    world.run(ms(200));
    assert_eq!(world.answer(waits), Some(Ok(VolumeReply::Done)));
    // Nobody comes for the next one: it goes on by itself, and what comes late does nothing.
    ask_pause(&mut world, vdi, 7);
    world.run(ms(100));
    let waits = world.submit(100, handle, write(0, BLOCK, 3));
    world.run(Duration::from_secs(5));
    assert!(is_paused(&world, vdi) && world.answer(waits).is_none());
    world.run(Duration::from_secs(10));
    assert_eq!(world.answer(waits), Some(Ok(VolumeReply::Done)));
    assert!(world.order_now(other, Command::Snapshot { items: vec![item(7)] }).is_err());
}

/// Who cannot come to rest in time does not stand still for ever, nor who is called off before.
#[test]
fn an_attempt_to_pause_ends() {
    let (mut world, vdi, handle) = open();
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    // Nothing can be ordered for the pause; the writes that came before go on when it is over.
    let nodes: Vec<NodeId> = world.replicas.keys().copied().collect();
    world.down.extend(&nodes);
    let before = world.submit(100, handle, write(0, BLOCK, 2));
    ask_pause(&mut world, vdi, 5);
    world.run(Duration::from_secs(3));
    assert!(!is_paused(&world, vdi) && world.answer(before).is_none());
    let lock = |world: &World| world.state.vdi(vdi).unwrap().lock.unwrap();
    assert_eq!(lock(&world).pause_asked, Some(5));
    world.run(Duration::from_secs(9));
    assert_eq!(lock(&world).pause_asked, None, "the holder has called it off");
    // Called off by somebody else.
    ask_pause(&mut world, vdi, 6);
    let resume = Command::Resume { vdi, generation: lock(&world).generation, token: 6 };
    world.order_now(OTHER, resume).unwrap();
    world.down.retain(|node| !nodes.contains(node));
    world.publish();
    world.run(Duration::from_secs(5));
    assert!(!is_paused(&world, vdi));
    assert_eq!(world.answer(before), Some(Ok(VolumeReply::Done)));
}

const OTHER: Member = Member { node: NodeId(101), incarnation: Incarnation(1) };

/// Somebody asks the holder to stand still.
pub(crate) fn ask_pause(world: &mut World, vdi: VdiId, token: u64) {
    let generation = world.state.vdi(vdi).unwrap().lock.unwrap().generation;
    world.order_now(OTHER, Command::AskPause { vdi, generation, token }).unwrap();
    world.publish();
}

pub(crate) fn is_paused(world: &World, vdi: VdiId) -> bool {
    world.state.vdi(vdi).unwrap().lock.unwrap().paused.is_some()
}
