//! The file of a store.

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use sheep_store::{DiskDone, DiskError, DiskResult, FileId};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use tracing::info;

/// Directory or block device of the store, and the open file.
pub(super) struct StoreFile {
    dir: PathBuf,
    direct: bool,
    blocks: Option<Arc<File>>,
}

impl StoreFile {
    pub(super) fn new(dir: PathBuf, direct: bool) -> Self {
        Self { dir, direct, blocks: None }
    }

    /// Where the store's blocks are.
    pub(super) fn path(&self) -> PathBuf {
        crate::disks::blocks_of(&self.dir)
    }

    /// What tells how long something is under way in the file.
    pub(super) fn leave(self) -> Option<(PathBuf, Weak<File>)> {
        Some((self.path(), Arc::downgrade(self.blocks.as_ref()?)))
    }

    /// The open file.
    pub(super) fn get(&self) -> Option<&Arc<File>> {
        self.blocks.as_ref()
    }

    /// Opens the file, without the page cache if that was wanted and can be had.
    pub(super) fn open(&mut self, file: FileId, create: bool) -> DiskResult {
        debug_assert_eq!(file, FileId::BLOCKS, "a store has one file");
        let path = crate::disks::blocks_of(&self.dir);
        let create = create && path != self.dir;
        let mut opened = if self.direct {
            open(&path, create, OFlags::DIRECT)
        } else {
            open(&path, create, OFlags::empty())
        };
        if self.direct && opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidInput) {
            info!(path = %path.display(), "this filesystem has no direct I/O; the store uses the page cache");
            opened = open(&path, create, OFlags::empty());
        }
        let opened = opened.map_err(|error| disk_error(&error))?;
        // Direct writes of a process that was killed may still be under way. Reserving space waits for them; the
        // superblock has its space already, so nothing changes.
        let _ = fallocate(&opened, FallocateFlags::KEEP_SIZE, 0, 4096);
        // A process before us may have failed to sync: nothing that is only in the page cache counts.
        opened.sync_all().map_err(|error| disk_error(&error))?;
        self.blocks = Some(Arc::new(opened));
        Ok(DiskDone::Opened)
    }

    pub(super) fn sync_directory(&self) -> DiskResult {
        // The entry of a device is not ours.
        if crate::disks::blocks_of(&self.dir) == self.dir {
            return Ok(DiskDone::Done);
        }
        done(File::open(&self.dir).and_then(|dir| dir.sync_all()))
    }
}

fn open(path: &Path, create: bool, flags: OFlags) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(create).truncate(false);
    // The bits are few; the type of the flag is signed for history's sake.
    options.custom_flags(flags.bits().cast_signed()).open(path)
}

/// Result of an operation that gives nothing back.
pub(super) fn done(result: io::Result<()>) -> DiskResult {
    result.map(|()| DiskDone::Done).map_err(|error| disk_error(&error))
}

/// Reserves space, or gives it back with `punch`.
pub(super) fn space_flags(punch: bool) -> FallocateFlags {
    if punch { FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() }
}

/// Result of either. Where space can't be reserved, writes find out; what can't be given back is kept.
pub(super) fn space_result(result: Result<(), rustix::io::Errno>) -> DiskResult {
    match result {
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(DiskDone::Done),
        result => done(result.map_err(io::Error::from)),
    }
}

/// What an error of the system means to a store.
pub(super) fn disk_error(error: &io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => DiskError::ReadOnly,
        io::ErrorKind::NotFound => DiskError::NotFound,
        _ => DiskError::Io,
    }
}
