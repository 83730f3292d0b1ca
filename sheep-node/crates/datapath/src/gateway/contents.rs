//! Contents of a range of an object: checked when they come, put together from several objects, cut.

use super::api::ReadExtent;
use bytes::Bytes;
use sheep_types::BLOCK_SIZE;
use sheep_wire::{ExtentState, ReadData};

/// Contents of whole blocks in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Data(Bytes),
    /// So many bytes of zeros.
    Zero(u32),
    /// So many bytes that the object does not say anything of.
    Absent(u32),
}

impl Found {
    fn len(&self) -> u32 {
        match self {
            Self::Data(data) => data.len() as u32,
            Self::Zero(len) | Self::Absent(len) => *len,
        }
    }

    fn slice(&self, from: u32, len: u32) -> Self {
        match self {
            Self::Data(data) => Self::Data(data.slice(from as usize..(from + len) as usize)),
            Self::Zero(_) => Self::Zero(len),
            Self::Absent(_) => Self::Absent(len),
        }
    }
}

/// Checks what a member sent against what was asked for: extents without gaps, buffers that fit them, checksums.
pub(super) fn check(data: &ReadData, start: u32, end: u32, verify: bool) -> Option<Vec<Found>> {
    let mut at = start;
    let mut buffers = data.data.iter();
    let mut crcs = data.crcs.iter();
    let mut found = Vec::with_capacity(data.extents.len());
    for extent in &data.extents {
        let next = at.checked_add(extent.len)?;
        if extent.offset != at || next > end || extent.len == 0 || !extent.len.is_multiple_of(BLOCK_SIZE) {
            return None;
        }
        at = next;
        if extent.state != ExtentState::Data {
            let absent = extent.state == ExtentState::Absent;
            found.push(if absent { Found::Absent(extent.len) } else { Found::Zero(extent.len) });
            continue;
        }
        let buffer = buffers.next()?;
        if buffer.len() != extent.len as usize {
            return None;
        }
        for block in buffer.chunks(BLOCK_SIZE as usize) {
            let crc = crcs.next()?;
            if verify && crc32c::crc32c(block) != *crc {
                return None;
            }
        }
        found.push(Found::Data(buffer.clone()));
    }
    (at == end).then_some(found)
}

/// The smallest range, from the first byte on, in which all absent bytes are.
pub(super) fn absent(found: &[Found]) -> Option<(u32, u32)> {
    let (mut at, mut range) = (0, None);
    for part in found {
        let next = at + part.len();
        if matches!(part, Found::Absent(_)) {
            range = Some((range.map_or(at, |(start, _)| start), next));
        }
        at = next;
    }
    range
}

/// What is absent in `upper` is taken from `lower`, whose first byte is at `offset` of it.
pub(super) fn overlay(upper: Vec<Found>, offset: u32, lower: &[Found]) -> Vec<Found> {
    let mut whole = Vec::with_capacity(upper.len() + lower.len());
    let mut at = 0;
    for part in upper {
        let next = at + part.len();
        match part {
            Found::Absent(len) => whole.extend(cut(lower, at.saturating_sub(offset), len)),
            part => whole.push(part),
        }
        at = next;
    }
    whole
}

/// `len` bytes after the first `skip`.
pub(super) fn cut(found: &[Found], skip: u32, len: u32) -> Vec<Found> {
    let (mut skip, mut left) = (skip, len);
    let mut wanted = Vec::with_capacity(found.len());
    for part in found {
        let from = skip.min(part.len());
        skip -= from;
        let take = (part.len() - from).min(left);
        left -= take;
        if take > 0 {
            wanted.push(part.slice(from, take));
        }
    }
    wanted
}

/// What a client sees of `len` bytes after the first `skip`.
pub(super) fn shown(found: &[Found], skip: u32, len: u32) -> Vec<ReadExtent> {
    let shown = cut(found, skip, len).into_iter().map(|part| match part {
        Found::Data(data) => ReadExtent::Data(data),
        Found::Zero(len) | Found::Absent(len) => ReadExtent::Hole(len),
    });
    shown.collect()
}

/// Contents in one buffer.
pub(super) fn flatten(found: &[Found]) -> Bytes {
    if let [Found::Data(data)] = found {
        return data.clone();
    }
    let mut whole = Vec::with_capacity(found.iter().map(|part| part.len() as usize).sum());
    for part in found {
        match part {
            Found::Data(data) => whole.extend_from_slice(data),
            Found::Zero(len) | Found::Absent(len) => whole.resize(whole.len() + *len as usize, 0),
        }
    }
    Bytes::from(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::Version;
    use sheep_wire::Extent;

    fn answer() -> ReadData {
        let block = Bytes::from(vec![7; 4096]);
        ReadData {
            version: Version::default(),
            extents: vec![
                Extent { offset: 4096, len: 8192, state: ExtentState::Zero },
                Extent { offset: 12288, len: 4096, state: ExtentState::Data },
            ],
            crcs: vec![crc32c::crc32c(&block)],
            data: vec![block],
        }
    }

    #[test]
    fn answers_must_cover_exactly_what_was_asked() {
        let good = check(&answer(), 4096, 16384, true).unwrap();
        assert_eq!(flatten(&good).len(), 12288);
        assert!(check(&answer(), 4096, 20480, true).is_none(), "too short");
        assert!(check(&answer(), 4096, 12288, true).is_none(), "too long");
        assert!(check(&answer(), 0, 16384, true).is_none(), "elsewhere");
        let mut missing = answer();
        missing.data.clear();
        assert!(check(&missing, 4096, 16384, true).is_none());
        let mut short = answer();
        short.data[0].truncate(100);
        assert!(check(&short, 4096, 16384, true).is_none());
        let mut overflow = answer();
        overflow.extents[1].len = u32::MAX;
        assert!(check(&overflow, 4096, 16384, true).is_none());
    }

    #[test]
    fn damage_on_the_way_is_found() {
        let mut damaged = answer();
        damaged.crcs[0] ^= 1;
        assert!(check(&damaged, 4096, 16384, true).is_none());
        assert!(check(&damaged, 4096, 16384, false).is_some(), "the own node's memory is believed");
    }

    #[test]
    fn sectors_are_cut_out_of_blocks() {
        let found = [Found::Zero(4096), Found::Data(Bytes::from(vec![1; 4096]))];
        let cut = shown(&found, 3584, 1024);
        assert_eq!(cut, vec![ReadExtent::Hole(512), ReadExtent::Data(Bytes::from(vec![1; 512]))]);
    }

    #[test]
    fn what_is_absent_shows_what_is_below() {
        let data = |tag| Found::Data(Bytes::from(vec![tag; 4096]));
        let upper = vec![Found::Zero(4096), Found::Absent(8192), data(1), Found::Absent(4096)];
        assert_eq!(absent(&upper), Some((4096, 20480)));
        assert_eq!(absent(&upper[..1]), None);
        let lower = [data(2), Found::Absent(4096), Found::Zero(4096), data(3)];
        let whole = overlay(upper, 4096, &lower);
        assert_eq!(whole, vec![Found::Zero(4096), data(2), Found::Absent(4096), data(1), data(3)]);
    }
}
