//! The state machine: what comes in, what goes out, and who waits for what.

mod checkpoint;
mod commit;
mod layout;
mod load;
mod maps;
mod prewrite;
mod read;
mod startup;
mod verify;
mod write;

use self::read::Mode;
use crate::index::Index;
use crate::map::Run;
use crate::shares::Shares;
use crate::space::{GROUP_BLOCKS, Space};
use crate::sums::{PageCache, PageRef};
use crate::superblock::Superblock;
use crate::{
    DiskDone, DiskError, DiskOp, DiskOpId, DiskOpKind, DiskResult, Event, FileId, Header, Op, Outcome, Stats,
    StoreConfig, StoreError, StoreIdentity, Usage,
};
use bytes::Bytes;
use sheep_types::{BLOCK_SIZE, ObjectId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Largest write made of adjoining smaller ones, bytes.
const MERGED_WRITE_MAX: u64 = 1 << 20;

/// Blocks that long writes should find in a row.
const LONG_RUN: u32 = 256;

/// What a disk operation under way is for.
#[derive(Debug)]
enum Pending {
    /// Payload of records in a batch: (place, blocks) of each buffer.
    Data { batch: u64, buffers: Vec<(u32, u32)> },
    /// A batch of records.
    Log,
    /// The sync of a commit.
    CommitSync,
    /// A data run or page of a read.
    Read { job: u64, part: read::Part },
    /// Part of a checkpoint.
    Checkpoint(checkpoint::Io),
    /// A reservation of space.
    Grow(Run),
    /// Space given back.
    Punch(Run),
    /// Zeros in groups that were just reserved; the next go to block `next`.
    PrewriteGroups { groups: Run, next: u32 },
    /// Zeros ahead of the log's end.
    PrewriteLog,
    /// Part of start-up.
    Startup,
    /// A map page.
    Map { object: ObjectId, page: PageRef },
}

#[derive(Debug)]
enum Phase {
    /// Reading what is there; the box holds how far.
    Starting(Box<startup::Startup>),
    /// The first batch of this opening is on its way.
    Opening,
    Serving,
    Failed,
}

/// Payload that the disk does not have yet, by place.
#[derive(Debug, Default)]
struct Inflight {
    runs: BTreeMap<u32, (DiskOpId, Bytes)>,
    bytes: u64,
}

/// A store. See the [crate] documentation.
#[derive(Debug)]
pub struct Store {
    config: StoreConfig,
    identity: StoreIdentity,
    /// Blocks per object.
    blocks: u32,
    phase: Phase,
    superblock: Superblock,

    out: VecDeque<DiskOp>,
    events: VecDeque<Event>,
    next_id: u64,
    pending: BTreeMap<DiskOpId, Pending>,

    index: Index,
    space: Space,
    shares: Shares,
    pages: PageCache,
    inflight: Inflight,

    log: commit::Log,
    batch: commit::Batch,
    commit: Option<commit::Commit>,
    /// A commit is wanted although nobody flushes: for space, or for a checkpoint.
    commit_wanted: bool,
    checkpoint: Option<Box<checkpoint::Checkpoint>>,
    /// Pages out of use that only the checkpoint on disk still names; free once the next one is there.
    retired: Vec<Run>,

    /// Operations that wait for space, for room in the log or for a map, and all that came after them.
    waiting: VecDeque<(u64, Op)>,
    /// Writes that are done, and answered when less payload is in flight.
    held: VecDeque<u64>,
    reads: BTreeMap<u64, read::Job>,
    next_read: u64,
    /// Objects whose map pages are being read.
    map_reads: BTreeSet<ObjectId>,

    prewrite: prewrite::Prewrite,
    growing: bool,
    /// Groups to reserve at once.
    grow_groups: u32,
    /// The last reservation failed for want of space; the next is made only when a write needs it.
    disk_full: bool,
    punching: bool,
    space_low: bool,
    stats: Stats,
}

impl Store {
    /// Opens a store, or makes one with `format_new`. The identity must match the store's; `identity.store` is
    /// used when one is made. It serves after [`Event::Ready`]; what is submitted before waits.
    pub fn open(config: StoreConfig, identity: StoreIdentity, format_new: bool) -> Self {
        Self::open_numbered(config, identity, format_new, 1)
    }

    /// The same, with names of disk operations from `first_id` on.
    pub(crate) fn open_numbered(
        config: StoreConfig,
        identity: StoreIdentity,
        format_new: bool,
        first_id: u64,
    ) -> Self {
        let mut store = Self {
            blocks: config.geometry.blocks_per_object(),
            phase: Phase::Failed,
            superblock: startup::new_superblock(&config, identity),
            out: VecDeque::new(),
            events: VecDeque::new(),
            next_id: first_id,
            pending: BTreeMap::new(),
            index: Index::default(),
            space: Space::new(1, 0),
            shares: Shares::default(),
            pages: PageCache::new(config.page_cache),
            inflight: Inflight::default(),
            log: commit::Log::default(),
            batch: commit::Batch::default(),
            commit: None,
            commit_wanted: false,
            checkpoint: None,
            retired: Vec::new(),
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            reads: BTreeMap::new(),
            next_read: 1,
            map_reads: BTreeSet::new(),
            prewrite: prewrite::Prewrite::default(),
            growing: false,
            grow_groups: 1,
            disk_full: false,
            punching: false,
            space_low: false,
            stats: Stats::default(),
            config,
            identity,
        };
        store.start(format_new);
        store
    }

    /// Asks for an operation; its result comes as [`Event::Done`] with the same token.
    pub fn submit(&mut self, token: u64, op: Op) {
        match self.phase {
            Phase::Failed => self.done(token, Err(StoreError::Failed)),
            Phase::Serving if self.waiting.is_empty() => {
                if let Some(op) = self.execute(token, op) {
                    self.waiting.push_back((token, op));
                }
            }
            _ => {
                self.read_maps_ahead(&op);
                self.waiting.push_back((token, op));
            }
        }
        self.advance();
    }

    /// Ends the use of the store: as if the disk had failed.
    pub(crate) fn close(&mut self) {
        self.fail(StoreError::Closed);
    }

    /// Takes the result of a disk operation. Results of unknown operations are ignored: after a failure the
    /// store has forgotten what was under way.
    pub fn handle_disk(&mut self, id: DiskOpId, result: DiskResult) {
        let Some(pending) = self.pending.remove(&id) else { return };
        match pending {
            Pending::Data { batch, buffers } => self.data_written(id, batch, &buffers, result),
            Pending::Log => self.commit_io(result),
            Pending::CommitSync => self.commit_synced(result),
            Pending::Read { job, part } => self.read_done(job, part, result),
            Pending::Checkpoint(io) => self.checkpoint_io(io, result),
            Pending::Grow(run) => self.grown(run, result),
            Pending::Punch(run) => {
                self.space.punched(run);
                self.punching = false;
            }
            Pending::PrewriteGroups { groups, next } => self.groups_prewritten(groups, next, result),
            Pending::PrewriteLog => self.log_prewritten(result),
            Pending::Startup => self.startup_io(result),
            Pending::Map { object, page } => self.map_read(object, page, result),
        }
        self.advance();
    }

    /// Next disk operation, if any.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        self.out.pop_front()
    }

    /// Next event, if any.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Header of an object, from memory.
    pub fn header(&self, object: ObjectId) -> Option<&Header> {
        self.index.get(object).map(|o| &o.header)
    }

    /// Headers of all objects from `from` on, in order of id.
    pub fn objects(&self, from: ObjectId) -> impl Iterator<Item = &Header> {
        self.index.from(from).map(|o| &o.header)
    }

    /// Objects with lost blocks, and how many each has.
    pub fn lost(&self) -> &BTreeMap<ObjectId, u32> {
        self.index.lost()
    }

    /// How full the store is.
    pub fn usage(&self) -> Usage {
        let fixed = u64::from(startup::fixed_blocks(&self.superblock));
        let limit = if self.disk_full { self.space.used() + self.space.free() } else { self.space.limit() };
        let block = u64::from(BLOCK_SIZE);
        Usage {
            capacity: (limit + fixed) * block,
            used: (self.space.used() + fixed) * block,
            objects: self.index.len() as u64,
        }
    }

    /// Bytes of memory that its index takes, counts of shared blocks included. Looks at every object.
    pub fn index_bytes(&self) -> u64 {
        self.index.heap_bytes() + self.shares.heap_bytes() as u64
    }

    /// What it has done since it was opened.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whose store it is; after [`Event::Ready`] with the random number it was made with.
    pub fn identity(&self) -> StoreIdentity {
        self.identity
    }

    /// True once nothing is under way or waiting, so that nothing happens before the next call to `submit`.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.out.is_empty() && self.waiting.is_empty()
    }

    /// Moves everything on that can move. Called after each input.
    fn advance(&mut self) {
        if matches!(self.phase, Phase::Serving) {
            self.drain();
            self.grow_ahead();
            self.want_checkpoint();
            self.want_release();
            self.prewrite_log();
        }
        self.try_commit();
        self.move_checkpoint();
        self.answer_held();
        self.shed_maps();
    }

    /// Executes what waited, as far as possible.
    fn drain(&mut self) {
        while let Some((token, op)) = self.waiting.pop_front() {
            if let Some(op) = self.execute(token, op) {
                self.waiting.push_front((token, op));
                return self.read_more_maps();
            }
            if matches!(self.phase, Phase::Failed) {
                return;
            }
        }
    }

    /// Executes an operation, or gives it back if it must wait.
    fn execute(&mut self, token: u64, op: Op) -> Option<Op> {
        if !self.maps_are_there(&op) {
            return Some(op);
        }
        match op {
            Op::Read { object, offset, len } => self.start_read(token, object, (offset, len), Mode::Whole),
            Op::Salvage { object, offset, len } => {
                self.start_read(token, object, (offset, len), Mode::Salvage)
            }
            Op::Inspect { object } => self.start_inspect(token, object),
            Op::Layout { object, other } => {
                let result = self.layout(object, other);
                self.done(token, result);
            }
            Op::Flush => self.start_flush(token),
            change => return self.execute_change(token, change),
        }
        None
    }

    fn done(&mut self, token: u64, result: Result<Outcome, StoreError>) {
        self.events.push_back(Event::Done { token, result });
    }

    /// Asks the disk for something.
    fn issue(&mut self, pending: Pending, kind: DiskOpKind) -> DiskOpId {
        let id = DiskOpId(self.next_id);
        self.next_id += 1;
        self.pending.insert(id, pending);
        self.out.push_back(DiskOp { id, kind });
        id
    }

    fn issue_read(&mut self, pending: Pending, run: Run) {
        let (file, offset) = (FileId::BLOCKS, byte(run.place));
        self.issue(pending, DiskOpKind::Read { file, offset, len: run.len * BLOCK_SIZE });
    }

    fn issue_write(&mut self, pending: Pending, place: u32, data: Bytes) -> DiskOpId {
        debug_assert!(data.len().is_multiple_of(BLOCK_SIZE as usize), "partial block written");
        self.issue(pending, DiskOpKind::Write { file: FileId::BLOCKS, offset: byte(place), data: vec![data] })
    }

    fn issue_sync(&mut self, pending: Pending) {
        self.issue(pending, DiskOpKind::Sync { file: FileId::BLOCKS });
    }

    /// The disk is of no use any more. Everything that waits is told so.
    fn fail(&mut self, error: StoreError) {
        if matches!(self.phase, Phase::Failed) {
            return;
        }
        if error != StoreError::Closed {
            tracing::error!(%error, "store failed");
        }
        self.phase = Phase::Failed;
        self.out.clear();
        self.pending.clear();
        self.checkpoint = None;
        self.map_reads.clear();
        self.inflight = Inflight::default();
        let mut tokens: Vec<u64> = std::mem::take(&mut self.held).into();
        tokens.extend(std::mem::take(&mut self.reads).into_values().map(|job| job.token()));
        tokens.extend(self.commit.take().into_iter().flat_map(|c| c.flushes));
        tokens.append(&mut self.batch.flushes);
        tokens.extend(self.waiting.drain(..).map(|(token, _)| token));
        self.events.push_back(Event::Failed(error));
        for token in tokens {
            self.done(token, Err(StoreError::Failed));
        }
    }

    /// Blocks that must stay free for checkpoints.
    fn reserve(&self) -> u64 {
        checkpoint::blocks_for(self.index.checkpoint_bytes())
            + self.index.pages_to_fold(self.config.fold_above, self.config.inline_runs)
    }

    /// Reserves space before it is needed.
    fn grow_ahead(&mut self) {
        let low = self.reserve() + u64::from(self.grow_groups * GROUP_BLOCKS) / 2;
        // Long writes should not have to do with pieces as long as there is space that was never used. What has a
        // limit may take it; what has none leaves the filesystem to others.
        let spare =
            if self.config.capacity_limit.is_some() { self.space.used() } else { self.space.used() / 8 };
        let in_pieces = self.space.free() < spare && self.space.with_run(LONG_RUN) == 0;
        if (self.space.free() < low || in_pieces) && !self.disk_full {
            self.grow();
        }
        let left = self.space.potential().saturating_sub(self.reserve());
        if left < self.space.limit() / 16 && !self.space_low {
            self.space_low = true;
            self.events.push_back(Event::SpaceLow);
        } else if left > self.space.limit() / 8 {
            self.space_low = false;
        }
    }

    /// Reserves more space; `false` if there is none to reserve, or a reservation is under way already.
    fn grow(&mut self) -> bool {
        if self.growing {
            return true;
        }
        let Some(run) = self.space.reserve_next(self.grow_groups) else { return false };
        self.growing = true;
        let (offset, len) = (byte(run.place), self.space.within_limit(run) * u64::from(BLOCK_SIZE));
        self.issue(Pending::Grow(run), DiskOpKind::Allocate { file: FileId::BLOCKS, offset, len });
        true
    }

    fn grown(&mut self, run: Run, result: DiskResult) {
        let Err(error) = result else {
            self.disk_full = false;
            return self.groups_reserved(run);
        };
        self.growing = false;
        self.space.reserved(run, false);
        match error {
            DiskError::NoSpace if self.grow_groups > 1 => self.grow_groups = 1,
            DiskError::NoSpace => self.disk_full = true,
            error => self.fail(error.into()),
        }
    }

    /// Groups that were reserved can be handed out.
    fn groups_usable(&mut self, run: Run) {
        self.growing = false;
        self.space.reserved(run, true);
    }

    /// Much that is freed waits for nothing but batches: they are committed although nobody flushes, so that a store that
    /// is left alone after a deletion gives the space back.
    fn want_release(&mut self) {
        let much = self.space.freed() * u64::from(BLOCK_SIZE) >= self.config.commit_bytes / 4;
        let newest = self.space.newest_freed();
        self.commit_wanted |= much && newest.is_some_and(|batch| batch >= self.log.durable);
    }

    /// Makes freed blocks usable that nothing can need any more, and gives much of it back.
    fn release(&mut self) {
        // A block freed in batch b is used again only when batch b + 1 is durable: until then batch b may be
        // the last one at the next start, whose data are read to prove it. And no read may be looking at it.
        let oldest_read = self.reads.values().next().map_or(u64::MAX, |job| job.start());
        let before =
            if self.config.mutant.early_reuse() { u64::MAX } else { self.log.durable.min(oldest_read) };
        self.space.release(before);
        if self.punching {
            return;
        }
        let keep_whole = u64::from(self.grow_groups);
        let keep = self.reserve() + 2 * keep_whole * u64::from(GROUP_BLOCKS);
        if let Some(run) = self.space.punch_next(keep, keep_whole) {
            self.punching = true;
            let (offset, len) = (byte(run.place), u64::from(run.len) * u64::from(BLOCK_SIZE));
            self.issue(Pending::Punch(run), DiskOpKind::Punch { file: FileId::BLOCKS, offset, len });
        }
    }
}

/// First byte of a block of the disk.
fn byte(place: u32) -> u64 {
    u64::from(place) * u64::from(BLOCK_SIZE)
}

/// The bytes that a read gave, if it gave as many as asked for.
fn bytes_read(result: DiskResult, len: usize) -> Result<Bytes, DiskError> {
    match result? {
        DiskDone::Read(bytes) if bytes.len() == len => Ok(bytes),
        _ => Err(DiskError::Io),
    }
}
