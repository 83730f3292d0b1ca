//! Sizes of blocks, objects and volumes.

use crate::ObjectId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Smallest unit a client may address, bytes.
pub const SECTOR_SIZE: u32 = 512;
/// Unit that is stored, checksummed and compared, bytes.
pub const BLOCK_SIZE: u32 = 4096;
/// Smallest volume, bytes (a VM's state disk).
pub const MIN_VOLUME_SIZE: u64 = 1 << 20;
/// Largest volume, bytes: 1 PiB.
pub const MAX_VOLUME_SIZE: u64 = 1 << 50;

/// How disks are cut into objects. Set when a cluster is made; 4 MiB but for simulations and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    object_size: u32,
}

/// An object size that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("object size {0} is not a power of two from 64 KiB to 4 MiB")]
pub struct GeometryError(pub u32);

impl Default for Geometry {
    fn default() -> Self {
        Self { object_size: 4 << 20 }
    }
}

impl Geometry {
    /// Geometry with another object size, in bytes.
    pub fn with_object_size(object_size: u32) -> Result<Self, GeometryError> {
        if object_size.is_power_of_two() && (64 << 10..=4 << 20).contains(&object_size) {
            Ok(Self { object_size })
        } else {
            Err(GeometryError(object_size))
        }
    }

    /// Bytes of disk contents per data object.
    pub const fn object_size(self) -> u32 {
        self.object_size
    }

    /// Blocks per object.
    pub const fn blocks_per_object(self) -> u32 {
        self.object_size / BLOCK_SIZE
    }

    /// Data objects that one map object lists.
    pub const fn entries_per_map(self) -> u32 {
        self.object_size / 4
    }

    /// Number of data objects that a volume of `size` bytes has room for.
    pub fn objects_in(self, size: u64) -> u64 {
        size.div_ceil(u64::from(self.object_size))
    }

    /// Largest volume for this object size: the index has 28 bits.
    pub fn max_volume_size(self) -> u64 {
        (u64::from(ObjectId::INDEX_LIMIT) * u64::from(self.object_size)).min(MAX_VOLUME_SIZE)
    }

    /// Data object index and offset within it for a byte of the volume.
    pub fn locate(self, byte: u64) -> (u32, u32) {
        let size = u64::from(self.object_size);
        ((byte / size) as u32, (byte % size) as u32)
    }
}

const _: () = assert!(BLOCK_SIZE.is_multiple_of(SECTOR_SIZE));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_petabyte_fits_the_index() {
        let g = Geometry::default();
        assert_eq!(g.max_volume_size(), MAX_VOLUME_SIZE);
        assert_eq!(g.objects_in(MAX_VOLUME_SIZE), u64::from(ObjectId::INDEX_LIMIT));
        assert_eq!(u64::from(g.entries_per_map()) * u64::from(g.object_size()), 4 << 40);
        assert_eq!(g.locate(MAX_VOLUME_SIZE - 1), (ObjectId::INDEX_LIMIT - 1, g.object_size() - 1));
    }

    #[test]
    fn odd_sizes_are_refused() {
        assert!(Geometry::with_object_size(65536).is_ok());
        for bad in [0, 4096, 65537, 8 << 20] {
            assert_eq!(Geometry::with_object_size(bad), Err(GeometryError(bad)));
        }
    }
}
