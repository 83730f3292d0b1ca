//! The durable number: the highest configuration number or term seen anywhere.

use crate::limits::MAX_NUMBER;
use crate::types::Output;
use core::time::Duration;
use sheep_types::Time;
use std::collections::VecDeque;

/// What was seen, and what of it survives a restart. At most one write is under way.
#[derive(Debug)]
pub(crate) struct Numbers {
    highest: u64,
    /// Highest that this node took part in, or that the layer above has; after a restart, the durable one.
    taken: u64,
    durable: u64,
    /// Written ahead of need; not yet seen in a configuration.
    ahead: u64,
    asked: Option<u64>,
    /// When the write under way was first seen to be so.
    asked_at: Option<Time>,
}

impl Numbers {
    pub(crate) fn new(durable: u64) -> Self {
        let durable = durable.min(MAX_NUMBER);
        Self { highest: durable, taken: durable, durable, ahead: 0, asked: None, asked_at: None }
    }

    /// Highest number seen.
    pub(crate) fn highest(&self) -> u64 {
        self.highest
    }

    /// Configurations that this node takes part in have larger numbers than this. Those of others may have
    /// come further: two groups that form at the same time choose the same number, and neither must hinder the other.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// This node takes part in a configuration, or the layer above knows one.
    pub(crate) fn take(&mut self, number: u64, out: &mut VecDeque<Output>) {
        self.taken = self.taken.max(number.min(MAX_NUMBER));
        self.observe(number, out);
    }

    /// Whether a configuration with this number may be used.
    pub(crate) fn is_durable(&self, number: u64) -> bool {
        number <= self.durable
    }

    /// A number was seen.
    pub(crate) fn observe(&mut self, number: u64, out: &mut VecDeque<Output>) {
        self.highest = self.highest.max(number.min(MAX_NUMBER));
        self.ask(out);
    }

    /// A number will probably be needed: writes it now, so that nobody waits for it later.
    pub(crate) fn prepare(&mut self, number: u64, out: &mut VecDeque<Output>) {
        self.ahead = self.ahead.max(number.min(MAX_NUMBER));
        self.ask(out);
    }

    /// A write has finished.
    pub(crate) fn written(&mut self, number: u64, out: &mut VecDeque<Output>) {
        self.durable = self.durable.max(number.min(MAX_NUMBER));
        if self.asked.is_some_and(|asked| asked <= self.durable) {
            self.asked = None;
            self.asked_at = None;
        }
        self.ask(out);
    }

    /// How long the write under way has taken, as far as is known.
    pub(crate) fn waits(&mut self, now: Time) -> Duration {
        match self.asked {
            Some(_) => now.since(*self.asked_at.get_or_insert(now)),
            None => Duration::ZERO,
        }
    }

    fn ask(&mut self, out: &mut VecDeque<Output>) {
        let target = self.highest.max(self.ahead);
        if self.asked.is_none() && target > self.durable {
            self.asked = Some(target);
            out.push_back(Output::PersistNumber(target));
        }
    }
}
