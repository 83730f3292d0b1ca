//! A volume behind an NBD socket: operations go in, answers for the kernel come out, and the connection may break as often as
//! it likes. What has no answer then is sent again over the next one.
//!
//! Nothing of a broken connection can arrive after something later: whoever served it is gone with its lock, or has closed
//! it, and reads no more of it.

use crate::fuse::{self, EIO, Io, Kind};
use crate::nbd::{self, Refusal};
use crate::state::lock;
use anyhow::Context;
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tracing::{error, info, warn};

/// Largest range that one request makes zeros.
const RANGE_MAX: u64 = 1 << 30;
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LAST_DELAY: Duration = Duration::from_secs(1);
/// How long the first connection may take: the lease of who had the volume before may have to run out.
const OPEN_LIMIT: Duration = Duration::from_secs(50);

/// Takes answers for the kernel.
pub(crate) trait Kernel: Send + Sync {
    /// An answer, in two parts.
    fn answer(&self, head: &[u8], body: &[u8]);
}

/// Whose volume it is.
pub(crate) trait Owner: Send + Sync {
    /// Told of each new connection before anything is sent over it.
    fn connected(&self, connection: &UnixStream);
    /// The volume turned out to have another size.
    fn resized(&self, size: u64);
}

/// A request that has no answer yet.
struct Pending {
    io: Io,
    data: Vec<u8>,
}

/// What the kernel waits for, and how many requests of ours it is made of.
struct Waiting {
    left: usize,
    errno: i32,
    written: Option<u64>,
}

#[derive(Default)]
struct Table {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    waiting: BTreeMap<u64, Waiting>,
}

/// The connection, if there is one, and which one it is.
struct Wire {
    stream: Option<UnixStream>,
    number: u64,
}

/// The volume. Its threads end with [`Volume::close`].
pub(crate) struct Volume {
    socket: PathBuf,
    /// What it is called at the gateway.
    export: String,
    /// And by people.
    name: String,
    size: AtomicU64,
    closed: AtomicBool,
    /// It is closed because the gateway will never open it again.
    ended: AtomicBool,
    table: Mutex<Table>,
    wire: Mutex<Wire>,
    /// The same connection, or one that is being made, to end it while somebody is stuck in it.
    ending: Mutex<Option<UnixStream>>,
    broken: Condvar,
    kernel: Box<dyn Kernel>,
    owner: Box<dyn Owner>,
}

/// Starts a thread. Its stack is small, because all memory is locked.
pub(crate) fn thread(work: impl FnOnce() + Send + 'static) {
    const STACK: usize = 256 << 10;
    if let Err(problem) = std::thread::Builder::new().stack_size(STACK).spawn(work) {
        error!("cannot start a thread: {problem}");
    }
}

/// Reads what is left of a connection that another process had, until its server has done everything and closes it.
pub(crate) fn drain(old: OwnedFd) {
    let mut stream = UnixStream::from(old);
    let _ = stream.shutdown(Shutdown::Write);
    let mut buffer = vec![0; 64 << 10];
    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
}

impl Volume {
    /// A volume that is not connected yet.
    pub(crate) fn new(
        socket: &Path,
        (export, name): (String, String),
        size: u64,
        kernel: Box<dyn Kernel>,
        owner: Box<dyn Owner>,
    ) -> Arc<Self> {
        Arc::new(Self {
            socket: socket.to_owned(),
            export,
            name,
            size: AtomicU64::new(size),
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            table: Mutex::default(),
            wire: Mutex::new(Wire { stream: None, number: 0 }),
            ending: Mutex::default(),
            broken: Condvar::new(),
            kernel,
            owner,
        })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The volume has another size.
    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether its attachment is over, so that everything is an error.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn connect(&self, limit: Option<Duration>) -> Result<(UnixStream, nbd::Export), Refusal> {
        let at = || format!("no NBD server at {}", self.socket.display());
        let mut stream = UnixStream::connect(&self.socket).with_context(at)?;
        *lock(&self.ending) = Some(stream.try_clone()?);
        if self.is_closed() {
            return Err(anyhow::anyhow!("the device is being taken away").into());
        }
        stream.set_read_timeout(limit)?;
        match nbd::choose(&mut stream, &self.export) {
            Ok(export) => {
                stream.set_read_timeout(None)?;
                Ok((stream, export))
            }
            Err(refusal) => {
                // Or the gateway would wait for a client that has gone.
                lock(&self.ending).take();
                Err(refusal)
            }
        }
    }

    /// Connects for the first time, so that what cannot work is told; keeps the connection up from then on.
    pub(crate) fn open(self: &Arc<Self>) -> Result<nbd::Export, Refusal> {
        let (stream, export) = self.connect(Some(OPEN_LIMIT))?;
        self.set_size(export.size);
        self.use_connection(stream);
        self.keep_up();
        Ok(export)
    }

    /// Connects whenever that is possible.
    pub(crate) fn keep_up(self: &Arc<Self>) {
        let volume = Arc::clone(self);
        thread(move || volume.reconnect());
    }

    fn reconnect(self: &Arc<Self>) {
        let (mut delay, mut said) = (FIRST_DELAY, false);
        loop {
            {
                let mut wire = lock(&self.wire);
                while wire.stream.is_some() && !self.is_closed() {
                    wire = self.broken.wait(wire).unwrap_or_else(PoisonError::into_inner);
                }
            }
            if self.is_closed() {
                return;
            }
            match self.connect(None) {
                Ok((stream, export)) => {
                    info!("volume {} is served again", self.name);
                    if self.size() != export.size {
                        self.set_size(export.size);
                        self.owner.resized(export.size);
                    }
                    self.use_connection(stream);
                    (delay, said) = (FIRST_DELAY, false);
                }
                Err(Refusal::Ended) => {
                    error!("volume {} was taken away from this node; its users get errors", self.name);
                    self.ended.store(true, Ordering::Release);
                    return self.close();
                }
                Err(Refusal::Now(problem)) => {
                    if !said {
                        warn!("volume {} is not served, its users wait: {problem:#}", self.name);
                    }
                    said = true;
                    std::thread::sleep(delay);
                    delay = (delay * 2).min(LAST_DELAY);
                }
            }
        }
    }

    /// From now on this is the connection; what has no answer is sent over it first.
    fn use_connection(self: &Arc<Self>, stream: UnixStream) {
        self.owner.connected(&stream);
        let mut wire = lock(&self.wire);
        let Ok(reading) = stream.try_clone() else { return };
        if self.is_closed() {
            return;
        }
        wire.number += 1;
        let number = wire.number;
        let volume = Arc::clone(self);
        // Answers are read while requests are sent, or both sides could wait for each other.
        thread(move || volume.read_answers(reading, number));
        let again: Vec<(u64, Io, Vec<u8>)> =
            lock(&self.table).pending.iter().map(|(cookie, p)| (*cookie, p.io, p.data.clone())).collect();
        wire.stream = Some(stream);
        for (cookie, io, data) in again {
            send(&mut wire, cookie, &io, &data);
        }
    }

    fn read_answers(self: &Arc<Self>, stream: UnixStream, number: u64) {
        let mut stream = BufReader::with_capacity(256 << 10, stream);
        let mut data = Vec::with_capacity(fuse::MAX_IO);
        while let Ok((cookie, errno)) = nbd::reply(&mut stream) {
            if errno == nbd::ESHUTDOWN {
                break;
            }
            let read = {
                let table = lock(&self.table);
                let Some(pending) = table.pending.get(&cookie) else { break };
                if pending.io.kind == Kind::Read && errno == 0 { pending.io.len as usize } else { 0 }
            };
            data.resize(read, 0);
            if stream.read_exact(&mut data).is_err() {
                break;
            }
            self.done(cookie, errno, &data);
        }
        let mut wire = lock(&self.wire);
        if wire.number == number {
            if let Some(stream) = wire.stream.take() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            self.broken.notify_all();
        }
    }

    /// A request is answered; the kernel is when all of its requests are.
    fn done(&self, cookie: u64, errno: i32, data: &[u8]) {
        let mut table = lock(&self.table);
        let Some(Pending { io, .. }) = table.pending.remove(&cookie) else { return };
        let Some(waiting) = table.waiting.get_mut(&io.unique) else { return };
        waiting.left -= 1;
        if waiting.errno == 0 {
            waiting.errno = errno;
        }
        if waiting.left > 0 {
            return;
        }
        let finished = table.waiting.remove(&io.unique);
        drop(table);
        match finished {
            Some(Waiting { errno: 0, written: Some(len), .. }) => {
                self.kernel.answer(&fuse::written(io.unique, len), &[]);
            }
            Some(Waiting { errno: 0, .. }) => {
                self.kernel.answer(&fuse::header(io.unique, 0, data.len()), data)
            }
            Some(Waiting { errno, .. }) => self.kernel.answer(&fuse::header(io.unique, errno, 0), &[]),
            None => {}
        }
    }

    /// Begins an operation of the kernel.
    pub(crate) fn begin(&self, io: Io, data: &[u8]) {
        let mut wire = lock(&self.wire);
        let mut table = lock(&self.table);
        if self.is_closed() {
            drop(table);
            return self.kernel.answer(&fuse::header(io.unique, EIO, 0), &[]);
        }
        let in_pieces = matches!(io.kind, Kind::Punch | Kind::Zero);
        let pieces = if in_pieces { io.len.div_ceil(RANGE_MAX).max(1) } else { 1 };
        let written = (io.kind == Kind::Write).then_some(io.len);
        table.waiting.insert(io.unique, Waiting { left: pieces as usize, errno: 0, written });
        let mut begun = Vec::with_capacity(pieces as usize);
        for piece in 0..pieces {
            let (offset, len) = if in_pieces {
                (io.offset + piece * RANGE_MAX, (io.len - piece * RANGE_MAX).min(RANGE_MAX))
            } else {
                (io.offset, io.len)
            };
            table.next += 1;
            let (cookie, io) = (table.next, Io { offset, len, ..io });
            table.pending.insert(cookie, Pending { io, data: data.to_vec() });
            begun.push((cookie, io));
        }
        drop(table);
        // Still under the lock of the connection: a new one sends what was begun before it, and only that.
        for (cookie, io) in begun {
            send(&mut wire, cookie, &io, data);
        }
    }

    /// Ends it: what is under way, and whatever comes, is an error.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(stream) = lock(&self.ending).take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let table = std::mem::take(&mut *lock(&self.table));
        for unique in table.waiting.keys() {
            self.kernel.answer(&fuse::header(*unique, EIO, 0), &[]);
        }
        let mut wire = lock(&self.wire);
        if let Some(stream) = wire.stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.broken.notify_all();
    }
}

/// Sends a request, if there is a connection. One that fails is noticed by whoever reads from it.
fn send(wire: &mut Wire, cookie: u64, io: &Io, data: &[u8]) {
    let Some(stream) = &mut wire.stream else { return };
    let sent = stream.write_all(&nbd::request(cookie, io)).and_then(|()| stream.write_all(data));
    if sent.is_err() {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests;
