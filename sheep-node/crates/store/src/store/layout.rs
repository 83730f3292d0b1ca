//! Which blocks two objects have in the same place.

use super::Store;
use crate::map::{MapRun, Run};
use crate::{BlockState, Extent, LayoutResult, Outcome, StoreError};
use sheep_types::{BLOCK_SIZE, ObjectId};

impl Store {
    /// States of all blocks, and what is shared with another object. Both maps are in memory.
    pub(super) fn layout(&self, id: ObjectId, other: Option<ObjectId>) -> Result<Outcome, StoreError> {
        let object = self.index.get(id).ok_or(StoreError::NotFound(id))?;
        let mut extents = Vec::new();
        let mut push = |from: u32, to: u32, state: BlockState| {
            if from < to {
                extents.push(Extent { offset: from * BLOCK_SIZE, len: (to - from) * BLOCK_SIZE, state });
            }
        };
        let mut at = 0;
        for run in object.map.runs() {
            push(at, run.first(), BlockState::Absent);
            at = run.end();
            push(run.first(), at, state(*run));
        }
        push(at, self.blocks, BlockState::Absent);
        let shared = match other {
            None => Vec::new(),
            Some(other) => {
                let with = self.index.get(other).ok_or(StoreError::NotFound(other))?;
                shared(object.map.runs(), with.map.runs())
            }
        };
        Ok(Outcome::Layout(LayoutResult { version: object.header.version, extents, shared }))
    }
}

fn state(run: MapRun) -> BlockState {
    match run.data() {
        Some(_) => BlockState::Data,
        None if run.is_lost() => BlockState::Lost,
        None => BlockState::Zero,
    }
}

/// Ranges of data in the same place in both, in bytes. Each list is in order, without overlaps.
fn shared(one: &[MapRun], other: &[MapRun]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    let mut rest = other;
    for run in one {
        while rest.first().is_some_and(|with| with.end() <= run.first()) {
            rest = rest.split_first().map_or(&[], |(_, rest)| rest);
        }
        for with in rest.iter().take_while(|with| with.first() < run.end()) {
            let (first, end) = (run.first().max(with.first()), run.end().min(with.end()));
            let (Some(a), Some(b)) = (place(*run, first), place(*with, first)) else { continue };
            if a == b {
                ranges.push((first * BLOCK_SIZE, (end - first) * BLOCK_SIZE));
            }
        }
    }
    ranges
}

/// Where a block of a run is, if it is data.
fn place(run: MapRun, block: u32) -> Option<u32> {
    run.data().map(|Run { place, .. }| place + (block - run.first()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{LOST_PLACE, ZERO_PLACE};
    use proptest::prelude::*;

    fn runs(blocks: &[Option<u32>]) -> Vec<MapRun> {
        let mut runs: Vec<MapRun> = Vec::new();
        for (block, place) in (0u16..).zip(blocks) {
            let Some(place) = *place else { continue };
            let run = MapRun { start: block, len: 1, place };
            match runs.last_mut() {
                Some(last) if last.joins(run) => last.len += 1,
                _ => runs.push(run),
            }
        }
        runs
    }

    fn place() -> impl Strategy<Value = Option<u32>> {
        prop_oneof![Just(None), Just(Some(ZERO_PLACE)), Just(Some(LOST_PLACE)), (100u32..130).prop_map(Some)]
    }

    proptest! {
        #[test]
        fn what_is_shared_is_data_in_the_same_place(
            one in prop::collection::vec(place(), 24), other in prop::collection::vec(place(), 24), same in any::<u32>(),
        ) {
            let other: Vec<Option<u32>> = (0..24).map(|i| if same >> i & 1 == 1 { one[i] } else { other[i] }).collect();
            let mut found = [false; 24];
            for (offset, len) in shared(&runs(&one), &runs(&other)) {
                found[(offset / BLOCK_SIZE) as usize..((offset + len) / BLOCK_SIZE) as usize].fill(true);
            }
            for block in 0..24 {
                let data = one[block].is_some_and(|place| place >= 100);
                prop_assert_eq!(found[block], data && one[block] == other[block], "{}", block);
            }
        }
    }
}
