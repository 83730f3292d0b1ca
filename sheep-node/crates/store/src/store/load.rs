//! The checkpoint at start-up, and the count of the blocks that are in use when the log has been applied to it.

use super::startup::{Startup, Step, fixed_blocks};
use super::verify::Replay;
use super::{Phase, Store, bytes_read};
use crate::codec::Reader;
use crate::index::Object;
use crate::map::Run;
use crate::record::{self, ObjectRecord, decode_chunk};
use crate::shares::Shares;
use crate::space::{GROUP_BLOCKS, Space};
use crate::superblock::BLOCK;
use crate::{DiskResult, StoreError};
use sheep_types::{BLOCK_SIZE, ObjectId};

/// Map pages read at once.
const MAPS_AT_ONCE: usize = 64;

const CORRUPT: StoreError = StoreError::CheckpointCorrupt;

/// How far a checkpoint has been read.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Number of the chunk that is being read.
    index: u32,
    /// The start of an object record whose rest is in the next chunk.
    stream: Vec<u8>,
}

/// How far the blocks in use have been counted.
#[derive(Debug)]
pub(super) struct Count {
    /// First object that has not been come to; `None` if all have.
    next: Option<ObjectId>,
    replay: Replay,
}

impl Store {
    pub(super) fn load_checkpoint(&mut self) -> Step {
        let root = self.superblock.checkpoint;
        let at = Run { place: root.place, len: root.blocks };
        if at.place == 0 {
            return self.start_replay();
        }
        self.read_chunk(at, Load::default())
    }

    fn read_chunk(&mut self, at: Run, load: Load) -> Step {
        self.startup_read(at);
        Step::Chunk { at, load: Box::new(load) }
    }

    pub(super) fn chunk_read(
        &mut self,
        at: Run,
        mut load: Load,
        result: DiskResult,
    ) -> Result<Step, StoreError> {
        let bytes = bytes_read(result, at.len as usize * BLOCK)?;
        let sb = self.superblock;
        let (header, payload) = decode_chunk(&bytes).ok_or(CORRUPT)?;
        if (header.store, header.sequence, header.index) != (sb.identity.store, sb.sequence, load.index) {
            return Err(CORRUPT);
        }
        self.log.chunks.push(at);
        load.stream.extend_from_slice(payload);
        self.take_objects(&mut load)?;
        let next = Run { place: header.next_place, len: header.next_blocks };
        if next.place != 0 {
            if next.len == 0 || next.len > GROUP_BLOCKS {
                return Err(CORRUPT);
            }
            load.index += 1;
            return Ok(self.read_chunk(next, load));
        }
        if !load.stream.is_empty() || self.index.len() as u64 != sb.checkpoint.objects {
            return Err(CORRUPT);
        }
        self.log.delta_then = self.index.delta();
        Ok(self.start_replay())
    }

    /// Takes the object records that are there as a whole.
    fn take_objects(&mut self, load: &mut Load) -> Result<(), StoreError> {
        let mut r = Reader::new(&load.stream);
        let mut rest = r;
        while let Some(ObjectRecord { header, map, sums }) = record::object(&mut r, self.blocks) {
            if !self.index.insert(Object::new(header, map, sums)) {
                return Err(CORRUPT);
            }
            rest = r;
        }
        let taken = load.stream.len() - rest.remaining();
        load.stream.drain(..taken);
        Ok(())
    }

    /// Begins to count the blocks in use: everything has been read but map pages.
    pub(super) fn start_count(&mut self, replay: Replay) -> Result<Option<Step>, StoreError> {
        let start = fixed_blocks(&self.superblock);
        let most = u64::from(u32::MAX - start - GROUP_BLOCKS);
        (self.space, self.shares) = (Space::new(start, most), Shares::default());
        for chunk in self.log.chunks.clone() {
            self.mark(chunk)?;
        }
        self.count_more(Count { next: Some(ObjectId(0)), replay })
    }

    /// Counts objects, and asks for the map pages of those that have one. `None` if the start-up is through.
    fn count_more(&mut self, mut count: Count) -> Result<Option<Step>, StoreError> {
        while self.map_reads.len() < MAPS_AT_ONCE
            && let Some(from) = count.next
        {
            let found = self.index.from(from).next();
            let found = found.map(|object| (object.header.id, object.missing_map()));
            let Some((id, page)) = found else {
                count.next = None;
                break;
            };
            count.next = id.0.checked_add(1).map(ObjectId);
            match page {
                Some(page) => self.read_map(id, page),
                None => self.mark_object(id)?,
            }
        }
        if !self.map_reads.is_empty() {
            return Ok(Some(Step::Count(Box::new(count))));
        }
        self.space_counted();
        self.finish_startup(&count.replay)?;
        Ok(None)
    }

    /// The map of an object is there.
    pub(super) fn map_counted(&mut self, object: ObjectId) {
        let Phase::Starting(startup) = std::mem::replace(&mut self.phase, Phase::Opening) else { return };
        let Startup { format_new, step: Step::Count(count) } = *startup else { return };
        match self.mark_object(object).and_then(|()| self.count_more(*count)) {
            Ok(Some(step)) => self.phase = Phase::Starting(Box::new(Startup { format_new, step })),
            Ok(None) => {}
            Err(error) => self.fail(error),
        }
    }

    fn mark_object(&mut self, id: ObjectId) -> Result<(), StoreError> {
        self.index.count_lost(id);
        let Some(object) = self.index.get(id) else { return Ok(()) };
        let pages = object.sums.pages().map(|page| Run { place: page.place, len: 1 });
        let users: Vec<Run> = object.map.data().chain(pages).collect();
        users.into_iter().try_for_each(|run| self.mark(run))
    }

    /// One user of a run of blocks.
    fn mark(&mut self, run: Run) -> Result<(), StoreError> {
        let shares = &mut self.shares;
        let marked = self.space.mark(run, |part, used_already| {
            if used_already {
                shares.add(part);
            }
        });
        if marked { Ok(()) } else { Err(CORRUPT) }
    }

    /// Everything that is in use is marked.
    fn space_counted(&mut self) {
        let fixed = u64::from(fixed_blocks(&self.superblock));
        let limit = self.config.capacity_limit.map(|bytes| bytes / u64::from(BLOCK_SIZE));
        self.space.marked(limit.map(|blocks| blocks.saturating_sub(fixed)));
        // Steps of a sixteenth, at most 64 MiB.
        self.grow_groups = (self.space.limit() / u64::from(GROUP_BLOCKS) / 16).clamp(1, 16) as u32;
    }
}
