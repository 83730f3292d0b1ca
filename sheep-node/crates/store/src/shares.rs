//! How many objects use a block, where it is more than one.

use crate::map::Run;
use std::collections::BTreeMap;

/// Blocks whose counts are kept together.
const CHUNK: u32 = 1024;
/// Runs of equal counts in a chunk above which each block has its own byte.
const RUNS_MAX: usize = 64;
/// A count of this and more is continued in `Shares::above`.
const FULL: u8 = u8::MAX;

/// Extra users of the blocks of a chunk.
#[derive(Debug)]
enum Counts {
    /// Runs with extra users: (first block, blocks, extra users), in order. Clones share whole objects, so there are
    /// few where these lie in few pieces.
    Runs(Vec<(u16, u16, u8)>),
    /// A count for each block, and the number of those that are not zero.
    Each(Box<[u8; CHUNK as usize]>, u16),
}

impl Counts {
    fn expand(self) -> Box<[u8; CHUNK as usize]> {
        match self {
            Self::Each(each, _) => each,
            Self::Runs(runs) => {
                let mut each = Box::new([0; CHUNK as usize]);
                for (at, len, extra) in runs {
                    each[usize::from(at)..usize::from(at + len)].fill(extra);
                }
                each
            }
        }
    }

    /// The shorter form; `None` if nothing is shared.
    fn packed(each: Box<[u8; CHUNK as usize]>) -> Option<Self> {
        let mut runs: Vec<(u16, u16, u8)> = Vec::new();
        let mut at = 0;
        for same in each.chunk_by(|a, b| a == b) {
            if let Some(extra) = same.first().filter(|extra| **extra > 0) {
                if runs.len() == RUNS_MAX {
                    let shared = each.iter().filter(|extra| **extra > 0).count();
                    return Some(Self::Each(each, shared as u16));
                }
                runs.push((at, same.len() as u16, *extra));
            }
            at += same.len() as u16;
        }
        runs.shrink_to_fit();
        (!runs.is_empty()).then_some(Self::Runs(runs))
    }

    /// Bytes of memory that they take besides themselves.
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Runs(runs) => runs.capacity() * size_of::<(u16, u16, u8)>(),
            Self::Each(..) => CHUNK as usize,
        }
    }
}

/// Extra users of blocks: one that is not counted here has one user (or is free). Takes about a byte for each block that
/// is shared, at most, and much less where shared blocks lie side by side.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// By number of the chunk; none without a shared block.
    chunks: BTreeMap<u32, Counts>,
    /// What goes beyond [`FULL`], by block.
    above: BTreeMap<u32, u32>,
}

impl Shares {
    /// One more user of each block of `run`, which has at least one already.
    pub(crate) fn add(&mut self, run: Run) {
        for part in in_chunks(run) {
            self.change(part, |above, block, extra| {
                if *extra == FULL {
                    *above.entry(block).or_default() += 1;
                } else {
                    *extra += 1;
                }
            });
        }
    }

    /// One user less of each block of `run`; returns the parts that nobody uses any more.
    pub(crate) fn sub(&mut self, run: Run) -> Vec<Run> {
        let mut free: Vec<Run> = Vec::new();
        // Nearly always nothing is shared.
        if self.chunks.is_empty() {
            free.push(run);
            return free;
        }
        let mut push = |run: Run| match free.last_mut() {
            Some(last) if last.end() == run.place => last.len += run.len,
            _ => free.push(run),
        };
        for part in in_chunks(run) {
            if !self.chunks.contains_key(&(part.place / CHUNK)) {
                push(part);
                continue;
            }
            self.change(part, |above, block, extra| match above.get_mut(&block) {
                _ if *extra == 0 => push(Run { place: block, len: 1 }),
                Some(more @ 2..) => *more -= 1,
                Some(_) => drop(above.remove(&block)),
                None => *extra -= 1,
            });
        }
        free
    }

    /// Bytes of memory that the counts take.
    pub(crate) fn heap_bytes(&self) -> usize {
        let each = size_of::<(u32, Counts)>();
        let chunks: usize = self.chunks.values().map(|counts| each + counts.heap_bytes()).sum();
        chunks + self.above.len() * size_of::<(u32, u32)>()
    }

    /// Applies `f` to the extra users of each block of `part`, which lies in one chunk, in order.
    fn change(&mut self, part: Run, mut f: impl FnMut(&mut BTreeMap<u32, u32>, u32, &mut u8)) {
        let (chunk, first) = (part.place / CHUNK, part.place % CHUNK);
        let range = first as usize..(first + part.len) as usize;
        // Where each block has its own byte, the others need not be looked at; unless few are left.
        let mut repack = true;
        if let Some(Counts::Each(each, shared)) = self.chunks.get_mut(&chunk) {
            for (block, extra) in (part.place..).zip(&mut each[range]) {
                *shared -= u16::from(*extra > 0);
                f(&mut self.above, block, extra);
                *shared += u16::from(*extra > 0);
            }
            repack = usize::from(*shared) <= RUNS_MAX;
        } else {
            let counts = self.chunks.remove(&chunk).unwrap_or(Counts::Runs(Vec::new()));
            let mut each = counts.expand();
            for (block, extra) in (part.place..).zip(&mut each[range]) {
                f(&mut self.above, block, extra);
            }
            self.chunks.insert(chunk, Counts::Each(each, 0));
        }
        if repack && let Some(counts) = self.chunks.remove(&chunk) {
            self.chunks.extend(Counts::packed(counts.expand()).map(|counts| (chunk, counts)));
        }
    }
}

/// The parts of a run that lie in one chunk each.
fn in_chunks(run: Run) -> impl Iterator<Item = Run> {
    let mut at = run.place;
    std::iter::from_fn(move || {
        let place = at;
        at = run.end().min((place / CHUNK + 1).saturating_mul(CHUNK));
        (place < at).then_some(Run { place, len: at - place })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn like_counters(ops in prop::collection::vec((any::<bool>(), 1u32..50, 1u32..20), 1..80)) {
            let mut shares = Shares::default();
            let mut model = [1u32; 80];
            for (up, place, len) in ops {
                let run = Run { place, len };
                let range = place as usize..(place + len) as usize;
                if up && model[range.clone()].iter().all(|&c| c > 0) {
                    shares.add(run);
                    model[range].iter_mut().for_each(|c| *c += 1);
                } else if !up && model[range.clone()].iter().all(|&c| c > 0) {
                    let mut freed = vec![];
                    for (i, c) in model.iter_mut().enumerate().take(range.end).skip(range.start) {
                        *c -= 1;
                        if *c == 0 {
                            freed.push(i as u32);
                        }
                    }
                    let got: Vec<u32> = shares.sub(run).iter().flat_map(|r| r.place..r.end()).collect();
                    prop_assert_eq!(got, freed);
                }
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_comes_back() {
        let mut shares = Shares::default();
        let all = Run { place: 500, len: 4 * CHUNK };
        shares.add(all);
        assert!(shares.heap_bytes() < 300, "{}", shares.heap_bytes());
        // Every other block once more: too many runs.
        let odd = || (all.place..all.end()).step_by(2).map(|place| Run { place, len: 1 });
        odd().for_each(|run| shares.add(run));
        assert!(shares.heap_bytes() <= 5 * (CHUNK as usize + 40), "{}", shares.heap_bytes());
        odd().for_each(|run| assert!(shares.sub(run).is_empty()));
        assert!(shares.sub(all).is_empty());
        assert_eq!(shares.heap_bytes(), 0);
        assert_eq!(shares.sub(all), vec![all]);
    }

    #[test]
    fn a_block_may_have_very_many_users() {
        let mut shares = Shares::default();
        let run = Run { place: 1023, len: 2 };
        (0..70_000).for_each(|_| shares.add(run));
        (0..70_000).for_each(|_| assert!(shares.sub(run).is_empty()));
        assert_eq!((shares.heap_bytes(), shares.sub(run)), (0, vec![run]));
    }
}
