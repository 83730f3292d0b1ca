//! However the client's bytes are cut into reads, the same happens.

use crate::client::*;
use bytes::Bytes;
use proptest::prelude::*;
use sheep_frontend::nbd::{Connection, ExportEntry, ExportInfo, OpenError, ServerEvent, ServerLimits};
use sheep_frontend::{BlockExtent, BufferPool, ErrorKind, Extent, Op, Reply};

/// One message of a client that is mostly reasonable.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![8 => (0..64u64).prop_map(|i| i * 512), 1 => Just(MIB - 512), 1 => any::<u64>()];
    let len = prop_oneof![8 => (0..8u32).prop_map(|i| i * 512), 1 => 0..70_000u32];
    let flags = prop_oneof![6 => Just(0u16), 2 => 0..32u16];
    (0..9u16, flags, any::<u64>(), offset, len).prop_map(|(command, flags, cookie, offset, len)| {
        // DISC would end most streams early.
        let command = if command == DISC { WRITE } else { command };
        let payload = if command == WRITE { len as usize } else { 0 };
        let mut bytes = request(flags, command, cookie, offset, len);
        bytes.extend((0..payload).map(|i| (i * 7) as u8 ^ cookie as u8));
        bytes
    })
}

fn haggling() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("disk"), Just("none"), Just("")];
    let one = prop_oneof![
        Just(option(OPT_STRUCTURED, b"")),
        Just(option(OPT_LIST, b"")),
        Just(option(OPT_STARTTLS, b"")),
        Just(option(OPT_LIST_META, &vec![1; 20_000])),
        Just(option(OPT_SET_META, &meta_data("disk", &["base:allocation"]))),
        Just(option(OPT_LIST_META, &meta_data("disk", &[]))),
        name.prop_map(|name| option(OPT_INFO, &info_data(name, &[0, 1, 2, 3]))),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(opt, data)| option(opt % 20 + 4, &data)),
    ];
    prop::collection::vec(one, 0..6).prop_map(|options| options.concat())
}

/// A whole session: options, requests, and a clean or unclean end.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let go =
        prop_oneof![Just(option(OPT_GO, &info_data("disk", &[]))), Just(option(OPT_EXPORT_NAME, b"disk"))];
    let end =
        prop_oneof![Just(vec![]), Just(request(0, DISC, 0, 0, 0)), Just(vec![0xee; 40]), Just(vec![0x25])];
    (0..4u32, haggling(), go, prop::collection::vec(message(), 0..20), end).prop_map(
        |(flags, haggling, go, messages, end)| {
            let flags = if flags == 0 { 3 } else { flags };
            cat(&[&client_flags(flags), &haggling, &go, &messages.concat(), &end])
        },
    )
}

fn answer(op: &Op) -> Reply {
    match op {
        Op::Read { offset, .. } if offset % 4096 == 3584 => Reply::Error(ErrorKind::Io),
        Op::Read { offset, len } if offset % 4096 == 512 => Reply::Read(vec![Extent::Hole(*len)]),
        Op::Read { len, .. } => {
            Reply::Read(vec![Extent::Hole(512), Extent::Data(Bytes::from(vec![3; *len as usize - 512]))])
        }
        Op::BlockStatus { .. } => Reply::BlockStatus(vec![BlockExtent { len: 1024, hole: true, zero: true }]),
        _ => Reply::Done,
    }
}

/// What happened, and what was sent.
type Outcome = (Vec<ServerEvent>, Vec<u8>);

fn serve(connection: &mut Connection, outcome: &mut Outcome) {
    while let Some(event) = connection.poll_event() {
        outcome.0.push(event.clone());
        match event {
            ServerEvent::ListExports => {
                let entry = ExportEntry { name: "disk".into(), description: String::new() };
                connection.handle_export_list(Ok(vec![entry]));
            }
            ServerEvent::OpenExport { name, .. } => {
                let result = if name == "disk" { Ok(ExportInfo::new(MIB)) } else { Err(OpenError::NotFound) };
                connection.handle_opened(result);
            }
            ServerEvent::Request(request) => connection.complete(request.handle, answer(&request.op)),
            ServerEvent::Disconnect(_) => {}
        }
    }
    let sent: Vec<u8> = connection.poll_transmit().flat_map(|chunk| chunk.to_vec()).collect();
    connection.handle_transmitted(sent.len());
    outcome.1.extend(sent);
}

fn without_handles(events: &[ServerEvent]) -> Vec<String> {
    let text = |event: &ServerEvent| match event {
        ServerEvent::Request(request) => format!("{:?}", request.op),
        other => format!("{other:?}"),
    };
    events.iter().map(text).collect()
}

/// Runs a session whose bytes arrive in pieces of the given sizes, again and again.
fn run(stream: &[u8], sizes: &[usize], limits: ServerLimits) -> Outcome {
    let mut connection = Connection::new(limits, BufferPool::new(1 << 20));
    let mut outcome = (Vec::new(), Vec::new());
    let mut rest = stream;
    for &size in sizes.iter().cycle() {
        serve(&mut connection, &mut outcome);
        if rest.is_empty() || connection.is_finished() {
            break;
        }
        let taken = connection.handle_bytes(&rest[..size.min(rest.len())]);
        rest = &rest[taken..];
    }
    connection.handle_eof();
    serve(&mut connection, &mut outcome);
    assert!(connection.is_finished());
    outcome
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// With a single request in flight even the order of replies is determined.
    #[test]
    fn any_split_gives_the_same_bytes(
        stream in stream(),
        sizes in prop::collection::vec(prop_oneof![1..5usize, 1..100usize, 1..100_000usize], 1..20),
    ) {
        let limits = ServerLimits { requests_max: 1, ..ServerLimits::default() };
        let whole = run(&stream, &[usize::MAX], limits);
        prop_assert!(whole.1.starts_with(&greeting()));
        prop_assert_eq!(&whole, &run(&stream, &sizes, limits));
        prop_assert_eq!(&whole, &run(&stream, &[1], limits));
    }

    /// With many, errors may overtake, but the requests are the same, and so is the amount of replies. (Handles are
    /// not: they name places in a table that fills and empties differently.)
    #[test]
    fn any_split_gives_the_same_requests(stream in stream(), sizes in prop::collection::vec(1..3000usize, 1..20)) {
        let many = run(&stream, &[usize::MAX], ServerLimits::default());
        let split = run(&stream, &sizes, ServerLimits::default());
        prop_assert_eq!(without_handles(&many.0), without_handles(&split.0));
        prop_assert_eq!(many.1.len(), split.1.len());
    }

    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..2000), sizes in prop::collection::vec(1..500usize, 1..5)) {
        let outcome = run(&bytes, &sizes, ServerLimits::default());
        prop_assert!(matches!(outcome.0.last(), Some(ServerEvent::Disconnect(_))));
    }
}

#[test]
fn the_generated_streams_reach_the_commands() {
    // Guards the tests above against becoming empty: a fixed stream must pass through every phase.
    let stream = cat(&[
        &client_flags(3),
        &option(OPT_STRUCTURED, b""),
        &option(OPT_GO, &info_data("disk", &[])),
        &request(0, WRITE, 1, 0, 512),
        &[1; 512],
        &request(0, READ, 2, 0, 1024),
        &request(0, DISC, 3, 0, 0),
    ]);
    let (events, sent) = run(&stream, &[1], ServerLimits::default());
    assert_eq!(events.len(), 4);
    assert!(sent.len() > 100 + 1024 / 2);
}
