//! Messages between nodes on the data path, and their encoding.
//!
//! A message is a fixed header, a small variable part and a payload; the payload is reference counted and
//! never copied here. The simulator passes [`Message`] values as they are, the daemon encodes them. The bytes
//! are described in `docs/internals/wire-format.md`.

mod codec;
mod decode;
mod encode;
mod message;
mod reply;
mod request;

pub use codec::{DecodeError, HEADER_LEN, MAX_BODY_LEN, MAX_PAYLOAD_LEN};
pub use decode::{RawHeader, decode_header, decode_message};
pub use encode::{Encoder, Frame, Payload, encode};
pub use message::{Header, Message, Packet};
pub use reply::{
    Compared, Extent, ExtentState, HotObject, Listed, ObjectDigest, ReadData, Refusal, Reply, Standing,
    StandingKind,
};
pub use request::{Body, Confirmed, Crcs, ObjectRun, Request, WriteRequest};
