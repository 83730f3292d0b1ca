//! The handshake, option by option.

use crate::client::*;
use sheep_frontend::nbd::{
    BlockSizes, CloseReason, ExportEntry, ExportInfo, OpenError, OpenMode, ProtocolError, ServerEvent,
};

const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META: u32 = 4;
const UNSUP: u32 = ERR + 1;
const POLICY: u32 = ERR + 2;
const INVALID: u32 = ERR + 3;
const TLS_REQD: u32 = ERR + 5;
const UNKNOWN: u32 = ERR + 6;
const SHUTDOWN: u32 = ERR + 7;
const TOO_BIG: u32 = ERR + 9;

/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN, CACHE, FAST_ZERO.
const FLAGS: u16 = 1 | 4 | 8 | 0x20 | 0x40 | 0x100 | 0x400 | 0x800;
const DF: u16 = 0x80;

/// The type of the only reply sent.
fn only_reply_type(session: &mut Session, option: u32) -> u32 {
    let sent = session.sent();
    assert_eq!(sent[..12], option_reply(option, 0, b"")[..12]);
    let number = |at: usize| u32::from_be_bytes(core::array::from_fn(|i| sent[at + i]));
    assert_eq!(sent.len(), 20 + number(16) as usize);
    number(12)
}

#[track_caller]
fn expect_open(session: &mut Session, name: &str, mode: OpenMode) {
    assert!(!session.connection.wants_read(), "nothing is read until the export is open");
    assert_eq!(session.connection.poll_event(), Some(ServerEvent::OpenExport { name: name.into(), mode }));
    session.idle();
}

#[test]
fn unknown_client_flags_end_it() {
    let mut session = Session::new();
    session.feed(&client_flags(7));
    assert_eq!(session.ended(), CloseReason::Protocol(ProtocolError::UnknownClientFlags(7)));
    assert!(session.connection.is_finished());
}

#[test]
fn export_name_with_and_without_zeroes() {
    for (flags, zeroes) in [(3, 0), (2, 0), (1, 124), (0, 124)] {
        let mut session = Session::new();
        session.feed(&client_flags(flags));
        session.feed(&option(OPT_EXPORT_NAME, b"disk"));
        expect_open(&mut session, "disk", OpenMode::ExportName);
        session.connection.handle_opened(Ok(ExportInfo::new(MIB)));
        let want = cat(&[&MIB.to_be_bytes(), &FLAGS.to_be_bytes(), &vec![0; zeroes]]);
        assert_eq!(session.sent(), want, "client flags {flags}");
        session.feed(&request(0, FLUSH, 1, 0, 0));
        session.request();
    }
}

#[test]
fn export_name_refused_ends_it() {
    let mut session = Session::haggling();
    session.feed(&option(OPT_EXPORT_NAME, b""));
    expect_open(&mut session, "", OpenMode::ExportName);
    session.connection.handle_opened(Err(OpenError::NotFound));
    assert_eq!(session.sent(), b"");
    assert_eq!(session.ended(), CloseReason::Refused(OpenError::NotFound));

    for bad in [&[b'x'; 4097][..], b"a\0b", b"\xff"] {
        let mut session = Session::haggling();
        session.feed(&option(OPT_EXPORT_NAME, bad)[..17]);
        session.connection.handle_bytes(&option(OPT_EXPORT_NAME, bad)[17..]);
        assert_eq!(session.ended(), CloseReason::Protocol(ProtocolError::BadExportName));
    }
}

#[test]
fn other_options_need_fixed_newstyle() {
    let mut session = Session::new();
    session.feed(&client_flags(2));
    session.feed(&option(OPT_LIST, b""));
    assert_eq!(session.ended(), CloseReason::Protocol(ProtocolError::NotFixedNewstyle(OPT_LIST)));
}

#[test]
fn abort_is_acknowledged() {
    let mut session = Session::haggling();
    session.feed(&option(OPT_ABORT, b""));
    assert_eq!(session.ended(), CloseReason::Aborted);
    assert!(!session.connection.is_finished());
    assert_eq!(session.sent(), option_reply(OPT_ABORT, ACK, b""));
    assert!(session.connection.is_finished());
}

#[test]
fn list() {
    let mut session = Session::haggling();
    session.feed(&option(OPT_LIST, b""));
    assert_eq!(session.connection.poll_event(), Some(ServerEvent::ListExports));
    assert!(!session.connection.wants_read());
    let entry =
        |name: &str, description: &str| ExportEntry { name: name.into(), description: description.into() };
    session.connection.handle_export_list(Ok(vec![entry("a", ""), entry("bb", "the second")]));
    let want = cat(&[
        &option_reply(OPT_LIST, REP_SERVER, b"\0\0\0\x01a"),
        &option_reply(OPT_LIST, REP_SERVER, b"\0\0\0\x02bbthe second"),
        &option_reply(OPT_LIST, ACK, b""),
    ]);
    assert_eq!(session.sent(), want);

    session.feed(&option(OPT_LIST, b""));
    session.connection.poll_event();
    session.connection.handle_export_list(Err(OpenError::Denied("not you".into())));
    assert_eq!(session.sent(), option_reply(OPT_LIST, POLICY, b"not you"));

    session.feed(&option(OPT_LIST, b"x"));
    assert_eq!(only_reply_type(&mut session, OPT_LIST), INVALID);
    session.idle();
}

#[test]
fn info_and_go() {
    let blocks = BlockSizes { minimum: 512, preferred: 65536, maximum: 1 << 30 };
    let info = ExportInfo { description: "mine".into(), blocks, ..ExportInfo::new(MIB + 700) };
    let mut session = Session::haggling();
    for (opt, mode) in [(OPT_INFO, OpenMode::Info), (OPT_GO, OpenMode::Go)] {
        // EXPORT, NAME, DESCRIPTION, BLOCK_SIZE and one nobody knows.
        session.feed(&option(opt, &info_data("disk", &[0, 1, 2, 3, 999])));
        expect_open(&mut session, "disk", mode);
        session.connection.handle_opened(Ok(info.clone()));
        let sizes = [512u32, 65536, 32 << 20].map(u32::to_be_bytes).concat();
        let want = cat(&[
            // What exceeds the last whole sector is not announced.
            &option_reply(opt, REP_INFO, &cat(&[&[0, 0], &(MIB + 512).to_be_bytes(), &FLAGS.to_be_bytes()])),
            &option_reply(opt, REP_INFO, b"\0\x01disk"),
            &option_reply(opt, REP_INFO, b"\0\x02mine"),
            &option_reply(opt, REP_INFO, &cat(&[&[0, 3], &sizes])),
            &option_reply(opt, ACK, b""),
        ]);
        assert_eq!(session.sent(), want);
    }
    session.feed(&request(0, FLUSH, 1, 0, 0));
    session.request();
}

#[test]
fn flags_follow_the_export() {
    let flags = |info: ExportInfo, structured: bool| {
        let mut session = Session::haggling();
        if structured {
            session.feed(&option(OPT_STRUCTURED, b""));
            assert_eq!(session.sent(), option_reply(OPT_STRUCTURED, ACK, b""));
        }
        session.feed(&option(OPT_GO, &info_data("", &[])));
        session.connection.handle_opened(Ok(info));
        u16::from_be_bytes(session.sent()[30..32].try_into().unwrap())
    };
    let info = ExportInfo::new(MIB);
    assert_eq!(flags(info.clone(), false), FLAGS);
    assert_eq!(flags(info.clone(), true), FLAGS | DF);
    assert_eq!(flags(ExportInfo { read_only: true, ..info.clone() }, false), FLAGS | 2);
    assert_eq!(flags(ExportInfo { rotational: true, ..info.clone() }, false), FLAGS | 0x10);
    assert_eq!(flags(ExportInfo { can_multi_conn: false, ..info }, false), FLAGS & !0x100);
}

#[test]
fn go_refused_lets_the_client_try_again() {
    let mut session = Session::haggling();
    let errors = [
        (OpenError::NotFound, UNKNOWN),
        (OpenError::Denied("in use".into()), POLICY),
        (OpenError::TlsRequired, TLS_REQD),
        (OpenError::ShuttingDown, SHUTDOWN),
    ];
    for (error, kind) in errors {
        session.feed(&option(OPT_GO, &info_data("disk", &[])));
        expect_open(&mut session, "disk", OpenMode::Go);
        let text = error.to_string();
        session.connection.handle_opened(Err(error));
        assert_eq!(session.sent(), option_reply(OPT_GO, kind, text.as_bytes()));
    }
    session.feed(&option(OPT_GO, b"\0\0\0\x09disk\0\0"));
    assert_eq!(only_reply_type(&mut session, OPT_GO), INVALID);
    session.idle();
}

#[test]
fn meta_contexts() {
    let mut session = Session::haggling();
    let set = |queries: &[&str]| option(OPT_SET_META, &meta_data("disk", queries));
    let list = |queries: &[&str]| option(OPT_LIST_META, &meta_data("disk", queries));
    session.feed(&set(&["base:allocation"]));
    assert_eq!(only_reply_type(&mut session, OPT_SET_META), INVALID, "needs structured replies");
    session.feed(&option(OPT_STRUCTURED, b""));
    session.sent();

    let listed = option_reply(OPT_LIST_META, REP_META, b"\0\0\0\0base:allocation");
    let chosen = option_reply(OPT_SET_META, REP_META, b"\0\0\0\x01base:allocation");
    let since = option_reply(OPT_SET_META, REP_META, b"\0\0\0\x02sheepdog:changed-since:a");
    let cases: [(Vec<u8>, u32, &[u8]); 12] = [
        (set(&["sheepdog:changed-since:a"]), OPT_SET_META, &since),
        (set(&["sheepdog:changed-since:"]), OPT_SET_META, b""),
        (
            set(&["sheepdog:changed-since:a", "base:allocation"]),
            OPT_SET_META,
            &[&chosen[..], &since].concat(),
        ),
        (list(&[]), OPT_LIST_META, &listed),
        (list(&["base:"]), OPT_LIST_META, &listed),
        (list(&["base:allocation"]), OPT_LIST_META, &listed),
        (list(&["base:other", "qemu:"]), OPT_LIST_META, b""),
        (set(&[]), OPT_SET_META, b""),
        (set(&["base:"]), OPT_SET_META, b""),
        (set(&["qemu:dirty-bitmap:x"]), OPT_SET_META, b""),
        (set(&["x-a:b", "base:allocation", "base:allocation"]), OPT_SET_META, &chosen),
        (set(&["base:allocation"]), OPT_SET_META, &chosen),
    ];
    for (bytes, opt, context) in cases {
        session.feed(&bytes);
        assert_eq!(session.sent(), cat(&[context, &option_reply(opt, ACK, b"")]));
    }
    session.feed(&set(&["allocation"]));
    assert_eq!(only_reply_type(&mut session, OPT_SET_META), INVALID, "no namespace");
}

#[test]
fn contexts_hold_for_their_export_and_until_replaced() {
    // Each: selections made, export opened, whether block status works then.
    let cases: [(&[(&str, &str)], bool); 4] = [
        (&[("disk", "base:allocation")], true),
        (&[("other", "base:allocation")], false),
        (&[("disk", "base:allocation"), ("disk", "base:none")], false),
        (&[("disk", "base:allocation"), ("disk", "malformed")], false),
    ];
    for (selections, works) in cases {
        let mut session = Session::haggling();
        session.feed(&option(OPT_STRUCTURED, b""));
        for (export, query) in selections {
            session.feed(&option(OPT_SET_META, &meta_data(export, &[query])));
        }
        session.feed(&option(OPT_GO, &info_data("disk", &[])));
        session.connection.poll_event();
        session.connection.handle_opened(Ok(ExportInfo::new(MIB)));
        session.sent();
        session.feed(&request(0, STATUS, 5, 0, 512));
        assert_eq!(session.connection.poll_event().is_some(), works, "{selections:?}");
        assert_eq!(session.sent(), if works { vec![] } else { error_chunk(22, 5) });
    }
}

#[test]
fn refused_options() {
    let mut session = Session::haggling();
    let long = vec![0; 16385];
    let cases: [(u32, &[u8], u32); 8] = [
        (OPT_STARTTLS, b"", UNSUP),
        (OPT_STARTTLS, b"x", INVALID),
        (OPT_EXTENDED, b"", UNSUP),
        (4, b"", UNSUP),
        (0xffff_ffff, b"whatever", UNSUP),
        (OPT_STRUCTURED, b"x", INVALID),
        (OPT_LIST_META, &long, TOO_BIG),
        (77, &long, TOO_BIG),
    ];
    for (opt, data, kind) in cases {
        session.feed(&option(opt, data));
        assert_eq!(only_reply_type(&mut session, opt), kind, "option {opt}");
        session.idle();
    }
    session.feed(&option(OPT_ABORT, b""));
    assert_eq!(session.ended(), CloseReason::Aborted);
}

#[test]
fn absurd_lengths_and_magic_end_it() {
    let mut session = Session::haggling();
    session.feed(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff");
    let want = ProtocolError::OptionTooLong { option: OPT_GO, len: u32::MAX };
    assert_eq!(session.ended(), CloseReason::Protocol(want));

    let mut session = Session::haggling();
    session.feed(b"IHAVEOPS\0\0\0\x07\0\0\0\0");
    let magic = u64::from_be_bytes(*b"IHAVEOPS");
    assert_eq!(session.ended(), CloseReason::Protocol(ProtocolError::BadOptionMagic(magic)));
}

#[test]
fn endless_haggling_ends() {
    let mut session = Session::haggling();
    for _ in 0..1024 {
        session.feed(&option(OPT_STRUCTURED, b""));
        session.sent();
    }
    session.feed(&option(OPT_STRUCTURED, b""));
    assert_eq!(session.ended(), CloseReason::Protocol(ProtocolError::TooManyOptions));
}

#[test]
fn shutting_down_refuses_politely() {
    let mut session = Session::haggling();
    session.connection.handle_shutdown();
    for opt in [OPT_LIST, OPT_GO, OPT_STRUCTURED, 99] {
        session.feed(&option(opt, b""));
        assert_eq!(only_reply_type(&mut session, opt), SHUTDOWN);
    }
    session.feed(&option(OPT_EXPORT_NAME, b"disk"));
    assert_eq!(session.ended(), CloseReason::Refused(OpenError::ShuttingDown));
}
