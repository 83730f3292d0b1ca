//! The other side: messages as a client writes and sees them, with numbers straight from the specification.

use sheep_frontend::nbd::{CloseReason, Connection, ExportInfo, OpenMode, ServerEvent, ServerLimits};
use sheep_frontend::{BufferPool, Op, Request, RequestHandle};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED: u32 = 8;
pub(crate) const OPT_LIST_META: u32 = 9;
pub(crate) const OPT_SET_META: u32 = 10;
pub(crate) const OPT_EXTENDED: u32 = 11;

pub(crate) const ACK: u32 = 1;
pub(crate) const ERR: u32 = 0x8000_0000;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZEROES: u16 = 6;
pub(crate) const STATUS: u16 = 7;

/// Concatenation.
pub(crate) fn cat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub(crate) fn greeting() -> Vec<u8> {
    b"NBDMAGICIHAVEOPT\x00\x03".to_vec()
}

pub(crate) fn client_flags(flags: u32) -> Vec<u8> {
    flags.to_be_bytes().to_vec()
}

/// An option as sent by the client.
pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    cat(&[b"IHAVEOPT", &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data])
}

/// A reply to an option.
pub(crate) fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    cat(&[&magic, &option.to_be_bytes(), &kind.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data])
}

/// Length and text.
pub(crate) fn string(text: &str) -> Vec<u8> {
    cat(&[&(text.len() as u32).to_be_bytes(), text.as_bytes()])
}

/// Data of INFO and GO.
pub(crate) fn info_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = cat(&[&string(name), &(infos.len() as u16).to_be_bytes()]);
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = cat(&[&string(name), &(queries.len() as u32).to_be_bytes()]);
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

pub(crate) fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    cat(&[
        &0x2560_9513_u32.to_be_bytes(),
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ])
}

pub(crate) fn simple_reply(error: u32, cookie: u64) -> Vec<u8> {
    cat(&[&0x6744_6698_u32.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes()])
}

/// A chunk of a structured reply.
pub(crate) fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    cat(&[
        &0x668e_33ef_u32.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &(payload.len() as u32).to_be_bytes(),
        payload,
    ])
}

pub(crate) fn error_chunk(error: u32, cookie: u64) -> Vec<u8> {
    chunk(1, 0x8001, cookie, &cat(&[&error.to_be_bytes(), &[0, 0]]))
}

/// A connection and what it has sent.
pub(crate) struct Session {
    pub(crate) connection: Connection,
}

impl Session {
    /// After the greeting.
    pub(crate) fn new() -> Self {
        Self::with_limits(ServerLimits::default())
    }

    pub(crate) fn with_limits(limits: ServerLimits) -> Self {
        let mut session = Self { connection: Connection::new(limits, BufferPool::new(0)) };
        assert_eq!(session.sent(), greeting());
        session
    }

    /// Fixed newstyle, ready for options.
    pub(crate) fn haggling() -> Self {
        let mut session = Self::new();
        session.feed(&client_flags(3));
        session
    }

    /// An export of one MiB in use, with structured replies and `base:allocation` or without both.
    pub(crate) fn open(structured: bool) -> Self {
        Self::open_with(ServerLimits::default(), structured, ExportInfo::new(MIB))
    }

    pub(crate) fn open_with(limits: ServerLimits, structured: bool, info: ExportInfo) -> Self {
        let mut session = Self::with_limits(limits);
        session.feed(&client_flags(3));
        if structured {
            session.feed(&option(OPT_STRUCTURED, b""));
            session.feed(&option(OPT_SET_META, &meta_data("disk", &["base:allocation"])));
        }
        session.feed(&option(OPT_GO, &info_data("disk", &[])));
        let event = session.connection.poll_event();
        assert_eq!(event, Some(ServerEvent::OpenExport { name: "disk".into(), mode: OpenMode::Go }));
        session.connection.handle_opened(Ok(info));
        session.sent();
        session
    }

    /// The same with structured replies and these contexts.
    pub(crate) fn select(queries: &[&str]) -> Self {
        let mut session = Self::haggling();
        session.feed(&option(OPT_STRUCTURED, b""));
        session.feed(&option(OPT_SET_META, &meta_data("disk", queries)));
        session.feed(&option(OPT_GO, &info_data("disk", &[])));
        session.connection.poll_event();
        session.connection.handle_opened(Ok(ExportInfo::new(MIB)));
        session.sent();
        session
    }

    /// All bytes must be taken.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        assert_eq!(self.connection.handle_bytes(bytes), bytes.len());
    }

    /// What was sent since the last call.
    pub(crate) fn sent(&mut self) -> Vec<u8> {
        let all: Vec<u8> = self.connection.poll_transmit().flat_map(|chunk| chunk.to_vec()).collect();
        self.connection.handle_transmitted(all.len());
        all
    }

    /// The next event must be a request.
    pub(crate) fn request(&mut self) -> (RequestHandle, Op) {
        match self.connection.poll_event() {
            Some(ServerEvent::Request(Request { handle, op })) => (handle, op),
            other => panic!("{other:?} instead of a request"),
        }
    }

    /// The next event must be the end.
    pub(crate) fn ended(&mut self) -> CloseReason {
        match self.connection.poll_event() {
            Some(ServerEvent::Disconnect(reason)) => {
                assert!(!self.connection.wants_read());
                assert_eq!(self.connection.poll_event(), None);
                reason
            }
            other => panic!("{other:?} instead of the end"),
        }
    }

    pub(crate) fn idle(&mut self) {
        assert_eq!(self.connection.poll_event(), None);
        assert_eq!(self.sent(), b"");
    }
}
