//! The log's file, on a thread of its own so that no disk ever delays the token.
//!
//! The log must go on when the filesystem is full: without it the node could not even take part in freeing space. So
//! room is reserved for as long as it grows before a snapshot replaces it, and for the file that replaces it (the
//! *spare*). Where that is not enough, because the filesystem can't reserve or the cluster's state is large, writing
//! waits for space; the rest of the cluster goes on without this node's confirmations.

use crate::control::ControlMessage;
use crate::inbox::Sender;
use anyhow::{Context, Result};
use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use sheep_engine::FileId;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Bytes reserved for the log, and as many for the spare: what comes after a snapshot (see `snapshot_bytes` of the log),
/// what is kept from before it, and a snapshot.
const RESERVED: u64 = 32 << 20;

/// Time after which a write is tried again for which there was no space, and a reservation that failed.
const FULL_RETRY: Duration = Duration::from_millis(500);
const RESERVE_RETRY: Duration = Duration::from_secs(10);

/// What the control thread wants written.
#[derive(Debug)]
pub(crate) enum LogWrite {
    /// Append and make durable.
    Append(FileId, Bytes),
    /// Replace the whole file.
    Replace(FileId, Bytes),
}

impl LogWrite {
    fn id(&self) -> FileId {
        match self {
            Self::Append(id, _) | Self::Replace(id, _) => *id,
        }
    }
}

/// What became of it.
pub(crate) type LogWritten = Result<FileId, String>;

/// Reads the log file for recovery, after making sure that what is read is durable.
pub(crate) fn read(path: &Path) -> Result<Bytes> {
    match File::open(path) {
        Ok(file) => {
            // What a killed process had written but not synced would otherwise count as durable.
            file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
            Ok(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.into())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Bytes::new()),
        Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
    }
}

/// The thread as its user sees it, and how far it is.
pub(crate) struct LogDisk {
    writes: mpsc::Sender<LogWrite>,
    asked: FileId,
    done: FileId,
}

impl LogDisk {
    /// Has something written after all that was asked for before. If the thread has ended, its last message says why.
    pub(crate) fn write(&mut self, write: LogWrite) {
        self.asked = write.id();
        let _ = self.writes.send(write);
    }

    /// The thread has said that all up to this one is durable.
    pub(crate) fn written(&mut self, id: FileId) {
        self.done = id;
    }

    /// Whether all that was asked for is durable.
    pub(crate) fn is_idle(&self) -> bool {
        self.asked == self.done
    }

    /// Another log has taken the place of the one that counted the writes so far; nothing is being written.
    pub(crate) fn begin_anew(&mut self) {
        (self.asked, self.done) = (FileId::default(), FileId::default());
    }
}

/// Starts the thread. `len` is what recovery accepted: a torn tail behind it is cut off first.
pub(crate) fn start(path: PathBuf, len: u64, done: Sender<ControlMessage>) -> Result<LogDisk> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    // Even to the same length it would give up what is reserved behind the end.
    if file.metadata()?.len() != len {
        file.set_len(len)?;
    }
    let reserved = reserve(&file);
    file.sync_all()?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    let (writes, receiver) = mpsc::channel();
    std::thread::Builder::new().name("log-disk".into()).spawn(move || {
        Writer { path, file, reserved, spare: None, next_try: Instant::now() }.run(&receiver, &done);
    })?;
    Ok(LogDisk { writes, asked: FileId::default(), done: FileId::default() })
}

/// Gives up the space that is kept for the log beside it, for something that can't wait; the log will ask for it again.
pub(crate) fn give_up_spare(path: &Path) {
    let _ = fs::remove_file(spare_of(path));
}

fn spare_of(path: &Path) -> PathBuf {
    path.with_extension("spare")
}

/// Reserves space for a file without making it longer; `false` if there is none, or the filesystem can't.
fn reserve(file: &File) -> bool {
    fallocate(file, FallocateFlags::KEEP_SIZE, 0, RESERVED).is_ok()
}

/// An error after which nobody knows what the file holds, whatever its kind.
fn for_good(error: io::Error) -> io::Error {
    io::Error::other(error.to_string())
}

struct Writer {
    path: PathBuf,
    file: File,
    /// Space is reserved for it.
    reserved: bool,
    /// What the log is replaced with: an empty file that has space, if there was any.
    spare: Option<File>,
    /// When to try again to reserve what is not.
    next_try: Instant,
}

impl Writer {
    /// One sync for everything that has come meanwhile.
    fn run(mut self, receiver: &mpsc::Receiver<LogWrite>, done: &Sender<ControlMessage>) {
        while let Ok(first) = receiver.recv() {
            let mut batch = vec![first];
            batch.extend(receiver.try_iter());
            let last = batch.last().map(LogWrite::id).unwrap_or_default();
            let result = self.write_when_there_is_space(&batch);
            let failed = result.is_err();
            let message = result.map(|()| last).map_err(|error| format!("{}: {error}", self.path.display()));
            if done.send(ControlMessage::Written(message)).is_err() || failed {
                break;
            }
            self.keep_space();
        }
    }

    fn keep_space(&mut self) {
        if (self.reserved && self.spare.is_some()) || Instant::now() < self.next_try {
            return;
        }
        self.next_try = Instant::now() + RESERVE_RETRY;
        self.reserved = self.reserved || reserve(&self.file);
        if self.spare.is_some() {
            return;
        }
        let path = spare_of(&self.path);
        // One that an earlier run has left is as good, if nothing is in it.
        if fs::metadata(&path).is_ok_and(|meta| meta.len() > 0) {
            give_up_spare(&self.path);
        }
        let spare = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        self.spare = spare.ok().filter(reserve);
        if self.spare.is_none() {
            give_up_spare(&self.path);
        }
    }

    fn write_when_there_is_space(&mut self, batch: &[LogWrite]) -> io::Result<()> {
        let mut full = false;
        loop {
            match self.write(batch) {
                Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {}
                result => {
                    if full {
                        info!(path = %self.path.display(), "the log goes on");
                    }
                    return result;
                }
            }
            if self.spare.take().is_some() {
                give_up_spare(&self.path);
                self.next_try = Instant::now() + RESERVE_RETRY;
                continue;
            }
            if !std::mem::replace(&mut full, true) {
                warn!(path = %self.path.display(), "no space left for the log: this node confirms nothing until there is");
            }
            std::thread::sleep(FULL_RETRY);
        }
    }

    /// Writes a batch and makes it durable. [`ErrorKind::StorageFull`]: nothing of it is in the file, or the file was
    /// replaced; it can be tried again. After any other error nobody knows what is there.
    fn write(&mut self, batch: &[LogWrite]) -> io::Result<()> {
        // What stands before the last replacement is in it.
        let from = batch.iter().rposition(|write| matches!(write, LogWrite::Replace(..))).unwrap_or(0);
        let mut records = Vec::new();
        for write in batch.get(from..).unwrap_or_default() {
            match write {
                LogWrite::Append(_, bytes) => records.extend_from_slice(bytes),
                LogWrite::Replace(_, bytes) => self.replace(bytes)?,
            }
        }
        let end = self.file.seek(SeekFrom::End(0))?;
        if let Err(error) = self.file.write_all(&records) {
            self.file.set_len(end).map_err(for_good)?;
            self.reserved = false;
            return Err(error);
        }
        // A sync that fails has lost what it should have written, whatever the reason.
        self.file.sync_data().map_err(for_good)
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let path = spare_of(&self.path);
        let (mut file, reserved) = match self.spare.take() {
            Some(file) => (file, true),
            None => (OpenOptions::new().create(true).truncate(true).write(true).open(&path)?, false),
        };
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        if let Err(error) = written {
            drop(file);
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let renamed = fs::rename(&path, &self.path).and_then(|()| match self.path.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        });
        renamed.map_err(for_good)?;
        (self.file, self.reserved) = (file, reserved);
        self.next_try = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_and_replaced_is_there_in_order() {
        let dir = std::env::temp_dir().join(format!("sheep-log-file-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("log");
        fs::write(&path, b"first").unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let next_try = Instant::now();
        let mut writer = Writer { path: path.clone(), file, reserved: false, spare: None, next_try };
        writer.keep_space();
        let id = FileId::default();
        let append = |bytes: &'static [u8]| LogWrite::Append(id, Bytes::from_static(bytes));
        let replace = |bytes: &'static [u8]| LogWrite::Replace(id, Bytes::from_static(bytes));
        writer.write(&[append(b" a"), append(b" b")]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first a b");
        writer.write(&[append(b" c"), replace(b"whole"), append(b" d")]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole d");
        assert!(!spare_of(&path).exists(), "it has become the log");
        // A spare that was taken away meanwhile, or that is left from a run that was killed.
        fs::write(spare_of(&path), b"half of a snapshot").unwrap();
        writer.write(&[replace(b"again"), append(b" e")]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"again e");
        writer.keep_space();
        assert_eq!(fs::metadata(spare_of(&path)).unwrap().len(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
