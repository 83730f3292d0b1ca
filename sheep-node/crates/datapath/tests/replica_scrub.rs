//! Scrubbing: what rots is found and made good from others, without a client that reads it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use core::time::Duration;
use sheep_datapath::{Finding, Mutants, ScrubStatus};
use sheep_types::{NodeId, Version};
use support::Net;
use support::volume::Held;

const OBJECTS: u32 = 6;
const BLOCKS: u32 = 16;

/// Objects with a few blocks each, flushed on three nodes, their marks confirmed.
fn filled(net: &mut Net) -> (Held, Vec<Version>) {
    let mut held = Held::new(net, "a");
    let mut versions = Vec::new();
    for index in 0..OBJECTS {
        let create = held.write(index, None, true, u64::from(index) + 1);
        held.send(net, &create, &[1, 2, 3]);
        held.confirmed = held.sequence;
        let more = held.fill(index, create.version, 4..8, 100 * u64::from(index + 1));
        held.send(net, &more, &[1, 2, 3]);
        held.confirmed = held.sequence;
        versions.push(more.version);
    }
    held.flush(net, &[1, 2, 3]);
    // The last write says that all before it are everywhere.
    let last = held.fill(0, versions[0], 9..10, 77);
    held.send(net, &last, &[1, 2, 3]);
    versions[0] = last.version;
    held.flush(net, &[1, 2, 3]);
    net.run_for(Duration::from_secs(1));
    (held, versions)
}

fn contents(net: &mut Net, held: &Held, node: u64) -> Vec<Vec<Option<u64>>> {
    (0..OBJECTS).map(|index| held.blocks(net, index, node)).collect()
}

fn troubles(status: &ScrubStatus) -> [u64; 6] {
    [
        status.damaged,
        status.mismatches,
        status.behind,
        status.repaired,
        status.unrepairable,
        status.unresolved,
    ]
}

#[test]
fn a_pass_over_good_copies_finds_nothing() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let (held, _) = filled(&mut net);
    let before = contents(&mut net, &held, 2);
    let status = net.scrub(2);
    assert_eq!((status.passes, status.objects, status.running), (1, u64::from(OBJECTS), false));
    assert_eq!(status.bytes_ever, (u64::from(OBJECTS) * 5 + 1) * 4096);
    assert_eq!((troubles(&status), status.skipped, net.findings(2)), ([0; 6], 0, vec![]));
    assert_eq!(contents(&mut net, &held, 2), before);
}

#[test]
fn rotten_blocks_are_made_good_from_others() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let (held, _) = filled(&mut net);
    let before = contents(&mut net, &held, 1);
    // The decider of some objects, and not of others.
    net.rot(2, None);
    let status = net.scrub(2);
    let all = u64::from(OBJECTS);
    assert_eq!(troubles(&status), [all, 0, 0, all, 0, 0]);
    assert_eq!(status.damaged_now, 0);
    let found = net.findings(2);
    assert_eq!(found.iter().filter(|f| matches!(f, Finding::Repaired(_))).count(), OBJECTS as usize);
    assert_eq!(contents(&mut net, &held, 2), before);
    let again = net.scrub(2);
    assert_eq!((again.damaged, again.passes), (all, 2), "nothing is left");
}

#[test]
fn what_nobody_has_any_more_is_told_and_left() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let (_held, _) = filled(&mut net);
    (1..=3).for_each(|node| net.rot(node, None));
    let status = net.scrub(2);
    assert_eq!((status.damaged, status.repaired), (u64::from(OBJECTS), 0));
    assert!(status.unrepairable >= 1, "{status:?}");
    assert!(net.findings(2).iter().any(|f| matches!(f, Finding::Unrepairable(_))));
}

/// One node has other contents than the rest at the same version, with right checksums.
fn one_differs(mutants: Mutants, liar: u64) -> Result<(), String> {
    let mut net = Net::with_mutants(1, 3, 0, 3, 1, mutants);
    let (mut held, versions) = filled(&mut net);
    let right = held.fill(1, versions[1], 2..3, 50);
    let mut wrong = right.clone();
    wrong.body = held.fill(1, versions[1], 2..3, 60).body;
    let honest: Vec<u64> = (1..=3).filter(|node| *node != liar).collect();
    held.send(&mut net, &right, &honest);
    held.send(&mut net, &wrong, &[liar]);
    held.flush(&mut net, &[1, 2, 3]);
    let others = net.scrub(honest[0]);
    if troubles(&others) != [0; 6] {
        return Err(format!("the honest one: {others:?}"));
    }
    let status = net.scrub(liar);
    let found = held.blocks(&mut net, 1, liar)[2];
    if found != Some(50) || troubles(&status) != [0, 1, 0, 1, 0, 0] {
        return Err(format!("{found:?}, {status:?}"));
    }
    Ok(())
}

#[test]
fn most_copies_of_a_version_decide_what_it_is() {
    for liar in 1..=3 {
        assert_eq!(one_differs(Mutants::default(), liar), Ok(()), "{liar}");
    }
}

#[test]
fn two_copies_that_differ_are_told_and_left() {
    let mut net = Net::new(1, 2, 0, 2, 1);
    let mut held = Held::new(&mut net, "a");
    for node in [1, 2] {
        let mut create = held.write(0, None, true, 40 + node);
        held.sequence = 0;
        create.version = held.version(1);
        held.send(&mut net, &create, &[node]);
    }
    net.run_for(Duration::from_secs(1));
    let status = net.scrub(1);
    assert_eq!(troubles(&status), [0, 0, 0, 0, 0, 1], "{status:?}");
    let object = held.object(0);
    assert_eq!(net.findings(1), [Finding::Unresolved(object, vec![NodeId(1), NodeId(2)])]);
    assert_eq!((held.blocks(&mut net, 0, 1)[0], held.blocks(&mut net, 0, 2)[0]), (Some(41), Some(42)));
}

/// A write that only one member has may never have been: nothing is made equal to it or to its lack. When it is
/// known to be everywhere and one copy lacks it all the same, that copy is made equal.
fn versions_differ(mutants: Mutants) -> Result<(), String> {
    let mut net = Net::with_mutants(1, 3, 0, 3, 1, mutants);
    let (mut held, versions) = filled(&mut net);
    let write = held.fill(1, versions[1], 2..3, 50);
    held.send(&mut net, &write, &[1, 2]);
    for node in 1..=3 {
        let status = net.scrub(node);
        if troubles(&status) != [0; 6] || status.skipped != 1 {
            return Err(format!("{node}: {status:?}"));
        }
    }
    // Now the gateway says, with another write, that all have it.
    held.confirmed = held.sequence;
    let other = held.fill(2, versions[2], 2..3, 51);
    held.send(&mut net, &other, &[1, 2, 3]);
    let ahead = net.scrub(1);
    let behind = net.scrub(3);
    let found = held.blocks(&mut net, 1, 3)[2];
    if troubles(&ahead) != [0; 6] || troubles(&behind) != [0, 0, 1, 1, 0, 0] || found != Some(50) {
        return Err(format!("{found:?}, {ahead:?}, {behind:?}"));
    }
    Ok(())
}

#[test]
fn a_copy_that_lacks_what_all_should_have_is_made_equal() {
    assert_eq!(versions_differ(Mutants::default()), Ok(()));
}

#[test]
fn a_pass_goes_on_after_a_restart_and_its_end_is_remembered() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let (_held, _) = filled(&mut net);
    let ended = net.scrub(2).last_pass;
    assert!(ended.is_some());
    net.run_for(Duration::from_secs(1));
    net.crash(2, 1);
    net.restart(2);
    net.settle();
    net.run_for(Duration::from_secs(1));
    let status = net.replica(2).scrub_status();
    assert_eq!((status.last_pass, status.passes), (ended, 0));
}

#[test]
fn writes_go_on_while_a_pass_does() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let (mut held, mut versions) = filled(&mut net);
    net.rot(3, None);
    let now = net.now;
    let start = |net: &mut Net| {
        let shard = net.nodes.get_mut(&NodeId(3)).unwrap().shard.as_mut().unwrap();
        shard.order_scrub(now, sheep_datapath::ScrubOrder::Start);
        net.drain(NodeId(3));
    };
    start(&mut net);
    for round in 0..200u64 {
        let index = (round % u64::from(OBJECTS)) as usize;
        let block = (round % u64::from(BLOCKS)) as u32;
        let write = held.fill(index as u32, versions[index], block..block + 1, 1000 + round);
        held.send(&mut net, &write, &[1, 2, 3]);
        held.confirmed = held.sequence;
        versions[index] = write.version;
    }
    held.flush(&mut net, &[1, 2, 3]);
    net.run_for(Duration::from_secs(30));
    let status = net.replica(3).scrub_status();
    assert_eq!((status.passes, status.damaged_now), (1, 0), "{status:?}");
    assert_eq!((status.unrepairable, status.unresolved, status.mismatches), (0, 0, 0), "{status:?}");
    assert_eq!(contents(&mut net, &held, 3), contents(&mut net, &held, 1));
}

#[cfg(feature = "mutants")]
#[test]
fn each_broken_rule_of_scrubbing_shows() {
    use sheep_datapath::Mutant;
    let trusts = Mutants::only(Mutant::ScrubTrustsSelf);
    assert!((1..=3).any(|liar| one_differs(trusts, liar).is_err()));
    assert!(versions_differ(Mutants::only(Mutant::ScrubIgnoresVersion)).is_err());
}
