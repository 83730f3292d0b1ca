//! Sets of numbers as ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// Sorted, not overlapping, not touching ranges of blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    by_start: BTreeMap<u64, u64>,
    total: u64,
}

impl Ranges {
    /// Total length.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// How much of `range` is in none.
    pub(crate) fn missing(&self, range: &Range<u64>) -> u64 {
        let before = self.by_start.range(..range.start).next_back().map(|(&s, &e)| (s, e));
        let inside = self.by_start.range(range.clone()).map(|(&s, &e)| (s, e));
        let covered: u64 = before
            .into_iter()
            .chain(inside)
            .map(|(s, e)| e.min(range.end).saturating_sub(s.max(range.start)))
            .sum();
        range.end - range.start - covered
    }

    /// Takes `range` out.
    pub(crate) fn remove(&mut self, range: &Range<u64>) {
        let before = self.by_start.range(..range.start).next_back().map(|(&s, &e)| (s, e));
        let inside: Vec<_> = self.by_start.range(range.clone()).map(|(&s, &e)| (s, e)).collect();
        for (start, end) in before.into_iter().chain(inside) {
            if end <= range.start {
                continue;
            }
            self.by_start.remove(&start);
            self.total -= end - start;
            for part in [start..range.start, range.end..end] {
                if part.start < part.end {
                    self.total += part.end - part.start;
                    self.by_start.insert(part.start, part.end);
                }
            }
        }
    }

    /// Puts `range` in.
    pub(crate) fn add(&mut self, range: Range<u64>) {
        self.remove(&range);
        let (mut start, mut end) = (range.start, range.end);
        self.total += end - start;
        if let Some((&s, &e)) = self.by_start.range(..start).next_back()
            && e == start
        {
            self.by_start.remove(&s);
            start = s;
        }
        if let Some(e) = self.by_start.remove(&end) {
            end = e;
        }
        self.by_start.insert(start, end);
    }
}
