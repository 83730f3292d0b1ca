//! Ways a connection, or an attempt to open an export, can end.

use super::proto::{REP_ERR_POLICY, REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN};
use thiserror::Error;

/// The client broke the protocol so badly that the rest of its bytes cannot be understood, or sent more than
/// any client has reason to. The connection must be closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// The client set handshake flags the server had not offered.
    #[error("unknown client flags {0:#x}")]
    UnknownClientFlags(u32),
    /// An option did not begin with its magic number.
    #[error("bad option magic {0:#x}")]
    BadOptionMagic(u64),
    /// An option other than EXPORT_NAME from a client that has not agreed to fixed newstyle negotiation.
    #[error("option {0} without fixed newstyle negotiation")]
    NotFixedNewstyle(u32),
    /// An option with more data than the server is willing to skip.
    #[error("option {option} with {len} bytes of data")]
    OptionTooLong {
        /// The option.
        option: u32,
        /// Length it announced.
        len: u32,
    },
    /// [`ServerLimits::options_max`](super::ServerLimits::options_max) was reached.
    #[error("too many options")]
    TooManyOptions,
    /// EXPORT_NAME, which knows no error reply, with a name that is too long or not text.
    #[error("malformed export name")]
    BadExportName,
    /// A request did not begin with its magic number.
    #[error("bad request magic {0:#x}")]
    BadRequestMagic(u32),
}

/// Why no more requests will come.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CloseReason {
    /// The client said goodbye (DISC).
    #[error("client disconnected")]
    Disconnected,
    /// The client gave up negotiating (ABORT).
    #[error("client aborted the negotiation")]
    Aborted,
    /// The client used EXPORT_NAME, which knows no error reply, for an export it cannot have.
    #[error("export refused: {0}")]
    Refused(OpenError),
    /// The client broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
    /// The end of the client's bytes.
    #[error("connection closed by the client{}", if *mid_message { " in the middle of a message" } else { "" })]
    PeerClosed {
        /// Whether that cut a message (an unfinished write has then not been passed on).
        mid_message: bool,
    },
}

/// Why an export cannot be opened, or the exports not be listed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// There is no such export. Also the answer for the default export "" if there is none.
    #[error("no such export")]
    NotFound,
    /// This client may not, or not now; the text tells the user why.
    #[error("{0}")]
    Denied(String),
    /// Only over TLS.
    #[error("TLS is required")]
    TlsRequired,
    /// The server is going away.
    #[error("server is shutting down")]
    ShuttingDown,
}

impl OpenError {
    /// The option reply type that says so.
    pub(crate) fn reply_type(&self) -> u32 {
        match self {
            Self::NotFound => REP_ERR_UNKNOWN,
            Self::Denied(_) => REP_ERR_POLICY,
            Self::TlsRequired => REP_ERR_TLS_REQD,
            Self::ShuttingDown => REP_ERR_SHUTDOWN,
        }
    }
}
