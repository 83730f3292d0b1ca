//! The log at start-up: every batch but the last is proved by the one after it; the last by its data.

use super::commit::{log_place, next_position};
use super::startup::Step;
use super::{Pending, Store, bytes_read};
use crate::map::Run;
use crate::record::{Batch, Record};
use crate::superblock::{BLOCK, LOG_START};
use crate::{DiskResult, StoreError};
use bytes::Bytes;
use sheep_types::BLOCK_SIZE;

/// Blocks of the log read at once, unless two batches need more.
const WINDOW_BLOCKS: u32 = 256;
/// Blocks of data read at once.
const VERIFY_BLOCKS: u32 = 256;

/// Data of the last batch: where it should be, and its checksums.
type Claim = (Run, Vec<u32>);

#[derive(Debug)]
enum Stage {
    /// Reads the ring from `window_start` on.
    Window { window_start: u64, blocks: u32 },
    /// The log ends, if the start of the ring does not hold what should come after the next batch.
    RingStart,
    /// Reads the data of the last batch; the first claim is being read.
    Verify(Vec<Claim>),
}

/// How far the log has been read.
#[derive(Debug)]
pub(super) struct Replay {
    stage: Stage,
    /// Where the next batch should be, and its number.
    pub(super) position: u64,
    pub(super) expected: u64,
    /// Behind the log's end are zeros: it has not gone round yet.
    pub(super) unwritten: bool,
    /// Checksum and opening of the newest batch.
    pub(super) chain: u32,
    pub(super) opening: u32,
    /// The newest batch, not applied yet, and what to go back to if it is not proved.
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    records: Vec<Record>,
    position: u64,
    sequence: u64,
    chain: u32,
}

impl Store {
    pub(super) fn start_replay(&mut self) -> Step {
        let sb = &self.superblock;
        let position = u64::from(sb.log_position);
        let replay = Replay {
            stage: Stage::RingStart,
            unwritten: false,
            position,
            expected: sb.log_sequence,
            chain: sb.log_chain,
            opening: sb.opening,
            last: None,
        };
        self.read_window(replay)
    }

    fn read_window(&mut self, mut replay: Replay) -> Step {
        let sb = &self.superblock;
        let place = log_place(sb, replay.position);
        let left = LOG_START + sb.log_blocks - place;
        let blocks = left.min(WINDOW_BLOCKS.max(2 * sb.batch_blocks + 1));
        replay.stage = Stage::Window { window_start: replay.position, blocks };
        self.startup_read(Run { place, len: blocks });
        Step::Log(Box::new(replay))
    }

    /// The read of a replay is done.
    pub(super) fn replay_step(&mut self, replay: Replay, result: DiskResult) -> Result<Step, StoreError> {
        match replay.stage {
            Stage::Window { window_start, blocks } => {
                let bytes = bytes_read(result, blocks as usize * BLOCK)?;
                self.window_read(replay, window_start, &bytes)
            }
            Stage::RingStart => {
                let bytes = bytes_read(result, self.superblock.batch_blocks as usize * BLOCK)?;
                if self.comes_after(&replay, &bytes) {
                    return Err(StoreError::LogCorrupt);
                }
                self.start_verify(replay)
            }
            Stage::Verify(_) => self.verify_step(replay, result),
        }
    }

    /// Takes the batches in a window of the ring.
    fn window_read(&mut self, mut replay: Replay, start: u64, bytes: &Bytes) -> Result<Step, StoreError> {
        let sb = self.superblock;
        loop {
            let ring = u64::from(sb.log_blocks);
            let wrapped = replay.position / ring != start / ring;
            let offset = (replay.position - start) as usize * BLOCK;
            let rest = bytes.get(offset..).unwrap_or_default();
            // A batch never crosses the ring's end, so a short window is enough there.
            let at_end = (start + (bytes.len() / BLOCK) as u64).is_multiple_of(ring);
            let enough =
                !wrapped && !rest.is_empty() && (at_end || rest.len() > 2 * sb.batch_blocks as usize * BLOCK);
            if !enough && replay.position != start {
                return Ok(self.read_window(replay));
            }
            let batch = Batch::decode(rest, sb.identity.store).filter(|b| {
                (b.header.sequence, b.header.chain) == (replay.expected, replay.chain)
                    && b.header.opening >= replay.opening
                    && b.blocks <= sb.batch_blocks
            });
            let Some(batch) = batch else { return self.log_ends(replay, rest, at_end) };
            let records = batch.records(self.blocks).ok_or(StoreError::LogCorrupt)?;
            self.apply_last(&mut replay)?;
            replay.last = Some(Last {
                records,
                position: replay.position,
                sequence: replay.expected,
                chain: replay.chain,
            });
            replay.position = next_position(&sb, replay.position, batch.blocks);
            replay.expected += 1;
            replay.chain = batch.crc;
            replay.opening = batch.header.opening;
        }
    }

    /// No batch is where the next should be. If one after it is there or where the one after could be, it was
    /// durable, and is damaged.
    fn log_ends(&mut self, mut replay: Replay, rest: &[u8], at_end: bool) -> Result<Step, StoreError> {
        replay.unwritten = rest.get(..BLOCK).is_some_and(|block| block.iter().all(|byte| *byte == 0));
        let after = self.superblock.batch_blocks as usize;
        for (i, _) in rest.chunks(BLOCK).take(after + 1).enumerate() {
            if self.comes_after(&replay, rest.get(i * BLOCK..).unwrap_or_default()) {
                return Err(StoreError::LogCorrupt);
            }
        }
        if at_end {
            replay.stage = Stage::RingStart;
            self.startup_read(Run { place: LOG_START, len: self.superblock.batch_blocks });
            return Ok(Step::Log(Box::new(replay)));
        }
        self.start_verify(replay)
    }

    /// True if the batch after the expected one is here.
    fn comes_after(&self, replay: &Replay, bytes: &[u8]) -> bool {
        Batch::decode(bytes, self.superblock.identity.store)
            .is_some_and(|b| b.header.sequence > replay.expected && b.header.opening >= replay.opening)
    }

    fn apply_last(&mut self, replay: &mut Replay) -> Result<(), StoreError> {
        for record in replay.last.take().map(|last| last.records).unwrap_or_default() {
            // Use of blocks is counted when everything is applied.
            self.index.apply(&record).ok_or(StoreError::LogCorrupt)?;
        }
        Ok(())
    }

    fn start_verify(&mut self, replay: Replay) -> Result<Step, StoreError> {
        let mut claims: Vec<Claim> = Vec::new();
        let records = replay.last.iter().flat_map(|last| &last.records);
        for record in records {
            let Record::Put { runs, crcs, .. } = record else { continue };
            let mut crcs = crcs.as_slice();
            for run in runs.iter().filter(|run| !run.is_zero()) {
                let Some((now, later)) = crcs.split_at_checked(run.count() as usize) else { break };
                crcs = later;
                // What is lost is nowhere.
                let Some(run) = run.data() else { continue };
                for (i, part) in now.chunks(VERIFY_BLOCKS as usize).enumerate() {
                    let place = run.place.saturating_add(i as u32 * VERIFY_BLOCKS);
                    claims.push((Run { place, len: part.len() as u32 }, part.to_vec()));
                }
            }
        }
        if self.config.mutant.no_verify() || self.config.mutant.record_before_data() {
            claims.clear();
        }
        // The next to be read is at the end.
        claims.reverse();
        self.verify_next(replay, claims)
    }

    fn verify_next(&mut self, mut replay: Replay, claims: Vec<Claim>) -> Result<Step, StoreError> {
        if let Some((run, _)) = claims.last() {
            self.startup_read(*run);
            replay.stage = Stage::Verify(claims);
            return Ok(Step::Log(Box::new(replay)));
        }
        self.apply_last(&mut replay)?;
        Ok(self.sync_replayed(replay))
    }

    /// What was found may be in caches only; it must be durable before anything is built on it.
    fn sync_replayed(&mut self, replay: Replay) -> Step {
        self.issue_sync(Pending::Startup);
        Step::Sync(Box::new(replay))
    }

    fn verify_step(&mut self, mut replay: Replay, result: DiskResult) -> Result<Step, StoreError> {
        let Stage::Verify(claims) = &mut replay.stage else { return Err(StoreError::LogCorrupt) };
        let mut claims = std::mem::take(claims);
        let Some((run, crcs)) = claims.pop() else { return Err(StoreError::LogCorrupt) };
        // A medium error says nothing about what was written; the block is reported when it is read.
        if let Ok(bytes) = bytes_read(result, run.len as usize * BLOCK) {
            let mut blocks = bytes.chunks(BLOCK_SIZE as usize).zip(&crcs);
            if blocks.any(|(block, crc)| crc32c::crc32c(block) != *crc) {
                // The batch was not durable, so nothing in it was flushed: as if it had never been.
                if let Some(last) = replay.last.take() {
                    replay.position = last.position;
                    replay.expected = last.sequence;
                    replay.chain = last.chain;
                }
                return Ok(self.sync_replayed(replay));
            }
        }
        self.verify_next(replay, claims)
    }
}
