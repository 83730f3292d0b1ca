//! The transmission phase, command by command: what the volume is asked, and the bytes of the reply.

use crate::client::*;
use bytes::Bytes;
use sheep_frontend::nbd::{ExportInfo, ServerLimits};
use sheep_frontend::{BlockExtent, ChangeExtent, ErrorKind, Extent, Op, Reply};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ESHUTDOWN: u32 = 108;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;

const DATA: u16 = 1;
const HOLE: u16 = 2;
const BLOCK_STATUS: u16 = 5;
const COOKIE: u64 = 0x0123_4567_89ab_cdef;

fn data(byte: u8, len: usize) -> Extent {
    Extent::Data(Bytes::from(vec![byte; len]))
}

/// Feeds a request, checks what is asked of the volume, answers, and returns the reply.
#[track_caller]
fn exchange(session: &mut Session, bytes: &[u8], want: &Op, reply: Reply) -> Vec<u8> {
    session.feed(bytes);
    let (handle, op) = session.request();
    assert_eq!(op, *want);
    session.idle();
    session.connection.complete(handle, reply);
    session.sent()
}

/// Feeds a request that must be answered without the volume.
#[track_caller]
fn refused(session: &mut Session, bytes: &[u8]) -> Vec<u8> {
    session.feed(bytes);
    assert_eq!(session.connection.poll_event(), None);
    session.sent()
}

#[test]
fn simple_read() {
    let mut session = Session::open(false);
    let reply = Reply::Read(vec![data(7, 512), Extent::Hole(1024), data(8, 512)]);
    let ask = request(0, READ, COOKIE, 512, 2048);
    let sent = exchange(&mut session, &ask, &Op::Read { offset: 512, len: 2048 }, reply);
    assert_eq!(sent, cat(&[&simple_reply(0, COOKIE), &[7; 512], &[0; 1024], &[8; 512]]));

    let ask = request(FUA, READ, COOKIE, MIB - 512, 512);
    let op = Op::Read { offset: MIB - 512, len: 512 };
    assert_eq!(exchange(&mut session, &ask, &op, Reply::Error(ErrorKind::Io)), simple_reply(5, COOKIE));
}

#[test]
fn structured_read_with_holes() {
    let mut session = Session::open(true);
    let extents = vec![data(1, 512), data(2, 512), Extent::Hole(512), Extent::Hole(1024), data(3, 512)];
    let (op, place) = (Op::Read { offset: 4096, len: 3072 }, |offset: u64| offset.to_be_bytes());
    let sent =
        exchange(&mut session, &request(0, READ, COOKIE, 4096, 3072), &op, Reply::Read(extents.clone()));
    let want = cat(&[
        &chunk(0, DATA, COOKIE, &cat(&[&place(4096), &[1; 512], &[2; 512]])),
        &chunk(0, HOLE, COOKIE, &cat(&[&place(5120), &1536u32.to_be_bytes()])),
        &chunk(1, DATA, COOKIE, &cat(&[&place(6656), &[3; 512]])),
    ]);
    assert_eq!(sent, want);

    let sent = exchange(&mut session, &request(DF, READ, COOKIE, 4096, 3072), &op, Reply::Read(extents));
    let contents = cat(&[&place(4096), &[1; 512], &[2; 512], &[0; 1536], &[3; 512]]);
    assert_eq!(sent, chunk(1, DATA, COOKIE, &contents));

    for flags in [0, DF] {
        let ask = request(flags, READ, COOKIE, 4096, 3072);
        let sent = exchange(&mut session, &ask, &op, Reply::Read(vec![Extent::Hole(3072)]));
        assert_eq!(sent, chunk(1, HOLE, COOKIE, &cat(&[&place(4096), &3072u32.to_be_bytes()])));
    }
    let ask = request(0, READ, COOKIE, 4096, 3072);
    let sent = exchange(&mut session, &ask, &op, Reply::Error(ErrorKind::Io));
    assert_eq!(sent, error_chunk(5, COOKIE));
}

#[test]
fn read_payload_is_not_copied() {
    let mut session = Session::open(true);
    session.feed(&request(0, READ, 1, 0, 65536));
    let (handle, _) = session.request();
    let contents = Bytes::from(vec![5; 65536]);
    session.connection.complete(handle, Reply::Read(vec![Extent::Data(contents.clone())]));
    let chunks: Vec<_> = session.connection.poll_transmit().collect();
    assert_eq!(chunks.iter().map(|chunk| chunk.len()).collect::<Vec<_>>(), [28, 65536]);
    assert_eq!(chunks[1].as_ptr(), contents.as_ptr());
}

#[test]
fn write() {
    for structured in [false, true] {
        let mut session = Session::open(structured);
        for (flags, fua) in [(0, false), (FUA, true)] {
            let ask = cat(&[&request(flags, WRITE, COOKIE, 1536, 1024), &[9; 1024]]);
            let op = Op::Write { offset: 1536, data: Bytes::from(vec![9; 1024]), fua };
            assert_eq!(exchange(&mut session, &ask, &op, Reply::Done), simple_reply(0, COOKIE));
            let full = Reply::Error(ErrorKind::NoSpace);
            assert_eq!(exchange(&mut session, &ask, &op, full), simple_reply(ENOSPC, COOKIE));
        }
    }
}

#[test]
fn write_payload_is_aligned_like_its_place() {
    let mut session = Session::open(false);
    for offset in [0, 4096, 512, 8192 + 1536] {
        session.feed(&cat(&[&request(0, WRITE, 1, offset, 8192), &[9; 8192]]));
        let (_, op) = session.request();
        let Op::Write { data, .. } = op else { panic!("{op:?}") };
        assert_eq!(data.as_ptr().addr() as u64 % 4096, offset % 4096);
    }
}

#[test]
fn flush_trim_zeroes_cache() {
    let mut session = Session::open(true);
    let zeroes =
        |fua, no_hole, fast_zero| Op::WriteZeroes { offset: 512, len: 1024, fua, no_hole, fast_zero };
    let cases = [
        (request(0, FLUSH, COOKIE, 0, 0), Op::Flush),
        (request(FUA, FLUSH, COOKIE, 0, 0), Op::Flush),
        (request(0, TRIM, COOKIE, 512, 1024), Op::Trim { offset: 512, len: 1024, fua: false }),
        (request(FUA, TRIM, COOKIE, 512, 1024), Op::Trim { offset: 512, len: 1024, fua: true }),
        (request(0, CACHE, COOKIE, 512, 1024), Op::Cache { offset: 512, len: 1024 }),
        (request(0, ZEROES, COOKIE, 512, 1024), zeroes(false, false, false)),
        (request(FUA, ZEROES, COOKIE, 512, 1024), zeroes(true, false, false)),
        (request(NO_HOLE, ZEROES, COOKIE, 512, 1024), zeroes(false, true, false)),
        (request(FAST_ZERO, ZEROES, COOKIE, 512, 1024), zeroes(false, false, true)),
    ];
    let errors = [
        (ErrorKind::NotPermitted, EPERM),
        (ErrorKind::Io, 5),
        (ErrorKind::Invalid, EINVAL),
        (ErrorKind::NoSpace, ENOSPC),
        (ErrorKind::TooLarge, EOVERFLOW),
        (ErrorKind::NotSupported, 95),
        (ErrorKind::ShuttingDown, ESHUTDOWN),
    ];
    for (ask, op) in cases {
        assert_eq!(exchange(&mut session, &ask, &op, Reply::Done), simple_reply(0, COOKIE));
        for (kind, errno) in errors {
            let sent = exchange(&mut session, &ask, &op, Reply::Error(kind));
            assert_eq!(sent, simple_reply(errno, COOKIE), "{op:?} {kind:?}");
        }
    }
}

#[test]
fn zeroing_may_exceed_the_longest_payload() {
    let len = 3 << 30;
    let mut session = Session::open_with(ServerLimits::default(), false, ExportInfo::new(4 << 30));
    let op = Op::WriteZeroes { offset: 4096, len: len.into(), fua: false, no_hole: false, fast_zero: false };
    let sent = exchange(&mut session, &request(0, ZEROES, COOKIE, 4096, len), &op, Reply::Done);
    assert_eq!(sent, simple_reply(0, COOKIE));
}

#[test]
fn block_status() {
    let mut session = Session::open(true);
    let extent = |len, hole, zero| BlockExtent { len, hole, zero };
    let extents = [
        extent(4096, false, false),
        extent(512, true, true),
        extent(1024, true, true),
        extent(512, false, true),
        extent(u64::MAX, true, false),
    ];
    let describe = |list: &[(u32, u32)]| {
        let numbers = list.iter().flat_map(|&(len, flags)| [len.to_be_bytes(), flags.to_be_bytes()].concat());
        chunk(1, BLOCK_STATUS, COOKIE, &[&1u32.to_be_bytes()[..], &numbers.collect::<Vec<_>>()].concat())
    };
    let ask = |flags, len| request(flags, STATUS, COOKIE, 8192, len);
    let op = |len, req_one| Op::BlockStatus { offset: 8192, len, req_one };
    let reply = |from: usize| Reply::BlockStatus(extents[from..].to_vec());
    let sent = exchange(&mut session, &ask(0, 8192), &op(8192, false), reply(0));
    assert_eq!(sent, describe(&[(4096, 0), (1536, 3), (512, 2), (2048, 1)]), "joined, and cut at the end");
    let sent = exchange(&mut session, &ask(REQ_ONE, 8192), &op(8192, true), reply(1));
    assert_eq!(sent, describe(&[(1536, 3)]));
    let sent = exchange(&mut session, &ask(REQ_ONE, 1024), &op(1024, true), reply(0));
    assert_eq!(sent, describe(&[(1024, 0)]));
    let sent = exchange(&mut session, &ask(0, 8192), &op(8192, false), Reply::Error(ErrorKind::Io));
    assert_eq!(sent, error_chunk(5, COOKIE));
}

/// One reply with a chunk for each context; the volume is asked one after the other.
#[test]
fn changes_since_a_snapshot_are_told_beside_allocation() {
    let since = "sheepdog:changed-since:tag";
    let extents = [(4096, false, false), (4096, true, false), (512, true, true), (9000, false, false)];
    let extents: Vec<ChangeExtent> =
        extents.iter().map(|&(len, changed, zero)| ChangeExtent { len, changed, zero }).collect();
    let part = |done, id: u32, list: &[(u32, u32)]| {
        let numbers = list.iter().flat_map(|&(len, flags)| [len.to_be_bytes(), flags.to_be_bytes()].concat());
        chunk(done, BLOCK_STATUS, COOKIE, &[&id.to_be_bytes()[..], &numbers.collect::<Vec<_>>()].concat())
    };
    let changes = part(1, 2, &[(4096, 0), (4096, 1), (512, 3), (7680, 0)]);
    let op = Op::ChangedSince { tag: "tag".into(), offset: 8192, len: 16384 };
    for queries in [&[since][..], &["base:allocation", since]] {
        let mut session = Session::select(queries);
        session.feed(&request(0, STATUS, COOKIE, 8192, 16384));
        let mut sent = Vec::new();
        if queries.len() == 2 {
            let (handle, asked) = session.request();
            assert_eq!(asked, Op::BlockStatus { offset: 8192, len: 16384, req_one: false });
            let extents = vec![BlockExtent { len: 16384, hole: false, zero: false }];
            session.connection.complete(handle, Reply::BlockStatus(extents));
            sent = part(0, 1, &[(16384, 0)]);
        }
        let (handle, asked) = session.request();
        assert_eq!(asked, op);
        session.connection.complete(handle, Reply::Changes(extents.clone()));
        assert_eq!(session.sent(), [&sent[..], &changes].concat());
        session.idle();
        // There is no such snapshot.
        let mut session = Session::select(&[since]);
        let ask = request(REQ_ONE, STATUS, COOKIE, 8192, 16384);
        assert_eq!(
            exchange(&mut session, &ask, &op, Reply::Error(ErrorKind::Invalid)),
            error_chunk(22, COOKIE)
        );
    }
}

#[test]
fn block_status_is_bounded() {
    let limits = ServerLimits { extents_max: 3, ..ServerLimits::default() };
    let mut session = Session::open_with(limits, true, ExportInfo::new(MIB));
    session.feed(&request(0, STATUS, 1, 0, 1 << 20));
    let (handle, _) = session.request();
    let extents = (0..2048).map(|i| BlockExtent { len: 512, hole: i % 2 == 0, zero: false }).collect();
    session.connection.complete(handle, Reply::BlockStatus(extents));
    assert_eq!(session.sent().len(), 20 + 4 + 3 * 8);
}

#[test]
fn ranges_flags_and_alignment_are_checked() {
    let mut session = Session::open(true);
    let end = MIB;
    // command, flags, offset, length, error
    let cases = [
        (READ, 0, end - 512, 1024, EINVAL),
        (READ, 0, end + 512, 512, EINVAL),
        (READ, 0, u64::MAX - 511, 1024, EINVAL),
        (READ, 0, 100, 512, EINVAL),
        (READ, 0, 0, 100, EINVAL),
        (READ, NO_HOLE, 0, 512, EINVAL),
        (READ, REQ_ONE, 0, 512, EINVAL),
        (READ, 0x8000, 0, 512, EINVAL),
        (READ, 0, 0, (32 << 20) + 512, EINVAL),
        (READ, DF, 0, (32 << 20) + 512, EOVERFLOW),
        (WRITE, 0, end - 512, 1024, ENOSPC),
        (WRITE, 0, u64::MAX - 511, 1024, ENOSPC),
        (WRITE, 0, 0, 100, EINVAL),
        (WRITE, DF, 0, 512, EINVAL),
        (WRITE, 0, 0, (32 << 20) + 512, EINVAL),
        (FLUSH, 0, 512, 0, EINVAL),
        (FLUSH, 0, 0, 512, EINVAL),
        (FLUSH, DF, 0, 0, EINVAL),
        (TRIM, 0, end - 512, 1024, EINVAL),
        (TRIM, 0, 1, 512, EINVAL),
        (TRIM, FAST_ZERO, 0, 512, EINVAL),
        (ZEROES, 0, end - 512, 1024, ENOSPC),
        (ZEROES, 0, 0, 1, EINVAL),
        (ZEROES, DF, 0, 512, EINVAL),
        (CACHE, 0, end - 512, 1024, EINVAL),
        (STATUS, 0, end - 512, 1024, EINVAL),
        (STATUS, 0, 0, 0, EINVAL),
        (STATUS, 0, 0, 100, EINVAL),
        (8, 0, 0, 512, EINVAL),
        (0xffff, 0, 0, u32::MAX, EINVAL),
    ];
    for (command, flags, offset, len, errno) in cases {
        let payload = vec![0; if command == WRITE { len as usize } else { 0 }];
        let sent = refused(&mut session, &cat(&[&request(flags, command, COOKIE, offset, len), &payload]));
        let structured = matches!(command, READ | STATUS);
        let want = if structured { error_chunk(errno, COOKIE) } else { simple_reply(errno, COOKIE) };
        assert_eq!(sent, want, "command {command} flags {flags} {offset}+{len}");
    }
    assert_eq!(session.connection.bytes_held(), 0);
}

#[test]
fn without_structured_replies_there_is_no_fragment_nor_status() {
    let mut session = Session::open(false);
    assert_eq!(refused(&mut session, &request(DF, READ, COOKIE, 0, 512)), simple_reply(EINVAL, COOKIE));
    assert_eq!(refused(&mut session, &request(0, STATUS, COOKIE, 0, 512)), simple_reply(EINVAL, COOKIE));
}

#[test]
fn empty_requests_succeed_at_once() {
    for structured in [false, true] {
        let mut session = Session::open(structured);
        for command in [WRITE, TRIM, ZEROES, CACHE] {
            let sent = refused(&mut session, &request(0, command, COOKIE, MIB, 0));
            assert_eq!(sent, simple_reply(0, COOKIE));
        }
        let sent = refused(&mut session, &request(0, READ, COOKIE, 0, 0));
        assert_eq!(sent, if structured { chunk(1, 0, COOKIE, b"") } else { simple_reply(0, COOKIE) });
    }
}

#[test]
fn read_only_exports_refuse_changes() {
    let info = ExportInfo { read_only: true, ..ExportInfo::new(MIB) };
    let mut session = Session::open_with(ServerLimits::default(), false, info);
    let payload = [0; 512];
    for (command, payload) in [(WRITE, &payload[..]), (TRIM, b""), (ZEROES, b"")] {
        let sent = refused(&mut session, &cat(&[&request(0, command, COOKIE, 0, 512), payload]));
        assert_eq!(sent, simple_reply(EPERM, COOKIE));
    }
    let sent = exchange(&mut session, &request(0, FLUSH, COOKIE, 0, 0), &Op::Flush, Reply::Done);
    assert_eq!(sent, simple_reply(0, COOKIE));
}

#[test]
fn resize_moves_the_end() {
    let mut session = Session::open(false);
    let ask = request(0, READ, COOKIE, MIB, 512);
    assert_eq!(refused(&mut session, &ask), simple_reply(EINVAL, COOKIE));
    session.connection.handle_resized(MIB + 1000);
    session.feed(&ask);
    let (handle, _) = session.request();
    session.connection.handle_resized(512);
    session.connection.complete(handle, Reply::Read(vec![data(1, 512)]));
    assert_eq!(session.sent(), cat(&[&simple_reply(0, COOKIE), &[1; 512]]));
    assert_eq!(refused(&mut session, &ask), simple_reply(EINVAL, COOKIE));
}

#[test]
fn shutting_down_refuses_new_requests_only() {
    let mut session = Session::open(false);
    session.feed(&request(0, FLUSH, 1, 0, 0));
    let (handle, _) = session.request();
    session.connection.handle_shutdown();
    let ask = cat(&[&request(0, WRITE, 2, 0, 512), &[0; 512]]);
    assert_eq!(refused(&mut session, &ask), simple_reply(ESHUTDOWN, 2));
    session.connection.complete(handle, Reply::Done);
    assert_eq!(session.sent(), simple_reply(0, 1));
}

#[test]
fn replies_may_come_in_any_order_and_cookies_repeat() {
    let mut session = Session::open(false);
    session.feed(&cat(&[
        &request(0, FLUSH, 1, 0, 0),
        &request(0, TRIM, 1, 0, 512),
        &request(0, FLUSH, 3, 0, 0),
    ]));
    let handles = [session.request().0, session.request().0, session.request().0];
    session.connection.complete(handles[2], Reply::Done);
    session.connection.complete(handles[0], Reply::Error(ErrorKind::Io));
    session.connection.complete(handles[1], Reply::Done);
    let want = cat(&[&simple_reply(0, 3), &simple_reply(5, 1), &simple_reply(0, 1)]);
    assert_eq!(session.sent(), want);
}

#[test]
#[should_panic(expected = "wrong length")]
fn short_contents_are_a_bug_of_the_volume() {
    let mut session = Session::open(false);
    session.feed(&request(0, READ, 1, 0, 1024));
    let (handle, _) = session.request();
    session.connection.complete(handle, Reply::Read(vec![data(1, 512)]));
}
