//! The checkpoint at start-up: object records, then the map pages they name.

use super::startup::{Startup, Step};
use super::{Pending, Phase, Store, bytes_read};
use crate::codec::Reader;
use crate::map::{MapRun, Run};
use crate::record::{self, ObjectRecord, decode_chunk};
use crate::space::GROUP_BLOCKS;
use crate::sums::{PageRef, map_from_page};
use crate::superblock::BLOCK;
use crate::{DiskResult, StoreError};
use sheep_types::ObjectId;

/// Map pages read at once.
const MAPS_AT_ONCE: usize = 32;

const CORRUPT: StoreError = StoreError::CheckpointCorrupt;

/// An object whose map is in a page.
#[derive(Debug)]
pub(super) struct MapLoad {
    id: ObjectId,
    page: PageRef,
    moved: Vec<MapRun>,
}

/// How far a checkpoint has been read.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Number of the chunk that is being read.
    index: u32,
    /// The start of an object record whose rest is in the next chunk.
    stream: Vec<u8>,
    /// Map pages still to be read.
    maps: Vec<MapLoad>,
    /// Map pages under way.
    under_way: usize,
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
        // The next to be read is at the end; pages were written in this order, so the disk likes it.
        load.maps.reverse();
        Ok(self.load_maps(load))
    }

    /// Takes the object records that are there as a whole.
    fn take_objects(&mut self, load: &mut Load) -> Result<(), StoreError> {
        let mut r = Reader::new(&load.stream);
        let mut rest = r;
        while let Some(ObjectRecord { header, map, sums, moved }) = record::object(&mut r, self.blocks) {
            load.maps.extend(sums.map.map(|page| MapLoad { id: header.id, page, moved }));
            // All pages that the checkpoint names; `mark_space` keeps those that are out of use by now.
            self.retired.extend(sums.pages().map(|page| Run { place: page.place, len: 1 }));
            if !self.index.insert(header, map, sums) {
                return Err(CORRUPT);
            }
            rest = r;
        }
        let taken = load.stream.len() - rest.remaining();
        load.stream.drain(..taken);
        Ok(())
    }

    fn load_maps(&mut self, mut load: Load) -> Step {
        while load.under_way < MAPS_AT_ONCE
            && let Some(map) = load.maps.pop()
        {
            load.under_way += 1;
            let run = Run { place: map.page.place, len: 1 };
            self.issue_read(Pending::StartupMap(Box::new(map)), run);
        }
        if load.under_way == 0 {
            return self.start_replay();
        }
        Step::Maps(Box::new(load))
    }

    /// A map page is there, or lost: then nobody knows which blocks are in use.
    pub(super) fn map_loaded(&mut self, map: &MapLoad, result: DiskResult) {
        let Phase::Starting(startup) = std::mem::replace(&mut self.phase, Phase::Opening) else { return };
        let Startup { format_new, step: Step::Maps(mut load) } = *startup else { return };
        if let Err(error) = self.take_map(map, result) {
            return self.fail(error);
        }
        load.under_way -= 1;
        let step = self.load_maps(*load);
        self.phase = Phase::Starting(Box::new(Startup { format_new, step }));
    }

    fn take_map(&mut self, load: &MapLoad, result: DiskResult) -> Result<(), StoreError> {
        let page = bytes_read(result, BLOCK)?;
        if !load.page.check(&page) {
            return Err(CORRUPT);
        }
        let mut map = map_from_page(&page, self.blocks).ok_or(CORRUPT)?;
        for run in &load.moved {
            map.replace(std::slice::from_ref(run));
        }
        map.trim();
        self.index.change(load.id, |object| object.map = map).ok_or(CORRUPT)
    }
}
