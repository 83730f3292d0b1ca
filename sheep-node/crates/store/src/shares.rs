//! How many objects use a block, where it is more than one.

use crate::map::Run;
use std::collections::BTreeMap;

/// Extra users of runs of blocks: a block that is in no run has one user (or is free). Clones share whole
/// runs, so this stays short where blocks are shared in long runs.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// First block to (length, extra users, at least one). Not overlapping.
    runs: BTreeMap<u32, (u32, u32)>,
}

impl Shares {
    /// Cuts the run that contains `at`, so that none crosses it.
    fn split(&mut self, at: u32) {
        let Some((&start, &(len, extra))) = self.runs.range(..at).next_back() else { return };
        if start + len > at {
            self.runs.insert(start, (at - start, extra));
            self.runs.insert(at, (start + len - at, extra));
        }
    }

    /// One more user of each block of `run`, which has at least one already.
    pub(crate) fn add(&mut self, run: Run) {
        self.split(run.place);
        self.split(run.end());
        let mut at = run.place;
        while at < run.end() {
            let next = self.runs.range(at..run.end()).next().map(|(&s, &v)| (s, v));
            match next {
                Some((start, (len, extra))) if start == at => {
                    self.runs.insert(at, (len, extra + 1));
                    at += len;
                }
                other => {
                    let end = other.map_or(run.end(), |(start, _)| start);
                    self.runs.insert(at, (end - at, 1));
                    at = end;
                }
            }
        }
        self.merge(run);
    }

    /// One user less of each block of `run`; returns the parts that nobody uses any more.
    pub(crate) fn sub(&mut self, run: Run) -> Vec<Run> {
        let mut free = Vec::new();
        // Nearly always nothing is shared.
        if self.runs.is_empty() {
            free.push(run);
            return free;
        }
        self.split(run.place);
        self.split(run.end());
        let mut at = run.place;
        while at < run.end() {
            let next = self.runs.range(at..run.end()).next().map(|(&s, &v)| (s, v));
            match next {
                Some((start, (len, extra))) if start == at => {
                    if extra > 1 {
                        self.runs.insert(at, (len, extra - 1));
                    } else {
                        self.runs.remove(&at);
                    }
                    at += len;
                }
                other => {
                    let end = other.map_or(run.end(), |(start, _)| start);
                    free.push(Run { place: at, len: end - at });
                    at = end;
                }
            }
        }
        self.merge(run);
        free
    }

    /// Joins neighbours with the same count in and around `run`.
    fn merge(&mut self, run: Run) {
        let from = self.runs.range(..run.place).next_back().map_or(run.place, |(&s, _)| s);
        let keys: Vec<u32> = self.runs.range(from..=run.end()).map(|(&s, _)| s).collect();
        let mut keys = keys.into_iter();
        let Some(mut last) = keys.next() else { return };
        for key in keys {
            let (Some(&(len, extra)), Some(&(next_len, next_extra))) =
                (self.runs.get(&last), self.runs.get(&key))
            else {
                continue;
            };
            if last + len == key && extra == next_extra {
                self.runs.insert(last, (len + next_len, extra));
                self.runs.remove(&key);
            } else {
                last = key;
            }
        }
    }

    /// Number of runs kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.runs.len()
    }
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
    fn neighbours_join_again() {
        let mut shares = Shares::default();
        shares.add(Run { place: 10, len: 10 });
        shares.add(Run { place: 14, len: 2 });
        assert_eq!(shares.len(), 3);
        assert!(shares.sub(Run { place: 14, len: 2 }).is_empty());
        assert_eq!(shares.len(), 1);
        assert!(shares.sub(Run { place: 10, len: 10 }).is_empty());
        assert_eq!(shares.len(), 0);
        assert_eq!(shares.sub(Run { place: 10, len: 10 }), vec![Run { place: 10, len: 10 }]);
    }
}
