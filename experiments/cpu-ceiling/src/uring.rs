//! One io_uring for the sockets and the disk of a shard: one system call per turn of the loop.

use crate::epoll::open;
use crate::node::{Job, Node};
use crate::{Disk, Shard};
use io_uring::{IoUring, opcode, squeue, types};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

const RECV: u64 = 1 << 32;
const SEND: u64 = 2 << 32;
const WRITE: u64 = 3 << 32;
const SYNC: u64 = 4 << 32;

/// A batch on its way to the disk: the next is started when it is done, and shares one sync.
#[derive(Default)]
struct Batch {
    jobs: Vec<Job>,
    left: usize,
}

struct Engine {
    ring: IoUring,
    sockets: Vec<RawFd>,
    node: Node,
    inputs: Vec<Vec<u8>>,
    /// What the kernel is sending, and how much of it is sent.
    sending: Vec<(Vec<u8>, usize)>,
    batch: Batch,
    disk: Disk,
    file: Option<std::fs::File>,
}

/// Serves until a connection ends.
pub fn run(shard: Shard) -> io::Result<()> {
    let sockets: Vec<RawFd> = shard.sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(256)?;
    let file = if shard.disk == Disk::None { None } else { Some(open(&shard)?) };
    let mut engine = Engine {
        ring,
        node: Node::new(shard.gateway, sockets.len()),
        inputs: sockets.iter().map(|_| vec![0; 256 << 10]).collect(),
        sending: sockets.iter().map(|_| (Vec::new(), 0)).collect(),
        sockets,
        batch: Batch::default(),
        disk: shard.disk,
        file,
    };
    for at in 0..engine.sockets.len() {
        engine.recv(at);
    }
    let mut done = Vec::new();
    loop {
        engine.ring.submit_and_wait(1)?;
        done.clear();
        done.extend(engine.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (what, result) in &done {
            if !engine.completed(*what, *result)? {
                return Ok(());
            }
        }
        engine.turn();
    }
}

impl Engine {
    fn push(&mut self, entry: &squeue::Entry, what: u64) {
        let entry = entry.clone().user_data(what);
        // SAFETY: buffers live in the engine until their completion is seen.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit().expect("submit");
        }
    }

    fn recv(&mut self, at: usize) {
        let input = &mut self.inputs[at];
        let entry =
            opcode::Recv::new(types::Fd(self.sockets[at]), input.as_mut_ptr(), input.len() as u32).build();
        self.push(&entry, RECV | at as u64);
    }

    fn send(&mut self, at: usize) {
        let (bytes, sent) = &self.sending[at];
        let rest = &bytes[*sent..];
        let entry = opcode::Send::new(types::Fd(self.sockets[at]), rest.as_ptr(), rest.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(&entry, SEND | at as u64);
    }

    /// Says whether to go on.
    fn completed(&mut self, what: u64, result: i32) -> io::Result<bool> {
        let count = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        let at = (what & 0xffff_ffff) as usize;
        match what & !0xffff_ffff {
            RECV if count == 0 => return Ok(false),
            RECV => {
                let input = std::mem::take(&mut self.inputs[at]);
                self.node.received(at, &input[..count]);
                self.inputs[at] = input;
                self.recv(at);
            }
            SEND => {
                let (bytes, sent) = &mut self.sending[at];
                *sent += count;
                if *sent < bytes.len() {
                    self.send(at);
                } else {
                    bytes.clear();
                    *sent = 0;
                }
            }
            WRITE => {
                assert_eq!(count, 4096);
                self.batch.left -= 1;
                if self.batch.left == 0 && self.disk == Disk::Sync {
                    let fd = self.file.as_ref().expect("a disk").as_raw_fd();
                    let entry = opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build();
                    self.push(&entry, SYNC);
                } else if self.batch.left == 0 {
                    self.finish();
                }
            }
            _ => self.finish(),
        }
        Ok(true)
    }

    fn finish(&mut self) {
        std::mem::take(&mut self.batch.jobs).into_iter().for_each(|job| self.node.written(job));
    }

    /// Starts what waits: the next batch for the disk, and one send per connection.
    fn turn(&mut self) {
        if self.disk == Disk::None {
            std::mem::take(&mut self.node.jobs).into_iter().for_each(|job| self.node.written(job));
        } else if self.batch.jobs.is_empty() && !self.node.jobs.is_empty() {
            let fd = self.file.as_ref().expect("a disk").as_raw_fd();
            let jobs = std::mem::take(&mut self.node.jobs);
            self.batch.left = jobs.len();
            for job in &jobs {
                let entry =
                    opcode::Write::new(types::Fd(fd), job.block.pointer(), 4096).offset(job.offset).build();
                self.push(&entry, WRITE);
            }
            self.batch.jobs = jobs;
        }
        for at in 0..self.sockets.len() {
            if self.sending[at].0.is_empty() && !self.node.out[at].is_empty() {
                std::mem::swap(&mut self.sending[at].0, &mut self.node.out[at]);
                self.send(at);
            }
        }
    }
}
