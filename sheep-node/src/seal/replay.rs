//! Which counters of a sender were seen.

const WORDS: usize = 16;
const BITS: u64 = 64 * WORDS as u64;

/// The last 1,024 counters as bits (the window of RFC 6479).
#[derive(Clone, Debug, Default)]
pub(super) struct ReplayWindow {
    highest: u64,
    seen: [u64; WORDS],
}

impl ReplayWindow {
    fn slot(counter: u64) -> (usize, u64) {
        ((counter / 64) as usize % WORDS, 1 << (counter % 64))
    }

    /// Whether this counter was not seen, and is not too old to tell. Counters begin at 1.
    pub(super) fn is_new(&self, counter: u64) -> bool {
        // One word less than there is: the word that `highest` is in may hold bits of the lap before.
        if counter == 0 || counter.saturating_add(BITS - 64) <= self.highest {
            return false;
        }
        let (word, bit) = Self::slot(counter);
        counter > self.highest || self.seen.get(word).is_some_and(|seen| seen & bit == 0)
    }

    /// Remembers a counter that was new.
    pub(super) fn mark(&mut self, counter: u64) {
        let (from, to) = (self.highest / 64, counter / 64);
        for word in (from + 1..=to).take(WORDS) {
            if let Some(seen) = self.seen.get_mut(word as usize % WORDS) {
                *seen = 0;
            }
        }
        self.highest = self.highest.max(counter);
        let (word, bit) = Self::slot(counter);
        if let Some(seen) = self.seen.get_mut(word) {
            *seen |= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn never_takes_one_twice_and_takes_recent_ones() {
        let mut window = ReplayWindow::default();
        let mut taken = BTreeSet::new();
        let mut x = 12345u64;
        let mut base = 0;
        for _ in 0..20_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            base += (x >> 60) & 3;
            let counter = (base + 1).saturating_sub((x >> 33) % 1500);
            let new = window.is_new(counter);
            let highest = taken.last().copied().unwrap_or(0);
            if new {
                assert!(taken.insert(counter), "{counter} twice");
                window.mark(counter);
            } else {
                assert!(
                    taken.contains(&counter) || counter == 0 || counter + 960 <= highest,
                    "{counter} refused"
                );
            }
        }
    }

    #[test]
    fn a_far_jump_forgets_the_past() {
        let mut window = ReplayWindow::default();
        window.mark(1);
        window.mark(1 << 60);
        assert!(!window.is_new(1) && !window.is_new(1 << 60));
        assert!(window.is_new((1 << 60) - 5));
    }
}
