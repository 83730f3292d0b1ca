//! Rules of sweeps, each a sequence of events that loses or leaves behind something where the rule is missing. They fail
//! by panicking.

use super::{GATEWAY, OBJECTS, Tree, only};
use core::time::Duration;
use sheep_datapath::{GatewayOutput, Mutants, VolumeOp, VolumeReply};
use sheep_state::{Command, Guard};
use sheep_types::{ObjectId, VdiId, Vid};
use std::collections::BTreeSet;

pub(crate) fn what_only_a_deleted_snapshot_had_goes(mutants: Mutants) {
    let mut tree = Tree::without(1, mutants);
    let volume = only(&tree);
    (0..4).for_each(|index| tree.write(volume, index));
    let a = tree.snapshot(volume);
    tree.write(volume, 0);
    let b = tree.snapshot(volume);
    tree.write(volume, 1);
    let (of_a, of_b) = (tree.alive[&a].vid, tree.alive[&b].vid);
    tree.delete(a);
    tree.settle();
    assert!(!tree.stored().contains(&ObjectId::data(of_a, 0)), "b has its own");
    assert!(tree.stored().contains(&ObjectId::data(of_a, 1)), "b names it");
    tree.check();
    tree.delete(b);
    tree.settle();
    tree.check();
    assert!(tree.net.log.state.is_dead(of_a) && tree.net.log.state.is_dead(of_b));
    // What is replaced later goes later, and with the last of it the vids.
    (0..4).for_each(|index| tree.write(volume, index));
    tree.settle();
    tree.check();
    assert_eq!(tree.net.log.state.vids().len(), 1);
}

pub(crate) fn clones_keep_what_they_read_through(mutants: Mutants) {
    let mut tree = Tree::without(2, mutants);
    let volume = only(&tree);
    (0..4).for_each(|index| tree.write(volume, index));
    let a = tree.snapshot(volume);
    let origin = tree.alive[&a].vid;
    let clone = tree.clone_of(a);
    tree.write(clone, 0);
    tree.delete(a);
    tree.delete(volume);
    tree.settle();
    tree.check();
    assert!(tree.stored().contains(&ObjectId::data(origin, 0)), "the object of the clone is partial");
    tree.delete(clone);
    tree.settle();
    assert_eq!(tree.stored(), BTreeSet::new());
    assert!(tree.net.log.state.vids().is_empty());
}

pub(crate) fn nothing_goes_while_a_node_that_may_have_it_is_away(mutants: Mutants) {
    let mut tree = Tree::without(3, mutants);
    let volume = only(&tree);
    (0..OBJECTS).for_each(|index| tree.write(volume, index));
    let a = tree.snapshot(volume);
    let of_a = tree.alive[&a].vid;
    (0..OBJECTS - 1).for_each(|index| tree.write(volume, index));
    tree.close(volume);
    let away = tree.net.set(ObjectId::data(of_a, 0))[1];
    tree.net.crash(away, 1);
    tree.net.install_without(&[away]);
    tree.delete(a);
    tree.net.run_for(Duration::from_secs(20));
    assert!(tree.stored().contains(&ObjectId::data(of_a, 0)));
    assert!(!tree.net.log.state.sweeps_due().is_empty());
    tree.net.restart(away);
    tree.settle();
    tree.check();
    assert!(!tree.stored().contains(&ObjectId::data(of_a, 0)));
}

pub(crate) fn what_a_node_brings_back_that_was_cut_off_during_a_round_goes_too(mutants: Mutants) {
    let mut tree = Tree::without(5, mutants);
    let volume = only(&tree);
    (0..OBJECTS).for_each(|index| tree.write(volume, index));
    let a = tree.snapshot(volume);
    let of_a = tree.alive[&a].vid;
    (0..OBJECTS - 1).for_each(|index| tree.write(volume, index));
    tree.close(volume);
    // Neither the one that sweeps nor one without a copy.
    let cut_off = *tree.net.set(ObjectId::data(of_a, 0)).iter().find(|node| **node > 1).unwrap();
    tree.order(Command::DeleteVdi { vdi: a, guard: Guard::ClosedClean });
    tree.alive.remove(&a);
    tree.snapshots.remove(&a);
    tree.net.isolate(cut_off);
    tree.net.run_for(Duration::from_secs(4));
    tree.net.install_without(&[cut_off]);
    tree.net.run_for(Duration::from_secs(40));
    tree.net.rejoin(cut_off);
    tree.net.come_back(cut_off);
    tree.settle();
    tree.check();
}

pub(crate) fn a_node_that_was_away_drops_what_is_forgotten(mutants: Mutants) {
    let mut tree = Tree::without(4, mutants);
    let volume = only(&tree);
    (0..OBJECTS).for_each(|index| tree.write(volume, index));
    tree.close(volume);
    tree.net.crash(1, 1);
    tree.net.install_without(&[1]);
    tree.delete(volume);
    tree.net.run_for(Duration::from_secs(5));
    assert_eq!(tree.stored(), BTreeSet::new());
    tree.net.restart(1);
    tree.net.settle();
    tree.net.run_for(Duration::from_secs(5));
    assert_eq!(tree.stored(), BTreeSet::new());
}

/// A discard of an object that only a dead snapshot has is under way, and has reached one of the two members of the map
/// object; the other one may be the one that decides when the holder is gone.
pub(crate) fn what_any_copy_of_a_map_names_stays(mutants: Mutants) {
    let (mut tree, volume, of_a) = replaced_one(mutants);
    let (asked, other) = map_members(&tree);
    tree.net.cut.insert((GATEWAY.0, other));
    begin_discard(&mut tree, volume, 0);
    let a = *tree.snapshots.keys().next().unwrap();
    tree.order(Command::DeleteVdi { vdi: a, guard: Guard::ClosedClean });
    tree.net.run_for(Duration::from_secs(10));
    assert!(!tree.stored().contains(&ObjectId::data(of_a, OBJECTS - 1)), "there was no round");
    tree.net.crash(asked, 0);
    tree.net.cut.clear();
    next_holder(&mut tree, &[asked]);
    assert!(is_readable(&mut tree, volume, 0));
}

/// The same, on both members, which do not come to making it durable: then they lose power, and the holder is gone.
pub(crate) fn what_goes_is_named_by_nothing_durable(mutants: Mutants) {
    let (mut tree, volume, of_a) = replaced_one(mutants);
    let (one, other) = map_members(&tree);
    let index = (0..OBJECTS - 1).find(|index| {
        let set = tree.net.set(ObjectId::data(of_a, *index));
        !set.contains(&one) && !set.contains(&other)
    });
    let index = index.expect("an object that is on the other two nodes");
    tree.net.stuck.extend([one, other]);
    begin_discard(&mut tree, volume, index);
    let a = *tree.snapshots.keys().next().unwrap();
    tree.order(Command::DeleteVdi { vdi: a, guard: Guard::ClosedClean });
    tree.net.run_for(Duration::from_secs(10));
    tree.net.stuck.clear();
    [one, other].into_iter().for_each(|node| tree.net.crash(node, 0));
    tree.net.install_without(&[one, other]);
    [one, other].into_iter().for_each(|node| tree.net.restart(node));
    next_holder(&mut tree, &[]);
    assert!(is_readable(&mut tree, volume, index));
}

/// The map of the only one below a dead snapshot cannot be read.
pub(crate) fn what_an_unreadable_map_may_name_stays(mutants: Mutants) {
    let (mut tree, volume, of_a) = replaced_one(mutants);
    tree.close(volume);
    tree.net.settle();
    (1..=4).for_each(|node| tree.net.rot(node, None));
    let a = *tree.snapshots.keys().next().unwrap();
    tree.order(Command::DeleteVdi { vdi: a, guard: Guard::ClosedClean });
    tree.net.run_for(Duration::from_secs(30));
    assert!(tree.net.log.state.is_dead(of_a));
    assert!((0..OBJECTS).all(|index| tree.stored().contains(&ObjectId::data(of_a, index))));
}

/// A write makes a whole object of a clone, which needs nothing of its base from the instant at which it is in the map.
#[test]
fn what_a_whole_object_replaces_goes() {
    let mut tree = Tree::new(7);
    let volume = only(&tree);
    (0..2).for_each(|index| tree.write(volume, index));
    let a = tree.snapshot(volume);
    let origin = tree.alive[&a].vid;
    let clone = tree.clone_of(a);
    tree.delete(a);
    tree.delete(volume);
    tree.settle();
    assert!(tree.stored().contains(&ObjectId::data(origin, 0)));
    let data = vec![77; super::support::geometry().object_size() as usize].into();
    tree.run(clone, VolumeOp::Write { offset: 0, data, fua: false });
    let contents = tree.alive.get_mut(&clone).unwrap();
    contents.map.insert(0, (contents.vid, false));
    contents.bytes[0] = 77;
    tree.settle();
    tree.check();
    assert!(!tree.stored().contains(&ObjectId::data(origin, 0)));
    assert!(tree.stored().contains(&ObjectId::data(origin, 1)));
}

/// A volume with a snapshot whose last object it has replaced, and the vid of that snapshot.
fn replaced_one(mutants: Mutants) -> (Tree, VdiId, Vid) {
    let mut tree = Tree::without(6, mutants);
    let volume = only(&tree);
    (0..OBJECTS).for_each(|index| tree.write(volume, index));
    let a = tree.snapshot(volume);
    tree.write(volume, OBJECTS - 1);
    tree.run(volume, VolumeOp::Flush);
    let of_a = tree.alive[&a].vid;
    (tree, volume, of_a)
}

/// The members of the volume's map object: the one that a sweep would ask if one were enough, and the other.
fn map_members(tree: &Tree) -> (u64, u64) {
    let volume = tree.alive.keys().copied().find(|vdi| !tree.snapshots.contains_key(vdi)).unwrap();
    let set = tree.net.set(ObjectId::map(tree.alive[&volume].vid, 0));
    match set[..] {
        [one, 1] | [1, one] => (1, one),
        [one, other] => (one, other),
        _ => panic!("two copies"),
    }
}

/// A discard that is not answered.
fn begin_discard(tree: &mut Tree, volume: VdiId, index: u32) {
    let handle = tree.open(volume);
    tree.next += 1;
    let io = tree.next;
    let len = u64::from(super::support::geometry().object_size());
    let op = VolumeOp::Discard { offset: Tree::offset(index), len, fua: false };
    tree.act(|gateway, now| gateway.submit(now, handle, io, op));
    tree.net.run_for(Duration::from_millis(200));
    let answered = tree
        .net
        .said
        .iter()
        .any(|(_, said)| matches!(said, GatewayOutput::Done { io: done, .. } if *done == io));
    assert!(!answered);
}

/// The holder dies, and begins anew.
fn next_holder(tree: &mut Tree, away: &[u64]) {
    tree.net.crash(GATEWAY.0, 0);
    tree.open.clear();
    let mut gone = away.to_vec();
    gone.push(GATEWAY.0);
    tree.net.install_without(&gone);
    tree.net.run_for(Duration::from_secs(1));
    tree.net.restart(GATEWAY.0);
    tree.net.run_for(Duration::from_secs(1));
    tree.lease();
}

fn is_readable(tree: &mut Tree, volume: VdiId, index: u32) -> bool {
    let read = tree.run(volume, VolumeOp::Read { offset: Tree::offset(index), len: 4096 });
    matches!(read, VolumeReply::Read(_))
}

#[test]
fn the_rules_hold() {
    let rules: [fn(Mutants); 10] = [
        what_only_a_deleted_snapshot_had_goes,
        clones_keep_what_they_read_through,
        nothing_goes_while_a_node_that_may_have_it_is_away,
        what_a_node_brings_back_that_was_cut_off_during_a_round_goes_too,
        a_node_that_was_away_drops_what_is_forgotten,
        what_any_copy_of_a_map_names_stays,
        what_goes_is_named_by_nothing_durable,
        what_an_unreadable_map_may_name_stays,
        super::lost::what_a_node_that_is_away_may_have_is_not_forgotten,
        super::lost::nothing_is_forgotten_while_nodes_recover,
    ];
    rules.into_iter().for_each(|rule| rule(Mutants::default()));
}
