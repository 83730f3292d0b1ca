//! Durable records.
use bytes::Bytes;
use sheep_types::{ClusterId, NodeId};

/// Why a durable file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// Not a log file, or of another format version.
    #[error("not a log file of this version")]
    Format,
    /// Something that had been synced is damaged.
    #[error("the log file is damaged at byte {offset}")]
    Rot {
        /// Where.
        offset: u64,
    },
    /// The records are whole but do not fit together.
    #[error("the log file is inconsistent at byte {offset}: {reason}")]
    Inconsistent {
        /// Where.
        offset: u64,
        /// How.
        reason: &'static str,
    },
}

/// A durable file, decoded.
#[derive(Clone, Debug, Default)]
pub struct Recovered {}

impl Recovered {
    /// Decodes a durable file; an empty one is a node that belongs to no cluster yet.
    ///
    /// # Errors
    /// See [`RecoverError`].
    pub fn decode(_file: Bytes) -> Result<Self, RecoverError> {
        Ok(Self {})
    }
    /// The ring's durable number: the highest number in any record.
    pub fn number(&self) -> u64 {
        0
    }
    /// The cluster, zero if none.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(0)
    }
    /// The voters of the recovered log.
    pub fn voters(&self) -> Vec<NodeId> {
        Vec::new()
    }
}
