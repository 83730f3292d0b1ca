//! What the blocks of an object are, and which hold the same as those of another vid's object.
//!
//! Equal are blocks that both objects keep in the same place, which is how a clone begins; and those whose contents are
//! the same, which is looked at only where the checksums are. Equal checksums alone prove nothing.

use super::admit::Served;
use super::convert::{extents, refusal_of};
use super::{Job, Replica};
use crate::View;
use crate::recovery::{Cell, cells, ranges_of};
use bytes::Bytes;
use sheep_store::{BlockState, InspectResult, LayoutResult, Op, Outcome, ReadResult, StoreError};
use sheep_types::{BLOCK_SIZE, Birth, ObjectId, Vid};
use sheep_wire::{Compared, ExtentState, Header, Refusal, Reply};
use std::collections::BTreeMap;

/// Objects that are compared at once.
const UNDER_WAY: usize = 64;
/// Bytes of each object that are read at once.
const CHUNK: u32 = 256 << 10;

/// Comparisons under way.
#[derive(Debug, Default)]
pub(super) struct Comparisons {
    next: u64,
    all: BTreeMap<u64, Comparison>,
}

#[derive(Debug)]
struct Comparison {
    asker: Header,
    object: ObjectId,
    other: Option<ObjectId>,
    /// Store operations that are not done.
    left: usize,
    layout: Option<LayoutResult>,
    found: Sides<InspectResult>,
    read: Sides<ReadResult>,
    /// What is known, by block.
    blocks: Vec<Compared>,
    /// Data with equal checksums in different places: still to be read.
    doubtful: Vec<(u32, u32)>,
}

/// Something of the object and of the other one.
#[derive(Debug)]
struct Sides<T> {
    one: Option<T>,
    other: Option<T>,
}

impl<T> Default for Sides<T> {
    fn default() -> Self {
        Self { one: None, other: None }
    }
}

impl<T> Sides<T> {
    fn put(&mut self, other: bool, value: T) {
        *(if other { &mut self.other } else { &mut self.one }) = Some(value);
    }
}

impl Replica {
    pub(super) fn serve_compare(
        &mut self,
        view: &View,
        header: Header,
        object: ObjectId,
        birth: Birth,
        other: Option<(Vid, Birth)>,
    ) -> Served {
        Self::check_birth(view, object, birth)?;
        Self::check_generation(view, object.vid(), header.generation)?;
        self.check_member(view, object)?;
        let with = other.map(|(vid, birth)| (object.of(vid), birth));
        if let Some((with, birth)) = with {
            Self::check_birth(view, with, birth)?;
            if with == object || !view.are_related(object.vid(), with.vid()) {
                return Err(Refusal::Malformed);
            }
        }
        for id in [Some(object), with.map(|(with, _)| with)].into_iter().flatten() {
            if !self.current_in(view, id) {
                if self.recovery.is_lost(id) {
                    return Err(Refusal::NoCopy);
                }
                self.want(view, id, true);
                return Err(Refusal::NotCurrent);
            }
        }
        if self.gathers.comparisons.all.len() >= UNDER_WAY {
            return Err(Refusal::Busy);
        }
        self.begin_comparison(header, object, with.map(|(with, _)| with));
        Ok(None)
    }

    fn begin_comparison(&mut self, asker: Header, object: ObjectId, other: Option<ObjectId>) {
        let slot = |id| self.store.located(id).map(|(slot, _)| slot);
        // On different disks nothing is shared.
        let together = other.is_none_or(|other| slot(object) == slot(other));
        let mut ops = Vec::new();
        if together {
            ops.push((false, Op::Layout { object, other }));
        }
        if let Some(with) = other {
            ops.push((false, Op::Inspect { object }));
            ops.push((true, Op::Inspect { object: with }));
        }
        let number = self.gathers.comparisons.next;
        self.gathers.comparisons.next += 1;
        let comparison = Comparison {
            asker,
            object,
            other,
            left: ops.len(),
            layout: None,
            found: Sides::default(),
            read: Sides::default(),
            blocks: Vec::new(),
            doubtful: Vec::new(),
        };
        self.gathers.comparisons.all.insert(number, comparison);
        // All of them see one instant.
        for (other, op) in ops {
            self.submit(op, Job::Compare { number, other });
        }
    }

    pub(super) fn take_compared(&mut self, number: u64, other: bool, result: Result<Outcome, StoreError>) {
        let Some(state) = self.gathers.comparisons.all.get_mut(&number) else { return };
        state.left -= 1;
        let refusal = match result {
            Ok(Outcome::Layout(layout)) => {
                state.layout = Some(layout);
                None
            }
            Ok(Outcome::Inspect(found)) => {
                state.found.put(other, found);
                None
            }
            Ok(Outcome::Read(read)) => {
                state.read.put(other, read);
                None
            }
            Ok(Outcome::Done) => Some(Refusal::StoreFailed),
            Err(error) => Some(refusal_of(&error)),
        };
        if let Some(refusal) = refusal {
            let asker = state.asker;
            self.gathers.comparisons.all.remove(&number);
            return self.refuse(&asker, refusal);
        }
        if state.left == 0 {
            self.step_comparison(number);
        }
    }

    /// All that was asked of the store is there.
    fn step_comparison(&mut self, number: u64) {
        let Some(view) = self.view.clone() else { return };
        let geometry = view.state.geometry();
        let Some(state) = self.gathers.comparisons.all.get_mut(&number) else { return };
        if state.blocks.is_empty() {
            let judged = match (&state.found.one, &state.found.other, &state.layout) {
                (Some(one), Some(other), layout) => {
                    let wire = |found: &InspectResult| cells(&extents(&found.extents), &found.crcs, geometry);
                    let shared = layout.as_ref().map_or(&[][..], |layout| layout.shared.as_slice());
                    wire(one).zip(wire(other)).map(|(one, other)| judge(&one, &other, shared))
                }
                (_, _, Some(layout)) => Some((alone(layout), Vec::new())),
                _ => None,
            };
            let Some((blocks, doubtful)) = judged else {
                let asker = state.asker;
                self.gathers.comparisons.all.remove(&number);
                return self.refuse(&asker, Refusal::StoreFailed);
            };
            (state.blocks, state.doubtful) = (blocks, doubtful);
        }
        state.look_at_contents();
        let (object, other) = (state.object, state.other);
        match (state.next_chunk(), other) {
            (Some((offset, len)), Some(with)) => {
                state.left = 2;
                self.submit(Op::Salvage { object, offset, len }, Job::Compare { number, other: false });
                self.submit(Op::Salvage { object: with, offset, len }, Job::Compare { number, other: true });
            }
            _ => {
                if let Some(state) = self.gathers.comparisons.all.remove(&number) {
                    self.answer_held(&state.asker, Reply::Compared(joined(&state.blocks)));
                }
            }
        }
    }
}

impl Comparison {
    /// The next range to be read.
    fn next_chunk(&mut self) -> Option<(u32, u32)> {
        let (offset, len) = self.doubtful.pop()?;
        if len > CHUNK {
            self.doubtful.push((offset + CHUNK, len - CHUNK));
        }
        Some((offset, len.min(CHUNK)))
    }

    /// Compares what was read, if there is something.
    fn look_at_contents(&mut self) {
        let (Some(one), Some(other)) = (self.read.one.take(), self.read.other.take()) else { return };
        let other = data_blocks(&other);
        for (block, bytes) in data_blocks(&one) {
            let equal = other.get(&block).is_some_and(|other| *other == bytes);
            if let Some(found) = self.blocks.get_mut(block as usize) {
                found.same |= equal;
            }
        }
    }
}

/// Blocks of data that were read, by number.
fn data_blocks(read: &ReadResult) -> BTreeMap<u32, Bytes> {
    let data = read.extents.iter().filter(|extent| extent.state == BlockState::Data);
    let mut blocks = BTreeMap::new();
    for (extent, bytes) in data.zip(&read.data) {
        let size = BLOCK_SIZE as usize;
        for (place, start) in (extent.offset / BLOCK_SIZE..).zip((0..bytes.len()).step_by(size)) {
            blocks.insert(place, bytes.slice(start..(start + size).min(bytes.len())));
        }
    }
    blocks
}

fn state(cell: &Cell) -> ExtentState {
    match cell {
        Cell::Absent => ExtentState::Absent,
        Cell::Zero => ExtentState::Zero,
        Cell::Data(_) => ExtentState::Data,
        Cell::Lost(_) => ExtentState::Lost,
    }
}

/// What can be said by places and checksums, block by block, and ranges of which only the contents tell more.
fn judge(one: &[Cell], other: &[Cell], shared: &[(u32, u32)]) -> (Vec<Compared>, Vec<(u32, u32)>) {
    let mut blocks: Vec<Compared> = one
        .iter()
        .zip(other)
        .map(|(one, other)| Compared { len: BLOCK_SIZE, state: state(one), other: state(other), same: false })
        .collect();
    for (offset, len) in shared {
        let range = (offset / BLOCK_SIZE) as usize..((offset + len) / BLOCK_SIZE) as usize;
        blocks.get_mut(range).unwrap_or_default().iter_mut().for_each(|block| block.same = true);
    }
    let doubtful = (0u32..).zip(&blocks).zip(one.iter().zip(other)).filter_map(|((number, block), cells)| {
        let equal_sums = matches!(cells, (Cell::Data(one), Cell::Data(other)) if one == other);
        (equal_sums && !block.same).then_some(number)
    });
    let doubtful = ranges_of(doubtful);
    (blocks, doubtful)
}

/// The blocks of an object that is compared with nothing.
fn alone(layout: &LayoutResult) -> Vec<Compared> {
    let range = |extent: &sheep_wire::Extent| Compared {
        len: extent.len,
        state: extent.state,
        other: ExtentState::Absent,
        same: false,
    };
    extents(&layout.extents).iter().map(range).collect()
}

/// Equal neighbours together.
fn joined(blocks: &[Compared]) -> Vec<Compared> {
    let mut ranges: Vec<Compared> = Vec::new();
    for block in blocks {
        match ranges.last_mut() {
            Some(last) if (last.state, last.other, last.same) == (block.state, block.other, block.same) => {
                last.len += block.len;
            }
            _ => ranges.push(*block),
        }
    }
    ranges
}
