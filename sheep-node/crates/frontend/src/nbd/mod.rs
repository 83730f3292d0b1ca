//! Server side of the NBD protocol (newstyle fixed negotiation, structured replies, `base:allocation`).
//!
//! [`Connection`] is one client. See its text for how a driver uses it; the protocol's choices and
//! deviations are listed there and in `docs/internals/nbd.md`. The protocol itself is specified in
//! `doc/proto.md` of the NetworkBlockDevice/nbd project; names here follow it.

mod connection;
mod error;
mod export;
mod inflight;
mod negotiate;
mod options;
mod proto;
mod receive;
mod reply;
mod request;
mod transmission;
mod transmit;

pub use connection::{Connection, ReadTarget};
pub use error::{CloseReason, OpenError, ProtocolError};
pub use export::{BlockSizes, ExportEntry, ExportInfo, OpenMode, ServerEvent, ServerLimits};
