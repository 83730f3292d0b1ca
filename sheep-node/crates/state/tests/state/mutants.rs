//! Each broken variant is noticed by what these tests look at.

use crate::cluster::{Cluster, n};
use crate::traces;
use sheep_state::{AccessMode, Command, EntryKind, Guard, Mutant, Outcome};
use sheep_types::{CommandSeq, Incarnation, Member};

fn broken_cluster(mutant: Mutant) -> Cluster {
    let mut cluster = Cluster::with(3);
    cluster.state.set_mutant(Some(mutant));
    cluster
}

#[test]
fn restart_without_epoch() {
    let mut cluster = broken_cluster(Mutant::RestartWithoutEpoch);
    let before = (cluster.state.epoch(), cluster.state.members().clone());
    cluster.incarnations.insert(n(2), 1);
    cluster.restart(2);
    assert_eq!(cluster.state.epoch(), before.0);
    assert_ne!(*cluster.state.members(), before.1);
    let again = sheep_state::ClusterState::decode_snapshot(&cluster.state.encode_snapshot()).unwrap();
    assert_eq!(again.members(), cluster.state.members());
}

#[test]
fn duplicate_filter_any_later() {
    let mut cluster = broken_cluster(Mutant::DuplicateFilterAnyLater);
    let origin = Member { node: n(1), incarnation: Incarnation(1) };
    let entry = |seq, name| EntryKind::Command {
        origin,
        seq: CommandSeq(seq),
        command: Command::CreateVdi(crate::cluster::create(name)),
    };
    assert!(cluster.entry(entry(9, "later")).answer.is_some());
    assert!(cluster.entry(entry(2, "lost")).answer.is_none());
}

#[test]
fn shared_generation() {
    let mut cluster = broken_cluster(Mutant::SharedGeneration);
    let (vdi, _) = cluster.vdi("disk");
    let mut attach = |node| {
        let attach = Command::Attach { vdi, node: n(node), mode: AccessMode::Write, share: true };
        match cluster.run(1, attach) {
            Ok(Outcome::Attached { attachment }) => Some(attachment),
            other => panic!("{other:?}"),
        }
    };
    let (source, target) = (attach(100), attach(101));
    let lock = |attachment, take_from| Command::Lock { vdi, attachment, mode: AccessMode::Write, take_from };
    cluster.run(100, lock(source, None)).unwrap();
    let first = cluster.generation(vdi);
    cluster.run(101, lock(target, first)).unwrap();
    assert_eq!(cluster.generation(vdi), first);
}

#[test]
fn vid_reuse() {
    let mut cluster = broken_cluster(Mutant::VidReuse);
    let (vdi, vid) = cluster.vdi("old");
    cluster.run(1, Command::DeleteVdi { vdi, guard: Guard::ClosedClean }).unwrap();
    assert_eq!(cluster.vdi("new").1, vid);
}

#[test]
fn lock_ignores_attachment() {
    let mut cluster = broken_cluster(Mutant::LockIgnoresAttachment);
    let (vdi, _) = cluster.vdi("disk");
    cluster.run(1, Command::Attach { vdi, node: n(100), mode: AccessMode::Write, share: false }).unwrap();
    let lock = Command::Lock { vdi, attachment: None, mode: AccessMode::Write, take_from: None };
    assert!(cluster.run(101, lock).is_ok());
}

#[test]
fn flattening_does_not_yield() {
    let mut cluster = broken_cluster(Mutant::FlatteningDoesNotYield);
    assert!(!crate::deletion::who_flattens_hears_of_others(&mut cluster));
}

#[test]
fn traces_of_the_tree() {
    let broken: [(Mutant, fn(&mut Cluster) -> bool); 8] = [
        (Mutant::SnapshotUnguarded, traces::a_snapshot_of_a_dead_holder_does_nothing),
        (Mutant::SnapshotUnsettled, traces::what_is_not_settled_is_not_frozen),
        (Mutant::GroupUnpaused, traces::a_group_that_was_called_off_is_not_taken),
        (Mutant::SweptOfOldState, traces::a_sweep_is_of_one_state),
        (Mutant::VidReuse, traces::what_a_node_brings_back_is_nobodys),
        (Mutant::DeletedVidForgotten, traces::objects_of_a_dead_vid_belong_to_it),
        (Mutant::UnbornIsGone, traces::what_is_not_born_yet_is_not_judged),
        (Mutant::PlacesByVid, traces::a_lineage_has_one_place),
    ];
    for (mutant, holds) in broken {
        assert!(!holds(&mut broken_cluster(mutant)), "{mutant:?} is not noticed");
    }
}
