//! The map of a volume: which vid owns each data object. Read in blocks of 4 KiB, cached, bounded.

use bytes::{BufMut, Bytes, BytesMut};
use sheep_types::{BLOCK_SIZE, Geometry, Vid};
use std::collections::{BTreeMap, BTreeSet};

/// Entries in one block.
pub(super) const ENTRIES: u32 = BLOCK_SIZE / 4;
/// Entry of a discarded object that hides its parent's: zeros.
const DISCARDED: u32 = 0x7fff_ffff;
/// Entries from here on, the partial bit taken off, name no vid.
const RESERVED: u32 = 0x7fff_fffe;
/// The object is not filled yet: absent blocks are the parent's.
const PARTIAL: u32 = 1 << 31;

/// A block of a map object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct MapBlock {
    /// Index of the map object.
    pub(super) map: u32,
    /// Block within it.
    pub(super) block: u32,
}

impl MapBlock {
    /// First byte within the map object.
    pub(super) fn offset(self) -> u32 {
        self.block * BLOCK_SIZE
    }
}

/// What the map says of a data object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing is there: zeros.
    Absent,
    /// The object of this vid.
    Owned(Vid),
    /// Written by a later version: cannot be served.
    Unknown,
}

#[derive(Debug)]
struct Cached {
    entries: Vec<u32>,
    used: u64,
}

#[derive(Debug)]
pub(super) struct MapCache {
    entries_per_map: u32,
    limit: usize,
    /// Map objects that exist.
    exists: BTreeSet<u32>,
    blocks: BTreeMap<MapBlock, Cached>,
    clock: u64,
}

impl MapCache {
    pub(super) fn new(geometry: Geometry, limit: usize, exists: BTreeSet<u32>) -> Self {
        let entries_per_map = geometry.entries_per_map();
        Self { entries_per_map, limit: limit.max(8), exists, blocks: BTreeMap::new(), clock: 0 }
    }

    /// Block and place of the entry of a data object.
    pub(super) fn place(&self, index: u32) -> (MapBlock, usize) {
        let (map, entry) = (index / self.entries_per_map, index % self.entries_per_map);
        (MapBlock { map, block: entry / ENTRIES }, (entry % ENTRIES) as usize)
    }

    pub(super) fn exists(&self, map: u32) -> bool {
        self.exists.contains(&map)
    }

    pub(super) fn set_exists(&mut self, map: u32) {
        self.exists.insert(map);
    }

    /// The entry of a data object, or the block to be loaded first.
    pub(super) fn entry(&mut self, index: u32) -> Result<Entry, MapBlock> {
        let (block, place) = self.place(index);
        if !self.exists(block.map) {
            return Ok(Entry::Absent);
        }
        self.clock += 1;
        let cached = self.blocks.get_mut(&block).ok_or(block)?;
        cached.used = self.clock;
        Ok(decode(cached.entries.get(place).copied().unwrap_or(0)))
    }

    /// Whether the block can be changed: it is cached, or its map object does not exist yet.
    pub(super) fn is_loaded(&self, block: MapBlock) -> bool {
        !self.exists(block.map) || self.blocks.contains_key(&block)
    }

    /// Takes over a block that was read; zeros where `contents` is short.
    pub(super) fn insert(&mut self, block: MapBlock, contents: &[u8]) {
        let mut entries: Vec<u32> =
            contents.as_chunks::<4>().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect();
        entries.resize(ENTRIES as usize, 0);
        self.clock += 1;
        self.blocks.insert(block, Cached { entries, used: self.clock });
        if self.blocks.len() > self.limit {
            self.evict();
        }
    }

    /// Drops the eighth of the blocks that was not used for longest.
    fn evict(&mut self) {
        let mut ages: Vec<(u64, MapBlock)> =
            self.blocks.iter().map(|(block, cached)| (cached.used, *block)).collect();
        ages.sort_unstable();
        for (_, block) in ages.iter().take(self.limit / 8 + 1) {
            self.blocks.remove(block);
        }
    }

    /// The contents of a loaded block with some entries changed.
    pub(super) fn changed(&self, block: MapBlock, changes: &[(usize, u32)]) -> Bytes {
        let old = self.blocks.get(&block).map(|cached| cached.entries.as_slice()).unwrap_or_default();
        let mut entries = old.to_vec();
        entries.resize(ENTRIES as usize, 0);
        for (place, value) in changes {
            if let Some(entry) = entries.get_mut(*place) {
                *entry = *value;
            }
        }
        let mut contents = BytesMut::with_capacity(BLOCK_SIZE as usize);
        for entry in entries {
            contents.put_u32_le(entry);
        }
        contents.freeze()
    }
}

fn decode(entry: u32) -> Entry {
    match entry {
        0 | DISCARDED => Entry::Absent,
        partial if partial & PARTIAL != 0 => Entry::Unknown,
        RESERVED.. => Entry::Unknown,
        vid => Entry::Owned(Vid(vid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(limit: usize) -> MapCache {
        let geometry = Geometry::with_object_size(64 << 10).unwrap();
        MapCache::new(geometry, limit, BTreeSet::from([0]))
    }

    #[test]
    fn entries_are_found_where_the_format_puts_them() {
        let mut map = cache(8);
        // 64 KiB objects: 16384 entries a map, 1024 a block.
        assert_eq!(map.place(16384 + 1025), (MapBlock { map: 1, block: 1 }, 1));
        assert_eq!(map.entry(16384), Ok(Entry::Absent), "no such map object: nothing to ask for");
        let block = MapBlock { map: 0, block: 1 };
        assert_eq!(map.entry(1025), Err(block));
        map.insert(block, &[7, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 5, 0, 0, 0x80]);
        assert_eq!(map.entry(1024), Ok(Entry::Owned(Vid(7))));
        assert_eq!(map.entry(1025), Ok(Entry::Absent), "discarded");
        assert_eq!(map.entry(1026), Ok(Entry::Unknown), "partial");
        assert_eq!(map.entry(1027), Ok(Entry::Absent));
    }

    #[test]
    fn changes_keep_the_other_entries() {
        let mut map = cache(8);
        let block = MapBlock { map: 0, block: 0 };
        map.insert(block, &[1, 0, 0, 0, 2, 0, 0, 0]);
        let bytes = map.changed(block, &[(1, 0), (1023, 9)]);
        assert_eq!(bytes.len(), 4096);
        map.insert(block, &bytes);
        assert_eq!(map.entry(0), Ok(Entry::Owned(Vid(1))));
        assert_eq!(map.entry(1), Ok(Entry::Absent));
        assert_eq!(map.entry(1023), Ok(Entry::Owned(Vid(9))));
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut map = cache(8);
        for block in 0..16 {
            map.insert(MapBlock { map: 0, block }, &[1, 0, 0, 0]);
            assert!(map.entry(0).is_ok(), "block 0 is used all the time");
        }
        assert!(map.blocks.len() <= 8);
    }
}
