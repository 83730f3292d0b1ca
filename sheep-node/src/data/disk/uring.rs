//! Operations of the store through io_uring: any number with one system call, completions without one.
//!
//! What makes the unsafe code here sound: buffers, I/O vectors and the file of an operation belong to its
//! entry in [`Uring::flights`], which is kept, unmoved where the kernel looks, until the kernel has said that it is done with
//! it; and the ring is not dropped before that.
#![allow(unsafe_code)]

use super::file::{disk_error, space_flags, space_result};
use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::FallocateFlags;
use sheep_frontend::{ALIGNMENT, AlignedBuf, BufferPool};
use sheep_store::{DiskDone, DiskError, DiskOpId, DiskOpKind, DiskResult};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// Operations that the kernel has at once; more wait here.
const DEPTH: usize = 256;
/// Names the completion that tells of the sockets.
const SOCKETS: u64 = u64::MAX;
/// Buffers of one write.
const SLICES_MAX: usize = 1024;
/// Address alignment that direct I/O needs: a sector. Others are copied first.
const SECTOR: usize = 512;

/// A ring with what is under way in it.
pub(super) struct Uring {
    ring: IoUring,
    /// The epoll instance of the sockets, whose readiness is one more completion.
    sockets: RawFd,
    /// The kernel is to tell of it.
    armed: bool,
    sockets_ready: bool,
    pool: BufferPool,
    /// What the kernel has, or must have again, by `user_data`.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Operations for which the ring has no room yet.
    waiting: VecDeque<Flight>,
    /// Entries to be put into the submission queue (again).
    ready: VecDeque<usize>,
    /// Entries that the kernel is done with, and how they went.
    done: VecDeque<(usize, Result<(), DiskError>)>,
}

/// An operation under way.
struct Flight {
    id: DiskOpId,
    file: Arc<File>,
    work: Work,
    /// Bytes that are done.
    progress: usize,
}

enum Work {
    Read { offset: u64, buffer: AlignedBuf },
    Write { offset: u64, data: Vec<Bytes>, len: usize, vectors: Vectors },
    Sync,
    Fallocate { offset: u64, len: u64, flags: FallocateFlags },
}

/// Where the parts of a write are, for the kernel.
#[derive(Default)]
struct Vectors(Vec<libc::iovec>);

// SAFETY: the pointers are only written here, and read by the kernel; what they point to may be sent.
unsafe impl Send for Vectors {}

impl Uring {
    /// A ring that also waits for `sockets`, an epoll instance which outlives it. To be used by the calling thread only.
    ///
    /// # Errors
    /// The kernel has no io_uring, or not enough of it, or it is forbidden (as in most containers).
    pub(super) fn new(pool: BufferPool, sockets: RawFd) -> io::Result<Self> {
        // One entry more is for the sockets.
        let entries = (DEPTH * 2) as u32;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            // Kernels before 6.1 do not know the flags.
            .or_else(|_| IoUring::new(entries))?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "kernel older than 5.11"));
        }
        Ok(Self {
            ring,
            sockets,
            armed: false,
            sockets_ready: false,
            pool,
            flights: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            done: VecDeque::new(),
        })
    }

    /// Takes an operation; it goes to the kernel with the next [`Uring::wait`].
    pub(super) fn start(&mut self, id: DiskOpId, kind: DiskOpKind, file: &Arc<File>) {
        let work = match kind {
            DiskOpKind::Read { offset, len, .. } => {
                Work::Read { offset, buffer: self.pool.take(len as usize, 0) }
            }
            DiskOpKind::Write { offset, data, .. } => self.write(offset, data),
            DiskOpKind::Allocate { offset, len, .. } => {
                Work::Fallocate { offset, len, flags: space_flags(false) }
            }
            DiskOpKind::Punch { offset, len, .. } => {
                Work::Fallocate { offset, len, flags: space_flags(true) }
            }
            // The others are done by the caller, at once.
            DiskOpKind::Sync { .. } | DiskOpKind::Open { .. } | DiskOpKind::SyncDirectory => Work::Sync,
        };
        let flight = Flight { id, file: Arc::clone(file), work, progress: 0 };
        if self.flights.len() - self.free.len() >= DEPTH {
            self.waiting.push_back(flight);
        } else {
            self.admit(flight);
        }
    }

    /// What a slot's disk has not been asked yet it never will be; nobody waits for the answers.
    pub(super) fn forget(&mut self, slot: u8) {
        self.waiting.retain(|flight| flight.id.slot() != slot);
    }

    fn admit(&mut self, flight: Flight) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        self.flights[slot] = Some(flight);
        self.ready.push_back(slot);
    }

    /// A write whose buffers direct I/O accepts. What comes from the network and from clients does as it is.
    fn write(&self, offset: u64, data: Vec<Bytes>) -> Work {
        let len = data.iter().map(Bytes::len).sum();
        let fits =
            |part: &Bytes| part.as_ptr().addr().is_multiple_of(SECTOR) && part.len().is_multiple_of(SECTOR);
        if data.len() <= SLICES_MAX && data.iter().all(fits) {
            return Work::Write { offset, data, len, vectors: Vectors::default() };
        }
        let mut copy = self.pool.take(len, 0);
        let mut rest = copy.as_mut_slice();
        for part in &data {
            let (to, after) = rest.split_at_mut(part.len());
            to.copy_from_slice(part);
            rest = after;
        }
        Work::Write { offset, data: vec![copy.freeze()], len, vectors: Vectors::default() }
    }

    /// Gives everything that was started to the kernel, and waits until something is done, a socket is ready or `timeout`
    /// is over: one system call. `true`: a socket is ready.
    ///
    /// # Errors
    /// The kernel refuses for a reason that does not pass.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        self.fill();
        let time = types::Timespec::from(timeout);
        let waited = self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time));
        match waited {
            Ok(_) => {}
            // Time is over; a signal came; the kernel is short of memory and gets it again with the next turn.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) => {}
            Err(error) => return Err(error),
        }
        self.reap();
        Ok(std::mem::take(&mut self.sockets_ready))
    }

    /// Moves what is to be done into the submission queue. What has no room stays for the next turn.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        if !self.armed {
            let poll = opcode::PollAdd::new(types::Fd(self.sockets), libc::POLLIN as u32).build();
            // SAFETY: the entry points to nothing.
            self.armed = unsafe { queue.push(&poll.user_data(SOCKETS)) }.is_ok();
        }
        while !queue.is_full()
            && let Some(slot) = self.ready.pop_front()
        {
            let Some(flight) = self.flights.get_mut(slot).and_then(Option::as_mut) else { continue };
            let entry = flight.entry().user_data(slot as u64);
            // SAFETY: the entry points into `flight`, which stays until its completion has been seen.
            if unsafe { queue.push(&entry) }.is_err() {
                self.ready.push_front(slot);
                break;
            }
        }
    }

    /// Takes completions out of the ring.
    fn reap(&mut self) {
        while let Some(entry) = self.ring.completion().next() {
            if entry.user_data() == SOCKETS {
                // Whatever it says: looking does no harm.
                (self.armed, self.sockets_ready) = (false, true);
                continue;
            }
            let slot = entry.user_data() as usize;
            let Some(flight) = self.flights.get_mut(slot).and_then(Option::as_mut) else { continue };
            match flight.completed(entry.result()) {
                None => self.ready.push_back(slot),
                Some(result) => self.done.push_back((slot, result)),
            }
        }
    }

    /// Next operation that is done.
    pub(super) fn next_done(&mut self) -> Option<(DiskOpId, DiskResult)> {
        let (slot, result) = self.done.pop_front()?;
        let flight = self.flights.get_mut(slot)?.take()?;
        self.free.push(slot);
        if let Some(next) = self.waiting.pop_front() {
            self.admit(next);
        }
        Some((flight.id, result.map(|()| flight.work.outcome())))
    }
}

impl Drop for Uring {
    /// Waits for what the kernel still has: it writes into our memory.
    fn drop(&mut self) {
        // What was never handed over, or is done, is not waited for.
        for slot in self.ready.drain(..).chain(self.done.drain(..).map(|(slot, _)| slot)) {
            self.flights[slot] = None;
        }
        while self.flights.iter().any(Option::is_some) {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // Nobody can tell when the kernel is done: the memory must stay.
                    std::mem::forget(std::mem::take(&mut self.flights));
                    return;
                }
            }
            while let Some(entry) = self.ring.completion().next() {
                if let Some(flight) = self.flights.get_mut(entry.user_data() as usize) {
                    *flight = None;
                }
            }
        }
    }
}

impl Flight {
    /// What the kernel is to do (further).
    fn entry(&mut self) -> squeue::Entry {
        let (fd, progress) = (types::Fd(self.file.as_raw_fd()), self.progress);
        match &mut self.work {
            Work::Read { offset, buffer } => {
                let rest = buffer.as_mut_slice().get_mut(progress..).unwrap_or_default();
                let len = rest.len() as u32;
                opcode::Read::new(fd, rest.as_mut_ptr(), len).offset(*offset + progress as u64).build()
            }
            Work::Write { offset, data, vectors, .. } => {
                let at = *offset + progress as u64;
                if let ([part], 0) = (data.as_slice(), progress) {
                    return opcode::Write::new(fd, part.as_ptr(), part.len() as u32).offset(at).build();
                }
                let vectors = &mut vectors.0;
                vectors.clear();
                let mut skip = progress;
                for part in data.iter() {
                    let rest = part.get(skip.min(part.len())..).unwrap_or_default();
                    skip -= part.len() - rest.len();
                    if !rest.is_empty() {
                        vectors.push(libc::iovec {
                            iov_base: rest.as_ptr().cast_mut().cast(),
                            iov_len: rest.len(),
                        });
                    }
                }
                opcode::Writev::new(fd, vectors.as_ptr(), vectors.len() as u32).offset(at).build()
            }
            Work::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Work::Fallocate { offset, len, flags } => {
                opcode::Fallocate::new(fd, *len).offset(*offset).mode(flags.bits().cast_signed()).build()
            }
        }
    }

    /// Takes the kernel's answer; `None` if there is more to do.
    fn completed(&mut self, answer: i32) -> Option<Result<(), DiskError>> {
        if answer < 0 {
            let error = io::Error::from_raw_os_error(-answer);
            return match -answer {
                libc::EINTR | libc::EAGAIN => None,
                errno if matches!(self.work, Work::Fallocate { .. }) => {
                    let result = space_result(Err(rustix::io::Errno::from_raw_os_error(errno)));
                    Some(result.map(|_| ()))
                }
                _ => Some(Err(disk_error(&error))),
            };
        }
        let n = answer.unsigned_abs() as usize;
        match &mut self.work {
            Work::Read { buffer, .. } => {
                self.progress += n;
                if n == 0 {
                    // Past the end of the file there are zeros.
                    buffer.as_mut_slice().get_mut(self.progress..).unwrap_or_default().fill(0);
                    return Some(Ok(()));
                }
                (self.progress >= buffer.len()).then_some(Ok(()))
            }
            Work::Write { len, .. } => {
                self.progress += n;
                match (self.progress >= *len, n) {
                    (true, _) => Some(Ok(())),
                    (false, 0) => Some(Err(DiskError::Io)),
                    (false, _) => None,
                }
            }
            Work::Sync | Work::Fallocate { .. } => Some(Ok(())),
        }
    }
}

impl Work {
    fn outcome(self) -> DiskDone {
        match self {
            Self::Read { buffer, .. } => DiskDone::Read(buffer.freeze()),
            _ => DiskDone::Done,
        }
    }
}

const _: () = assert!(ALIGNMENT.is_multiple_of(SECTOR));
