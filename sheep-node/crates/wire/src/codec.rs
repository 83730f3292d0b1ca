//! Layout constants of the wire format, and cursors over bytes.
#![deny(clippy::indexing_slicing)]

use bytes::BytesMut;
use smallvec::{Array, SmallVec};
use thiserror::Error;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 96;
/// Largest variable part, bytes.
pub const MAX_BODY_LEN: usize = 1 << 20;
/// Largest payload, bytes: a whole object, and room to spare.
pub const MAX_PAYLOAD_LEN: usize = 8 << 20;

pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"SHDP");
pub(crate) const VERSION: u16 = 2;
/// The header's checksum covers everything before it.
pub(crate) const HEADER_CRC_AT: usize = HEADER_LEN - 4;
/// Lengths of the variable part and of the payload.
pub(crate) const LENGTHS_AT: usize = HEADER_CRC_AT - 8;
/// After magic and version.
pub(crate) const KIND_AT: usize = 6;

/// Kinds of messages; requests below 128, replies from there on.
pub(crate) mod kind {
    pub(crate) const WRITE: u8 = 1;
    pub(crate) const READ: u8 = 2;
    pub(crate) const FLUSH: u8 = 3;
    pub(crate) const SETTLE: u8 = 4;
    pub(crate) const EQUALIZE: u8 = 5;
    pub(crate) const ADOPT: u8 = 6;
    pub(crate) const SETTLED: u8 = 7;
    pub(crate) const CLEAR_PENDING: u8 = 8;
    pub(crate) const REMOVE: u8 = 9;
    pub(crate) const STANDING: u8 = 10;
    pub(crate) const LIST: u8 = 11;
    pub(crate) const DIGEST_OF: u8 = 12;
    pub(crate) const PING: u8 = 13;
    pub(crate) const BLOCKS: u8 = 14;
    pub(crate) const SECURE: u8 = 15;
    pub(crate) const ADOPT_ALL: u8 = 16;
    pub(crate) const GIVE_WAY: u8 = 17;
    pub(crate) const COMPARE: u8 = 18;
    pub(crate) const SWEEP: u8 = 19;
    pub(crate) const DONE: u8 = 128;
    pub(crate) const BEHIND: u8 = 129;
    pub(crate) const READ_DATA: u8 = 130;
    pub(crate) const HOT: u8 = 131;
    pub(crate) const STANDINGS: u8 = 132;
    pub(crate) const LISTING: u8 = 133;
    pub(crate) const DIGEST: u8 = 134;
    pub(crate) const REFUSED: u8 = 135;
    pub(crate) const WHICH: u8 = 136;
    pub(crate) const COMPARED: u8 = 137;
    pub(crate) const SWEPT: u8 = 138;
}

/// Bytes that are no message. The connection they came from is closed: its stream can't be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Not our protocol at all.
    #[error("not a Sheepdog data message")]
    Magic,
    /// A version this program does not speak.
    #[error("wire version {0} is not supported (this program speaks {VERSION})")]
    Version(u16),
    /// A checksum does not match.
    #[error("checksum mismatch in the {0}")]
    Checksum(&'static str),
    /// A length above its limit.
    #[error("{0} is too long")]
    TooLong(&'static str),
    /// An unknown kind of message.
    #[error("unknown message kind {0}")]
    Kind(u8),
    /// The variable part is cut short, too long, or holds a value out of its range.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// Appends fixed-width little-endian values.
pub(crate) struct Writer<'a>(pub(crate) &'a mut BytesMut);

impl Writer<'_> {
    pub(crate) fn u8(&mut self, value: u8) {
        self.0.extend_from_slice(&[value]);
    }
    pub(crate) fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub(crate) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    pub(crate) fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// A count that fits the limits of [`MAX_BODY_LEN`]; more is a bug of the sender.
    pub(crate) fn count(&mut self, value: usize) {
        assert!(value <= MAX_BODY_LEN, "list too long for a message");
        self.u32(value as u32);
    }
    pub(crate) fn list<T>(&mut self, items: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.count(items.len());
        items.iter().for_each(|item| each(self, item));
    }
}

/// Takes fixed-width little-endian values; running out is an error.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }
    pub(crate) fn malformed(&self) -> DecodeError {
        DecodeError::Malformed(self.what)
    }
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.bytes.split_first_chunk::<N>().ok_or(DecodeError::Malformed(self.what))?;
        self.bytes = rest;
        Ok(*head)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take().map(u8::from_le_bytes)
    }
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.take().map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.take().map(u64::from_le_bytes)
    }
    pub(crate) fn u128(&mut self) -> Result<u128, DecodeError> {
        self.take().map(u128::from_le_bytes)
    }
    pub(crate) fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed()),
        }
    }
    /// The number of items of a list, of at least `min_len` bytes each: it can't make us reserve more than came.
    fn counted(&mut self, min_len: usize) -> Result<usize, DecodeError> {
        let count = self.u32()? as usize;
        if count > self.bytes.len() / min_len.max(1) { Err(self.malformed()) } else { Ok(count) }
    }
    /// A list of items of at least `min_len` bytes each.
    pub(crate) fn list<T>(
        &mut self,
        min_len: usize,
        mut each: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.counted(min_len)?;
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(each(self)?);
        }
        Ok(items)
    }
    /// The same, for lists that are short as a rule.
    pub(crate) fn short<A: Array>(
        &mut self,
        min_len: usize,
        mut each: impl FnMut(&mut Self) -> Result<A::Item, DecodeError>,
    ) -> Result<SmallVec<A>, DecodeError> {
        let count = self.counted(min_len)?;
        let mut items = SmallVec::with_capacity(count);
        for _ in 0..count {
            items.push(each(self)?);
        }
        Ok(items)
    }
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.bytes.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}
