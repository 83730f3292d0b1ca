//! The process that keeps descriptors, and does nothing else: when the worker dies it starts another one and gives it all of
//! them.
//!
//! Both ends of a socket pair speak packets of one line, some with a descriptor. The worker's end is its standard input.

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tracing::{error, info};

/// Longest line.
const LINE_MAX: usize = 256;
/// Time before another worker is started,
const RESPAWN: Duration = Duration::from_millis(50);
/// and after one that did not live for long.
const RESPAWN_LATER: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(5);

/// What is kept, by name.
type Kept = BTreeMap<String, OwnedFd>;

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

/// Starts workers, one after the other.
pub(crate) fn hold() -> Result<Infallible> {
    let program = std::env::current_exe().context("own path")?;
    let mut kept = Kept::new();
    loop {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .context("a pair of sockets")?;
        let mut command = Command::new(&program);
        command.arg("--worker").args(std::env::args_os().skip(1)).stdin(Stdio::from(theirs));
        let started = Instant::now();
        let mut worker = command.spawn().context("cannot start the worker")?;
        // The command has a copy of the other end, which would keep the pair open.
        drop(command);
        if let Err(problem) = serve(ours.as_fd(), &mut kept) {
            error!("the worker is not understood, and ended: {problem:#}");
            let _ = worker.kill();
        }
        let status = worker.wait().context("the worker's end")?;
        info!("the worker has ended ({status}); {} descriptors are kept", kept.len());
        std::thread::sleep(if started.elapsed() < LONG { RESPAWN_LATER } else { RESPAWN });
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
pub(crate) struct Holder;

impl Holder {
    /// What is kept.
    pub(crate) fn kept(&self) -> Result<Kept> {
        let mut kept = Kept::new();
        loop {
            match receive_line(std::io::stdin().as_fd())? {
                Some((name, Some(fd))) => {
                    kept.insert(name, fd);
                }
                Some((line, None)) if line == "all" => return Ok(kept),
                other => bail!("the holder says {:?}", other.map(|(line, _)| line)),
            }
        }
    }

    /// Keeps a descriptor, in place of the one that has the name.
    pub(crate) fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        send_line(std::io::stdin().as_fd(), &format!("keep {name}"), Some(fd)).context("the holder is gone")
    }

    /// Keeps it no longer.
    pub(crate) fn release(&self, name: &str) -> Result<()> {
        send_line(std::io::stdin().as_fd(), &format!("drop {name}"), None).context("the holder is gone")
    }
}
