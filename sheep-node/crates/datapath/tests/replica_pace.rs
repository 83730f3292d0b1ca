//! How fast recovery moves: paused, capped, giving way; and that what a client waits for is never held back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use core::time::Duration;
use sheep_state::{Command, Settings};
use sheep_types::{Generation, NodeId, ObjectId};
use sheep_wire::{Message, Packet, Reply, Request};
use std::sync::atomic::{AtomicU32, Ordering};
use support::Net;
use support::volume::Held;

/// Bytes of an object here, all of whose blocks are filled.
const OBJECT: u64 = 16 * support::BLOCK as u64;
const OBJECTS: u32 = 64;

fn change(net: &mut Net, change: impl FnOnce(&mut Settings)) {
    let mut settings = net.log.state.settings().clone();
    change(&mut settings);
    let seen = net.log.state.settings_at();
    net.log.run(1, Command::ChangeSettings { settings, seen }).unwrap();
    net.distribute();
    net.run_for(Duration::from_millis(20));
}

/// Filled objects on three nodes, of which the third comes back with an empty disk.
fn emptied(changed: impl FnOnce(&mut Settings)) -> (Net, Held) {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::with_objects(&mut net, "a", u64::from(OBJECTS));
    for index in 0..OBJECTS {
        let create = held.write(index, None, true, 1);
        held.send(&mut net, &create, &[1, 2, 3]);
        let fill = held.fill(index, create.version, 0..16, u64::from(index) * 100);
        held.confirmed = held.sequence;
        held.send(&mut net, &fill, &[1, 2, 3]);
    }
    held.flush(&mut net, &[1, 2, 3]);
    change(&mut net, changed);
    net.crash(3, 0);
    net.install_without(&[3]);
    net.replace_disk(3);
    net.restart(3);
    (net, held)
}

fn fetched(net: &Net) -> u64 {
    net.replica(3).progress().bytes_ever
}

#[test]
fn a_pause_holds_back_all_but_what_clients_want() {
    let (mut net, held) = emptied(|settings| settings.recovery_paused = true);
    net.run_for(Duration::from_secs(3));
    assert_eq!(fetched(&net), 0);
    assert!(!net.replica(3).progress().complete);
    let birth = held.birth;
    for index in [17, 40] {
        let object = held.object(index);
        let read = Request::Read { object, birth, offset: 0, len: support::BLOCK as u32 };
        assert!(matches!(net.call(3, held.generation, read), Reply::Refused(_)), "it is not here yet");
    }
    net.run_for(Duration::from_secs(1));
    assert_eq!(fetched(&net), 2 * OBJECT);
    assert_eq!(held.tag(&mut net, 40, 3), Ok(4000));
    change(&mut net, |settings| settings.recovery_paused = false);
    net.settle();
    assert_eq!(fetched(&net), u64::from(OBJECTS) * OBJECT);
}

#[test]
fn the_settings_cap_what_is_moved() {
    let (mut net, _held) = emptied(|settings| settings.recovery_bytes_per_second = 1 << 20);
    net.run_for(Duration::from_secs(2));
    let moved = fetched(&net);
    assert!((1_900_000..2_600_000).contains(&moved), "{moved} bytes in two seconds");
    net.settle();
    assert_eq!(fetched(&net), u64::from(OBJECTS) * OBJECT);
}

#[test]
fn a_complaint_slows_source_and_receiver() {
    let (mut net, held) = emptied(|_| {});
    while fetched(&net) < 4 * OBJECT {
        net.step();
    }
    assert_eq!(net.replica(3).status().pace, None);
    for node in [1, 3] {
        net.ask(node, Generation(0), Request::GiveWay);
    }
    net.run_for(Duration::from_millis(5));
    assert!(net.replica(3).status().pace.is_some());
    let source = [1, 2].into_iter().filter(|node| net.replica(*node).status().pace.is_some()).count();
    assert!(source <= 1, "only who was asked gives way");
    net.settle();
    assert_eq!(fetched(&net), u64::from(OBJECTS) * OBJECT);
    assert_eq!(held.tag(&mut net, 63, 3), Ok(6300));
}

/// Bytes of the largest request for blocks.
static LARGEST: AtomicU32 = AtomicU32::new(0);

fn look(packet: &Packet) -> bool {
    if let Message::Request(Request::Blocks { ranges, .. }) = &packet.message {
        LARGEST.fetch_max(ranges.iter().map(|(_, len)| len).sum(), Ordering::Relaxed);
    }
    false
}

/// A client of a node, as far as that can tell.
fn read(net: &mut Net, held: &Held, node: u64) {
    read_object(net, held, node, held.object(0));
}

fn read_object(net: &mut Net, held: &Held, node: u64, object: ObjectId) {
    let read = Request::Read { object, birth: held.birth, offset: 0, len: support::BLOCK as u32 };
    net.ask(node, held.generation, read);
}

#[test]
fn pieces_are_small_where_clients_are_served() {
    for (clients, largest) in [(false, OBJECT as u32), (true, 16 << 10)] {
        let (mut net, held) = emptied(|_| {});
        LARGEST.store(0, Ordering::Relaxed);
        net.hold = Some(look);
        for _ in 0..5000 {
            if clients {
                read(&mut net, &held, 3);
            }
            net.run_for(Duration::from_millis(5));
            if fetched(&net) == u64::from(OBJECTS) * OBJECT {
                break;
            }
        }
        assert_eq!(fetched(&net), u64::from(OBJECTS) * OBJECT);
        assert_eq!(LARGEST.load(Ordering::Relaxed), largest, "clients: {clients}");
    }
}

#[test]
fn few_blocks_are_read_at_once_where_clients_are_served() {
    for (clients, urgent, map) in
        [(false, false, false), (true, false, false), (true, true, false), (false, false, true)]
    {
        let mut net = Net::new(1, 3, 0, 3, 1);
        let mut held = Held::with_objects(&mut net, "a", 1);
        let create = held.write(0, None, true, 1);
        held.send(&mut net, &create, &[1, 2, 3]);
        held.flush(&mut net, &[1, 2, 3]);
        let (object, birth, version) = (held.object(0), held.birth, create.version);
        let ranges = vec![(0, support::BLOCK as u32)];
        let blocks = || Request::Blocks { object, birth, version, ranges: ranges.clone(), urgent };
        // The writes are long ago, and something is being moved: it goes at any pace.
        net.run_for(Duration::from_secs(2));
        assert!(matches!(net.call(1, Generation(0), blocks()), Reply::Read(_)));
        if clients {
            read(&mut net, &held, 1);
            net.run_for(Duration::from_millis(5));
        }
        if map {
            // A sweep's, which is in no hurry.
            read_object(&mut net, &held, 1, ObjectId::map(object.vid(), 0));
            net.run_for(Duration::from_millis(5));
        }
        net.hold = Some(|packet| matches!(packet.message, Message::Request(Request::Blocks { .. })));
        let asked: Vec<u64> = (0..32).map(|_| net.ask(1, Generation(0), blocks())).collect();
        // All of them come at the same instant.
        let (now, packets) = (net.now, core::mem::take(&mut net.held));
        let shard = net.nodes.get_mut(&NodeId(1)).and_then(|node| node.shard.as_mut()).unwrap();
        packets.into_iter().for_each(|packet| shard.handle_packet(now, packet.header, packet.message));
        let most = net.replica(1).status().jobs;
        while !asked.iter().all(|number| net.replies.contains_key(number)) {
            net.step();
        }
        let expected = if clients && !urgent { 4 } else { 32 };
        assert_eq!(most, expected, "clients: {clients}, urgent: {urgent}");
        assert!(asked.iter().all(|number| matches!(net.replies[number].1, Reply::Read(_))));
    }
}
