//! Which blocks of one group are free.

use super::GROUP_BLOCKS;

const WORDS: usize = GROUP_BLOCKS as usize / 64;

/// What the disk knows of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// Space is reserved: blocks may be handed out.
    Reserved,
    /// No space is reserved.
    None,
    /// A reservation or punch is under way.
    Changing,
}

#[derive(Clone, Debug)]
pub(super) struct Group {
    /// One bit per block, set if used.
    used: [u64; WORDS],
    pub(super) free: u16,
    pub(super) backing: Backing,
    /// In the list of those that have changed since they were filed.
    pub(super) changed: bool,
}

impl Group {
    /// A free group of `room` blocks; what is beyond counts as used for ever.
    pub(super) fn new(room: u32) -> Self {
        let mut group =
            Self { used: [0; WORDS], free: GROUP_BLOCKS as u16, backing: Backing::None, changed: false };
        group.set(room, GROUP_BLOCKS - room, true);
        group
    }

    pub(super) fn is_used(&self, at: u32) -> bool {
        self.used[at as usize / 64] >> (at % 64) & 1 == 1
    }

    pub(super) fn is_whole(&self) -> bool {
        u32::from(self.free) == GROUP_BLOCKS
    }

    /// First run of free blocks from `from` on, cut at `limit` blocks.
    pub(super) fn run_at(&self, from: u32, limit: u32) -> Option<(u32, u32)> {
        let mut at = from;
        while at < GROUP_BLOCKS {
            let word = self.used[at as usize / 64] >> (at % 64);
            if word & 1 == 1 {
                at += (!word).trailing_zeros().min(64 - at % 64);
                continue;
            }
            // Free from here to the next set bit.
            let mut end = at;
            while end < GROUP_BLOCKS && end - at < limit {
                let word = self.used[end as usize / 64] >> (end % 64);
                let free = word.trailing_zeros().min(64 - end % 64);
                end += free;
                if free == 0 || !end.is_multiple_of(64) {
                    break;
                }
            }
            return Some((at, (end - at).min(limit)));
        }
        None
    }

    /// First run of at least `len` free blocks.
    pub(super) fn fit(&self, len: u32) -> Option<u32> {
        let mut from = 0;
        while let Some((at, n)) = self.run_at(from, len) {
            if n == len {
                return Some(at);
            }
            from = at + n;
        }
        None
    }

    /// The longest run of free blocks: its first, and its length.
    pub(super) fn longest(&self) -> Option<(u32, u32)> {
        let (mut best_at, mut best) = (0, 0);
        // The run that ends where the next word begins.
        let (mut open_at, mut open) = (0, 0);
        for (i, &used) in self.used.iter().enumerate() {
            let base = i as u32 * 64;
            if open == 0 {
                open_at = base;
            }
            open += used.trailing_zeros();
            if open > best {
                (best_at, best) = (open_at, open);
            }
            if used == 0 {
                continue;
            }
            open = used.leading_zeros();
            open_at = base + 64 - open;
            // Inside of the word, only what is longer than the longest so far: `free` keeps the bits at which
            // a run of so many begins.
            let mut free = starts(!used, best + 1);
            while free != 0 {
                (best_at, best) = (base + free.trailing_zeros(), best + 1);
                free = starts(!used, best + 1);
            }
        }
        if open > best {
            (best_at, best) = (open_at, open);
        }
        (best > 0).then_some((best_at, best))
    }

    pub(super) fn set(&mut self, first: u32, len: u32, used: bool) {
        for at in first..first + len {
            let (word, bit) = (at as usize / 64, 1u64 << (at % 64));
            assert_eq!(self.used[word] & bit != 0, !used, "block {at} of a group is already so");
            self.used[word] ^= bit;
        }
        self.free = if used { self.free - len as u16 } else { self.free + len as u16 };
    }
}

/// The bits of `word` at which a run of at least `len` ones begins.
fn starts(word: u64, len: u32) -> u64 {
    if len > 64 {
        return 0;
    }
    let (mut out, mut have) = (word, 1);
    while have < len && out != 0 {
        let more = have.min(len - have);
        out &= out >> more;
        have += more;
    }
    out
}
