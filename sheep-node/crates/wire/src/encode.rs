//! From messages to bytes.

use crate::codec::{
    HEADER_CRC_AT, HEADER_LEN, KIND_AT, LENGTHS_AT, MAGIC, MAX_BODY_LEN, MAX_PAYLOAD_LEN, VERSION, Writer,
    kind,
};
use crate::{
    Body, Confirmed, Extent, ExtentState, Header, Message, ObjectDigest, ReadData, Refusal, Reply, Request,
    StandingKind, WriteRequest,
};
use bytes::{Bytes, BytesMut};
use sheep_types::{Member, ObjectId, Version};
use smallvec::SmallVec;

/// Payload buffers of a message.
pub type Payload = SmallVec<[Bytes; 1]>;

/// Bytes that are reserved for heads at once: many small ones share one allocation.
const HEADS: usize = 16 << 10;

/// An encoded message: one piece to write first, then the payload buffers, untouched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Header and variable part.
    pub head: Bytes,
    /// The payload, in order.
    pub payload: Payload,
}

/// Encodes messages, one after the other.
#[derive(Debug, Default)]
pub struct Encoder {
    /// Room for heads; empty between two messages.
    heads: BytesMut,
}

impl Encoder {
    /// Encodes a message. Asserts that it keeps the limits: only a bug makes one that does not.
    pub fn encode(&mut self, header: &Header, message: &Message) -> Frame {
        if self.heads.capacity() < 2 * HEADER_LEN {
            self.heads.reserve(HEADS);
        }
        let mut out = Writer(&mut self.heads);
        put_header(&mut out, header);
        let mut payload = Payload::new();
        let kind = match message {
            Message::Request(request) => put_request(&mut out, &mut payload, request),
            Message::Reply(reply) => put_reply(&mut out, &mut payload, reply),
        };
        let crc = crc32c::crc32c(out.0.get(HEADER_LEN..).unwrap_or_default());
        out.u32(crc);
        let body_len = out.0.len() - HEADER_LEN;
        let payload_len: usize = payload.iter().map(Bytes::len).sum();
        assert!(body_len <= MAX_BODY_LEN && payload_len <= MAX_PAYLOAD_LEN, "message over its limits");
        let mut head = self.heads.split();
        complete_header(&mut head, kind, body_len as u32, payload_len as u32);
        Frame { head: head.freeze(), payload }
    }
}

/// Encodes one message alone.
pub fn encode(header: &Header, message: &Message) -> Frame {
    Encoder::default().encode(header, message)
}

/// The fixed header, with zeros for what is not known yet.
fn put_header(out: &mut Writer<'_>, header: &Header) {
    out.u32(MAGIC);
    out.u16(VERSION);
    out.u16(0);
    out.u64(header.request);
    out.u128(header.cluster.0);
    out.u64(header.from.node.0);
    out.u64(header.from.incarnation.0);
    out.u64(header.to.0);
    out.u64(header.epoch.0);
    out.u64(header.relies_on.0);
    out.u64(header.generation.0);
    out.u16(header.shard);
    out.u16(0);
    assert_eq!(out.0.len(), LENGTHS_AT, "header layout");
    out.u64(0);
    out.u32(0);
}

/// Kind, lengths and checksum.
fn complete_header(head: &mut [u8], kind: u8, body_len: u32, payload_len: u32) {
    head[KIND_AT] = kind;
    head[LENGTHS_AT..][..4].copy_from_slice(&body_len.to_le_bytes());
    head[LENGTHS_AT + 4..][..4].copy_from_slice(&payload_len.to_le_bytes());
    let crc = crc32c::crc32c(&head[..HEADER_CRC_AT]);
    head[HEADER_CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
}

fn put_request(out: &mut Writer<'_>, payload: &mut Payload, request: &Request) -> u8 {
    match request {
        Request::Write(write) => put_write(out, payload, write),
        Request::Read { object, birth, offset, len } => {
            out.u64(object.0);
            out.u64(birth.0);
            out.u32(*offset);
            out.u32(*len);
            kind::READ
        }
        Request::Flush { vid } => {
            out.u32(vid.0);
            kind::FLUSH
        }
        Request::Settle { vid, after } => {
            out.u32(vid.0);
            put_option(out, after.as_ref(), |out, object| out.u64(object.0));
            kind::SETTLE
        }
        Request::Equalize { object, birth, source, version } => {
            out.u64(object.0);
            out.u64(birth.0);
            put_member(out, source);
            put_version(out, version);
            kind::EQUALIZE
        }
        Request::Adopt { object, version } => {
            out.u64(object.0);
            put_version(out, version);
            kind::ADOPT
        }
        Request::Settled { vid, confirmed } => {
            out.u32(vid.0);
            put_confirmed(out, confirmed);
            kind::SETTLED
        }
        Request::ClearPending { objects } => {
            put_objects(out, objects);
            kind::CLEAR_PENDING
        }
        Request::Remove { object, birth, version } => {
            out.u64(object.0);
            out.u64(birth.0);
            put_version(out, version);
            kind::REMOVE
        }
        Request::Standing { objects, at } => {
            put_objects(out, objects);
            out.u64(at.0);
            kind::STANDING
        }
        Request::List { member, after } => {
            out.u64(member.0);
            put_option(out, after.as_ref(), |out, object| out.u64(object.0));
            kind::LIST
        }
        Request::Digest { object, birth, version } => {
            out.u64(object.0);
            out.u64(birth.0);
            put_option(out, version.as_ref(), put_version);
            kind::DIGEST_OF
        }
        Request::Blocks { object, birth, version, ranges, urgent } => {
            out.u64(object.0);
            out.u64(birth.0);
            put_version(out, version);
            out.list(ranges, |out, (offset, len)| {
                out.u32(*offset);
                out.u32(*len);
            });
            out.u8(u8::from(*urgent));
            kind::BLOCKS
        }
        Request::Secure { objects } => {
            put_versions(out, objects);
            kind::SECURE
        }
        Request::AdoptAll { objects } => {
            put_versions(out, objects);
            kind::ADOPT_ALL
        }
        Request::Compare { object, birth, other } => {
            out.u64(object.0);
            out.u64(birth.0);
            put_option(out, other.as_ref(), |out, (vid, birth)| {
                out.u32(vid.0);
                out.u64(birth.0);
            });
            kind::COMPARE
        }
        Request::Sweep { vids, first, last, keep, from } => {
            out.list(vids, |out, vid| out.u32(vid.0));
            out.u32(*first);
            out.u32(*last);
            out.list(keep, |out, run| {
                out.u32(run.vid.0);
                out.u32(run.first);
                out.u32(run.last);
            });
            out.u64(from.0);
            kind::SWEEP
        }
        Request::Ping => kind::PING,
        Request::GiveWay => kind::GIVE_WAY,
    }
}

fn put_write(out: &mut Writer<'_>, payload: &mut Payload, write: &WriteRequest) -> u8 {
    out.u64(write.object.0);
    out.u64(write.birth.0);
    put_option(out, write.previous.as_ref(), put_version);
    put_version(out, &write.version);
    out.u8(u8::from(write.create));
    put_option(out, write.base.as_ref(), |out, vid| out.u32(vid.0));
    out.u8(u8::from(write.durable));
    out.u32(write.offset);
    match &write.body {
        Body::Data { payload: data, crcs } => {
            out.u8(0);
            out.list(crcs, |out, crc| out.u32(*crc));
            payload.push(data.clone());
        }
        Body::Zero { len } => {
            out.u8(1);
            out.u32(*len);
        }
    }
    put_confirmed(out, &write.confirmed);
    kind::WRITE
}

fn put_reply(out: &mut Writer<'_>, payload: &mut Payload, reply: &Reply) -> u8 {
    match reply {
        Reply::Done => kind::DONE,
        Reply::Behind(version) => {
            put_option(out, version.as_ref(), put_version);
            kind::BEHIND
        }
        Reply::Read(data) => {
            put_read_data(out, payload, data);
            kind::READ_DATA
        }
        Reply::Hot(objects, more) => {
            out.u8(u8::from(*more));
            out.list(objects, |out, hot| {
                out.u64(hot.object.0);
                put_version(out, &hot.version);
                out.u8(u8::from(hot.pending));
                out.u8(u8::from(hot.current));
            });
            kind::HOT
        }
        Reply::Standings(standings) => {
            out.list(standings, |out, standing| {
                out.u8(match standing.kind {
                    StandingKind::Live => 0,
                    StandingKind::Restarted => 1,
                    StandingKind::Never => 2,
                    StandingKind::Unknown => 3,
                    StandingKind::Busy => 4,
                });
                put_option(out, standing.version.as_ref(), put_version);
                out.u64(standing.validated.0);
                out.u8(u8::from(standing.hot));
                out.u8(u8::from(standing.wounded));
            });
            kind::STANDINGS
        }
        Reply::Listing(objects, more) => {
            out.u8(u8::from(*more));
            out.list(objects, |out, listed| {
                out.u64(listed.object.0);
                out.u64(listed.birth.0);
                put_version(out, &listed.version);
                out.u64(listed.validated.0);
                out.u8(u8::from(listed.live));
                out.u8(u8::from(listed.hot));
            });
            kind::LISTING
        }
        Reply::Digest(digest) => put_digest(out, digest),
        Reply::Which(which) => {
            out.list(which, |out, done| out.u8(u8::from(*done)));
            kind::WHICH
        }
        Reply::Compared(ranges) => {
            out.list(ranges, |out, range| {
                out.u32(range.len);
                out.u8(state_code(range.state));
                out.u8(state_code(range.other));
                out.u8(u8::from(range.same));
            });
            kind::COMPARED
        }
        Reply::Swept { dropped, left, needed, next } => {
            out.u32(*dropped);
            out.u32(*left);
            out.list(needed, |out, vid| out.u32(vid.0));
            put_option(out, next.as_ref(), |out, object| out.u64(object.0));
            kind::SWEPT
        }
        Reply::Refused(refusal) => put_refusal(out, *refusal),
    }
}

fn put_digest(out: &mut Writer<'_>, digest: &ObjectDigest) -> u8 {
    out.u64(digest.birth.0);
    out.u8(u8::from(digest.pending));
    out.u8(u8::from(digest.hot));
    put_version(out, &digest.version);
    put_extents(out, &digest.extents);
    out.list(&digest.crcs, |out, crc| out.u32(*crc));
    kind::DIGEST
}

fn put_refusal(out: &mut Writer<'_>, refusal: Refusal) -> u8 {
    let (code, epoch) = match refusal {
        Refusal::StaleEpoch(epoch) => (0, epoch.0),
        Refusal::WrongIncarnation => (1, 0),
        Refusal::StaleGeneration => (2, 0),
        Refusal::NotWritable => (3, 0),
        Refusal::NotMember => (4, 0),
        Refusal::NotCurrent => (5, 0),
        Refusal::OtherVersion => (6, 0),
        Refusal::NoCopy => (7, 0),
        Refusal::NoSpace => (8, 0),
        Refusal::Damaged => (9, 0),
        Refusal::StoreFailed => (10, 0),
        Refusal::Busy => (11, 0),
        Refusal::Malformed => (12, 0),
        Refusal::BaseLost => (13, 0),
    };
    out.u8(code);
    out.u64(epoch);
    kind::REFUSED
}

fn put_read_data(out: &mut Writer<'_>, payload: &mut Payload, data: &ReadData) {
    put_version(out, &data.version);
    put_extents(out, &data.extents);
    out.list(&data.crcs, |out, crc| out.u32(*crc));
    payload.extend(data.data.iter().cloned());
}

fn put_extents(out: &mut Writer<'_>, extents: &[Extent]) {
    out.list(extents, |out, extent| {
        out.u32(extent.offset);
        out.u32(extent.len);
        out.u8(state_code(extent.state));
    });
}

fn state_code(state: ExtentState) -> u8 {
    match state {
        ExtentState::Absent => 0,
        ExtentState::Zero => 1,
        ExtentState::Data => 2,
        ExtentState::Lost => 3,
    }
}

fn put_confirmed(out: &mut Writer<'_>, confirmed: &Confirmed) {
    out.u64(confirmed.upto);
    out.list(&confirmed.except, |out, sequence| out.u64(*sequence));
}

fn put_objects(out: &mut Writer<'_>, objects: &[ObjectId]) {
    out.list(objects, |out, object| out.u64(object.0));
}

fn put_versions(out: &mut Writer<'_>, objects: &[(ObjectId, Version)]) {
    out.list(objects, |out, (object, version)| {
        out.u64(object.0);
        put_version(out, version);
    });
}

fn put_version(out: &mut Writer<'_>, version: &Version) {
    out.u64(version.generation.0);
    out.u64(version.sequence);
}

fn put_member(out: &mut Writer<'_>, member: &Member) {
    out.u64(member.node.0);
    out.u64(member.incarnation.0);
}

fn put_option<T>(out: &mut Writer<'_>, value: Option<&T>, put: impl FnOnce(&mut Writer, &T)) {
    out.u8(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}
