//! Versions of object copies.

use crate::Generation;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Version of an object copy: the lock's generation, then a sequence that grows by one with every write of
/// the whole VDI. The default, all zero, is older than every written version.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Generation of the lock under which the write was made.
    pub generation: Generation,
    /// Number of the write in that generation, from 1.
    pub sequence: u64,
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}", self.generation, self.sequence)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.sequence)
    }
}
