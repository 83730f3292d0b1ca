//! Sequences around snapshots, map objects and flattening that lose data where a rule is missing. Each says whether the
//! rule held.

use crate::fill::Clone;
use crate::serving::{read, write};
use crate::snapshots::{close, read_only, snapshot_op};
use crate::world::{BLOCK, OBJECT, World, ms};
use sheep_datapath::{GatewayConfig, VolumeOp, VolumeReply};
use sheep_state::{Command, Guard, Outcome, Settings, SnapshotItem};
use sheep_types::{Incarnation, Member, NodeId, VdiId};
use std::collections::BTreeMap;
use std::time::Duration;

const OTHER: Member = Member { node: NodeId(101), incarnation: Incarnation(1) };

/// A volume that is open at node 100 and was never written. Nothing is flushed by itself.
fn blank(config: &GatewayConfig) -> (World, VdiId, u64) {
    let settings = Settings { flush_interval_ms: 600_000, ..Settings::default() };
    let mut world = World::new(3, settings, 12);
    for node in [100, 101] {
        let me = Member { node: NodeId(node), incarnation: Incarnation(1) };
        world.start_gateway_with(me, config.clone());
    }
    let vdi = world.create(4 << 20);
    let handle = world.open(100, vdi);
    (world, vdi, handle)
}

/// A snapshot has what was answered before, although holder and replicas die with it.
pub(crate) fn a_snapshot_has_what_was_answered(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = blank(config);
    world.act(100, handle, write(OBJECT, BLOCK, 2)).unwrap();
    let io = world.submit(100, handle, snapshot_op("one"));
    world.run(Duration::from_secs(2));
    let Some(Ok(VolumeReply::Ordered(result))) = world.answer(io) else { return false };
    let Ok(Outcome::Snapshots(made)) = *result else { return false };
    world.kill_gateway(100);
    for node in 1..=3 {
        world.crash(node);
        world.start(node);
    }
    world.recover();
    let reader = read_only(&mut world, 101, made[0].vdi);
    let _ = vdi;
    read(&mut world, 101, reader, OBJECT, BLOCK as u32) == vec![2; BLOCK]
}

/// Who has paused goes on when the order says so: a snapshot of the group that comes later finds that, whatever was
/// written by then.
pub(crate) fn a_pause_ends_in_the_order(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = blank(config);
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    let generation = world.state.vdi(vdi).unwrap().lock.unwrap().generation;
    world.order_now(OTHER, Command::AskPause { vdi, generation, token: 5 }).unwrap();
    world.publish();
    world.run(ms(500));
    assert!(world.state.vdi(vdi).unwrap().lock.unwrap().paused.is_some());
    let waits = world.submit(100, handle, write(0, BLOCK, 2));
    world.run(Duration::from_secs(12));
    assert_eq!(world.answer(waits), Some(Ok(VolumeReply::Done)));
    let item = SnapshotItem {
        vdi,
        guard: Guard::Paused { generation, token: 5 },
        tag: "group".to_owned(),
        attributes: BTreeMap::new(),
        created_unix_ms: 1,
    };
    world.order_now(OTHER, Command::Snapshot { items: vec![item] }).is_err()
}

/// A new map object is ordered, and a flush answered, only when all members have it durably.
pub(crate) fn entries_wait_for_their_map_object(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = blank(config);
    let vid = world.vid(vdi);
    world.act(100, handle, write(0, BLOCK, 1)).unwrap();
    world.run(ms(100));
    world.deaf.insert((NodeId(3), "write"));
    let flush = world.submit(100, handle, VolumeOp::Flush);
    world.run(ms(500));
    world.answer(flush).is_none() && world.state.vid(vid).unwrap().maps.is_empty()
}

/// Whoever opens the volume next knows from the ordered table that there is a map object: it is neither overlooked nor
/// taken for lost.
pub(crate) fn the_next_holder_knows_the_map_objects(config: &GatewayConfig) -> bool {
    let (mut world, vdi, handle) = blank(config);
    world.act(100, handle, write(OBJECT, BLOCK, 3)).unwrap();
    world.act(100, handle, VolumeOp::Flush).unwrap();
    close(&mut world, 100, handle);
    let handle = world.open(101, vdi);
    read(&mut world, 101, handle, OBJECT, BLOCK as u32) == vec![3; BLOCK]
}

/// From the instant at which the order says that a clone is flat, nothing of its origin is needed: its objects may be
/// gone, and the next holder has nothing but the map.
pub(crate) fn what_is_flat_is_whole(config: &GatewayConfig) -> bool {
    let mut clone = Clone::new(3, config);
    let vdi = clone.vdi;
    clone.world.open(101, vdi);
    crate::fill::want(&mut clone.world, vdi, true);
    if !clone.run_until_flat() {
        return false;
    }
    clone.world.kill_gateway(101);
    let own = clone.world.vid(vdi);
    clone.drop_origin(&[own]);
    let handle = clone.world.open(100, vdi);
    clone.differs(100, handle).is_none()
}

#[test]
fn the_rules_hold() {
    let rules: [fn(&GatewayConfig) -> bool; 5] = [
        a_snapshot_has_what_was_answered,
        a_pause_ends_in_the_order,
        entries_wait_for_their_map_object,
        the_next_holder_knows_the_map_objects,
        what_is_flat_is_whole,
    ];
    for (number, rule) in rules.into_iter().enumerate() {
        assert!(rule(&GatewayConfig::default()), "rule {number}");
    }
}
