//! Changes of objects.

use super::{MERGED_WRITE_MAX, Pending, Store, byte};
use crate::map::{LOST_PLACE, MapRun, Run, ZERO_PLACE};
use crate::record::{Record, record_len_max};
use crate::{Body, DiskOpId, DiskOpKind, DiskResult, FileId, Header, Op, Outcome, Piece, StoreError};
use bytes::Bytes;
use sheep_types::{BLOCK_SIZE, ObjectId};

/// What became of an attempt.
enum Attempt {
    Done,
    Refused(StoreError),
    /// Wait for a commit, a checkpoint or space.
    Wait,
}

impl Store {
    /// Executes a change, or gives it back if it must wait.
    pub(super) fn execute_change(&mut self, token: u64, op: Op) -> Option<Op> {
        if !self.batch_has_room() {
            self.commit_wanted = true;
            return Some(op);
        }
        match self.attempt(&op) {
            Attempt::Wait => return Some(op),
            Attempt::Refused(error) => self.done(token, Err(error)),
            Attempt::Done if self.inflight.bytes > self.config.inflight_bytes => self.held.push_back(token),
            Attempt::Done => self.done(token, Ok(Outcome::Done)),
        }
        None
    }

    fn attempt(&mut self, op: &Op) -> Attempt {
        let record = match op {
            Op::Write { header, create, offset, body } => {
                self.put(header, *create, std::iter::once((*offset, body)))
            }
            Op::Replace { header, pieces } => self.put(header, true, pieces.iter().map(Piece::parts)),
            Op::Patch { header, pieces } => self.put(header, false, pieces.iter().map(Piece::parts)),
            Op::SetHeader { header } => Ok(Record::SetHeader(*header)),
            Op::CloneBlocks { from, header } => Ok(Record::Clone { header: *header, from: *from }),
            Op::Delete { object } if self.index.get(*object).is_none() => return Attempt::Done,
            Op::Delete { object } => Ok(Record::Delete(*object)),
            Op::Read { .. } | Op::Salvage { .. } | Op::Inspect { .. } | Op::Layout { .. } | Op::Flush => {
                return Attempt::Refused(StoreError::Malformed);
            }
        };
        match record {
            Ok(record) => self.record(&record),
            Err(attempt) => attempt,
        }
    }

    /// The record of new contents for some ranges, whose data are on their way from here on. `reset`: whatever
    /// there was goes; without, the object must exist.
    fn put<'a>(
        &mut self,
        header: &Header,
        reset: bool,
        pieces: impl Iterator<Item = (u32, &'a Body)> + Clone,
    ) -> Result<Record, Attempt> {
        if !reset && self.index.get(header.id).is_none() {
            return Err(Attempt::Refused(StoreError::NotFound(header.id)));
        }
        self.check(pieces.clone()).map_err(Attempt::Refused)?;
        let (runs, crcs) = self.place(header.id, reset, pieces)?;
        Ok(Record::Put { header: *header, reset, runs, crcs })
    }

    /// Applies a record and puts it into the batch.
    fn record(&mut self, record: &Record) -> Attempt {
        self.preserve(record);
        let Some(mut effects) = self.index.apply(record) else {
            let missing = match record {
                Record::Clone { from, .. } => *from,
                Record::Put { header, .. } | Record::SetHeader(header) => header.id,
                Record::Delete(id) => *id,
            };
            return Attempt::Refused(StoreError::NotFound(missing));
        };
        if let (true, Record::Put { runs, .. }) = (self.config.mutant.in_place(), record) {
            let overwritten =
                |old: &Run| runs.iter().any(|r| r.place < old.end() && old.place < r.place + r.count());
            effects.dropped.retain(|old| !overwritten(old));
        }
        effects.shared.iter().for_each(|run| self.shares.add(*run));
        for page in effects.shared_pages {
            self.shares.add(Run { place: page.place, len: 1 });
        }
        let mut free = Vec::new();
        for run in effects.dropped {
            free.extend(self.shares.sub(run));
        }
        self.space.free_later(self.batch.sequence, free);
        for page in effects.dropped_pages {
            let unused = self.shares.sub(Run { place: page.place, len: 1 });
            self.retire(unused);
        }
        self.batch.push(record);
        Attempt::Done
    }

    /// Pages have no user any more. The checkpoint on disk may still name them for an object that was folded since: it
    /// has its new pages in memory only.
    pub(super) fn retire(&mut self, pages: Vec<Run>) {
        if self.config.mutant.early_page_reuse() {
            self.space.free_later(self.batch.sequence, pages);
        } else {
            self.retired.extend(pages);
        }
    }

    /// Checks what only a broken caller gets wrong, and that checksums fit. Nothing is changed.
    fn check<'a>(&self, pieces: impl Iterator<Item = (u32, &'a Body)>) -> Result<(), StoreError> {
        let mut end = 0;
        for (offset, body) in pieces {
            let len = u32::try_from(body.len()).map_err(|_| StoreError::Malformed)?;
            let fits = offset.checked_add(len).is_some_and(|e| e <= self.config.geometry.object_size());
            let aligned = offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE);
            if !fits || !aligned || offset < end {
                return Err(StoreError::Malformed);
            }
            end = offset + len;
            if let Body::Data { payload, crcs } = body {
                if crcs.len() != (len / BLOCK_SIZE) as usize {
                    return Err(StoreError::Malformed);
                }
                // A wrong checksum would make the batch look torn at the next start, and take other writes with it.
                for (i, (block, crc)) in payload.chunks(BLOCK_SIZE as usize).zip(crcs).enumerate() {
                    if crc32c::crc32c(block) != *crc {
                        return Err(StoreError::BadChecksum { block: offset / BLOCK_SIZE + i as u32 });
                    }
                }
            }
        }
        Ok(())
    }

    /// Finds places for all data and starts to write them there.
    fn place<'a>(
        &mut self,
        object: ObjectId,
        reset: bool,
        pieces: impl Iterator<Item = (u32, &'a Body)> + Clone,
    ) -> Result<(Vec<MapRun>, Vec<u32>), Attempt> {
        let needed: u32 = pieces
            .clone()
            .filter(|(_, body)| matches!(body, Body::Data { .. }))
            .map(|(_, body)| body.len() as u32 / BLOCK_SIZE)
            .sum();
        let mut places = match self.in_place(object, reset, pieces.clone()) {
            Some(places) => places,
            None => self.take_space(needed, self.place_before(object, reset, &mut pieces.clone()))?,
        }
        .into_iter();
        let (mut runs, mut all_crcs) = (Vec::new(), Vec::new());
        let mut rest: Option<Run> = None;
        for (offset, body) in pieces {
            let (start, blocks) = (offset / BLOCK_SIZE, body.len() as u32 / BLOCK_SIZE);
            let mut push = |at: u32, len: u32, place: u32| {
                if len > 0 {
                    runs.push(MapRun { start: (start + at) as u16, len: len as u16, place });
                }
            };
            let (payload, crcs) = match body {
                Body::Data { payload, crcs } => (payload, crcs),
                Body::Zero { .. } => {
                    push(0, blocks, ZERO_PLACE);
                    continue;
                }
                Body::Lost { crcs } => {
                    all_crcs.extend_from_slice(crcs);
                    push(0, blocks, LOST_PLACE);
                    continue;
                }
            };
            all_crcs.extend_from_slice(crcs);
            let mut at = 0;
            while at < blocks {
                let Some(run) = rest.take().or_else(|| places.next()) else { break };
                let len = run.len.min(blocks - at);
                if len < run.len {
                    rest = Some(Run { place: run.place + len, len: run.len - len });
                }
                push(at, len, run.place);
                let bytes = (at * BLOCK_SIZE) as usize..((at + len) * BLOCK_SIZE) as usize;
                self.write_data(run.place, len, payload.slice(bytes));
                at += len;
            }
        }
        Ok((runs, all_crcs))
    }

    /// Where the block before the first piece is, so that what is written bit by bit ends up in one run.
    fn place_before<'a>(
        &self,
        object: ObjectId,
        reset: bool,
        pieces: &mut impl Iterator<Item = (u32, &'a Body)>,
    ) -> Option<u32> {
        let block = pieces.next()?.0.checked_sub(BLOCK_SIZE)? / BLOCK_SIZE;
        let place = (!reset).then(|| self.index.get(object)?.map.place(block)).flatten()?;
        (place != ZERO_PLACE && place != LOST_PLACE).then_some(place)
    }

    /// Space for a write, or what to do without.
    fn take_space(&mut self, blocks: u32, after: Option<u32>) -> Result<Vec<Run>, Attempt> {
        let reserve = self.reserve() + checkpoint_growth(blocks);
        if self.space.free() >= u64::from(blocks) + reserve
            && let Some(runs) = self.space.take(blocks, after)
        {
            return Ok(runs);
        }
        if blocks == 0 {
            return Ok(Vec::new());
        }
        if self.space.potential() >= u64::from(blocks) + reserve {
            // A failed attempt to grow is not made again before it has been told to whoever waits.
            if !self.growing && self.disk_full && self.space.freed() == 0 {
                self.disk_full = false;
                return Err(Attempt::Refused(StoreError::NoSpace));
            }
            let grows = !self.disk_full && self.grow();
            if self.space.freed() > 0 {
                self.commit_wanted = true;
            }
            if grows || self.space.freed() > 0 {
                return Err(Attempt::Wait);
            }
        }
        Err(Attempt::Refused(StoreError::NoSpace))
    }

    /// The broken variant that overwrites where it can.
    fn in_place<'a>(
        &self,
        object: ObjectId,
        reset: bool,
        mut pieces: impl Iterator<Item = (u32, &'a Body)>,
    ) -> Option<Vec<Run>> {
        if !self.config.mutant.in_place() || reset {
            return None;
        }
        let (offset, body) = pieces.next()?;
        if pieces.next().is_some() {
            return None;
        }
        let (from, to) = (offset / BLOCK_SIZE, offset / BLOCK_SIZE + body.len() as u32 / BLOCK_SIZE);
        let runs: Vec<Run> = self.index.get(object)?.map.range(from, to).filter_map(MapRun::data).collect();
        let whole = matches!(body, Body::Data { .. }) && runs.iter().map(|r| r.len).sum::<u32>() == to - from;
        whole.then_some(runs)
    }

    /// Hands payload to the disk, together with the write before if it goes on where that ends.
    fn write_data(&mut self, place: u32, blocks: u32, data: Bytes) {
        self.prewrite.count(data.len() as u64);
        self.inflight.bytes += data.len() as u64;
        self.batch.payload += data.len() as u64;
        let id = self.merge_data(place, blocks, &data).unwrap_or_else(|| {
            let pending = Pending::Data { batch: self.batch.sequence, buffers: vec![(place, blocks)] };
            self.batch.open_writes += 1;
            self.issue_write(pending, place, data.clone())
        });
        self.inflight.runs.insert(place, (id, data));
    }

    fn merge_data(&mut self, place: u32, blocks: u32, data: &Bytes) -> Option<DiskOpId> {
        let last = self.out.back_mut()?;
        let DiskOpKind::Write { file: FileId::BLOCKS, offset, data: buffers } = &mut last.kind else {
            return None;
        };
        let len: u64 = buffers.iter().map(|b| b.len() as u64).sum();
        let Some(Pending::Data { batch, buffers: places }) = self.pending.get_mut(&last.id) else {
            return None;
        };
        let joins = *batch == self.batch.sequence && *offset + len == byte(place);
        if !joins || len + data.len() as u64 > MERGED_WRITE_MAX {
            return None;
        }
        buffers.push(data.clone());
        places.push((place, blocks));
        Some(last.id)
    }

    /// Payload has been written, or not.
    pub(super) fn data_written(
        &mut self,
        id: DiskOpId,
        batch: u64,
        buffers: &[(u32, u32)],
        result: DiskResult,
    ) {
        if let Err(error) = result {
            // It may have been answered already, and a record may name it.
            return self.fail(error.into());
        }
        for (place, blocks) in buffers {
            self.inflight.bytes -= u64::from(*blocks) * u64::from(BLOCK_SIZE);
            if self.inflight.runs.get(place).is_some_and(|(owner, _)| *owner == id) {
                self.inflight.runs.remove(place);
            }
        }
        if batch == self.batch.sequence {
            self.batch.open_writes -= 1;
        } else {
            self.commit_part_done();
        }
    }

    /// Answers writes that were held back while too much was in flight.
    pub(super) fn answer_held(&mut self) {
        while self.inflight.bytes <= self.config.inflight_bytes
            && let Some(token) = self.held.pop_front()
        {
            self.done(token, Ok(Outcome::Done));
        }
    }
}

/// Blocks by which a write of `blocks` blocks can make the next checkpoint longer.
fn checkpoint_growth(blocks: u32) -> u64 {
    (record_len_max(blocks) as u64).div_ceil(u64::from(BLOCK_SIZE)) + 2
}
