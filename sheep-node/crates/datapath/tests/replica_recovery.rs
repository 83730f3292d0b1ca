//! Scripted traces: sequences of events that break the system if a rule of validity is missing. Each runs with
//! all rules, and (with the feature `mutants`) with its rule left out, which must show.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use core::time::Duration;
use sheep_datapath::Mutants;
use sheep_state::Command;
use sheep_types::{Incarnation, NodeId};
use sheep_wire::{Refusal, Reply, Request};
use support::volume::Held;
use support::{HAND, Net};

type Trace = fn(Mutants) -> Result<(), String>;

fn expect<T: PartialEq + core::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?}, expected {expected:?}")) }
}

fn net(storage: u64, copies: u8, mutants: Mutants) -> Net {
    Net::with_mutants(1, storage, 0, copies, 1, mutants)
}

/// A replica acknowledges a write, restarts so quickly that nobody misses it, and is read.
fn a_restart_is_seen(mutants: Mutants) -> Result<(), String> {
    let mut net = net(3, 3, mutants);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    held.send(&mut net, &first, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2, 3]);
    let second = held.write(0, Some(first.version), false, 2);
    held.send(&mut net, &second, &[1, 2, 3]);
    net.crash(2, 0);
    net.restart(2);
    expect("after the restart", held.tag(&mut net, 0, 2), Ok(2))
}

/// The epoch moves an object to a new node; the source, and the writer, still live in the old epoch.
fn a_source_answers_only_in_the_epoch_of_the_asker(mutants: Mutants) -> Result<(), String> {
    let mut net = net(3, 2, mutants);
    let mut held = Held::new(&mut net, "a");
    net.run_for(Duration::from_millis(10));
    let before: Vec<_> = (0..16).map(|index| net.set(held.object(index))).collect();
    let writes: Vec<_> = (0..16).map(|index| held.write(index, None, true, 1)).collect();
    for (index, write) in writes.iter().enumerate() {
        held.send(&mut net, write, &before[index]);
    }
    let old = net.log.state.epoch();
    net.manual = true;
    net.add(4);
    net.publish(4);
    let moved = (0..16).find(|index| net.set(held.object(*index)).contains(&4)).ok_or("nothing moves")?;
    // Somebody in the new epoch wants to read it there, which starts the fetch.
    expect("too early", held.read(&mut net, moved, 4), Reply::Refused(Refusal::NotCurrent))?;
    net.run_for(Duration::from_millis(50));
    let at = moved as usize;
    let write = held.write(moved, Some(writes[at].version), false, 2);
    for node in &before[at] {
        let number = net.ask_in(*node, old, held.generation, Request::Write(write.clone()));
        expect("write in the old epoch", net.answer(number), Reply::Done)?;
    }
    (1..=4).for_each(|node| net.publish(node));
    expect("at the new member", held.tag(&mut net, moved, 4), Ok(2))
}

/// A write reached only one member, which then was away while the others went on without it.
fn a_higher_version_is_not_fresher(mutants: Mutants) -> Result<(), String> {
    let mut net = net(3, 3, mutants);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    held.send(&mut net, &first, &[1, 2, 3]);
    let second = held.write(0, Some(first.version), false, 2);
    held.send(&mut net, &second, &[1]);
    net.isolate(1);
    net.install_without(&[1]);
    held.locked(&mut net);
    expect("while it is away", held.tag(&mut net, 0, 2), Ok(1))?;
    net.rejoin(1);
    net.come_back(1);
    expect("when it is back", held.tag(&mut net, 0, 1), Ok(1))
}

/// The last copy is at a node whose peer has lost its disk, and with it the object.
fn absence_deletes_nothing(mutants: Mutants) -> Result<(), String> {
    let mut net = net(2, 2, mutants);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    held.send(&mut net, &first, &[1, 2]);
    held.flush(&mut net, &[1, 2]);
    net.isolate(2);
    net.crash(1, 0);
    net.install_without(&[1, 2]);
    net.replace_disk(1);
    net.restart(1);
    net.run_for(Duration::from_millis(50));
    net.rejoin(2);
    net.come_back(2);
    expect("at the survivor", held.tag(&mut net, 0, 2), Ok(1))?;
    expect("at its peer", held.tag(&mut net, 0, 1), Ok(1))
}

/// All lose power; one has a write that the others do not have. They come back before they can talk to each
/// other.
fn one_node_decides(mutants: Mutants) -> Result<(), String> {
    let mut net = net(3, 3, mutants);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    held.send(&mut net, &first, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2, 3]);
    let mut second = held.write(0, Some(first.version), false, 2);
    second.durable = true;
    held.send(&mut net, &second, &[2]);
    (1..=3).for_each(|node| net.crash(node, 0));
    net.install_without(&[1, 2, 3]);
    // None of them sees an epoch in which it is up alone.
    net.manual = true;
    (1..=3).for_each(|node| net.restart(node));
    net.manual = false;
    net.distribute();
    let tags: Vec<_> = (1..=3).map(|node| held.tag(&mut net, 0, node)).collect();
    expect("at all", tags, vec![Ok(2); 3])
}

/// A hot copy is fetched, and its source dies: the mark must have come along.
fn a_fetched_copy_stays_hot(mutants: Mutants) -> Result<(), String> {
    let mut net = net(4, 3, mutants);
    let mut held = Held::new(&mut net, "a");
    net.run_for(Duration::from_millis(10));
    let index = 0;
    let set = net.set(held.object(index));
    let first = held.write(index, None, true, 1);
    held.send(&mut net, &first, &set);
    held.confirmed = held.sequence;
    let second = held.write(index, Some(first.version), false, 2);
    held.send(&mut net, &second, &set[..1]);
    // The last member leaves for good, the fourth node takes its place.
    let (gone, incarnation) = (set[2], Incarnation(1));
    net.crash(gone, 0);
    net.install_without(&[gone]);
    let down_since = match net.log.state.node(NodeId(gone)).map(|record| record.state) {
        Some(sheep_state::NodeState::Down { since, .. }) => since,
        other => return Err(format!("{other:?}")),
    };
    let out = Command::ProposeOut { node: NodeId(gone), incarnation, down_since, by_operator: true };
    net.log.run(HAND, out).unwrap();
    net.distribute();
    net.settle();
    net.crash(set[0], 0);
    net.install_without(&[gone, set[0]]);
    held.locked(&mut net);
    let new =
        net.set(held.object(index)).into_iter().find(|node| !set.contains(node)).ok_or("no new member")?;
    match net.call(new, held.generation, Request::Settle { vid: held.vid, after: None }) {
        // Pending objects are listed too; this one's first write made it pending.
        Reply::Hot(list, false) => expect("listed as hot", list.len(), 1)?,
        other => return Err(format!("{other:?}")),
    }
    // The map entry is confirmed, so that only the hot mark is left.
    let clear = Request::ClearPending { objects: vec![held.object(index)] };
    expect("clear", net.call(new, held.generation, clear), Reply::Done)?;
    match net.call(new, held.generation, Request::Settle { vid: held.vid, after: None }) {
        Reply::Hot(list, false) => expect("still hot", list.len(), 1),
        other => Err(format!("{other:?}")),
    }
}

/// A write was applied, its answer lost, and it is sent again after the next one was applied too.
fn a_resend_is_done_already(mutants: Mutants) -> Result<(), String> {
    let mut net = net(1, 1, mutants);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    let second = held.write(0, Some(first.version), false, 2);
    held.send(&mut net, &first, &[1]);
    held.send(&mut net, &second, &[1]);
    expect("again", net.call(1, held.generation, Request::Write(first)), Reply::Done)
}

/// An object was created on one member only and never acknowledged; the next holder creates it anew.
fn a_creation_replaces_an_orphan(mutants: Mutants) -> Result<(), String> {
    let mut net = net(2, 2, mutants);
    let mut held = Held::new(&mut net, "a");
    let orphan = held.write(0, None, true, 7);
    held.send(&mut net, &orphan, &[1]);
    held.locked(&mut net);
    let mut create = held.write(0, None, true, 9);
    create.offset = 4096;
    held.send(&mut net, &create, &[1, 2]);
    expect("where the orphan was", held.tag(&mut net, 0, 1), Ok(0))?;
    expect("elsewhere", held.tag(&mut net, 0, 2), Ok(0))
}

/// A node is back that was away while an object was written, and is to clone it.
fn a_clone_begins_with_a_current_copy(mutants: Mutants) -> Result<(), String> {
    let mut net = net(3, 3, mutants);
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    held.send(&mut net, &first, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2, 3]);
    net.isolate(3);
    net.install_without(&[3]);
    net.run_for(Duration::from_millis(20));
    let second = held.write(0, Some(first.version), false, 2);
    held.send(&mut net, &second, &[1, 2]);
    held.flush(&mut net, &[1, 2]);
    let parent = held.snapshot(&mut net, "one");
    net.rejoin(3);
    net.come_back(3);
    let mut child = held.write(0, None, true, 7);
    (child.base, child.offset) = (Some(parent), 4096);
    held.send(&mut net, &child, &[1, 2, 3]);
    let tags: Vec<_> = (1..=3).map(|node| held.tag(&mut net, 0, node)).collect();
    expect("what was not written since", tags, vec![Ok(2); 3])
}

#[test]
fn traces_hold() {
    let traces: [(&str, Trace); 9] = [
        ("clone", a_clone_begins_with_a_current_copy),
        ("restart", a_restart_is_seen),
        ("older epoch", a_source_answers_only_in_the_epoch_of_the_asker),
        ("higher version", a_higher_version_is_not_fresher),
        ("absence", absence_deletes_nothing),
        ("decider", one_node_decides),
        ("hot", a_fetched_copy_stays_hot),
        ("resend", a_resend_is_done_already),
        ("orphan", a_creation_replaces_an_orphan),
    ];
    for (name, trace) in traces {
        assert_eq!(trace(Mutants::default()), Ok(()), "{name}");
    }
}

#[cfg(feature = "mutants")]
#[test]
fn each_broken_rule_shows() {
    use sheep_datapath::Mutant;
    let broken: [(Mutant, Trace); 9] = [
        (Mutant::RestartedIsCurrent, a_restart_is_seen),
        (Mutant::SourceAtOlderEpoch, a_source_answers_only_in_the_epoch_of_the_asker),
        (Mutant::HigherVersionWins, a_higher_version_is_not_fresher),
        (Mutant::DeleteOnAbsence, absence_deletes_nothing),
        (Mutant::EachDecides, one_node_decides),
        (Mutant::HotNotInherited, a_fetched_copy_stays_hot),
        (Mutant::ResendIsBehind, a_resend_is_done_already),
        (Mutant::CreateKeepsOrphan, a_creation_replaces_an_orphan),
        (Mutant::ClonesAnyCopy, a_clone_begins_with_a_current_copy),
    ];
    for (mutant, trace) in broken {
        assert!(trace(Mutants::only(mutant)).is_err(), "{mutant:?} is not caught");
    }
}

#[test]
fn a_replaced_disk_proves_nothing() {
    let mut net = net(2, 2, Mutants::default());
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    held.send(&mut net, &first, &[1, 2]);
    held.flush(&mut net, &[1, 2]);
    net.isolate(1);
    net.install_without(&[1]);
    net.run_for(Duration::from_millis(20));
    // Acknowledged by all that are up: one, whose disk then dies.
    let second = held.write(0, Some(first.version), false, 2);
    held.send(&mut net, &second, &[2]);
    held.flush(&mut net, &[2]);
    net.crash(2, 0);
    net.replace_disk(2);
    net.restart(2);
    net.rejoin(1);
    net.come_back(1);
    net.run_for(Duration::from_secs(2));
    // The old copy must not be taken for the right one, whoever is asked.
    for node in [1, 2] {
        assert_eq!(held.read(&mut net, 0, node), Reply::Refused(Refusal::NotCurrent));
    }
}

#[test]
fn a_set_that_moves_as_a_whole_is_found_by_walking_back() {
    let mut net = net(1, 1, Mutants::default());
    let mut held = Held::new(&mut net, "a");
    net.run_for(Duration::from_millis(10));
    for index in 0..16 {
        let write = held.write(index, None, true, 100 + u64::from(index));
        held.send(&mut net, &write, &[1]);
    }
    net.add(2);
    net.settle();
    let moved: Vec<u32> = (0..16).filter(|index| net.set(held.object(*index)) == [2]).collect();
    assert!(!moved.is_empty());
    for index in &moved {
        assert_eq!(held.tag(&mut net, *index, 2), Ok(100 + u64::from(*index)));
    }
    // The former owner deletes its copies once the new one's are durable.
    net.run_for(Duration::from_secs(2));
    for index in 0..16 {
        let here = net.replica(1).store().header(held.object(index)).is_some();
        assert_eq!(here, !moved.contains(&index), "object {index}");
    }
}

#[test]
fn what_is_nowhere_is_said_to_be_nowhere() {
    let mut net = net(3, 3, Mutants::default());
    let held = Held::new(&mut net, "a");
    net.run_for(Duration::from_millis(10));
    assert_eq!(held.tag(&mut net, 5, 1), Err(Reply::Refused(Refusal::NoCopy)));
    assert_eq!(net.replica(1).progress().objects_lost, 1);
}

#[test]
fn the_floor_carries_old_copies_over_forgotten_epochs() {
    let mut net = net(3, 3, Mutants::default());
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    held.send(&mut net, &first, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2, 3]);
    // Epochs come and go without the object being written.
    for round in 0..4 {
        net.add(4 + round);
        net.settle();
        net.run_for(Duration::from_millis(20));
    }
    net.run_for(Duration::from_millis(500));
    let validated = net.replica(1).store().header(held.object(0)).unwrap().validated;
    let set = net.set(held.object(0));
    if set.contains(&1) {
        assert!(validated < net.log.state.oldest_epoch(), "epochs are not forgotten: {validated}");
    }
    let all: Vec<u64> = (1..=7).collect();
    all.iter().for_each(|node| net.crash(*node, 0));
    net.install_without(&all);
    all.iter().for_each(|node| net.restart(*node));
    for node in set {
        assert_eq!(held.tag(&mut net, 0, node), Ok(1));
    }
    net.settle();
}

#[test]
fn objects_of_a_deleted_vdi_go_also_where_they_were_missed() {
    let mut net = net(2, 2, Mutants::default());
    let mut held = Held::new(&mut net, "a");
    let write = held.write(0, None, true, 1);
    held.send(&mut net, &write, &[1, 2]);
    held.flush(&mut net, &[1, 2]);
    net.crash(2, 0);
    net.install_without(&[2]);
    let generation = held.generation;
    net.log.run(HAND, Command::Revoke { vdi: held.vdi, generation }).unwrap();
    let guard = sheep_state::Guard::Closed(generation);
    net.log.run(HAND, Command::DeleteVdi { vdi: held.vdi, guard }).unwrap();
    net.distribute();
    net.restart(2);
    net.settle();
    for node in [1, 2] {
        assert!(net.replica(node).store().header(held.object(0)).is_none());
    }
}

#[test]
fn damage_is_reported_and_repaired_from_another_copy() {
    let mut net = net(2, 2, Mutants::default());
    let mut held = Held::new(&mut net, "a");
    let write = held.write(0, None, true, 5);
    held.send(&mut net, &write, &[1, 2]);
    held.flush(&mut net, &[1, 2]);
    net.run_for(Duration::from_millis(20));
    net.rot_last(1);
    assert_eq!(held.read(&mut net, 0, 1), Reply::Refused(Refusal::Damaged));
    net.run_for(Duration::from_millis(100));
    assert_eq!(held.tag(&mut net, 0, 1), Ok(5));
}

/// A clone shares its blocks with its parent, and neither changes the other.
#[test]
fn a_clone_takes_the_space_of_what_is_written() {
    let mut net = net(3, 3, Mutants::default());
    let mut held = Held::new(&mut net, "a");
    let first = held.write(0, None, true, 1);
    held.send(&mut net, &first, &[1, 2, 3]);
    let rest = held.fill(0, first.version, 1..16, 2);
    held.send(&mut net, &rest, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2, 3]);
    let used = |net: &Net| net.replica(1).store().usage().used;
    let before = used(&net);
    let old = held.clone();
    let parent = held.snapshot(&mut net, "one");
    let mut child = held.write(0, None, true, 77);
    (child.base, child.offset) = (Some(parent), 4096);
    held.send(&mut net, &child, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2, 3]);
    assert!(used(&net) < before + 4 * 4096, "{} after {before}", used(&net));
    let expected: Vec<Option<u64>> = (1..=16).map(|tag| Some(if tag == 2 { 77 } else { tag })).collect();
    assert_eq!(held.blocks(&mut net, 0, 2), expected);
    let expected: Vec<Option<u64>> = (1..=16).map(Some).collect();
    assert_eq!(old.blocks(&mut net, 0, 2), expected);
    // Of another lineage, or of itself, it cannot be.
    let other = Held::new(&mut net, "b");
    let mut wrong = held.write(1, None, true, 1);
    for base in [other.vid, held.vid, sheep_types::Vid(99)] {
        wrong.base = Some(base);
        let answer = net.call(1, held.generation, Request::Write(wrong.clone()));
        assert_eq!(answer, Reply::Refused(Refusal::Malformed));
    }
}
