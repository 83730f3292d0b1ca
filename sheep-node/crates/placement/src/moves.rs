//! What a change of the ring means for one object.

use crate::{Key, Ring};
use sheep_types::NodeId;

/// Difference of two sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// In both, in the new order.
    pub stay: Vec<NodeId>,
    /// Only in the new one: they fetch the object.
    pub gain: Vec<NodeId>,
    /// Only in the old one: they drop it, once all of the new set hold it.
    pub lose: Vec<NodeId>,
}

/// Compares the set of `old_copies` nodes in the old ring with that of `new_copies` in the new one.
pub fn moves(old: &Ring, old_copies: usize, new: &Ring, new_copies: usize, key: Key) -> Moves {
    let before: Vec<NodeId> = old.list(key).take(old_copies).collect();
    let after: Vec<NodeId> = new.list(key).take(new_copies).collect();
    let (stay, gain) = after.iter().partition(|node| before.contains(node));
    let lose = before.into_iter().filter(|node| !after.contains(node)).collect();
    Moves { stay, gain, lose }
}
