//! What can happen to a disk in memory besides errors: power cuts and rot.

use super::{BLOCK, Content, Fate, SECTOR, SECTORS, VirtualDisk};
use crate::{DiskOpId, FileId};
use bytes::Bytes;

impl VirtualDisk {
    /// The power fails. `choose` says what becomes of each unsynced write of each block; it is given the file and
    /// the number of the block. Operations under way are forgotten; faults stay.
    pub fn crash(&mut self, mut choose: impl FnMut(FileId, u64) -> Fate) {
        self.crash_writes(|file, block, _| choose(file, block));
    }

    /// The power fails, as in [`VirtualDisk::crash`]; `choose` is given the operation that wrote the block too.
    pub fn crash_writes(&mut self, mut choose: impl FnMut(FileId, u64, DiskOpId) -> Fate) {
        self.begun.clear();
        self.files.retain(|&id, file| file.entry_durable || choose(id, 0, DiskOpId(0)) != Fate::Lost);
        for (&id, file) in &mut self.files {
            file.entry_durable = true;
            for (block, writes) in std::mem::take(&mut file.unsynced) {
                for write in writes {
                    let content = match choose(id, block, write.by) {
                        Fate::Lost => continue,
                        Fate::Kept => write.content,
                        Fate::Torn(sectors) => torn(file.durable.get(&block), &write.content, sectors),
                    };
                    file.durable.insert(block, content);
                }
            }
        }
    }

    /// What a power cut could lose: blocks that were written and not synced, with the operations that wrote them,
    /// in the order of the operations.
    pub fn unsynced(&self) -> Vec<(DiskOpId, FileId, u64)> {
        let blocks = self.files.iter().flat_map(|(&id, f)| f.unsynced.iter().map(move |(&b, w)| (id, b, w)));
        let mut out: Vec<_> = blocks.flat_map(|(id, b, w)| w.iter().map(move |w| (w.by, id, b))).collect();
        out.sort_unstable();
        out
    }

    /// The power fails; the seed says what survives. About a third of unsynced blocks each are lost, kept, torn,
    /// except for seeds 0 (all lost) and 1 (all kept).
    pub fn crash_seeded(&mut self, seed: u64) {
        let mut state = seed;
        self.crash(|_, _| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut r = state;
            r = (r ^ (r >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            r = (r ^ (r >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            r ^= r >> 31;
            match (seed, r % 3) {
                (0, _) | (_, 0) => Fate::Lost,
                (1, _) | (_, 1) => Fate::Kept,
                _ => Fate::Torn((r >> 8) as u8),
            }
        });
    }

    /// Flips a bit of what is durable: rot. `false` if the block was never written.
    pub fn rot(&mut self, file: FileId, block: u64, bit: usize) -> bool {
        let Some(content) = self.files.get_mut(&file).and_then(|f| f.durable.get_mut(&block)) else {
            return false;
        };
        let mut bytes = content.to_vec();
        if let Some(byte) = bytes.get_mut(bit / 8 % BLOCK) {
            *byte ^= 1 << (bit % 8);
        }
        *content = Content::of(bytes.into());
        true
    }

    /// Blocks of a file that are durable.
    pub fn durable_blocks(&self, file: FileId) -> Vec<u64> {
        self.files.get(&file).map(|f| f.durable.keys().copied().collect()).unwrap_or_default()
    }

    /// What is durable in a block; `None` if it was never written.
    pub fn durable(&self, file: FileId, block: u64) -> Option<Bytes> {
        Some(self.files.get(&file)?.durable.get(&block)?.to_vec().into())
    }

    /// Puts something else into a block, durably: zeros, or what belongs elsewhere.
    pub fn overwrite(&mut self, file: FileId, block: u64, bytes: Bytes) {
        assert_eq!(bytes.len(), BLOCK, "not a block");
        self.files.entry(file).or_default().durable.insert(block, Content::of(bytes));
    }
}

/// The old block with some sectors of the new one.
fn torn(old: Option<&Content>, new: &Content, sectors: u8) -> Content {
    let mut bytes = old.map_or_else(|| vec![0; BLOCK], Content::to_vec);
    let new = new.to_vec();
    for i in (0..SECTORS).filter(|i| sectors >> i & 1 == 1) {
        let range = i * SECTOR..(i + 1) * SECTOR;
        if let (Some(to), Some(from)) = (bytes.get_mut(range.clone()), new.get(range)) {
            to.copy_from_slice(from);
        }
    }
    Content::of(bytes.into())
}
