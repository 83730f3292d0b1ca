//! What follows from the copies of one object, seen side by side.

use crate::recovery::Cell;
use sheep_types::{NodeId, Version};
use std::collections::BTreeMap;

/// A copy that is current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its version.
    pub(super) version: Version,
    /// Its last write is not known to be on all members.
    pub(super) hot: bool,
    /// What its blocks hold.
    pub(super) cells: Vec<Cell>,
}

/// What to do about the own copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// All copies are equal.
    Equal,
    /// Versions differ: it is being written, or a write was left behind by a gateway that is gone.
    Moving,
    /// Versions differ although the newest is known to be everywhere: the own copy lacks writes that were
    /// answered, and this node has them.
    Behind(NodeId),
    /// Copies of one version differ. The own one is as most are.
    Right,
    /// Copies of one version differ. Most are not as the own one, but as this node's.
    Wrong(NodeId),
    /// Copies of one version differ, and none of them is what most have.
    Unresolved,
}

/// Compares the own copy with those of the others.
pub(super) fn judge(me: NodeId, copies: &BTreeMap<NodeId, Seen>) -> Judgement {
    let Some(own) = copies.get(&me) else { return Judgement::Moving };
    let newest = copies.values().map(|copy| copy.version).max().unwrap_or_default();
    if copies.values().any(|copy| copy.version != newest) {
        let mut best = copies.iter().filter(|(_, copy)| copy.version == newest);
        return match best.next() {
            // Only what is known to be on all members was answered for sure.
            Some((node, copy)) if own.version < newest && !copy.hot && best.all(|(_, copy)| !copy.hot) => {
                Judgement::Behind(*node)
            }
            _ => Judgement::Moving,
        };
    }
    if copies.values().all(|copy| are_alike(&copy.cells, &own.cells)) {
        return Judgement::Equal;
    }
    let alike = |cells: &[Cell]| copies.values().filter(|copy| are_alike(&copy.cells, cells)).count();
    // What has lost blocks is like several that differ: then these have no majority.
    let most: Vec<_> = copies.iter().filter(|(_, copy)| 2 * alike(&copy.cells) > copies.len()).collect();
    let one =
        |(_, copy): &(&NodeId, &Seen)| most.iter().all(|(_, other)| are_alike(&copy.cells, &other.cells));
    let lost = |cells: &[Cell]| cells.iter().filter(|cell| matches!(cell, Cell::Lost(_))).count();
    let best = most.iter().min_by_key(|(_, copy)| lost(&copy.cells));
    match best.filter(|_| most.iter().all(one)) {
        Some((_, copy)) if are_alike(&copy.cells, &own.cells) => Judgement::Right,
        Some((node, _)) => Judgement::Wrong(**node),
        None => Judgement::Unresolved,
    }
}

/// Whether copies hold the same, as far as both have it. What one has lost it is made good elsewhere.
fn are_alike(one: &[Cell], other: &[Cell]) -> bool {
    let alike = |(one, other): (&Cell, &Cell)| {
        one == other || matches!(one, Cell::Lost(_)) || matches!(other, Cell::Lost(_))
    };
    one.len() == other.len() && one.iter().zip(other).all(alike)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::Generation;

    fn seen(sequence: u64, hot: bool, crc: u32) -> Seen {
        let version = Version { generation: Generation(1), sequence };
        Seen { version, hot, cells: vec![Cell::Data(crc), Cell::Absent] }
    }

    /// What each node concludes.
    fn all(copies: &[Seen]) -> Vec<Judgement> {
        let copies: BTreeMap<NodeId, Seen> = (1u64..).map(NodeId).zip(copies.iter().cloned()).collect();
        copies.keys().map(|me| judge(*me, &copies)).collect()
    }

    use Judgement::{Behind, Equal, Moving, Right, Unresolved, Wrong};

    #[test]
    fn most_decide_and_without_most_nobody_does() {
        assert_eq!(all(&[seen(4, true, 7), seen(4, false, 7)]), [Equal, Equal]);
        assert_eq!(
            all(&[seen(4, false, 9), seen(4, false, 7), seen(4, false, 7)]),
            [Wrong(NodeId(2)), Right, Right]
        );
        assert_eq!(all(&[seen(4, false, 9), seen(4, false, 7)]), [Unresolved; 2]);
        assert_eq!(all(&[seen(4, false, 9), seen(4, false, 8), seen(4, false, 7)]), [Unresolved; 3]);
        let split = [seen(4, false, 7), seen(4, false, 7), seen(4, false, 8), seen(4, false, 8)];
        assert_eq!(all(&split), [Unresolved; 4]);
    }

    #[test]
    fn what_is_lost_gives_nobody_a_majority() {
        let lost = Seen { cells: vec![Cell::Lost(0), Cell::Absent], ..seen(4, false, 0) };
        assert_eq!(
            all(&[seen(4, false, 7), seen(4, false, 8), lost.clone()]),
            [Unresolved, Unresolved, Equal]
        );
        assert_eq!(all(&[lost.clone(), seen(4, false, 7), seen(4, false, 7)]), [Equal; 3]);
        assert_eq!(
            all(&[lost, seen(4, false, 7), seen(4, false, 7), seen(4, false, 8)]),
            [Equal, Right, Right, Wrong(NodeId(2))]
        );
    }

    #[test]
    fn a_version_that_not_all_may_have_says_nothing() {
        assert_eq!(all(&[seen(5, true, 9), seen(4, false, 7)]), [Moving, Moving]);
        assert_eq!(all(&[seen(4, false, 9), seen(5, false, 7), seen(5, true, 7)])[0], Moving);
        assert_eq!(all(&[seen(5, false, 9), seen(4, false, 7)]), [Moving, Behind(NodeId(1))]);
    }
}
