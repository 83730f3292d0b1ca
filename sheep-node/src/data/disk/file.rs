//! The file of a store.

use rustix::fs::OFlags;
use sheep_store::{DiskDone, DiskError, DiskResult, FileId};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::info;

/// Directory of the store and the open file.
pub(super) struct StoreFile {
    dir: PathBuf,
    direct: bool,
    blocks: Option<Arc<File>>,
}

impl StoreFile {
    pub(super) fn new(dir: PathBuf, direct: bool) -> Self {
        Self { dir, direct, blocks: None }
    }

    /// The open file.
    pub(super) fn get(&self) -> Option<&Arc<File>> {
        self.blocks.as_ref()
    }

    /// Opens the file, without the page cache if that was wanted and can be had.
    pub(super) fn open(&mut self, file: FileId, create: bool) -> DiskResult {
        let path = self.dir.join(file.name());
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
        // A process before us may have failed to sync: nothing that is only in the page cache counts.
        opened.sync_all().map_err(|error| disk_error(&error))?;
        self.blocks = Some(Arc::new(opened));
        Ok(DiskDone::Opened)
    }

    pub(super) fn sync_directory(&self) -> DiskResult {
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

/// What an error of the system means to a store.
pub(super) fn disk_error(error: &io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => DiskError::ReadOnly,
        io::ErrorKind::NotFound => DiskError::NotFound,
        _ => DiskError::Io,
    }
}
