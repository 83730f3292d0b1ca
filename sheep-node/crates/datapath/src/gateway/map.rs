//! The map of a volume: which vid's object each data object is. Read in blocks of 4 KiB, cached, bounded.
//!
//! What the map of a clone does not say yet is as in the snapshot that it was cloned from, so a volume's map has layers:
//! its own, its origin's, that one's origin's.

use bytes::{BufMut, Bytes, BytesMut};
use sheep_types::{BLOCK_SIZE, Geometry, Vid};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Entries in one block.
pub(super) const ENTRIES: u32 = BLOCK_SIZE / 4;
/// Entries from here on, the partial bit taken off, name no vid.
const RESERVED: u32 = 0x7fff_fffe;
/// The object is not filled yet: absent blocks are those of the layer below its lineage's.
pub(super) const PARTIAL: u32 = 1 << 31;

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

/// A block of a layer's map object: where it is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LayerBlock {
    /// Number of the layer, from the volume's own, 0, down.
    pub(super) layer: usize,
    /// The block.
    pub(super) block: MapBlock,
}

/// What the map says of a data object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing is there: zeros.
    Absent,
    /// The object of this vid. `partial`: its absent blocks are those of the origin of its lineage.
    At { vid: Vid, partial: bool },
    /// Written by a later version: cannot be served.
    Unknown,
}

/// A change of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The own object is there.
    Enter,
    /// Nothing of the object that the entry names is absent.
    Whole,
    /// Nothing is there any more.
    Clear,
}

/// A vid whose map is looked at, and where its map objects are.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) vid: Vid,
    pub(super) lineage: Vid,
    pub(super) maps: Arc<BTreeMap<u32, Vid>>,
}

#[derive(Debug)]
enum Contents {
    Entries(Vec<u32>),
    /// The block is the next layer's.
    Below,
}

#[derive(Debug)]
struct Cached {
    contents: Contents,
    used: u64,
}

#[derive(Debug)]
pub(super) struct MapCache {
    entries_per_map: u32,
    limit: usize,
    layers: Vec<Layer>,
    blocks: BTreeMap<LayerBlock, Cached>,
    clock: u64,
}

impl MapCache {
    /// `layers`: the volume's own first; there is at least one.
    pub(super) fn new(geometry: Geometry, limit: usize, layers: Vec<Layer>) -> Self {
        let entries_per_map = geometry.entries_per_map();
        Self { entries_per_map, limit: limit.max(8), layers, blocks: BTreeMap::new(), clock: 0 }
    }

    /// Block and place of the entry of a data object.
    pub(super) fn place(&self, index: u32) -> (MapBlock, usize) {
        let (map, entry) = (index / self.entries_per_map, index % self.entries_per_map);
        (MapBlock { map, block: entry / ENTRIES }, (entry % ENTRIES) as usize)
    }

    /// The vid under whose number a layer's map object is kept, if there is one.
    pub(super) fn kept_by(&self, layer: usize, map: u32) -> Option<Vid> {
        self.layers.get(layer)?.maps.get(&map).copied()
    }

    /// A map object of the volume exists under its own vid.
    pub(super) fn set_exists(&mut self, map: u32) {
        if let Some(own) = self.layers.first_mut() {
            Arc::make_mut(&mut own.maps).insert(map, own.vid);
        }
    }

    /// The volume goes on under another vid of its lineage: all entries are as they were.
    pub(super) fn go_on_as(&mut self, vid: Vid, maps: Arc<BTreeMap<u32, Vid>>) {
        if let Some(own) = self.layers.first_mut() {
            (own.vid, own.maps) = (vid, maps);
        }
    }

    /// Whether the volume's own map has a block, or what is to be read to know that.
    pub(super) fn has_own(&self, block: MapBlock) -> Result<bool, LayerBlock> {
        let at = LayerBlock { layer: 0, block };
        if self.kept_by(0, block.map).is_none() {
            return Ok(false);
        }
        let cached = self.blocks.get(&at).ok_or(at)?;
        Ok(matches!(cached.contents, Contents::Entries(_)))
    }

    /// Behind the last entry of the last map object that the volume itself has.
    pub(super) fn own_end(&self) -> u64 {
        let last = self.layers.first().and_then(|own| own.maps.keys().next_back());
        last.map_or(0, |map| (u64::from(*map) + 1) * u64::from(self.entries_per_map))
    }

    /// Whether there is anything below the volume's own layer.
    pub(super) fn has_origin(&self) -> bool {
        self.layers.len() > 1
    }

    /// Nothing is below the volume's own layer any more.
    pub(super) fn forget_origin(&mut self) {
        self.layers.truncate(1);
        self.blocks.retain(|at, _| at.layer == 0);
    }

    /// The layer in which absent blocks of partial objects of a lineage are found.
    pub(super) fn below(&self, lineage: Vid) -> Option<usize> {
        let layer = self.layers.iter().position(|layer| layer.lineage == lineage)? + 1;
        (layer < self.layers.len()).then_some(layer)
    }

    /// Entries of a block as a layer sees them, none: all are zero; or the block to be read first.
    fn entries(&mut self, layer: usize, block: MapBlock) -> Result<Option<&[u32]>, LayerBlock> {
        self.clock += 1;
        let clock = self.clock;
        let mut at = LayerBlock { layer, block };
        while let Some(here) = self.layers.get(at.layer) {
            if here.maps.contains_key(&block.map) {
                let cached = self.blocks.get_mut(&at).ok_or(at)?;
                cached.used = clock;
                if let Contents::Entries(_) = cached.contents {
                    break;
                }
            }
            at.layer += 1;
        }
        Ok(self.blocks.get(&at).and_then(|cached| match &cached.contents {
            Contents::Entries(entries) => Some(entries.as_slice()),
            Contents::Below => None,
        }))
    }

    /// The entry of a data object as a layer sees it, or the block to be read first.
    pub(super) fn entry(&mut self, layer: usize, index: u32) -> Result<Entry, LayerBlock> {
        let (block, place) = self.place(index);
        let entries = self.entries(layer, block)?;
        Ok(decode(entries.and_then(|entries| entries.get(place).copied()).unwrap_or(0)))
    }

    /// Takes over a block that was read: nothing if the object has none. Zeros where it is short.
    pub(super) fn insert(&mut self, at: LayerBlock, contents: Option<&[u8]>) {
        let last = at.layer + 1 >= self.layers.len();
        let contents = match contents {
            None if !last => Contents::Below,
            contents => {
                let bytes = contents.unwrap_or_default();
                let mut entries: Vec<u32> =
                    bytes.as_chunks::<4>().0.iter().map(|entry| u32::from_le_bytes(*entry)).collect();
                entries.resize(ENTRIES as usize, 0);
                Contents::Entries(entries)
            }
        };
        self.clock += 1;
        self.blocks.insert(at, Cached { contents, used: self.clock });
        if self.blocks.len() > self.limit {
            self.evict();
        }
    }

    /// A block is read anew when it is needed.
    pub(super) fn forget(&mut self, at: LayerBlock) {
        self.blocks.remove(&at);
    }

    /// Drops the eighth of the blocks that was not used for longest.
    fn evict(&mut self) {
        let mut ages: Vec<(u64, LayerBlock)> =
            self.blocks.iter().map(|(block, cached)| (cached.used, *block)).collect();
        ages.sort_unstable();
        for (_, block) in ages.iter().take(self.limit / 8 + 1) {
            self.blocks.remove(block);
        }
    }

    /// Blocks of the volume that can be read, through all layers, without driving each other out.
    pub(super) fn room(&self) -> usize {
        (self.limit / 2 / self.layers.len().max(1)).max(1)
    }

    /// The block to be read before a block of the volume can be changed.
    pub(super) fn unread(&mut self, block: MapBlock) -> Option<LayerBlock> {
        self.entries(0, block).err()
    }

    /// What entries of a block of the volume, which is read, say before they are changed.
    pub(super) fn replaced(&mut self, block: MapBlock, changes: &[(usize, Change)]) -> Vec<(Entry, Change)> {
        let entries = self.entries(0, block).ok().flatten().unwrap_or_default();
        let old = |place: &usize| decode(entries.get(*place).copied().unwrap_or(0));
        changes.iter().map(|(place, change)| (old(place), *change)).collect()
    }

    /// The contents of a block of the volume, which is read, with some entries changed. `partial` says whether an own
    /// object that takes the place of another vid's is partial.
    pub(super) fn changed(
        &mut self,
        block: MapBlock,
        changes: &[(usize, Change)],
        partial: impl Fn(Entry) -> bool,
    ) -> Bytes {
        let own = self.layers.first().map_or(Vid(0), |own| own.vid);
        let mut entries = self.entries(0, block).ok().flatten().unwrap_or_default().to_vec();
        entries.resize(ENTRIES as usize, 0);
        for (place, change) in changes {
            let Some(entry) = entries.get_mut(*place) else { continue };
            let old = decode(*entry);
            *entry = match change {
                Change::Clear => 0,
                Change::Enter if partial(old) => own.0 | PARTIAL,
                Change::Enter => own.0,
                Change::Whole => *entry & !PARTIAL,
            };
        }
        let mut contents = BytesMut::with_capacity(BLOCK_SIZE as usize);
        for entry in entries {
            contents.put_u32_le(entry);
        }
        contents.freeze()
    }
}

pub(super) fn decode(entry: u32) -> Entry {
    match entry & !PARTIAL {
        0 if entry == 0 => Entry::Absent,
        0 | RESERVED.. => Entry::Unknown,
        vid => Entry::At { vid: Vid(vid), partial: entry & PARTIAL != 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(vid: u32, maps: &[(u32, u32)]) -> Layer {
        let maps = maps.iter().map(|(map, vid)| (*map, Vid(*vid))).collect();
        Layer { vid: Vid(vid), lineage: Vid(vid), maps: Arc::new(maps) }
    }

    fn cache(layers: Vec<Layer>) -> MapCache {
        MapCache::new(Geometry::with_object_size(64 << 10).unwrap(), 8, layers)
    }

    fn at(layer: usize, block: u32) -> LayerBlock {
        LayerBlock { layer, block: MapBlock { map: 0, block } }
    }

    fn whole(vid: u32) -> Result<Entry, LayerBlock> {
        Ok(Entry::At { vid: Vid(vid), partial: false })
    }

    #[test]
    fn entries_are_found_where_the_format_puts_them() {
        let mut map = cache(vec![layer(3, &[(0, 3)])]);
        // 64 KiB objects: 16384 entries a map, 1024 a block.
        assert_eq!(map.place(16384 + 1025), (MapBlock { map: 1, block: 1 }, 1));
        assert_eq!(map.entry(0, 16384), Ok(Entry::Absent), "no such map object: nothing to ask for");
        assert_eq!(map.entry(0, 1025), Err(at(0, 1)));
        map.insert(at(0, 1), Some(&[7, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 5, 0, 0, 0x80, 0, 0, 0, 0x80]));
        assert_eq!(map.entry(0, 1024), whole(7));
        assert_eq!(map.entry(0, 1025), Ok(Entry::Unknown), "reserved");
        assert_eq!(map.entry(0, 1026), Ok(Entry::At { vid: Vid(5), partial: true }));
        assert_eq!(map.entry(0, 1027), Ok(Entry::Unknown), "a part of nothing");
        assert_eq!(map.entry(0, 1028), Ok(Entry::Absent));
    }

    #[test]
    fn what_a_layer_does_not_say_the_next_one_says() {
        let mut map = cache(vec![layer(9, &[(0, 9)]), layer(5, &[]), layer(3, &[(0, 3)])]);
        assert_eq!(map.entry(0, 0), Err(at(0, 0)));
        map.insert(at(0, 0), None);
        assert_eq!(map.entry(0, 0), Err(at(2, 0)), "the second has no map object at all");
        map.insert(at(2, 0), Some(&[3, 0, 0, 0]));
        assert_eq!(
            (map.entry(0, 0), map.entry(1, 0), map.entry(0, 1)),
            (whole(3), whole(3), Ok(Entry::Absent))
        );
        // A block that is there says everything, and hides those below.
        map.insert(at(0, 0), Some(&[0, 0, 0, 0, 9, 0, 0, 0]));
        assert_eq!(
            (map.entry(0, 0), map.entry(0, 1), map.entry(1, 0)),
            (Ok(Entry::Absent), whole(9), whole(3))
        );
        // The last has nothing below it.
        map.insert(at(2, 1), None);
        assert_eq!(map.entry(2, 1024), Ok(Entry::Absent));
        assert_eq!((map.below(Vid(9)), map.below(Vid(5)), map.below(Vid(3))), (Some(1), Some(2), None));
    }

    #[test]
    fn changes_keep_the_other_entries() {
        let mut map = cache(vec![layer(9, &[]), layer(2, &[(0, 2)])]);
        let block = MapBlock { map: 0, block: 0 };
        let partial = |old| old != Entry::Absent;
        let changes = [(1, Change::Clear), (2, Change::Enter), (1023, Change::Enter)];
        assert_eq!(map.unread(block), Some(at(1, 0)));
        map.insert(at(1, 0), Some(&[1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0]));
        assert_eq!(map.unread(block), None);
        let bytes = map.changed(block, &changes, partial);
        assert_eq!(bytes.len(), 4096);
        map.set_exists(0);
        map.insert(at(0, 0), Some(&bytes));
        assert_eq!((map.entry(0, 0), map.entry(0, 1)), (whole(1), Ok(Entry::Absent)));
        assert_eq!(map.entry(0, 2), Ok(Entry::At { vid: Vid(9), partial: true }));
        assert_eq!(map.entry(0, 1023), whole(9));
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut map = cache(vec![layer(1, &[(0, 1)])]);
        for block in 0..16 {
            map.insert(at(0, block), Some(&[1, 0, 0, 0]));
            assert!(map.entry(0, 0).is_ok(), "block 0 is used all the time");
        }
        assert!(map.blocks.len() <= 8);
    }
}
