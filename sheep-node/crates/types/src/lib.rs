//! Identifiers, units and limits shared by all of Sheepdog.
//!
//! Nothing here does anything: no clock, no socket, no disk. Every other crate may depend on this one,
//! and this one depends on none of them.

mod geometry;
mod ids;
mod object;
mod time;
mod version;

pub use geometry::{BLOCK_SIZE, Geometry, GeometryError, MAX_VOLUME_SIZE, MIN_VOLUME_SIZE, SECTOR_SIZE};
pub use ids::{
    Birth, ClusterId, CommandSeq, ConfigId, Epoch, Generation, Incarnation, LogIndex, Member, NodeId, Place,
    Term, VdiId, Vid,
};
pub use object::{ObjectId, ObjectKind};
pub use time::Time;
pub use version::Version;
