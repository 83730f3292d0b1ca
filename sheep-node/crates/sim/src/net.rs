//! The network: which packet arrives, and when.

use crate::rng::Rng8;
use std::collections::BTreeSet;

/// Links between nodes, by their places in the world.
#[derive(Clone, Debug)]
pub struct Net {
    /// Direction (from, to) that carries nothing.
    cut: BTreeSet<(usize, usize)>,
    /// Chances in a million, for datagrams.
    pub loss: u64,
    /// Chance that a datagram arrives twice.
    pub doubled: u64,
    /// Chance that anything is late.
    pub late: u64,
    /// How late, nanoseconds.
    pub late_ns: u64,
}

impl Default for Net {
    fn default() -> Self {
        Self { cut: BTreeSet::new(), loss: 0, doubled: 0, late: 2_000, late_ns: 5_000_000 }
    }
}

impl Net {
    /// Whether anything gets from one node to another.
    pub fn carries(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: usize, to: usize) {
        if from != to {
            self.cut.insert((from, to));
        }
    }

    /// Makes everything whole.
    pub fn heal(&mut self) {
        *self = Self::default();
    }

    /// Whether no direction is cut.
    pub fn is_whole(&self) -> bool {
        self.cut.is_empty()
    }

    fn delay(&self, rng: &mut Rng8) -> u64 {
        let usual = rng.range(20_000, 150_000);
        if rng.chance(self.late) { usual + rng.range(0, self.late_ns) } else { usual }
    }

    /// Delays of the copies of a datagram that arrive.
    pub fn datagram(&self, from: usize, to: usize, rng: &mut Rng8) -> Vec<u64> {
        if !self.carries(from, to) || rng.chance(self.loss) {
            return Vec::new();
        }
        let mut delays = vec![self.delay(rng)];
        if rng.chance(self.doubled) {
            delays.push(self.delay(rng));
        }
        delays
    }

    /// Delay of a message on a connection, if it arrives: connections lose messages only when they break.
    pub fn message(&self, from: usize, to: usize, rng: &mut Rng8) -> Option<u64> {
        let breaks = self.loss / 20;
        (self.carries(from, to) && !rng.chance(breaks)).then(|| self.delay(rng))
    }
}
