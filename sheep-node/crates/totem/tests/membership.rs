//! Scripted scenarios of membership: one rule each.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use bytes::Bytes;
use sheep_totem::{Destination, Output, Ring, RingConfig, RingState};
use sheep_types::{ClusterId, Incarnation, Member, NodeId, Time};
use support::net::{CLUSTER, ms};
use support::{Net, Random};

#[test]
fn three_nodes_form_a_ring_and_order() {
    let mut net = Net::new(1, 3);
    net.settle(&[1, 2, 3], ms(3000));
    let id = net.together(&[1, 2, 3]).unwrap();
    for _ in 0..50 {
        (1..=3).for_each(|n| assert!(net.submit(n)));
        net.run(ms(1));
    }
    net.run(ms(500));
    for node in net.nodes.values() {
        assert_eq!(net.checker.count(node.me, id), 150, "{}", net.describe());
        assert_eq!(net.checker.safe_position(node.me, id), 150);
    }
    net.checker.check_self_delivery();
}

#[test]
fn a_dead_member_is_left_behind_in_bounded_time() {
    let mut net = Net::new(2, 4);
    net.settle(&[1, 2, 3, 4], ms(3000));
    net.crash(2);
    // Token loss, consensus, and the formation itself.
    let limit = net.config.token_loss + net.config.consensus + ms(300);
    net.settle(&[1, 3, 4], limit);
}

#[test]
fn a_member_that_leaves_in_order_is_not_waited_for() {
    for seed in 0..50 {
        let mut net = Net::new(seed, 4);
        net.settle(&[1, 2, 3, 4], ms(3000));
        net.run(ms(seed * 7));
        let n = seed % 4 + 1;
        net.depart(n);
        let rest: Vec<u64> = (1..=4).filter(|m| *m != n).collect();
        let limit = net.config.token_loss / 3;
        net.settle(&rest, limit);
        assert!(net.nodes.values().all(|node| node.ring.stats().token_losses == 0));
        // A new run comes back.
        net.start(n, CLUSTER);
        net.settle(&[1, 2, 3, 4], ms(10_000));
    }
}

#[test]
fn a_notice_of_departure_that_is_lost_costs_only_time() {
    let mut net = Net::new(2, 4);
    net.settle(&[1, 2, 3, 4], ms(3000));
    net.cut.extend([(2, 1), (2, 3), (2, 4)]);
    net.depart(2);
    let limit = net.config.token_loss + net.config.consensus + ms(300);
    net.settle(&[1, 3, 4], limit);
}

#[test]
fn an_old_notice_of_departure_is_ignored() {
    let mut net = Net::new(5, 3);
    net.settle(&[1, 2, 3], ms(3000));
    net.record = true;
    net.depart(2);
    let leaving = |packet: &&Bytes| packet.get(5) == Some(&7);
    let notice = net.recorded.iter().find(leaving).unwrap().clone();
    net.record = false;
    net.start(2, CLUSTER);
    net.settle(&[1, 2, 3], ms(10_000));
    let id = net.together(&[1, 2, 3]);
    for n in [1, 3] {
        let before = net.ring(n).stats().old_incarnation;
        net.with(n, |ring, now| ring.handle_packet(now, &notice));
        assert_eq!(net.ring(n).stats().old_incarnation, before + 1);
    }
    net.run(ms(5000));
    assert_eq!(net.together(&[1, 2, 3]), id, "{}", net.describe());
}

#[test]
fn who_has_departed_stays_away() {
    let mut net = Net::new(6, 2);
    net.settle(&[1, 2], ms(3000));
    net.with(2, |ring, now| ring.depart(now));
    net.with(2, |ring, now| ring.rejoin(now));
    assert_eq!(net.ring(2).state(), RingState::Left);
    net.settle(&[1], ms(1000));
}

#[test]
fn a_new_node_comes_into_a_primary_within_two_token_losses() {
    for seed in 0..20 {
        let mut net = Net::new(seed, 3);
        net.tells_primary = true;
        net.settle(&[1, 2, 3], ms(3000));
        net.run(ms(2000));
        assert!(net.ring(1).is_primary());
        net.start(4, CLUSTER);
        let limit = net.config.token_loss * 2;
        net.settle(&[1, 2, 3, 4], limit);
        // And the ring worked before and after, without losing a token.
        assert!(net.nodes.values().all(|node| node.ring.stats().token_losses == 0));
    }
}

#[test]
fn a_primary_is_not_disturbed_by_a_node_that_some_members_cannot_hear() {
    let mut net = Net::new(3, 3);
    net.tells_primary = true;
    net.settle(&[1, 2, 3], ms(3000));
    net.run(ms(100));
    let id = net.together(&[1, 2, 3]).unwrap();
    net.start(4, CLUSTER);
    net.cut_both(4, 2);
    net.run(ms(60_000));
    assert_eq!(net.together(&[1, 2, 3]), Some(id), "{}", net.describe());
    net.cut.clear();
    net.settle(&[1, 2, 3, 4], ms(20_000));
}

#[test]
fn a_one_way_link_does_not_disturb_a_primary() {
    for (from, to) in [(4, 1), (1, 4)] {
        let mut net = Net::new(4, 3);
        net.tells_primary = true;
        net.settle(&[1, 2, 3], ms(3000));
        net.run(ms(100));
        let id = net.together(&[1, 2, 3]).unwrap();
        net.start(4, CLUSTER);
        net.cut.insert((from, to));
        net.run(ms(60_000));
        assert_eq!(net.together(&[1, 2, 3]), Some(id), "{}", net.describe());
    }
}

#[test]
fn a_broken_link_leaves_a_majority_that_stays() {
    for primary in [false, true] {
        let mut net = Net::new(5, 3);
        net.tells_primary = primary;
        net.settle(&[1, 2, 3], ms(3000));
        net.cut_both(1, 2);
        net.settle(&[1, 3], ms(6000));
        let id = net.together(&[1, 3]).unwrap();
        net.run(ms(60_000));
        assert_eq!(net.together(&[1, 3]), Some(id), "flaps (primary {primary}):\n{}", net.describe());
        net.cut.clear();
        net.settle(&[1, 2, 3], ms(20_000));
    }
}

#[test]
fn one_way_links_converge_to_a_majority() {
    // 2 hears nobody; then nobody hears 2; then 1 does not hear 5.
    for cuts in [vec![(1, 2), (3, 2), (4, 2), (5, 2)], vec![(2, 1), (2, 3), (2, 4), (2, 5)], vec![(5, 1)]] {
        let mut net = Net::new(6, 5);
        net.tells_primary = true;
        net.settle(&[1, 2, 3, 4, 5], ms(3000));
        net.cut.extend(cuts.iter().copied());
        net.run(ms(8000));
        let most = net.ring(3).configuration().unwrap().clone();
        assert_eq!(most.members.len(), 4, "{cuts:?}\n{}", net.describe());
        net.run(ms(60_000));
        assert_eq!(net.nodes[&3].ring.configuration(), Some(&most), "flaps: {cuts:?}\n{}", net.describe());
    }
}

#[test]
fn any_broken_links_converge_and_stay() {
    for seed in 0..30 {
        let mut net = Net::new(seed, 5);
        net.tells_primary = seed % 2 == 0;
        net.settle(&[1, 2, 3, 4, 5], ms(3000));
        // Links of 4 and 5 break at random; 1, 2 and 3 always hear each other.
        let mut random = Random(seed);
        for a in 1..=5u64 {
            for b in 1..=5u64 {
                if (a > 3 || b > 3) && a != b && random.chance(40) {
                    net.cut.insert((a, b));
                }
            }
        }
        net.run(ms(30_000));
        let ids = |net: &Net| -> Vec<_> {
            net.nodes.values().map(|n| (n.ring.configuration().map(|c| c.id), n.ring.state())).collect()
        };
        let (before, largest) = (ids(&net), net.nodes.values().map(|n| n.ring.members().len()).max());
        assert!(largest >= Some(3), "seed {seed} {:?}\n{}", net.cut, net.describe());
        net.run(ms(30_000));
        assert_eq!(ids(&net), before, "seed {seed} flaps: {:?}\n{}", net.cut, net.describe());
    }
}

#[test]
fn the_number_is_durable_before_use_and_survives_restarts() {
    let mut net = Net::new(7, 3);
    net.settle(&[1, 2, 3], ms(3000));
    let before = net.together(&[1, 2, 3]).unwrap();
    // Only 3 lives on with a high number; the others restart. Numbers must not fall back.
    net.crash(1);
    net.crash(2);
    net.run(ms(10_000));
    let alone = net.ring(3).configuration().unwrap().id;
    assert!(alone.number > before.number);
    net.crash(3);
    [1, 2].iter().for_each(|n| net.start(*n, CLUSTER));
    net.settle(&[1, 2], ms(5000));
    assert!(net.together(&[1, 2]).unwrap().number > before.number);
    net.start(3, CLUSTER);
    net.settle(&[1, 2, 3], ms(10_000));
    assert!(net.together(&[1, 2, 3]).unwrap().number > alone.number);
}

#[test]
fn a_number_seen_in_the_log_counts() {
    let mut net = Net::new(8, 2);
    net.settle(&[1, 2], ms(3000));
    net.with(2, |ring, _| ring.observe_number(1000));
    net.start(3, CLUSTER);
    net.settle(&[1, 2, 3], ms(5000));
    assert!(net.together(&[1, 2, 3]).unwrap().number > 1000);
}

#[test]
fn nothing_is_used_while_the_disk_hangs_and_the_others_go_on() {
    let mut net = Net::empty(9);
    (1..=3).for_each(|n| net.start(n, CLUSTER));
    net.nodes.get_mut(&1).unwrap().disk_hangs = true;
    net.settle(&[2, 3], ms(6000));
    let id = net.together(&[2, 3]);
    net.run(ms(20_000));
    assert_eq!(net.ring(1).configuration(), None);
    assert_eq!(net.together(&[2, 3]), id);
    net.heal_disk(1);
    net.settle(&[1, 2, 3], ms(10_000));
}

#[test]
fn clusters_do_not_merge_and_say_so() {
    let mut net = Net::new(10, 2);
    [3, 4].iter().for_each(|n| net.start(*n, ClusterId(99)));
    net.run(ms(20_000));
    assert!(net.together(&[1, 2]).is_some() && net.together(&[3, 4]).is_some(), "{}", net.describe());
    assert!(net.nodes.values().all(|node| node.ring.stats().foreign_cluster > 0));
}

#[test]
fn a_node_without_a_cluster_may_join_one() {
    let mut net = Net::new(11, 2);
    net.settle(&[1, 2], ms(3000));
    net.start(3, ClusterId(0));
    net.settle(&[1, 2, 3], ms(5000));
    net.with(3, |ring, _| ring.set_cluster(CLUSTER));
    net.run(ms(5000));
    assert!(net.together(&[1, 2, 3]).is_some());

    let mut fresh = Net::empty(12);
    (1..=2).for_each(|n| fresh.start(n, ClusterId(0)));
    fresh.settle(&[1, 2], ms(3000));
}

#[test]
fn a_restarted_member_is_noticed_at_once() {
    let mut net = Net::new(13, 3);
    net.tells_primary = true;
    net.settle(&[1, 2, 3], ms(3000));
    net.run(ms(12_000));
    net.crash(2);
    net.start(2, CLUSTER);
    // Nobody waits for token loss, nor for the old run.
    let limit = net.config.token_loss;
    net.settle(&[1, 2, 3], limit);
    assert_eq!(net.ring(1).configuration().unwrap().members[1].incarnation, Incarnation(2));
}

#[test]
fn old_joins_and_old_incarnations_are_dropped() {
    let mut net = Net::new(14, 2);
    // What node 3 says in its first run is recorded and replayed later.
    let old = Member { node: NodeId(3), incarnation: Incarnation(1) };
    let mut ring = Ring::new(RingConfig::default(), old, CLUSTER, 0, 1, net.now).unwrap();
    let mut packets = Vec::new();
    while let Some(output) = ring.poll_output() {
        if let Output::Send { to: Destination::Everyone, packet } = output {
            packets.push(packet);
        }
    }
    net.settle(&[1, 2], ms(3000));
    for packet in &packets {
        net.with(1, |ring, now| ring.handle_packet(now, packet));
        net.with(1, |ring, now| ring.handle_packet(now, packet));
    }
    assert!(net.ring(1).stats().stale > 0, "a join counts once");
    net.start(3, CLUSTER);
    net.crash(3);
    net.start(3, CLUSTER);
    net.settle(&[1, 2, 3], ms(10_000));
    let id = net.together(&[1, 2, 3]);
    for packet in packets {
        net.with(1, |ring, now| ring.handle_packet(now, &packet));
    }
    net.run(ms(3000));
    assert!(net.ring(1).stats().old_incarnation > 0);
    assert_eq!(net.together(&[1, 2, 3]), id);
}

#[test]
fn an_excluded_member_stays_out_until_it_rejoins() {
    let mut net = Net::new(15, 3);
    net.tells_primary = true;
    net.settle(&[1, 2, 3], ms(3000));
    // The lowest id, so that no tie-break helps.
    [2, 3].iter().for_each(|n| net.with(*n, |ring, now| ring.exclude(now, NodeId(1))));
    net.settle(&[2, 3], ms(3000));
    let id = net.together(&[2, 3]);
    net.run(ms(60_000));
    assert!(net.ring(1).is_excluded() && !net.ring(2).is_excluded());
    assert_eq!(net.together(&[2, 3]), id, "{}", net.describe());
    net.with(1, |ring, now| ring.rejoin(now));
    net.settle(&[1, 2, 3], ms(20_000));
    assert!(!net.ring(1).is_excluded());
}

/// Who accused it has been away since, the others went on with it: it must hear of that nevertheless, or these
/// two would never again be in one ring.
#[test]
fn a_member_of_another_ring_learns_that_it_is_excluded() {
    let mut net = Net::new(18, 4);
    net.tells_primary = true;
    net.settle(&[1, 2, 3, 4], ms(3000));
    net.partition(&[&[1, 2, 3], &[4]]);
    net.with(1, |ring, now| ring.exclude(now, NodeId(4)));
    net.settle(&[1, 2, 3], ms(5000));
    net.with(1, |ring, now| ring.leave(now));
    net.cut.clear();
    net.settle(&[2, 3, 4], ms(20_000));
    assert!(!net.ring(4).is_excluded());
    net.with(1, |ring, now| ring.rejoin(now));
    net.run_until(ms(5000), |net| net.nodes[&4].ring.is_excluded()).expect("nobody told it");
    assert!(net.together(&[2, 3, 4]).is_some(), "its ring goes on: {}", net.describe());
    net.with(4, |ring, now| ring.rejoin(now));
    net.settle(&[1, 2, 3, 4], ms(20_000));
}

#[test]
fn who_leaves_is_silent_and_the_others_go_on() {
    let mut net = Net::new(16, 3);
    net.settle(&[1, 2, 3], ms(3000));
    net.with(3, |ring, now| ring.leave(now));
    let sent = net.nodes[&3].packets_sent;
    net.settle(&[1, 2], ms(3000));
    net.run(ms(10_000));
    assert_eq!((net.nodes[&3].packets_sent, net.ring(3).state()), (sent, RingState::Left));
    assert_eq!(net.ring(3).poll_timeout(), None);
    net.with(3, |ring, now| ring.rejoin(now));
    net.settle(&[1, 2, 3], ms(10_000));
}

#[test]
fn a_stopped_node_does_not_take_its_old_token_for_news() {
    let mut net = Net::new(17, 3);
    net.settle(&[1, 2, 3], ms(3000));
    net.nodes.get_mut(&3).unwrap().paused = true;
    net.settle_alive_without(3);
    let visits = net.ring(3).stats().visits;
    net.nodes.get_mut(&3).unwrap().paused = false;
    net.run(ms(60));
    assert_eq!(net.ring(3).stats().visits, visits, "took a token from its socket");
    net.settle(&[1, 2, 3], ms(10_000));
}

#[test]
fn a_ring_of_one_orders_at_once_and_sends_nothing_to_itself() {
    let mut net = Net::new(18, 1);
    net.settle(&[1], ms(1000));
    let id = net.together(&[1]).unwrap();
    let me = net.nodes[&1].me;
    (0..10).for_each(|_| assert!(net.submit(1)));
    assert_eq!((net.checker.count(me, id), net.checker.safe_position(me, id)), (10, 10));
    let before = net.checker.rotation(me, id);
    net.run(ms(1000));
    let rotations = net.checker.rotation(me, id) - before;
    assert!((9..=12).contains(&rotations), "{rotations} rotations a second");
}

#[test]
fn the_largest_ring_works_and_is_not_overfilled() {
    let mut net = Net::new(19, sheep_totem::MAX_MEMBERS as u64);
    net.tells_primary = true;
    let all: Vec<u64> = net.alive();
    net.settle(&all, ms(10_000));
    let id = net.together(&all);
    all.iter().for_each(|n| assert!(net.submit(*n)));
    [101, 102].iter().for_each(|n| net.start(*n, CLUSTER));
    net.run(ms(20_000));
    assert_eq!(net.together(&all), id, "{}", net.describe());
    assert!(net.together(&[101, 102]).is_some());
    net.checker.check_self_delivery();
}

#[test]
fn a_lighter_side_gives_way() {
    // Two voters against three nodes that never vote: link by link broken between them.
    let mut net = Net::new(20, 5);
    [3, 4, 5].iter().for_each(|n| net.ring(*n).set_weight(0));
    net.settle(&[1, 2, 3, 4, 5], ms(3000));
    [3, 4, 5].iter().for_each(|n| net.cut_both(1, *n));
    net.settle(&[1, 2], ms(8000));
    net.settle(&[3, 4, 5], ms(8000));
}

#[test]
fn a_ring_needs_a_node_id() {
    let me = Member { node: NodeId(0), incarnation: Incarnation(1) };
    assert!(Ring::new(RingConfig::default(), me, CLUSTER, 0, 0, Time::ZERO).is_err());
}
