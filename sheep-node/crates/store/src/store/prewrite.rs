//! Space that is written once before it is used.
//!
//! Reserved space that was never written is *unwritten* to a filesystem: the first write of each block changes its
//! metadata too, and a sync then waits for the filesystem's journal. For small durable writes that is most of the time.
//! So zeros go first: into new groups if they will be filled by small writes (large ones would only be written twice),
//! and into the log a little ahead of its end, until it has gone round once.
//!
//! Nothing depends on these writes: no block that a start-up could need is touched.

use super::commit::log_place;
use super::{MERGED_WRITE_MAX, Pending, Store, byte};
use crate::map::Run;
use crate::{DiskError, DiskOpKind, DiskResult, FileId};
use bytes::Bytes;
use sheep_types::BLOCK_SIZE;

/// Mean bytes of the writes since the last growth below which the next groups are written in advance.
const SMALL_MEAN: u64 = 64 << 10;
/// Blocks of a write of zeros.
const PIECE_BLOCKS: u32 = MERGED_WRITE_MAX as u32 / BLOCK_SIZE;

const ZEROS_LEN: usize = 64 << 10;

/// Aligned, so that no disk needs a copy.
#[repr(align(4096))]
struct Zeros([u8; ZEROS_LEN]);

static ZEROS: Zeros = Zeros([0; ZEROS_LEN]);

/// What decides what is written in advance.
#[derive(Debug, Default)]
pub(super) struct Prewrite {
    /// Writes since the last growth, and their bytes.
    writes: u64,
    bytes: u64,
    /// Where the log has never been written; `None` once it has gone round, or if that is not known.
    log: Option<Unwritten>,
}

/// The unwritten part of the first lap of the log's ring.
#[derive(Clone, Copy, Debug)]
struct Unwritten {
    /// Position up to which zeros have been written, or are on their way.
    from: u64,
    /// First position of those on their way.
    under_way: Option<u64>,
}

impl Prewrite {
    /// A write of so many bytes.
    pub(super) fn count(&mut self, bytes: u64) {
        self.writes += 1;
        self.bytes += bytes;
    }

    /// True if new space will be filled by small writes, as far as the last ones tell. Counts anew from here.
    fn small_writes(&mut self) -> bool {
        let (writes, bytes) = (std::mem::take(&mut self.writes), std::mem::take(&mut self.bytes));
        writes > 0 && bytes / writes < SMALL_MEAN
    }
}

impl Store {
    /// Groups were reserved: they can be used once they are written, if that is worth while.
    pub(super) fn groups_reserved(&mut self, groups: Run) {
        if self.prewrite.small_writes() && self.config.prewrite {
            self.prewrite_groups(groups, groups.place);
        } else {
            self.groups_usable(groups);
        }
    }

    /// Writes zeros from `at` on, one piece after the other so that clients are not kept from the disk.
    fn prewrite_groups(&mut self, groups: Run, at: u32) {
        let end = groups.place + self.space.within_limit(groups) as u32;
        if at >= end {
            return self.groups_usable(groups);
        }
        let blocks = PIECE_BLOCKS.min(end - at);
        self.write_zeros(Pending::PrewriteGroups { groups, next: at + blocks }, at, blocks);
    }

    /// A piece is written. If there was no space for it after all, whatever is written there next will tell.
    pub(super) fn groups_prewritten(&mut self, groups: Run, next: u32, result: DiskResult) {
        match result {
            Ok(_) => self.prewrite_groups(groups, next),
            Err(DiskError::NoSpace) => self.groups_usable(groups),
            Err(error) => self.fail(error.into()),
        }
    }

    /// At start-up: the log has never been written behind its end.
    pub(super) fn log_is_unwritten(&mut self) {
        self.prewrite.log = Some(Unwritten { from: self.log.head, under_way: None });
    }

    /// Writes zeros ahead of the log's end, so far ahead that it is not held up by them.
    pub(super) fn prewrite_log(&mut self) {
        let Some(Unwritten { from, under_way: None }) = self.prewrite.log else { return };
        let sb = &self.superblock;
        let (ring, batch) = (u64::from(sb.log_blocks), u64::from(sb.batch_blocks));
        let piece = u64::from(PIECE_BLOCKS).min(ring / 8);
        if from > self.log.head + 2 * piece {
            return;
        }
        // What the next batches may take is left to them.
        let from = from.max(self.log.head + 2 * batch);
        let end = (from + piece).min(ring);
        if from >= end {
            self.prewrite.log = None;
            return;
        }
        self.prewrite.log = Some(Unwritten { from: end, under_way: Some(from) });
        let place = log_place(sb, from);
        self.write_zeros(Pending::PrewriteLog, place, (end - from) as u32);
    }

    pub(super) fn log_prewritten(&mut self, result: DiskResult) {
        match (&mut self.prewrite.log, result) {
            // Not even a failed write may still be on its way when a batch goes there.
            (_, Err(error)) if error != DiskError::NoSpace => self.fail(error.into()),
            (Some(unwritten), _) => unwritten.under_way = None,
            (None, _) => {}
        }
    }

    /// True if no batch at the log's end could meet zeros that are on their way.
    pub(super) fn log_is_clear(&self) -> bool {
        let (head, batch) = (self.log.head, u64::from(self.superblock.batch_blocks));
        let under_way = self.prewrite.log.and_then(|log| Some((log.under_way?, log.from)));
        under_way.is_none_or(|(from, to)| {
            let next_lap = from + u64::from(self.superblock.log_blocks);
            head + batch <= from || (to <= head && head + batch <= next_lap)
        })
    }

    fn write_zeros(&mut self, pending: Pending, place: u32, blocks: u32) {
        let len = blocks as usize * BLOCK_SIZE as usize;
        let whole = Bytes::from_static(&ZEROS.0);
        let mut data = vec![whole.clone(); len / ZEROS_LEN];
        data.extend((!len.is_multiple_of(ZEROS_LEN)).then(|| whole.slice(..len % ZEROS_LEN)));
        self.issue(pending, DiskOpKind::Write { file: FileId::BLOCKS, offset: byte(place), data });
    }
}
