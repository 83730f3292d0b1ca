//! Little-endian reading and writing, and the messages that the logs of two nodes exchange.
//!
//! Ordered messages (through the ring) begin with a kind byte:
//!
//! | kind | message | fields |
//! |---|---|---|
//! | 1 | promise | version (u8), cluster (u128), the term, last place, place of the voter list, list, 0 or 1 and the pending list |
//! | 2 | command | origin node, incarnation, sequence (u64 each), the command |
//! | 3 | voters | proposer node, incarnation, place of the list that it replaces, the new list |
//!
//! A place is term number, term representative, index, checksum (u64 each); a list is a count (u16) and node
//! ids (u64 each). The bytes of a command or voters message are the body of its log entry, unchanged. Two
//! more kinds exist as bodies only: 4, install (term number and representative, a count (u32), node and
//! incarnation of each member) and 5, genesis (cluster, first voter, bytes of the layer above). A message of
//! any other kind becomes the body 255 followed by the message: nodes of different versions must not
//! disagree about which messages are entries.

#![deny(clippy::indexing_slicing)]

use bytes::{Buf, Bytes};
use sheep_types::{ClusterId, CommandSeq, ConfigId, Incarnation, LogIndex, Member, NodeId, Place};

/// Largest answer to a fetch, in bytes.
pub(crate) const MAX_FETCH_REPLY: usize = 32 << 10;
/// Bytes that a command message adds to its command.
pub(crate) const COMMAND_OVERHEAD: usize = 1 + 16 + 8;

pub(crate) const KIND_PROMISE: u8 = 1;
pub(crate) const KIND_COMMAND: u8 = 2;
pub(crate) const KIND_VOTERS: u8 = 3;
pub(crate) const KIND_INSTALL: u8 = 4;
pub(crate) const KIND_GENESIS: u8 = 5;
pub(crate) const KIND_UNKNOWN: u8 = 255;
/// Highest index that is believed.
const MAX_INDEX: u64 = 1 << 62;
const PROMISE_VERSION: u8 = 1;

/// Bytes that mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<bytes::TryGetError> for Malformed {
    fn from(_: bytes::TryGetError) -> Self {
        Self
    }
}

/// Reads from the front of a buffer, without ever going past its end.
pub(crate) struct Reader(pub(crate) Bytes);

impl Reader {
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.0.try_get_u8()?)
    }
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(self.0.try_get_u16_le()?)
    }
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(self.0.try_get_u32_le()?)
    }
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(self.0.try_get_u64_le()?)
    }
    pub(crate) fn cluster(&mut self) -> Result<ClusterId, Malformed> {
        Ok(ClusterId(self.0.try_get_u128_le()?))
    }
    pub(crate) fn node(&mut self) -> Result<NodeId, Malformed> {
        Ok(NodeId(self.u64()?))
    }
    pub(crate) fn term(&mut self) -> Result<ConfigId, Malformed> {
        Ok(ConfigId { number: self.u64()?, representative: self.node()? })
    }
    pub(crate) fn member(&mut self) -> Result<Member, Malformed> {
        Ok(Member { node: self.node()?, incarnation: Incarnation(self.u64()?) })
    }
    pub(crate) fn place(&mut self) -> Result<Place, Malformed> {
        let (term, index, checksum) = (self.term()?, self.u64()?, self.u64()?);
        // No log gets there, and below it sums cannot overflow.
        if index > MAX_INDEX { Err(Malformed) } else { Ok(Place { term, index: LogIndex(index), checksum }) }
    }
    pub(crate) fn nodes(&mut self) -> Result<Vec<NodeId>, Malformed> {
        let count = usize::from(self.u16()?);
        // Each takes 8 bytes: a count beyond the buffer must not make memory.
        if self.0.len() < count * 8 {
            return Err(Malformed);
        }
        (0..count).map(|_| self.node()).collect()
    }
    pub(crate) fn take(&mut self, len: usize) -> Result<Bytes, Malformed> {
        if len > self.0.len() { Err(Malformed) } else { Ok(self.0.split_to(len)) }
    }
    pub(crate) fn rest(&mut self) -> Bytes {
        core::mem::take(&mut self.0)
    }
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// The counterpart of [`Reader`].
pub(crate) trait Put {
    fn put_raw(&mut self, bytes: &[u8]);
    fn u8(&mut self, v: u8) {
        self.put_raw(&[v]);
    }
    fn u16(&mut self, v: u16) {
        self.put_raw(&v.to_le_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.put_raw(&v.to_le_bytes());
    }
    fn u64(&mut self, v: u64) {
        self.put_raw(&v.to_le_bytes());
    }
    fn cluster(&mut self, v: ClusterId) {
        self.put_raw(&v.0.to_le_bytes());
    }
    fn term(&mut self, v: ConfigId) {
        self.u64(v.number);
        self.u64(v.representative.0);
    }
    fn member(&mut self, v: Member) {
        self.u64(v.node.0);
        self.u64(v.incarnation.0);
    }
    fn place(&mut self, v: Place) {
        self.term(v.term);
        self.u64(v.index.0);
        self.u64(v.checksum);
    }
    fn nodes(&mut self, v: &[NodeId]) {
        let count = u16::try_from(v.len()).unwrap_or(u16::MAX);
        self.u16(count);
        for node in v.iter().take(usize::from(count)) {
            self.u64(node.0);
        }
    }
}

impl Put for Vec<u8> {
    fn put_raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// What a voter orders when it has promised a term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) cluster: ClusterId,
    /// What it promised. The ring may carry a message over into the next configuration, where it promises
    /// nothing.
    pub(crate) term: ConfigId,
    /// End of its log.
    pub(crate) last: Place,
    /// Where the newest list came into its log.
    pub(crate) voters_at: Place,
    /// The lists that count by its log: one, or two while a change is pending.
    pub(crate) lists: Vec<Vec<NodeId>>,
}

impl Promise {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(128);
        out.u8(KIND_PROMISE);
        out.u8(PROMISE_VERSION);
        out.cluster(self.cluster);
        out.term(self.term);
        out.place(self.last);
        out.place(self.voters_at);
        out.u8(u8::try_from(self.lists.len()).unwrap_or(u8::MAX));
        for list in &self.lists {
            out.nodes(list);
        }
        out.into()
    }

    /// Decodes what follows the kind byte.
    pub(crate) fn decode(payload: Bytes) -> Result<Self, Malformed> {
        let mut r = Reader(payload);
        if r.u8()? != KIND_PROMISE || r.u8()? != PROMISE_VERSION {
            return Err(Malformed);
        }
        let (cluster, term, last, voters_at) = (r.cluster()?, r.term()?, r.place()?, r.place()?);
        let count = r.u8()?;
        if !(1..=2).contains(&count) {
            return Err(Malformed);
        }
        let lists = (0..count).map(|_| r.nodes()).collect::<Result<Vec<_>, _>>()?;
        r.end()?;
        if lists.iter().any(Vec::is_empty) {
            return Err(Malformed);
        }
        Ok(Self { cluster, term, last, voters_at, lists })
    }
}

pub(crate) fn command_message(origin: Member, seq: CommandSeq, command: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(COMMAND_OVERHEAD + command.len());
    out.u8(KIND_COMMAND);
    out.member(origin);
    out.u64(seq.0);
    out.put_raw(command);
    out.into()
}

pub(crate) fn voters_message(proposer: Member, replaces: Place, list: &[NodeId]) -> Bytes {
    let mut out = Vec::with_capacity(64 + list.len() * 8);
    out.u8(KIND_VOTERS);
    out.member(proposer);
    out.place(replaces);
    out.nodes(list);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(a: u64, b: u64, c: u64, d: u64) -> Place {
        Place {
            term: ConfigId { number: a, representative: NodeId(b) },
            index: LogIndex(c >> 2),
            checksum: d,
        }
    }

    proptest! {
        #[test]
        fn promises_survive_coding(
            cluster: u128, a: [u64; 4], b: [u64; 4],
            lists in prop::collection::vec(prop::collection::vec(any::<u64>().prop_map(NodeId), 1..9), 1..=2),
        ) {
            let promise = Promise {
                cluster: ClusterId(cluster),
                term: place(b[0], a[1], 0, 0).term,
                last: place(a[0], a[1], a[2], a[3]),
                voters_at: place(b[0], b[1], b[2], b[3]),
                lists,
            };
            prop_assert_eq!(Promise::decode(promise.encode()), Ok(promise.clone()));
            let whole = promise.encode();
            for cut in 0..whole.len() {
                prop_assert_eq!(Promise::decode(whole.slice(..cut)), Err(Malformed));
            }
        }

        #[test]
        fn garbage_is_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Promise::decode(bytes.clone().into());
            bytes.splice(0..0, [KIND_PROMISE, PROMISE_VERSION]);
            let _ = Promise::decode(bytes.into());
        }
    }
}
