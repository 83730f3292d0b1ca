//! Lineages: what the snapshots of a volume have in common.

use serde::{Deserialize, Serialize};
use sheep_types::{Epoch, Vid};

/// A number of copies that held until some epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastCopies {
    /// First epoch in which another number held.
    pub until: Epoch,
    /// The number before.
    pub copies: u8,
}

/// A volume's vid and those that its snapshots made. All their objects with one index have one place and one number
/// of copies. It outlives the volume, and its first vid, for as long as one of its vids is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageRecord {
    /// Its first vid: what placement hashes.
    pub lineage: Vid,
    /// Copies of each object.
    pub copies: u8,
    /// Copies below which writes wait.
    pub min_copies: u8,
    /// Former numbers of copies, oldest first, as far back as the epoch history goes.
    pub past_copies: Vec<PastCopies>,
    /// The vid of the snapshot that it was cloned from, while one of its vids inherits from it. It may be dead. The
    /// absent blocks of the lineage's partial objects are what it has at their index.
    pub origin: Option<Vid>,
    /// Number of its vids that are known.
    pub vids: u32,
    /// Number of those that inherit from the origin.
    pub inheriting: u32,
}

impl LineageRecord {
    /// One that has no vids yet.
    pub(crate) fn new(lineage: Vid, copies: u8, min_copies: u8) -> Self {
        Self { lineage, copies, min_copies, past_copies: Vec::new(), origin: None, vids: 0, inheriting: 0 }
    }

    /// Number of copies that objects had in `epoch`.
    pub fn copies_at(&self, epoch: Epoch) -> u8 {
        self.past_copies.iter().find(|past| epoch < past.until).map_or(self.copies, |past| past.copies)
    }
}
