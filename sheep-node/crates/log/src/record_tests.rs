//! The durable file: what is read back, and what damage does.

use crate::chain::{Snapshot, VoterList};
use crate::codec::command_message;
use crate::entry::{Entry, genesis_body};
use crate::record::{RecordWriter, RecoverError, Recovered};
use bytes::Bytes;
use proptest::prelude::*;
use sheep_types::{ClusterId, CommandSeq, ConfigId, Incarnation, Member, NodeId, Place, Term};

fn term(number: u64) -> Term {
    ConfigId { number, representative: NodeId(1) }
}

fn command(previous: &Place, number: u64, text: &str) -> Entry {
    let origin = Member { node: NodeId(1), incarnation: Incarnation(1) };
    Entry::after(previous, term(number), command_message(origin, CommandSeq(1), text.as_bytes()))
}

fn genesis() -> Entry {
    Entry::after(&Place::default(), term(1), genesis_body(ClusterId(7), NodeId(1), b""))
}

/// A file in two writes, the second made when the first was durable: the length of the first, and all.
fn two_writes() -> (usize, Vec<u8>) {
    let mut writer = RecordWriter::default();
    let first = genesis();
    writer.number(3);
    writer.entry(&first);
    writer.commit(first.place);
    let second = command(&first.place, 2, "one");
    writer.entry(&second);
    let mut file = writer.flush().to_vec();
    let len = file.len();
    writer.synced = len as u64;
    writer.promise(term(4));
    // Replaces the second.
    let other = command(&first.place, 4, "another");
    writer.entry(&other);
    writer.entry(&command(&other.place, 4, "more"));
    file.extend_from_slice(&writer.flush());
    (len, file)
}

fn decode(file: &[u8]) -> Result<Recovered, RecoverError> {
    Recovered::decode(Bytes::copy_from_slice(file))
}

#[test]
fn everything_is_read_back() {
    let recovered = decode(&two_writes().1).unwrap();
    assert_eq!((recovered.number(), recovered.promised(), recovered.cluster()), (4, term(4), ClusterId(7)));
    assert_eq!((recovered.last().index.0, recovered.last().term), (3, term(4)));
    assert_eq!((recovered.commit(), recovered.voters()), (genesis().place, vec![NodeId(1)]));
    assert!(!recovered.torn());
    assert_eq!(decode(&[]).unwrap().cluster(), ClusterId(0));
}

#[test]
fn a_torn_tail_is_dropped_and_rot_is_not() {
    let (synced, file) = two_writes();
    for len in 0..file.len() {
        let recovered = decode(&file[..len]).unwrap();
        assert_eq!(recovered.torn(), recovered.len < len as u64, "cut at {len}");
        if len >= synced {
            assert!(recovered.last().index.0 >= 2, "cut at {len}");
        }
    }
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x10;
        match decode(&damaged) {
            // Padding means nothing.
            Ok(recovered) if !recovered.torn() => assert_eq!(recovered.last().index.0, 3, "damage at {at}"),
            // In the second write, which was never known to be durable.
            Ok(recovered) => assert!(at >= synced && recovered.len >= synced as u64, "damage at {at}"),
            Err(error) => {
                assert!(matches!(error, RecoverError::Rot { .. }), "damage at {at}: {error}");
                assert!(at < synced, "damage at {at}");
            }
        }
    }
}

#[test]
fn a_write_that_came_to_the_disk_out_of_order_is_torn_not_rotten() {
    let (synced, mut file) = two_writes();
    // The first record of the second write is missing, those after it are whole.
    file[synced..synced + 24].fill(0);
    let recovered = decode(&file).unwrap();
    assert!(recovered.torn());
    assert_eq!(recovered.len, synced as u64);
}

#[test]
fn a_snapshot_stands_for_what_was_before_it() {
    let first = genesis();
    let second = command(&first.place, 2, "one");
    let third = command(&second.place, 2, "two");
    let voters = VoterList { at: first.place, list: vec![NodeId(1), NodeId(2), NodeId(3)] };
    let data = Bytes::from_static(b"state");
    let snapshot = Snapshot::new(second.place, ClusterId(7), voters, data.clone());
    let mut writer = RecordWriter::default();
    writer.snapshot(first.place, &snapshot);
    writer.entry(&second);
    writer.entry(&third);
    let file = writer.flush();
    let recovered = decode(&file).unwrap();
    assert_eq!((recovered.last(), recovered.commit()), (third.place, second.place));
    assert_eq!((recovered.cluster(), recovered.voters().len()), (ClusterId(7), 3));
    assert_eq!(recovered.snapshot.unwrap().data, data);
    // Entries that do not lead to the snapshot's place are no log.
    let mut writer = RecordWriter::default();
    writer.snapshot(first.place, &snapshot);
    writer.entry(&command(&first.place, 2, "other"));
    assert!(matches!(decode(&writer.flush()), Err(RecoverError::Inconsistent { .. })));
}

#[test]
fn records_that_contradict_each_other_are_an_error() {
    let first = genesis();
    let second = command(&first.place, 2, "one");
    let gap = command(&second.place, 2, "two");
    let lower = command(&second.place, 1, "lower term");
    let wrong: [(&str, &[&Entry], Option<Place>); 4] = [
        ("gap", &[&first, &gap], None),
        ("term falls", &[&first, &second, &lower], None),
        ("unknown commit", &[&first], Some(second.place)),
        ("committed entry replaced", &[&first, &second], Some(second.place)),
    ];
    for (what, entries, commit) in wrong {
        let mut writer = RecordWriter::default();
        entries.iter().for_each(|e| writer.entry(e));
        if let Some(place) = commit {
            writer.commit(place);
            writer.entry(&command(&first.place, 3, "replacement"));
        }
        assert!(matches!(decode(&writer.flush()), Err(RecoverError::Inconsistent { .. })), "{what}");
    }
    assert!(matches!(decode(&two_writes().1[32..]), Ok(r) if r.torn()), "records name their offset");
}

proptest! {
    #[test]
    fn any_file_is_an_error_or_a_log(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn any_damage_is_an_error_or_a_shorter_log(
        holes in prop::collection::vec((0usize..400, any::<u8>()), 1..6),
    ) {
        let (_, mut file) = two_writes();
        for (at, byte) in holes {
            let len = file.len();
            file[at % len] = byte;
        }
        if let Ok(recovered) = decode(&file) {
            prop_assert!(recovered.last().index.0 <= 3);
        }
    }
}
