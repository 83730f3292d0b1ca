//! Small durable writes go where the disk has been written before; nothing is written in vain for large ones.

#![allow(clippy::unwrap_used)]

mod support;
use support::*;

use sheep_store::*;
use sheep_types::{BLOCK_SIZE, Geometry};
use std::collections::BTreeSet;

/// Disk operations with a memory of which blocks were written.
#[derive(Default)]
struct Watched {
    written: BTreeSet<u64>,
    zeros: u64,
    /// Blocks that were written for the first time, and not with zeros.
    first: u64,
}

impl Watched {
    fn pump(&mut self, b: &mut Bench) {
        while let Some(op) = b.store.poll_disk() {
            if let DiskOpKind::Write { offset, data, .. } = &op.kind {
                let blocks = data.iter().map(|d| d.len() as u64).sum::<u64>() / BLOCK as u64;
                let zeros = data.iter().all(|d| d.iter().all(|byte| *byte == 0));
                for block in 0..blocks {
                    let new = self.written.insert(offset / BLOCK as u64 + block);
                    self.zeros += u64::from(zeros);
                    self.first += u64::from(new && !zeros);
                }
            }
            let id = op.id;
            let result = b.disk.run(op);
            b.store.handle_disk(id, result);
        }
        b.collect();
    }
}

/// Writes of `blocks` blocks, flushed each; how many blocks were written for the first time, and how many zeros.
fn run(prewrite: bool, blocks: u32, writes: u64) -> (u64, u64) {
    let geometry = Geometry::default();
    let config = StoreConfig { log_bytes: 4 << 20, prewrite, ..StoreConfig::small(geometry, 512 << 20) };
    let mut b = Bench::open(VirtualDisk::new(1 << 30), config, true);
    b.settle();
    let mut watched = Watched::default();
    let mut rng = Rng(3);
    for n in 0..writes {
        let offset = rng.below(u64::from(1024 / blocks)) as u32 * blocks * BLOCK_SIZE;
        let tags: Vec<u64> = (0..u64::from(blocks)).map(|block| 1 << 40 | n << 10 | block).collect();
        let to = rng.below(24) as u32;
        let create = b.store.header(object(to)).is_none();
        let write = b.submit(Op::Write { header: header(to, n + 1), create, offset, body: data(&tags) });
        let flush = b.submit(Op::Flush);
        watched.pump(&mut b);
        assert_eq!((b.result(write), b.result(flush)), (Some(Ok(Outcome::Done)), Some(Ok(Outcome::Done))));
        if n == 20 {
            watched.first = 0;
        }
    }
    (watched.first, watched.zeros)
}

#[test]
fn small_writes_go_where_the_disk_was_written_before() {
    // What the first growth holds, before anybody knew what would come, and what checkpoints take.
    let known_late = 8 * 1024;
    let (first, zeros) = run(true, 1, 40_000);
    assert!(first <= known_late + 600 && zeros > 10_000, "{first} blocks, {zeros} zeros");
    let (first, zeros) = run(false, 1, 40_000);
    assert!(first > known_late + 10_000 && zeros == 0, "{first} blocks, {zeros} zeros");
}

#[test]
fn large_writes_are_written_once() {
    let (_, zeros) = run(true, 256, 300);
    assert!(zeros <= 1024, "only the log: {zeros} blocks of zeros");
}
