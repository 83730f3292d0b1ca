//! What reaches the disk, counted by the kernel.

use std::os::linux::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Counters of the block device below a directory.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskCount {
    /// Write requests completed.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
}

impl DiskCount {
    /// Reads the counters. On a file system without a block device everything is 0.
    ///
    /// # Errors
    /// The directory does not exist.
    pub fn at(path: &Path) -> Result<DiskCount> {
        let device = std::fs::metadata(path).context("directory on the disk")?.st_dev();
        let major = (device >> 8) & 0xfff;
        let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
        let stat =
            std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).unwrap_or_default();
        let field =
            |at: usize| stat.split_whitespace().nth(at).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        // Documentation/block/stat.rst: write I/Os are field 5, write sectors (of 512 bytes, always) field 7.
        Ok(DiskCount { writes: field(4), bytes: field(6) * 512 })
    }

    /// What was added since `earlier`.
    pub fn since(self, earlier: DiskCount) -> DiskCount {
        DiskCount {
            writes: self.writes.saturating_sub(earlier.writes),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}
