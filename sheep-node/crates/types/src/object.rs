//! Object identifiers: vid (32 bits), kind (4), index (28).

use crate::Vid;
use core::fmt;
use serde::{Deserialize, Serialize};

/// What an object holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// A piece of the disk's contents.
    Data,
    /// One `u32` per data object: the vid that owns it.
    Map,
    /// Attributes of the VDI.
    Attribute,
}

/// Name of an object: which vid wrote it, its kind, and its place in the disk. Any 64 bits decode; an
/// unknown kind is refused by [`ObjectId::kind`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId(pub u64);

impl ObjectId {
    /// Number of bits of an index: 2^28 objects of 4 MiB are 1 PiB.
    pub const INDEX_BITS: u32 = 28;
    /// Largest index plus one.
    pub const INDEX_LIMIT: u32 = 1 << Self::INDEX_BITS;

    /// A data object.
    pub fn data(vid: Vid, index: u32) -> Self {
        Self::new(vid, ObjectKind::Data, index)
    }

    /// A map object.
    pub fn map(vid: Vid, index: u32) -> Self {
        Self::new(vid, ObjectKind::Map, index)
    }

    /// Puts the name together. `index` must be below [`Self::INDEX_LIMIT`].
    pub fn new(vid: Vid, kind: ObjectKind, index: u32) -> Self {
        assert!(index < Self::INDEX_LIMIT, "object index out of range");
        let kind: u64 = match kind {
            ObjectKind::Data => 0,
            ObjectKind::Map => 1,
            ObjectKind::Attribute => 2,
        };
        Self((u64::from(vid.0) << 32) | (kind << Self::INDEX_BITS) | u64::from(index))
    }

    /// The object of the same kind and index of another vid.
    #[must_use]
    pub fn of(self, vid: Vid) -> Self {
        Self((u64::from(vid.0) << 32) | self.0 & u64::from(u32::MAX))
    }

    /// The vid that owns the object.
    pub fn vid(self) -> Vid {
        Vid((self.0 >> 32) as u32)
    }

    /// The kind, or `None` where the bits name no kind of this version.
    pub fn kind(self) -> Option<ObjectKind> {
        match (self.0 >> Self::INDEX_BITS) & 0xf {
            0 => Some(ObjectKind::Data),
            1 => Some(ObjectKind::Map),
            2 => Some(ObjectKind::Attribute),
            _ => None,
        }
    }

    /// Place of the object among those of its vid and kind.
    pub fn index(self) -> u32 {
        (self.0 as u32) & (Self::INDEX_LIMIT - 1)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind() {
            Some(ObjectKind::Data) => "d",
            Some(ObjectKind::Map) => "m",
            Some(ObjectKind::Attribute) => "a",
            None => "?",
        };
        write!(f, "{:x}:{kind}{:x}", self.vid().0, self.index())
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        let id = ObjectId::new(Vid(0x7fff_fffe), ObjectKind::Map, ObjectId::INDEX_LIMIT - 1);
        assert_eq!(id.vid(), Vid(0x7fff_fffe));
        assert_eq!(id.kind(), Some(ObjectKind::Map));
        assert_eq!(id.index(), ObjectId::INDEX_LIMIT - 1);
        assert_eq!(ObjectId(0xf << 28).kind(), None);
    }
}
