//! Where objects live.
//!
//! Consistent hashing with virtual nodes by weight. For each key there is one list of nodes: first, in ring
//! order, the first node of each zone, then all others. The set for n copies is the list's first n, so that
//! another number of copies, or a lost zone, moves the least. Pure: the same members give the same lists on
//! every node, in whatever order they are given.

mod disks;
mod moves;
mod ring;

pub use disks::{Disk, disk_for};
pub use moves::{Moves, moves};
pub use ring::{Key, List, MAX_POINTS, PlacementMember, Ring, STANDARD_POINTS};
