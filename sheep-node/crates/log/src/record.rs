//! The durable file: one stream of records, appended to and now and then rewritten as a whole.
//!
//! Every record starts at a multiple of 8 bytes (zeros fill the gap) with this header, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic, `SHLR` |
//! | 4 | 1 | kind |
//! | 5 | 3 | zero |
//! | 8 | 4 | length of the payload, in bytes |
//! | 12 | 4 | CRC-32C over the offset of the record in the file (u64), bytes 4..12 and 16..24, and the payload |
//! | 16 | 8 | *synced*: the length of the file that was durable when the record was made |
//!
//! | kind | record | payload |
//! |---|---|---|
//! | 1 | header | format version (u32), always first |
//! | 2 | number | the ring's durable number (u64) |
//! | 3 | promise | term |
//! | 4 | entry | place, body. Replaces what the log had from its index on |
//! | 5 | snapshot | place of the root, place of the snapshot, cluster (u128), place of the voter list, list, data |
//! | 6 | commit | place known to be committed |
//!
//! A snapshot stands directly after the header or not at all; its root is the place before the first entry
//! that follows. A record that cannot be read and that begins at or after every *synced* was being written
//! when the power went: it and all after it never counted, and are dropped. Damage before that is an error,
//! since what was there may have been promised or confirmed to others.

#![deny(clippy::indexing_slicing)]

use crate::chain::{Chain, Snapshot, VoterList};
use crate::codec::{Malformed, Put, Reader};
use crate::entry::Entry;
use bytes::{Buf, Bytes};
use sheep_types::{ClusterId, NodeId, Place, Term};

const MAGIC: u32 = u32::from_le_bytes(*b"SHLR");
const FORMAT_VERSION: u32 = 1;
const HEADER: usize = 24;
const ALIGN: usize = 8;

pub(crate) const HEADER_RECORD: u8 = 1;
pub(crate) const NUMBER: u8 = 2;
pub(crate) const PROMISE: u8 = 3;
pub(crate) const ENTRY: u8 = 4;
pub(crate) const SNAPSHOT: u8 = 5;
pub(crate) const COMMIT: u8 = 6;

/// Why a durable file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// Not a log file, or of another format version.
    #[error("not a log file of format version {FORMAT_VERSION}")]
    Format,
    /// Something that had been made durable is damaged.
    #[error("the log file is damaged at byte {offset}, before its synced end")]
    Rot {
        /// Where the first damaged record begins.
        offset: u64,
    },
    /// The records are whole but do not fit together.
    #[error("the log file is inconsistent at byte {offset}: {reason}")]
    Inconsistent {
        /// Where the record begins.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// A durable file, decoded. The engine must have synced the file before it reads it: what a crashed process
/// had written but not synced would otherwise count as durable, and be lost with the next power cut.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    pub(crate) number: u64,
    pub(crate) promised: Term,
    pub(crate) chain: Chain,
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) commit: Place,
    pub(crate) len: u64,
    pub(crate) torn: bool,
}

impl Recovered {
    /// Decodes a durable file; an empty one is that of a node that belongs to no cluster yet.
    ///
    /// # Errors
    /// See [`RecoverError`]. A file with an error must not be used: its node is gone, and comes back as a
    /// new node with an empty store.
    pub fn decode(file: Bytes) -> Result<Self, RecoverError> {
        let mut recovered = Self::default();
        let mut synced = 0;
        let mut offset = 0;
        while offset < file.len() {
            let Some(record) = Record::read(&file, offset) else {
                let synced = Record::scan(&file, offset).fold(synced, |max: u64, r| max.max(r.synced));
                if (offset as u64) < synced {
                    return Err(RecoverError::Rot { offset: offset as u64 });
                }
                recovered.torn = true;
                break;
            };
            synced = synced.max(record.synced);
            recovered.take(&record, offset).map_err(|e| e.at(offset))?;
            offset = record.end;
        }
        recovered.len = offset as u64;
        if let Some(snapshot) = &recovered.snapshot {
            if !recovered.chain.contains(&snapshot.at) {
                let reason = "the entries up to the snapshot do not lead to it";
                return Err(RecoverError::Inconsistent { offset: recovered.len, reason });
            }
            if snapshot.at.index > recovered.commit.index {
                recovered.commit = snapshot.at;
                recovered.chain.settle(snapshot.at.index);
            }
        }
        Ok(recovered)
    }

    /// The ring's durable number: the highest number in any record.
    pub fn number(&self) -> u64 {
        self.number.max(self.promised.number).max(self.chain.last().term.number)
    }

    /// The highest term promised, also by holding an entry of it.
    pub fn promised(&self) -> Term {
        self.promised.max(self.chain.last().term)
    }

    /// The cluster that the node belongs to; zero if none.
    pub fn cluster(&self) -> ClusterId {
        self.chain.cluster()
    }

    /// End of the log.
    pub fn last(&self) -> Place {
        self.chain.last()
    }

    /// The highest place that the file says is committed.
    pub fn commit(&self) -> Place {
        self.commit
    }

    /// The newest voter list in the log, committed or not.
    pub fn voters(&self) -> Vec<NodeId> {
        self.chain.lists().last().map(|v| v.list.clone()).unwrap_or_default()
    }

    /// Bytes of the file that count; a torn end behind them is to be cut off before anything is appended.
    pub fn durable_len(&self) -> u64 {
        self.len
    }

    /// A record at the end was being written when the power went, and was dropped.
    pub fn torn(&self) -> bool {
        self.torn
    }

    fn take(&mut self, record: &Record, offset: usize) -> Result<(), TakeError> {
        if (offset == 0) != (record.kind == HEADER_RECORD) {
            return Err(TakeError::Format);
        }
        let mut r = Reader(record.payload.clone());
        match record.kind {
            HEADER_RECORD if r.u32()? != FORMAT_VERSION => return Err(TakeError::Format),
            HEADER_RECORD => {}
            NUMBER => self.number = self.number.max(r.u64()?),
            PROMISE => self.promised = self.promised.max(r.term()?),
            ENTRY => self.take_entry(&mut r)?,
            SNAPSHOT => self.take_snapshot(&mut r)?,
            COMMIT => {
                let place = r.place()?;
                if !self.chain.contains(&place) || place.index < self.commit.index {
                    return Err(TakeError::Reason("a committed place is not in the log"));
                }
                self.commit = place;
                self.chain.settle(place.index);
            }
            _ => return Err(TakeError::Reason("a record of unknown kind")),
        }
        r.end()?;
        Ok(())
    }

    fn take_entry(&mut self, r: &mut Reader) -> Result<(), TakeError> {
        let place = r.place()?;
        let Some(previous) = place.index.0.checked_sub(1) else {
            return Err(TakeError::Reason("an entry with index 0"));
        };
        if previous < self.commit.index.0 && previous < self.chain.last().index.0 {
            return Err(TakeError::Reason("an entry replaces a committed one"));
        }
        let previous = sheep_types::LogIndex(previous);
        let Some(before) = self.chain.place(previous) else {
            return Err(TakeError::Reason("a gap between entries"));
        };
        // A copy, so that the whole file need not stay in memory for the sake of one entry.
        let entry = Entry::after(&before, place.term, Bytes::copy_from_slice(&r.rest()));
        if entry.place != place || place.term < before.term {
            return Err(TakeError::Reason("an entry does not follow its predecessor"));
        }
        self.chain.cut_after(previous);
        self.chain.push(entry);
        Ok(())
    }

    fn take_snapshot(&mut self, r: &mut Reader) -> Result<(), TakeError> {
        let (root, at, cluster) = (r.place()?, r.place()?, r.cluster()?);
        let voters = VoterList { at: r.place()?, list: r.nodes()? };
        if self.chain.len() > 0 || self.snapshot.is_some() || root.index > at.index {
            return Err(TakeError::Reason("a snapshot in the wrong place"));
        }
        self.chain = Chain::after(root, voters.clone(), cluster);
        self.snapshot = Some(Snapshot::new(at, cluster, voters, Bytes::copy_from_slice(&r.rest())));
        Ok(())
    }
}

enum TakeError {
    Format,
    Reason(&'static str),
}

impl From<Malformed> for TakeError {
    fn from(_: Malformed) -> Self {
        Self::Reason("a record that cannot be decoded")
    }
}

impl TakeError {
    fn at(self, offset: usize) -> RecoverError {
        match self {
            Self::Format => RecoverError::Format,
            Self::Reason(reason) => RecoverError::Inconsistent { offset: offset as u64, reason },
        }
    }
}

/// One whole record in a file.
struct Record {
    kind: u8,
    synced: u64,
    payload: Bytes,
    /// Where the next one begins.
    end: usize,
}

impl Record {
    fn read(file: &Bytes, offset: usize) -> Option<Self> {
        let mut head = file.get(offset..offset.checked_add(HEADER)?)?;
        let magic = head.try_get_u32_le().ok()?;
        let kind_word = head.try_get_u32_le().ok()?;
        let len = head.try_get_u32_le().ok()?;
        let crc = head.try_get_u32_le().ok()?;
        let synced = head.try_get_u64_le().ok()?;
        if magic != MAGIC || kind_word > 0xff {
            return None;
        }
        let from = offset + HEADER;
        let to = from.checked_add(len as usize)?;
        if to > file.len() {
            return None;
        }
        let payload = file.slice(from..to);
        if crc != checksum(offset as u64, kind_word, len, synced, [&payload]) {
            return None;
        }
        let end = to.next_multiple_of(ALIGN);
        // The padding belongs to the record: without it the next one would not be aligned.
        if end > file.len() {
            return None;
        }
        Some(Self { kind: u8::try_from(kind_word).ok()?, synced, payload, end })
    }

    /// All whole records that begin after `offset`, whatever lies between them.
    fn scan(file: &Bytes, offset: usize) -> impl Iterator<Item = Self> {
        let mut at = offset;
        core::iter::from_fn(move || {
            loop {
                at += ALIGN;
                if at + HEADER > file.len() {
                    return None;
                }
                if let Some(record) = Self::read(file, at) {
                    return Some(record);
                }
            }
        })
    }
}

fn checksum<'a>(
    offset: u64,
    kind: u32,
    len: u32,
    synced: u64,
    payload: impl IntoIterator<Item = &'a Bytes>,
) -> u32 {
    let mut head = Vec::with_capacity(24);
    head.u64(offset);
    head.u32(kind);
    head.u32(len);
    head.u64(synced);
    payload.into_iter().fold(crc32c::crc32c(&head), |crc, part| crc32c::crc32c_append(crc, part))
}

/// Makes records, and knows where in the file they will stand.
#[derive(Debug, Default)]
pub(crate) struct RecordWriter {
    pending: Vec<u8>,
    /// Length of the file before `pending`.
    flushed: u64,
    /// Length of the file that is known to be durable.
    pub(crate) synced: u64,
}

impl RecordWriter {
    pub(crate) fn new(len: u64, synced: u64) -> Self {
        Self { pending: Vec::new(), flushed: len, synced }
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    /// Length of the file with everything that was written.
    pub(crate) fn end(&self) -> u64 {
        self.flushed + self.pending.len() as u64
    }

    /// Takes what is to be appended to the file.
    pub(crate) fn flush(&mut self) -> Bytes {
        self.flushed = self.end();
        core::mem::take(&mut self.pending).into()
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.record(NUMBER, &[&Bytes::copy_from_slice(&number.to_le_bytes())]);
    }

    pub(crate) fn promise(&mut self, term: Term) {
        self.record(PROMISE, &[&encoded(|out| out.term(term))]);
    }

    pub(crate) fn entry(&mut self, entry: &Entry) {
        self.record(ENTRY, &[&encoded(|out| out.place(entry.place)), &entry.body]);
    }

    pub(crate) fn commit(&mut self, place: Place) {
        self.record(COMMIT, &[&encoded(|out| out.place(place))]);
    }

    pub(crate) fn snapshot(&mut self, root: Place, snapshot: &Snapshot) {
        let head = encoded(|out| {
            out.place(root);
            out.place(snapshot.at);
            out.cluster(snapshot.cluster);
            out.place(snapshot.voters.at);
            out.nodes(&snapshot.voters.list);
        });
        self.record(SNAPSHOT, &[&head, &snapshot.data]);
    }

    fn record(&mut self, kind: u8, payload: &[&Bytes]) {
        if self.end() == 0 && kind != HEADER_RECORD {
            self.record(HEADER_RECORD, &[&Bytes::copy_from_slice(&FORMAT_VERSION.to_le_bytes())]);
        }
        let size: usize = payload.iter().map(|p| p.len()).sum();
        let len = u32::try_from(size).expect("entries and snapshots are limited far below 4 GiB");
        let crc = checksum(self.end(), u32::from(kind), len, self.synced, payload.iter().copied());
        self.pending.u32(MAGIC);
        self.pending.u32(u32::from(kind));
        self.pending.u32(len);
        self.pending.u32(crc);
        self.pending.u64(self.synced);
        for part in payload {
            self.pending.put_raw(part);
        }
        // The file before `pending` always ends aligned.
        self.pending.resize(self.pending.len().next_multiple_of(ALIGN), 0);
    }
}

fn encoded(write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = Vec::with_capacity(128);
    write(&mut out);
    out.into()
}
