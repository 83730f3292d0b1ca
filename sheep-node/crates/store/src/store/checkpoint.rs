//! Checkpoints: the whole index written to free space, so that the log before it can be forgotten.
//!
//! 1. *Fold*: long deltas become pages. This changes where checksums are kept, not what they are.
//! 2. *Freeze*: at the end of a batch. The checkpoint holds the state after that batch.
//! 3. *Walk*: object records are written chunk by chunk. Changes go on; an object that is changed before the
//!    walk has come to it is recorded first, as it was.
//! 4. When chunks, pages and the batch are durable, the superblock is switched: first copy, sync, second copy.
//!    Only then is freed what the old checkpoint used.

use super::{Pending, Phase, Store, bytes_read};
use crate::DiskResult;
use crate::index::Object;
use crate::map::Run;
use crate::record::{CHUNK_HEADER_LEN, ChunkHeader, Record, encode_chunk, put_object};
use crate::sums::{Folded, PageRef, map_page};
use crate::superblock::{BLOCK, CheckpointRoot, SLOT_BLOCKS, Superblock};
use bytes::Bytes;
use sheep_types::{BLOCK_SIZE, ObjectId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Blocks of a chunk, where there is such a run.
const CHUNK_BLOCKS: u32 = 64;
/// Chunks on their way to the disk at once.
const CHUNKS_AT_ONCE: usize = 2;
/// Pages on their way at once.
const FOLDS_AT_ONCE: usize = 16;

/// Most blocks that a checkpoint with `bytes` bytes of object records takes.
pub(super) fn blocks_for(bytes: u64) -> u64 {
    // In the worst case each block is a chunk of its own.
    bytes.div_ceil((BLOCK - CHUNK_HEADER_LEN) as u64) + 1
}

/// A disk operation of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) enum Io {
    FoldRead(ObjectId),
    FoldWrite(ObjectId),
    Chunk,
    Sync,
    FirstSlot,
    SlotSync,
    SecondSlot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fold,
    Freeze,
    Walk,
    /// Waits for chunks, and for the batch it was frozen at.
    Write,
    /// Waits for a sync or superblock write.
    Switch,
}

#[derive(Debug, Default)]
struct Fold {
    /// The old sums page.
    base: Option<PageRef>,
    new: Folded,
    /// Writes under way.
    waits: usize,
    /// The object's map is being read.
    unmapped: bool,
    /// The object was replaced or deleted meanwhile.
    cancelled: bool,
}

/// A checkpoint in the making.
#[derive(Debug)]
pub(super) struct Checkpoint {
    stage: Stage,
    to_fold: VecDeque<ObjectId>,
    folds: BTreeMap<ObjectId, Fold>,
    /// Pages that were out of use at the freeze.
    retired: Vec<Run>,
    /// Last batch it holds.
    frozen: u64,
    /// The superblock it will have; the checkpoint's root fills up as it is written.
    superblock: Superblock,
    /// End of the log at the freeze.
    log_position: u64,
    /// First object that the walk has not come to; `None` if it is through.
    cursor: Option<ObjectId>,
    /// Objects from there on that are recorded already, or did not exist at the freeze.
    passed: BTreeSet<ObjectId>,
    /// Object records not written yet.
    stream: Vec<u8>,
    /// Bytes still expected, for the size of chunks.
    expected: u64,
    chunks: Vec<Run>,
    /// Chunks that have been sent off.
    sent: usize,
    waits: usize,
}

impl Store {
    /// Begins a checkpoint if it is time.
    pub(super) fn want_checkpoint(&mut self) {
        let long = self.log_used() > u64::from(self.superblock.log_blocks / 2);
        let much = self.index.delta() > self.log.delta_then + self.config.delta_limit;
        if self.checkpoint.is_some() || !(long || much) {
            return;
        }
        self.checkpoint = Some(Box::new(Checkpoint {
            stage: Stage::Fold,
            to_fold: self.index.to_fold(self.config.fold_above).into(),
            folds: BTreeMap::new(),
            retired: Vec::new(),
            frozen: 0,
            superblock: self.superblock,
            log_position: 0,
            cursor: None,
            passed: BTreeSet::new(),
            stream: Vec::new(),
            expected: 0,
            chunks: Vec::new(),
            sent: 0,
            waits: 0,
        }));
    }

    /// True if the next batch ends at a checkpoint's instant.
    pub(super) fn checkpoint_wants_batch(&self) -> bool {
        self.checkpoint.as_ref().is_some_and(|c| c.stage == Stage::Freeze)
    }

    /// Moves the checkpoint on as far as possible.
    pub(super) fn move_checkpoint(&mut self) {
        if !matches!(self.phase, Phase::Serving) {
            return;
        }
        let Some(mut cp) = self.checkpoint.take() else { return };
        if cp.stage == Stage::Fold {
            self.fold_more(&mut cp);
        }
        if cp.stage == Stage::Freeze {
            if self.batch.is_empty() && self.batch.open_writes == 0 {
                self.freeze(&mut cp, self.batch.sequence - 1);
            } else if self.commit.is_none() {
                // `try_commit` closes the batch, and `batch_closed` freezes.
                self.checkpoint = Some(cp);
                self.commit_wanted = true;
                return self.try_commit();
            }
        }
        if cp.stage == Stage::Walk {
            self.walk(&mut cp);
        }
        let mutant = self.config.mutant;
        let log_durable = self.log.durable >= cp.frozen || mutant.checkpoint_before_log();
        if cp.stage == Stage::Write && cp.waits == 0 && log_durable {
            cp.stage = Stage::Switch;
            if mutant.early_switch() || mutant.no_sync_before_superblock() {
                self.write_slot(&cp, 0, Io::FirstSlot);
            } else {
                self.issue_sync(Pending::Checkpoint(Io::Sync));
            }
        }
        self.checkpoint = Some(cp);
    }

    /// Begins to fold more objects.
    fn fold_more(&mut self, cp: &mut Checkpoint) {
        while cp.folds.len() < FOLDS_AT_ONCE
            && let Some(id) = cp.to_fold.pop_front()
        {
            let long = |o: &&Object| o.sums.delta().len() > self.config.fold_above;
            let Some(object) = self.index.get(id).filter(long) else { continue };
            let missing = object.missing_map();
            let fold = Fold { base: object.sums.base, unmapped: missing.is_some(), ..Fold::default() };
            cp.folds.insert(id, fold);
            match missing {
                Some(page) => self.read_map(id, page),
                None => self.fold_object(cp, id),
            }
        }
        if cp.folds.is_empty() && cp.to_fold.is_empty() {
            cp.stage = Stage::Freeze;
        }
    }

    /// The map of an object was read, maybe for a fold.
    pub(super) fn fold_mapped(&mut self, id: ObjectId) {
        let Some(mut cp) = self.checkpoint.take() else { return };
        if cp.folds.get_mut(&id).is_some_and(|fold| std::mem::take(&mut fold.unmapped)) {
            self.fold_object(&mut cp, id);
        }
        self.checkpoint = Some(cp);
    }

    /// Folds an object whose map is whole.
    fn fold_object(&mut self, cp: &mut Checkpoint, id: ObjectId) {
        let base = cp.folds.get(&id).and_then(|fold| fold.base);
        match base.map(|base| (base, self.pages.get(base.place))) {
            Some((base, None)) => {
                let run = Run { place: base.place, len: 1 };
                self.issue_read(Pending::Checkpoint(Io::FoldRead(id)), run);
            }
            Some((_, Some(page))) => self.fold_write(cp, id, Some(&page)),
            None => self.fold_write(cp, id, None),
        }
    }

    /// Writes the new pages of an object.
    fn fold_write(&mut self, cp: &mut Checkpoint, id: ObjectId, old: Option<&[u8]>) {
        let (Some(fold), Some(object)) = (cp.folds.get_mut(&id), self.index.get(id)) else { return };
        let many = object.map.runs().len() > self.config.inline_runs;
        let mut places = Vec::new();
        while places.len() < 1 + usize::from(many)
            && !fold.cancelled
            && let Some(run) = self.space.take_one(1)
        {
            places.push(run);
        }
        if places.len() < 1 + usize::from(many) {
            // Without pages the delta just stays long.
            places.into_iter().for_each(|run| self.space.give(run));
            cp.folds.remove(&id);
            return;
        }
        fold.new.sums = Bytes::from(object.sums.folded(old));
        fold.new.map = many.then(|| Bytes::from(map_page(&object.map)));
        let pages = [Some(fold.new.sums.clone()), fold.new.map.clone()].into_iter().flatten();
        fold.new.sums_place = places.first().map_or(0, |run| run.place);
        fold.new.map_place = places.get(1).map_or(0, |run| run.place);
        fold.waits = places.len();
        for (run, page) in places.into_iter().zip(pages) {
            self.issue_write(Pending::Checkpoint(Io::FoldWrite(id)), run.place, page);
        }
    }

    /// A page is written. Once all are, the object uses them.
    fn folded(&mut self, cp: &mut Checkpoint, id: ObjectId) {
        if let Some(fold) = cp.folds.get_mut(&id)
            && fold.waits > 1
        {
            fold.waits -= 1;
            return;
        }
        let Some(Fold { new, cancelled, .. }) = cp.folds.remove(&id) else { return };
        let old = (!cancelled).then(|| {
            self.index.change(id, |object| {
                let old: Vec<PageRef> = object.sums.pages().collect();
                object.sums.rebase(&new, &object.map);
                object.map.trim();
                old
            })
        });
        let Some(old) = old.flatten() else {
            let places = [Some(new.sums_place), new.map.map(|_| new.map_place)];
            places.into_iter().flatten().for_each(|place| self.space.give(Run { place, len: 1 }));
            return;
        };
        self.stats.pages += 1 + u64::from(new.map.is_some());
        self.pages.insert(new.sums_place, new.sums);
        for page in old {
            let unused = self.shares.sub(Run { place: page.place, len: 1 });
            self.retire(unused);
        }
    }

    /// Fixes the instant of the checkpoint: the end of batch `sequence`, which is the newest one closed.
    fn freeze(&mut self, cp: &mut Checkpoint, sequence: u64) {
        debug_assert!(self.batch.is_empty(), "frozen within a batch");
        cp.frozen = sequence;
        cp.retired = std::mem::take(&mut self.retired);
        cp.log_position = self.log.head;
        cp.superblock.sequence += 1;
        cp.superblock.log_position = (self.log.head % u64::from(self.superblock.log_blocks)) as u32;
        cp.superblock.log_sequence = sequence + 1;
        cp.superblock.log_chain = self.log.chain;
        cp.superblock.opening = self.log.opening;
        cp.superblock.checkpoint = CheckpointRoot::default();
        cp.cursor = Some(ObjectId(0));
        cp.expected = self.index.checkpoint_bytes();
        cp.stage = Stage::Walk;
    }

    /// A batch was closed: a checkpoint that waits for this is frozen here.
    pub(super) fn batch_closed(&mut self, sequence: u64) {
        if let Some(mut cp) = self.checkpoint.take() {
            if cp.stage == Stage::Freeze {
                self.freeze(&mut cp, sequence);
            }
            self.checkpoint = Some(cp);
        }
    }

    /// Before a record is applied: what the checkpoint must know of the object as it was.
    pub(super) fn preserve(&mut self, record: &Record) {
        let Some(cp) = &mut self.checkpoint else { return };
        let (id, replaced) = match record {
            Record::Put { header, reset, .. } => (header.id, *reset),
            Record::SetHeader(header) => (header.id, false),
            Record::Clone { header, .. } => (header.id, true),
            Record::Delete(id) => (*id, true),
        };
        if replaced && let Some(fold) = cp.folds.get_mut(&id) {
            fold.cancelled = true;
        }
        if cp.stage == Stage::Walk
            && cp.cursor.is_some_and(|at| id >= at)
            && cp.passed.insert(id)
            && let Some(object) = self.index.get(id)
        {
            cp.add(object);
        }
    }

    /// Writes as many chunks as may be on their way at once.
    fn walk(&mut self, cp: &mut Checkpoint) {
        while cp.waits < CHUNKS_AT_ONCE && cp.stage == Stage::Walk {
            if cp.chunks.is_empty() {
                if self.index.len() == 0 && cp.stream.is_empty() {
                    cp.stage = Stage::Write;
                    return;
                }
                let Some(first) = self.chunk_space(cp) else { return };
                cp.superblock.checkpoint.place = first.place;
                cp.superblock.checkpoint.blocks = first.len;
                cp.chunks.push(first);
            }
            let Some(&here) = cp.chunks.get(cp.sent) else { return };
            let room = here.len as usize * BLOCK - CHUNK_HEADER_LEN;
            self.fill(cp, room);
            let last = cp.cursor.is_none() && cp.stream.len() <= room;
            let mut next = Run { place: 0, len: 0 };
            if !last {
                let Some(run) = self.chunk_space(cp) else { return };
                cp.chunks.push(run);
                next = run;
            }
            let rest = cp.stream.split_off(room.min(cp.stream.len()));
            let payload = std::mem::replace(&mut cp.stream, rest);
            cp.expected = cp.expected.saturating_sub(payload.len() as u64);
            let header = ChunkHeader {
                store: self.identity.store,
                sequence: cp.superblock.sequence,
                index: cp.sent as u32,
                next_place: next.place,
                next_blocks: next.len,
            };
            self.issue_write(
                Pending::Checkpoint(Io::Chunk),
                here.place,
                encode_chunk(header, &payload).into(),
            );
            cp.sent += 1;
            cp.waits += 1;
            if last {
                cp.stage = Stage::Write;
                if self.config.mutant.early_switch() {
                    cp.waits = 0;
                }
            }
        }
    }

    /// Walks on until a chunk is full.
    fn fill(&self, cp: &mut Checkpoint, room: usize) {
        let Some(from) = cp.cursor else { return };
        for object in self.index.from(from) {
            let id = object.header.id;
            cp.cursor = Some(id);
            if cp.stream.len() > room {
                return;
            }
            if !cp.passed.remove(&id) {
                cp.add(object);
            }
        }
        cp.cursor = None;
        cp.passed.clear();
    }

    /// Room for another chunk; `None` if it must wait.
    fn chunk_space(&mut self, cp: &Checkpoint) -> Option<Run> {
        let blocks = (cp.expected / u64::from(BLOCK_SIZE) + 1).min(u64::from(CHUNK_BLOCKS)) as u32;
        let run = self.space.take_one(blocks);
        if run.is_none() {
            // What is kept in reserve has run out: a commit makes freed space usable, or more can be had.
            self.commit_wanted |= self.space.freed() > 0;
            self.grow();
        }
        run
    }

    /// A part of the checkpoint is done, or failed.
    pub(super) fn checkpoint_io(&mut self, io: Io, result: DiskResult) {
        let Some(mut cp) = self.checkpoint.take() else { return };
        if let Io::FoldRead(id) = io {
            self.fold_read(&mut cp, id, result);
            self.checkpoint = Some(cp);
            return;
        }
        if let Err(error) = result {
            return self.fail(error.into());
        }
        match io {
            Io::FoldRead(_) => {}
            Io::FoldWrite(id) => self.folded(&mut cp, id),
            Io::Chunk => cp.waits = cp.waits.saturating_sub(1),
            Io::Sync => self.write_slot(&cp, 0, Io::FirstSlot),
            Io::FirstSlot
                if self.config.mutant.early_switch() || self.config.mutant.no_sync_after_superblock() =>
            {
                self.switch(&mut cp);
            }
            Io::FirstSlot => self.issue_sync(Pending::Checkpoint(Io::SlotSync)),
            Io::SlotSync => self.switch(&mut cp),
            // Made durable by the sync of the next commit, or of the next checkpoint at the latest.
            Io::SecondSlot => return,
        }
        self.checkpoint = Some(cp);
    }

    fn fold_read(&mut self, cp: &mut Checkpoint, id: ObjectId, result: DiskResult) {
        let Some(fold) = cp.folds.get(&id) else { return };
        let page =
            bytes_read(result, BLOCK).ok().filter(|page| fold.base.is_some_and(|base| base.check(page)));
        match page {
            Some(page) if !fold.cancelled => self.fold_write(cp, id, Some(&page)),
            // Folding over a lost page would give its blocks false checksums. They stay lost, and the delta long.
            _ => drop(cp.folds.remove(&id)),
        }
    }

    fn write_slot(&mut self, cp: &Checkpoint, slot: usize, io: Io) {
        let place = SLOT_BLOCKS.get(slot).copied().unwrap_or_default();
        self.issue_write(Pending::Checkpoint(io), place, cp.superblock.encode().into());
    }

    /// The new superblock is durable: what only the old one needed is free.
    fn switch(&mut self, cp: &mut Checkpoint) {
        self.superblock = cp.superblock;
        self.stats.checkpoints += 1;
        self.log.tail = cp.log_position;
        self.log.delta_then = self.index.delta();
        for run in std::mem::replace(&mut self.log.chunks, std::mem::take(&mut cp.chunks)) {
            self.space.give(run);
        }
        // Reads may still be looking at pages.
        self.space.free_later(self.batch.sequence, std::mem::take(&mut cp.retired));
        self.write_slot(cp, 1, Io::SecondSlot);
    }
}

impl Checkpoint {
    /// True while new pages of an object are being made.
    pub(super) fn folds(&self, id: ObjectId) -> bool {
        self.folds.contains_key(&id)
    }

    fn add(&mut self, object: &Object) {
        let before = self.stream.len();
        put_object(&mut self.stream, &object.header, &object.map, &object.sums);
        let root = &mut self.superblock.checkpoint;
        root.objects += 1;
        root.bytes += (self.stream.len() - before) as u64;
    }
}
