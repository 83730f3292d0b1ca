//! Every message comes back from its bytes; no bytes do harm.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use sheep_types::*;
use sheep_wire::*;

fn version() -> impl Strategy<Value = Version> {
    (any::<u64>(), any::<u64>()).prop_map(|(g, sequence)| Version { generation: Generation(g), sequence })
}

fn confirmed() -> impl Strategy<Value = Confirmed> {
    (any::<u64>(), vec(any::<u64>(), 0..9))
        .prop_map(|(upto, except)| Confirmed { upto, except: except.into() })
}

fn object() -> impl Strategy<Value = ObjectId> {
    any::<u64>().prop_map(ObjectId)
}

fn member() -> impl Strategy<Value = Member> {
    (any::<u64>(), any::<u64>()).prop_map(|(n, i)| Member { node: NodeId(n), incarnation: Incarnation(i) })
}

fn blocks() -> impl Strategy<Value = Body> {
    prop_oneof![
        vec(any::<(u8, u32)>(), 0..4).prop_map(|blocks| {
            let payload: Vec<u8> =
                blocks.iter().flat_map(|(fill, _)| vec![*fill; BLOCK_SIZE as usize]).collect();
            Body::Data { payload: payload.into(), crcs: blocks.iter().map(|(_, crc)| *crc).collect() }
        }),
        any::<u32>().prop_map(|len| Body::Zero { len }),
    ]
}

fn read_data() -> impl Strategy<Value = ReadData> {
    (version(), vec((any::<u32>(), 1..4u32, 0..4u8), 0..5)).prop_map(|(version, parts)| {
        let mut out = ReadData { version, ..ReadData::default() };
        for (offset, blocks, state) in parts {
            let state = [ExtentState::Absent, ExtentState::Zero, ExtentState::Data, ExtentState::Lost]
                [usize::from(state)];
            let len = blocks * BLOCK_SIZE;
            out.extents.push(Extent { offset, len, state });
            if state == ExtentState::Data {
                out.data.push(Bytes::from(vec![7; len as usize]));
            }
            if state.has_sums() {
                out.crcs.extend((0..blocks).map(|block| block ^ offset));
            }
        }
        out
    })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (
            object(),
            proptest::option::of(version()),
            version(),
            any::<(bool, bool, u32, u64, Option<u32>)>(),
            blocks(),
            confirmed()
        )
            .prop_map(
                |(object, previous, version, (create, durable, offset, birth, base), body, confirmed)| {
                    let birth = Birth(birth);
                    let write = WriteRequest {
                        object,
                        birth,
                        previous,
                        version,
                        create,
                        base: base.map(Vid),
                        offset,
                        body,
                        durable,
                        confirmed,
                    };
                    Request::Write(write)
                }
            ),
        (object(), any::<(u64, u32, u32)>()).prop_map(|(object, (birth, offset, len))| Request::Read {
            object,
            birth: Birth(birth),
            offset,
            len
        }),
        any::<u32>().prop_map(|vid| Request::Flush { vid: Vid(vid) }),
        (vec(any::<u32>(), 0..5), any::<(u32, u32)>(), vec(any::<(u32, u32, u32)>(), 0..5), object())
            .prop_map(|(vids, (first, last), keep, from)| {
                let vids = vids.into_iter().map(Vid).collect();
                let run = |(vid, first, last)| ObjectRun { vid: Vid(vid), first, last };
                Request::Sweep { vids, first, last, keep: keep.into_iter().map(run).collect(), from }
            }),
        (any::<u32>(), proptest::option::of(object()))
            .prop_map(|(vid, after)| Request::Settle { vid: Vid(vid), after }),
        (object(), any::<u64>(), member(), version()).prop_map(|(object, birth, source, version)| {
            Request::Equalize { object, birth: Birth(birth), source, version }
        }),
        (object(), version()).prop_map(|(object, version)| Request::Adopt { object, version }),
        (any::<u32>(), confirmed())
            .prop_map(|(vid, confirmed)| Request::Settled { vid: Vid(vid), confirmed }),
        vec(object(), 0..9).prop_map(|objects| Request::ClearPending { objects }),
        (object(), any::<u64>(), version()).prop_map(|(object, birth, version)| Request::Remove {
            object,
            birth: Birth(birth),
            version
        }),
        (vec(object(), 0..9), any::<u64>())
            .prop_map(|(objects, at)| Request::Standing { objects, at: Epoch(at) }),
        (any::<u64>(), proptest::option::of(object()))
            .prop_map(|(member, after)| Request::List { member: NodeId(member), after }),
        (object(), any::<u64>(), proptest::option::of(version()))
            .prop_map(|(object, birth, version)| Request::Digest { object, birth: Birth(birth), version }),
        (object(), any::<u64>(), version(), vec(any::<(u32, u32)>(), 0..9), any::<bool>()).prop_map(
            |(object, birth, version, ranges, urgent)| Request::Blocks {
                object,
                birth: Birth(birth),
                version,
                ranges,
                urgent
            }
        ),
        vec((object(), version()), 0..9).prop_map(|objects| Request::Secure { objects }),
        vec((object(), version()), 0..9).prop_map(|objects| Request::AdoptAll { objects }),
        (object(), any::<u64>(), proptest::option::of(any::<(u32, u64)>())).prop_map(
            |(object, birth, other)| {
                let other = other.map(|(vid, birth)| (Vid(vid), Birth(birth)));
                Request::Compare { object, birth: Birth(birth), other }
            }
        ),
        Just(Request::Ping),
        Just(Request::GiveWay),
    ]
}

fn state() -> impl Strategy<Value = ExtentState> {
    let all = [ExtentState::Absent, ExtentState::Zero, ExtentState::Data, ExtentState::Lost];
    proptest::sample::select(all.to_vec())
}

fn reply() -> impl Strategy<Value = Reply> {
    let hot = (object(), version(), any::<(bool, bool)>())
        .prop_map(|(object, version, (pending, current))| HotObject { object, version, pending, current });
    let standing = (0..5usize, proptest::option::of(version()), any::<(u64, bool, bool)>()).prop_map(
        |(kind, version, (epoch, hot, wounded))| {
            let kinds = [
                StandingKind::Live,
                StandingKind::Restarted,
                StandingKind::Never,
                StandingKind::Unknown,
                StandingKind::Busy,
            ];
            Standing { kind: kinds[kind], version, validated: Epoch(epoch), hot, wounded }
        },
    );
    let listed = (object(), any::<(u64, u64, bool, bool)>(), version()).prop_map(
        |(object, (birth, epoch, live, hot), version)| Listed {
            object,
            birth: Birth(birth),
            version,
            validated: Epoch(epoch),
            live,
            hot,
        },
    );
    prop_oneof![
        (any::<(u32, u32)>(), vec(any::<u32>().prop_map(Vid), 0..9), proptest::option::of(object()))
            .prop_map(|((dropped, left), needed, next)| Reply::Swept { dropped, left, needed, next }),
        Just(Reply::Done),
        proptest::option::of(version()).prop_map(Reply::Behind),
        read_data().prop_map(Reply::Read),
        (vec(hot, 0..9), any::<bool>()).prop_map(|(objects, more)| Reply::Hot(objects, more)),
        vec(standing, 0..9).prop_map(Reply::Standings),
        (vec(listed, 0..9), any::<bool>()).prop_map(|(objects, more)| Reply::Listing(objects, more)),
        (any::<(u64, bool, bool)>(), read_data()).prop_map(|((birth, pending, hot), contents)| {
            let ReadData { version, extents, crcs, .. } = contents;
            let birth = Birth(birth);
            Reply::Digest(Box::new(ObjectDigest { birth, pending, hot, version, extents, crcs }))
        }),
        vec(any::<bool>(), 0..9).prop_map(Reply::Which),
        vec((any::<u32>(), state(), state(), any::<bool>()), 0..9).prop_map(|ranges| {
            let range = |(len, state, other, same)| Compared { len, state, other, same };
            Reply::Compared(ranges.into_iter().map(range).collect())
        }),
        any::<u64>().prop_map(|epoch| Reply::Refused(Refusal::StaleEpoch(Epoch(epoch)))),
        proptest::sample::select(vec![
            Refusal::WrongIncarnation,
            Refusal::StaleGeneration,
            Refusal::NotWritable,
            Refusal::NotMember,
            Refusal::NotCurrent,
            Refusal::OtherVersion,
            Refusal::NoCopy,
            Refusal::NoSpace,
            Refusal::Damaged,
            Refusal::StoreFailed,
            Refusal::Busy,
            Refusal::Malformed,
        ])
        .prop_map(Reply::Refused),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![request().prop_map(Message::Request), reply().prop_map(Message::Reply)]
}

fn header() -> impl Strategy<Value = Header> {
    (any::<(u64, u128, u64, u16)>(), member(), any::<(u64, u64, u64)>()).prop_map(
        |((request, cluster, to, shard), from, (epoch, relies_on, generation))| Header {
            request,
            cluster: ClusterId(cluster),
            from,
            to: Incarnation(to),
            shard,
            epoch: Epoch(epoch),
            relies_on: LogIndex(relies_on),
            generation: Generation(generation),
        },
    )
}

fn decode(bytes: &[u8]) -> Result<(Header, Message), DecodeError> {
    let (fixed, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(DecodeError::Malformed("header"))?;
    let raw = decode_header(fixed)?;
    if rest.len() != raw.body_len + raw.payload_len {
        return Err(DecodeError::Malformed("length"));
    }
    let message = decode_message(&raw, &rest[..raw.body_len], Bytes::copy_from_slice(&rest[raw.body_len..]))?;
    Ok((raw.header, message))
}

fn flat(frame: &Frame) -> Vec<u8> {
    frame.payload.iter().fold(frame.head.to_vec(), |mut all, part| {
        all.extend_from_slice(part);
        all
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(header in header(), message in message()) {
        let bytes = flat(&encode(&header, &message));
        prop_assert_eq!(decode(&bytes), Ok((header, message)));
    }

    #[test]
    fn messages_of_one_encoder_do_not_touch_each_other(all in vec((header(), message()), 1..200), kept in 0usize..20) {
        let mut encoder = Encoder::default();
        let mut frames = std::collections::VecDeque::new();
        for (header, message) in &all {
            frames.push_back((encoder.encode(header, message), header, message));
            if frames.len() > kept {
                let (frame, header, message) = frames.pop_front().unwrap();
                prop_assert_eq!(decode(&flat(&frame)), Ok((*header, message.clone())));
            }
        }
        for (frame, header, message) in frames {
            prop_assert_eq!(decode(&flat(&frame)), Ok((*header, message.clone())));
        }
    }

    #[test]
    fn a_flipped_bit_before_the_payload_is_seen(header in header(), message in message(), at in any::<usize>()) {
        let frame = encode(&header, &message);
        let mut bytes = flat(&frame);
        let bit = at % (frame.head.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn garbage_is_an_error(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn garbage_behind_a_good_header_is_an_error_or_a_message(kind in any::<u8>(), body in vec(any::<u8>(), 0..200)) {
        // A peer that computes checksums over nonsense: no panic, whatever comes.
        let mut bytes = flat(&encode(
            &Header { request: 0, cluster: ClusterId(0), from: Member { node: NodeId(0), incarnation: Incarnation(0) },
                to: Incarnation(0), shard: 0, epoch: Epoch(0), relies_on: LogIndex(0), generation: Generation(0) },
            &Message::Request(Request::Ping)));
        bytes.truncate(HEADER_LEN);
        bytes[6] = kind;
        bytes[84..88].copy_from_slice(&(body.len() as u32 + 4).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        let _ = decode(&bytes);
    }
}

#[test]
fn the_header_stays_where_it_is() {
    let header = Header {
        request: 1,
        cluster: ClusterId(2),
        from: Member { node: NodeId(3), incarnation: Incarnation(4) },
        to: Incarnation(5),
        shard: 6,
        epoch: Epoch(7),
        relies_on: LogIndex(8),
        generation: Generation(9),
    };
    let frame = encode(&header, &Message::Request(Request::Ping));
    let golden = concat!(
        "5348445002000d00010000000000000002000000000000000000000000000000",
        "0300000000000000040000000000000005000000000000000700000000000000",
        "0800000000000000090000000000000006000000040000000000",
    );
    let hex: String = frame.head[..90].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, golden, "a change of the wire format needs a new version");
}
