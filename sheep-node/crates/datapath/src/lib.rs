//! The data path: gateway, replica and recovery as state machines.
//!
//! A [`Shard`] is one single-threaded actor: as [`Replica`] it owns object copies, brings them up to date after
//! each change of the epoch and serves reads and writes of them; as [`Gateway`] it owns volumes, numbers their
//! writes and sends them to all replicas. Nothing here does I/O: time, packets and completed disk operations go
//! in, packets, disk operations, commands for the log and answers come out.
//!
//! ```text
//!   View (applied state, placement)      VolumeOp
//!        |                                  |
//!        v                                  v
//!   +-- Shard ------------------------------------+
//!   |  Replica <------- packets -------> Gateway  | <---> packets, disk operations, commands
//!   +----------------------------------------------+
//! ```
//!
//! How it works and why it is right: `docs/internals/replica-and-recovery.md`, `docs/internals/gateway.md`.

mod gateway;
mod mutant;
mod recovery;
mod replica;
mod scrub;
mod shard;
mod view;

pub use gateway::*;
pub use mutant::{Mutant, Mutants};
pub use recovery::Progress;
pub use replica::{Replica, ReplicaConfig, ReplicaOutput, ReplicaStatus};
pub use scrub::{Finding, ScrubOrder, ScrubStatus};
pub use shard::{Shard, ShardOutput};
pub use view::View;
