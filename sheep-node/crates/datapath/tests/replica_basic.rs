//! Replicas under requests sent by hand: versions, fences, durability.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what happened, for people")]

mod support;

use core::time::Duration;
use sheep_datapath::Mutants;
use sheep_state::{Command, Guard};
use sheep_types::{Epoch, Generation};
use sheep_wire::{Refusal, Reply, Request};
use support::Net;
use support::volume::Held;

fn refused(refusal: Refusal) -> Reply {
    Reply::Refused(refusal)
}

#[test]
fn writes_are_read_back_on_all_members() {
    let mut net = Net::new(1, 3, 0, 3, 2);
    let mut held = Held::new(&mut net, "a");
    let write = held.write(0, None, true, 7);
    held.send(&mut net, &write, &[1, 2, 3]);
    let next = held.write(0, Some(write.version), false, 8);
    held.send(&mut net, &next, &[1, 2, 3]);
    for node in 1..=3 {
        assert_eq!(held.tag(&mut net, 0, node), Ok(8));
        assert!(net.replica(node).is_current(held.object(0)));
    }
}

#[test]
fn a_write_sent_again_is_done_already() {
    let mut net = Net::new(2, 1, 0, 1, 1);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 7);
    let second = held.write(0, Some(first.version), false, 8);
    held.send(&mut net, &first, &[1]);
    held.send(&mut net, &second, &[1]);
    held.send(&mut net, &first, &[1]);
    held.send(&mut net, &second, &[1]);
    assert_eq!(held.tag(&mut net, 0, 1), Ok(8));
}

#[test]
fn writes_that_overtake_each_other_wait_and_then_say_what_is_missing() {
    let mut net = Net::new(3, 1, 0, 1, 1);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    let second = held.write(0, Some(first.version), false, 2);
    let third = held.write(0, Some(second.version), false, 3);
    held.send(&mut net, &first, &[1]);
    let generation = held.generation;
    let late = net.ask(1, generation, Request::Write(third.clone()));
    net.run_for(Duration::from_millis(5));
    held.send(&mut net, &second, &[1]);
    assert_eq!(net.answer(late), Reply::Done);
    let fourth = held.write(0, Some(third.version), false, 4);
    let fifth = held.write(0, Some(fourth.version), false, 5);
    assert_eq!(net.call(1, generation, Request::Write(fifth)), Reply::Behind(Some(third.version)));
    assert_eq!(held.tag(&mut net, 0, 1), Ok(3));
}

#[test]
fn fences_refuse_what_is_over() {
    let mut net = Net::new(4, 3, 0, 2, 1);
    let mut held = Held::new(&mut net, "a");
    let set = net.set(held.object(0));
    let outsider = (1..=3).find(|node| !set.contains(node)).unwrap();
    let write = held.write(0, None, true, 7);
    let old = held.generation;
    let ask = |net: &mut Net, node, generation| net.call(node, generation, Request::Write(write.clone()));
    assert_eq!(ask(&mut net, outsider, old), refused(Refusal::NotMember));
    held.send(&mut net, &write, &set);
    held.lock(&mut net);
    net.run_for(Duration::from_millis(10));
    assert_eq!(ask(&mut net, set[0], old), refused(Refusal::StaleGeneration));
    let read = Request::Read { object: held.object(0), birth: held.birth, offset: 0, len: 4096 };
    assert_eq!(net.call(set[0], old, read.clone()), refused(Refusal::StaleGeneration));
    let number = net.ask_in(set[0], Epoch(1), held.generation, read.clone());
    let present = net.log.state.epoch();
    assert_eq!(net.answer(number), refused(Refusal::StaleEpoch(present)));
    assert_eq!(net.call(set[0], Generation(0), read), refused(Refusal::StaleGeneration));
}

#[test]
fn a_request_from_the_future_waits_for_the_view() {
    let mut net = Net::new(5, 1, 0, 1, 1);
    let mut held = Held::new(&mut net, "a");
    net.run_for(Duration::from_millis(10));
    net.manual = true;
    held.lock(&mut net);
    let write = held.write(0, None, true, 7);
    let number = net.ask(1, held.generation, Request::Write(write));
    net.run_for(Duration::from_millis(100));
    assert!(!net.replies.contains_key(&number));
    net.publish(1);
    assert_eq!(net.answer(number), Reply::Done);
}

#[test]
fn what_was_flushed_survives_the_loss_of_power() {
    for seed in 0..10 {
        let mut net = Net::new(seed, 3, 0, 3, 2);
        let mut held = Held::new(&mut net, "a");
        let first = held.write(0, None, true, 7);
        held.send(&mut net, &first, &[1, 2, 3]);
        held.flush(&mut net, &[1, 2, 3]);
        let second = held.write(0, Some(first.version), false, 8);
        held.send(&mut net, &second, &[1, 2, 3]);
        for node in 1..=3 {
            net.crash(node, seed + node);
        }
        net.install_without(&[1, 2, 3]);
        for node in 1..=3 {
            net.restart(node);
        }
        let tags: Vec<_> = (1..=3).map(|node| held.tag(&mut net, 0, node)).collect();
        assert!(tags[0] == Ok(7) || tags[0] == Ok(8), "{tags:?}");
        assert!(tags.iter().all(|tag| *tag == tags[0]), "{tags:?}");
        net.settle();
    }
}

#[test]
fn an_orphan_is_replaced_by_a_creation() {
    let mut net = Net::new(6, 2, 0, 2, 1);
    let mut held = Held::new(&mut net, "a");
    let orphan = held.write(0, None, true, 7);
    held.send(&mut net, &orphan, &[1]);
    held.lock(&mut net);
    let mut create = held.write(0, None, true, 9);
    create.offset = 4096;
    held.send(&mut net, &create, &[1, 2]);
    // Nothing of the orphan shows through.
    assert_eq!(held.tag(&mut net, 0, 1), Ok(0));
    assert_eq!(held.tag(&mut net, 0, 2), Ok(0));
}

#[test]
fn nonsense_is_refused_not_obeyed() {
    let mut net = Net::new(7, 1, 0, 1, 1);
    let mut held = Held::new(&mut net, "a");
    let good = held.write(0, None, true, 7);
    let generation = held.generation;
    let broken: [fn(&mut sheep_wire::WriteRequest); 4] = [
        |write| write.offset = 100,
        |write| write.offset = 64 << 10,
        |write| write.body = sheep_wire::Body::Zero { len: u32::MAX - 4095 },
        |write| write.version.sequence = 0,
    ];
    for breaks in broken {
        let mut bad = good.clone();
        breaks(&mut bad);
        assert_eq!(net.call(1, generation, Request::Write(bad)), refused(Refusal::Malformed));
    }
    // A bit that flipped on its way is nobody's fault: the write is wanted again.
    let mut bad = good.clone();
    if let sheep_wire::Body::Data { crcs, .. } = &mut bad.body {
        crcs[0] ^= 1;
    }
    assert_eq!(net.call(1, generation, Request::Write(bad)), refused(Refusal::Damaged));
    assert_eq!(net.replica(1).status().garbled, 1);
    held.send(&mut net, &good, &[1]);
}

/// A write that was on its way when its vid became a snapshot, and one that was on its way when that was deleted: whether
/// they are refused, by all members, and change nothing.
fn late_writes_change_nothing(mutants: Mutants) -> bool {
    let mut net = Net::with_mutants(4, 3, 0, 3, 2, mutants);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 7);
    held.send(&mut net, &first, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2, 3]);
    let (late, generation) = (held.write(0, Some(first.version), false, 8), held.generation);
    let old = held.clone();
    let vid = held.snapshot(&mut net, "s");
    let not_writable = refused(Refusal::NotWritable);
    let frozen = net.call(2, generation, Request::Write(late.clone())) == not_writable;
    let unchanged = (1..=3).all(|node| old.tag(&mut net, 0, node) == Ok(7));
    let snapshot = net.log.state.vdi_of(vid).expect("alive").id;
    net.log.run(support::HAND, Command::DeleteVdi { vdi: snapshot, guard: Guard::ClosedClean }).unwrap();
    net.distribute();
    net.run_for(Duration::from_millis(20));
    frozen && unchanged && net.call(1, generation, Request::Write(late)) == not_writable
}

#[test]
fn what_is_frozen_takes_no_late_writes() {
    assert!(late_writes_change_nothing(Mutants::default()));
}

#[cfg(feature = "mutants")]
#[test]
fn writes_to_what_is_frozen_show() {
    assert!(!late_writes_change_nothing(Mutants::only(sheep_datapath::Mutant::WritesFrozen)));
}
