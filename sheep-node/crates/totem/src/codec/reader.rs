//! Little-endian cursor over hostile bytes, and its opposite.

use super::Malformed;
use crate::limits::MAX_NUMBER;
use crate::types::Note;
use bytes::{BufMut, Bytes, BytesMut};
use sheep_types::{ConfigId, Incarnation, LogIndex, Member, NodeId, Place};

pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn u128(&mut self) -> Result<u128, Malformed> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A counter: kept far from its end, so that adding to it cannot overflow.
    pub(super) fn counter(&mut self) -> Result<u64, Malformed> {
        let value = self.u64()?;
        if value <= MAX_NUMBER { Ok(value) } else { Err(Malformed) }
    }

    pub(super) fn node(&mut self) -> Result<NodeId, Malformed> {
        Ok(NodeId(self.u64()?))
    }

    pub(super) fn member(&mut self) -> Result<Member, Malformed> {
        let node = self.node()?;
        let incarnation = Incarnation(self.u64()?);
        if node == NodeId(0) { Err(Malformed) } else { Ok(Member { node, incarnation }) }
    }

    pub(super) fn config(&mut self) -> Result<ConfigId, Malformed> {
        Ok(ConfigId { number: self.counter()?, representative: self.node()? })
    }

    fn place(&mut self) -> Result<Place, Malformed> {
        Ok(Place { term: self.config()?, index: LogIndex(self.u64()?), checksum: self.u64()? })
    }

    pub(super) fn note(&mut self) -> Result<Note, Malformed> {
        Ok(Note {
            written_rotation: self.counter()?,
            term: self.config()?,
            durable: self.place()?,
            commit: self.place()?,
            promised: match self.u8()? {
                0 => false,
                1 => true,
                _ => return Err(Malformed),
            },
            flags: self.u32()?,
        })
    }

    /// A list's length, refused above `max`.
    pub(super) fn count(&mut self, max: usize) -> Result<usize, Malformed> {
        let count = usize::from(self.u16()?);
        if count <= max { Ok(count) } else { Err(Malformed) }
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[derive(Default)]
pub(super) struct Writer {
    out: BytesMut,
}

impl Writer {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.out.put_u8(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.out.put_u16_le(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.out.put_u32_le(value);
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.out.put_u64_le(value);
    }

    pub(super) fn u128(&mut self, value: u128) {
        self.out.put_u128_le(value);
    }

    /// A list's length. Lists are cut to their bounds before they get here.
    pub(super) fn count(&mut self, count: usize) {
        assert!(count <= usize::from(u16::MAX), "list too long for a packet");
        self.u16(count as u16);
    }

    pub(super) fn member(&mut self, member: Member) {
        self.u64(member.node.0);
        self.u64(member.incarnation.0);
    }

    pub(super) fn config(&mut self, id: ConfigId) {
        self.u64(id.number);
        self.u64(id.representative.0);
    }

    fn place(&mut self, place: &Place) {
        self.config(place.term);
        self.u64(place.index.0);
        self.u64(place.checksum);
    }

    pub(super) fn note(&mut self, note: &Note) {
        self.u64(note.written_rotation);
        self.config(note.term);
        self.place(&note.durable);
        self.place(&note.commit);
        self.u8(u8::from(note.promised));
        self.u32(note.flags);
    }

    pub(super) fn finish(self) -> Bytes {
        self.out.freeze()
    }
}
