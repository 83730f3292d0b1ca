//! Scripted scenarios of the token: idling, notes, flow control, limits.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use bytes::Bytes;
use sheep_totem::{MAX_PAYLOAD, Note, SubmitError};
use sheep_types::LogIndex;
use support::Net;
use support::net::ms;

fn note(index: u64) -> Note {
    let mut note = Note::default();
    note.durable.index = LogIndex(index);
    note
}

#[test]
fn an_idle_ring_rotates_as_slowly_as_it_may() {
    let mut net = Net::new(1, 3);
    net.settle(&[1, 2, 3], ms(3000));
    let (id, me) = (net.together(&[1, 2, 3]).unwrap(), net.nodes[&2].me);
    net.run(ms(2000));
    let before = net.checker.rotation(me, id);
    let sent: u64 = net.nodes.values().map(|n| n.packets_sent).sum();
    net.run(ms(10_000));
    let rotations = net.checker.rotation(me, id) - before;
    assert!((80..=101).contains(&rotations), "{rotations} rotations in 10 s");
    let sent = net.nodes.values().map(|n| n.packets_sent).sum::<u64>() - sent;
    assert!(sent <= rotations * 3 + 60, "{sent} packets: tokens and a few probes only");
    assert!(net.nodes.values().all(|n| n.ring.stats().token_retransmits == 0));
}

#[test]
fn a_member_with_work_does_not_wait_for_the_hold() {
    for n in 1..=3 {
        let mut net = Net::new(2, 3);
        net.settle(&[1, 2, 3], ms(3000));
        let id = net.together(&[1, 2, 3]).unwrap();
        net.run(ms(3013));
        for round in 1..20 {
            assert!(net.submit(n));
            // Wanted, token round to the member, message: some hops of at most 0.4 ms.
            net.run(ms(5));
            for node in net.nodes.values() {
                assert_eq!(net.checker.count(node.me, id), round, "node {n} waited");
            }
            net.run(ms(1300) + std::time::Duration::from_micros(777 * round as u64));
        }
    }
}

#[test]
fn changed_notes_travel_at_once_and_unchanged_ones_do_not() {
    let mut net = Net::new(3, 3);
    net.settle(&[1, 2, 3], ms(3000));
    let (id, me) = (net.together(&[1, 2, 3]).unwrap(), net.nodes[&1].me);
    net.run(ms(3000));
    net.with(3, |ring, _| ring.set_note(note(5)));
    let before = net.checker.rotation(me, id);
    net.run(ms(10));
    let after = net.checker.rotation(me, id);
    assert!((2..=5).contains(&(after - before)), "{} rotations", after - before);
    assert_eq!(net.checker.note(me, net.nodes[&3].me), note(5).durable);
    net.run(ms(1000));
    let before = net.checker.rotation(me, id);
    for _ in 0..100 {
        net.with(3, |ring, _| ring.set_note(note(5)));
        net.run(ms(10));
    }
    assert!(net.checker.rotation(me, id) - before <= 11);
}

#[test]
fn a_ring_of_one_reports_a_changed_note_soon() {
    let mut net = Net::new(4, 1);
    net.settle(&[1], ms(1000));
    net.run(ms(1000));
    net.with(1, |ring, _| ring.set_note(note(9)));
    net.run(ms(1));
    let me = net.nodes[&1].me;
    assert_eq!(net.checker.note(me, me), note(9).durable);
}

#[test]
fn full_queues_and_large_payloads_are_refused() {
    let mut net = Net::empty(5);
    net.config.queue_limit = 10;
    net.start(1, support::net::CLUSTER);
    (0..10).for_each(|_| assert!(net.submit(1)));
    let now = net.now;
    assert_eq!(net.ring(1).submit(now, Bytes::from_static(b"x")), Err(SubmitError::QueueFull));
    let large = Bytes::from(vec![0; MAX_PAYLOAD + 1]);
    assert_eq!(net.ring(1).submit(now, large), Err(SubmitError::TooLarge(MAX_PAYLOAD + 1)));
    // What was queued before there was a ring is ordered in the first one.
    net.settle(&[1], ms(1000));
    net.run(ms(200));
    net.checker.check_self_delivery();
}

#[test]
fn small_messages_are_packed_and_large_ones_fit() {
    let mut net = Net::new(6, 2);
    net.settle(&[1, 2], ms(3000));
    net.run(ms(1000));
    // With the token away, so that all wait for one visit.
    let sent = net.ring(2).stats().messages_sent;
    (0..500).for_each(|_| assert!(net.submit(2)));
    net.run(ms(500));
    assert!(net.ring(2).stats().messages_sent - sent < 10);
    let delivered = net.ring(1).stats().delivered;
    let now = net.now;
    net.with(1, |ring, _| ring.submit(now, Bytes::from(vec![7; MAX_PAYLOAD])).unwrap());
    net.run(ms(500));
    assert_eq!(net.ring(2).stats().delivered, delivered + 1);
}

#[test]
fn loss_is_repaired_and_the_window_holds() {
    let mut net = Net::empty(7);
    net.config.window_size = 16;
    net.config.max_messages_per_visit = 8;
    net.config.accelerated_window = 4;
    net.config.max_datagram = 8704;
    (1..=4).for_each(|n| net.start(n, support::net::CLUSTER));
    net.settle(&[1, 2, 3, 4], ms(3000));
    let id = net.together(&[1, 2, 3, 4]).unwrap();
    net.loss = 5;
    net.duplicates = 10;
    net.delay = (50, 2000);
    let payload = Bytes::from(vec![1; 5000]);
    for i in 0..200u64 {
        for n in 1..=4 {
            let mut payload = payload.to_vec();
            payload[..8].copy_from_slice(&(i * 4 + n).to_le_bytes());
            net.with(n, |ring, now| ring.submit(now, Bytes::from(payload)).unwrap());
        }
        net.run(ms(2));
    }
    net.run(ms(20_000));
    net.loss = 0;
    net.run(ms(2000));
    assert_eq!(
        net.together(&[1, 2, 3, 4]),
        Some(id),
        "loss of 5% must not break a ring:\n{}",
        net.describe()
    );
    for node in net.nodes.values() {
        assert_eq!(net.checker.count(node.me, id), 800);
        assert_eq!(net.checker.safe_position(node.me, id), 800);
        assert!(node.ring.stats().retransmits > 0);
    }
}

#[test]
fn a_member_that_does_not_receive_messages_is_failed() {
    let mut net = Net::empty(8);
    net.drop_multicasts_to = Some(3);
    (1..=3).for_each(|n| net.start(n, support::net::CLUSTER));
    net.settle(&[1, 2, 3], ms(3000));
    assert!(net.submit(1));
    net.run(ms(6000));
    assert!(net.together(&[1, 2]).is_some(), "{}", net.describe());
    assert!(net.ring(1).stats().failed_to_receive + net.ring(2).stats().failed_to_receive > 0);
}
