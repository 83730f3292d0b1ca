//! What two stacks of objects say of each block: is it the same?
//!
//! A *stack* is where a layer of a map finds the contents of one index: an object, below it the one that has its absent
//! blocks, and so on; at the bottom are zeros. Where two stacks go on with the same object, all further down is the same.

use super::api::Difference;
use sheep_types::{BLOCK_SIZE, Vid};
use sheep_wire::{Compared, ExtentState};

/// An object of a stack: whose it is, and whether what it does not have is further down. (Else it is zeros, and the
/// object is the last one.)
pub(super) type Level = (Vid, bool);

/// An object whose blocks are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Whose it is.
    pub(super) vid: Vid,
    /// Whose object it is to be compared with.
    pub(super) other: Option<Vid>,
}

/// What must be known to say which blocks of an index differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// Objects above what both have in common, from the top.
    own: Vec<Vid>,
    old: Vec<Vid>,
    /// They have nothing in common but the zeros at the bottom.
    zeros_below: bool,
    /// The first ones are compared with each other.
    paired: bool,
    /// The first ones are one object.
    one: bool,
    /// From this byte on the old contents are zeros, whatever the stack says: they have an end.
    old_end: u32,
}

/// What is found where a stack is looked through for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Zeros.
    Zero,
    /// What both have in common.
    Common,
    /// Something else. `top`: in the uppermost object.
    Contents { top: bool },
}

impl Case {
    /// Compares two stacks. `old_end`: bytes that the old contents have. `related`: whether objects of two vids can be
    /// compared with each other.
    pub(super) fn of(
        own: &[Level],
        old: &[Level],
        old_end: u32,
        blocks: u32,
        related: impl Fn(Vid, Vid) -> bool,
    ) -> Self {
        let old = if old_end == 0 { &[] } else { old };
        let place = |level: &Level| old.iter().position(|other| other == level);
        let common = own.iter().enumerate().find_map(|(i, level)| Some((i, place(level)?)));
        // What is beyond the end of one of them they do not have in common.
        let common = common.filter(|_| old_end >= blocks * BLOCK_SIZE);
        let (i, j) = common.unwrap_or((own.len(), old.len()));
        let vids = |levels: &[Level], upto: usize| levels.iter().take(upto).map(|(vid, _)| *vid).collect();
        let (own, old): (Vec<Vid>, Vec<Vid>) = (vids(own, i), vids(old, j));
        let paired = matches!((own.first(), old.first()), (Some(a), Some(b)) if a != b && related(*a, *b));
        let one = own.first().is_some_and(|own| old.first() == Some(own));
        Self { own, old, zeros_below: common.is_none(), paired, one, old_end }
    }

    /// The answer, if nobody has to be asked.
    pub(super) fn known(&self) -> Option<Difference> {
        (self.own.is_empty() && self.old.is_empty()).then_some(Difference::Same)
    }

    /// What is said where not everything can be found out.
    pub(super) fn unknown(&self) -> Difference {
        if self.own.is_empty() && self.zeros_below { Difference::Zero } else { Difference::Data }
    }

    /// What is to be found out.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let skip = usize::from(self.paired);
        let pair = self.own.first().zip(self.old.first()).filter(|_| self.paired);
        let pair = pair.map(|(own, old)| Wanted { vid: *own, other: Some(*old) });
        let rest = self.own.iter().skip(skip).chain(self.old.iter().skip(skip));
        pair.into_iter().chain(rest.map(|vid| Wanted { vid: *vid, other: None })).collect()
    }

    /// Block by block. `answers`: in the order of what was wanted, each with all blocks of the object.
    pub(super) fn judge(&self, answers: &[Vec<Compared>], blocks: u32) -> Vec<Difference> {
        let (pair, rest) = answers.split_at(usize::from(self.paired).min(answers.len()));
        let pair = pair.first();
        let (own, old) = rest.split_at((self.own.len() - usize::from(self.paired)).min(rest.len()));
        let one = |block: usize| {
            let at = |answer: &Vec<Compared>| answer.get(block).copied();
            let pair = pair.and_then(at);
            let state = |answer: &Vec<Compared>| at(answer).map_or(ExtentState::Lost, |found| found.state);
            let own = pair.map(|pair| pair.state).into_iter().chain(own.iter().map(state));
            let old = pair.map(|pair| pair.other).into_iter().chain(old.iter().map(state));
            let (start, old) = (block as u32 * BLOCK_SIZE, self.look(old));
            let old = match old {
                _ if start >= self.old_end => Found::Zero,
                // A part of it is beyond the end: what is there now can only be the same if all of it is zeros.
                Found::Common | Found::Contents { .. } if start + BLOCK_SIZE > self.old_end => {
                    Found::Contents { top: false }
                }
                old => old,
            };
            difference(self.look(own), old, self.one || pair.is_some_and(|pair| pair.same))
        };
        (0..blocks as usize).map(one).collect()
    }

    fn look(&self, states: impl Iterator<Item = ExtentState>) -> Found {
        for (place, state) in states.enumerate() {
            match state {
                ExtentState::Absent => {}
                ExtentState::Zero => return Found::Zero,
                ExtentState::Data | ExtentState::Lost => return Found::Contents { top: place == 0 },
            }
        }
        if self.zeros_below { Found::Zero } else { Found::Common }
    }
}

fn difference(own: Found, old: Found, same: bool) -> Difference {
    match (own, old) {
        (Found::Zero, Found::Zero) | (Found::Common, Found::Common) => Difference::Same,
        (Found::Contents { top: true }, Found::Contents { top: true }) if same => Difference::Same,
        (Found::Zero, _) => Difference::Zero,
        (Found::Contents { .. } | Found::Common, _) => Difference::Data,
    }
}

/// One entry for each block; `None` if the ranges do not make an object of so many.
pub(super) fn by_block(ranges: &[Compared], blocks: u32) -> Option<Vec<Compared>> {
    let mut all = Vec::with_capacity(blocks as usize);
    for range in ranges {
        let count = range.len / BLOCK_SIZE;
        if !range.len.is_multiple_of(BLOCK_SIZE) || count > blocks - all.len() as u32 {
            return None;
        }
        all.extend((0..count).map(|_| Compared { len: BLOCK_SIZE, ..*range }));
    }
    (all.len() == blocks as usize).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u32 = 4;

    fn related(a: Vid, b: Vid) -> bool {
        a.0 / 10 == b.0 / 10
    }

    fn state() -> impl Strategy<Value = ExtentState> {
        use ExtentState::*;
        prop::sample::select(vec![Absent, Zero, Data])
    }

    /// A stack: perhaps an object of lineage 9, partial or not, and below it those of the snapshots it comes from, of
    /// which the last one is partial or not.
    fn stack(top: Option<(u32, bool)>, below: usize, tail_whole: bool) -> Vec<Level> {
        let tail = (0..below).map(|depth| (Vid(10 * (8 - depth as u32)), depth + 1 < below || !tail_whole));
        match top {
            None => tail.collect(),
            Some((own, true)) => vec![(Vid(90 + own), false)],
            Some((own, false)) => std::iter::once((Vid(90 + own), true)).chain(tail).collect(),
        }
    }

    /// What a stack reads as at a block: which object's contents; zero: zeros.
    fn reads(stack: &[Level], states: &dyn Fn(Vid, u32) -> ExtentState, block: u32) -> u32 {
        for (vid, partial) in stack {
            match states(*vid, block) {
                ExtentState::Zero => return 0,
                ExtentState::Data | ExtentState::Lost => return vid.0,
                ExtentState::Absent if !partial => return 0,
                ExtentState::Absent => {}
            }
        }
        0
    }

    proptest! {
        #[test]
        fn what_differs_is_never_called_the_same(
            own in prop::option::of((0u32..3, any::<bool>())), old in prop::option::of((0u32..3, any::<bool>())),
            below in 0usize..3, tail_whole in any::<bool>(),
            states in prop::collection::vec(state(), 100 * BLOCKS as usize), halves in 0..=2 * BLOCKS,
            sames in prop::collection::vec(any::<bool>(), BLOCKS as usize),
        ) {
            let (own, old) = (stack(own, below, tail_whole), stack(old, below, tail_whole));
            let states = |vid: Vid, block: u32| states[(vid.0 * BLOCKS + block) as usize];
            // Blocks that the old contents have wholly, and those that they have a part of.
            let (end, some) = (halves / 2, halves.div_ceil(2));
            let case = Case::of(&own, &old, halves * (BLOCK_SIZE / 2), BLOCKS, related);
            // Contents of one lineage's objects may be the same although they are not one object's.
            let equal = |a: u32, b: u32, block: u32| {
                a == b && (a == 0 || block < end) || block < end && a != 0 && b != 0 && related(Vid(a), Vid(b)) && own[0].0.0 == a && old[0].0.0 == b && sames[block as usize]
            };
            let answers: Vec<Vec<Compared>> = case.wanted().into_iter().map(|wanted| {
                (0..BLOCKS).map(|block| Compared {
                    len: BLOCK_SIZE,
                    state: states(wanted.vid, block),
                    other: wanted.other.map_or(ExtentState::Absent, |other| states(other, block)),
                    same: wanted.other.is_some() && sames[block as usize],
                }).collect()
            }).collect();
            let judged = match case.known() {
                Some(known) => vec![known; BLOCKS as usize],
                None => case.judge(&answers, BLOCKS),
            };
            for block in 0..BLOCKS {
                let now = reads(&own, &states, block);
                let before = if block < some { reads(&old, &states, block) } else { 0 };
                match judged[block as usize] {
                    Difference::Same => prop_assert!(equal(now, before, block), "{block}: {now} {before}"),
                    Difference::Zero => prop_assert_eq!(now, 0),
                    Difference::Data => {}
                }
                if case.unknown() == Difference::Zero {
                    prop_assert_eq!(now, 0);
                }
                // And it is worth asking.
                let plain = own == old && end == BLOCKS;
                prop_assert!(!plain || judged[block as usize] == Difference::Same);
                let zeros = now == 0 && before == 0 && (end == BLOCKS || old.is_empty());
                prop_assert!(!(zeros && own.is_empty() && old.is_empty()) || judged[block as usize] == Difference::Same);
            }
        }
    }

    #[test]
    fn answers_must_be_whole_objects() {
        let range = |len| Compared { len, state: ExtentState::Data, other: ExtentState::Zero, same: false };
        assert_eq!(by_block(&[range(4096), range(12288)], 4).map(|all| all.len()), Some(4));
        for bad in
            [&[range(4096)][..], &[range(20480)], &[range(512), range(15872)], &[range(16384), range(4096)]]
        {
            assert_eq!(by_block(bad, 4), None, "{bad:?}");
        }
    }
}
