//! Randomness and contents.

use bytes::Bytes;
use core::time::Duration;

pub(crate) const BLOCK: usize = 4096;

/// SplitMix64.
#[derive(Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.below(to - from))
    }
}

/// A block full of one number, with its checksum.
pub(crate) fn block(tag: u64) -> (Bytes, Vec<u32>) {
    let bytes: Vec<u8> = tag.to_le_bytes().iter().copied().cycle().take(BLOCK).collect();
    let crc = crc32c::crc32c(&bytes);
    (Bytes::from(bytes), vec![crc])
}
