//! The process that keeps descriptors, and does nothing else. Workers come to its socket, one after the other: each is given all
//! of them, and says what is to be kept from then on. When a worker is gone and nothing is kept the holder ends.
//!
//! Both sides speak packets of one line, some with a descriptor.

use crate::launch;
use crate::state::lock;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Longest line.
const LINE_MAX: usize = 256;
/// A holder that keeps nothing waits so long for a worker.
const UNUSED: Duration = Duration::from_secs(60);
/// A worker waits so long for a holder that is being started.
const STARTING: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(20);

/// What is kept, by name.
pub(crate) type Kept = BTreeMap<String, OwnedFd>;

fn lock_file(directory: &Path) -> PathBuf {
    directory.join("holder.lock")
}

fn socket_file(directory: &Path) -> PathBuf {
    directory.join("holder.sock")
}

/// A line, and a descriptor with it.
fn send_line(to: BorrowedFd<'_>, line: &str, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(to, &[IoSlice::new(line.as_bytes())], &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// The next line; nothing if the other side is gone.
fn receive_line(from: BorrowedFd<'_>) -> Result<Option<(String, Option<OwnedFd>)>> {
    let mut bytes = [0; LINE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(from, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            result => break result.context("the other process")?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        bail!("a line of more than {LINE_MAX} bytes");
    }
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last().or(fd);
        }
    }
    Ok(Some((String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), fd)))
}

/// The lock of a directory, which its holder has for as long as it lives; nothing if there is one.
fn try_lock(directory: &Path) -> Result<Option<File>> {
    let path = lock_file(directory);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(problem) => Err(problem).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Whether a directory has a holder.
pub(crate) fn is_held(directory: &Path) -> Result<bool> {
    Ok(try_lock(directory)?.is_none())
}

/// Keeps descriptors until there are none and nobody wants that any more. `leave`: called when everything is open.
pub(crate) fn hold(directory: &Path, leave: impl FnOnce() -> Result<()>) -> Result<()> {
    let Some(mut lock) = try_lock(directory)? else {
        info!("{} has a holder", directory.display());
        return Ok(());
    };
    lock.set_len(0)?;
    writeln!(lock, "{}", std::process::id())?;
    let path = socket_file(directory);
    let _ = std::fs::remove_file(&path);
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddrUnix::new(&path)?).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    listen(&listener, 8)?;
    set_socket_timeout(&listener, Timeout::Recv, Some(UNUSED))?;
    leave()?;
    let mut kept = Kept::new();
    loop {
        match accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(worker) => {
                if let Err(problem) = serve(worker.as_fd(), &mut kept) {
                    error!("the worker is not understood: {problem:#}");
                }
                info!("the worker is gone; {} descriptors are kept", kept.len());
            }
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => {}
            Err(problem) => {
                warn!("no worker can be let in: {problem}");
                std::thread::sleep(AGAIN);
                continue;
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
    }
}

/// Gives a worker what is kept, and keeps what it says, until it ends.
fn serve(worker: BorrowedFd<'_>, kept: &mut Kept) -> Result<()> {
    for (name, fd) in &*kept {
        if send_line(worker, name, Some(fd.as_fd())).is_err() {
            return Ok(());
        }
    }
    if send_line(worker, "all", None).is_err() {
        return Ok(());
    }
    while let Some((line, fd)) = receive_line(worker)? {
        match (line.split_once(' '), fd) {
            (Some(("keep", name)), Some(fd)) => {
                kept.insert(name.to_owned(), fd);
            }
            (Some(("drop", name)), None) => {
                kept.remove(name);
            }
            _ => bail!("{line:?}"),
        }
    }
    Ok(())
}

/// The worker's end.
pub(crate) struct Holder {
    directory: PathBuf,
    held: Mutex<Held>,
}

/// What the holder has, to be given to another one if it should die.
struct Held {
    socket: Arc<OwnedFd>,
    kept: BTreeMap<String, Arc<OwnedFd>>,
}

impl Holder {
    /// The holder of a directory, and what it has.
    pub(crate) fn of(directory: &Path) -> Result<(Arc<Self>, Kept)> {
        let socket = Arc::new(reach(directory)?);
        let kept = welcome(socket.as_fd())?;
        let copies = kept.iter().map(|(name, fd)| Ok((name.clone(), Arc::new(fd.try_clone()?))));
        let held = Mutex::new(Held { socket, kept: copies.collect::<Result<_>>()? });
        let holder = Arc::new(Self { directory: directory.to_owned(), held });
        let watching = Arc::clone(&holder);
        crate::volume::thread(move || watching.watch());
        Ok((holder, kept))
    }

    /// Keeps a descriptor, in place of the one that has the name.
    pub(crate) fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        let fd = Arc::new(fd.try_clone_to_owned()?);
        let mut held = lock(&self.held);
        held.kept.insert(name.to_owned(), Arc::clone(&fd));
        let sent = send_line(held.socket.as_fd(), &format!("keep {name}"), Some(fd.as_fd()));
        sent.or_else(|_| held.renew(&self.directory))
    }

    /// Keeps it no longer.
    pub(crate) fn release(&self, name: &str) -> Result<()> {
        let mut held = lock(&self.held);
        if held.kept.remove(name).is_none() {
            return Ok(());
        }
        let sent = send_line(held.socket.as_fd(), &format!("drop {name}"), None);
        sent.or_else(|_| held.renew(&self.directory))
    }

    /// Starts another holder when this one dies.
    fn watch(&self) {
        loop {
            let socket = Arc::clone(&lock(&self.held).socket);
            // It says nothing more.
            while matches!(receive_line(socket.as_fd()), Ok(Some(_))) {}
            let mut held = lock(&self.held);
            if !Arc::ptr_eq(&held.socket, &socket) {
                continue;
            }
            warn!("the holder is gone; another one gets its descriptors");
            while let Err(problem) = held.renew(&self.directory) {
                error!("there is no holder, devices would not outlive this process: {problem:#}");
                drop(held);
                std::thread::sleep(Duration::from_secs(1));
                held = lock(&self.held);
            }
        }
    }
}

impl Held {
    fn renew(&mut self, directory: &Path) -> Result<()> {
        launch::start_holder()?;
        let socket = Arc::new(reach(directory)?);
        // It may be the same one, and only the connection have broken.
        for name in welcome(socket.as_fd())?.keys().filter(|name| !self.kept.contains_key(*name)) {
            send_line(socket.as_fd(), &format!("drop {name}"), None)?;
        }
        for (name, fd) in &self.kept {
            send_line(socket.as_fd(), &format!("keep {name}"), Some(fd.as_fd()))?;
        }
        self.socket = socket;
        Ok(())
    }
}

/// A connection to the holder of a directory, which may just be starting.
fn reach(directory: &Path) -> Result<OwnedFd> {
    let address = SocketAddrUnix::new(socket_file(directory))?;
    let begin = Instant::now();
    loop {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(problem) if begin.elapsed() > STARTING => return Err(problem).context("the holder"),
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}

/// What a holder has, which it says at first.
fn welcome(socket: BorrowedFd<'_>) -> Result<Kept> {
    let mut kept = Kept::new();
    loop {
        match receive_line(socket)? {
            Some((name, Some(fd))) => {
                kept.insert(name, fd);
            }
            Some((line, None)) if line == "all" => return Ok(kept),
            other => bail!("the holder says {:?}", other.map(|(line, _)| line)),
        }
    }
}
