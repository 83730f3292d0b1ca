//! Each way in which a disk fails has its result, and none of them costs what was flushed.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;
use support::crash::*;
use support::cuts::Step;
use support::script::*;
use support::*;

use sheep_store::*;
use sheep_types::{BLOCK_SIZE, ObjectId};

const DONE: Result<Outcome, StoreError> = Ok(Outcome::Done);

fn change(n: u32, sequence: u64, create: bool, start: u32, len: u32) -> Op {
    match write(n, sequence, create, start, len) {
        Step::Do(op) => op,
        other => panic!("{other:?}"),
    }
}

/// A disk operation that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Write(DiskError),
    Sync,
    Read,
    ShortRead,
    Allocate(DiskError),
}

impl Fault {
    fn concerns(self, kind: &DiskOpKind) -> bool {
        match self {
            Self::Write(_) => matches!(kind, DiskOpKind::Write { .. }),
            Self::Sync => matches!(kind, DiskOpKind::Sync { .. }),
            Self::Read | Self::ShortRead => matches!(kind, DiskOpKind::Read { .. }),
            Self::Allocate(_) => matches!(kind, DiskOpKind::Allocate { .. }),
        }
    }

    fn result(self, real: DiskResult) -> DiskResult {
        match (self, real) {
            (Self::Write(error) | Self::Allocate(error), _) => Err(error),
            (Self::ShortRead, Ok(DiskDone::Read(bytes))) => {
                Ok(DiskDone::Read(bytes.slice(..bytes.len() / 2)))
            }
            _ => Err(DiskError::Io),
        }
    }
}

/// Runs all that the store wants; the operation number `at` of those that `fault` concerns goes wrong.
struct Faulty {
    fault: Fault,
    at: u64,
    had: u64,
}

impl Faulty {
    fn pump(&mut self, b: &mut Bench) {
        while let Some(op) = b.store.poll_disk() {
            let id = op.id;
            let mut hit = false;
            if self.fault.concerns(&op.kind) {
                hit = self.had == self.at;
                self.had += 1;
            }
            // A write that fails may have happened, or not: it stays unsynced.
            let failed_write = hit && matches!(self.fault, Fault::Write(_));
            b.disk.set_fail_writes(failed_write);
            let real = b.disk.run(op);
            b.disk.set_fail_writes(false);
            b.store.handle_disk(id, if hit { self.fault.result(real) } else { real });
            while let Some(event) = b.store.poll_event() {
                b.events.push(event);
            }
        }
    }
}

/// Does the script with one failure; gives whether it came to it. The store must fail with `error`, and what was
/// flushed must be there when it is opened again.
fn fails_at(fault: Fault, at: u64, error: DiskError) -> bool {
    let mut b = Bench::new(config());
    let mut history = History::new(Model::new());
    let mut faulty = Faulty { fault, at, had: 0 };
    for step in script() {
        match step {
            Step::Do(op) => history.submit(&mut b, op),
            Step::Settle | Step::Moves(_) => faulty.pump(&mut b),
        }
        let failed = b.events.iter().position(|e| matches!(e, Event::Failed(_)));
        if let Some(i) = failed {
            assert_eq!(b.events.remove(i), Event::Failed(error.into()), "{fault:?} {at}");
            b.events.retain(|e| !matches!(e, Event::Done { result: Err(StoreError::Failed), .. }));
            assert!(b.store.poll_disk().is_none(), "it goes on");
            assert_eq!(b.run(Op::Flush), Err(StoreError::Failed));
            assert_eq!(b.run(change(0, 1, true, 0, 1)), Err(StoreError::Failed));
            history.take_answers(&mut b);
            for seed in 0..4 {
                let mut disk = b.disk.clone();
                disk.crash_seeded(seed);
                let (_, contents) = open_and_read(disk, &config()).unwrap();
                history.find(&Ok(contents)).unwrap_or_else(|e| panic!("{fault:?} {at}: {e}"));
            }
            return true;
        }
        history.take_answers(&mut b);
    }
    false
}

#[test]
fn every_write_may_fail() {
    for error in [DiskError::Io, DiskError::ReadOnly, DiskError::NoSpace] {
        let at = (0..1000).find(|at| !fails_at(Fault::Write(error), *at, error)).unwrap();
        assert!(at > 100, "{at} writes");
    }
}

#[test]
fn every_sync_may_fail() {
    let at = (0..1000).find(|at| !fails_at(Fault::Sync, *at, DiskError::Io)).unwrap();
    assert!(at > 40, "{at} syncs");
}

#[test]
fn a_reservation_that_fails_for_another_reason_than_space_ends_the_store() {
    for error in [DiskError::Io, DiskError::ReadOnly] {
        // The first reservation is that of making the store.
        let mut b = Bench::open(VirtualDisk::new(CAPACITY), config(), true);
        let mut faulty = Faulty { fault: Fault::Allocate(error), at: 1, had: 0 };
        faulty.pump(&mut b);
        assert_eq!(b.events, [Event::Ready, Event::Failed(error.into())]);
    }
}

/// A store at the end of the script, closed.
fn closed() -> (VirtualDisk, Model) {
    let mut b = Bench::new(config());
    for step in script() {
        if let Step::Do(op) = step {
            drop(b.run(op));
        }
    }
    b.flush();
    let contents = b.contents().unwrap();
    b.disk.crash_seeded(0);
    (b.disk, contents)
}

#[test]
fn every_read_of_a_start_up_may_fail() {
    let (disk, want) = closed();
    let (mut refused, mut fine) = (0, 0);
    for fault in [Fault::Read, Fault::ShortRead] {
        for at in 0..200 {
            let mut b = Bench::open(disk.clone(), config(), false);
            let mut faulty = Faulty { fault, at, had: 0 };
            faulty.pump(&mut b);
            match b.events.remove(0) {
                // One copy of the superblock is enough, and data is not needed to start.
                Event::Ready => {
                    assert_eq!(b.contents().unwrap(), want);
                    fine += 1;
                }
                Event::Failed(error) => {
                    assert_eq!(error, StoreError::Disk(DiskError::Io), "{fault:?} {at}");
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
            // The medium is as it was: the next start-up works.
            let (_, contents) = open_and_read(b.disk, &config()).unwrap();
            assert_eq!(contents, want);
            if faulty.had <= at {
                break;
            }
        }
    }
    assert!(refused > 6 && fine >= 8, "{refused} {fine}");
}

#[test]
fn a_read_that_fails_fails_alone() {
    let (disk, want) = closed();
    for fault in [Fault::Read, Fault::ShortRead] {
        // All maps are in memory: without one of those the store can't go on.
        let config = StoreConfig { page_cache: 0, map_cache: 1 << 20, ..config() };
        let (mut b, _) = open_and_read(disk.clone(), &config).unwrap();
        let (mut lost, mut at) = (0, 0);
        let cells =
            want.iter().flat_map(|(id, (_, c))| c.iter().enumerate().map(|(i, c)| (*id, i as u32, *c)));
        for (id, block, cell) in cells {
            let read = Op::Read { object: id, offset: block * BLOCK_SIZE, len: BLOCK_SIZE };
            loop {
                let token = b.submit(read.clone());
                let mut faulty = Faulty { fault, at, had: 0 };
                faulty.pump(&mut b);
                match b.result(token).unwrap() {
                    Ok(Outcome::Read(result)) => {
                        assert_eq!(support::cells(&result, block * BLOCK_SIZE), [cell]);
                    }
                    // The data, or the page with its checksum.
                    Err(
                        StoreError::Unreadable { object, block: b }
                        | StoreError::Corrupt { object, block: b },
                    ) => {
                        assert_eq!((object, b), (id, block));
                        lost += 1;
                    }
                    other => panic!("{other:?}"),
                }
                if faulty.had <= at {
                    at = 0;
                    break;
                }
                at += 1;
            }
        }
        assert!(lost > 40, "{lost}");
        assert_eq!(b.contents().unwrap(), want);
    }
}

/// Every kind of write that needs space, on an object that is there.
fn writes_that_need_space(sequence: u64) -> Vec<Op> {
    let body = |len: u64| data(&(0..len).map(|i| sequence << 8 | i).collect::<Vec<_>>());
    let piece = |start: u32| Piece { offset: start * BLOCK_SIZE, body: body(16 - u64::from(start)) };
    vec![
        change(3, sequence, false, 0, BLOCKS),
        change(3, sequence + 1, true, 0, BLOCKS),
        Op::Replace { header: header(3, sequence + 2), pieces: vec![piece(0)] },
        Op::Patch { header: header(3, sequence + 3), pieces: vec![piece(1)] },
    ]
}

/// Fills a store until nothing that needs as much as an object fits, whatever is tried; gives how many there are.
fn fill(b: &mut Bench) -> u32 {
    let (mut n, mut refused) = (0, 0);
    while refused < 4 {
        match b.run(change(n, 1, true, 0, BLOCKS)) {
            DONE => n += 1,
            Err(StoreError::NoSpace) => refused += 1,
            other => panic!("{other:?}"),
        }
        b.flush();
    }
    n
}

#[test]
fn without_space_objects_stay_as_they_are() {
    for filesystem in [false, true] {
        let mut b = Bench::new(config());
        if filesystem {
            b.disk.set_capacity(6 << 20);
        }
        fill(&mut b);
        b.flush();
        let before = b.contents().unwrap();
        for op in writes_that_need_space(50) {
            assert_eq!(b.run(op.clone()), Err(StoreError::NoSpace), "{op:?}");
        }
        b.flush();
        assert!(b.contents().unwrap() == before, "something has changed");
        // Header changes, clones, zeros and deletions need no space for data.
        b.ok(Op::SetHeader { header: header(2, 60) });
        b.ok(Op::CloneBlocks { from: object(1), header: header(9000, 61) });
        b.ok(Op::Write {
            header: header(4, 62),
            create: false,
            offset: 0,
            body: Body::Zero { len: BLOCKS * BLOCK_SIZE },
        });
        b.ok(Op::Delete { object: object(5) });
        b.ok(Op::Delete { object: object(6) });
        // And with what they freed writes go on.
        b.ok(change(3, 70, false, 0, BLOCKS));
        b.flush();
        let contents = b.contents().unwrap();
        let mut b = b.reopen(config(), 0);
        assert!(b.contents().unwrap() == contents, "something is lost");
        if filesystem {
            // More space makes room without a restart.
            fill(&mut b);
            b.disk.set_capacity(CAPACITY);
            let ok = (0..40).filter(|i| b.run(change(500 + i, 1, true, 0, BLOCKS)) == DONE).count();
            assert!(ok >= 39, "{ok} of 40");
        }
    }
}

#[test]
fn zeros_free_space_and_so_do_deletions() {
    let mut b = Bench::new(config());
    let empty = b.store.usage().used;
    for n in 0..100 {
        b.ok(change(n, 1, true, 0, BLOCKS));
    }
    b.flush();
    let full = b.store.usage().used;
    assert!(full - empty >= 100 * u64::from(BLOCKS * BLOCK_SIZE));
    // A clone shares its blocks: they are free when both are gone.
    b.ok(Op::CloneBlocks { from: object(0), header: header(100, 1) });
    for n in 0..50 {
        b.ok(Op::Write {
            header: header(n, 2),
            create: false,
            offset: 0,
            body: Body::Zero { len: BLOCKS * BLOCK_SIZE },
        });
    }
    for n in 50..99 {
        b.ok(Op::Delete { object: object(n) });
    }
    // What a batch frees is free when the next is durable, and pages when there were two checkpoints.
    for i in 0..64 {
        b.ok(Op::SetHeader { header: header(99, 3 + i) });
        b.flush();
    }
    let left = b.store.usage().used - empty;
    let data = 2 * u64::from(BLOCKS * BLOCK_SIZE);
    // A page for each object that is left, and the checkpoint.
    let most = data + (52 + 20) * u64::from(BLOCK_SIZE);
    assert!((data..most).contains(&left), "{left} for {data}");
    assert_eq!(b.read(3, 0, 2).unwrap(), [Cell::Zero, Cell::Zero]);
    assert_eq!(b.read(100, 0, 1).unwrap(), [Cell::Data(1 << 8)]);
    assert_eq!(b.store.header(object(60)), None);
}

#[test]
fn a_store_that_is_left_alone_gives_space_back() {
    let mut b = Bench::new(config());
    let empty = b.store.usage().used;
    for n in 0..50 {
        b.ok(change(n, 1, true, 0, BLOCKS));
    }
    b.flush();
    let full = b.store.usage().used - empty;
    for n in 0..50 {
        b.ok(Op::Delete { object: object(n) });
    }
    // Nobody flushes, and nothing else happens.
    b.settle();
    let left = b.store.usage().used - empty;
    assert!(left < config().commit_bytes / 4 + u64::from(BLOCKS * BLOCK_SIZE), "{left} of {full}");
    let commits = b.store.stats().commits;
    b.settle();
    assert_eq!(b.store.stats().commits, commits, "it rests");
}

#[test]
fn a_disk_that_hangs_holds_up_what_needs_it_and_nothing_else() {
    let mut b = Bench::new(config());
    b.ok(change(1, 1, true, 0, BLOCKS));
    b.ok(change(2, 1, true, 0, BLOCKS));
    b.flush();
    // The disk takes everything and does nothing.
    let slow = b.submit(Op::Read { object: object(1), offset: 0, len: BLOCK_SIZE });
    b.begin_all();
    let writes: Vec<u64> = (0..5).map(|i| b.submit(change(2, 2 + i, false, i as u32, 1))).collect();
    let flush = b.submit(Op::Flush);
    b.begin_all();
    let mut later = Vec::new();
    for i in 0..5 {
        later.push(b.submit(change(3, 2 + i, i == 0, i as u32, 1)));
        later.push(b.submit(Op::Read { object: object(3), offset: i as u32 * BLOCK_SIZE, len: BLOCK_SIZE }));
        b.begin_all();
    }
    assert!(writes.iter().all(|t| b.result(*t) == Some(DONE)), "writes are in memory");
    assert!(
        later.iter().all(|t| matches!(b.result(*t), Some(Ok(_)))),
        "what is in memory is read from there"
    );
    assert_eq!((b.result(slow), b.result(flush)), (None, None));
    assert!(!b.under_way.is_empty() && !b.store.is_idle());
    // It answers after all, the newest first.
    loop {
        b.begin_all();
        let newest = b.under_way.len().wrapping_sub(1);
        if !b.finish_one(newest) {
            break;
        }
    }
    assert_eq!(b.result(flush), Some(DONE));
    let Some(Ok(Outcome::Read(result))) = b.result(slow) else { panic!("no answer") };
    assert_eq!(cells(&result, 0), [Cell::Data(1 << 8)]);
    let ids: Vec<ObjectId> = b.store.objects(ObjectId(0)).map(|h| h.id).collect();
    assert_eq!(ids, [object(1), object(2), object(3)]);
}

/// A store with objects whose maps are in pages only, and one of those pages.
fn with_a_cold_map() -> (Bench, DiskOp, u64) {
    let mut b = Bench::new(StoreConfig { map_cache: 0, ..config() });
    let mut sequence = 0;
    while b.store.stats().checkpoints < 3 {
        for n in 0..3 {
            for start in (0..BLOCKS).step_by(2) {
                sequence += 1;
                let create = b.store.header(object(n)).is_none();
                b.ok(change(n, sequence, create, start, 1));
            }
            b.flush();
        }
    }
    b.settle();
    let token = b.submit(Op::Read { object: object(0), offset: 0, len: BLOCK_SIZE });
    let op = b.store.poll_disk().unwrap();
    assert!(matches!(op.kind, DiskOpKind::Read { .. }), "{op:?}");
    (b, op, token)
}

fn run(b: &mut Bench, op: DiskOp) {
    let id = op.id;
    let result = b.disk.run(op);
    b.store.handle_disk(id, result);
    b.collect();
}

#[test]
fn operations_wait_for_a_map_in_the_order_in_which_they_came() {
    let (mut b, op, token) = with_a_cold_map();
    // Behind the read: a change of the same object, one of another, and a flush.
    let others =
        [change(0, 5000, false, 0, 1), change(1, 5001, false, 3, 1), Op::Flush].map(|op| b.submit(op));
    let answers = |b: &Bench| b.events.iter().filter(|e| matches!(e, Event::Done { .. })).count();
    let ahead: Vec<DiskOp> = std::iter::from_fn(|| b.store.poll_disk()).collect();
    assert_eq!(ahead.len(), 1, "the map of the other object is read ahead: {ahead:?}");
    // The map of the second comes first, and nothing is done all the same.
    ahead.into_iter().for_each(|op| run(&mut b, op));
    assert_eq!(answers(&b), 0);
    run(&mut b, op);
    b.settle();
    let Some(Ok(Outcome::Read(result))) = b.result(token) else { panic!("no answer") };
    assert!(result.version.sequence < 5000);
    assert!(others.into_iter().all(|token| b.result(token) == Some(DONE)));
}

#[test]
fn a_lost_map_page_ends_the_store_and_everything_that_waits() {
    for damaged in [false, true] {
        let (mut b, op, token) = with_a_cold_map();
        let write = b.submit(change(1, 5000, false, 0, 1));
        let result = if damaged { Ok(DiskDone::Read(vec![7; BLOCK].into())) } else { Err(DiskError::Io) };
        b.store.handle_disk(op.id, result);
        b.collect();
        assert_eq!(b.result(token), Some(Err(StoreError::Failed)));
        assert_eq!(b.result(write), Some(Err(StoreError::Failed)));
        let why = if damaged { StoreError::CheckpointCorrupt } else { StoreError::Disk(DiskError::Io) };
        assert!(b.events.contains(&Event::Failed(why)), "{:?}", b.events);
    }
}
