use crate::cluster::{Cluster, n};
use sheep_state::{Command, EntryKind, Outcome, Role, Settings};
use sheep_types::NodeId;

fn desired(cluster: &Cluster) -> Option<Vec<u64>> {
    Some(cluster.state.desired_voters()?.iter().map(|node| node.0).collect())
}

fn adopt(cluster: &mut Cluster) {
    while let Some(voters) = cluster.state.desired_voters() {
        assert!(voters.is_sorted() && voters.len() % 2 == 1);
        let changed = voters.iter().filter(|node| !cluster.state.voters().contains(node)).count();
        assert!(changed <= 2);
        cluster.entry(EntryKind::Voters { voters });
    }
}

#[test]
fn one_stays_alone_until_three_can_vote() {
    let mut cluster = Cluster::empty();
    assert_eq!(desired(&cluster), None);
    cluster.join(1, Role::Storage, "");
    cluster.join(2, Role::Storage, "");
    cluster.join(100, Role::Gateway, "");
    assert_eq!(desired(&cluster), None);
    cluster.join(3, Role::Witness, "");
    assert_eq!(desired(&cluster), Some(vec![1, 2, 3]));
    adopt(&mut cluster);
    cluster.join(4, Role::Storage, "");
    assert_eq!(desired(&cluster), None, "four are no better than three");
}

#[test]
fn voters_spread_over_zones_up_to_the_setting() {
    let mut cluster = Cluster::empty();
    for node in 1..=30 {
        cluster.join(node, Role::Storage, if node <= 20 { "a" } else { ["b", "c"][node as usize % 2] });
    }
    adopt(&mut cluster);
    let zones: Vec<&str> =
        cluster.state.voters().iter().map(|node| cluster.state.node(*node).unwrap().zone.as_str()).collect();
    let count = |zone| zones.iter().filter(|z| **z == zone).count();
    assert_eq!((count("a"), count("b"), count("c")), (3, 3, 3));
    let seen = cluster.state.settings_at();
    let settings = Settings { max_voters: 5, ..Settings::default() };
    cluster.run(1, Command::ChangeSettings { settings, seen }).unwrap();
    adopt(&mut cluster);
    assert_eq!(cluster.state.voters().len(), 5);
    let seen = cluster.state.settings_at();
    let settings = Settings { automatic_voters: false, ..Settings::default() };
    cluster.run(1, Command::ChangeSettings { settings, seen }).unwrap();
    assert_eq!(desired(&cluster), None);
}

#[test]
fn down_is_never_replaced_out_and_removed_are_one_by_one() {
    let mut cluster = Cluster::with(12);
    adopt(&mut cluster);
    assert_eq!(cluster.state.voters().len(), 9);
    cluster.install_without(&[2, 3]);
    assert_eq!(desired(&cluster), None, "only down");
    for node in [2, 3] {
        let down_since = cluster.down_since(node).unwrap();
        let incarnation = cluster.member(node).incarnation;
        let out = Command::ProposeOut { node: n(node), incarnation, down_since, by_operator: false };
        assert_eq!(cluster.run(1, out), Ok(Outcome::Done));
    }
    assert_eq!(desired(&cluster), Some(vec![1, 3, 4, 5, 6, 7, 8, 9, 10]));
    cluster.run(1, Command::NodeRemove { node: n(4), force: true }).unwrap();
    adopt(&mut cluster);
    assert_eq!(cluster.state.voters(), [1, 5, 6, 7, 8, 9, 10, 11, 12].map(NodeId));
    // Nobody is left to replace it: of the eight that stay as many may fail as of seven.
    cluster.run(1, Command::NodeRemove { node: n(5), force: true }).unwrap();
    assert_eq!(desired(&cluster), Some(vec![1, 6, 7, 8, 9, 10, 11]));
    // Two gone out of nine.
    cluster.run(1, Command::NodeRemove { node: n(6), force: true }).unwrap();
    assert_eq!(desired(&cluster), Some(vec![1, 7, 8, 9, 10, 11, 12]));
    adopt(&mut cluster);
    // Out may come back: it keeps its vote if nobody can take it.
    cluster.install_without(&[2, 3, 4, 5, 6, 12]);
    let (incarnation, down_since) = (cluster.member(12).incarnation, cluster.down_since(12).unwrap());
    let out = Command::ProposeOut { node: n(12), incarnation, down_since, by_operator: true };
    cluster.run(1, out).unwrap();
    assert_eq!(desired(&cluster), None);
}

/// A drained node must not keep the others waiting for its vote.
#[test]
fn who_leaves_needs_nobody_to_take_its_vote() {
    let mut cluster = Cluster::with(5);
    adopt(&mut cluster);
    assert_eq!(cluster.state.voters().len(), 5);
    for (node, left) in [(2, &[1, 3, 4][..]), (3, &[1, 4, 5]), (4, &[1])] {
        cluster.run(1, Command::NodeLeaving { node: n(node), leaving: true }).unwrap();
        adopt(&mut cluster);
        assert_eq!(cluster.state.voters(), left.iter().copied().map(NodeId).collect::<Vec<_>>());
    }
    // Two nodes have one vote. That of the one that stays goes on alone.
    cluster.run(1, Command::NodeLeaving { node: n(1), leaving: true }).unwrap();
    adopt(&mut cluster);
    assert_eq!(cluster.state.voters(), [NodeId(5)]);
    // They are taken back.
    for node in 1..=4 {
        cluster.run(5, Command::NodeLeaving { node: n(node), leaving: false }).unwrap();
    }
    adopt(&mut cluster);
    assert_eq!(cluster.state.voters().len(), 5);
}
