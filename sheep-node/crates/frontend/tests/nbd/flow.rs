//! Limits, back-pressure, and where bytes are received to.

use crate::client::*;
use sheep_frontend::nbd::{CloseReason, ExportEntry, ExportInfo, ReadTarget, ServerEvent, ServerLimits};
use sheep_frontend::{Extent, Op, Reply};

fn limited(requests_max: usize, bytes_max: usize) -> Session {
    let limits = ServerLimits { requests_max, bytes_max, ..ServerLimits::default() };
    Session::open_with(limits, false, ExportInfo::new(MIB))
}

#[test]
fn one_read_may_bring_many_requests() {
    let mut session = Session::open(false);
    let burst: Vec<u8> = (0..32).flat_map(|i| request(0, READ, i, i * 512, 512)).collect();
    let ReadTarget { payload, staging } = session.connection.read_target();
    assert!(payload.is_empty());
    staging[..burst.len()].copy_from_slice(&burst);
    session.connection.handle_received(burst.len());
    for i in 0..32 {
        assert_eq!(session.request().1, Op::Read { offset: i * 512, len: 512 });
    }
    session.idle();
}

#[test]
fn requests_are_bounded() {
    let mut session = limited(2, usize::MAX);
    let burst: Vec<u8> = (0..5).flat_map(|i| request(0, FLUSH, i, 0, 0)).collect();
    session.feed(&burst);
    let first = session.request().0;
    session.request();
    session.idle();
    assert!(!session.connection.wants_read());
    assert_eq!(session.connection.handle_bytes(b"more"), 0);
    session.connection.complete(first, Reply::Done);
    session.request();
    assert_eq!(session.connection.requests_in_flight(), 2);
    assert!(!session.connection.wants_read());
}

#[test]
fn bytes_are_bounded_until_the_socket_takes_them() {
    let mut session = limited(100, 10_000);
    let burst: Vec<u8> = (0..3).flat_map(|i| request(0, READ, i, 0, 4096)).collect();
    session.feed(&burst);
    let first = session.request().0;
    session.request();
    session.idle();
    assert!(!session.connection.wants_read());
    session.connection.complete(first, Reply::Read(vec![Extent::Hole(4096)]));
    assert_eq!(session.connection.poll_event(), None, "the reply is still here");
    assert_eq!(session.connection.bytes_held(), 4096 + 16 + 4096);
    session.connection.handle_transmitted(3000);
    session.request();
    assert!(session.connection.wants_read());
}

#[test]
fn one_long_request_is_always_admitted() {
    let mut session = limited(100, 1000);
    session.feed(&cat(&[&request(0, WRITE, 1, 0, 65536), &[1; 65536]]));
    session.request();
    assert!(!session.connection.wants_read());
}

#[test]
fn who_does_not_read_errors_is_not_read_from() {
    let mut session = limited(100, 1600);
    let mut fed = 0;
    let bad = request(0, 99, 1, 0, 0);
    while session.connection.wants_read() {
        fed += session.connection.handle_bytes(&bad);
    }
    assert_eq!(session.connection.bytes_held(), 1600);
    assert_eq!(fed, 100 * bad.len());
    session.sent();
    assert!(session.connection.wants_read());
}

#[test]
fn lists_do_not_pile_up() {
    let mut session = Session::with_limits(ServerLimits { bytes_max: 1000, ..ServerLimits::default() });
    session.feed(&client_flags(3));
    let name = "x".repeat(600);
    for _ in 0..2 {
        assert_eq!(session.connection.handle_bytes(&option(OPT_LIST, b"")), 16);
        assert_eq!(session.connection.poll_event(), Some(ServerEvent::ListExports));
        let entry = ExportEntry { name: name.clone(), description: String::new() };
        session.connection.handle_export_list(Ok(vec![entry]));
    }
    assert!(!session.connection.wants_read());
    session.sent();
    assert!(session.connection.wants_read());
}

#[test]
fn blocked_requests_are_done_after_the_end_of_bytes() {
    let mut session = limited(1, usize::MAX);
    session.feed(&cat(&[&request(0, FLUSH, 1, 0, 0), &request(0, FLUSH, 2, 0, 0)]));
    session.connection.handle_eof();
    for _ in 0..2 {
        let (handle, _) = session.request();
        session.connection.complete(handle, Reply::Done);
    }
    assert_eq!(session.ended(), CloseReason::PeerClosed { mid_message: false });
}

/// Reads as a driver would, with a socket that has everything ready; returns the sizes of its reads.
fn read_all(session: &mut Session, mut stream: &[u8]) -> Vec<usize> {
    let mut reads = Vec::new();
    while !stream.is_empty() {
        let ReadTarget { payload, staging } = session.connection.read_target();
        let mut n = 0;
        for part in [payload, staging] {
            let (now, later) = stream.split_at(part.len().min(stream.len()));
            part[..now.len()].copy_from_slice(now);
            (n, stream) = (n + now.len(), later);
        }
        assert!(n > 0);
        reads.push(n);
        session.connection.handle_received(n);
    }
    reads
}

#[test]
fn long_writes_go_straight_to_their_buffers() {
    let limits = ServerLimits { staging_bytes: 65536, ..ServerLimits::default() };
    let mut session = Session::open_with(limits, false, ExportInfo::new(8 * MIB));
    let write = |i: u64| cat(&[&request(0, WRITE, i, i * MIB, 1 << 20), &vec![i as u8; 1 << 20]]);
    let stream: Vec<u8> = (0..4).flat_map(write).chain(request(0, FLUSH, 9, 0, 0)).collect();
    // A full staging buffer first; then the payload and just the next header; then, as that is no long write, the
    // staging buffer again.
    let reads = read_all(&mut session, &stream);
    let (mib, header) = (1 << 20, 28);
    assert_eq!(reads, [65536, mib + header - 65536 + header, mib + header, mib + header, mib + header]);
    for i in 0..4 {
        let Op::Write { offset, data, .. } = session.request().1 else { panic!("not a write") };
        assert_eq!(offset, i * MIB);
        assert!(data.iter().all(|&byte| byte == i as u8) && data.len() == 1 << 20);
    }
    assert_eq!(session.request().1, Op::Flush);
    assert!(session.connection.read_target().staging.len() > 60_000);
}

#[test]
fn short_writes_come_many_to_a_read() {
    let mut session = Session::open(false);
    let write = |i: u64| cat(&[&request(0, WRITE, i, i * 4096, 4096), &[i as u8; 4096]]);
    let stream: Vec<u8> = (0..32).flat_map(write).collect();
    let reads = read_all(&mut session, &stream);
    assert!(reads.len() <= 3, "{reads:?}");
    for i in 0..32 {
        let Op::Write { offset, data, .. } = session.request().1 else { panic!("not a write") };
        assert_eq!((offset, &data[..]), (i * 4096, &[i as u8; 4096][..]));
    }
}
