//! How connections end.

use crate::client::*;
use sheep_frontend::Reply;
use sheep_frontend::nbd::{CloseReason, ExportInfo, ProtocolError};

#[test]
fn disconnect_waits_for_requests_in_flight() {
    let mut session = Session::open(false);
    session.feed(&cat(&[&request(0, FLUSH, 1, 0, 0), &request(0, DISC, 2, 0, 0), b"ignored"]));
    let (handle, _) = session.request();
    assert_eq!(session.ended(), CloseReason::Disconnected);
    assert!(!session.connection.is_finished());
    session.connection.complete(handle, Reply::Done);
    assert!(!session.connection.is_finished());
    assert_eq!(session.sent(), simple_reply(0, 1));
    assert!(session.connection.is_finished());
}

#[test]
fn bad_magic_ends_it_after_what_was_good() {
    let mut session = Session::open(false);
    let mut bad = request(0, FLUSH, 2, 0, 0);
    bad[3] ^= 1;
    session.feed(&cat(&[&request(0, FLUSH, 1, 0, 0), &bad]));
    let (handle, _) = session.request();
    assert_eq!(session.ended(), CloseReason::Protocol(ProtocolError::BadRequestMagic(0x2560_9512)));
    session.connection.complete(handle, Reply::Done);
    assert_eq!(session.sent(), simple_reply(0, 1));
    assert!(session.connection.is_finished());
}

#[test]
fn end_of_bytes() {
    let write = cat(&[&request(0, WRITE, 1, 0, 512), &[1; 511]]);
    let (refused_write, header) =
        (cat(&[&request(0, WRITE, 1, 1, 512), &[1; 511]]), request(0, FLUSH, 1, 0, 0));
    let cases: [(&[u8], bool); 4] =
        [(b"", false), (&header[..27], true), (&write, true), (&refused_write, true)];
    for (bytes, mid_message) in cases {
        let mut session = Session::open(false);
        session.feed(bytes);
        session.connection.handle_eof();
        assert_eq!(session.ended(), CloseReason::PeerClosed { mid_message });
        assert!(session.connection.is_finished());
        assert_eq!(session.connection.bytes_held(), 0);
    }
    let mut session = Session::haggling();
    session.connection.handle_eof();
    assert_eq!(session.ended(), CloseReason::PeerClosed { mid_message: false });
}

#[test]
fn what_came_before_the_end_is_done() {
    let mut session = Session::open(false);
    session.feed(&cat(&[&request(0, WRITE, 1, 0, 512), &[1; 512]]));
    session.connection.handle_eof();
    let (handle, _) = session.request();
    assert_eq!(session.ended(), CloseReason::PeerClosed { mid_message: false });
    session.connection.complete(handle, Reply::Done);
    assert_eq!(session.sent(), simple_reply(0, 1));
    assert!(session.connection.is_finished());
}

#[test]
fn client_gone_while_the_export_is_opened() {
    let mut session = Session::haggling();
    session.feed(&option(OPT_GO, &info_data("disk", &[])));
    assert!(session.connection.poll_event().is_some());
    session.connection.handle_eof();
    assert_eq!(session.connection.poll_event(), None, "the end comes after the answer");
    session.connection.handle_opened(Ok(ExportInfo::new(MIB)));
    assert_eq!(session.ended(), CloseReason::PeerClosed { mid_message: false });
}
