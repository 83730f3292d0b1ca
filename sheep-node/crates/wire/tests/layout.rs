//! The layout of each message stays as it is under one version of the wire format.

use bytes::Bytes;
use sheep_types::*;
use sheep_wire::*;

const OBJECT: ObjectId = ObjectId(0x0102_0304_0506_0708);
const BIRTH: Birth = Birth(0x1112_1314_1516_1718);

fn version(sequence: u64) -> Version {
    Version { generation: Generation(0x2122_2324), sequence }
}

fn requests() -> Vec<Request> {
    let confirmed = || Confirmed { upto: 77, except: vec![70, 75].into() };
    let source = Member { node: NodeId(5), incarnation: Incarnation(6) };
    let write = |body| WriteRequest {
        object: OBJECT,
        birth: BIRTH,
        previous: Some(version(4)),
        version: version(5),
        create: true,
        base: Some(Vid(9)),
        offset: 8192,
        body,
        durable: false,
        confirmed: confirmed(),
    };
    let payload = Bytes::from(vec![3; BLOCK_SIZE as usize]);
    let run = ObjectRun { vid: Vid(1), first: 2, last: 3 };
    vec![
        Request::Write(write(Body::Data { payload, crcs: vec![0x3132_3334].into() })),
        Request::Write(write(Body::Zero { len: 4096 })),
        Request::Read { object: OBJECT, birth: BIRTH, offset: 4096, len: 512 },
        Request::Flush { vid: Vid(3) },
        Request::Settle { vid: Vid(3), after: Some(OBJECT) },
        Request::Equalize { object: OBJECT, birth: BIRTH, source, version: version(5) },
        Request::Adopt { object: OBJECT, version: version(5) },
        Request::Settled { vid: Vid(3), confirmed: confirmed() },
        Request::ClearPending { objects: vec![OBJECT] },
        Request::Remove { object: OBJECT, birth: BIRTH, version: version(5) },
        Request::Standing { objects: vec![OBJECT], at: Epoch(4) },
        Request::List { member: NodeId(5), after: None },
        Request::Digest { object: OBJECT, birth: BIRTH, version: None },
        Request::Ping,
        Request::Blocks {
            object: OBJECT,
            birth: BIRTH,
            version: version(5),
            ranges: vec![(0, 4096)],
            urgent: true,
        },
        Request::Secure { objects: vec![(OBJECT, version(5))] },
        Request::AdoptAll { objects: vec![(OBJECT, version(5))] },
        Request::GiveWay,
        Request::Compare { object: OBJECT, birth: BIRTH, other: Some((Vid(7), Birth(8))) },
        Request::Sweep { vids: vec![Vid(1), Vid(2)], first: 3, last: 4, keep: vec![run], from: OBJECT },
    ]
}

fn replies() -> Vec<Reply> {
    let data = Bytes::from(vec![3; BLOCK_SIZE as usize]);
    let extent = |block: u32, state| Extent { offset: block * BLOCK_SIZE, len: BLOCK_SIZE, state };
    let extents = vec![
        extent(0, ExtentState::Data),
        extent(1, ExtentState::Zero),
        extent(2, ExtentState::Absent),
        extent(3, ExtentState::Lost),
    ];
    let crcs = vec![0x4142_4344, 0x5152_5354];
    let digest = ObjectDigest {
        birth: BIRTH,
        pending: true,
        hot: false,
        version: version(5),
        extents: extents.clone(),
        crcs: crcs.clone(),
    };
    let kinds = [
        StandingKind::Live,
        StandingKind::Restarted,
        StandingKind::Never,
        StandingKind::Unknown,
        StandingKind::Busy,
    ];
    let standing =
        |kind| Standing { kind, version: Some(version(5)), validated: Epoch(6), hot: true, wounded: false };
    let hot = HotObject { object: OBJECT, version: version(5), pending: true, current: false };
    let listed = Listed {
        object: OBJECT,
        birth: BIRTH,
        version: version(5),
        validated: Epoch(6),
        live: true,
        hot: false,
    };
    let (state, other) = (ExtentState::Data, ExtentState::Zero);
    let mut all = vec![
        Reply::Done,
        Reply::Behind(Some(version(5))),
        Reply::Read(ReadData { version: version(5), extents, crcs, data: vec![data] }),
        Reply::Hot(vec![hot], true),
        Reply::Standings(kinds.map(standing).to_vec()),
        Reply::Listing(vec![listed], false),
        Reply::Digest(Box::new(digest)),
        Reply::Which(vec![true, false]),
        Reply::Compared(vec![Compared { len: BLOCK_SIZE, state, other, same: false }]),
        Reply::Swept { dropped: 1, left: 2, needed: vec![Vid(3)], next: Some(OBJECT) },
    ];
    let refusals = [
        Refusal::StaleEpoch(Epoch(9)),
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
        Refusal::BaseLost,
    ];
    all.extend(refusals.map(Reply::Refused));
    all
}

/// Sums of the bytes of one message of each kind, in the order of the kinds. Who changes one takes a new version, changes
/// `docs/internals/wire-format.md`, and then what stands here.
#[test]
fn a_layout_that_changes_needs_a_new_version() {
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
    let requests = requests().into_iter().map(Message::Request);
    let all: Vec<Message> = requests.chain(replies().into_iter().map(Message::Reply)).collect();
    let sums: Vec<String> = all
        .iter()
        .map(|message| {
            let frame = encode(&header, message);
            // What is checked within is not summed once more: sums that contain their own sums are all alike.
            let (fixed, body) = frame.head.split_at(HEADER_LEN);
            let body = &body[..body.len().saturating_sub(4)];
            format!("{:02x}:{:08x}", fixed[6], crc32c::crc32c(body))
        })
        .collect();
    let version = u16::from_le_bytes(encode(&header, &all[0]).head[4..6].try_into().unwrap());
    assert_eq!((version, sums.join(" ").as_str()), (2, SUMS));
}

const SUMS: &str = "\
     01:1c0acf6a 01:f5f26a78 02:488bfc8e 03:2a45c2fe 04:b3c28b95 05:6add8485 06:77705eb2 07:6a0f992d 08:b0c0d1fb \
     09:a03af91c 0a:0098b02a 0b:91147cd8 0c:eef8d7f8 0d:00000000 0e:e83ca7f8 0f:a657fe01 10:a657fe01 11:00000000 \
     12:60471650 13:420e33e6 80:00000000 81:5c5decc3 82:0dc4aab6 83:200fa1ec 84:b0bd8294 85:f9420058 86:a7afbb1b \
     88:9f04443e 89:a161bb7d 8a:79ec7de9 87:b0e2115e 87:4fdbbeeb 87:5674b2c2 87:a24a648a 87:652aaa90 87:91147cd8 \
     87:88bb70f1 87:7c85a6b9 87:03969a34 87:f7a84c7c 87:ee074055 87:1a39961d 87:dd595807 87:29678e4f";
