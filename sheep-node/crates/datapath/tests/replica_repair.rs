//! What recovery moves: only blocks that differ, of one version, and few messages where nothing differs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use core::time::Duration;
use sheep_datapath::Mutants;
use sheep_types::{ObjectId, Version};
use sheep_wire::{Message, Packet, Reply, Request};
use support::Net;
use support::volume::Held;

const BLOCK: u64 = support::BLOCK as u64;
/// Blocks of an object here.
const BLOCKS: u32 = 16;

fn fetched(net: &Net, node: u64) -> u64 {
    net.replica(node).progress().bytes_ever
}

fn version(net: &Net, node: u64, object: ObjectId) -> Version {
    net.replica(node).store().header(object).unwrap().version
}

/// An object with all blocks filled, flushed on three nodes.
fn filled(net: &mut Net, held: &mut Held, index: u32) -> Version {
    let create = held.write(index, None, true, 1);
    held.send(net, &create, &[1, 2, 3]);
    let fill = held.fill(index, create.version, 0..BLOCKS, 100);
    held.send(net, &fill, &[1, 2, 3]);
    held.flush(net, &[1, 2, 3]);
    fill.version
}

#[test]
fn a_node_that_was_away_fetches_only_what_differs() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::new(&mut net, "a");
    let full = filled(&mut net, &mut held, 0);
    let other = filled(&mut net, &mut held, 1);
    net.crash(3, 0);
    net.install_without(&[3]);
    net.run_for(Duration::from_millis(20));
    let one = held.fill(0, full, 5..6, 500);
    held.send(&mut net, &one, &[1, 2]);
    let zeros = held.zero(0, one.version, 9..12);
    held.send(&mut net, &zeros, &[1, 2]);
    let before = net.sent;
    net.restart(3);
    net.settle();
    assert_eq!(fetched(&net, 3), BLOCK, "one block of two whole objects differs");
    assert_eq!(version(&net, 3, held.object(0)), zeros.version);
    assert_eq!(version(&net, 3, held.object(1)), other);
    for index in [0, 1] {
        let found = held.blocks(&mut net, index, 3);
        assert_eq!(found, held.blocks(&mut net, index, 1), "object {index}");
    }
    assert_eq!(held.blocks(&mut net, 0, 3)[5], Some(500));
    println!("{} messages", net.sent - before);
}

#[test]
fn holes_cost_nothing_and_stay_holes() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::new(&mut net, "a");
    let create = held.write(0, None, true, 7);
    held.send(&mut net, &create, &[1, 2, 3]);
    let zeros = held.zero(0, create.version, 4..8);
    held.send(&mut net, &zeros, &[1, 2, 3]);
    held.flush(&mut net, &[1, 2, 3]);
    net.crash(3, 0);
    net.install_without(&[3]);
    net.replace_disk(3);
    net.restart(3);
    net.settle();
    assert_eq!(fetched(&net, 3), BLOCK);
    let mut want = vec![None; BLOCKS as usize];
    want[0] = Some(7);
    want[4..8].fill(Some(0));
    assert_eq!(held.blocks(&mut net, 0, 3), want);
}

#[test]
fn a_write_that_was_not_to_be_is_taken_back_without_fetching() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::new(&mut net, "a");
    let create = held.write(0, None, true, 7);
    held.send(&mut net, &create, &[1, 2, 3]);
    // Only one has it, and then is away while the others go on without it.
    let more = held.fill(0, create.version, 3..5, 90);
    held.send(&mut net, &more, &[1]);
    net.isolate(1);
    net.install_without(&[1]);
    held.locked(&mut net);
    net.run_for(Duration::from_millis(50));
    net.rejoin(1);
    net.come_back(1);
    net.settle();
    assert_eq!(version(&net, 1, held.object(0)), create.version);
    let mut want = vec![None; BLOCKS as usize];
    want[0] = Some(7);
    assert_eq!(held.blocks(&mut net, 0, 1), want);
    assert_eq!(fetched(&net, 1), 0, "what stays is here already");
}

#[test]
fn a_take_over_moves_blocks_and_not_objects() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::new(&mut net, "a");
    let full = filled(&mut net, &mut held, 0);
    let last = held.fill(0, full, 2..3, 70);
    held.send(&mut net, &last, &[1]);
    held.locked(&mut net);
    let source = net.log.member(1);
    let (object, birth) = (held.object(0), held.birth);
    for node in [2, 3] {
        let request = Request::Equalize { object, birth, source, version: last.version };
        assert_eq!(net.call(node, held.generation, request), Reply::Done);
        assert_eq!((fetched(&net, node), version(&net, node, object)), (BLOCK, last.version));
        assert_eq!(held.blocks(&mut net, 0, node)[2], Some(70));
    }
}

#[test]
fn progress_tells_what_is_left() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let mut held = Held::new(&mut net, "a");
    for index in 0..16 {
        filled(&mut net, &mut held, index);
    }
    net.crash(3, 0);
    net.install_without(&[3]);
    net.replace_disk(3);
    net.restart(3);
    let mut seen = 0;
    let object = u64::from(BLOCKS) * BLOCK;
    loop {
        net.step();
        let now = net.replica(3).progress();
        if now.complete && now.epoch == net.log.state.epoch() {
            assert_eq!((now.objects_left, now.bytes_left, now.objects_done), (0, 0, 16));
            assert_eq!((now.bytes_done, now.time_left), (16 * object, Some(Duration::ZERO)));
            break;
        }
        if now.objects_done > 8 && now.objects_left > 0 {
            seen += 1;
            // What is under way counts as done, in bytes.
            let most = 2 * now.objects_left * object;
            assert!(now.bytes_left >= now.objects_left * object && now.bytes_left <= most, "{now:?}");
            assert!(now.time_left.is_some_and(|left| left > Duration::ZERO), "{now:?}");
        }
    }
    assert!(seen > 0);
}

fn is_blocks(packet: &Packet) -> bool {
    matches!(packet.message, Message::Request(Request::Blocks { .. }))
}

/// A client goes on writing to the source while its blocks are fetched; then the source's node dies.
fn the_source_moves_on(mutants: Mutants) -> Result<(), String> {
    let mut net = Net::with_mutants(1, 3, 0, 3, 1, mutants);
    let mut held = Held::new(&mut net, "a");
    let full = filled(&mut net, &mut held, 0);
    net.crash(3, 0);
    net.install_without(&[3]);
    net.run_for(Duration::from_millis(20));
    let away = held.fill(0, full, 0..BLOCKS, 1000);
    held.send(&mut net, &away, &[1, 2]);
    held.flush(&mut net, &[1, 2]);
    net.hold = Some(is_blocks);
    net.restart(3);
    net.run_for(Duration::from_millis(50));
    if net.held.is_empty() {
        return Err("nothing is fetched".into());
    }
    // Two writes on their way: the third node does not have them yet, so nobody has been answered.
    let first = held.fill(0, away.version, 4..5, 2000);
    held.send(&mut net, &first, &[1, 2]);
    let second = held.fill(0, first.version, 8..10, 3000);
    held.send(&mut net, &second, &[1, 2]);
    net.release();
    for _ in 0..100 {
        net.run_for(Duration::from_millis(10));
        if net.replica(3).is_current(held.object(0)) {
            break;
        }
    }
    let found = version(&net, 3, held.object(0));
    let moved = fetched(&net, 3);
    held.send(&mut net, &first, &[3]);
    held.send(&mut net, &second, &[3]);
    let blocks = held.blocks(&mut net, 0, 3);
    if blocks != held.blocks(&mut net, 0, 1) {
        return Err(format!("not what the source has: {blocks:?}"));
    }
    if found != second.version {
        return Err(format!("at {found:?}"));
    }
    if moved > u64::from(BLOCKS + 3) * BLOCK {
        return Err(format!("{moved} bytes"));
    }
    // Another copy of that version must be the same: versions name contents.
    Ok(())
}

#[test]
fn a_fetch_is_of_one_version() {
    assert_eq!(the_source_moves_on(Mutants::default()), Ok(()));
}

/// The blocks are equal, the version is not: what a client writes next names the later version.
fn equal_blocks_of_another_version(mutants: Mutants) -> Result<(), String> {
    let mut net = Net::with_mutants(1, 3, 0, 3, 1, mutants);
    let mut held = Held::new(&mut net, "a");
    let full = filled(&mut net, &mut held, 0);
    net.crash(3, 0);
    net.install_without(&[3]);
    net.run_for(Duration::from_millis(20));
    let same = held.fill(0, full, 5..6, 105);
    held.send(&mut net, &same, &[1, 2]);
    net.restart(3);
    for _ in 0..100 {
        net.run_for(Duration::from_millis(10));
    }
    let next = held.fill(0, same.version, 6..7, 7);
    match net.call(3, held.generation, Request::Write(next)) {
        Reply::Done => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn equal_blocks_are_not_an_equal_version() {
    assert_eq!(equal_blocks_of_another_version(Mutants::default()), Ok(()));
}

#[cfg(feature = "mutants")]
#[test]
fn each_broken_rule_of_fetching_shows() {
    use sheep_datapath::Mutant;
    assert!(the_source_moves_on(Mutants::only(Mutant::PatchAnyVersion)).is_err());
    assert!(equal_blocks_of_another_version(Mutants::only(Mutant::EqualBlocksAreEqualVersions)).is_err());
}

/// So many objects of one block, flushed everywhere.
fn many(net: &mut Net, objects: u32) -> Held {
    let mut held = Held::with_objects(net, "a", u64::from(objects));
    for index in 0..objects {
        let mut create = held.write(index, None, true, u64::from(index) + 1);
        held.confirmed = held.sequence;
        create.confirmed.upto = held.sequence;
        held.send(net, &create, &[1, 2, 3]);
    }
    held.flush(net, &[1, 2, 3]);
    net.run_for(Duration::from_secs(1));
    held
}

fn commits(net: &Net, node: u64) -> u64 {
    net.replica(node).store().stats().commits
}

#[test]
fn a_thousand_unchanged_objects_cost_few_messages() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let held = many(&mut net, 1000);
    net.crash(2, 0);
    net.install_without(&[2]);
    net.settle();
    let before = net.sent;
    net.restart(2);
    net.settle();
    let (messages, commits) = (net.sent - before, commits(&net, 2));
    println!("a restarted node: {messages} messages, {commits} commits");
    assert_eq!((fetched(&net, 2), net.replica(2).progress().confirmed_ever), (0, 1000));
    // Three nodes list for each other: 6 lists, each with a request and a reply.
    assert!(messages <= 20, "{messages} messages");
    assert!(commits <= 20, "{commits} commits");
    assert_eq!(held.tag(&mut net, 999, 2), Ok(1000));
}

#[test]
fn a_thousand_objects_after_a_loss_of_power_cost_few_messages() {
    let mut net = Net::new(1, 3, 0, 3, 1);
    let held = many(&mut net, 1000);
    (1..=3).for_each(|node| net.crash(node, 0));
    net.install_without(&[1, 2, 3]);
    let before = net.sent;
    net.manual = true;
    (1..=3).for_each(|node| net.restart(node));
    net.manual = false;
    net.distribute();
    net.settle();
    let messages = net.sent - before;
    println!("all restarted: {messages} messages, {} commits", commits(&net, 2));
    assert_eq!((1..=3).map(|node| fetched(&net, node)).sum::<u64>(), 0);
    assert!(messages <= 400, "{messages} messages");
    for node in 1..=3 {
        assert_eq!(held.tag(&mut net, 999, node), Ok(1000));
    }
}

/// A new node gets a snapshot's object and the one that goes on from it: on its disk they share what they have in common, as
/// where they grew.
#[test]
fn what_snapshots_share_is_shared_by_new_copies_too() {
    let mut net = Net::new(5, 1, 0, 2, 1);
    let mut held = Held::new(&mut net, "a");
    let full: Vec<Version> = (0..6).map(|index| filled_on(&mut net, &mut held, index)).collect();
    let parent = held.snapshot(&mut net, "one");
    for (index, _) in (0..6).zip(&full) {
        let mut child = held.write(index, None, true, 900);
        child.base = Some(parent);
        held.send(&mut net, &child, &[1]);
    }
    held.flush(&mut net, &[1]);
    net.add(2);
    net.settle();
    for index in 0..6 {
        let here = held.blocks(&mut net, index, 2);
        assert_eq!(here, held.blocks(&mut net, index, 1), "object {index}");
        assert_eq!((here[0], here[1]), (Some(900), Some(101)));
        assert_eq!(version(&net, 2, held.object(index)), version(&net, 1, held.object(index)));
    }
    let used = |node| net.replica(node).store().usage().used;
    // Six objects whole, and six blocks; not twelve objects.
    assert!(used(2) < used(1) + 16 * BLOCK, "{} bytes, where they grew {}", used(2), used(1));
    // One of them is written: the other one stays.
    let mut old = held.clone();
    (old.vid, old.birth) = (parent, net.log.state.vid(parent).unwrap().birth);
    let before = old.blocks(&mut net, 0, 2);
    let last = version(&net, 1, held.object(0));
    let write = held.fill(0, last, 1..9, 700);
    held.send(&mut net, &write, &[1, 2]);
    assert_eq!(old.blocks(&mut net, 0, 2), before);
    assert_eq!(held.blocks(&mut net, 0, 2)[1], Some(700));
}

/// An object with all blocks filled, flushed on node 1.
fn filled_on(net: &mut Net, held: &mut Held, index: u32) -> Version {
    let create = held.write(index, None, true, 1);
    held.send(net, &create, &[1]);
    let fill = held.fill(index, create.version, 0..BLOCKS, 100);
    held.send(net, &fill, &[1]);
    held.flush(net, &[1]);
    fill.version
}
