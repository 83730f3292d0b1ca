//! What of an object is kept in pages on disk, and what has changed since.
//!
//! Checksums of four bytes for each block would be a gigabyte per terabyte, so they are not kept in memory.
//! Those of an object lie in one block of the disk, its *sums page*, which is never changed but written anew
//! elsewhere. What was written since then is the *delta*: in memory, and on disk in the log and the checkpoint.
//! A checkpoint folds a delta that has become long into a new page.
//!
//! The places of an object that lies in many pieces are too many to be written with every checkpoint. They are
//! folded into a *map page* of their own at the same time, and the delta says which of them have changed too.

use crate::map::BlockMap;
use bytes::Bytes;
use sheep_types::BLOCK_SIZE;
use std::collections::BTreeMap;

/// Blocks of the largest object: their checksums just fill a page.
pub(crate) const MAX_BLOCKS: u32 = BLOCK_SIZE / 4;

const _: () = assert!((4 << 20) / BLOCK_SIZE == MAX_BLOCKS);

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageRef {
    /// Its block.
    pub(crate) place: u32,
    /// CRC-32C of its 4096 bytes.
    pub(crate) crc: u32,
}

impl PageRef {
    /// The page's bytes, if they are the ones that were written.
    pub(crate) fn check(self, page: &[u8]) -> bool {
        page.len() == BLOCK_SIZE as usize && crc32c::crc32c(page) == self.crc
    }
}

/// Checksum of `block` in the bytes of a page.
pub(crate) fn in_page(page: &[u8], block: u32) -> Option<u32> {
    let field = page.get(block as usize * 4..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

/// New pages of an object, as of some instant.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    pub(crate) sums_place: u32,
    pub(crate) sums: Bytes,
    pub(crate) map_place: u32,
    /// Only if the object lies in many pieces.
    pub(crate) map: Option<Bytes>,
}

/// Place in a map page of a block that is absent.
const ABSENT_PLACE: u32 = u32::MAX;

/// The map page of an object with this map.
pub(crate) fn map_page(map: &BlockMap) -> Vec<u8> {
    let mut page = vec![0xff; BLOCK_SIZE as usize];
    for run in map.runs() {
        for i in 0..run.count() {
            put_field(&mut page, run.first() + i, run.place_at(i));
        }
    }
    page
}

/// The map that a map page of an object of `blocks` blocks holds.
pub(crate) fn map_from_page(page: &[u8], blocks: u32) -> BlockMap {
    let places = (0..blocks).filter_map(|block| Some((block as u16, in_page(page, block)?)));
    BlockMap::from_places(places.filter(|&(_, place)| place != ABSENT_PLACE))
}

/// Puts a number into a page.
fn put_field(page: &mut [u8], block: u32, value: u32) {
    if let Some(field) = page.get_mut(block as usize * 4..).and_then(<[u8]>::first_chunk_mut) {
        *field = value.to_le_bytes();
    }
}

/// The pages of one object, and what has changed since they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// Its sums page, if there is one. What it says of blocks that hold no data means nothing.
    pub(crate) base: Option<PageRef>,
    /// Its map page, if it lay in many pieces when the delta was last folded.
    pub(crate) map: Option<PageRef>,
    /// Checksums of blocks written since, in order: (block, checksum). With a map page, blocks that became zero
    /// are here too, with any checksum.
    delta: Vec<(u16, u32)>,
}

impl Sums {
    pub(crate) fn from_parts(
        base: Option<PageRef>,
        map: Option<PageRef>,
        delta: Vec<(u16, u32)>,
    ) -> Option<Self> {
        let sorted = delta.is_sorted_by(|a, b| a.0 < b.0);
        sorted.then_some(Self { base, map, delta })
    }

    /// All its pages.
    pub(crate) fn pages(&self) -> impl Iterator<Item = PageRef> + use<> {
        [self.base, self.map].into_iter().flatten()
    }

    /// Bytes of memory that they take besides themselves.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.delta.capacity() * size_of::<(u16, u32)>()
    }

    /// The part of a map that the map page does not have.
    pub(crate) fn changed(&self, map: &BlockMap) -> BlockMap {
        BlockMap::from_places(self.delta.iter().filter_map(|&(b, _)| Some((b, map.place(b.into())?))))
    }

    /// What is not in the pages.
    pub(crate) fn delta(&self) -> &[(u16, u32)] {
        &self.delta
    }

    /// Checksum of a block, if the delta has it; the page's holds otherwise.
    pub(crate) fn in_delta(&self, block: u32) -> Option<u32> {
        let i = self.delta.binary_search_by_key(&block, |d| u32::from(d.0)).ok()?;
        self.delta.get(i).map(|d| d.1)
    }

    /// New checksums for the blocks from `start` on.
    pub(crate) fn set(&mut self, start: u32, crcs: &[u32]) {
        let new = (start..).zip(crcs).map(|(block, &crc)| (block as u16, crc));
        let range = self.range(start, start + crcs.len() as u32);
        self.delta.splice(range, new);
    }

    /// Blocks became zero.
    pub(crate) fn clear(&mut self, from: u32, to: u32) {
        if self.map.is_some() {
            // The map page has their old places.
            self.set(from, &vec![0; (to - from) as usize]);
            return;
        }
        let range = self.range(from, to);
        self.delta.drain(range);
    }

    fn range(&self, from: u32, to: u32) -> std::ops::Range<usize> {
        let at = |block| self.delta.partition_point(|d| u32::from(d.0) < block);
        at(from)..at(to)
    }

    /// The page that delta and old page make together.
    pub(crate) fn folded(&self, old: Option<&[u8]>) -> Vec<u8> {
        let mut page = old.map_or_else(|| vec![0; BLOCK_SIZE as usize], <[u8]>::to_vec);
        for &(block, crc) in &self.delta {
            put_field(&mut page, u32::from(block), crc);
        }
        page
    }

    /// Takes new pages over: what has changed since they were made becomes the delta.
    pub(crate) fn rebase(&mut self, new: &Folded, now: &BlockMap) {
        let mut delta: Vec<(u16, u32)> = self
            .delta
            .iter()
            .copied()
            .filter(|&(b, crc)| in_page(&new.sums, b.into()) != Some(crc))
            .collect();
        if let Some(map) = &new.map {
            for run in now.runs() {
                for i in 0..run.count() {
                    let block = run.first() + i;
                    if in_page(map, block) != Some(run.place_at(i)) {
                        delta.push((block as u16, self.in_delta(block).unwrap_or_default()));
                    }
                }
            }
            delta.sort_unstable();
            delta.dedup();
        }
        let page = |place: u32, bytes: &[u8]| PageRef { place, crc: crc32c::crc32c(bytes) };
        self.base = Some(page(new.sums_place, &new.sums));
        self.map = new.map.as_ref().map(|map| page(new.map_place, map));
        self.delta = delta;
    }
}

/// Pages kept in memory for reads; the least recently used one goes first.
#[derive(Debug)]
pub(crate) struct PageCache {
    limit: usize,
    tick: u64,
    pages: BTreeMap<u32, (u64, Bytes)>,
    by_use: BTreeMap<u64, u32>,
}

impl PageCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, tick: 0, pages: BTreeMap::new(), by_use: BTreeMap::new() }
    }

    pub(crate) fn get(&mut self, place: u32) -> Option<Bytes> {
        let (used, page) = self.pages.get_mut(&place)?;
        self.by_use.remove(used);
        self.tick += 1;
        *used = self.tick;
        self.by_use.insert(self.tick, place);
        Some(page.clone())
    }

    pub(crate) fn insert(&mut self, place: u32, page: Bytes) {
        self.remove(place);
        self.tick += 1;
        self.pages.insert(place, (self.tick, page));
        self.by_use.insert(self.tick, place);
        while self.pages.len() > self.limit {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.pages.remove(&oldest);
        }
    }

    /// The page is no page any more.
    pub(crate) fn remove(&mut self, place: u32) {
        if let Some((used, _)) = self.pages.remove(&place) {
            self.by_use.remove(&used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{LOST_PLACE, MapRun, ZERO_PLACE};

    fn write(map: &mut BlockMap, sums: &mut Sums, block: u32, place: u32, crc: u32) {
        map.replace(&[MapRun { start: block as u16, len: 1, place }]);
        if place == ZERO_PLACE {
            sums.clear(block, block + 1);
        } else {
            sums.set(block, &[crc]);
        }
    }

    #[test]
    fn delta_hides_pages_and_folds_into_them() {
        let (mut map, mut sums) = (BlockMap::default(), Sums::default());
        for (block, place, crc) in [
            (5, 105, 50),
            (6, 106, 60),
            (7, 207, 70),
            (8, 108, 80),
            (6, 116, 61),
            (9, LOST_PLACE, 90),
            (10, LOST_PLACE, 91),
        ] {
            write(&mut map, &mut sums, block, place, crc);
        }
        let new = Folded {
            sums_place: 900,
            sums: sums.folded(None).into(),
            map_place: 901,
            map: Some(map_page(&map).into()),
        };
        // While the pages are on their way: a new checksum, a new place with the same checksum, a zero.
        write(&mut map, &mut sums, 7, 307, 71);
        write(&mut map, &mut sums, 8, 308, 80);
        write(&mut map, &mut sums, 5, ZERO_PLACE, 0);
        sums.rebase(&new, &map);
        assert!(sums.base.unwrap().check(&new.sums) && sums.map.unwrap().check(new.map.as_ref().unwrap()));
        assert_eq!(sums.delta(), [(5, 0), (7, 71), (8, 80)]);
        // Pages and delta together are what there is.
        let mut again = map_from_page(new.map.as_ref().unwrap(), 1024);
        again.overlay(&sums.changed(&map));
        assert_eq!(again, map);
        let sum = |b| sums.in_delta(b).or_else(|| in_page(&new.sums, b)).unwrap();
        assert_eq!([sum(6), sum(7), sum(8)], [61, 71, 80]);
        write(&mut map, &mut sums, 6, ZERO_PLACE, 0);
        assert_eq!(sums.delta()[1].0, 6);
    }

    #[test]
    fn the_least_used_page_goes() {
        let mut cache = PageCache::new(2);
        cache.insert(1, Bytes::from_static(b"1"));
        cache.insert(2, Bytes::from_static(b"2"));
        assert!(cache.get(1).is_some());
        cache.insert(3, Bytes::from_static(b"3"));
        assert!(cache.get(2).is_none() && cache.get(1).is_some() && cache.get(3).is_some());
        cache.remove(1);
        assert!(cache.get(1).is_none());
        assert_eq!(cache.by_use.len(), cache.pages.len());
    }
}
