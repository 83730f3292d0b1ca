//! Applying entries.

use crate::{Applied, ClusterState, EntryKind};
use sheep_types::LogIndex;

impl ClusterState {
    /// Applies the next committed entry.
    ///
    /// # Panics
    /// If `index` is not the next one: the log never skips or repeats an entry.
    pub fn apply(&mut self, index: LogIndex, entry: &EntryKind) -> Applied {
        assert_eq!(index.0, self.applied.0 + 1, "entries are applied in order");
        let _ = entry;
        Applied::default()
    }
}
