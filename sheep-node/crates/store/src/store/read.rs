//! Reads: from memory what the disk does not have yet, the rest from the disk, checked.

use super::{Pending, Store, bytes_read};
use crate::map::{MapRun, Run};
use crate::sums::{PageRef, in_page};
use crate::{BlockState, DiskResult, Extent, Header, InspectResult, Outcome, ReadResult, StoreError};
use bytes::Bytes;
use sheep_types::{BLOCK_SIZE, ObjectId};

/// Part of a read that the disk is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Piece of data with this number.
    Data(usize),
    /// The checksum page.
    Page(PageRef),
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
    /// The disk could not read it.
    Unreadable,
    /// Not asked for.
    Skipped,
}

#[derive(Debug)]
struct DataPiece {
    /// First block in the object.
    block: u32,
    blocks: u32,
    contents: Contents,
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
    /// Checksum of each data block; `None` until the page is there.
    sums: Vec<Option<u32>>,
    /// Disk operations under way.
    waits: usize,
    inspect: bool,
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
        let object = self.header.id;
        let mut crcs = Vec::with_capacity(self.sums.len());
        let mut data = Vec::new();
        let mut sums = self.sums.into_iter();
        for piece in self.pieces {
            let mut want = Vec::with_capacity(piece.blocks as usize);
            for block in piece.block..piece.block + piece.blocks {
                // The page is lost, and what the block should be with it.
                want.push(sums.next().flatten().ok_or(StoreError::Corrupt { object, block })?);
            }
            match piece.contents {
                Contents::Skipped => {}
                Contents::Memory(bytes) => data.push(bytes),
                Contents::Disk(bytes) => {
                    for (i, (block, crc)) in bytes.chunks(BLOCK_SIZE as usize).zip(&want).enumerate() {
                        if crc32c::crc32c(block) != *crc {
                            return Err(StoreError::Corrupt { object, block: piece.block + i as u32 });
                        }
                    }
                    data.push(bytes);
                }
                Contents::Awaited | Contents::Unreadable => {
                    return Err(StoreError::Unreadable { object, block: piece.block });
                }
            }
            crcs.append(&mut want);
        }
        Ok(if self.inspect {
            Outcome::Inspect(InspectResult { header: self.header, extents: self.extents, crcs })
        } else {
            let version = self.header.version;
            Outcome::Read(ReadResult { version, extents: self.extents, data, crcs })
        })
    }
}

impl Store {
    pub(super) fn start_read(&mut self, token: u64, object: ObjectId, offset: u32, len: u32) {
        let aligned = offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE);
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.config.geometry.object_size());
        if !aligned || !fits {
            return self.done(token, Err(StoreError::Malformed));
        }
        let from = offset / BLOCK_SIZE;
        self.start_job(token, object, (from, from + len / BLOCK_SIZE), false);
    }

    pub(super) fn start_inspect(&mut self, token: u64, object: ObjectId) {
        self.start_job(token, object, (0, self.blocks), true);
    }

    fn start_job(&mut self, token: u64, id: ObjectId, (from, to): (u32, u32), inspect: bool) {
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
            inspect,
        };
        let number = self.next_read;
        self.next_read += 1;
        let mut at = from;
        for run in runs {
            push_extent(&mut job.extents, at, run.first(), BlockState::Absent);
            at = run.end();
            match run.data() {
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
            let (end, memory) = if job.inspect { (run.end(), None) } else { self.inflight_at(at, run.end()) };
            let part = Run { place: at, len: end - at };
            let block = first + (at - run.place);
            push_extent(&mut job.extents, block, block + part.len, BlockState::Data);
            let contents = match memory {
                Some(bytes) => Contents::Memory(bytes),
                None if job.inspect => Contents::Skipped,
                None => {
                    job.waits += 1;
                    let part_number = Part::Data(job.pieces.len());
                    self.issue_read(Pending::Read { job: number, part: part_number }, part);
                    Contents::Awaited
                }
            };
            job.pieces.push(DataPiece { block, blocks: part.len, contents });
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
        match part {
            Part::Data(i) => {
                if let Some(piece) = job.pieces.get_mut(i) {
                    let len = piece.blocks as usize * BLOCK_SIZE as usize;
                    piece.contents = bytes_read(result, len).map_or(Contents::Unreadable, Contents::Disk);
                }
            }
            Part::Page(page) => {
                if let Ok(bytes) = bytes_read(result, BLOCK_SIZE as usize)
                    && page.check(&bytes)
                {
                    job.fill_sums(&bytes);
                    self.pages.insert(page.place, bytes);
                }
            }
        }
        if job.waits == 0
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
