//! Spread, movement and pinned vectors of the hash ring.

use proptest::prelude::*;
use sheep_placement::{Key, MAX_POINTS, PlacementMember, Ring, STANDARD_POINTS, moves};
use sheep_types::{NodeId, ObjectId, ObjectKind, Vid};
use std::collections::BTreeMap;

fn member(node: u64, zone: &str, weight: u32) -> PlacementMember {
    PlacementMember { node: NodeId(node), zone: zone.to_owned(), weight }
}

/// Node ids are random numbers in real clusters.
fn id(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn flat(nodes: u64) -> Vec<PlacementMember> {
    (0..nodes).map(|n| member(id(n), "", 100)).collect()
}

fn zoned(nodes: u64, zones: u64) -> Vec<PlacementMember> {
    (0..nodes).map(|n| member(id(n), &format!("z{}", n % zones), 100)).collect()
}

fn data(lineage: u32, index: u32) -> Key {
    Key { lineage: Vid(lineage), kind: ObjectKind::Data, index }
}

/// Copies per node for `objects` objects with three copies.
fn load(ring: &Ring, objects: u32) -> BTreeMap<NodeId, u32> {
    let mut load = BTreeMap::new();
    for index in 0..objects {
        for node in ring.list(data(index % 97, index)).take(3) {
            *load.entry(node).or_insert(0) += 1;
        }
    }
    load
}

/// (standard deviation, fullest node), relative to the mean.
fn spread(load: &BTreeMap<NodeId, u32>) -> (f64, f64) {
    let mean = f64::from(load.values().sum::<u32>()) / load.len() as f64;
    let square = load.values().map(|n| (f64::from(*n) / mean - 1.0).powi(2)).sum::<f64>();
    let worst = load.values().map(|n| f64::from(*n) / mean).fold(0.0, f64::max);
    ((square / load.len() as f64).sqrt(), worst)
}

#[test]
fn objects_spread_over_nodes() {
    for (nodes, zones) in [(4, 0), (10, 0), (30, 3), (100, 5), (1000, 10)] {
        let members = if zones == 0 { flat(nodes) } else { zoned(nodes, zones) };
        let ring = Ring::build(&members, 100);
        let load = load(&ring, 100_000);
        assert_eq!(load.len() as u64, nodes);
        let (deviation, worst) = spread(&load);
        println!(
            "{nodes} nodes, {zones} zones: standard deviation {deviation:.3}, fullest {worst:.3} of the mean"
        );
        assert!(deviation < 0.15 && worst < 1.5);
    }
}

#[test]
fn a_thousand_snapshots_of_one_disk_stay_together_and_clones_spread() {
    let ring = Ring::build(&flat(10), 100);
    // Snapshots keep the lineage: whatever the vid, the nodes are those of the key.
    let object = |vid| ObjectId::data(Vid(vid), 5);
    let sets: Vec<Vec<NodeId>> =
        (1..1000).map(|vid| ring.list(Key::of(Vid(1), object(vid)).unwrap()).take(3).collect()).collect();
    assert!(sets.windows(2).all(|pair| pair[0] == pair[1]));
    // Clones have lineages of their own.
    let mut load = BTreeMap::new();
    for lineage in 1..=1000 {
        for node in ring.set(Vid(lineage), ObjectKind::Data, 5, 3) {
            *load.entry(node).or_insert(0) += 1;
        }
    }
    let (deviation, worst) = spread(&load);
    println!("one object of 1000 clones on 10 nodes: standard deviation {deviation:.3}, fullest {worst:.3}");
    assert!(worst < 1.4);
}

#[test]
fn a_new_node_gets_its_share_and_nothing_else_moves() {
    let mut members = flat(10);
    let old = Ring::build(&members, 100);
    members.push(member(id(10), "", 100));
    let new = Ring::build(&members, 100);
    let (mut gained, objects) = (0, 20_000);
    for index in 0..objects {
        let change = moves(&old, 3, &new, 3, data(1, index));
        assert!(change.gain.iter().all(|node| *node == NodeId(id(10))), "only the new node fetches");
        assert_eq!(change.gain.len(), change.lose.len());
        gained += change.gain.len();
    }
    let share = gained as f64 / f64::from(3 * objects);
    println!("eleventh node: {share:.4} of all copies move, ideal {:.4}", 1.0 / 11.0);
    assert!((0.07..0.115).contains(&share));
}

#[test]
fn a_lost_zone_moves_only_its_own_copies() {
    let members = zoned(12, 4);
    let old = Ring::build(&members, 100);
    let rest: Vec<_> = members.iter().filter(|member| member.zone != "z2").cloned().collect();
    let new = Ring::build(&rest, 100);
    for index in 0..5_000 {
        let change = moves(&old, 3, &new, 3, data(1, index));
        assert!(change.lose.iter().all(|node| rest.iter().all(|member| member.node != *node)));
        assert_eq!(change.stay.len() + change.lose.len(), 3);
    }
}

#[test]
fn weights_give_shares() {
    let mut members = flat(10);
    members[0].weight = 300;
    let load = load(&Ring::build(&members, 100), 100_000);
    let mean =
        load.iter().filter(|(node, _)| **node != NodeId(id(0))).map(|(_, n)| f64::from(*n)).sum::<f64>()
            / 9.0;
    let ratio = f64::from(load[&NodeId(id(0))]) / mean;
    println!("a node of three times the weight gets {ratio:.2} times the copies");
    // Less than three: no object is on it twice.
    assert!((1.9..3.1).contains(&ratio));
    let heavy = Ring::build(&[member(1, "", u32::MAX), member(2, "", 1), member(3, "", 0)], 100);
    assert_eq!((heavy.len(), heavy.points()), (2, MAX_POINTS as usize + 1));
    assert_eq!(
        Ring::build(&flat(1), 0).points(),
        MAX_POINTS as usize,
        "a unit of zero is no division by zero"
    );
    assert_eq!(Ring::build(&flat(3), 100).points(), 3 * STANDARD_POINTS as usize);
}

#[test]
fn vectors_are_pinned() {
    // Another value here moves every object of every cluster: a new version of the placement.
    let hashes = [
        data(1, 0).hash(),
        Key { lineage: Vid(0x7fff_ffff), kind: ObjectKind::Map, index: 0x0fff_ffff }.hash(),
    ];
    let small: Vec<_> = (1..=6).map(|n| member(n, ["a", "b", "c"][n as usize % 3], 50 * n as u32)).collect();
    let ring = Ring::build(&small, 100);
    let sets: Vec<Vec<u64>> =
        (0..4).map(|index| ring.list(data(9, index)).map(|node| node.0).collect()).collect();
    assert_eq!(hashes, [3_547_760_990_396_968_576, 6_666_714_441_463_521_977]);
    assert_eq!(sets, [[3, 2, 4, 6, 1, 5], [5, 1, 6, 4, 3, 2], [4, 6, 5, 3, 1, 2], [1, 6, 5, 2, 4, 3]]);
}

#[test]
fn no_members_no_nodes() {
    let ring = Ring::build(&[], 100);
    assert!(ring.is_empty());
    assert_eq!(ring.set(Vid(1), ObjectKind::Data, 0, 3), []);
}

fn members() -> impl Strategy<Value = Vec<PlacementMember>> {
    let one = (1..40u64, prop::sample::select(vec!["", "a", "b", "c"]), 0..400u32);
    prop::collection::btree_map(1..40u64, one, 1..12).prop_map(|nodes| {
        nodes.into_iter().map(|(node, (_, zone, weight))| member(node, zone, weight)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn lists_are_complete_distinct_and_spread_zones_first(members in members(), index in 0..1000u32) {
        let ring = Ring::build(&members, 100);
        let list: Vec<NodeId> = ring.list(data(3, index)).collect();
        let mut nodes: Vec<NodeId> = members.iter().filter(|m| m.weight > 0).map(|m| m.node).collect();
        let zone = |node: NodeId| {
            let found = members.iter().find(|m| m.node == node).unwrap();
            if found.zone.is_empty() { format!("node {node}") } else { found.zone.clone() }
        };
        let mut first: Vec<String> = list.iter().take(ring.zones()).map(|node| zone(*node)).collect();
        first.sort_unstable();
        first.dedup();
        prop_assert_eq!(first.len(), ring.zones());
        for copies in 0..=nodes.len() + 1 {
            let set = ring.set(Vid(3), ObjectKind::Data, index, copies);
            prop_assert_eq!(&set[..], &list[..copies.min(list.len())]);
        }
        let mut sorted = list;
        sorted.sort_unstable();
        nodes.sort_unstable();
        prop_assert_eq!(sorted, nodes);
    }

    #[test]
    fn order_of_members_does_not_matter(members in members(), turn in 0..12usize) {
        let mut turned = members.clone();
        turned.rotate_left(turn % members.len());
        let (a, b) = (Ring::build(&members, 100), Ring::build(&turned, 100));
        for index in 0..50 {
            prop_assert!(a.list(data(1, index)).eq(b.list(data(1, index))));
        }
    }

    #[test]
    fn removing_a_node_keeps_the_order_of_the_others_within_a_zone_free_cluster(nodes in 2..12u64, gone in 0..12u64) {
        let members = flat(nodes);
        let gone = NodeId(id(gone % nodes));
        let rest: Vec<_> = members.iter().filter(|m| m.node != gone).cloned().collect();
        let (old, new) = (Ring::build(&members, 100), Ring::build(&rest, 100));
        for index in 0..50 {
            prop_assert!(old.list(data(1, index)).filter(|n| *n != gone).eq(new.list(data(1, index))));
        }
    }
}
