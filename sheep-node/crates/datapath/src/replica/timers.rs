//! What happens when.

use crate::recovery::RecoveryTimer;
use sheep_types::{ObjectId, Time};
use std::collections::BTreeSet;

/// What a deadline is for. Firing one that no longer matters does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Requests that wait for a view.
    View,
    /// Requests that wait for something about an object.
    Object(ObjectId),
    /// More may be moved for recovery.
    Pace,
    /// Scrubbing goes on.
    Scrub,
    /// The cluster does not know yet how the disks are.
    Disks,
    /// Look for the next object that belongs on another disk.
    Move,
    /// More of what belongs to nothing is deleted.
    Gone,
    /// Something of recovery.
    Recovery(RecoveryTimer),
}

/// All deadlines, in order.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    deadlines: BTreeSet<(Time, Timer)>,
}

impl Timers {
    /// Adds a deadline.
    pub(crate) fn set(&mut self, at: Time, timer: Timer) {
        self.deadlines.insert((at, timer));
    }

    /// The next deadline.
    pub(crate) fn next(&self) -> Option<Time> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Takes a deadline that has passed.
    pub(crate) fn pop(&mut self, now: Time) -> Option<Timer> {
        let first = *self.deadlines.first()?;
        if first.0 > now {
            return None;
        }
        self.deadlines.remove(&first);
        Some(first.1)
    }
}
