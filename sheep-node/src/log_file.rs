//! The log's file, on a thread of its own so that no disk ever delays the token.

use crate::control::ControlMessage;
use crate::inbox::Sender;
use anyhow::{Context, Result};
use bytes::Bytes;
use sheep_engine::FileId;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

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

/// Starts the thread. `len` is what recovery accepted: a torn tail behind it is cut off first.
pub(crate) fn start(
    path: PathBuf,
    len: u64,
    done: Sender<ControlMessage>,
) -> Result<(mpsc::Sender<LogWrite>, JoinHandle<()>)> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    file.set_len(len)?;
    file.sync_all()?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("log-disk".into()).spawn(move || {
        Writer { path, file }.run(&receiver, &done);
    })?;
    Ok((sender, thread))
}

struct Writer {
    path: PathBuf,
    file: File,
}

impl Writer {
    /// One sync for everything that has come meanwhile.
    fn run(mut self, receiver: &mpsc::Receiver<LogWrite>, done: &Sender<ControlMessage>) {
        while let Ok(first) = receiver.recv() {
            let mut batch = vec![first];
            batch.extend(receiver.try_iter());
            let last = batch.last().map(LogWrite::id).unwrap_or_default();
            let result = self.write(&batch);
            let failed = result.is_err();
            let message = result.map(|()| last).map_err(|error| format!("{}: {error}", self.path.display()));
            if done.send(ControlMessage::Written(message)).is_err() || failed {
                break;
            }
        }
    }

    fn write(&mut self, batch: &[LogWrite]) -> io::Result<()> {
        // What stands before the last replacement is in it.
        let from = batch.iter().rposition(|write| matches!(write, LogWrite::Replace(..))).unwrap_or(0);
        for write in batch.get(from..).unwrap_or_default() {
            match write {
                LogWrite::Append(_, bytes) => {
                    self.file.seek(SeekFrom::End(0))?;
                    self.file.write_all(bytes)?;
                }
                LogWrite::Replace(_, bytes) => self.replace(bytes)?,
            }
        }
        self.file.sync_data()
    }

    fn replace(&mut self, bytes: &[u8]) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(parent) = self.path.parent() {
            File::open(parent)?.sync_all()?;
        }
        self.file = file;
        Ok(())
    }
}
