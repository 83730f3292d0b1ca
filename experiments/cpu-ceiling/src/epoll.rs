//! The classic engine: epoll and non-blocking sockets; the disk has a thread of its own.

use crate::node::{Job, Node};
use crate::{Disk, SPAN, Shard};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct Shared {
    todo: Mutex<Vec<Job>>,
    more: Condvar,
    done: Mutex<Vec<Job>>,
}

/// Opens a shard's file, as large as the load expects.
pub fn open(shard: &Shard) -> io::Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&shard.file)?;
    if file.metadata()?.len() < SPAN {
        // Written completely, so that nothing is measured that only happens the first time.
        let filler = File::options().write(true).open(&shard.file)?;
        let chunk = vec![0x11; 1 << 20];
        for at in 0..SPAN >> 20 {
            std::os::unix::fs::FileExt::write_all_at(&filler, &chunk, at << 20)?;
        }
        filler.sync_all()?;
    }
    Ok(file)
}

/// Serves until a connection ends.
pub fn run(shard: Shard) -> io::Result<()> {
    let sockets: Vec<RawFd> = shard.sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let mut node = Node::new(shard.gateway, sockets.len());
    // SAFETY: plain system calls on descriptors that live as long as `shard`.
    let (poll, event) = unsafe { (libc::epoll_create1(0), libc::eventfd(0, libc::EFD_NONBLOCK)) };
    for (at, fd) in sockets.iter().chain([&event]).enumerate() {
        let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: at as u64 };
        // SAFETY: as above; `interest` is copied by the kernel.
        unsafe {
            libc::fcntl(*fd, libc::F_SETFL, libc::O_NONBLOCK);
            if libc::epoll_ctl(poll, libc::EPOLL_CTL_ADD, *fd, &mut interest) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    let shared = Arc::new(Shared::default());
    if shard.disk != Disk::None {
        let (file, shared, sync) = (open(&shard)?, Arc::clone(&shared), shard.disk == Disk::Sync);
        std::thread::spawn(move || disk(&file, &shared, sync, event));
    }
    let mut buffer = vec![0; 256 << 10];
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; 8];
    loop {
        // SAFETY: the kernel writes at most 8 events.
        let ready = unsafe { libc::epoll_wait(poll, events.as_mut_ptr(), 8, -1) };
        for event_at in events.iter().take(usize::try_from(ready).unwrap_or(0)) {
            let at = event_at.u64 as usize;
            let fd = sockets.get(at).copied().unwrap_or(event);
            // SAFETY: the kernel writes at most the buffer's length.
            let read = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
            match (at < sockets.len(), usize::try_from(read)) {
                (true, Ok(0)) => return Ok(()),
                (true, Ok(read)) => node.received(at, &buffer[..read]),
                (true, Err(_)) => {}
                (false, _) => {
                    let done = std::mem::take(&mut *shared.done.lock().expect("disk thread"));
                    done.into_iter().for_each(|job| node.written(job));
                }
            }
        }
        if shard.disk == Disk::None {
            std::mem::take(&mut node.jobs).into_iter().for_each(|job| node.written(job));
        } else if !node.jobs.is_empty() {
            shared.todo.lock().expect("disk thread").append(&mut node.jobs);
            shared.more.notify_one();
        }
        for (fd, out) in sockets.iter().zip(&mut node.out) {
            send_all(*fd, out)?;
        }
    }
}

/// Sends everything; socket buffers are far larger than what may be on the way, so waiting is rare.
fn send_all(fd: RawFd, out: &mut Vec<u8>) -> io::Result<()> {
    let mut sent = 0;
    while sent < out.len() {
        // SAFETY: reads within `out`.
        let now =
            unsafe { libc::send(fd, out[sent..].as_ptr().cast(), out.len() - sent, libc::MSG_NOSIGNAL) };
        match usize::try_from(now) {
            Ok(now) => sent += now,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {
                std::thread::yield_now()
            }
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    out.clear();
    Ok(())
}

/// Takes all that waits, writes it, syncs once, tells the shard once.
fn disk(file: &File, shared: &Shared, sync: bool, event: RawFd) {
    loop {
        let mut todo = shared.todo.lock().expect("shard");
        while todo.is_empty() {
            todo = shared.more.wait(todo).expect("shard");
        }
        let mut batch = std::mem::take(&mut *todo);
        drop(todo);
        for job in &batch {
            let pointer = job.block.pointer().cast();
            // SAFETY: the block is 4096 bytes and lives until the call returns.
            let wrote = unsafe { libc::pwrite(file.as_raw_fd(), pointer, 4096, job.offset as i64) };
            assert_eq!(wrote, 4096, "{}", io::Error::last_os_error());
        }
        if sync {
            file.sync_data().expect("fdatasync");
        }
        shared.done.lock().expect("shard").append(&mut batch);
        let one = 1_u64;
        // SAFETY: writes the eight bytes of `one`.
        unsafe { libc::write(event, (&raw const one).cast(), 8) };
    }
}
