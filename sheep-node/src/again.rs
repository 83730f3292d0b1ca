//! The same thing is not said too often.

use sheep_types::Time;
use std::time::Duration;

/// Least time between two sayings of the same.
pub(crate) const AGAIN: Duration = Duration::from_secs(60);

/// When something was last said.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Said(Option<Time>);

impl Said {
    /// Whether it may be said (again); then it counts as said.
    pub(crate) fn again(&mut self, now: Time) -> bool {
        let due = self.0.is_none_or(|at| now.since(at) >= AGAIN);
        if due {
            self.0 = Some(now);
        }
        due
    }
}
