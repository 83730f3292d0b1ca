//! Which maps that are also in a page are in memory, and which of them goes first.

use sheep_types::ObjectId;
use std::collections::BTreeSet;

/// The hand of a clock over all maps that could be left out of memory (second chance: what was used since the
/// hand came by stays for another round).
#[derive(Debug, Default)]
pub(crate) struct Resident {
    objects: BTreeSet<ObjectId>,
    bytes: u64,
    hand: ObjectId,
}

impl Resident {
    /// Bytes that these maps take.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// The map of an object took `before` bytes and takes `after` now; `None`: it is not one of these.
    pub(crate) fn change(&mut self, id: ObjectId, before: Option<u64>, after: Option<u64>) {
        self.bytes = self.bytes - before.unwrap_or(0) + after.unwrap_or(0);
        match (before, after) {
            (None, Some(_)) => drop(self.objects.insert(id)),
            (Some(_), None) => drop(self.objects.remove(&id)),
            _ => {}
        }
    }

    /// The next one that the hand comes to.
    pub(crate) fn turn(&mut self) -> Option<ObjectId> {
        let id = *self.objects.range(self.hand..).next().or_else(|| self.objects.first())?;
        self.hand = ObjectId(id.0.wrapping_add(1));
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hand_goes_round() {
        let mut resident = Resident::default();
        for id in [3, 5, u64::MAX] {
            resident.change(ObjectId(id), None, Some(10));
        }
        resident.change(ObjectId(5), Some(10), Some(12));
        let turns: Vec<u64> = (0..5).filter_map(|_| resident.turn()).map(|id| id.0).collect();
        assert_eq!((turns, resident.bytes()), (vec![3, 5, u64::MAX, 3, 5], 32));
        resident.change(ObjectId(u64::MAX), Some(10), None);
        assert_eq!((resident.turn(), resident.len(), resident.bytes()), (Some(ObjectId(3)), 2, 22));
    }
}
