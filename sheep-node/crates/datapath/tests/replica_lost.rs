//! Blocks whose only good copy is damaged: the rest of the object has all its copies again, they are errors until
//! they are written, and whoever has them makes them good.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use core::time::Duration;
use sheep_datapath::{Finding, Mutants};
use sheep_types::Version;
use sheep_wire::{Refusal, Reply, Request};
use support::Net;
use support::volume::Held;

const BLOCKS: u32 = 16;
const DAMAGED: Result<u64, Refusal> = Err(Refusal::Damaged);

/// An object with all blocks filled with 100 and so on, flushed on all nodes.
fn filled(net: &mut Net, held: &mut Held, nodes: &[u64]) -> Version {
    let create = held.write(0, None, true, 1);
    held.send(net, &create, nodes);
    let fill = held.fill(0, create.version, 0..BLOCKS, 100);
    held.send(net, &fill, nodes);
    held.flush(net, nodes);
    net.run_for(Duration::from_millis(50));
    fill.version
}

/// What each block shows at a node.
fn shown(net: &mut Net, held: &Held, node: u64) -> Vec<Result<u64, Refusal>> {
    let (object, birth, len) = (held.object(0), held.birth, support::BLOCK as u32);
    let mut read = |block: u32| {
        for _ in 0..100 {
            let request = Request::Read { object, birth, offset: block * len, len };
            match net.call(node, held.generation, request) {
                Reply::Read(read) => {
                    let bytes = read.data.first().map(|data| *data.first_chunk().unwrap());
                    return Ok(bytes.map_or(0, u64::from_le_bytes));
                }
                Reply::Refused(Refusal::NotCurrent | Refusal::StaleEpoch(_)) => {
                    net.run_for(Duration::from_millis(20));
                }
                Reply::Refused(refusal) => return Err(refusal),
                other => panic!("{other:?}"),
            }
        }
        Err(Refusal::NotCurrent)
    };
    (0..BLOCKS).map(&mut read).collect()
}

/// What they should show, but for these.
fn expected(but: &[(u32, Result<u64, Refusal>)]) -> Vec<Result<u64, Refusal>> {
    let mut all: Vec<_> = (100..100 + u64::from(BLOCKS)).map(Ok).collect();
    but.iter().for_each(|(block, found)| all[*block as usize] = *found);
    all
}

/// A node loses its disk and gets a new one while the only other copy has damaged blocks.
fn lost_at_both(tags: &[u64]) -> (Net, Held, Version) {
    let mut net = Net::new(1, 2, 0, 2, 1);
    let mut held = Held::new(&mut net, "a");
    let version = filled(&mut net, &mut held, &[1, 2]);
    net.crash(2, 0);
    net.install_without(&[2]);
    assert_eq!(net.rot_tags(1, tags), tags.len());
    net.replace_disk(2);
    net.restart(2);
    net.settle();
    (net, held, version)
}

#[test]
fn what_cannot_be_read_for_a_moment_is_not_lost() {
    let mut net = Net::new(1, 2, 0, 2, 1);
    let mut held = Held::new(&mut net, "a");
    filled(&mut net, &mut held, &[1, 2]);
    net.crash(2, 0);
    net.install_without(&[2]);
    net.replace_disk(2);
    net.set_unreadable(1, &[103, 104], true);
    net.restart(2);
    net.run_for(Duration::from_millis(300));
    net.set_unreadable(1, &[103, 104], false);
    net.settle();
    for node in [1, 2] {
        assert_eq!(shown(&mut net, &held, node), expected(&[]), "node {node}");
        assert_eq!(net.replica(node).scrub_status().lost_blocks, 0);
    }
}

#[test]
fn a_copy_that_nobody_must_hold_stays_while_its_successor_lacks_blocks() {
    let mut net = Net::new(1, 1, 0, 1, 1);
    let mut held = Held::new(&mut net, "a");
    filled(&mut net, &mut held, &[1]);
    net.set_unreadable(1, &[103], true);
    let object = held.object(0);
    let next = (2..20).find(|node| {
        net.add(*node);
        net.set(object) == [*node]
    });
    let next = next.unwrap();
    net.settle();
    assert_eq!(net.replica(next).scrub_status().lost_blocks, 1);
    assert_eq!(shown(&mut net, &held, next), expected(&[(3, DAMAGED)]));
    // After a while it can be read again.
    net.run_for(Duration::from_secs(3));
    net.set_unreadable(1, &[103], false);
    net.run_for(Duration::from_secs(12));
    assert_eq!(shown(&mut net, &held, next), expected(&[]));
    net.run_for(Duration::from_secs(2));
    assert!(net.replica(1).store().header(object).is_none(), "then it goes");
}

#[test]
fn one_damaged_block_does_not_keep_the_rest_from_its_copies() {
    let (mut net, mut held, version) = lost_at_both(&[105, 106, 111]);
    let want = expected(&[(5, DAMAGED), (6, DAMAGED), (11, DAMAGED)]);
    for node in [1, 2] {
        assert!(net.replica(node).is_current(held.object(0)));
        assert_eq!(shown(&mut net, &held, node), want, "node {node}");
    }
    let found = net.findings(2);
    let told = Finding::BlocksLost(held.object(0), vec![(5 * 4096, 8192), (11 * 4096, 4096)]);
    assert_eq!(found.iter().filter(|finding| **finding == told).count(), 1, "{found:?}");
    let status = net.replica(2).scrub_status();
    assert_eq!((status.lost_objects, status.lost_blocks), (1, 3));
    // Reads meet it again and again; it is told once.
    shown(&mut net, &held, 2);
    assert!(!net.findings(2).iter().any(|finding| matches!(finding, Finding::BlocksLost(..))));
    // It is so after a restart, and nothing waits for it.
    net.crash(2, 0);
    net.install_without(&[2]);
    net.restart(2);
    net.settle();
    assert_eq!(shown(&mut net, &held, 2), want);
    // Writes and zeros over whole blocks make them good everywhere.
    held.locked(&mut net);
    let write = held.fill(0, version, 5..6, 500);
    let mut write = write;
    write.previous = None;
    held.send(&mut net, &write, &[1, 2]);
    let zero = held.zero(0, write.version, 11..12);
    held.send(&mut net, &zero, &[1, 2]);
    let want = expected(&[(5, Ok(500)), (6, DAMAGED), (11, Ok(0))]);
    for node in [1, 2] {
        assert_eq!(shown(&mut net, &held, node), want, "node {node}");
    }
    assert_eq!(net.replica(2).scrub_status().lost_blocks, 1);
}

#[test]
fn what_somebody_else_has_is_not_lost() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::new(&mut net, "a");
    filled(&mut net, &mut held, &[1, 2, 3]);
    net.crash(3, 0);
    net.install_without(&[3]);
    // Different blocks on the two that are left.
    assert_eq!(net.rot_tags(1, &[103, 104]), 2);
    assert_eq!(net.rot_tags(2, &[107]), 1);
    net.replace_disk(3);
    net.restart(3);
    net.settle();
    assert_eq!(shown(&mut net, &held, 3), expected(&[]));
    assert_eq!(net.replica(3).scrub_status().lost_blocks, 0);
    for node in [1, 2] {
        net.scrub(node);
        assert_eq!(shown(&mut net, &held, node), expected(&[]), "node {node}");
    }
}

/// A node with good blocks is away while the others lose them; it comes back when the object was written, or not.
fn comes_back(written: bool) {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::new(&mut net, "a");
    let version = filled(&mut net, &mut held, &[1, 2, 3]);
    net.crash(3, 0);
    net.install_without(&[3]);
    net.crash(2, 0);
    net.install_without(&[2, 3]);
    assert_eq!(net.rot_tags(1, &[103, 104]), 2);
    net.replace_disk(2);
    net.restart(2);
    net.settle();
    let lost = [(3, DAMAGED), (4, DAMAGED)];
    assert_eq!(shown(&mut net, &held, 2), expected(&lost));
    let mut want = expected(&[]);
    if written {
        held.locked(&mut net);
        let mut write = held.fill(0, version, 4..5, 404);
        write.previous = None;
        held.send(&mut net, &write, &[1, 2]);
        held.flush(&mut net, &[1, 2]);
        want = expected(&[(4, Ok(404))]);
    }
    net.restart(3);
    net.settle();
    // Its own block is what the lost one should be, so it keeps that; then the others get it.
    assert_eq!(shown(&mut net, &held, 3), want);
    for node in [1, 2] {
        let status = net.scrub(node);
        assert_eq!(shown(&mut net, &held, node), want, "node {node}");
        assert_eq!(status.lost_blocks, 0);
    }
}

#[test]
fn a_copy_that_comes_back_makes_lost_blocks_good() {
    comes_back(false);
}

#[test]
fn a_copy_that_comes_back_behind_keeps_what_was_not_written_since() {
    comes_back(true);
}

/// A node with good blocks is away while the others lose them, and while a snapshot is taken and written over. It has what
/// nobody has written since in its copy of the snapshot, and only there.
fn what_a_clone_has_lost_is_taken_from_what_it_was_cloned_from(mutants: Mutants) -> bool {
    let mut net = Net::with_mutants(1, 3, 0, 3, 1, mutants);
    let mut held = Held::new(&mut net, "a");
    filled(&mut net, &mut held, &[1, 2, 3]);
    net.crash(3, 0);
    net.install_without(&[3]);
    let parent = held.snapshot(&mut net, "one");
    let mut child = held.write(0, None, true, 404);
    (child.base, child.offset) = (Some(parent), 4 * support::BLOCK as u32);
    held.send(&mut net, &child, &[1, 2]);
    held.flush(&mut net, &[1, 2]);
    net.crash(2, 0);
    net.install_without(&[2, 3]);
    // One block that both objects have, and one that only the clone has.
    assert_eq!(net.rot_tags(1, &[103, 404]), 2);
    net.replace_disk(2);
    net.restart(2);
    net.settle();
    assert_eq!(shown(&mut net, &held, 2), expected(&[(3, DAMAGED), (4, DAMAGED)]));
    net.restart(3);
    net.settle();
    // What was written since is not what the snapshot has.
    let want = expected(&[(4, DAMAGED)]);
    if shown(&mut net, &held, 3) != want {
        return false;
    }
    for node in [1, 2] {
        net.scrub(node);
        assert_eq!(shown(&mut net, &held, node), want, "node {node}");
    }
    let mut old = held.clone();
    (old.vid, old.birth) = (parent, net.log.state.vid(parent).unwrap().birth);
    for node in 1..=3 {
        assert_eq!(shown(&mut net, &old, node), expected(&[]), "node {node}");
    }
    true
}

#[test]
fn what_a_clone_has_lost_is_taken_from_its_parent() {
    assert!(what_a_clone_has_lost_is_taken_from_what_it_was_cloned_from(Mutants::default()));
}

#[test]
#[cfg(feature = "mutants")]
fn what_a_clone_has_lost_stays_lost_without_its_parent() {
    let mutants = Mutants::only(sheep_datapath::Mutant::LostIsNotInherited);
    assert!(!what_a_clone_has_lost_is_taken_from_what_it_was_cloned_from(mutants));
}

#[test]
fn after_a_loss_of_power_each_block_is_taken_from_who_has_it() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::new(&mut net, "a");
    let version = filled(&mut net, &mut held, &[1, 2, 3]);
    // Two have one more write durably, and each of them a bad block.
    let more = held.fill(0, version, 9..10, 900);
    held.send(&mut net, &more, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2]);
    (1..=3).for_each(|node| net.crash(node, 0));
    net.install_without(&[1, 2, 3]);
    assert_eq!((net.rot_tags(1, &[102, 900]), net.rot_tags(2, &[107])), (2, 1));
    net.manual = true;
    (1..=3).for_each(|node| net.restart(node));
    net.manual = false;
    net.distribute();
    net.settle();
    for node in 1..=3 {
        net.scrub(node);
    }
    for node in 1..=3 {
        assert_eq!(shown(&mut net, &held, node), expected(&[(9, Ok(900))]), "node {node}");
        let status = net.replica(node).scrub_status();
        assert_eq!((status.lost_blocks, status.damaged_now), (0, 0), "{status:?}");
    }
}

#[test]
fn a_third_copy_of_lost_blocks_has_them_lost_too() {
    let (mut net, held, _) = lost_at_both(&[105]);
    // The source that knew what the block should be goes; then a new node takes its place.
    net.crash(1, 0);
    net.install_without(&[1]);
    net.replace_disk(1);
    net.restart(1);
    net.settle();
    assert_eq!(shown(&mut net, &held, 1), expected(&[(5, DAMAGED)]));
    assert_eq!(net.replica(1).scrub_status().lost_blocks, 1);
    // Equal with what they have lost: a scrub has nothing against them.
    let status = net.scrub(1);
    assert_eq!((status.unresolved, status.mismatches, status.damaged_now), (0, 0, 0), "{status:?}");
}
