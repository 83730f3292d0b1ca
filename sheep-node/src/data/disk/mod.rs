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
use sheep_store::{DiskOp, DiskOpId, DiskOpKind, DiskResult};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;
use threads::Threads;
use tracing::info;
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
        Ok(Self { files: Vec::new(), direct, backend })
    }

    /// From now on the slot's disk is this directory or block device.
    pub(super) fn attach(&mut self, slot: u8, path: PathBuf) {
        let slot = usize::from(slot);
        if self.files.len() <= slot {
            self.files.resize_with(slot + 1, || None);
        }
        self.files[slot] = Some(StoreFile::new(path, self.direct));
    }

    /// The slot's disk is not used any more; what is under way ends by itself.
    pub(super) fn detach(&mut self, slot: u8) {
        if let Some(file) = self.files.get_mut(usize::from(slot)) {
            *file = None;
        }
    }

    /// Starts an operation. With io_uring it begins at the next [`DiskDriver::wait`].
    pub(super) fn start(&mut self, op: DiskOp) -> Started {
        let DiskOp { id, kind } = op;
        let Some(disk) = self.files.get_mut(usize::from(id.slot())).and_then(Option::as_mut) else {
            return Started::Done(id, Err(sheep_store::DiskError::Io));
        };
        match kind {
            DiskOpKind::Open { file, create } => return Started::Done(id, disk.open(file, create)),
            DiskOpKind::SyncDirectory => return Started::Done(id, disk.sync_directory()),
            _ => {}
        }
        let Some(file) = disk.get() else {
            return Started::Done(id, Err(sheep_store::DiskError::Io));
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
