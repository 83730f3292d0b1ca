//! What a volume may contain after faults, given what was answered before them.
//!
//! One writer writes numbered versions of whole blocks. A write that was answered must be read back until the next
//! one; a write without an answer may have happened or not, but once a read has shown either, it stays so. After a
//! power cut of everything only what was flushed must be there.

use anyhow::{Result, ensure};

/// Bytes per block.
pub const BLOCK: usize = 4096;

#[derive(Clone, Copy, Default)]
struct Known {
    /// Highest version that was sent.
    sent: u64,
    /// No read may show less than this.
    answered: u64,
    /// No read may show less than this even after loss of power.
    durable: u64,
}

/// Model of a volume of whole blocks.
pub struct Oracle {
    blocks: Vec<Known>,
    run: u64,
}

impl Oracle {
    /// A volume of `blocks` blocks that have never been written; `run` tells runs apart.
    pub fn new(blocks: usize, run: u64) -> Oracle {
        Oracle { blocks: vec![Known::default(); blocks], run }
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The contents to send as the next version of a block. Call [`Oracle::answered`] when it is answered.
    pub fn send(&mut self, block: usize) -> Vec<u8> {
        self.blocks[block].sent += 1;
        self.contents(block, self.blocks[block].sent)
    }

    /// The last version sent of this block was answered.
    pub fn answered(&mut self, block: usize) {
        self.blocks[block].answered = self.blocks[block].sent;
    }

    /// A FLUSH that was sent after all these answers was itself answered.
    pub fn flushed(&mut self) {
        self.blocks.iter_mut().for_each(|known| known.durable = known.answered);
    }

    /// Everything lost power: only what was flushed counts as answered.
    pub fn power_lost(&mut self) {
        self.blocks.iter_mut().for_each(|known| known.answered = known.durable);
    }

    /// Checks what a read of a block returned, and remembers it: later reads may not show less.
    ///
    /// # Errors
    /// The block is torn, was never written so, or shows a version older than it must be.
    pub fn check(&mut self, block: usize, data: &[u8]) -> Result<()> {
        let version = self.version_in(block, data)?;
        let known = &mut self.blocks[block];
        ensure!(
            version <= known.sent,
            "block {block}: version {version} was never written (last {})",
            known.sent
        );
        ensure!(
            version >= known.answered,
            "block {block}: lost write: shows version {version}, {} was answered",
            known.answered
        );
        known.answered = version;
        Ok(())
    }

    fn version_in(&self, block: usize, data: &[u8]) -> Result<u64> {
        ensure!(data.len() == BLOCK, "block {block}: {} bytes", data.len());
        if data.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        let mut version = [0; 8];
        version.copy_from_slice(&data[16..24]);
        let version = u64::from_le_bytes(version);
        ensure!(data == self.contents(block, version), "block {block}: torn or foreign contents");
        Ok(version)
    }

    /// Run, block and version in every 32 bytes, with a word mixed from them: a torn block cannot look whole.
    fn contents(&self, block: usize, version: u64) -> Vec<u8> {
        let mut data = Vec::with_capacity(BLOCK);
        let words = [self.run, block as u64, version];
        for part in 0..(BLOCK / 32) as u64 {
            let mixed = words
                .iter()
                .fold(part, |sum, word| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
            words.iter().chain([&mixed]).for_each(|word| data.extend(word.to_le_bytes()));
        }
        data
    }
}

/// A small generator of pseudo-random numbers (xorshift*), so that a failed run can be repeated by its seed.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit.max(1)
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap_or(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_lost_torn_and_resurrected_writes() {
        let mut oracle = Oracle::new(4, 7);
        oracle.check(0, &[0; BLOCK]).unwrap();
        let first = oracle.send(0);
        oracle.answered(0);
        let second = oracle.send(0);
        // Without an answer both are possible, until one was seen.
        oracle.check(0, &first).unwrap();
        oracle.check(0, &second).unwrap();
        assert!(oracle.check(0, &first).unwrap_err().to_string().contains("lost write"));
        assert!(oracle.check(0, &[0; BLOCK]).is_err());
        let mut torn = second.clone();
        torn[BLOCK / 2..].copy_from_slice(&first[BLOCK / 2..]);
        assert!(oracle.check(0, &torn).unwrap_err().to_string().contains("torn"));
        assert!(oracle.check(1, &second).is_err(), "contents of another block");
        assert!(Oracle::new(4, 8).check(0, &second).is_err(), "contents of another run");
    }

    #[test]
    fn only_flushed_writes_must_survive_a_power_cut() {
        let mut oracle = Oracle::new(1, 1);
        let first = oracle.send(0);
        oracle.answered(0);
        oracle.flushed();
        let second = oracle.send(0);
        oracle.answered(0);
        assert!(oracle.check(0, &first).is_err());
        oracle.power_lost();
        oracle.check(0, &first).unwrap();
        oracle.check(0, &second).unwrap();
        oracle.power_lost();
        assert!(oracle.check(0, &[0; BLOCK]).is_err());
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..32).map(|_| random.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert!(draw(5).iter().all(|number| *number < 1000));
    }
}
