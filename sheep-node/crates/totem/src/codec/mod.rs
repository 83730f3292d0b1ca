//! Packets as bytes: little-endian, fixed layouts, every list bounded before it is read.

mod commit;
mod join;
mod multicast;
mod probe;
mod reader;
mod token;

pub(crate) use commit::{CommitEntry, CommitToken};
pub(crate) use join::{Join, Row};
pub(crate) use multicast::{MULTICAST_OVERHEAD, Multicast, Recovered};
pub(crate) use probe::{Probe, RingSize, Wanted};
pub(crate) use token::{Slot, TOKEN_MAX, Token};

use bytes::Bytes;
use reader::{Reader, Writer};
use sheep_types::{ClusterId, Member};

const MAGIC: u32 = u32::from_le_bytes(*b"SHRG");
const VERSION: u8 = 1;
/// Bytes of the header that every packet starts with.
pub(crate) const HEADER: usize = 40;

const KIND_MULTICAST: u8 = 1;
const KIND_TOKEN: u8 = 2;
const KIND_JOIN: u8 = 3;
const KIND_COMMIT: u8 = 4;
const KIND_PROBE: u8 = 5;
const KIND_WANTED: u8 = 6;
const KIND_LEAVING: u8 = 7;

/// Bytes that are no packet of this version. There is nothing to do but to count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Who sent a packet, for which cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub cluster: ClusterId,
    pub sender: Member,
}

/// Everything that members send each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    Multicast(Multicast),
    Token(Token),
    Join(Join),
    Commit(CommitToken),
    Probe(Probe),
    Wanted(Wanted),
    /// The sender's run is over, in order.
    Leaving,
}

/// Encodes a packet.
pub(crate) fn encode(header: Header, packet: &Packet) -> Bytes {
    let mut w = Writer::default();
    w.u32(MAGIC);
    w.u8(VERSION);
    w.u8(match packet {
        Packet::Multicast(_) => KIND_MULTICAST,
        Packet::Token(_) => KIND_TOKEN,
        Packet::Join(_) => KIND_JOIN,
        Packet::Commit(_) => KIND_COMMIT,
        Packet::Probe(_) => KIND_PROBE,
        Packet::Wanted(_) => KIND_WANTED,
        Packet::Leaving => KIND_LEAVING,
    });
    w.u16(0);
    w.u128(header.cluster.0);
    w.member(header.sender);
    match packet {
        Packet::Multicast(p) => p.write(&mut w),
        Packet::Token(p) => p.write(&mut w),
        Packet::Join(p) => p.write(&mut w),
        Packet::Commit(p) => p.write(&mut w),
        Packet::Probe(p) => p.write(&mut w),
        Packet::Wanted(p) => p.write(&mut w),
        Packet::Leaving => {}
    }
    w.finish()
}

/// Decodes the header only, so that what is foreign or old costs nothing more.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<Header, Malformed> {
    read_header(&mut Reader::new(bytes)).map(|(header, _)| header)
}

/// Decodes a whole packet. Bytes left over make it malformed.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Header, Packet), Malformed> {
    let mut r = Reader::new(bytes);
    let (header, kind) = read_header(&mut r)?;
    let packet = match kind {
        KIND_MULTICAST => Packet::Multicast(Multicast::read(&mut r)?),
        KIND_TOKEN => Packet::Token(Token::read(&mut r)?),
        KIND_JOIN => Packet::Join(Join::read(&mut r)?),
        KIND_COMMIT => Packet::Commit(CommitToken::read(&mut r)?),
        KIND_PROBE => Packet::Probe(Probe::read(&mut r)?),
        KIND_WANTED => Packet::Wanted(Wanted::read(&mut r)?),
        KIND_LEAVING => Packet::Leaving,
        _ => return Err(Malformed),
    };
    r.end()?;
    Ok((header, packet))
}

fn read_header(r: &mut Reader<'_>) -> Result<(Header, u8), Malformed> {
    if r.u32()? != MAGIC || r.u8()? != VERSION {
        return Err(Malformed);
    }
    let kind = r.u8()?;
    r.u16()?;
    let cluster = ClusterId(r.u128()?);
    let sender = r.member()?;
    Ok((Header { cluster, sender }, kind))
}

#[cfg(test)]
mod tests;
