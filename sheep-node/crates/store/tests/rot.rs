//! Damage to any one block of a closed store: found and named, or without effect; never wrong data.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;
use support::*;

use bytes::Bytes;
use sheep_store::*;
use sheep_types::{BLOCK_SIZE, ObjectId};
use std::collections::BTreeSet;

/// A closed store with everything in it: maps in pages and in runs, clones, deltas, batches since the checkpoint,
/// what old checkpoints left behind. Its newest batch is one of an opening, so that no data is in doubt.
fn closed() -> (VirtualDisk, Model) {
    let mut rng = Rng(4);
    let mut b = Bench::new(config());
    let mut sequence = 0;
    while b.store.stats().checkpoints < 3 || b.store.usage().objects < 5 || sequence < 150 {
        sequence += 1;
        drop(b.run(random_op(&mut rng, 6, sequence)));
        if rng.one_in(2) {
            b.flush();
        }
    }
    // Batches after the checkpoint.
    for n in 0..5 {
        b.ok(Op::Write {
            header: header(n, 900 + u64::from(n)),
            create: b.store.header(object(n)).is_none(),
            offset: n * BLOCK_SIZE,
            body: data(&[1 << 40 | u64::from(n)]),
        });
        b.flush();
    }
    assert!(b.store.stats().pages > 10);
    let mut b = b.reopen(config(), 1);
    let want = b.contents().unwrap();
    b.disk.crash_seeded(1);
    (b.disk, want)
}

/// What a block is, as far as its bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Superblock,
    Batch,
    Chunk,
    /// Data under this tag.
    Data(u64),
    /// A page, or what is left of something.
    Other,
}

fn kind(place: u64, bytes: &[u8]) -> Kind {
    let tag = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    match &bytes[..4] {
        _ if place == 0 || place == 8 => Kind::Superblock,
        b"ShBt" => Kind::Batch,
        b"ShCk" => Kind::Chunk,
        _ if bytes.chunks(8).all(|c| c == tag.to_le_bytes()) => Kind::Data(tag),
        _ => Kind::Other,
    }
}

#[derive(Debug, Default)]
struct Seen {
    harmless: u64,
    refused: u64,
    blocks_named: u64,
}

/// Opens what is left; `damaged` are the blocks that were changed.
fn check(disk: VirtualDisk, want: &Model, damaged: &[Kind], seen: &mut Seen) {
    let mut b = Bench::open(disk, config(), false);
    b.settle();
    match b.events.remove(0) {
        Event::Ready => {}
        Event::Failed(error) => {
            seen.refused += 1;
            let fits = match error {
                StoreError::LogCorrupt => damaged.contains(&Kind::Batch),
                StoreError::CheckpointCorrupt => {
                    damaged.contains(&Kind::Chunk) || damaged.contains(&Kind::Other)
                }
                StoreError::SuperblockCorrupt => {
                    damaged.iter().filter(|k| **k == Kind::Superblock).count() == 2
                }
                _ => false,
            };
            assert!(fits, "{error} for {damaged:?}");
            return;
        }
        other => panic!("{other:?}"),
    }
    let headers: BTreeSet<ObjectId> = b.store.objects(ObjectId(0)).map(|h| h.id).collect();
    assert_eq!(headers, want.keys().copied().collect(), "{damaged:?}");
    let mut named = 0;
    let lost = |cells: &[Cell]| cells.iter().filter(|cell| matches!(cell, Cell::Lost(_))).count() as u32;
    let lost: Vec<_> = want.iter().map(|(id, (_, cells))| (*id, lost(cells))).filter(|l| l.1 > 0).collect();
    assert_eq!(b.store.lost().clone().into_iter().collect::<Vec<_>>(), lost, "{damaged:?}");
    for (id, (header, cells)) in want {
        assert_eq!(b.store.header(*id), Some(header));
        for (at, cell) in cells.iter().enumerate() {
            let hit = matches!(cell, Cell::Data(tag) if damaged.contains(&Kind::Data(*tag)));
            match b.read(id.index(), at as u32, 1) {
                Ok(got) => assert!(got[0] == *cell && !hit, "{damaged:?}: {got:?} for {cell:?}"),
                Err(StoreError::Corrupt { object, block }) if matches!(cell, Cell::Lost(_)) => {
                    assert_eq!((object, block), (*id, at as u32));
                }
                Err(StoreError::Corrupt { object, block }) => {
                    assert_eq!((object, block), (*id, at as u32));
                    // Either the block itself, or the page with its checksum.
                    assert!(hit || damaged.contains(&Kind::Other), "{damaged:?}: block {block} of {object}");
                    named += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
    seen.blocks_named += named;
    seen.harmless += u64::from(named == 0);
    // What is damaged can be written anew.
    for (id, (header, _)) in want {
        let op = Op::Write { header: *header, create: true, offset: 0, body: data(&[3]) };
        b.ok(op);
        assert_eq!(b.read(id.index(), 0, 1).unwrap(), [Cell::Data(3)]);
    }
}

#[test]
fn a_flipped_bit_of_any_block_is_named() {
    let (disk, want) = closed();
    let mut seen = Seen::default();
    for place in disk.durable_blocks(FileId::BLOCKS) {
        let bytes = disk.durable(FileId::BLOCKS, place).unwrap();
        // Where the content of every kind of block is, and anywhere.
        for bit in [8 * 24 + 3, (place as usize * 7919) % (8 * 40)] {
            let mut rotten = disk.clone();
            assert!(rotten.rot(FileId::BLOCKS, place, bit));
            check(rotten, &want, &[kind(place, &bytes)], &mut seen);
        }
    }
    println!("{seen:?}");
    assert!(seen.harmless > 20 && seen.refused >= 10 && seen.blocks_named > 50, "{seen:?}");
}

#[test]
fn a_block_of_zeros_is_named() {
    let (disk, want) = closed();
    let mut seen = Seen::default();
    for place in disk.durable_blocks(FileId::BLOCKS) {
        let bytes = disk.durable(FileId::BLOCKS, place).unwrap();
        let mut rotten = disk.clone();
        rotten.overwrite(FileId::BLOCKS, place, Bytes::from(vec![0; BLOCK]));
        check(rotten, &want, &[kind(place, &bytes)], &mut seen);
    }
    println!("{seen:?}");
    assert!(seen.harmless > 10 && seen.refused >= 5 && seen.blocks_named > 20, "{seen:?}");
}

#[test]
fn blocks_that_changed_places_are_named() {
    let (disk, want) = closed();
    let places = disk.durable_blocks(FileId::BLOCKS);
    let mut seen = Seen::default();
    for (i, a) in places.iter().enumerate() {
        for apart in [1, 7, places.len() / 2] {
            let b = places[(i + apart) % places.len()];
            let (bytes_a, bytes_b) =
                (disk.durable(FileId::BLOCKS, *a).unwrap(), disk.durable(FileId::BLOCKS, b).unwrap());
            if bytes_a == bytes_b {
                continue;
            }
            let kinds = [kind(*a, &bytes_a), kind(b, &bytes_b)];
            let mut rotten = disk.clone();
            rotten.overwrite(FileId::BLOCKS, *a, bytes_b);
            rotten.overwrite(FileId::BLOCKS, b, bytes_a);
            check(rotten, &want, &kinds, &mut seen);
        }
    }
    println!("{seen:?}");
    assert!(seen.harmless > 20 && seen.refused > 20 && seen.blocks_named > 100, "{seen:?}");
}

#[test]
fn an_unreadable_block_is_named_too() {
    let (disk, want) = closed();
    let (mut refused, mut unreadable) = (0, 0);
    for place in disk.durable_blocks(FileId::BLOCKS) {
        let mut bad = disk.clone();
        bad.set_unreadable(FileId::BLOCKS, place..place + 1, true);
        let mut b = Bench::open(bad, config(), false);
        b.settle();
        match b.events.remove(0) {
            Event::Ready => {}
            Event::Failed(StoreError::Disk(DiskError::Io)) => {
                refused += 1;
                continue;
            }
            other => panic!("{other:?}"),
        }
        for (id, (_, cells)) in &want {
            for (at, cell) in cells.iter().enumerate() {
                match b.read(id.index(), at as u32, 1) {
                    Ok(got) => assert_eq!(got[0], *cell),
                    Err(StoreError::Unreadable { object, block } | StoreError::Corrupt { object, block }) => {
                        assert_eq!((object, block), (*id, at as u32));
                        unreadable += u32::from(!matches!(cell, Cell::Lost(_)));
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
    assert!(refused > 5 && unreadable > 20, "{refused} {unreadable}");
}
