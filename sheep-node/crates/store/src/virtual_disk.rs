//! A disk in memory that loses, tears and fails, for simulations and tests.
//!
//! It promises just what [`crate::DiskOpKind`] promises and keeps nothing beyond it: an unsynced write may
//! survive a power cut or not, block by block, or sector by sector, whatever came after it.
//!
//! An operation is given to [`VirtualDisk::begin`] when it is sent off and to [`VirtualDisk::finish`] when it is
//! done; between the two it may or may not have happened. Whoever drives the disk decides when and in which
//! order operations finish: that is how it is made slow, hung or unfair.

mod faults;

use crate::ranges::Ranges;
use crate::{DiskDone, DiskError, DiskOp, DiskOpId, DiskOpKind, DiskResult, FileId};
use bytes::{Bytes, BytesMut};
use sheep_types::{BLOCK_SIZE, SECTOR_SIZE};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const BLOCK: usize = BLOCK_SIZE as usize;
const SECTOR: usize = SECTOR_SIZE as usize;
const SECTORS: usize = BLOCK / SECTOR;

/// Contents of a block. Simulations write blocks that are one number over and over; those take no room.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Tag(u64),
    Raw(Bytes),
}

impl Content {
    fn of(bytes: Bytes) -> Self {
        let tag = bytes.first_chunk().copied().map(u64::from_le_bytes);
        match tag {
            Some(tag) if bytes.chunks(8).all(|c| c == tag.to_le_bytes()) => Self::Tag(tag),
            _ => Self::Raw(bytes),
        }
    }

    fn append_to(&self, out: &mut BytesMut) {
        match self {
            Self::Tag(tag) => (0..BLOCK / 8).for_each(|_| out.extend_from_slice(&tag.to_le_bytes())),
            Self::Raw(bytes) => out.extend_from_slice(bytes),
        }
    }

    fn to_vec(&self) -> Vec<u8> {
        let mut out = BytesMut::with_capacity(BLOCK);
        self.append_to(&mut out);
        out.to_vec()
    }
}

/// A write of a block that is not durable yet.
#[derive(Clone, Debug)]
struct Unsynced {
    content: Content,
    by: DiskOpId,
    /// When it was done; `None` while it is under way.
    finished: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct File {
    /// The directory entry survives a power cut.
    entry_durable: bool,
    durable: BTreeMap<u64, Content>,
    /// Writes of each block since, oldest first.
    unsynced: BTreeMap<u64, Vec<Unsynced>>,
    reserved: Ranges,
}

/// What a power cut does to one unsynced write of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never happened.
    Lost,
    /// It happened.
    Kept,
    /// The sectors whose bits are set happened (bit 0 is the first).
    Torn(u8),
}

/// A disk in memory. Cloning it is cheap enough to try many power cuts at one instant.
#[derive(Clone, Debug)]
pub struct VirtualDisk {
    files: BTreeMap<FileId, File>,
    /// Blocks that fit.
    capacity: u64,
    /// Counts what finishes.
    clock: u64,
    /// Operations under way, and the clock when they began.
    begun: BTreeMap<DiskOpId, (u64, DiskOp)>,
    unreadable: BTreeSet<(FileId, u64)>,
    fail_writes: bool,
    fail_syncs: bool,
    read_only: bool,
    writes: u64,
    blocks_written: u64,
    syncs: u64,
}

impl VirtualDisk {
    /// An empty disk for `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            files: BTreeMap::new(),
            capacity: capacity / u64::from(BLOCK_SIZE),
            clock: 1,
            begun: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            fail_writes: false,
            fail_syncs: false,
            read_only: false,
            writes: 0,
            blocks_written: 0,
            syncs: 0,
        }
    }

    /// An operation is sent off.
    pub fn begin(&mut self, op: DiskOp) {
        if let DiskOpKind::Write { file, offset, data } = &op.kind
            && let Some(file) = self.files.get_mut(file)
        {
            for (block, bytes) in blocks_of(*offset, data) {
                let write = Unsynced { content: Content::of(bytes), by: op.id, finished: None };
                file.unsynced.entry(block).or_default().push(write);
            }
        }
        self.begun.insert(op.id, (self.clock, op));
    }

    /// The operation is done; its result is for [`crate::Store::handle_disk`]. `None` if it was never begun, or
    /// a power cut came in between.
    pub fn finish(&mut self, id: DiskOpId) -> Option<DiskResult> {
        let (began, op) = self.begun.remove(&id)?;
        self.clock += 1;
        Some(match op.kind {
            DiskOpKind::Open { file, create } => self.open(file, create),
            DiskOpKind::Read { file, offset, len } => self.read(file, offset, len),
            DiskOpKind::Write { file, offset, data } => self.write(id, file, offset, &data),
            DiskOpKind::Sync { file } => self.sync(file, began),
            DiskOpKind::SyncDirectory => {
                self.files.values_mut().for_each(|f| f.entry_durable = true);
                Ok(DiskDone::Done)
            }
            DiskOpKind::Allocate { file, offset, len } => self.allocate(file, offset, len),
            DiskOpKind::Punch { file, offset, len } => self.punch(file, offset, len),
        })
    }

    /// Begins and finishes an operation.
    pub fn run(&mut self, op: DiskOp) -> DiskResult {
        let id = op.id;
        self.begin(op);
        self.finish(id).unwrap_or(Err(DiskError::Io))
    }

    /// Makes blocks of a file unreadable (or readable again).
    pub fn set_unreadable(&mut self, file: FileId, blocks: Range<u64>, unreadable: bool) {
        for block in blocks {
            if unreadable {
                self.unreadable.insert((file, block));
            } else {
                self.unreadable.remove(&(file, block));
            }
        }
    }

    /// From now on writes fail (or work again).
    pub fn set_fail_writes(&mut self, fail: bool) {
        self.fail_writes = fail;
    }

    /// From now on syncs fail (or work again).
    pub fn set_fail_syncs(&mut self, fail: bool) {
        self.fail_syncs = fail;
    }

    /// From now on nothing can be written (or it can again).
    pub fn set_read_only(&mut self, read_only: bool) {
        self.read_only = read_only;
    }

    /// Changes how much fits, in bytes. What is there stays.
    pub fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity / u64::from(BLOCK_SIZE);
    }

    /// Bytes taken, reserved space included.
    pub fn used(&self) -> u64 {
        self.files.values().map(|f| f.reserved.total()).sum::<u64>() * u64::from(BLOCK_SIZE)
    }

    /// Writes, blocks written and syncs so far.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.writes, self.blocks_written, self.syncs)
    }

    fn file(&mut self, id: FileId) -> Result<&mut File, DiskError> {
        self.files.get_mut(&id).ok_or(DiskError::NotFound)
    }

    fn open(&mut self, id: FileId, create: bool) -> DiskResult {
        if create && self.read_only {
            return Err(DiskError::ReadOnly);
        }
        if create {
            self.files.entry(id).or_default();
        }
        self.file(id).map(|_| DiskDone::Opened)
    }

    fn read(&mut self, id: FileId, offset: u64, len: u32) -> DiskResult {
        let blocks = block_range(offset, u64::from(len));
        if blocks.clone().any(|b| self.unreadable.contains(&(id, b))) {
            return Err(DiskError::Io);
        }
        let file = self.file(id)?;
        let mut out = BytesMut::with_capacity(len as usize);
        for block in blocks {
            let newest = file.unsynced.get(&block).into_iter().flatten().filter(|w| w.finished.is_some());
            match newest.max_by_key(|w| w.finished).map(|w| &w.content).or_else(|| file.durable.get(&block)) {
                Some(content) => content.append_to(&mut out),
                None => out.resize(out.len() + BLOCK, 0),
            }
        }
        Ok(DiskDone::Read(out.freeze()))
    }

    fn write(&mut self, id: DiskOpId, file: FileId, offset: u64, data: &[Bytes]) -> DiskResult {
        let len: usize = data.iter().map(Bytes::len).sum();
        let range = block_range(offset, len as u64);
        let refused = if self.read_only {
            Some(DiskError::ReadOnly)
        } else if self.fail_writes {
            Some(DiskError::Io)
        } else {
            self.reserve(file, range.clone()).err()
        };
        let now = self.clock;
        self.writes += 1;
        self.blocks_written += range.end - range.start;
        let file = self.file(file)?;
        for block in range {
            let Some(writes) = file.unsynced.get_mut(&block) else { continue };
            match refused {
                // It stays as if under way: some of it may have happened.
                Some(DiskError::Io) => {}
                Some(_) => writes.retain(|w| w.by != id),
                None => writes.iter_mut().filter(|w| w.by == id).for_each(|w| w.finished = Some(now)),
            }
        }
        refused.map_or(Ok(DiskDone::Done), Err)
    }

    fn sync(&mut self, id: FileId, began: u64) -> DiskResult {
        if self.fail_syncs {
            return Err(DiskError::Io);
        }
        self.syncs += 1;
        let file = self.file(id)?;
        let File { durable, unsynced, .. } = file;
        unsynced.retain(|&block, writes| {
            // What finished before the sync began; a later write of the same block stays unsynced.
            let mut done: Vec<_> =
                writes.extract_if(.., |w| w.finished.is_some_and(|f| f <= began)).collect();
            done.sort_by_key(|w| w.finished);
            if let Some(newest) = done.pop() {
                durable.insert(block, newest.content);
            }
            !writes.is_empty()
        });
        Ok(DiskDone::Done)
    }

    fn reserve(&mut self, id: FileId, range: Range<u64>) -> Result<(), DiskError> {
        let used: u64 = self.files.values().map(|f| f.reserved.total()).sum();
        let capacity = self.capacity;
        let file = self.file(id)?;
        if used + file.reserved.missing(&range) > capacity {
            return Err(DiskError::NoSpace);
        }
        file.reserved.add(range);
        Ok(())
    }

    fn allocate(&mut self, id: FileId, offset: u64, len: u64) -> DiskResult {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.reserve(id, block_range(offset, len)).map(|()| DiskDone::Done)
    }

    fn punch(&mut self, id: FileId, offset: u64, len: u64) -> DiskResult {
        let range = block_range(offset, len);
        let file = self.file(id)?;
        file.reserved.remove(&range);
        file.durable.retain(|block, _| !range.contains(block));
        file.unsynced.retain(|block, _| !range.contains(block));
        Ok(DiskDone::Done)
    }
}

fn block_range(offset: u64, len: u64) -> Range<u64> {
    let block = u64::from(BLOCK_SIZE);
    assert!(offset.is_multiple_of(block) && len.is_multiple_of(block), "unaligned disk operation");
    offset / block..(offset + len) / block
}

fn blocks_of(offset: u64, data: &[Bytes]) -> impl Iterator<Item = (u64, Bytes)> {
    let first = offset / u64::from(BLOCK_SIZE);
    let blocks = data.iter().flat_map(|buffer| {
        assert!(buffer.len().is_multiple_of(BLOCK), "partial block written");
        (0..buffer.len() / BLOCK).map(move |i| buffer.slice(i * BLOCK..(i + 1) * BLOCK))
    });
    (first..).zip(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId::BLOCKS;

    fn op(id: u64, kind: DiskOpKind) -> DiskOp {
        DiskOp { id: DiskOpId(id), kind }
    }

    fn write(id: u64, block: u64, tag: u8) -> DiskOp {
        let data = vec![Bytes::from(vec![tag; BLOCK])];
        op(id, DiskOpKind::Write { file: FILE, offset: block * BLOCK as u64, data })
    }

    fn first_byte(disk: &mut VirtualDisk, block: u64) -> u8 {
        let kind = DiskOpKind::Read { file: FILE, offset: block * BLOCK as u64, len: BLOCK_SIZE };
        match disk.run(op(999, kind)) {
            Ok(DiskDone::Read(bytes)) => bytes[0],
            other => panic!("{other:?}"),
        }
    }

    fn disk() -> VirtualDisk {
        let mut disk = VirtualDisk::new(1 << 20);
        disk.run(op(1, DiskOpKind::Open { file: FILE, create: true })).unwrap();
        disk.run(op(2, DiskOpKind::SyncDirectory)).unwrap();
        disk
    }

    #[test]
    fn a_sync_covers_what_finished_before_it_began() {
        let mut disk = disk();
        disk.run(write(3, 0, 1)).unwrap();
        disk.begin(write(4, 1, 2));
        disk.begin(op(5, DiskOpKind::Sync { file: FILE }));
        disk.finish(DiskOpId(4)).unwrap().unwrap();
        disk.run(write(6, 0, 3)).unwrap();
        disk.finish(DiskOpId(5)).unwrap().unwrap();
        assert_eq!((first_byte(&mut disk, 0), first_byte(&mut disk, 1)), (3, 2));
        disk.crash_seeded(0);
        assert_eq!((first_byte(&mut disk, 0), first_byte(&mut disk, 1)), (1, 0));
    }

    #[test]
    fn an_unfinished_write_may_survive_and_tear() {
        let mut disk = disk();
        disk.begin(write(3, 0, 7));
        assert_eq!(first_byte(&mut disk, 0), 0);
        let mut torn = disk.clone();
        disk.crash_seeded(1);
        assert_eq!(first_byte(&mut disk, 0), 7);
        torn.crash(|_, _| Fate::Torn(0b10));
        assert_eq!(first_byte(&mut torn, 0), 0);
        let kind = DiskOpKind::Read { file: FILE, offset: 0, len: BLOCK_SIZE };
        let Ok(DiskDone::Read(bytes)) = torn.run(op(9, kind)) else { panic!() };
        assert_eq!((bytes[511], bytes[512], bytes[1023], bytes[1024]), (0, 7, 7, 0));
    }

    #[test]
    fn reservations_count_once() {
        let mut disk = VirtualDisk::new(10 * BLOCK as u64);
        disk.run(op(1, DiskOpKind::Open { file: FILE, create: true })).unwrap();
        let allocate = |first: u64, n: u64| DiskOpKind::Allocate {
            file: FILE,
            offset: first * BLOCK as u64,
            len: n * BLOCK as u64,
        };
        disk.run(op(2, allocate(2, 4))).unwrap();
        disk.run(op(3, allocate(4, 4))).unwrap();
        disk.run(op(4, allocate(0, 8))).unwrap();
        assert_eq!(disk.used(), 8 * BLOCK as u64);
        assert_eq!(disk.run(op(5, allocate(8, 3))), Err(DiskError::NoSpace));
        disk.run(op(6, DiskOpKind::Punch { file: FILE, offset: BLOCK as u64, len: 2 * BLOCK as u64 }))
            .unwrap();
        disk.run(op(7, allocate(8, 3))).unwrap();
        assert_eq!(disk.run(write(8, 1, 1)), Ok(DiskDone::Done));
        assert_eq!(disk.run(write(9, 2, 1)), Err(DiskError::NoSpace));
    }
}
