//! Blocks that are lost: errors until they are written, and nothing else is; and what is bad told block by block.

#![allow(clippy::unwrap_used)]

mod support;
use support::*;

use sheep_store::*;
use sheep_types::BLOCK_SIZE;

fn write(n: u32, sequence: u64, create: bool, start: u32, body: Body) -> Op {
    Op::Write { header: header(n, sequence), create, offset: start * BLOCK_SIZE, body }
}

fn patch(n: u32, sequence: u64, pieces: &[(u32, Body)]) -> Op {
    let piece = |(start, body): &(u32, Body)| Piece { offset: start * BLOCK_SIZE, body: body.clone() };
    Op::Patch { header: header(n, sequence), pieces: pieces.iter().map(piece).collect() }
}

/// States of all blocks, as the store tells them.
fn states(b: &mut Bench, n: u32) -> Vec<BlockState> {
    let op = Op::Salvage { object: object(n), offset: 0, len: BLOCKS * BLOCK_SIZE };
    let Ok(Outcome::Read(found)) = b.run(op) else { panic!() };
    let bytes: usize = found.data.iter().map(bytes::Bytes::len).sum();
    let data = found.extents.iter().filter(|extent| extent.state == BlockState::Data);
    assert_eq!(bytes, data.map(|extent| extent.len as usize).sum());
    let summed = found.extents.iter().filter(|extent| extent.state.has_sums());
    assert_eq!(found.crcs.len(), summed.map(|extent| extent.len as usize / BLOCK).sum());
    let blocks = found.extents.iter().map(|extent| vec![extent.state; extent.len as usize / BLOCK]);
    blocks.flatten().collect()
}

fn corrupt(n: u32, block: u32) -> Result<Vec<Cell>, StoreError> {
    Err(StoreError::Corrupt { object: object(n), block })
}

fn crc(tag: u64) -> u32 {
    crc32c::crc32c(&payload(&[tag]))
}

#[test]
fn a_lost_block_is_an_error_and_its_neighbours_are_not() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 0, data(&[10, 11, 12, 13])));
    b.ok(patch(1, 2, &[(1, lost(&[11])), (2, data(&[22])), (7, lost(&[17, 18]))]));
    for round in 0..3 {
        assert_eq!((b.read(1, 1, 1), b.read(1, 0, 4)), (corrupt(1, 1), corrupt(1, 1)));
        assert_eq!(b.read(1, 8, 1), corrupt(1, 8));
        assert_eq!(b.read(1, 0, 1).unwrap(), [Cell::Data(10)]);
        assert_eq!(b.read(1, 2, 2).unwrap(), [Cell::Data(22), Cell::Data(13)]);
        let found = b.salvage(1).unwrap();
        assert_eq!(found[..4], [Cell::Data(10), Cell::Lost(crc(11)), Cell::Data(22), Cell::Data(13)]);
        assert_eq!(found[7..9], [Cell::Lost(crc(17)), Cell::Lost(crc(18))]);
        let Ok(Outcome::Inspect(seen)) = b.run(Op::Inspect { object: object(1) }) else { panic!() };
        assert_eq!(seen.crcs, [10, 11, 22, 13, 17, 18].map(crc));
        assert_eq!(b.store.lost().iter().collect::<Vec<_>>(), [(&object(1), &3)]);
        b.flush();
        b = b.reopen(config(), round);
    }
    // Zeros and data make them good, all of them or some.
    b.ok(write(1, 3, false, 1, Body::Zero { len: BLOCK_SIZE }));
    b.ok(write(1, 4, false, 8, data(&[28])));
    assert_eq!(b.read(1, 0, 2).unwrap(), [Cell::Data(10), Cell::Zero]);
    assert_eq!((b.read(1, 8, 1).unwrap(), b.read(1, 7, 1)), (vec![Cell::Data(28)], corrupt(1, 7)));
    assert_eq!(b.store.lost().values().sum::<u32>(), 1);
    b.ok(Op::CloneBlocks { from: object(1), header: header(2, 5) });
    b.ok(write(1, 6, true, 0, data(&[30])));
    assert_eq!(b.store.lost().iter().collect::<Vec<_>>(), [(&object(2), &1)]);
    b.flush();
    let mut b = b.reopen(config(), 9);
    assert_eq!(b.store.lost().iter().collect::<Vec<_>>(), [(&object(2), &1)]);
    b.ok(Op::Delete { object: object(2) });
    assert!(b.store.lost().is_empty());
}

#[test]
fn lost_blocks_outlive_checkpoints_with_maps_in_pages() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 0, data(&(0..u64::from(BLOCKS)).collect::<Vec<_>>())));
    b.ok(patch(1, 2, &[(4, lost(&[4])), (9, lost(&[99, 100]))]));
    let mut sequence = 3;
    while b.store.stats().checkpoints < 4 || b.store.stats().maps < 4 {
        assert!(sequence < 2_000, "{:?}", b.store.stats());
        // Alternating blocks, so that the map gets a page; others beside, so that it leaves memory.
        let at = 2 * (sequence as u32 % 8);
        for n in [1, 2, 3] {
            if !(n == 1 && [4, 10].contains(&at)) {
                let create = b.store.header(object(n)).is_none();
                b.ok(write(n, sequence, create, at, data(&[sequence << 8])));
            }
        }
        b.flush();
        sequence += 1;
        let cells = b.salvage(1).unwrap();
        assert_eq!([cells[4], cells[9], cells[10]], [4, 99, 100].map(|tag| Cell::Lost(crc(tag))));
        assert_eq!(b.store.lost().iter().collect::<Vec<_>>(), [(&object(1), &3)]);
    }
    let mut b = b.reopen(config(), 1);
    assert_eq!(b.store.lost().iter().collect::<Vec<_>>(), [(&object(1), &3)]);
    let cells = b.salvage(1).unwrap();
    assert_eq!([cells[4], cells[9], cells[10]], [4, 99, 100].map(|tag| Cell::Lost(crc(tag))));
}

#[test]
fn bad_blocks_are_told_one_by_one() {
    let mut b = Bench::new(config());
    b.ok(write(1, 1, true, 0, data(&[1, 2, 3, 4, 5, 6, 7, 8])));
    b.ok(patch(1, 2, &[(6, lost(&[7]))]));
    b.flush();
    let mut b = b.reopen(config(), 0);
    let place = |b: &Bench, tag: u64| {
        let mut blocks = b.disk.durable_blocks(FileId::BLOCKS).into_iter();
        let is = |place: &u64| b.disk.durable(FileId::BLOCKS, *place).unwrap() == payload(&[tag]);
        blocks.rfind(is).unwrap()
    };
    let (rotten, unreadable) = (place(&b, 2), place(&b, 5));
    b.disk.rot(FileId::BLOCKS, rotten, 77);
    b.disk.set_unreadable(FileId::BLOCKS, unreadable..unreadable + 1, true);
    let want = {
        use BlockState::{Damaged, Data, Lost};
        [Data, Damaged, Data, Data, Damaged, Data, Lost, Data]
    };
    assert_eq!(states(&mut b, 1)[..8], want);
    let Ok(Outcome::Read(found)) = b.run(Op::Salvage { object: object(1), offset: 0, len: 8 * BLOCK_SIZE })
    else {
        panic!()
    };
    assert_eq!(found.crcs, [1, 2, 3, 4, 5, 6, 7, 8].map(crc), "what each should be is known");
    let bytes: Vec<u8> = found.data.iter().flat_map(|data| data.iter().copied()).collect();
    assert_eq!(bytes, payload(&[1, 3, 4, 6, 8]));
    // What is written is good again.
    b.disk.set_unreadable(FileId::BLOCKS, unreadable..unreadable + 1, false);
    assert_eq!(states(&mut b, 1)[4], BlockState::Data, "the disk can read it again");
    b.ok(write(1, 3, false, 1, data(&[12])));
    b.ok(write(1, 4, false, 6, data(&[16])));
    assert_eq!(states(&mut b, 1)[..8], [BlockState::Data; 8]);
}

#[test]
fn a_page_of_checksums_that_cannot_be_read_once_is_read_again() {
    let mut b = Bench::new(config());
    let mut sequence = 1;
    while b.store.stats().checkpoints < 3 {
        b.ok(write(1, sequence, sequence == 1, sequence as u32 % BLOCKS, data(&[sequence])));
        b.flush();
        sequence += 1;
    }
    let mut b = b.reopen(config(), 0);
    let token = b.submit(Op::Inspect { object: object(1) });
    assert!(b.begin_one(), "the page is read");
    b.disk.set_unreadable(FileId::BLOCKS, 0..1 << 20, true);
    assert!(b.finish_one(0));
    b.disk.set_unreadable(FileId::BLOCKS, 0..1 << 20, false);
    b.settle();
    let Some(Ok(Outcome::Inspect(seen))) = b.result(token) else { panic!() };
    assert!(seen.extents.iter().all(|extent| extent.state == BlockState::Data), "{:?}", seen.extents);
}
