//! Reads: from memory what the disk does not have yet, the rest from the disk, checked.

use super::{Pending, Store, bytes_read};
use crate::map::{MapRun, Run};
use crate::sums::{PageRef, in_page};
use crate::{BlockState, DiskResult, Extent, Header, InspectResult, Outcome, ReadResult, StoreError};
use bytes::Bytes;
use sheep_types::{BLOCK_SIZE, ObjectId};

/// What a read is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// All contents, or an error.
    Whole,
    /// What can be read.
    Salvage,
    /// States and checksums.
    Inspect,
}

/// Part of a read that the disk is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Piece of data with this number.
    Data(usize),
    /// One block of it, after the disk could not read all of them together.
    Block(usize, u32),
    /// The checksum page.
    Page(PageRef),
    /// The same, after it could not be read or was not right: many blocks depend on it.
    PageAgain(PageRef),
}

/// What is known about a piece of data.
#[derive(Debug)]
enum Contents {
    /// Not read yet.
    Awaited,
    /// From memory: checked when it was written.
    Memory(Bytes),
    /// From the disk, to be checked.
    Disk(Bytes),
    /// From the disk, block by block, to be checked.
    Blocks(Vec<Option<Bytes>>),
    /// The disk could not read it.
    Unreadable,
    /// Not asked for.
    Skipped,
    /// Lost.
    Lost,
}

#[derive(Debug)]
struct DataPiece {
    /// First block in the object.
    block: u32,
    blocks: u32,
    /// Where it is.
    place: u32,
    contents: Contents,
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Corrupt,
    Unreadable,
    Lost,
}

impl Fault {
    fn error(self, object: ObjectId, block: u32) -> StoreError {
        match self {
            Self::Corrupt | Self::Lost => StoreError::Corrupt { object, block },
            Self::Unreadable => StoreError::Unreadable { object, block },
        }
    }

    fn state(self) -> BlockState {
        if self == Self::Lost { BlockState::Lost } else { BlockState::Damaged }
    }
}

impl DataPiece {
    /// Whether a block of it is bad; `sum` is its checksum.
    fn fault(&self, i: u32, sum: Option<u32>) -> Option<Fault> {
        let at = i as usize * BLOCK_SIZE as usize;
        let block = match &self.contents {
            Contents::Lost => return Some(Fault::Lost),
            // The page is lost, and what the block should be with it.
            _ if sum.is_none() => return Some(Fault::Corrupt),
            Contents::Memory(_) | Contents::Skipped => return None,
            Contents::Awaited | Contents::Unreadable => return Some(Fault::Unreadable),
            Contents::Disk(bytes) => bytes.get(at..at + BLOCK_SIZE as usize),
            Contents::Blocks(blocks) => blocks.get(i as usize).and_then(Option::as_deref),
        };
        match block {
            None => Some(Fault::Unreadable),
            Some(block) => (Some(crc32c::crc32c(block)) != sum).then_some(Fault::Corrupt),
        }
    }

    /// The bytes of some of its blocks.
    fn bytes(&self, from: u32, to: u32) -> Option<Bytes> {
        let range = from as usize * BLOCK_SIZE as usize..to as usize * BLOCK_SIZE as usize;
        match &self.contents {
            Contents::Memory(bytes) | Contents::Disk(bytes) => Some(bytes.slice(range)),
            Contents::Blocks(blocks) => {
                let blocks = blocks.get(from as usize..to as usize)?.iter().flatten();
                Some(blocks.flat_map(|block| block.iter().copied()).collect())
            }
            Contents::Awaited | Contents::Unreadable | Contents::Skipped | Contents::Lost => None,
        }
    }
}

/// A read under way.
#[derive(Debug)]
pub(super) struct Job {
    token: u64,
    /// The batch that was being filled when the read began: what it or a later one frees must not be reused.
    start: u64,
    header: Header,
    extents: Vec<Extent>,
    pieces: Vec<DataPiece>,
    /// Checksum of each block that has one; `None` until the page is there.
    sums: Vec<Option<u32>>,
    /// Disk operations under way.
    waits: usize,
    mode: Mode,
}

impl Job {
    pub(super) fn token(&self) -> u64 {
        self.token
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Takes the checksums that are still missing from the page.
    fn fill_sums(&mut self, page: &[u8]) {
        let blocks = self.pieces.iter().flat_map(|p| p.block..p.block + p.blocks);
        for (block, sum) in blocks.zip(&mut self.sums) {
            *sum = sum.or_else(|| in_page(page, block));
        }
    }

    /// The result, once everything is there.
    fn finish(self) -> Result<Outcome, StoreError> {
        let (header, mode) = (self.header, self.mode);
        let (mut extents, mut data) = (Vec::with_capacity(self.extents.len()), Vec::new());
        let mut crcs = Vec::with_capacity(self.sums.len());
        let (mut sums, mut pieces) = (self.sums.as_slice(), self.pieces.iter());
        for extent in self.extents {
            if !extent.state.has_sums() {
                extents.push(extent);
                continue;
            }
            let Some(piece) = pieces.next() else { break };
            let (own, rest) = sums.split_at_checked(piece.blocks as usize).unwrap_or_default();
            sums = rest;
            crcs.extend(own.iter().map(|sum| sum.unwrap_or_default()));
            let (mut first, mut present) = (0, BlockState::Data);
            let mut push = |from: u32, to: u32, state: BlockState| {
                push_extent(&mut extents, piece.block + from, piece.block + to, state);
                let bytes = (from < to && state == BlockState::Data).then(|| piece.bytes(from, to));
                data.extend(bytes.flatten());
            };
            for i in 0..piece.blocks {
                let fault = piece.fault(i, own.get(i as usize).copied().flatten());
                if let (Mode::Whole, Some(fault)) = (mode, fault) {
                    return Err(fault.error(header.id, piece.block + i));
                }
                let state = fault.map_or(BlockState::Data, Fault::state);
                if state != present {
                    push(first, i, present);
                    (first, present) = (i, state);
                }
            }
            push(first, piece.blocks, present);
        }
        Ok(match mode {
            Mode::Inspect => Outcome::Inspect(InspectResult { header, extents, crcs }),
            Mode::Whole | Mode::Salvage => {
                Outcome::Read(ReadResult { version: header.version, extents, data, crcs })
            }
        })
    }
}

impl Store {
    pub(super) fn start_read(&mut self, token: u64, object: ObjectId, range: (u32, u32), mode: Mode) {
        let (offset, len) = range;
        let size = self.config.geometry.object_size();
        let aligned = offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE);
        if !aligned || offset.checked_add(len).is_none_or(|end| end > size) {
            return self.done(token, Err(StoreError::Malformed));
        }
        let from = offset / BLOCK_SIZE;
        self.start_job(token, object, (from, from + len / BLOCK_SIZE), mode);
    }

    pub(super) fn start_inspect(&mut self, token: u64, object: ObjectId) {
        self.start_job(token, object, (0, self.blocks), Mode::Inspect);
    }

    fn start_job(&mut self, token: u64, id: ObjectId, (from, to): (u32, u32), mode: Mode) {
        let Some(object) = self.index.get(id) else {
            return self.done(token, Err(StoreError::NotFound(id)));
        };
        let runs: Vec<MapRun> = object.map.range(from, to).collect();
        let blocks = runs.iter().filter(|r| !r.is_zero()).flat_map(|r| r.first()..r.end());
        let sums: Vec<Option<u32>> = blocks.map(|block| object.sums.in_delta(block)).collect();
        let base = object.sums.base;
        let mut job = Job {
            token,
            start: self.batch.sequence,
            header: object.header,
            extents: Vec::new(),
            pieces: Vec::new(),
            sums,
            waits: 0,
            mode,
        };
        let number = self.next_read;
        self.next_read += 1;
        let mut at = from;
        for run in runs {
            push_extent(&mut job.extents, at, run.first(), BlockState::Absent);
            at = run.end();
            match run.data() {
                None if run.is_lost() => {
                    push_extent(&mut job.extents, run.first(), run.end(), BlockState::Lost);
                    let (block, blocks, contents) = (run.first(), run.count(), Contents::Lost);
                    job.pieces.push(DataPiece { block, blocks, place: run.place, contents });
                }
                None => push_extent(&mut job.extents, run.first(), run.end(), BlockState::Zero),
                Some(data) => self.read_run(number, &mut job, run.first(), data),
            }
        }
        push_extent(&mut job.extents, at, to, BlockState::Absent);
        if job.sums.contains(&None)
            && let Some(base) = base
        {
            match self.pages.get(base.place) {
                Some(page) => job.fill_sums(&page),
                None => {
                    job.waits += 1;
                    let part = Part::Page(base);
                    self.issue_read(Pending::Read { job: number, part }, Run { place: base.place, len: 1 });
                }
            }
        }
        if job.waits == 0 {
            let result = job.finish();
            return self.done(token, result);
        }
        self.reads.insert(number, job);
    }

    /// Gets a run of data from wherever it is. Each part becomes an extent of its own, so that nothing is copied.
    fn read_run(&mut self, number: u64, job: &mut Job, first: u32, run: Run) {
        let mut at = run.place;
        while at < run.end() {
            let inspect = job.mode == Mode::Inspect;
            let (end, memory) = if inspect { (run.end(), None) } else { self.inflight_at(at, run.end()) };
            let part = Run { place: at, len: end - at };
            let block = first + (at - run.place);
            push_extent(&mut job.extents, block, block + part.len, BlockState::Data);
            let contents = match memory {
                Some(bytes) => Contents::Memory(bytes),
                None if inspect => Contents::Skipped,
                None => {
                    job.waits += 1;
                    let part_number = Part::Data(job.pieces.len());
                    self.issue_read(Pending::Read { job: number, part: part_number }, part);
                    Contents::Awaited
                }
            };
            job.pieces.push(DataPiece { block, blocks: part.len, place: at, contents });
            at = end;
        }
    }

    /// How far the blocks from `at` on are all in flight (with their bytes) or all on the disk.
    fn inflight_at(&self, at: u32, end: u32) -> (u32, Option<Bytes>) {
        let runs = &self.inflight.runs;
        if let Some((&place, (_, bytes))) = runs.range(..=at).next_back() {
            let run_end = place + (bytes.len() / BLOCK_SIZE as usize) as u32;
            if at < run_end {
                let end = end.min(run_end);
                let range =
                    (at - place) as usize * BLOCK_SIZE as usize..(end - place) as usize * BLOCK_SIZE as usize;
                return (end, Some(bytes.slice(range)));
            }
        }
        let next = runs.range(at..end).next().map_or(end, |(&place, _)| place);
        (next, None)
    }

    /// A part of a read is there, or lost.
    pub(super) fn read_done(&mut self, number: u64, part: Part, result: DiskResult) {
        let Some(job) = self.reads.get_mut(&number) else { return };
        job.waits -= 1;
        let salvage = job.mode == Mode::Salvage;
        let (mut again, mut page_again) = (None, None);
        match part {
            Part::Data(i) => {
                if let Some(piece) = job.pieces.get_mut(i) {
                    let len = piece.blocks as usize * BLOCK_SIZE as usize;
                    piece.contents = match bytes_read(result, len) {
                        Ok(bytes) => Contents::Disk(bytes),
                        Err(_) if salvage && piece.blocks > 1 => {
                            job.waits += piece.blocks as usize;
                            again = Some((i, Run { place: piece.place, len: piece.blocks }));
                            Contents::Blocks(vec![None; piece.blocks as usize])
                        }
                        Err(_) => Contents::Unreadable,
                    };
                }
            }
            Part::Block(i, k) => {
                if let Some(Contents::Blocks(blocks)) = job.pieces.get_mut(i).map(|piece| &mut piece.contents)
                    && let Some(block) = blocks.get_mut(k as usize)
                {
                    *block = bytes_read(result, BLOCK_SIZE as usize).ok();
                }
            }
            Part::Page(page) | Part::PageAgain(page) => {
                let bytes = bytes_read(result, BLOCK_SIZE as usize).ok().filter(|bytes| page.check(bytes));
                if let Some(bytes) = bytes {
                    job.fill_sums(&bytes);
                    self.pages.insert(page.place, bytes);
                } else if part == Part::Page(page) {
                    job.waits += 1;
                    page_again = Some(page);
                }
            }
        }
        if let Some(page) = page_again {
            let run = Run { place: page.place, len: 1 };
            self.issue_read(Pending::Read { job: number, part: Part::PageAgain(page) }, run);
            return;
        }
        if let Some((i, run)) = again {
            for k in 0..run.len {
                let one = Run { place: run.place + k, len: 1 };
                self.issue_read(Pending::Read { job: number, part: Part::Block(i, k) }, one);
            }
        } else if job.waits == 0
            && let Some(job) = self.reads.remove(&number)
        {
            let token = job.token;
            self.done(token, job.finish());
            self.release();
        }
    }
}

fn push_extent(extents: &mut Vec<Extent>, from: u32, to: u32, state: BlockState) {
    if from < to {
        extents.push(Extent { offset: from * BLOCK_SIZE, len: (to - from) * BLOCK_SIZE, state });
    }
}
