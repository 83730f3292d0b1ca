//! What two objects have in one place.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
use support::*;

use sheep_store::*;
use sheep_types::BLOCK_SIZE;

fn write(n: u32, sequence: u64, create: bool, start: u32, tags: &[u64]) -> Op {
    Op::Write { header: header(n, sequence), create, offset: start * BLOCK_SIZE, body: data(tags) }
}

#[test]
fn a_clone_shares_what_is_not_written() {
    let mut b = Bench::new(config());
    let layout = |b: &mut Bench, other: Option<u32>| {
        let op = b.submit(Op::Layout { object: object(2), other: other.map(object) });
        b.settle();
        b.result(op).unwrap().map(|outcome| match outcome {
            Outcome::Layout(LayoutResult { version, extents, shared }) => {
                (version.sequence, extents.len(), shared)
            }
            other => panic!("{other:?}"),
        })
    };
    b.ok(write(1, 1, true, 0, &[1, 2, 3]));
    b.ok(Op::CloneBlocks { from: object(1), header: header(2, 5) });
    assert_eq!(layout(&mut b, Some(1)), Ok((5, 2, vec![(0, 3 * BLOCK_SIZE)])));
    b.ok(write(1, 2, false, 2, &[20]));
    // The same contents are elsewhere.
    b.ok(write(2, 6, false, 0, &[1]));
    let shared = vec![(BLOCK_SIZE, BLOCK_SIZE)];
    assert_eq!(layout(&mut b, Some(1)).unwrap().2, shared);
    assert_eq!(layout(&mut b, None).unwrap().2, vec![]);
    b.flush();
    let mut b = b.reopen(config(), 0);
    assert_eq!(layout(&mut b, Some(1)).unwrap().2, shared);
    assert_eq!(layout(&mut b, Some(9)), Err(StoreError::NotFound(object(9))));
}
