//! Groups by the length of their longest free run.

use super::GROUP_BLOCKS;

/// Classes: class `c` holds groups whose longest free run has at least 2^c blocks, and less than twice as many.
pub(super) const CLASSES: usize = GROUP_BLOCKS.ilog2() as usize + 1;

/// A set of groups per class, a bit for each group, and where the last one was found.
#[derive(Debug)]
pub(super) struct Classes {
    sets: [Vec<u64>; CLASSES],
    counts: [u32; CLASSES],
    cursors: [usize; CLASSES],
}

/// The lowest class all of whose groups have a run of `len` blocks.
pub(super) fn class_for(len: u32) -> usize {
    len.max(1).next_power_of_two().ilog2() as usize
}

impl Classes {
    pub(super) fn new() -> Self {
        Self { sets: std::array::from_fn(|_| Vec::new()), counts: [0; CLASSES], cursors: [0; CLASSES] }
    }

    /// Takes a group out of wherever it is, and puts it where a longest run of `longest` blocks belongs.
    pub(super) fn file(&mut self, group: usize, longest: u32) {
        let (word, bit) = (group / 64, 1u64 << (group % 64));
        let class = longest.checked_ilog2().map(|class| class as usize);
        for (i, set) in self.sets.iter_mut().enumerate() {
            if set.len() <= word {
                set.resize(word + 1, 0);
            }
            let (is, wanted) = (set[word] & bit != 0, class == Some(i));
            if is != wanted {
                set[word] ^= bit;
                self.counts[i] = if wanted { self.counts[i] + 1 } else { self.counts[i] - 1 };
            }
        }
    }

    /// A group of a class: the one found last as long as it is there, then the next.
    pub(super) fn find(&mut self, class: usize) -> Option<usize> {
        if self.counts[class] == 0 {
            return None;
        }
        let set = &self.sets[class];
        let start = self.cursors[class].min(set.len() * 64 - 1);
        let first = set[start / 64] & (u64::MAX << (start % 64));
        let later = (start / 64 + 1..set.len()).chain(0..=start / 64);
        let (word, bits) = std::iter::once((start / 64, first))
            .chain(later.map(|word| (word, set[word])))
            .find(|(_, bits)| *bits != 0)?;
        let group = word * 64 + bits.trailing_zeros() as usize;
        self.cursors[class] = group;
        Some(group)
    }

    /// Number of groups with a run of `len` blocks, those that are in doubt left out.
    pub(super) fn with_run(&self, len: u32) -> u32 {
        self.counts.iter().skip(class_for(len)).sum()
    }
}
