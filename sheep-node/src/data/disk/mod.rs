//! The store's file and what hands operations to it: io_uring with direct I/O where the machine allows it,
//! threads and the page cache elsewhere.

mod file;
mod threads;
mod uring;

use super::DataMessage;
use crate::inbox::Sender;
use anyhow::Result;
use file::StoreFile;
use sheep_frontend::BufferPool;
use sheep_store::{DiskError, DiskOp, DiskOpId, DiskOpKind, DiskResult, FileId};
use std::fs::File;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;
use threads::Threads;
use tracing::{info, warn};
use uring::Uring;

/// How a disk is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskMode {
    /// Go around the page cache where the filesystem can.
    pub(crate) direct: bool,
    /// Use io_uring where the kernel has it.
    pub(crate) uring: bool,
}

/// Hands operations to the disk. Belongs to the thread that made it.
pub(super) struct DiskDriver {
    /// By slot.
    files: Vec<Option<StoreFile>>,
    /// Files of disks that are not used any more, as long as something is under way in them.
    leaving: Vec<(PathBuf, Weak<File>)>,
    direct: bool,
    backend: Backend,
}

enum Backend {
    Uring(Box<Uring>),
    Threads(Threads),
}

/// What becomes of an operation when it is started.
pub(super) enum Started {
    /// It is done already.
    Done(DiskOpId, DiskResult),
    /// Its result comes later.
    Later,
}

impl DiskDriver {
    /// A driver without disks. `sockets` is an epoll instance that outlives it; results of threads come as messages
    /// to `done`.
    ///
    /// # Errors
    /// No threads can be started.
    pub(super) fn new(
        mode: DiskMode,
        pool: BufferPool,
        sockets: RawFd,
        done: &Sender<DataMessage>,
    ) -> Result<Self> {
        let ring = mode.uring.then(|| Uring::new(pool, sockets));
        let backend = match ring {
            Some(Ok(ring)) => Backend::Uring(Box::new(ring)),
            other => {
                if let Some(Err(problem)) = other {
                    info!("the store uses threads, because io_uring can't be used: {problem}");
                }
                Backend::Threads(Threads::new(done)?)
            }
        };
        // Threads write through the page cache: a direct write would hold the data thread up.
        let direct = mode.direct && matches!(backend, Backend::Uring(_));
        Ok(Self { files: Vec::new(), leaving: Vec::new(), direct, backend })
    }

    /// Whether writes go around the page cache, where the filesystem can.
    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// From now on the slot's disk is this directory or block device.
    pub(super) fn attach(&mut self, slot: u8, path: PathBuf) {
        let slot = usize::from(slot);
        if self.files.len() <= slot {
            self.files.resize_with(slot + 1, || None);
        }
        self.files[slot] = Some(StoreFile::new(path, self.direct));
    }

    /// The slot's disk is not used any more; what is under way ends by itself. Until then it can't be opened again.
    pub(super) fn detach(&mut self, slot: u8) {
        if let Backend::Uring(ring) = &mut self.backend {
            ring.forget(slot);
        }
        let file = self.files.get_mut(usize::from(slot)).and_then(Option::take);
        self.leaving.extend(file.and_then(StoreFile::leave));
    }

    /// Opens a disk, unless something of an earlier opening is still under way there: it would come out of nowhere.
    fn open(&mut self, slot: usize, file: FileId, create: bool) -> DiskResult {
        self.leaving.retain(|(_, file)| file.strong_count() > 0);
        let Some(disk) = self.files.get_mut(slot).and_then(Option::as_mut) else { return Err(DiskError::Io) };
        if self.leaving.iter().any(|(path, _)| *path == disk.path()) {
            warn!(path = %disk.path().display(), "operations of its last opening are still under way: try again later");
            return Err(DiskError::Io);
        }
        disk.open(file, create)
    }

    /// Starts an operation. With io_uring it begins at the next [`DiskDriver::wait`].
    pub(super) fn start(&mut self, op: DiskOp) -> Started {
        let DiskOp { id, kind } = op;
        let slot = usize::from(id.slot());
        if let DiskOpKind::Open { file, create } = kind {
            return Started::Done(id, self.open(slot, file, create));
        }
        let Some(disk) = self.files.get_mut(slot).and_then(Option::as_mut) else {
            return Started::Done(id, Err(DiskError::Io));
        };
        if kind == DiskOpKind::SyncDirectory {
            return Started::Done(id, disk.sync_directory());
        }
        let Some(file) = disk.get() else {
            return Started::Done(id, Err(DiskError::Io));
        };
        match &mut self.backend {
            Backend::Uring(ring) => {
                ring.start(id, kind, file);
                Started::Later
            }
            Backend::Threads(threads) => threads.start(DiskOp { id, kind }, file),
        }
    }

    /// Starts what waits to be started, and waits until an operation is done, a socket is ready or `timeout` is over.
    /// `Some(true)`: a socket is ready. `None`: this driver does not wait; its results wake the epoll instance.
    ///
    /// # Errors
    /// The kernel refuses; the driver is of no use any more.
    pub(super) fn wait(&mut self, timeout: Duration) -> std::io::Result<Option<bool>> {
        match &mut self.backend {
            Backend::Uring(ring) => ring.wait(timeout).map(Some),
            Backend::Threads(_) => Ok(None),
        }
    }

    /// Next operation that is done. Needs no system call.
    pub(super) fn next_done(&mut self) -> Option<(DiskOpId, DiskResult)> {
        match &mut self.backend {
            Backend::Uring(ring) => ring.next_done(),
            Backend::Threads(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
