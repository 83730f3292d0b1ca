//! Without io_uring: writes go to the page cache at once, reads and syncs to threads of their own.

use super::file::{disk_error, done, space_flags, space_result};
use super::{DataMessage, Started};
use crate::inbox::Sender;
use anyhow::Result;
use bytes::Bytes;
use rustix::fs::fallocate;
use sheep_store::{DiskDone, DiskError, DiskOp, DiskOpKind, DiskResult};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Threads that wait for the disk: enough to keep a fast one busy with reads while a sync is under way.
const THREADS: usize = 4;

/// Threads that wait for the disk.
pub(super) struct Threads {
    jobs: mpsc::Sender<(DiskOp, Arc<File>)>,
}

impl Threads {
    pub(super) fn new(done: &Sender<DataMessage>) -> Result<Self> {
        let (jobs, waiting) = mpsc::channel::<(DiskOp, Arc<File>)>();
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..THREADS {
            let (waiting, done) = (Arc::clone(&waiting), done.clone());
            std::thread::Builder::new().name(format!("disk-{number}")).spawn(move || {
                loop {
                    let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((op, file)) = job else { return };
                    let result = execute(&file, &op.kind);
                    if done.send(DataMessage::Disk(op.id, result)).is_err() {
                        return;
                    }
                }
            })?;
        }
        Ok(Self { jobs })
    }

    /// Starts an operation. What does not wait for the disk is done at once.
    pub(super) fn start(&self, op: DiskOp, file: &Arc<File>) -> Started {
        if matches!(op.kind, DiskOpKind::Write { .. }) {
            return Started::Done(op.id, execute(file, &op.kind));
        }
        let id = op.id;
        match self.jobs.send((op, Arc::clone(file))) {
            Ok(()) => Started::Later,
            Err(_) => Started::Done(id, Err(DiskError::Io)),
        }
    }
}

fn execute(file: &File, kind: &DiskOpKind) -> DiskResult {
    match kind {
        DiskOpKind::Open { .. } | DiskOpKind::SyncDirectory => Err(DiskError::Io),
        DiskOpKind::Read { offset, len, .. } => read(file, *offset, *len as usize),
        DiskOpKind::Write { offset, data, .. } => write(file, *offset, data),
        DiskOpKind::Sync { .. } => done(file.sync_data()),
        DiskOpKind::Allocate { offset, len, .. } => {
            space_result(fallocate(file, space_flags(false), *offset, *len))
        }
        DiskOpKind::Punch { offset, len, .. } => {
            space_result(fallocate(file, space_flags(true), *offset, *len))
        }
    }
}

/// Bytes past the end of the file are zeros.
fn read(file: &File, offset: u64, len: usize) -> DiskResult {
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

fn write(file: &File, mut offset: u64, data: &[Bytes]) -> DiskResult {
    for part in data {
        file.write_all_at(part, offset).map_err(|error| disk_error(&error))?;
        offset += part.len() as u64;
    }
    Ok(DiskDone::Done)
}
