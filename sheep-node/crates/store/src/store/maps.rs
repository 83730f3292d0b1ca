//! Maps that are in pages only: read when an operation needs them, left out of memory again when they take too much.
//!
//! An operation that lacks a map waits, and what comes after it waits too, so that the order of submission stays the
//! order of execution. The maps that those behind it will need are read meanwhile.

use super::{Pending, Phase, Store, bytes_read};
use crate::map::Run;
use crate::sums::{PageRef, map_from_page};
use crate::superblock::BLOCK;
use crate::{DiskResult, Op, StoreError};
use sheep_types::ObjectId;

/// Most maps that are read at once for operations that are not the next to be executed.
const READ_AHEAD: usize = 64;

/// Objects whose whole maps an operation needs: to find data, or to know which blocks it puts out of use.
fn needs(op: &Op) -> impl Iterator<Item = ObjectId> + use<> {
    let (first, second) = match op {
        Op::Read { object, .. }
        | Op::Salvage { object, .. }
        | Op::Inspect { object }
        | Op::Delete { object } => (Some(*object), None),
        Op::Write { header, .. } | Op::Replace { header, .. } | Op::Patch { header, .. } => {
            (Some(header.id), None)
        }
        Op::CloneBlocks { from, header } => (Some(*from), Some(header.id)),
        Op::Layout { object, other } => (Some(*object), *other),
        Op::SetHeader { .. } | Op::Flush => (None, None),
    };
    [first, second].into_iter().flatten()
}

impl Store {
    /// True if all maps are there that an operation needs; if not, they are on their way.
    pub(super) fn maps_are_there(&mut self, op: &Op) -> bool {
        // All of them, also when one is found missing: they are read at the same time.
        let mut there = true;
        for id in needs(op) {
            there &= self.map_is_there(id);
        }
        there
    }

    fn map_is_there(&mut self, id: ObjectId) -> bool {
        let missing = self.index.use_map(id);
        if let Some(page) = missing {
            self.read_map(id, page);
        }
        missing.is_none()
    }

    /// Reads ahead what an operation will need that has to wait.
    pub(super) fn read_maps_ahead(&mut self, op: &Op) {
        if matches!(self.phase, Phase::Serving) && self.map_reads.len() < READ_AHEAD {
            self.maps_are_there(op);
        }
    }

    /// The same for those that wait already, if they came when much was being read, or before the store served.
    pub(super) fn read_more_maps(&mut self) {
        if self.map_reads.len() > 1 || self.waiting.len() < 2 {
            return;
        }
        let ids: Vec<ObjectId> = self.waiting.iter().take(READ_AHEAD).flat_map(|(_, op)| needs(op)).collect();
        for id in ids {
            self.map_is_there(id);
        }
    }

    /// Reads a map page, unless that is under way.
    pub(super) fn read_map(&mut self, object: ObjectId, page: PageRef) {
        if self.map_reads.insert(object) {
            self.issue_read(Pending::Map { object, page }, Run { place: page.place, len: 1 });
        }
    }

    /// A map page is there. If it is lost, nobody knows which blocks the object uses: the store fails, as it would at
    /// its next start.
    pub(super) fn map_read(&mut self, object: ObjectId, page: PageRef, result: DiskResult) {
        self.map_reads.remove(&object);
        if let Err(error) = self.take_map(object, page, result) {
            return self.fail(error);
        }
        if matches!(self.phase, Phase::Starting(_)) {
            self.map_counted(object);
        } else {
            self.fold_mapped(object);
        }
    }

    fn take_map(&mut self, object: ObjectId, page: PageRef, result: DiskResult) -> Result<(), StoreError> {
        let bytes = bytes_read(result, BLOCK)?;
        if !page.check(&bytes) {
            return Err(StoreError::CheckpointCorrupt);
        }
        let changes_too = !self.config.mutant.old_map();
        let taken = self.index.take_map(object, page, map_from_page(&bytes, self.blocks), changes_too);
        debug_assert!(taken, "{object:?} changed its map page while that was read");
        self.stats.maps += 1;
        Ok(())
    }

    /// Leaves maps out of memory if they take too much. Those that the next operation waits for stay, and those that
    /// a checkpoint is about to write.
    pub(super) fn shed_maps(&mut self) {
        let next = self.waiting.front().map(|(_, op)| op);
        let checkpoint = self.checkpoint.as_deref();
        self.index.shed_maps(self.config.map_cache, |id| {
            next.is_some_and(|op| needs(op).any(|needed| needed == id))
                || checkpoint.is_some_and(|cp| cp.folds(id))
        });
    }
}
