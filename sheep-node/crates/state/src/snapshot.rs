//! Snapshot of the whole state, as bytes.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `SHEEPSTA` |
//! | 8 | 4 | version, little-endian |
//! | 12 | 4 | zero |
//! | 16 | 8 | length of the body, little-endian |
//! | 24 | 8 | XXH3 (64 bits) of the body, little-endian |
//! | 32 | | body: the state in postcard encoding, maps in key order |

use crate::ClusterState;
use sheep_types::Geometry;
use thiserror::Error;
use twox_hash::XxHash3_64;

const MAGIC: &[u8; 8] = b"SHEEPSTA";
const VERSION: u32 = 4;
const HEADER: usize = 32;

/// Why bytes are not a snapshot of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// Something else.
    #[error("not a snapshot of the cluster state")]
    NotASnapshot,
    /// Written by another version.
    #[error("snapshot of the cluster state has version {0}, this program reads version {VERSION}")]
    Version(u32),
    /// Cut off or changed.
    #[error("snapshot of the cluster state is damaged")]
    Damaged,
}

impl ClusterState {
    /// The state as bytes; equal states give equal bytes.
    pub fn encode_snapshot(&self) -> Vec<u8> {
        let body = self.body();
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&XxHash3_64::oneshot(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// The state from bytes.
    ///
    /// # Errors
    /// If the bytes are not a whole, undamaged snapshot of this version.
    pub fn decode_snapshot(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (header, body) = bytes.split_at_checked(HEADER).ok_or(SnapshotError::NotASnapshot)?;
        let (magic, header) = header.split_at_checked(8).ok_or(SnapshotError::NotASnapshot)?;
        if magic != MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        let (version, header) = header.split_first_chunk::<4>().ok_or(SnapshotError::NotASnapshot)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(SnapshotError::Version(version));
        }
        let (zero, header) = header.split_first_chunk::<4>().ok_or(SnapshotError::Damaged)?;
        let (length, header) = header.split_first_chunk::<8>().ok_or(SnapshotError::Damaged)?;
        let (checksum, _) = header.split_first_chunk::<8>().ok_or(SnapshotError::Damaged)?;
        let whole = u64::from_le_bytes(*length) == body.len() as u64;
        if !whole || *zero != [0; 4] || u64::from_le_bytes(*checksum) != XxHash3_64::oneshot(body) {
            return Err(SnapshotError::Damaged);
        }
        match postcard::take_from_bytes::<Self>(body) {
            // A wrong object size would divide by zero later.
            Ok((mut state, [])) if Geometry::with_object_size(state.geometry.object_size()).is_ok() => {
                state.rebuild_indexes();
                Ok(state)
            }
            Ok(_) | Err(_) => Err(SnapshotError::Damaged),
        }
    }

    /// XXH3 over the encoded state: equal on all nodes at equal index.
    pub fn hash(&self) -> u64 {
        XxHash3_64::oneshot(&self.body())
    }

    fn body(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data encodes")
    }
}
