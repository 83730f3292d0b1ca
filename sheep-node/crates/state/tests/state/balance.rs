//! Nodes that are nearly full.

use crate::cluster::{Cluster, n};
use sheep_state::{Command, Settings};

const TIB: u64 = 1 << 40;

/// Four nodes that have recovered, this full in percent; two copies.
fn cluster(fullness: [u64; 4]) -> Cluster {
    let mut cluster = Cluster::with(4);
    let settings = Settings { copies: 2, min_copies: 1, ..Settings::default() };
    cluster.run(1, Command::ChangeSettings { settings, seen: cluster.state.settings_at() }).unwrap();
    for (node, percent) in (1..).zip(fullness) {
        cluster.run(node, Command::Usage { capacity: TIB, used: TIB / 100 * percent }).unwrap();
        let epoch = cluster.state.epoch();
        cluster.run(node, Command::Recovered { epoch }).unwrap();
    }
    cluster
}

#[test]
fn the_fullest_node_gives_objects_away_when_others_have_room() {
    let mut full = cluster([90, 60, 88, 50]);
    // 100 * 75 / 89: whole percents are counted.
    let (node, weight) = full.state.overfull_node().unwrap();
    assert_eq!(node, n(1));
    assert!((83..=85).contains(&weight), "{weight}");
    let epoch = full.state.epoch();
    full.run(2, Command::SetWeight { node, weight: Some(weight) }).unwrap();
    assert!(full.state.epoch() > epoch, "objects move");
    assert_eq!(full.state.overfull_node(), None, "what the nodes say means little while they do");
}

#[test]
fn nobody_gives_anything_away_in_vain() {
    assert_eq!(cluster([80, 60, 60, 60]).state.overfull_node(), None, "not so full");
    assert_eq!(cluster([90, 89, 80, 80]).state.overfull_node(), None, "the others have no room");
    let mut all = cluster([95, 10, 10, 10]);
    let settings = Settings { copies: 4, ..all.state.settings().clone() };
    all.run(1, Command::ChangeSettings { settings, seen: all.state.settings_at() }).unwrap();
    assert_eq!(all.state.overfull_node(), None, "every node holds everything");
    let mut least = cluster([95, 10, 10, 10]);
    least.run(1, Command::SetWeight { node: n(1), weight: Some(1) }).unwrap();
    let epoch = least.state.epoch();
    for node in 1..=4 {
        least.run(node, Command::Recovered { epoch }).unwrap();
    }
    assert_eq!(least.state.overfull_node(), None, "it cannot give more away");
}
