//! Group commit: batches of records go into the log one at a time.
//!
//! A batch is written at the same time as the data its records describe, and then one sync makes both
//! durable. The next batch is written only after that sync. So every batch in the log but the last proves that
//! the ones before it are durable, data included; the last one is proved at start-up by reading its data.

use super::{Pending, Phase, Store};
use crate::map::Run;
use crate::record::{BATCH_HEADER_LEN, BatchHeader, Record, encode_batch};
use crate::superblock::{BLOCK, LOG_START, Superblock};
use crate::{DiskResult, Event, Outcome};
use bytes::Bytes;

/// The ring of batches. Positions count blocks from the start of the ring and never wrap.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Where the oldest batch begins that is needed at a start.
    pub(super) tail: u64,
    /// Where the next batch goes.
    pub(super) head: u64,
    /// Newest durable batch.
    pub(super) durable: u64,
    /// Checksum of the newest batch written.
    pub(super) chain: u32,
    /// Number of this opening.
    pub(super) opening: u32,
    /// Blocks of the checkpoint that the superblock names.
    pub(super) chunks: Vec<Run>,
    /// Checksums outside pages when it was made.
    pub(super) delta_then: u64,
}

/// Position after a batch of `blocks` blocks at `at`: where the next one goes. Batches never cross the end of
/// the ring; so that this does not depend on what comes, the ring wraps as soon as the longest batch does not fit.
pub(super) fn next_position(sb: &Superblock, at: u64, blocks: u32) -> u64 {
    let ring = u64::from(sb.log_blocks);
    let after = at + u64::from(blocks);
    let left = ring - after % ring;
    if left < u64::from(sb.batch_blocks) { after + left } else { after }
}

/// Block of the disk at a position.
pub(super) fn log_place(sb: &Superblock, at: u64) -> u32 {
    LOG_START + (at % u64::from(sb.log_blocks)) as u32
}

/// Records that are not in the log yet.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) sequence: u64,
    records: Vec<u8>,
    count: u32,
    /// Data writes of these records that are not done.
    pub(super) open_writes: usize,
    /// Payload bytes of these records.
    pub(super) payload: u64,
    pub(super) flushes: Vec<u64>,
}

impl Batch {
    pub(super) fn push(&mut self, record: &Record) {
        record.encode(&mut self.records);
        self.count += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A batch on its way into the log.
#[derive(Debug)]
pub(super) struct Commit {
    sequence: u64,
    /// Writes still to be done: data, and the batch itself.
    waits: usize,
    syncing: bool,
    pub(super) flushes: Vec<u64>,
}

impl Store {
    /// Bytes of records that make a batch full.
    fn batch_limit(&self) -> usize {
        let most = self.superblock.batch_blocks as usize * BLOCK - BATCH_HEADER_LEN;
        most - crate::record::record_len_max(self.blocks)
    }

    /// True if any record still fits.
    pub(super) fn batch_has_room(&self) -> bool {
        self.batch.records.len() <= self.batch_limit()
    }

    pub(super) fn start_flush(&mut self, token: u64) {
        if !self.batch.is_empty() {
            self.batch.flushes.push(token);
        } else if let Some(commit) = &mut self.commit {
            commit.flushes.push(token);
        } else {
            self.done(token, Ok(Outcome::Done));
        }
    }

    /// True if the log has room for a batch.
    fn log_has_room(&self) -> bool {
        let sb = &self.superblock;
        let end = next_position(sb, self.log.head, sb.batch_blocks);
        let used = end - self.log.tail;
        // The last quarter is kept: for the batch that ends at a checkpoint's instant, and for openings.
        let kept = if self.checkpoint_wants_batch() || !matches!(self.phase, Phase::Serving) {
            0
        } else {
            u64::from(sb.log_blocks / 4)
        };
        used + kept <= u64::from(sb.log_blocks) && self.log_is_clear()
    }

    /// Blocks of the log in use.
    pub(super) fn log_used(&self) -> u64 {
        self.log.head - self.log.tail
    }

    /// Closes the batch and sends it off, if that is wanted and possible.
    pub(super) fn try_commit(&mut self) {
        let full = !self.batch_has_room() || self.batch.payload >= self.config.commit_bytes;
        let wanted = self.commit_wanted || full || !self.batch.flushes.is_empty();
        if !wanted || self.commit.is_some() || !matches!(self.phase, Phase::Serving) {
            return;
        }
        if self.log_has_room() {
            self.close_batch();
        }
    }

    /// Sends the batch off.
    pub(super) fn close_batch(&mut self) {
        self.commit_wanted = false;
        let sequence = self.batch.sequence;
        let next = Batch { sequence: sequence + 1, ..Batch::default() };
        let batch = std::mem::replace(&mut self.batch, next);
        let header = BatchHeader {
            store: self.identity.store,
            sequence,
            opening: self.log.opening,
            chain: self.log.chain,
        };
        let (bytes, crc) = encode_batch(header, batch.count, &batch.records);
        let blocks = (bytes.len() / BLOCK) as u32;
        assert!(blocks <= self.superblock.batch_blocks, "batch longer than the format allows");
        let place = log_place(&self.superblock, self.log.head);
        self.log.head = next_position(&self.superblock, self.log.head, blocks);
        self.log.chain = crc;
        self.issue_write(Pending::Log, place, Bytes::from(bytes));
        let waits = if self.config.mutant.record_before_data() { 1 } else { batch.open_writes + 1 };
        self.commit = Some(Commit { sequence, waits, syncing: false, flushes: batch.flushes });
        self.batch_closed(sequence);
    }

    /// The batch has been written, or not.
    pub(super) fn commit_io(&mut self, result: DiskResult) {
        match result {
            Ok(_) => self.commit_part_done(),
            Err(error) => self.fail(error.into()),
        }
    }

    /// One of the writes that a commit waits for is done.
    pub(super) fn commit_part_done(&mut self) {
        let Some(commit) = &mut self.commit else {
            debug_assert!(self.config.mutant.record_before_data(), "write of a batch that is not under way");
            return;
        };
        commit.waits = commit.waits.saturating_sub(1);
        if commit.waits == 0 && !commit.syncing {
            commit.syncing = true;
            if self.config.mutant.no_sync() {
                return self.commit_synced(Ok(crate::DiskDone::Done));
            }
            self.issue_sync(Pending::CommitSync);
        }
    }

    /// The batch, its data and all before are durable, or nobody knows.
    pub(super) fn commit_synced(&mut self, result: DiskResult) {
        if let Err(error) = result {
            return self.fail(error.into());
        }
        let Some(commit) = self.commit.take() else { return };
        debug_assert_eq!(commit.sequence, self.log.durable + 1, "batches out of order");
        self.log.durable = commit.sequence;
        self.stats.commits += 1;
        for token in commit.flushes {
            self.done(token, Ok(Outcome::Done));
        }
        if matches!(self.phase, Phase::Opening) {
            self.phase = Phase::Serving;
            self.events.push_back(Event::Ready);
        }
        self.release();
    }
}
