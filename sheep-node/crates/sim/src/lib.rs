//! Deterministic simulator of whole clusters.
//!
//! A run is a function of its seed: the seed draws the options (how many nodes, which faults), the world moves
//! virtual time from event to event, clients read and write, faults come and go, and checkers look at
//! everything that nodes say. When the faults have stopped, everything must come back.

pub mod checks;
pub mod client;
pub mod disks;
mod flips;
pub mod log_disk;
pub mod mutants;
mod nemesis;
pub mod net;
pub mod node;
pub mod options;
pub mod oracle;
pub mod rng;
mod rot;
pub mod run;
pub mod scenario;
pub mod trace;
pub mod tree;
pub mod world;

pub use options::{Options, Rot};
pub use run::{Report, run};
