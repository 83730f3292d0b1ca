//! What is encoded decodes to the same, and nothing else does harm.

use super::*;
use crate::limits::{MAX_CANDIDATES, MAX_KNOWN, MAX_MEMBERS, MAX_NUMBER, MAX_PAYLOAD, MAX_REQUESTS};
use crate::types::Note;
use proptest::collection::vec;
use proptest::prelude::*;
use sheep_types::{ConfigId, Incarnation, LogIndex, NodeId, Place};

fn member() -> impl Strategy<Value = Member> {
    (1u64.., any::<u64>()).prop_map(|(n, i)| Member { node: NodeId(n), incarnation: Incarnation(i) })
}

fn members(max: usize) -> impl Strategy<Value = Vec<Member>> {
    prop::collection::btree_map(1u64.., any::<u64>(), 1..=max).prop_map(|map| {
        map.into_iter().map(|(n, i)| Member { node: NodeId(n), incarnation: Incarnation(i) }).collect()
    })
}

fn config() -> impl Strategy<Value = ConfigId> + Clone {
    (0..=MAX_NUMBER, any::<u64>()).prop_map(|(number, n)| ConfigId { number, representative: NodeId(n) })
}

fn place() -> impl Strategy<Value = Place> {
    (config(), any::<u64>(), any::<u64>()).prop_map(|(term, index, checksum)| Place {
        term,
        index: LogIndex(index),
        checksum,
    })
}

fn slot() -> impl Strategy<Value = Slot> {
    let note = (0..=MAX_NUMBER, config(), place(), place(), any::<bool>(), any::<u32>());
    (note, vec(member(), 0..=MAX_CANDIDATES)).prop_map(
        |((written_rotation, term, durable, commit, promised, flags), c)| Slot {
            note: Note { written_rotation, term, durable, commit, promised, flags },
            candidates: c,
        },
    )
}

fn multicast() -> impl Strategy<Value = Packet> {
    let recovered = (config(), 0..=MAX_NUMBER, any::<u64>()).prop_map(|(config, seq, n)| Recovered {
        config,
        seq,
        origin: NodeId(n),
    });
    let payload = vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    (config(), 1..=MAX_NUMBER, any::<u64>(), prop::option::of(recovered), vec(payload, 0..20)).prop_map(
        |(config, seq, n, recovered, payloads)| {
            Packet::Multicast(Multicast { config, seq, origin: NodeId(n), recovered, payloads })
        },
    )
}

fn token() -> impl Strategy<Value = Packet> {
    let n = || 0..=1u64 << 40;
    (
        config(),
        (n(), n(), n(), n(), n()),
        any::<u64>(),
        any::<u32>(),
        vec(slot(), 0..10),
        vec(n(), 0..=MAX_REQUESTS),
    )
        .prop_map(|(config, (a, b, c, d, e), setter, sent, slots, requests)| {
            Packet::Token(Token {
                config,
                hop: a,
                rotation: a + b,
                seq: c + d,
                aru: c,
                aru_setter: NodeId(setter),
                sent,
                busy_until: e,
                recovering: b,
                recovered_seq: d,
                slots,
                requests,
            })
        })
}

/// What a row says: version, number, rejoins, weight, flags, last configuration, sets.
type Said = (u64, u64, u32, u16, [bool; 3], ConfigId, [u64; 3]);

fn join() -> impl Strategy<Value = Packet> {
    let said = (
        0..=MAX_NUMBER,
        0..=MAX_NUMBER,
        any::<u32>(),
        any::<u16>(),
        any::<[bool; 3]>(),
        config(),
        any::<[u64; 3]>(),
    );
    (
        config(),
        any::<u64>(),
        members(MAX_KNOWN).prop_flat_map(move |m| {
            let count = m.len();
            (Just(m), vec(said.clone(), count))
        }),
    )
        .prop_map(|(forming, layout, (names, said))| {
            let pick = |bits: u64| {
                names.iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0).map(|(_, m)| *m).collect()
            };
            let row =
                |(member, (version, number, rejoins, weight, flags, previous, sets)): (&Member, &Said)| Row {
                    member: *member,
                    version: *version,
                    number: *number,
                    rejoins: *rejoins,
                    weight: *weight,
                    ready: flags[0],
                    committing: flags[1],
                    primary: flags[2],
                    previous: *previous,
                    heard: pick(sets[0]),
                    accused: pick(sets[1]),
                    chosen: pick(sets[2]),
                };
            Packet::Join(Join {
                forming,
                layout,
                ring: RingSize { weight: 7, members: 2 },
                rows: names.iter().zip(&said).map(row).collect(),
            })
        })
}

fn commit() -> impl Strategy<Value = Packet> {
    let said = (any::<bool>(), config(), 0..1u64 << 40, 0..1u64 << 40, 0..=MAX_NUMBER);
    (0..=MAX_NUMBER, 1u8..=2, members(MAX_MEMBERS), vec(said, MAX_MEMBERS)).prop_map(
        |(number, round, names, said)| {
            let config = ConfigId { number, representative: names[0].node };
            let entry = |(member, (filled, previous, aru, more, join)): (
                &Member,
                &(bool, ConfigId, u64, u64, u64),
            )| CommitEntry {
                member: *member,
                weight: 3,
                filled: *filled || round == 2,
                previous: *previous,
                aru: *aru,
                high: aru + more,
                join: *join,
            };
            Packet::Commit(CommitToken {
                config,
                round,
                entries: names.iter().zip(&said).map(entry).collect(),
            })
        },
    )
}

fn probe() -> impl Strategy<Value = Packet> {
    (config(), any::<bool>(), any::<u16>(), any::<u32>(), 0..=MAX_NUMBER, any::<u64>(), vec(member(), 0..128))
        .prop_map(|(config, primary, weight, rejoins, number, layout, heard)| {
            let accused = heard.iter().copied().step_by(3).collect();
            Packet::Probe(Probe {
                config,
                primary,
                ring: RingSize { weight: 9, members: 3 },
                weight,
                rejoins,
                number,
                layout,
                heard,
                accused,
            })
        })
}

fn packet() -> impl Strategy<Value = Packet> {
    let wanted = config().prop_map(|config| Packet::Wanted(Wanted { config }));
    prop_oneof![multicast(), token(), join(), commit(), probe(), wanted, Just(Packet::Leaving)]
}

fn header() -> impl Strategy<Value = Header> {
    (any::<u128>(), member()).prop_map(|(c, sender)| Header { cluster: ClusterId(c), sender })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn packets_come_back(header in header(), packet in packet()) {
        let bytes = encode(header, &packet);
        prop_assert_eq!(decode_header(&bytes), Ok(header));
        prop_assert_eq!(decode(&bytes), Ok((header, packet)));
        prop_assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(Malformed));
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        prop_assert_eq!(decode(&longer), Err(Malformed));
    }

    #[test]
    fn what_decodes_encodes_to_the_same(header in header(), packet in packet(), at in any::<usize>(), byte: u8) {
        let mut bytes = encode(header, &packet).to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok((header, packet)) = decode(&bytes) {
            // But for the reserved field of the header.
            bytes[6..8].fill(0);
            prop_assert_eq!(&encode(header, &packet)[..], &bytes[..]);
        }
    }

    #[test]
    fn garbage_is_refused(bytes in vec(any::<u8>(), 0..2000), kind in 0u8..9) {
        let mut bytes = bytes;
        if bytes.len() > 8 {
            bytes[..6].copy_from_slice(&[b'S', b'H', b'R', b'G', 1, kind]);
        }
        let _ = decode(&bytes);
    }
}

#[test]
fn the_largest_packets_have_the_sizes_that_are_reckoned_with() {
    let m = |n: usize| Member { node: NodeId(n as u64 + 1), incarnation: Incarnation(1) };
    let header = Header { cluster: ClusterId(1), sender: m(0) };
    let id = ConfigId { number: 1, representative: NodeId(1) };
    let slot = Slot { note: Note::default(), candidates: vec![m(1); MAX_CANDIDATES] };
    let token = Token {
        config: id,
        hop: 1,
        rotation: 1,
        seq: 1,
        aru: 1,
        aru_setter: NodeId(0),
        sent: 0,
        busy_until: 0,
        recovering: 0,
        recovered_seq: 0,
        slots: vec![slot; MAX_MEMBERS],
        requests: vec![1; MAX_REQUESTS],
    };
    assert_eq!(encode(header, &Packet::Token(token)).len(), TOKEN_MAX);
    let recovered = Some(Recovered { config: id, seq: 1, origin: NodeId(1) });
    let payloads = vec![Bytes::from(vec![0; MAX_PAYLOAD])];
    let message = Multicast { config: id, seq: 1, origin: NodeId(1), recovered, payloads };
    assert_eq!(encode(header, &Packet::Multicast(message)).len(), MULTICAST_OVERHEAD + MAX_PAYLOAD);
}
