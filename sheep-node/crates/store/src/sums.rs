//! Checksums of an object's blocks.
//!
//! Four bytes for each block would be a gigabyte per terabyte, so they are not kept in memory. Those of an
//! object lie in one block of the disk, its *page*, which is never changed but written anew elsewhere. What
//! was written since then is the *delta*: in memory, and on disk in the log and the checkpoint. A checkpoint
//! folds a delta that has become long into a new page.

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

/// Checksums of one object. Those of blocks that hold no data mean nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    /// The page, if there is one.
    pub(crate) base: Option<PageRef>,
    /// Blocks written since, in order: (block, checksum).
    delta: Vec<(u16, u32)>,
}

impl Sums {
    pub(crate) fn from_parts(base: Option<PageRef>, delta: Vec<(u16, u32)>) -> Option<Self> {
        let sorted = delta.is_sorted_by(|a, b| a.0 < b.0);
        sorted.then_some(Self { base, delta })
    }

    /// What is not in the page.
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

    /// Forgets the delta's checksums of blocks that hold no data any more.
    pub(crate) fn clear(&mut self, from: u32, to: u32) {
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
            if let Some(field) = page.get_mut(usize::from(block) * 4..).and_then(<[u8]>::first_chunk_mut) {
                *field = crc.to_le_bytes();
            }
        }
        page
    }

    /// Takes a page made from `folded` when the delta was `then`: what has not changed since is in the page.
    pub(crate) fn rebase(&mut self, base: PageRef, then: &[(u16, u32)]) {
        self.base = Some(base);
        self.delta
            .retain(|d| then.binary_search_by_key(&d.0, |t| t.0).ok().and_then(|i| then.get(i)) != Some(d));
    }

    /// Gives unused memory back.
    pub(crate) fn shrink(&mut self) {
        if self.delta.capacity() > 2 * self.delta.len() {
            self.delta.shrink_to_fit();
        }
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

    #[test]
    fn delta_hides_page_and_folds_into_it() {
        let mut sums = Sums::default();
        sums.set(5, &[50, 60, 70]);
        sums.set(6, &[61]);
        let page = sums.folded(None);
        let then = sums.delta().to_vec();
        sums.set(7, &[71]);
        sums.set(9, &[90]);
        let base = PageRef { place: 100, crc: crc32c::crc32c(&page) };
        sums.rebase(base, &then);
        assert!(base.check(&page));
        // Block 7 changed while the page was on its way, so it stays in the delta; 5 and 6 went.
        assert_eq!(sums.delta(), [(7, 71), (9, 90)]);
        let sum = |b| sums.in_delta(b).or_else(|| in_page(&page, b)).unwrap();
        assert_eq!([sum(5), sum(6), sum(7), sum(9)], [50, 61, 71, 90]);
        let again = sums.folded(Some(&page));
        assert_eq!([5, 6, 7, 9].map(|b| in_page(&again, b).unwrap()), [50, 61, 71, 90]);
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
