use super::*;
use bytes::Bytes;
use mio::{Events, Poll, Token, Waker};
use sheep_store::{DiskDone, DiskError, FileId};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const WAKE: Token = Token(0);

/// A directory that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("sheep-disk-{}-{number}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A driver with what it needs around it.
struct Rig {
    poll: Poll,
    inbox: crate::inbox::Inbox<DataMessage>,
    driver: DiskDriver,
    results: BTreeMap<DiskOpId, DiskResult>,
    last: u64,
}

impl Rig {
    fn new(dir: &std::path::Path, mode: DiskMode) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).unwrap());
        let (sender, inbox) = crate::inbox::inbox(waker);
        let pool = BufferPool::new(1 << 20);
        let mut driver = DiskDriver::new(mode, pool, poll.as_raw_fd(), &sender).unwrap();
        driver.attach(0, dir.to_path_buf());
        let mut rig = Self { poll, inbox, driver, results: BTreeMap::new(), last: 0 };
        let open = rig.start(DiskOpKind::Open { file: FileId::BLOCKS, create: true });
        assert_eq!(rig.results.remove(&open), Some(Ok(DiskDone::Opened)));
        rig
    }

    fn start(&mut self, kind: DiskOpKind) -> DiskOpId {
        self.last += 1;
        let id = DiskOpId(self.last);
        if let Started::Done(id, result) = self.driver.start(DiskOp { id, kind }) {
            self.results.insert(id, result);
        }
        id
    }

    fn wait(&mut self, id: DiskOpId) -> DiskResult {
        let mut events = Events::with_capacity(8);
        for _ in 0..1000 {
            if let Some(result) = self.results.remove(&id) {
                return result;
            }
            // Results may be late, but not missing: the time limit is for a broken driver only.
            let patience = Duration::from_secs(10);
            if self.driver.wait(patience).unwrap().is_none()
                && let Err(problem) = self.poll.poll(&mut events, Some(patience))
            {
                // A ring that the thread used before may still have something to do.
                assert_eq!(problem.kind(), std::io::ErrorKind::Interrupted);
            }
            while let Some((id, result)) = self.driver.next_done() {
                self.results.insert(id, result);
            }
            self.inbox.begin();
            while let Some(message) = self.inbox.next() {
                if let DataMessage::Disk(id, result) = message {
                    self.results.insert(id, result);
                }
            }
        }
        panic!("no result");
    }

    fn run(&mut self, kind: DiskOpKind) -> DiskResult {
        let id = self.start(kind);
        self.wait(id)
    }
}

fn modes() -> [DiskMode; 3] {
    [(true, true), (false, true), (false, false)].map(|(direct, uring)| DiskMode { direct, uring })
}

fn write(offset: u64, data: Vec<Bytes>) -> DiskOpKind {
    DiskOpKind::Write { file: FileId::BLOCKS, offset, data }
}

fn read(offset: u64, len: u32) -> DiskOpKind {
    DiskOpKind::Read { file: FileId::BLOCKS, offset, len }
}

fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}

#[test]
fn what_was_written_is_read_whatever_its_address_in_memory() {
    for mode in modes() {
        let dir = Scratch::new();
        let mut rig = Rig::new(&dir.0, mode);
        // Off any alignment on purpose.
        let odd = Bytes::from([vec![0], block(1), block(2)].concat()).slice(1..);
        assert_eq!(rig.run(write(8192, vec![odd])), Ok(DiskDone::Done));
        let parts = vec![Bytes::from(block(3)), Bytes::from(block(4))];
        assert_eq!(rig.run(write(0, parts)), Ok(DiskDone::Done));
        assert_eq!(rig.run(DiskOpKind::Sync { file: FileId::BLOCKS }), Ok(DiskDone::Done));
        let expected = [block(3), block(4), block(1), block(2), block(0)].concat();
        // One block past the end of the file.
        assert_eq!(rig.run(read(0, 5 * 4096)), Ok(DiskDone::Read(expected.into())), "{mode:?}");
    }
}

#[test]
fn more_operations_than_the_kernel_takes_at_once_are_all_done() {
    for mode in modes() {
        let dir = Scratch::new();
        let mut rig = Rig::new(&dir.0, mode);
        let writes: Vec<_> = (0..1000u64)
            .map(|n| rig.start(write(n * 4096, vec![Bytes::from(block((n % 251) as u8))])))
            .collect();
        for id in writes {
            assert_eq!(rig.wait(id), Ok(DiskDone::Done));
        }
        let reads: Vec<_> = (0..1000u64).map(|n| (n, rig.start(read(n * 4096, 4096)))).collect();
        for (n, id) in reads {
            assert_eq!(
                rig.wait(id),
                Ok(DiskDone::Read(block((n % 251) as u8).into())),
                "block {n}, {mode:?}"
            );
        }
    }
}

#[test]
fn space_is_reserved_and_given_back() {
    for mode in modes() {
        let dir = Scratch::new();
        let mut rig = Rig::new(&dir.0, mode);
        let (file, len) = (FileId::BLOCKS, 1 << 20);
        assert_eq!(rig.run(DiskOpKind::Allocate { file, offset: 0, len }), Ok(DiskDone::Done));
        assert_eq!(rig.run(write(4096, vec![Bytes::from(block(7))])), Ok(DiskDone::Done));
        let punched = rig.run(DiskOpKind::Punch { file, offset: 0, len });
        if punched == Ok(DiskDone::Done) {
            assert_eq!(rig.run(read(4096, 4096)), Ok(DiskDone::Read(block(0).into())));
        }
    }
}

#[test]
fn a_failing_operation_says_so() {
    for mode in modes() {
        let dir = Scratch::new();
        let mut rig = Rig::new(&dir.0, mode);
        // Beyond what any filesystem allows a file to be.
        let result = rig.run(write(i64::MAX as u64 & !4095, vec![Bytes::from(block(1))]));
        assert_eq!(result, Err(DiskError::Io), "{mode:?}");
    }
}

#[test]
fn a_disk_is_not_opened_again_while_something_of_its_last_opening_is_under_way() {
    let dir = Scratch::new();
    let mut rig = Rig::new(&dir.0, DiskMode { direct: true, uring: true });
    let late = rig.start(write(0, vec![Bytes::from(block(1))]));
    rig.driver.detach(0);
    rig.driver.attach(0, dir.0.clone());
    let open = DiskOpKind::Open { file: FileId::BLOCKS, create: false };
    assert_eq!(rig.run(open.clone()), Err(DiskError::Io));
    assert_eq!(rig.wait(late), Ok(DiskDone::Done));
    assert_eq!(rig.run(open), Ok(DiskDone::Opened));
}

#[test]
fn dropping_a_driver_with_operations_under_way_waits_for_them() {
    for mode in modes() {
        let dir = Scratch::new();
        let mut rig = Rig::new(&dir.0, mode);
        for n in 0..300u64 {
            rig.start(write(n * 4096, vec![Bytes::from(block(1))]));
            rig.start(read(n * 4096, 4096));
        }
        rig.driver.wait(Duration::ZERO).unwrap();
    }
}

#[test]
fn a_ready_socket_ends_the_wait_of_the_ring() {
    let dir = Scratch::new();
    let mut rig = Rig::new(&dir.0, DiskMode { direct: true, uring: true });
    if rig.driver.wait(Duration::ZERO).unwrap().is_none() {
        return; // A machine without io_uring.
    }
    let (mut ours, mut theirs) = mio::net::UnixStream::pair().unwrap();
    rig.poll.registry().register(&mut ours, Token(7), mio::Interest::READABLE).unwrap();
    let mut events = Events::with_capacity(8);
    for _ in 0..3 {
        assert_eq!(rig.driver.wait(Duration::from_millis(1)).unwrap(), Some(false));
        theirs.write_all(b"x").unwrap();
        assert_eq!(rig.driver.wait(Duration::from_secs(10)).unwrap(), Some(true));
        rig.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.iter().any(|event| event.token() == Token(7)));
    }
}
