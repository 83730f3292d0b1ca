//! The control API of a node: generated types, client and server of `sheepdog.v1`, and how its quantities are
//! written by people.

mod size;

pub use size::{Size, SizeError};

/// Metadata key of an error that another node can answer better: its value is that node's id.
pub const ASK_NODE: &str = "sheepdog-ask-node";

/// Metadata key of an error that something of this name exists: its value is the id of that VDI.
pub const EXISTING_VDI: &str = "sheepdog-existing-vdi";

/// Largest message that either side takes, bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Bytes of volume contents per message of a stream.
pub const PIECE: usize = 1 << 20;

/// Package `sheepdog.v1`, as in `proto/sheepdog/v1/control.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("sheepdog.v1");
}
