//! Whether a client flushes after every single write. Then the next write is made durable at once, in the same round over
//! the network, and the flush that follows it finds nothing to do.

/// So many times in a row make a habit.
const HABIT: u32 = 8;

/// What a client did lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habit {
    /// Flushes in a row that came after one change each.
    times: u32,
    /// Changes since the last flush.
    changes: u32,
}

impl Habit {
    /// A change has come. Whether a flush will follow it, as far as habit tells.
    pub(super) fn changed(&mut self) -> bool {
        self.changes = self.changes.saturating_add(1);
        if self.changes > 1 {
            self.times = 0;
        }
        self.times >= HABIT
    }

    /// A flush has come.
    pub(super) fn flushed(&mut self) {
        if self.changes == 1 {
            self.times = self.times.saturating_add(1);
        }
        self.changes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_after_each_change_is_a_habit_until_one_is_left_out() {
        let mut habit = Habit::default();
        for _ in 0..2 {
            for time in 0..20 {
                assert_eq!(habit.changed(), time >= HABIT, "{time}");
                habit.flushed();
                habit.flushed();
            }
            assert!(habit.changed());
            assert!(!habit.changed(), "no flush came");
            habit.flushed();
        }
    }
}
