//! Start-up: superblock, checkpoint, log, and the first batch of this opening.

use super::{Pending, Phase, Store, byte, bytes_read};
use crate::map::Run;
use crate::record::{BATCH_HEADER_LEN, record_len_max};
use crate::space::GROUP_BLOCKS;
use crate::store::load::{Count, Load};
use crate::store::verify::Replay;
use crate::superblock::{BLOCK, CheckpointRoot, LOG_START, MAGIC, SLOT_BLOCKS, Superblock};
use crate::{DiskError, DiskOpKind, DiskResult, Event, FileId, StoreConfig, StoreError, StoreIdentity};
use bytes::Bytes;
use sheep_types::BLOCK_SIZE;

/// What is being done; each step waits for one disk operation.
#[derive(Debug)]
pub(super) enum Step {
    Open,
    FirstSlot,
    SecondSlot {
        first: Bytes,
    },
    /// Making a store: what is left to be done, the next at the end.
    Format(Vec<DiskOpKind>),
    /// Reads the checkpoint's chunks.
    Chunk {
        at: Run,
        load: Box<Load>,
    },
    Log(Box<Replay>),
    Sync(Box<Replay>),
    /// Reads map pages and counts the blocks in use.
    Count(Box<Count>),
}

/// How far a start-up is.
#[derive(Debug)]
pub(super) struct Startup {
    pub(super) format_new: bool,
    pub(super) step: Step,
}

/// Blocks before the first group: superblocks and log.
pub(super) fn fixed_blocks(sb: &Superblock) -> u32 {
    LOG_START + sb.log_blocks
}

/// The superblock of a new store.
pub(super) fn new_superblock(config: &StoreConfig, identity: StoreIdentity) -> Superblock {
    let longest =
        BATCH_HEADER_LEN + config.batch_bytes as usize + record_len_max(config.geometry.blocks_per_object());
    Superblock {
        identity,
        object_size: config.geometry.object_size(),
        log_blocks: u32::try_from(config.log_bytes / u64::from(BLOCK_SIZE)).unwrap_or(u32::MAX / 2),
        batch_blocks: longest.div_ceil(BLOCK) as u32,
        sequence: 1,
        log_position: 0,
        log_sequence: 1,
        log_chain: 0,
        opening: 0,
        checkpoint: CheckpointRoot::default(),
    }
}

impl Store {
    pub(super) fn start(&mut self, format_new: bool) {
        self.phase = Phase::Starting(Box::new(Startup { format_new, step: Step::Open }));
        self.issue(Pending::Startup, DiskOpKind::Open { file: FileId::BLOCKS, create: format_new });
    }

    /// The operation that the start-up waited for is done.
    pub(super) fn startup_io(&mut self, result: DiskResult) {
        // Something must stand in the phase's place meanwhile.
        let Phase::Starting(startup) = std::mem::replace(&mut self.phase, Phase::Opening) else { return };
        let format_new = startup.format_new;
        match self.startup_step(*startup, result) {
            Ok(Some(step)) => self.phase = Phase::Starting(Box::new(Startup { format_new, step })),
            Ok(None) => {}
            Err(error) => self.fail(error),
        }
    }

    /// One step: `None` if it was the last.
    fn startup_step(&mut self, startup: Startup, result: DiskResult) -> Result<Option<Step>, StoreError> {
        Ok(Some(match startup.step {
            Step::Open => {
                match result {
                    Err(DiskError::NotFound) => return Err(StoreError::NotFormatted),
                    other => other?,
                };
                self.startup_read(Run { place: slot(0), len: 1 });
                Step::FirstSlot
            }
            Step::FirstSlot => {
                let first = bytes_read(result, BLOCK).unwrap_or_default();
                self.startup_read(Run { place: slot(1), len: 1 });
                Step::SecondSlot { first }
            }
            Step::SecondSlot { first } => {
                // A copy that can't be read counts as damaged.
                let second = bytes_read(result, BLOCK).unwrap_or_default();
                self.slots_read(startup.format_new, &first, &second)?
            }
            Step::Format(rest) => {
                result?;
                self.format_step(rest)
            }
            Step::Chunk { at, load } => self.chunk_read(at, *load, result)?,
            Step::Log(replay) => self.replay_step(*replay, result)?,
            Step::Sync(replay) => {
                result?;
                return self.start_count(*replay);
            }
            // Its reads come back to `map_counted`.
            Step::Count(count) => Step::Count(count),
        }))
    }

    pub(super) fn startup_read(&mut self, run: Run) {
        self.issue_read(Pending::Startup, run);
    }

    fn slots_read(&mut self, format_new: bool, first: &[u8], second: &[u8]) -> Result<Step, StoreError> {
        let chosen = Superblock::choose(first, second);
        if format_new {
            // The first copy is written last: where it is missing, a format was not finished.
            let damaged = chosen == Err(StoreError::SuperblockCorrupt) && first.starts_with(&MAGIC);
            if chosen.is_ok() || matches!(chosen, Err(StoreError::NewerFormat { .. })) || damaged {
                return Err(StoreError::AlreadyFormatted);
            }
            return self.format();
        }
        let sb = chosen?;
        if sb.identity.cluster != self.identity.cluster {
            return Err(StoreError::WrongCluster { found: sb.identity.cluster });
        }
        if sb.identity.node != self.identity.node {
            return Err(StoreError::WrongNode { found: sb.identity.node });
        }
        if sb.object_size != self.config.geometry.object_size() {
            return Err(StoreError::WrongGeometry { found: sb.object_size });
        }
        if (sb.batch_blocks as usize) * BLOCK < BATCH_HEADER_LEN + record_len_max(self.blocks) {
            return Err(StoreError::SuperblockCorrupt);
        }
        self.identity = sb.identity;
        self.superblock = sb;
        Ok(self.load_checkpoint())
    }

    /// Makes a store: space for the fixed part, then the copies of the superblock, each durable before the next.
    fn format(&mut self) -> Result<Step, StoreError> {
        let sb = self.superblock;
        let fixed = u64::from(fixed_blocks(&sb)) * u64::from(BLOCK_SIZE);
        let limit = self.config.capacity_limit.unwrap_or(u64::MAX);
        if sb.log_blocks / 4 < sb.batch_blocks || limit < fixed + u64::from(GROUP_BLOCKS / 4 * BLOCK_SIZE) {
            return Err(StoreError::BadConfig);
        }
        let file = FileId::BLOCKS;
        let write =
            |i: usize| DiskOpKind::Write { file, offset: byte(slot(i)), data: vec![sb.encode().into()] };
        let mut steps = vec![
            DiskOpKind::Allocate { file, offset: 0, len: fixed },
            write(1),
            DiskOpKind::Sync { file },
            DiskOpKind::SyncDirectory,
            write(0),
            DiskOpKind::Sync { file },
        ];
        steps.reverse();
        Ok(self.format_step(steps))
    }

    fn format_step(&mut self, mut steps: Vec<DiskOpKind>) -> Step {
        match steps.pop() {
            Some(kind) => {
                self.issue(Pending::Startup, kind);
                Step::Format(steps)
            }
            None => self.load_checkpoint(),
        }
    }

    /// Everything is read and counted: sends the first batch off.
    pub(super) fn finish_startup(&mut self, replay: &Replay) -> Result<(), StoreError> {
        self.log.tail = u64::from(self.superblock.log_position);
        self.log.head = replay.position;
        self.log.chain = replay.chain;
        self.log.durable = replay.expected - 1;
        self.log.opening = replay.opening + 1;
        self.batch.sequence = replay.expected;
        if replay.unwritten && self.config.prewrite {
            self.log_is_unwritten();
        }
        if self.log_used() + 1 > u64::from(self.superblock.log_blocks) {
            return Err(StoreError::LogFull);
        }
        if self.config.mutant.no_opening() {
            self.phase = Phase::Serving;
            self.events.push_back(Event::Ready);
            return Ok(());
        }
        self.phase = Phase::Opening;
        self.close_batch();
        Ok(())
    }
}

fn slot(i: usize) -> u32 {
    SLOT_BLOCKS.get(i).copied().unwrap_or_default()
}
