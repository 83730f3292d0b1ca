//! A script with everything in it.

use super::cuts::Step;
use super::*;

pub fn write(n: u32, sequence: u64, create: bool, start: u32, len: u32) -> Step {
    let tags: Vec<u64> = (0..len).map(|i| (sequence << 8) | u64::from(i)).collect();
    Step::Do(Op::Write { header: header(n, sequence), create, offset: start * BLOCK_SIZE, body: data(&tags) })
}

pub const FLUSH: Step = Step::Do(Op::Flush);

/// Everything a store can do, on a log that is so small that it is checkpointed and wraps again and again.
pub fn script() -> Vec<Step> {
    let mut out = Vec::new();
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        sequence
    };
    // Whole objects; then pieces, so that maps become pages.
    out.extend((0..3).map(|n| write(n, next(), true, 0, BLOCKS)));
    out.extend([FLUSH, Step::Settle]);
    for i in 0..9 {
        out.push(write(i % 3, next(), false, (i * 7) % BLOCKS, 1 + i % 2));
        let zero = Body::Zero { len: BLOCK_SIZE };
        let pieces = vec![
            Piece { offset: (i % 4) * BLOCK_SIZE, body: data(&[next()]) },
            Piece { offset: (5 + i % 5) * BLOCK_SIZE, body: if i % 3 == 0 { zero } else { data(&[next()]) } },
            Piece { offset: 12 * BLOCK_SIZE, body: data(&[next(), next()]) },
            Piece { offset: (14 + i % 2) * BLOCK_SIZE, body: lost(&[next()]) },
        ];
        out.push(Step::Do(Op::Patch { header: header((i + 1) % 3, next()), pieces }));
        out.extend([FLUSH, if i % 2 == 0 { Step::Settle } else { Step::Moves(4) }]);
    }
    for round in 0..5 {
        out.push(Step::Do(Op::CloneBlocks { from: object(round), header: header(4 + round, next()) }));
        out.extend([Step::Moves(2), write(round, next(), false, 3, 2), FLUSH, Step::Moves(3)]);
        out.push(write(4 + round, next(), false, 4, 1));
        out.push(Step::Do(Op::SetHeader { header: header(1, next()) }));
        out.extend([FLUSH, Step::Settle]);
        let piece = Piece { offset: 2 * BLOCK_SIZE, body: data(&[next(), next(), next()]) };
        out.push(Step::Do(Op::Replace { header: header(2, next()), pieces: vec![piece] }));
        out.push(Step::Do(Op::Delete { object: object(3 + round) }));
        out.extend([write(3, next(), true, 1, 5), FLUSH, Step::Settle]);
        for i in 0..6 {
            out.extend([write(i % 4, next(), false, (3 * i + round) % 14, 2), FLUSH]);
            out.push(if i % 2 == 0 { Step::Settle } else { Step::Moves(5) });
        }
    }
    out.push(Step::Settle);
    out
}
