//! Many durations in little memory.

use std::time::Duration;

/// Buckets per power of two: a quantile is at most 1/16 too large.
const STEPS: u32 = 16;
/// Durations from 2^36 microseconds (19 hours) count as that.
const OCTAVES: u32 = 36;

/// Counts durations in buckets of microseconds that grow by sixteenths of a power of two.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { buckets: vec![0; (OCTAVES * STEPS) as usize], count: 0, max: Duration::ZERO }
    }

    pub(super) fn add(&mut self, value: Duration) {
        self.count += 1;
        self.max = self.max.max(value);
        let at = bucket(u64::try_from(value.as_micros()).unwrap_or(u64::MAX)).min(self.buckets.len() - 1);
        self.buckets[at] += 1;
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// Least upper end of a bucket such that `share` (0 to 1) of all values are not above it. Zero if there are none.
    pub(super) fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Duration::from_micros(upper_end(at)).min(self.max);
            }
        }
        self.max
    }

    /// The buckets that are not empty, at most four per power of two: upper end and count.
    pub(super) fn rows(&self) -> Vec<(Duration, u64)> {
        let coarse = (STEPS / 4) as usize;
        let chunks = self.buckets.chunks(coarse).enumerate();
        let rows = chunks
            .map(|(at, chunk)| (Duration::from_micros(upper_end((at + 1) * coarse - 1)), chunk.iter().sum()));
        rows.filter(|(_, count)| *count > 0).collect()
    }
}

/// Values below `STEPS` have a bucket each; above, the highest bit and the next four choose one.
fn bucket(micros: u64) -> usize {
    let octave = micros.max(1).ilog2();
    let steps = STEPS.ilog2();
    if octave < steps {
        return usize::try_from(micros).unwrap_or(0);
    }
    let within = (micros >> (octave - steps)) - u64::from(STEPS);
    ((octave - steps + 1) * STEPS) as usize + usize::try_from(within).unwrap_or(0)
}

/// Largest number of microseconds in a bucket.
fn upper_end(bucket: usize) -> u64 {
    let (row, within) = (bucket as u64 / u64::from(STEPS), bucket as u64 % u64::from(STEPS));
    if row == 0 { within } else { ((u64::from(STEPS) + within + 1) << (row - 1)) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_their_ends_fit() {
        let mut last = 0;
        for micros in (0..100_000).chain([1 << 20, 1 << 30, (1 << 35) + 12_345]) {
            let at = bucket(micros);
            assert!(at >= last, "{micros}");
            assert!(upper_end(at) >= micros && upper_end(at) <= micros + micros / 16, "{micros}");
            last = at;
        }
    }

    #[test]
    fn quantiles_are_near_the_true_ones() {
        let mut all = Histogram::new();
        assert_eq!(all.quantile(0.99), Duration::ZERO);
        (1..=1000).for_each(|n| all.add(Duration::from_micros(n * 10)));
        let within = |share: f64, micros: u128| {
            let found = all.quantile(share).as_micros();
            assert!(found >= micros && found <= micros + micros / 16, "{share}: {found}");
        };
        within(0.5, 5000);
        within(0.99, 9900);
        within(1.0, 10_000);
        assert_eq!(all.max(), Duration::from_micros(10_000));
        assert_eq!(all.rows().iter().map(|(_, count)| count).sum::<u64>(), all.count());
    }

    #[test]
    fn the_longest_durations_have_a_place() {
        let mut all = Histogram::new();
        all.add(Duration::MAX);
        assert_eq!((all.count(), all.max()), (1, Duration::MAX));
    }
}
