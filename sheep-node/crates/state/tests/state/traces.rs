//! Sequences of commands that would lose data, or freeze the wrong data, where a rule of the tree is missing. Each says
//! whether the rule held; [`mutants`](crate::mutants) leaves the rules out.

use crate::cluster::{Cluster, item};
use sheep_state::{Command, Guard, SnapshotMade, SweptVid};
use sheep_types::{Birth, VdiId, Vid};

fn is_taken(cluster: &mut Cluster, node: u64, vdi: VdiId, guard: Guard) -> bool {
    cluster.run(node, Command::Snapshot { items: vec![item(vdi, guard, "late")] }).is_ok()
}

/// A volume with three snapshots.
fn chain(cluster: &mut Cluster) -> (VdiId, [SnapshotMade; 3]) {
    let (vdi, _) = cluster.vdi("disk");
    (vdi, ["a", "b", "c"].map(|tag| cluster.snapshot(vdi, tag)))
}

/// A holder orders a snapshot, and dies; somebody else has the volume when the command gets into the order.
pub(crate) fn a_snapshot_of_a_dead_holder_does_nothing(cluster: &mut Cluster) -> bool {
    let (vdi, vid) = cluster.vdi("disk");
    let first = cluster.open(vdi);
    cluster.run(1, Command::Revoke { vdi, generation: first }).unwrap();
    let second = cluster.open(vdi);
    cluster.run(100, Command::MarkSettled { vdi, generation: second }).unwrap();
    !is_taken(cluster, 100, vdi, Guard::Held(first)) && cluster.state.writable(vid)
}

/// Copies of a volume whose holder went without a word may differ: they are settled before anything freezes them.
pub(crate) fn what_is_not_settled_is_not_frozen(cluster: &mut Cluster) -> bool {
    let (vdi, _) = cluster.vdi("disk");
    let generation = cluster.open(vdi);
    cluster.run(1, Command::Revoke { vdi, generation }).unwrap();
    !is_taken(cluster, 1, vdi, Guard::ClosedClean)
}

/// A member of a group goes on, having called its pause off, and then comes the snapshot of all.
pub(crate) fn a_group_that_was_called_off_is_not_taken(cluster: &mut Cluster) -> bool {
    let (vdi, _) = cluster.vdi("disk");
    let generation = cluster.open(vdi);
    let token = 7;
    cluster.run(1, Command::AskPause { vdi, generation, token }).unwrap();
    cluster.run(100, Command::Pause { vdi, generation, token }).unwrap();
    cluster.run(100, Command::Resume { vdi, generation, token }).unwrap();
    !is_taken(cluster, 1, vdi, Guard::Paused { generation, token })
}

/// A sweep looks at a dead vid; before it says so one of those that it asked dies, and another one is in its place.
pub(crate) fn a_sweep_is_of_one_state(cluster: &mut Cluster) -> bool {
    let (_, [_, b, c]) = chain(cluster);
    cluster.delete(b.vdi);
    let seen = cluster.state.applied();
    cluster.delete(c.vdi);
    let swept = SweptVid { vid: b.vid, empty: true };
    cluster.run(1, Command::Swept { vids: vec![swept], seen }).unwrap();
    let due = cluster.state.sweeps_due().iter().any(|(vid, _)| *vid == b.vid);
    due && cluster.state.is_dead(b.vid)
}

/// A volume is deleted while a node with objects of it is away; then there is a new one.
pub(crate) fn what_a_node_brings_back_is_nobodys(cluster: &mut Cluster) -> bool {
    let (vdi, vid) = cluster.vdi("old");
    let birth = cluster.state.vid(vid).unwrap().birth;
    cluster.delete(vdi);
    let (_, next) = cluster.vdi("new");
    next != vid && cluster.state.is_gone(vid, birth)
}

/// A snapshot is deleted of which another one, and the volume, still have objects; then a node restarts and looks which
/// of its objects belong to nothing.
pub(crate) fn objects_of_a_dead_vid_belong_to_it(cluster: &mut Cluster) -> bool {
    let (_, [_, b, _]) = chain(cluster);
    let birth = cluster.state.vid(b.vid).unwrap().birth;
    cluster.delete(b.vdi);
    !cluster.state.is_gone(b.vid, birth)
}

/// A node starts that has applied less than it had when its objects were made.
pub(crate) fn what_is_not_born_yet_is_not_judged(cluster: &mut Cluster) -> bool {
    cluster.vdi("disk");
    let later = Birth(cluster.state.applied().0 + 3);
    !cluster.state.is_gone(Vid(2), later)
}

/// Objects of a volume and of its snapshots are in one place, with one number of copies; those of a clone in another.
pub(crate) fn a_lineage_has_one_place(cluster: &mut Cluster) -> bool {
    let (vdi, first) = cluster.vdi("disk");
    let [a, b] = ["a", "b"].map(|tag| cluster.snapshot(vdi, tag));
    let (_, clone) = cluster.clone_of(a.vdi, "clone");
    cluster.run(1, Command::SetCopies { vdi, copies: 2, min_copies: 1 }).unwrap();
    let state = &cluster.state;
    let copies = |vid| state.copies_in(vid, state.members());
    let together = [a.vid, a.working, b.working].into_iter().all(|vid| state.place_of(vid) == Some(first));
    together
        && [a.vid, b.vid, b.working].map(copies) == [2; 3]
        && (state.place_of(clone), copies(clone)) == (Some(clone), 3)
}

#[test]
fn the_rules_hold() {
    let rules: [fn(&mut Cluster) -> bool; 8] = [
        a_snapshot_of_a_dead_holder_does_nothing,
        what_is_not_settled_is_not_frozen,
        a_group_that_was_called_off_is_not_taken,
        a_sweep_is_of_one_state,
        what_a_node_brings_back_is_nobodys,
        objects_of_a_dead_vid_belong_to_it,
        what_is_not_born_yet_is_not_judged,
        a_lineage_has_one_place,
    ];
    for (number, holds) in rules.into_iter().enumerate() {
        assert!(holds(&mut Cluster::with(3)), "rule {number}");
    }
}
