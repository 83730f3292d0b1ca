//! In what the blocks of a copy differ from those of what it was cloned from.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what happened, for people")]

mod support;

use core::time::Duration;
use sheep_types::{Birth, ObjectId, Vid};
use sheep_wire::ExtentState::{self, Absent, Data, Zero};
use sheep_wire::{Body, Refusal, Reply, Request};
use support::volume::Held;
use support::{BLOCK, Net, block};

type Seen = (ExtentState, ExtentState, bool);

fn compare(net: &mut Net, held: &Held, from: u64, object: ObjectId, other: Option<(Vid, Birth)>) -> Reply {
    let birth = net.log.state.vid(object.vid()).unwrap().birth;
    net.call(from, held.generation, Request::Compare { object, birth, other })
}

/// State, state of the other one, and whether it is the same, of each block.
fn seen(reply: Reply) -> Vec<Seen> {
    let Reply::Compared(ranges) = reply else { panic!("{reply:?}") };
    let blocks = ranges.iter().flat_map(|range| {
        std::iter::repeat_n((range.state, range.other, range.same), range.len as usize / BLOCK)
    });
    let blocks: Vec<Seen> = blocks.collect();
    assert_eq!(blocks.len(), 16);
    blocks
}

/// Contents that are not `tag`'s but have its checksum: a multiple of the polynomial is added.
fn twin(tag: u64) -> Vec<u8> {
    let (bytes, sums) = block(tag);
    let mut twin = bytes.to_vec();
    for bit in (0..33).filter(|bit| 0x1_1edc_6f41_u64 >> (32 - bit) & 1 == 1) {
        twin[100 + bit / 8] ^= 1 << (bit % 8);
    }
    assert_ne!(twin, bytes);
    assert_eq!(crc32c::crc32c(&twin), sums[0], "the same checksum");
    twin
}

/// Blocks 0 to 7 are written, and a clone of the object changed. Everybody has everything.
fn prepared(net: &mut Net) -> (Held, Vid, Birth) {
    let mut held = Held::new(net, "a");
    let all = [1, 2, 3];
    let first = held.write(0, None, true, 1);
    held.send(net, &first, &all);
    let fill = held.fill(0, first.version, 1..8, 2);
    held.send(net, &fill, &all);
    let zero = held.zero(0, fill.version, 8..10);
    held.send(net, &zero, &all);
    held.flush(net, &all);
    let birth = held.birth;
    let parent = held.snapshot(net, "one");
    let mut child = held.write(0, None, true, 77);
    (child.base, child.offset) = (Some(parent), BLOCK as u32);
    held.send(net, &child, &all);
    // The same once more, elsewhere on the disk; zeros for data; data for zeros and for nothing.
    let same = held.fill(0, child.version, 2..3, 3);
    held.send(net, &same, &all);
    let zero = held.zero(0, same.version, 3..4);
    held.send(net, &zero, &all);
    let new = held.fill(0, zero.version, 9..12, 90);
    held.send(net, &new, &all);
    let mut twins = held.fill(0, new.version, 4..5, 5);
    let twin = twin(5);
    twins.body = Body::Data { crcs: vec![crc32c::crc32c(&twin)].into(), payload: twin.into() };
    held.send(net, &twins, &all);
    held.flush(net, &all);
    held.confirmed = held.sequence;
    (held, parent, birth)
}

fn expected() -> Vec<Seen> {
    let kept = (Data, Data, true);
    let changed = (Data, Data, false);
    let mut all = vec![kept, changed, kept, (Zero, Data, false), changed, kept, kept, kept];
    all.extend([(Zero, Zero, false), (Data, Zero, false), (Data, Absent, false), (Data, Absent, false)]);
    all.extend([(Absent, Absent, false); 4]);
    all
}

#[test]
fn what_is_shared_or_equal_is_the_same_and_equal_checksums_are_not_enough() {
    let mut net = Net::new(1, 3, 0, 3, 2);
    let (held, parent, birth) = prepared(&mut net);
    for node in 1..=3 {
        let reply = compare(&mut net, &held, node, held.object(0), Some((parent, birth)));
        assert_eq!(seen(reply), expected(), "node {node}");
    }
    let alone = seen(compare(&mut net, &held, 1, held.object(0), None));
    let states: Vec<Seen> = expected().into_iter().map(|(state, _, _)| (state, Absent, false)).collect();
    assert_eq!(alone, states);
}

/// A copy that recovery has made shares nothing with the other one.
#[test]
fn a_copy_that_was_made_anew_says_the_same() {
    let mut net = Net::new(2, 3, 0, 3, 2);
    let (held, parent, birth) = prepared(&mut net);
    net.crash(2, 1);
    net.install_without(&[2]);
    net.replace_disk(2);
    net.restart(2);
    net.run_for(Duration::from_secs(5));
    assert!(net.replica(2).is_current(held.object(0)));
    let reply = compare(&mut net, &held, 2, held.object(0), Some((parent, birth)));
    assert_eq!(seen(reply), expected());
}

#[test]
fn only_what_is_current_and_of_one_lineage_is_compared() {
    let mut net = Net::new(3, 3, 0, 3, 2);
    let (held, parent, birth) = prepared(&mut net);
    let refused = |refusal| Reply::Refused(refusal);
    let mut ask = |object: ObjectId, other| compare(&mut net, &held, 1, object, other);
    let object = held.object(0);
    assert_eq!(ask(object, Some((held.vid, held.birth))), refused(Refusal::Malformed), "with itself");
    assert_eq!(ask(object, Some((parent, Birth(birth.0 + 1)))), refused(Refusal::NoCopy));
    let missing = held.object(1);
    assert!(matches!(ask(missing, None), Reply::Refused(Refusal::NotCurrent | Refusal::NoCopy)));
    let other = Held::new(&mut net, "b");
    net.run_for(Duration::from_millis(20));
    let stranger = Some((other.vid, other.birth));
    assert_eq!(compare(&mut net, &held, 1, object, stranger), refused(Refusal::Malformed));
    let old = sheep_types::Generation(held.generation.0 - 1);
    let request = Request::Compare { object, birth: held.birth, other: None };
    assert_eq!(net.call(1, old, request), refused(Refusal::StaleGeneration));
}
