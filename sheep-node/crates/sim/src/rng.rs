//! Randomness of a run: everything comes from the seed.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng8(ChaCha8Rng);

impl Rng8 {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// From `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "empty range");
        let span = high - low;
        if span == u64::MAX { self.any() } else { low + self.any() % (span + 1) }
    }

    /// An index below `len`, which is not zero.
    pub fn index(&mut self, len: usize) -> usize {
        self.range(0, len as u64 - 1) as usize
    }

    /// True this many times in a million.
    pub fn chance(&mut self, per_million: u64) -> bool {
        self.any() % 1_000_000 < per_million
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { from.get(self.index(from.len())) }
    }

    /// Another stream, for a part of the world that must not shift the others.
    pub fn fork(&mut self) -> Self {
        Self::new(self.any())
    }
}
