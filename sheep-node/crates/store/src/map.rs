//! Where the blocks of one object are.

/// A run of blocks of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    /// First block.
    pub(crate) place: u32,
    /// Number of blocks, at least one.
    pub(crate) len: u32,
}

impl Run {
    /// First block after it.
    pub(crate) fn end(self) -> u32 {
        self.place + self.len
    }
}

/// Place that stands for zeros: the superblock's, where no data can be.
pub(crate) const ZERO_PLACE: u32 = 0;

/// Place that stands for lost blocks: between the copies of the superblock, where no data can be either.
pub(crate) const LOST_PLACE: u32 = 1;

/// A run of an object's blocks that are zero, or lost, or data in consecutive places. Eight bytes, because a store
/// written at random has one for every block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapRun {
    /// First block in the object.
    pub(crate) start: u16,
    /// Number of blocks, at least one.
    pub(crate) len: u16,
    /// Place of the first one, or [`ZERO_PLACE`], or [`LOST_PLACE`].
    pub(crate) place: u32,
}

const _: () = assert!(size_of::<MapRun>() == 8);

impl MapRun {
    pub(crate) fn first(self) -> u32 {
        u32::from(self.start)
    }

    pub(crate) fn count(self) -> u32 {
        u32::from(self.len)
    }

    /// First block of the object after it.
    pub(crate) fn end(self) -> u32 {
        self.first() + self.count()
    }

    pub(crate) fn is_zero(self) -> bool {
        self.place == ZERO_PLACE
    }

    pub(crate) fn is_lost(self) -> bool {
        self.place == LOST_PLACE
    }

    /// The data's blocks on disk.
    pub(crate) fn data(self) -> Option<Run> {
        let data = !self.is_zero() && !self.is_lost();
        data.then_some(Run { place: self.place, len: self.count() })
    }

    /// Place of the block after so many of its blocks.
    pub(crate) fn place_at(self, blocks: u32) -> u32 {
        if self.data().is_some() { self.place.saturating_add(blocks) } else { self.place }
    }

    /// The part of it in `from..to`, which must overlap it.
    fn clip(self, from: u32, to: u32) -> Self {
        let (first, end) = (self.first().max(from), self.end().min(to));
        debug_assert!(first < end, "clip does not overlap");
        Self { start: first as u16, len: (end - first) as u16, place: self.place_at(first - self.first()) }
    }

    /// True if `next` goes on where this ends, in the object and on disk.
    pub(crate) fn joins(self, next: Self) -> bool {
        self.end() == next.first()
            && match (self.data(), next.data()) {
                (Some(_), Some(next)) => self.place.checked_add(self.count()) == Some(next.place),
                (None, None) => self.place == next.place,
                _ => false,
            }
    }
}

/// Places of an object's blocks: runs in order of start, not overlapping; what is in none is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockMap {
    runs: Vec<MapRun>,
}

impl BlockMap {
    /// All runs in order.
    pub(crate) fn runs(&self) -> &[MapRun] {
        &self.runs
    }

    /// Data runs of the whole object.
    pub(crate) fn data(&self) -> impl Iterator<Item = Run> {
        self.runs.iter().filter_map(|r| r.data())
    }

    /// Index of the first run that ends after `block`.
    fn position(&self, block: u32) -> usize {
        self.runs.partition_point(|r| r.end() <= block)
    }

    /// The runs in `from..to`, clipped to it.
    pub(crate) fn range(&self, from: u32, to: u32) -> impl Iterator<Item = MapRun> {
        let tail = self.runs.get(self.position(from)..).unwrap_or_default();
        tail.iter().take_while(move |r| r.first() < to).map(move |r| r.clip(from, to))
    }

    /// Lost blocks in `from..to`.
    pub(crate) fn lost(&self, from: u32, to: u32) -> u32 {
        self.range(from, to).filter(|run| run.is_lost()).map(MapRun::count).sum()
    }

    /// Place of a block: `None` if absent, [`ZERO_PLACE`] if zero, [`LOST_PLACE`] if lost.
    pub(crate) fn place(&self, block: u32) -> Option<u32> {
        self.range(block, block + 1).next().map(|r| r.place)
    }

    /// Puts `new` (in order, without gaps, at least one) in place of whatever was in its range, and returns
    /// the runs of data that were there.
    pub(crate) fn replace(&mut self, new: &[MapRun]) -> Vec<Run> {
        let (Some(first), Some(last)) = (new.first(), new.last()) else { return Vec::new() };
        let (from, to) = (first.first(), last.end());
        debug_assert!(new.windows(2).all(|w| w[0].end() == w[1].first()), "gap in a replacement");
        let old: Vec<Run> = self.range(from, to).filter_map(MapRun::data).collect();
        let begin = self.position(from);
        let end = begin + self.runs.iter().skip(begin).take_while(|r| r.first() < to).count();
        let mut middle: Vec<MapRun> = Vec::with_capacity(new.len() + 2);
        let mut push = |run: MapRun| match middle.last_mut() {
            Some(last) if last.joins(run) => last.len += run.len,
            _ => middle.push(run),
        };
        // One neighbour on each side takes part too, so that runs that continue each other become one.
        let left = begin.saturating_sub(1);
        let right = (end + 1).min(self.runs.len());
        for run in self.runs.iter().take(end).skip(left).filter(|r| r.first() < from) {
            push(run.clip(0, from));
        }
        new.iter().copied().for_each(&mut push);
        for run in self.runs.iter().take(right).skip(begin).filter(|r| r.end() > to) {
            push(run.clip(to, u32::MAX));
        }
        self.runs.splice(left..right, middle);
        old
    }

    /// Puts all that `newer` has over this.
    pub(crate) fn overlay(&mut self, newer: &Self) {
        for run in newer.runs() {
            self.replace(std::slice::from_ref(run));
        }
    }

    /// Bytes of memory that it takes besides itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<MapRun>()
    }

    /// Gives memory back that it does not need at present.
    pub(crate) fn trim(&mut self) {
        if self.runs.capacity() > self.runs.len() + self.runs.len() / 8 + 8 {
            self.runs.shrink_to(self.runs.len() + self.runs.len() / 16);
        }
    }

    /// From the places of single blocks, in order of block.
    pub(crate) fn from_places(places: impl Iterator<Item = (u16, u32)>) -> Self {
        let mut runs: Vec<MapRun> = Vec::new();
        for (start, place) in places {
            let run = MapRun { start, len: 1, place };
            match runs.last_mut() {
                Some(last) if last.joins(run) => last.len += 1,
                _ => runs.push(run),
            }
        }
        runs.shrink_to_fit();
        Self { runs }
    }

    /// From runs read from disk: `None` if they are out of order, overlap, or reach beyond `blocks`.
    pub(crate) fn from_runs(runs: Vec<MapRun>, blocks: u32) -> Option<Self> {
        let mut at = 0;
        for run in &runs {
            if run.len == 0 || run.first() < at || run.end() > blocks {
                return None;
            }
            at = run.end();
        }
        Some(Self { runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn like_an_array(ops in prop::collection::vec((0u16..60, 1u16..20, 0u32..4), 1..60)) {
            let mut map = BlockMap::default();
            let mut model = [None::<u32>; 80];
            let mut next = 100;
            for (start, len, kind) in ops {
                // Two pieces in consecutive places for kind 2: they must merge.
                let place = [ZERO_PLACE, next, next, LOST_PLACE][kind as usize];
                let mut new = vec![MapRun { start, len, place }];
                if kind == 2 {
                    new.push(MapRun { start: start + len, len: 1, place: place + u32::from(len) });
                }
                let old = map.replace(&new);
                let mut freed = Vec::new();
                for run in &new {
                    for i in 0..run.count() {
                        let slot = &mut model[(run.first() + i) as usize];
                        freed.extend(slot.filter(|p| *p > LOST_PLACE));
                        *slot = Some(if run.place <= LOST_PLACE { run.place } else { run.place + i });
                    }
                }
                let got: Vec<u32> = old.iter().flat_map(|r| r.place..r.end()).collect();
                prop_assert_eq!(got, freed);
                next += 30;
            }
            for (b, want) in model.iter().enumerate() {
                prop_assert_eq!(map.place(b as u32), *want);
            }
            let lost = model.iter().filter(|place| **place == Some(LOST_PLACE)).count();
            prop_assert_eq!(map.lost(0, 80) as usize, lost);
            prop_assert!(map.runs().windows(2).all(|w| w[0].end() <= w[1].first() && !w[0].joins(w[1])));
            prop_assert!(BlockMap::from_runs(map.runs().to_vec(), 80).is_some());
        }
    }

    #[test]
    fn runs_from_disk_are_checked() {
        let run = |start, len| MapRun { start, len, place: 9 };
        assert!(BlockMap::from_runs(vec![run(0, 4), run(4, 4)], 8).is_some());
        assert!(BlockMap::from_runs(vec![run(0, 4), run(3, 4)], 8).is_none());
        assert!(BlockMap::from_runs(vec![run(0, 0)], 8).is_none());
        assert!(BlockMap::from_runs(vec![run(7, 2)], 8).is_none());
        assert!(BlockMap::from_runs(vec![run(u16::MAX, u16::MAX)], 8).is_none());
    }
}
