//! How fast recovery moves: paused, capped, giving way; and that what a client waits for is never held back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use core::time::Duration;
use sheep_state::{Command, Settings};
use sheep_types::Generation;
use sheep_wire::{Reply, Request};
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
