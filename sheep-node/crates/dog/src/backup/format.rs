//! The backup stream, as `docs/reference/backup-format.md` has it: a header, records in order of offset, an end.

use anyhow::{Result, bail, ensure};
use ring::digest::{Context as Sha, SHA256};
use std::io::{self, Read, Write};

const MAGIC: [u8; 8] = *b"SHDPBKUP";
/// The only version so far.
const VERSION: u32 = 1;
/// Magic, version, length of the rest.
const FIXED: usize = 16;
/// Longest rest of a header.
const HEADER_MAX: usize = 4096;
/// Bytes of a record without its payload.
const HEAD: usize = 32;
/// Longest payload.
pub(crate) const PAYLOAD_MAX: usize = 1 << 20;
const DATA: u32 = 1;
const ZEROS: u32 = 2;
const END: u32 = 3;

/// What a stream is a backup of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The cluster's id.
    pub(crate) cluster: String,
    /// Ids of volume and snapshot in it.
    pub(crate) volume: u64,
    pub(crate) snapshot: u64,
    /// Of the snapshot that it has the differences from; without, it has everything.
    pub(crate) base: Option<u64>,
    /// Bytes of the volume then.
    pub(crate) size: u64,
    /// When the snapshot was taken.
    pub(crate) created_unix_ms: u64,
    /// `VOLUME@TAG`.
    pub(crate) name: String,
    /// The same of the base; empty without.
    pub(crate) base_name: String,
}

/// What happened to a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Data(Vec<u8>),
    /// So many zeros.
    Zeros(u64),
}

/// A range and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) offset: u64,
    pub(crate) body: Body,
}

impl Record {
    pub(crate) fn len(&self) -> u64 {
        match &self.body {
            Body::Data(data) => data.len() as u64,
            Body::Zeros(len) => *len,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.offset + self.len()
    }
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut rest = Vec::new();
        for number in [self.volume, self.snapshot, self.base.unwrap_or(0), self.size, self.created_unix_ms] {
            rest.extend(number.to_le_bytes());
        }
        for text in [&self.cluster, &self.name, &self.base_name] {
            rest.extend((text.len() as u16).to_le_bytes());
            rest.extend(text.as_bytes());
        }
        let mut all = MAGIC.to_vec();
        all.extend(VERSION.to_le_bytes());
        all.extend((rest.len() as u32 + 4).to_le_bytes());
        all.extend(rest);
        all.extend(crc32c::crc32c(&all).to_le_bytes());
        all
    }

    fn decode(rest: &[u8]) -> Option<Self> {
        let mut rest = rest;
        let mut take = |len: usize| -> Option<&[u8]> {
            let (now, later) = rest.split_at_checked(len)?;
            rest = later;
            Some(now)
        };
        let mut numbers = [0; 5];
        for number in &mut numbers {
            *number = u64::from_le_bytes(*take(8)?.first_chunk()?);
        }
        let mut texts = Vec::new();
        for _ in 0..3 {
            let len = u16::from_le_bytes(*take(2)?.first_chunk()?);
            texts.push(String::from_utf8(take(usize::from(len))?.to_vec()).ok()?);
        }
        let [volume, snapshot, base, size, created_unix_ms] = numbers;
        let [cluster, name, base_name] = <[String; 3]>::try_from(texts).ok()?;
        let base = (base != 0).then_some(base);
        // No name in a cluster has such, and they would do something to a terminal.
        if [&cluster, &name, &base_name].iter().any(|text| text.contains(char::is_control)) {
            return None;
        }
        rest.is_empty().then_some(Self {
            cluster,
            volume,
            snapshot,
            base,
            size,
            created_unix_ms,
            name,
            base_name,
        })
    }
}

/// What both sides know of the part of the stream that is behind them.
#[derive(Clone)]
pub(crate) struct State {
    sha: Sha,
    /// Checksum of the last head.
    chain: u32,
    records: u64,
    /// End of the last range.
    pub(crate) at: u64,
    size: u64,
    /// Bytes of the stream.
    pub(crate) length: u64,
}

impl State {
    fn new(header: &[u8], size: u64) -> Self {
        let mut sha = Sha::new(&SHA256);
        sha.update(header);
        let chain = header.last_chunk().map_or(0, |crc| u32::from_le_bytes(*crc));
        Self { sha, chain, records: 0, at: 0, size, length: header.len() as u64 }
    }

    fn head(&self, kind: u32, offset: u64, length: u64, payload: &[u8]) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(&kind.to_le_bytes());
        head[8..16].copy_from_slice(&offset.to_le_bytes());
        head[16..24].copy_from_slice(&length.to_le_bytes());
        head[24..28].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        let crc = crc32c::crc32c_append(self.chain, &head[..28]);
        head[28..].copy_from_slice(&crc.to_le_bytes());
        head
    }

    fn passed(&mut self, head: &[u8; HEAD], payload: &[u8], end: u64) {
        self.sha.update(head);
        self.sha.update(payload);
        self.chain = u32::from_le_bytes(*head.last_chunk().unwrap_or(&[0; 4]));
        self.records += 1;
        self.at = end;
        self.length += (HEAD + payload.len()) as u64;
    }

    /// Checksum of everything up to the head of the end.
    fn sum(&self, head: &[u8; HEAD]) -> Vec<u8> {
        let mut sha = self.sha.clone();
        sha.update(head);
        sha.finish().as_ref().to_vec()
    }
}

/// Makes a stream.
pub(crate) struct Writer<W> {
    to: W,
    state: State,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(mut to: W, header: &Header) -> io::Result<Self> {
        let bytes = header.encode();
        to.write_all(&bytes)?;
        Ok(Self { to, state: State::new(&bytes, header.size) })
    }

    /// Goes on with one that was begun; `to` stands where that ends.
    pub(crate) fn resume(to: W, state: State) -> Self {
        Self { to, state }
    }

    pub(crate) fn put(&mut self, record: &Record) -> io::Result<()> {
        let (kind, payload): (u32, &[u8]) = match &record.body {
            Body::Data(data) => (DATA, data),
            Body::Zeros(_) => (ZEROS, &[]),
        };
        let head = self.state.head(kind, record.offset, record.len(), payload);
        self.to.write_all(&head)?;
        self.to.write_all(payload)?;
        self.state.passed(&head, payload, record.end());
        Ok(())
    }

    /// Nothing follows. Gives the length of the stream.
    pub(crate) fn finish(mut self) -> io::Result<(W, u64)> {
        let head = self.state.head(END, self.state.size, self.state.records, &[]);
        let sum = self.state.sum(&head);
        self.to.write_all(&head)?;
        self.to.write_all(&sum)?;
        self.to.flush()?;
        Ok((self.to, self.state.length + (HEAD + sum.len()) as u64))
    }
}

/// Reads a stream, and believes nothing that is not as it should be.
pub(crate) struct Reader<R> {
    from: R,
    pub(crate) header: Header,
    pub(crate) state: State,
    pub(crate) ended: bool,
}

/// Fills the buffer; `false` if nothing is left at all.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<bool> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if got == 0 => return Ok(false),
            Ok(0) => bail!("the backup breaks off: it was not finished, or it was cut"),
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(mut from: R) -> Result<Self> {
        let mut fixed = [0; FIXED];
        let some = fill(&mut from, &mut fixed)?;
        ensure!(some && fixed.starts_with(&MAGIC), "this is no backup of `dog vdi backup`");
        let number = |at: usize| fixed.get(at..at + 4).and_then(|bytes| bytes.first_chunk()).copied();
        let version = number(8).map_or(0, u32::from_le_bytes);
        ensure!(version == VERSION, "the backup has format version {version}; this program knows {VERSION}");
        let length = number(12).map_or(0, u32::from_le_bytes) as usize;
        ensure!((4..=HEADER_MAX).contains(&length), "the header of the backup is damaged");
        let mut all = fixed.to_vec();
        all.resize(FIXED + length, 0);
        ensure!(
            fill(&mut from, all.get_mut(FIXED..).unwrap_or_default())?,
            "the backup breaks off within its header"
        );
        let (covered, crc) = all.split_last_chunk::<4>().unwrap_or((&[], &[0; 4]));
        ensure!(crc32c::crc32c(covered) == u32::from_le_bytes(*crc), "the header of the backup is damaged");
        let header = Header::decode(covered.get(FIXED..).unwrap_or_default());
        let Some(header) = header else { bail!("the header of the backup is damaged") };
        let state = State::new(&all, header.size);
        Ok(Self { from, header, state, ended: false })
    }

    /// The next range; `None` at the end, which is checked.
    pub(crate) fn next(&mut self) -> Result<Option<Record>> {
        let at = self.state.length;
        let mut head = [0; HEAD];
        ensure!(
            fill(&mut self.from, &mut head)?,
            "the backup breaks off after {at} bytes: it was not finished, or it was cut"
        );
        let damaged = || anyhow::anyhow!("the backup is damaged behind its first {at} bytes");
        let word = |at: usize| {
            head.get(at..at + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
        };
        let long = |at: usize| {
            head.get(at..at + 8).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
        };
        ensure!(crc32c::crc32c_append(self.state.chain, &head[..28]) == word(28) && word(4) == 0, damaged());
        let (kind, offset, length) = (word(0), long(8), long(16));
        if kind == END {
            let mut sum = [0; 32];
            ensure!(fill(&mut self.from, &mut sum)?, "the backup breaks off within its end");
            let right =
                self.state.sum(&head) == sum && (offset, length) == (self.state.size, self.state.records);
            ensure!(right, "the checksum of the whole backup is wrong");
            ensure!(!fill(&mut self.from, &mut [0])?, "something follows the end of the backup");
            self.ended = true;
            return Ok(None);
        }
        let fits = offset >= self.state.at
            && length > 0
            && offset.checked_add(length).is_some_and(|end| end <= self.state.size);
        ensure!(fits && (kind == ZEROS || kind == DATA && length <= PAYLOAD_MAX as u64), damaged());
        let mut payload = vec![0; if kind == DATA { length as usize } else { 0 }];
        ensure!(
            payload.is_empty() || fill(&mut self.from, &mut payload)?,
            "the backup breaks off after {at} bytes"
        );
        ensure!(crc32c::crc32c(&payload) == word(24), damaged());
        self.state.passed(&head, &payload, offset + length);
        let body = if kind == DATA { Body::Data(payload) } else { Body::Zeros(length) };
        Ok(Some(Record { offset, body }))
    }
}

#[cfg(test)]
mod tests;
