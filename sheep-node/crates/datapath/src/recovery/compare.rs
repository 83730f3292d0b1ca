//! What must be fetched to make one copy equal to another, and what the store is then told: by comparing
//! checksums block by block.

use bytes::Bytes;
use sheep_store::{Body, Piece};
use sheep_types::{BLOCK_SIZE, Geometry};
use sheep_wire::{Extent, ExtentState, ReadData};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Absent,
    Zero,
    /// Bytes with this CRC-32C.
    Data(u32),
    /// Bytes that should have this CRC-32C (zero: that is not known), and are lost, or damaged where they are.
    Lost(u32),
}

/// All blocks of an object; `None` if extents and checksums do not make one.
pub(crate) fn cells(extents: &[Extent], crcs: &[u32], geometry: Geometry) -> Option<Vec<Cell>> {
    let mut cells = Vec::with_capacity(geometry.blocks_per_object() as usize);
    let mut crcs = crcs.iter();
    let mut end = 0u32;
    for extent in extents {
        let fits = extent.offset == end
            && extent.len > 0
            && extent.len.is_multiple_of(BLOCK_SIZE)
            && extent.len <= geometry.object_size() - end;
        if !fits {
            return None;
        }
        end += extent.len;
        for _ in 0..extent.len / BLOCK_SIZE {
            cells.push(match extent.state {
                ExtentState::Absent => Cell::Absent,
                ExtentState::Zero => Cell::Zero,
                ExtentState::Data => Cell::Data(*crcs.next()?),
                ExtentState::Lost => Cell::Lost(*crcs.next()?),
            });
        }
    }
    (end == geometry.object_size() && crcs.next().is_none()).then_some(cells)
}

/// A block that has come.
#[derive(Clone, Debug)]
struct Fetched {
    crc: u32,
    /// The buffer that it is a part of, and where it begins in it.
    buffer: Bytes,
    at: usize,
}

/// Blocks that have come, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks(BTreeMap<u32, Fetched>);

const BLOCK: usize = BLOCK_SIZE as usize;

impl Blocks {
    fn has(&self, block: u32, crc: u32) -> bool {
        self.0.get(&block).is_some_and(|fetched| fetched.crc == crc)
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.0.len() as u64 * u64::from(BLOCK_SIZE)
    }

    /// Takes the contents of some ranges, and gives the blocks that are not there. `None` if they are not what was asked
    /// for, exactly, and of the blocks that `want` describes (if it does).
    pub(super) fn take(
        &mut self,
        data: ReadData,
        ranges: &[(u32, u32)],
        want: Option<&[Cell]>,
    ) -> Option<Vec<u32>> {
        let mut asked = ranges.iter().flat_map(|(offset, len)| (*offset..offset + len).step_by(BLOCK));
        let (mut buffers, mut crcs) = (data.data.into_iter(), data.crcs.into_iter());
        let (mut new, mut lost) = (Vec::new(), Vec::new());
        for extent in &data.extents {
            let buffer = match extent.state {
                ExtentState::Data => Some(buffers.next()?),
                ExtentState::Lost => None,
                ExtentState::Absent | ExtentState::Zero => return None,
            };
            if buffer.as_ref().is_some_and(|buffer| buffer.len() != extent.len as usize) {
                return None;
            }
            for at in (0..extent.len as usize).step_by(BLOCK) {
                let offset = extent.offset.saturating_add(at as u32);
                let (crc, block) = (crcs.next()?, offset / BLOCK_SIZE);
                if asked.next() != Some(offset) {
                    return None;
                }
                let Some(buffer) = buffer.clone() else {
                    lost.push(block);
                    continue;
                };
                let wanted = |cell: &Cell| [Cell::Data(crc), Cell::Lost(crc), Cell::Lost(0)].contains(cell);
                if want.is_some_and(|want| !want.get(block as usize).is_some_and(wanted)) {
                    return None;
                }
                new.push((block, Fetched { crc, buffer, at }));
            }
        }
        if asked.next().is_some() {
            return None;
        }
        self.0.extend(new);
        Some(lost)
    }

    /// Checksum of a block, if it has come.
    pub(super) fn crc(&self, block: u32) -> Option<u32> {
        self.0.get(&block).map(|fetched| fetched.crc)
    }

    /// Takes the own contents of a whole object.
    pub(super) fn take_own(&mut self, data: ReadData) {
        self.take_some(data, |_, _| true);
    }

    /// Takes some blocks of what was read of a whole object, by number and checksum, and gives their numbers.
    pub(super) fn take_some(&mut self, data: ReadData, wanted: impl Fn(u32, u32) -> bool) -> Vec<u32> {
        let mut taken = Vec::new();
        let mut crcs = data.crcs.into_iter();
        let mut buffers = data.data.into_iter();
        for extent in data.extents.iter().filter(|extent| extent.state.has_sums()) {
            let blocks = (extent.len / BLOCK_SIZE) as usize;
            if extent.state == ExtentState::Lost {
                crcs.by_ref().take(blocks).for_each(drop);
                continue;
            }
            let Some(buffer) = buffers.next() else { break };
            for (at, crc) in (0..buffer.len()).step_by(BLOCK).zip(crcs.by_ref()) {
                let block = extent.offset / BLOCK_SIZE + (at / BLOCK) as u32;
                if wanted(block, crc) {
                    self.0.insert(block, Fetched { crc, buffer: buffer.clone(), at });
                    taken.push(block);
                }
            }
        }
        taken
    }

    /// What a copy would hold if these blocks were put over it, whatever version they are of.
    pub(super) fn over(&self, target: &[Cell]) -> Vec<Cell> {
        let mut cells = target.to_vec();
        for (block, fetched) in &self.0 {
            if let Some(cell @ Cell::Data(_)) = cells.get_mut(*block as usize) {
                *cell = Cell::Data(fetched.crc);
            }
        }
        cells
    }

    /// The bytes of a run of blocks from `block` on that lie one after the other in one buffer.
    fn run(&self, block: u32) -> Option<(Bytes, Vec<u32>)> {
        let first = self.0.get(&block)?;
        let mut crcs = vec![first.crc];
        for (fetched, i) in self.0.range(block + 1..).map(|(_, fetched)| fetched).zip(1..) {
            let joins = fetched.buffer.as_ptr() == first.buffer.as_ptr()
                && fetched.at == first.at + i * BLOCK
                && self.0.contains_key(&(block + i as u32));
            if !joins {
                break;
            }
            crcs.push(fetched.crc);
        }
        let end = first.at + crcs.len() * BLOCK;
        Some((first.buffer.slice(first.at..end), crcs))
    }
}

/// Whether blocks that hold something must become absent: a patch cannot say that.
pub(super) fn must_forget(target: &[Cell], own: &[Cell]) -> bool {
    target.iter().zip(own).any(|(target, own)| *target == Cell::Absent && *own != Cell::Absent)
}

/// Ranges of blocks (first, number) whose bytes are missing.
pub(super) fn missing(target: &[Cell], own: Option<&[Cell]>, have: &Blocks) -> VecDeque<(u32, u32)> {
    let mut ranges: VecDeque<(u32, u32)> = VecDeque::new();
    for (block, cell) in (0u32..).zip(target) {
        let Cell::Data(crc) = *cell else { continue };
        let same = own.is_some_and(|own| own.get(block as usize) == Some(cell));
        if same || have.has(block, crc) {
            continue;
        }
        match ranges.back_mut() {
            Some((first, len)) if *first + *len == block => *len += 1,
            _ => ranges.push_back((block, 1)),
        }
    }
    ranges
}

/// Blocks that the target has lost, by number, but for those that the own copy or an earlier attempt has: these are not
/// lost here.
pub(super) fn find_lost(target: &mut [Cell], own: Option<&[Cell]>, have: &Blocks) -> BTreeSet<u32> {
    let mut lost = BTreeSet::new();
    for (block, cell) in (0u32..).zip(target) {
        let Cell::Lost(crc) = *cell else { continue };
        let here = own.is_some_and(|own| own.get(block as usize) == Some(&Cell::Data(crc)));
        if crc != 0 && (here || have.has(block, crc)) {
            *cell = Cell::Data(crc);
        } else {
            lost.insert(block);
        }
    }
    lost
}

/// Numbers of blocks in order as ranges of bytes.
pub(crate) fn ranges_of(blocks: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for offset in blocks.map(|block| block * BLOCK_SIZE) {
        match ranges.last_mut() {
            Some((first, len)) if *first + *len == offset => *len += BLOCK_SIZE,
            _ => ranges.push((offset, BLOCK_SIZE)),
        }
    }
    ranges
}

/// Takes ranges of at most so many blocks from the front, as offsets and lengths in bytes.
pub(super) fn next_ranges(missing: &mut VecDeque<(u32, u32)>, mut most: u32) -> Vec<(u32, u32)> {
    let mut ranges = Vec::new();
    while most > 0
        && let Some((first, len)) = missing.pop_front()
    {
        let taken = len.min(most);
        most -= taken;
        ranges.push((first * BLOCK_SIZE, taken * BLOCK_SIZE));
        if taken < len {
            missing.push_front((first + taken, len - taken));
        }
    }
    ranges
}

/// What makes the own copy equal to the target: only what differs from `own`, or everything. `None` if something
/// is missing.
pub(super) fn pieces(target: &[Cell], own: Option<&[Cell]>, have: &Blocks) -> Option<Vec<Piece>> {
    let differs = |block: u32| {
        let cell = target.get(block as usize)?;
        let same = own.is_some_and(|own| own.get(block as usize) == Some(cell));
        (!same).then_some(*cell)
    };
    let mut pieces = Vec::new();
    let mut block = 0u32;
    while (block as usize) < target.len() {
        let offset = block * BLOCK_SIZE;
        match differs(block) {
            None | Some(Cell::Absent) => block += 1,
            Some(Cell::Zero) => {
                let len = (block..).take_while(|block| differs(*block) == Some(Cell::Zero)).count() as u32;
                pieces.push(Piece { offset, body: Body::Zero { len: len * BLOCK_SIZE } });
                block += len;
            }
            Some(Cell::Lost(_)) => {
                let crcs = (block..).map_while(|block| match differs(block) {
                    Some(Cell::Lost(crc)) => Some(crc),
                    _ => None,
                });
                let crcs: Vec<u32> = crcs.collect();
                block += crcs.len() as u32;
                pieces.push(Piece { offset, body: Body::Lost { crcs } });
            }
            Some(Cell::Data(_)) => {
                let (mut payload, mut crcs) = have.run(block)?;
                // What is there may be older, or not be needed.
                let fits = |(block, crc): &(u32, &u32)| differs(*block) == Some(Cell::Data(**crc));
                let len = (block..).zip(&crcs).take_while(fits).count();
                if len == 0 {
                    return None;
                }
                payload.truncate(len * BLOCK);
                crcs.truncate(len);
                pieces.push(Piece { offset, body: Body::Data { payload, crcs } });
                block += len as u32;
            }
        }
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Cell::{Absent, Data, Lost, Zero};

    fn geometry() -> Geometry {
        Geometry::with_object_size(16 * BLOCK_SIZE).unwrap()
    }

    /// Blocks in one buffer per range, each block's checksum made up.
    fn data(ranges: &[(u32, u32)], crc: impl Fn(u32) -> u32) -> ReadData {
        let mut data = ReadData::default();
        for (first, len) in ranges {
            let (offset, bytes) = (first * BLOCK_SIZE, len * BLOCK_SIZE);
            data.extents.push(Extent { offset, len: bytes, state: ExtentState::Data });
            data.data.push(Bytes::from(vec![*first as u8; bytes as usize]));
            data.crcs.extend((*first..first + len).map(&crc));
        }
        data
    }

    fn in_bytes(ranges: &[(u32, u32)]) -> Vec<(u32, u32)> {
        ranges.iter().map(|(first, len)| (first * BLOCK_SIZE, len * BLOCK_SIZE)).collect()
    }

    #[test]
    fn extents_become_cells_if_they_make_a_whole_object() {
        let extent =
            |first: u32, len: u32, state| Extent { offset: first * BLOCK_SIZE, len: len * BLOCK_SIZE, state };
        let extents = [
            extent(0, 2, ExtentState::Data),
            extent(2, 1, ExtentState::Absent),
            extent(3, 13, ExtentState::Zero),
        ];
        let found = cells(&extents, &[7, 8], geometry()).unwrap();
        assert_eq!(found[..4], [Data(7), Data(8), Absent, Zero]);
        assert_eq!(found[4..], [Zero; 12]);
        for broken in [&extents[..2], &extents[1..], &[extents[0], extents[2]]] {
            assert_eq!(cells(broken, &[7, 8], geometry()), None);
        }
        assert_eq!(cells(&extents, &[7], geometry()), None);
        assert_eq!(cells(&extents, &[7, 8, 9], geometry()), None);
        let long = [extent(0, 17, ExtentState::Zero)];
        assert_eq!(cells(&long, &[], geometry()), None);
    }

    #[test]
    fn only_what_differs_is_fetched_and_patched() {
        let own = [Data(1), Data(2), Zero, Data(4), Absent, Absent, Data(7), Data(8)];
        let target = [Data(1), Data(20), Data(30), Zero, Data(50), Absent, Data(7), Data(80)];
        assert!(!must_forget(&target, &own));
        let mut have = Blocks::default();
        let mut wanted = missing(&target, Some(&own), &have);
        assert_eq!(wanted, [(1, 2), (4, 1), (7, 1)]);
        // Bounded requests.
        assert_eq!(next_ranges(&mut wanted, 3), in_bytes(&[(1, 2), (4, 1)]));
        assert_eq!(next_ranges(&mut wanted, 3), in_bytes(&[(7, 1)]));
        assert_eq!(pieces(&target, Some(&own), &have), None);
        let crc = |block| (block + 1) * 10;
        let ranges = [(1, 2), (4, 1)];
        assert_eq!(have.take(data(&ranges, crc), &in_bytes(&ranges), Some(&target)), Some(vec![]));
        assert_eq!(missing(&target, Some(&own), &have), [(7, 1)]);
        assert_eq!(have.take(data(&[(7, 1)], crc), &in_bytes(&[(7, 1)]), Some(&target)), Some(vec![]));
        let pieces = pieces(&target, Some(&own), &have).unwrap();
        let shape: Vec<_> = pieces.iter().map(|p| (p.offset / BLOCK_SIZE, p.body.len() / BLOCK)).collect();
        assert_eq!(shape, [(1, 2), (3, 1), (4, 1), (7, 1)]);
        assert_eq!(pieces[1].body, Body::Zero { len: BLOCK_SIZE });
    }

    #[test]
    fn a_source_that_moves_costs_only_what_it_changed() {
        let first = [Data(10), Data(20), Data(30), Absent];
        let then = [Data(10), Data(21), Data(30), Absent];
        let mut have = Blocks::default();
        assert_eq!(
            have.take(data(&[(0, 3)], |b| (b + 1) * 10), &in_bytes(&[(0, 3)]), Some(&first)),
            Some(vec![])
        );
        assert_eq!(missing(&then, None, &have), [(1, 1)]);
        assert_eq!(have.take(data(&[(1, 1)], |_| 21), &in_bytes(&[(1, 1)]), Some(&then)), Some(vec![]));
        let pieces = pieces(&then, None, &have).unwrap();
        assert_eq!(pieces.iter().map(|p| p.offset / BLOCK_SIZE).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let target = [Data(10), Data(20), Data(30), Zero];
        let crc = |block| (block + 1) * 10;
        let mut have = Blocks::default();
        let ranges = in_bytes(&[(0, 2)]);
        let mut zeros = data(&[(0, 2)], crc);
        zeros.extents[0].state = ExtentState::Zero;
        let mut short = data(&[(0, 2)], crc);
        short.crcs.pop();
        for bad in [
            data(&[(0, 1)], crc),
            data(&[(0, 3)], crc),
            data(&[(1, 2)], crc),
            data(&[(0, 2)], |_| 9),
            zeros,
            short,
        ] {
            assert_eq!(have.take(bad, &ranges, Some(&target)), None);
        }
        assert_eq!(have.bytes(), 0);
    }

    #[test]
    fn lost_blocks_are_taken_over_unless_they_are_here() {
        let own = [Data(1), Data(2), Zero, Absent, Data(5), Lost(6)];
        let mut target = [Data(1), Lost(2), Lost(3), Lost(4), Lost(0), Lost(6)];
        let mut have = Blocks::default();
        let lost = find_lost(&mut target, Some(&own), &have);
        assert_eq!(lost.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert_eq!(target[1], Data(2), "the own block is what it should be");
        assert_eq!(missing(&target, Some(&own), &have), []);
        assert_eq!(ranges_of([2, 3, 4, 6].into_iter()), in_bytes(&[(2, 3), (6, 1)]));
        // Somebody has one of two; what it should be is checked.
        let asked = in_bytes(&[(2, 2)]);
        let mut found = data(&[(2, 1)], |_| 3);
        found.extents.push(Extent { offset: 3 * BLOCK_SIZE, len: BLOCK_SIZE, state: ExtentState::Lost });
        found.crcs.push(4);
        let mut wrong = found.clone();
        wrong.crcs[0] = 9;
        assert_eq!(have.take(wrong, &asked, Some(&target)), None);
        assert_eq!(have.take(found, &asked, Some(&target)), Some(vec![3]));
        target[2] = Data(3);
        let pieces = pieces(&target, Some(&own), &have).unwrap();
        let shape: Vec<_> = pieces.iter().map(|p| (p.offset / BLOCK_SIZE, p.body.clone())).collect();
        assert_eq!(shape.len(), 2);
        assert!(matches!(&shape[0], (2, Body::Data { crcs, .. }) if *crcs == [3]));
        assert_eq!(shape[1], (3, Body::Lost { crcs: vec![4, 0] }), "and what is lost on both sides stays");
    }

    #[test]
    fn own_blocks_serve_when_others_must_go() {
        let own = [Data(1), Data(2), Zero, Absent];
        let target = [Data(1), Absent, Zero, Absent];
        assert!(must_forget(&target, &own));
        let mut have = Blocks::default();
        have.take_own(data(&[(0, 2)], |b| b + 1));
        assert_eq!(missing(&target, None, &have), []);
        let pieces = pieces(&target, None, &have).unwrap();
        assert_eq!(pieces.len(), 2);
        assert_eq!((pieces[0].body.len(), pieces[1].offset), (BLOCK, 2 * BLOCK_SIZE));
    }
}
