//! The store's file: writes go to the page cache at once, reads and syncs to threads of their own.

use super::DataMessage;
use crate::inbox::Sender;
use anyhow::Result;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use sheep_store::{DiskDone, DiskError, DiskOp, DiskOpId, DiskOpKind, DiskResult, FileId};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Threads that wait for the disk: enough to keep a fast one busy with reads while a sync is under way.
const THREADS: usize = 4;

/// Directory of the store and the open file.
struct Disk {
    dir: PathBuf,
    blocks: Mutex<Option<Arc<File>>>,
}

/// Hands operations to the disk.
pub(super) struct DiskDriver {
    disk: Arc<Disk>,
    jobs: mpsc::Sender<DiskOp>,
}

impl DiskDriver {
    pub(super) fn new(dir: PathBuf, done: &Sender<DataMessage>) -> Result<Self> {
        let disk = Arc::new(Disk { dir, blocks: Mutex::new(None) });
        let (jobs, waiting) = mpsc::channel::<DiskOp>();
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..THREADS {
            let (disk, waiting, done) = (Arc::clone(&disk), Arc::clone(&waiting), done.clone());
            std::thread::Builder::new().name(format!("disk-{number}")).spawn(move || {
                loop {
                    let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(op) = job else { return };
                    let result = disk.execute(&op.kind);
                    if done.send(DataMessage::Disk(op.id, result)).is_err() {
                        return;
                    }
                }
            })?;
        }
        Ok(Self { disk, jobs })
    }

    /// Starts an operation. What does not wait for the disk is done at once and its result given back.
    pub(super) fn start(&self, op: DiskOp) -> Option<(DiskOpId, DiskResult)> {
        match op.kind {
            DiskOpKind::Write { .. } => Some((op.id, self.disk.execute(&op.kind))),
            _ => {
                let id = op.id;
                self.jobs.send(op).err().map(|_| (id, Err(DiskError::Io)))
            }
        }
    }
}

impl Disk {
    fn execute(&self, kind: &DiskOpKind) -> DiskResult {
        match kind {
            DiskOpKind::Open { file, create } => self.open(*file, *create),
            DiskOpKind::Read { offset, len, .. } => self.read(*offset, *len as usize),
            DiskOpKind::Write { offset, data, .. } => self.write(*offset, data),
            DiskOpKind::Sync { .. } => done(self.file()?.sync_data()),
            DiskOpKind::SyncDirectory => done(File::open(&self.dir).and_then(|dir| dir.sync_all())),
            DiskOpKind::Allocate { offset, len, .. } => {
                match fallocate(self.file()?, FallocateFlags::empty(), *offset, *len) {
                    // Where space can't be reserved, writes find out.
                    Err(rustix::io::Errno::OPNOTSUPP) => Ok(DiskDone::Done),
                    result => done(result.map_err(io::Error::from)),
                }
            }
            DiskOpKind::Punch { offset, len, .. } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                done(fallocate(self.file()?, flags, *offset, *len).map_err(io::Error::from))
            }
        }
    }

    fn open(&self, file: FileId, create: bool) -> DiskResult {
        let path = self.dir.join(file.name());
        let opened = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path);
        let opened = opened.map_err(|error| disk_error(&error))?;
        // A process before us may have failed to sync: nothing that is only in the page cache counts.
        opened.sync_all().map_err(|error| disk_error(&error))?;
        *self.blocks.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(opened));
        Ok(DiskDone::Opened)
    }

    fn file(&self) -> Result<Arc<File>, DiskError> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(DiskError::Io)
    }

    /// Bytes past the end of the file are zeros.
    fn read(&self, offset: u64, len: usize) -> DiskResult {
        let file = self.file()?;
        let mut buffer = vec![0; len];
        let mut have = 0;
        while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(disk_error(&error)),
            }
        }
        Ok(DiskDone::Read(buffer.into()))
    }

    fn write(&self, mut offset: u64, data: &[Bytes]) -> DiskResult {
        let file = self.file()?;
        for part in data {
            file.write_all_at(part, offset).map_err(|error| disk_error(&error))?;
            offset += part.len() as u64;
        }
        Ok(DiskDone::Done)
    }
}

fn done(result: io::Result<()>) -> DiskResult {
    result.map(|()| DiskDone::Done).map_err(|error| disk_error(&error))
}

fn disk_error(error: &io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => DiskError::ReadOnly,
        io::ErrorKind::NotFound => DiskError::NotFound,
        _ => DiskError::Io,
    }
}
