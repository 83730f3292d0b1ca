//! What each operation does, on a disk that works and on one that does not.

mod support;
use support::*;

use sheep_store::*;
use sheep_types::{BLOCK_SIZE, ClusterId, Geometry, NodeId, ObjectId};

fn write(n: u32, sequence: u64, create: bool, start: u32, tags: &[u64]) -> Op {
    Op::Write { header: header(n, sequence), create, offset: start * BLOCK_SIZE, body: data(tags) }
}

const DONE: Result<Outcome, StoreError> = Ok(Outcome::Done);

#[test]
fn three_states_and_the_header_come_back() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 2, &[10, 11]));
    let zero = Op::Write {
        header: header(1, 2),
        create: false,
        offset: 3 * BLOCK_SIZE,
        body: Body::Zero { len: 2 * BLOCK_SIZE },
    };
    b.ok(zero);
    let want = [Cell::Absent, Cell::Absent, Cell::Data(10), Cell::Zero, Cell::Zero, Cell::Absent];
    assert_eq!(b.read(1, 0, 6).unwrap(), want);
    assert_eq!(b.store.header(object(1)), Some(&header(1, 2)));
    b.flush();
    let mut b = b.reopen(config(), 0);
    assert_eq!(b.read(1, 0, 6).unwrap(), want);
    assert_eq!(b.store.header(object(1)), Some(&header(1, 2)));
    assert_eq!(b.store.usage().objects, 1);
}

#[test]
fn a_write_is_answered_and_read_before_the_disk_has_it() {
    let mut b = Bench::new(config());
    let w = b.submit(write(1, 1, true, 0, &[5]));
    assert_eq!(b.result(w), Some(DONE));
    let r = b.submit(Op::Read { object: object(1), offset: 0, len: 2 * BLOCK_SIZE });
    let Some(Ok(Outcome::Read(result))) = b.result(r) else { panic!("not from memory") };
    assert_eq!(cells(&result, 0), [Cell::Data(5), Cell::Absent]);
    // Parts from memory and from the disk in one read.
    b.settle();
    b.submit(write(1, 2, false, 1, &[6]));
    assert_eq!(b.read(1, 0, 3).unwrap(), [Cell::Data(5), Cell::Data(6), Cell::Absent]);
}

#[test]
fn many_flushes_share_a_sync() {
    let mut b = Bench::new(config());
    b.submit(write(1, 1, true, 0, &[5]));
    b.settle();
    let (_, _, before) = b.disk.counts();
    let tokens: Vec<u64> = (0..20)
        .map(|i| {
            b.submit(write(1, i + 2, false, 0, &[i]));
            b.submit(Op::Flush)
        })
        .collect();
    b.settle();
    assert!(tokens.into_iter().all(|t| b.result(t) == Some(DONE)));
    let (_, _, after) = b.disk.counts();
    assert!(after - before <= 2, "{} syncs", after - before);
    // Nothing to make durable: no sync.
    b.flush();
    assert_eq!(b.disk.counts().2, after);
}

#[test]
fn a_read_sees_one_instant() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 0, &[1, 2, 3, 4]));
    b.flush();
    let r = b.submit(Op::Read { object: object(1), offset: 0, len: 4 * BLOCK_SIZE });
    // The read hangs while everything is overwritten and the space is wanted for other things.
    while b.begin_one() {}
    let slow = b.under_way.pop_front().unwrap();
    for i in 0..200 {
        b.ok(write(1, 10 + i, false, 0, &[100 + i; 4]));
        b.flush();
    }
    let result = b.disk.finish(slow).unwrap();
    b.store.handle_disk(slow, result);
    b.settle();
    while let Some(event) = b.store.poll_event() {
        b.events.push(event);
    }
    let Some(Ok(Outcome::Read(result))) = b.result(r) else { panic!("{:?}", b.events) };
    assert_eq!(cells(&result, 0), [Cell::Data(1), Cell::Data(2), Cell::Data(3), Cell::Data(4)]);
}

#[test]
fn a_clone_is_its_own_object() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 0, &[1, 2, 3]));
    b.ok(Op::CloneBlocks { from: object(1), header: header(2, 5) });
    b.ok(write(1, 2, false, 1, &[20]));
    b.ok(write(2, 6, false, 2, &[30]));
    let check = |b: &mut Bench| {
        assert_eq!(b.read(1, 0, 4).unwrap(), [Cell::Data(1), Cell::Data(20), Cell::Data(3), Cell::Absent]);
        assert_eq!(b.read(2, 0, 4).unwrap(), [Cell::Data(1), Cell::Data(2), Cell::Data(30), Cell::Absent]);
    };
    check(&mut b);
    b.flush();
    let mut b = b.reopen(config(), 0);
    check(&mut b);
    b.ok(Op::Delete { object: object(1) });
    assert_eq!(b.read(1, 0, 1), Err(StoreError::NotFound(object(1))));
    // Blocks that the clone still has are not reused.
    for i in 0..100 {
        b.ok(write(3, 10 + i, i == 0, (i % 16) as u32, &[i]));
        b.flush();
    }
    assert_eq!(b.read(2, 0, 4).unwrap(), [Cell::Data(1), Cell::Data(2), Cell::Data(30), Cell::Absent]);
}

#[test]
fn a_patch_changes_ranges_and_header_at_once() {
    let mut b = Bench::new(config());
    let piece = |start: u32, body: Body| Piece { offset: start * BLOCK_SIZE, body };
    let pieces = vec![
        piece(1, data(&[20])),
        piece(3, Body::Zero { len: BLOCK_SIZE }),
        piece(4, data(&[21, 22])),
        piece(9, data(&[23])),
    ];
    let patch = Op::Patch { header: header(1, 2), pieces: pieces.clone() };
    assert_eq!(b.run(patch.clone()), Err(StoreError::NotFound(object(1))));
    b.ok(write(1, 1, true, 0, &[10, 11, 12, 13, 14]));
    b.flush();
    // Whatever the moment of a power cut: all of it or nothing.
    let token = b.submit(patch);
    b.submit(Op::Flush);
    let before = [10, 11, 12, 13, 14].map(Cell::Data).to_vec();
    let after =
        [Cell::Data(10), Cell::Data(20), Cell::Data(12), Cell::Zero, Cell::Data(21), Cell::Data(22)].to_vec();
    let mut seen = [false; 2];
    loop {
        for seed in 0..8 {
            let mut disk = b.disk.clone();
            disk.crash_seeded(seed);
            let mut cut = Bench::open(disk, config(), false);
            cut.settle();
            let new = cut.store.header(object(1)) == Some(&header(1, 2));
            let cells = cut.read(1, 0, 10).unwrap();
            let mut want = if new { after.clone() } else { before.clone() };
            want.resize(10, Cell::Absent);
            if new {
                want[9] = Cell::Data(23);
            }
            assert_eq!(cells, want);
            seen[usize::from(new)] = true;
        }
        if !b.begin_one() && !b.finish_one(0) {
            break;
        }
    }
    assert_eq!((b.result(token), seen), (Some(DONE), [true; 2]));
    // Pieces out of order change nothing.
    let swapped = Op::Patch { header: header(1, 3), pieces: pieces.into_iter().rev().collect() };
    assert_eq!(b.run(swapped), Err(StoreError::Malformed));
    assert_eq!(b.store.header(object(1)), Some(&header(1, 2)));
}

#[test]
fn malformed_requests_change_nothing() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 0, &[1]));
    let bad = |offset, body| Op::Write { header: header(1, 2), create: true, offset, body };
    let Body::Data { payload, mut crcs } = data(&[7, 8]) else { panic!() };
    for op in [
        bad(512, data(&[1])),
        bad(15 * BLOCK_SIZE, data(&[1, 2])),
        bad(u32::MAX - 4095, data(&[1])),
        bad(0, Body::Zero { len: 100 }),
        bad(0, Body::Data { payload: payload.clone(), crcs: vec![1] }),
        Op::Read { object: object(1), offset: 0, len: 17 * BLOCK_SIZE },
        Op::Read { object: object(1), offset: 1, len: BLOCK_SIZE },
        Op::Replace {
            header: header(1, 2),
            pieces: vec![Piece { offset: 4096, body: data(&[1]) }, Piece { offset: 0, body: data(&[1, 2]) }],
        },
    ] {
        assert_eq!(b.run(op), Err(StoreError::Malformed));
    }
    crcs[1] ^= 1;
    assert_eq!(
        b.run(bad(BLOCK_SIZE, Body::Data { payload, crcs })),
        Err(StoreError::BadChecksum { block: 2 })
    );
    assert_eq!(b.run(write(9, 1, false, 0, &[1])), Err(StoreError::NotFound(object(9))));
    assert_eq!(b.run(Op::SetHeader { header: header(9, 1) }), Err(StoreError::NotFound(object(9))));
    let clone = Op::CloneBlocks { from: object(9), header: header(1, 1) };
    assert_eq!(b.run(clone), Err(StoreError::NotFound(object(9))));
    b.ok(Op::Delete { object: object(9) });
    assert_eq!(b.read(1, 0, 2).unwrap(), [Cell::Data(1), Cell::Absent]);
    assert_eq!(b.store.header(object(1)), Some(&header(1, 1)));
}

#[test]
fn inspect_gives_states_and_checksums() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 2, &[10, 11]));
    b.ok(Op::Write { header: header(1, 2), create: false, offset: 0, body: Body::Zero { len: BLOCK_SIZE } });
    let Ok(Outcome::Inspect(result)) = b.run(Op::Inspect { object: object(1) }) else { panic!() };
    assert_eq!(result.header, header(1, 2));
    let Body::Data { crcs, .. } = data(&[10, 11]) else { panic!() };
    assert_eq!(result.crcs, crcs);
    let states: Vec<_> = result.extents.iter().map(|e| (e.offset / 4096, e.len / 4096, e.state)).collect();
    let (zero, absent, data) = (BlockState::Zero, BlockState::Absent, BlockState::Data);
    assert_eq!(states, [(0, 1, zero), (1, 1, absent), (2, 2, data), (4, 12, absent)]);
}

#[test]
fn a_full_store_reads_deletes_and_flushes() {
    let mut b = Bench::new(config());
    let mut full = None;
    for n in 0..300 {
        match b.run(write(n, 1, true, 0, &[u64::from(n); 16])) {
            DONE => {}
            Err(StoreError::NoSpace) => {
                full = Some(n);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let full = full.expect("never full");
    // Most of 16 MiB is for data: 256 objects of 64 KiB, less the log and what checkpoints may need.
    assert!(full > 230, "{full} objects");
    assert!(b.events.contains(&Event::SpaceLow));
    b.flush();
    assert_eq!(b.run(write(3, 9, false, 0, &[1; 16])), Err(StoreError::NoSpace));
    assert_eq!(b.read(3, 0, 1).unwrap(), [Cell::Data(3)]);
    b.ok(Op::SetHeader { header: header(3, 8) });
    // Overwriting goes on as soon as there is room, and the store survives being full.
    for n in 0..10 {
        b.ok(Op::Delete { object: object(n) });
    }
    for i in 0..100 {
        assert_eq!(b.run(write(50, 10 + i, false, 0, &[i; 16])), DONE, "write {i}");
        b.flush();
    }
    let mut b = b.reopen(config(), 0);
    assert_eq!(b.read(50, 0, 1).unwrap(), [Cell::Data(99)]);
    assert_eq!(b.store.usage().objects, u64::from(full) - 10);
}

#[test]
fn a_full_filesystem_is_no_failure() {
    let mut b = Bench::new(config());
    b.disk.set_capacity(6 << 20);
    let mut n = 0;
    while b.run(write(n, 1, true, 0, &[7; 16])) == DONE {
        n += 1;
    }
    assert_eq!(b.run(write(n, 1, true, 0, &[7; 16])), Err(StoreError::NoSpace));
    b.flush();
    assert_eq!(b.read(0, 0, 1).unwrap(), [Cell::Data(7)]);
    b.disk.set_capacity(CAPACITY);
    // The first attempt still fails or not; soon after the space is found.
    drop(b.run(write(n, 1, true, 0, &[7; 16])));
    b.ok(write(n, 1, true, 0, &[7; 16]));
}

#[test]
fn deleted_space_is_given_back() {
    let mut b = Bench::new(StoreConfig { capacity_limit: Some(64 << 20), ..config() });
    b.disk.set_capacity(64 << 20);
    for n in 0..500 {
        b.ok(write(n, 1, true, 0, &[7; 16]));
    }
    b.flush();
    let before = b.disk.used();
    for n in 0..500 {
        b.ok(Op::Delete { object: object(n) });
    }
    for i in 0..30 {
        b.ok(write(600, i, true, 0, &[i]));
        b.flush();
    }
    assert!(b.disk.used() < before / 2, "{} of {before}", b.disk.used());
    assert!(b.store.usage().used < 1 << 20);
}

#[test]
fn long_writes_get_new_space_before_pieces() {
    // Objects of 1 MiB; every second block of each is written anew, so that all that is free is in pieces.
    let geometry = Geometry::with_object_size(1 << 20).unwrap();
    let config = StoreConfig {
        log_bytes: 4 << 20,
        batch_bytes: 64 << 10,
        commit_bytes: 8 << 20,
        ..StoreConfig::small(geometry, 96 << 20)
    };
    let mut b = Bench::open(VirtualDisk::new(96 << 20), config.clone(), true);
    b.settle();
    let whole: Vec<u64> = (0..256).collect();
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        sequence
    };
    for n in 0..16 {
        b.ok(write(n, next(), true, 0, &whole));
    }
    for i in 0..16 * 128 {
        b.ok(write(i % 16, next(), false, i / 16 * 2, &[7]));
        if i % 64 == 0 {
            b.flush();
        }
    }
    let (mut grown, mut punched) = (0, 0);
    let before = b.disk.counts().0;
    for i in 0..32 {
        // Half of what is there stays, and with it the pieces.
        for op in [write(i % 16, next(), false, 0, &whole[..128 + i as usize / 16 * 128]), Op::Flush] {
            b.submit(op);
            while let Some(op) = b.store.poll_disk() {
                grown += u32::from(matches!(op.kind, DiskOpKind::Allocate { .. }));
                punched += u32::from(matches!(op.kind, DiskOpKind::Punch { .. }));
                let id = op.id;
                let result = b.disk.run(op);
                b.store.handle_disk(id, result);
            }
        }
    }
    // Data, and a batch; little more for checkpoints.
    let writes = b.disk.counts().0 - before;
    assert!(writes < 32 * 3, "{writes} writes for 32 requests");
    assert!((1..=5).contains(&grown) && punched <= 1, "{grown} reservations, {punched} given back");
}

#[test]
fn rot_is_reported_and_never_returned() {
    let mut b = Bench::new(config());
    for i in 0..60 {
        b.ok(write(i % 5, u64::from(i) + 1, i < 5, i % 16, &[u64::from(i)]));
        b.flush();
    }
    let want = b.contents().unwrap();
    let (mut seen, mut lost) = (0, 0);
    for block in b.disk.durable_blocks(FileId::BLOCKS) {
        let mut disk = b.disk.clone();
        disk.rot(FileId::BLOCKS, block, 12345);
        let mut after = Bench::open(disk, config(), false);
        after.settle();
        if !after.events.contains(&Event::Ready) {
            // Damage to the metadata is loud.
            assert!(matches!(after.events[0], Event::Failed(_)), "{:?}", after.events);
            seen += 1;
            continue;
        }
        // Only rot in the newest batch or its data can't be told from a torn write.
        for (id, (header, cells)) in &want {
            for (at, cell) in cells.iter().enumerate() {
                match after.read(id.index(), at as u32, 1) {
                    Ok(got) if got[0] == *cell => {}
                    Ok(_) | Err(StoreError::NotFound(_)) => lost += 1,
                    Err(StoreError::Corrupt { object, block }) => {
                        assert_eq!((object, block), (*id, at as u32));
                        seen += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            assert_eq!(header.id, *id);
        }
    }
    assert!(seen > 20, "{seen} seen");
    assert!(lost <= 2, "{lost} lost silently: at most what the newest batch held, for rot in batch and data");
}

#[test]
fn an_unreadable_block_fails_its_read_only() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 0, &[1, 2]));
    b.ok(write(2, 1, true, 0, &[3]));
    b.flush();
    let used = 16 + 32..10_000;
    b.disk.set_unreadable(FileId::BLOCKS, used.clone(), true);
    assert_eq!(b.read(1, 1, 1), Err(StoreError::Unreadable { object: object(1), block: 1 }));
    b.ok(write(2, 2, false, 0, &[4]));
    b.flush();
    b.disk.set_unreadable(FileId::BLOCKS, used, false);
    assert_eq!(b.read(1, 0, 2).unwrap(), [Cell::Data(1), Cell::Data(2)]);
}

#[test]
fn a_failed_sync_or_write_ends_the_store() {
    for which in 0..3 {
        let mut b = Bench::new(config());
        b.ok(write(1, 1, true, 0, &[1]));
        b.flush();
        match which {
            0 => b.disk.set_fail_syncs(true),
            1 => b.disk.set_fail_writes(true),
            _ => b.disk.set_read_only(true),
        }
        let w = b.submit(write(1, 2, false, 0, &[2]));
        assert_eq!(b.result(w), Some(DONE));
        let f = b.submit(Op::Flush);
        b.settle();
        assert_eq!(b.result(f), Some(Err(StoreError::Failed)));
        let error = if which == 2 { DiskError::ReadOnly } else { DiskError::Io };
        assert_eq!(b.events, [Event::Failed(error.into())]);
        assert_eq!(b.run(Op::Flush), Err(StoreError::Failed));
        assert_eq!(b.read(1, 0, 1), Err(StoreError::Failed));
        assert_eq!(b.run(write(1, 3, false, 0, &[2])), Err(StoreError::Failed));
    }
}

#[test]
fn much_in_flight_holds_answers_back() {
    let config = StoreConfig { inflight_bytes: 3 * 4096, ..config() };
    let mut b = Bench::new(config);
    let tokens: Vec<u64> = (0..6).map(|i| b.submit(write(1, i + 1, i == 0, i as u32, &[i]))).collect();
    let answered = tokens.iter().filter(|t| b.result(**t).is_some()).count();
    assert_eq!(answered, 3);
    b.settle();
    assert!(tokens[3..].iter().all(|t| b.result(*t) == Some(DONE)));
}

fn open_error(
    disk: &VirtualDisk,
    config: StoreConfig,
    identity: StoreIdentity,
    new: bool,
) -> Option<StoreError> {
    let mut disk = disk.clone();
    let mut store = Store::open(config, identity, new);
    while let Some(op) = store.poll_disk() {
        let id = op.id;
        let result = disk.run(op);
        store.handle_disk(id, result);
    }
    match store.poll_event() {
        Some(Event::Ready) => None,
        Some(Event::Failed(error)) => Some(error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_way_to_open_the_wrong_thing_has_its_error() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 0, &[1]));
    b.flush();
    let disk = b.disk;
    let (ours, cfg) = (identity(), config());
    assert_eq!(open_error(&disk, cfg.clone(), ours, false), None);
    // The random number is the store's own.
    assert_eq!(open_error(&disk, cfg.clone(), StoreIdentity { store: 1, ..ours }, false), None);
    let empty = VirtualDisk::new(CAPACITY);
    assert_eq!(open_error(&empty, cfg.clone(), ours, false), Some(StoreError::NotFormatted));
    assert_eq!(open_error(&disk, cfg.clone(), ours, true), Some(StoreError::AlreadyFormatted));
    let other = StoreIdentity { cluster: ClusterId(78), ..ours };
    let found = ours.cluster;
    assert_eq!(open_error(&disk, cfg.clone(), other, false), Some(StoreError::WrongCluster { found }));
    let other = StoreIdentity { node: NodeId(6), ..ours };
    let found = ours.node;
    assert_eq!(open_error(&disk, cfg.clone(), other, false), Some(StoreError::WrongNode { found }));
    let bigger = StoreConfig { geometry: Geometry::default(), ..cfg.clone() };
    assert_eq!(open_error(&disk, bigger, ours, false), Some(StoreError::WrongGeometry { found: 65536 }));
    let tiny = StoreConfig { log_bytes: 4096, ..cfg.clone() };
    assert_eq!(open_error(&empty, tiny, ours, true), Some(StoreError::BadConfig));
    let mut full = VirtualDisk::new(4096);
    full.set_capacity(4096);
    assert_eq!(open_error(&full, cfg.clone(), ours, true), Some(DiskError::NoSpace.into()));
    let mut torn = disk.clone();
    torn.rot(FileId::BLOCKS, 0, 999);
    assert_eq!(open_error(&torn, cfg.clone(), ours, false), None);
    torn.rot(FileId::BLOCKS, 8, 999);
    assert_eq!(open_error(&torn, cfg.clone(), ours, false), Some(StoreError::SuperblockCorrupt));
    assert_eq!(open_error(&torn, cfg, ours, true), Some(StoreError::AlreadyFormatted));
}

#[test]
fn objects_are_listed_from_any_start() {
    let mut b = Bench::new(config());
    for n in [5, 1, 9] {
        b.ok(write(n, u64::from(n), true, 0, &[]));
    }
    let from = |id: ObjectId| b.store.objects(id).map(|h| h.id.index()).collect::<Vec<_>>();
    assert_eq!(from(ObjectId(0)), [1, 5, 9]);
    assert_eq!(from(object(2)), [5, 9]);
    assert_eq!(from(object(9)), [9]);
    assert_eq!(from(object(10)), [0; 0]);
}
