use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const START: u32 = 100;

/// Space of so many groups, all reserved.
fn space(groups: u32) -> Space {
    let mut space = Space::new(START, u64::from(groups * GROUP_BLOCKS));
    while let Some(run) = space.reserve_next(2) {
        space.reserved(run, true);
    }
    space
}

fn blocks(runs: &[Run]) -> impl Iterator<Item = u32> {
    runs.iter().flat_map(|r| r.place..r.end())
}

/// Nine groups, everything used but every second block of the first group, and the whole second group.
fn in_pieces() -> Space {
    let mut space = space(9);
    let all = space.take(9 * GROUP_BLOCKS, None).unwrap();
    assert_eq!(all.len(), 1, "{all:?}");
    for at in (0..GROUP_BLOCKS).step_by(2) {
        space.give(Run { place: START + at, len: 1 });
    }
    space.give(Run { place: START + GROUP_BLOCKS, len: GROUP_BLOCKS });
    space
}

#[test]
fn few_blocks_come_out_of_pieces_and_many_out_of_long_runs() {
    let mut space = in_pieces();
    assert_eq!(space.with_run(256), 1);
    for i in 0..100 {
        assert_eq!(space.take(1, None).unwrap(), [Run { place: START + 2 * i, len: 1 }]);
    }
    // Two in a row are only where all is free, and four come after them.
    assert_eq!(space.take(2, None).unwrap(), [Run { place: START + GROUP_BLOCKS, len: 2 }]);
    assert_eq!(space.take(4, None).unwrap(), [Run { place: START + GROUP_BLOCKS + 2, len: 4 }]);
    assert_eq!(space.take(1000, None).unwrap(), [Run { place: START + GROUP_BLOCKS + 6, len: 1000 }]);
    // The longest piece first.
    let rest = space.take(20, None).unwrap();
    assert_eq!(rest[0], Run { place: START + GROUP_BLOCKS + 1006, len: 18 });
    assert_eq!(rest.iter().map(|r| r.len).collect::<Vec<_>>(), [18, 1, 1]);
}

#[test]
fn what_is_in_pieces_rests_while_there_is_plenty() {
    let mut space = in_pieces();
    space.give(Run { place: START + 3 * GROUP_BLOCKS, len: GROUP_BLOCKS });
    let first = space.take(1, None).unwrap()[0];
    assert_eq!(first.place, START + GROUP_BLOCKS);
    // There is one left now, which stays whole.
    assert_eq!(space.take(1, None).unwrap()[0].place, START);
}

#[test]
fn what_goes_on_goes_on_in_place() {
    let mut space = in_pieces();
    let first = space.take(2, None).unwrap()[0];
    assert_eq!(space.take(1, Some(first.place + 1)).unwrap(), [Run { place: first.place + 2, len: 1 }]);
    // Where that is used, it is found elsewhere.
    assert_eq!(space.take(1, Some(START)).unwrap(), [Run { place: START, len: 1 }]);
    assert_eq!(space.take(1, Some(START)).unwrap(), [Run { place: START + 2, len: 1 }]);
    // The last block of all has none after it.
    assert!(space.take(1, Some(START + 9 * GROUP_BLOCKS - 1)).is_some());
}

#[test]
fn what_is_given_back_is_not_handed_out() {
    let mut space = in_pieces();
    assert_eq!((space.punch_next(0, 1), space.punch_next(513, 0)), (None, None));
    let punched = space.punch_next(0, 0).unwrap();
    assert_eq!(punched, Run { place: START + GROUP_BLOCKS, len: GROUP_BLOCKS });
    assert_eq!((space.with_run(2), space.free()), (0, 512));
    let taken = space.take(512, None).unwrap();
    assert!(blocks(&taken).all(|b| b < START + GROUP_BLOCKS) && space.take(1, None).is_none());
    space.punched(punched);
    let again = space.reserve_next(1).unwrap();
    space.reserved(again, true);
    assert_eq!((again, space.take(1024, None).unwrap()), (punched, vec![punched]));
}

proptest! {
    #[test]
    fn the_longest_run_of_a_group(taken in prop::collection::vec((0u32..1024, 1u32..200), 0..40)) {
        let mut group = group::Group::new(GROUP_BLOCKS);
        let mut used = [false; GROUP_BLOCKS as usize];
        for (at, len) in taken {
            for at in at..(at + len).min(GROUP_BLOCKS) {
                if !std::mem::replace(&mut used[at as usize], true) {
                    group.set(at, 1, true);
                }
            }
        }
        let lengths = used.split(|used| *used).map(<[bool]>::len);
        let longest = lengths.max().unwrap_or_default();
        let found = group.longest();
        prop_assert_eq!(found.map_or(0, |(_, len)| len as usize), longest);
        if let Some((at, len)) = found {
            prop_assert!(used[at as usize..(at + len) as usize].iter().all(|used| !used));
            prop_assert_eq!(group.run_at(at, GROUP_BLOCKS), Some((at, len)));
            prop_assert!(group.fit(len).is_some() && group.fit(len + 1).is_none());
        }
    }

    #[test]
    fn like_a_set(ops in prop::collection::vec((0u8..4, 1u32..300, any::<u32>()), 1..120)) {
        let mut space = space(4);
        let mut free: BTreeSet<u32> = (START..START + 4 * GROUP_BLOCKS).collect();
        let mut held: Vec<Run> = Vec::new();
        for (kind, len, pick) in ops {
            match kind {
                0 if !held.is_empty() => {
                    let run = held.swap_remove(pick as usize % held.len());
                    space.give(run);
                    free.extend(run.place..run.end());
                }
                1 => {
                    let len = len % 5 + 1;
                    let after = held.last().map(|r| r.end() - 1);
                    let taken = space.take(len, after).unwrap_or_default();
                    prop_assert!(blocks(&taken).all(|b| free.remove(&b)));
                    held.extend(taken);
                }
                _ => {
                    let taken = space.take(len, None);
                    prop_assert_eq!(taken.is_some(), free.len() >= len as usize);
                    let taken = taken.unwrap_or_default();
                    // In one run if there is one that is sure to be found.
                    let sure = len.next_power_of_two();
                    let run = (0..4).any(|g| {
                        let first = START + g * GROUP_BLOCKS;
                        (first..first + GROUP_BLOCKS + 1 - sure).any(|b| (b..b + sure).all(|b| free.contains(&b)))
                    });
                    prop_assert!(!run || taken.len() == 1, "{taken:?}");
                    prop_assert!(blocks(&taken).all(|b| free.remove(&b)));
                    prop_assert!(taken.is_empty() || blocks(&taken).count() == len as usize);
                    held.extend(taken.chunks(1).map(|r| r[0]));
                }
            }
            prop_assert_eq!(space.free(), free.len() as u64);
        }
    }
}

#[test]
fn the_largest_store_is_counted_too() {
    let start = 16 + (1 << 18);
    let most = u64::from(u32::MAX - start - GROUP_BLOCKS);
    for limit in [None, Some(0), Some(most - 5), Some(u64::MAX)] {
        let mut space = Space::new(start, most);
        let last = start + (most as u32 / GROUP_BLOCKS) * GROUP_BLOCKS;
        assert!(space.mark(Run { place: last, len: 3 }, |_, used| assert!(!used)));
        assert!(!space.mark(Run { place: start + most as u32, len: 1 }, |_, _| {}));
        space.marked(limit);
        assert!(space.limit() <= most && space.limit() >= most - 1023, "{limit:?}");
        assert_eq!(space.used(), 3);
    }
}
