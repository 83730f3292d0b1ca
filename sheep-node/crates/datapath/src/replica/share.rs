//! A new copy shares what it has in common with an older vid's copy of the same index on this node.
//!
//! Objects of one lineage and index are on the same nodes, and one that began as a clone of another has most blocks in common with it. Where both copies grew
//! here they share these blocks. A copy that recovery has made of what came over the network would keep them twice: so the older copy is read,
//! compared block by block with what has come, and where enough is equal the new copy begins as its clone, of which only
//! the rest is written. Contents are compared, not checksums, so it does not matter whether the older copy counts.

use super::equalize::Then;
use super::jobs::Job;
use super::{Replica, read_data};
use crate::View;
use sheep_store::{Body, Header as CopyHeader, Op, Outcome, Piece, StoreError};
use sheep_types::{BLOCK_SIZE, Epoch, ObjectId, Version};
use sheep_wire::{ExtentState, ReadData};

/// Vids that are looked at, one above the other, for a copy to share with.
const LOOKED_AT: usize = 64;
/// Blocks that must be equal to make a clone worth it.
const ENOUGH: usize = 8;

/// A copy that is to be made.
#[derive(Debug)]
pub(crate) struct Sharing {
    /// The older copy, and its version when it was looked at.
    with: ObjectId,
    version: Version,
    header: CopyHeader,
    pieces: Vec<Piece>,
    then: Then,
}

impl Replica {
    /// Makes a new copy; looks first for an older one that it can share with.
    pub(super) fn make_copy(&mut self, header: CopyHeader, pieces: Vec<Piece>, then: Then) {
        let blocks: u32 = pieces.iter().map(|piece| data_blocks(&piece.body)).sum();
        let found = match &self.view {
            Some(view) if blocks as usize >= ENOUGH => self.older_copy(&view.clone(), header.id),
            _ => None,
        };
        let Some((with, version)) = found else {
            return self.replace(header.id, Op::Replace { header, pieces }, then);
        };
        let len = self.view.as_ref().map_or(0, |view| view.state.geometry().object_size());
        self.replacing.insert(header.id);
        let sharing = Sharing { with, version, header, pieces, then };
        self.submit(Op::Salvage { object: with, offset: 0, len }, Job::Share(Box::new(sharing)));
    }

    /// The nearest older vid's copy on this node.
    fn older_copy(&self, view: &View, object: ObjectId) -> Option<(ObjectId, Version)> {
        self.older_copies(view, object, LOOKED_AT).next()
    }

    /// The copies on this node of the so many older vids of the lineage that are nearest, in this order.
    pub(crate) fn older_copies(
        &self,
        view: &View,
        object: ObjectId,
        vids: usize,
    ) -> impl Iterator<Item = (ObjectId, Version)> {
        let own = view.vid(object.vid());
        let above = std::iter::successors(own.and_then(|own| own.parent), |vid| view.vid(*vid)?.parent);
        let related = above.take(vids).take_while(move |vid| {
            view.vid(*vid).is_some_and(|record| own.is_some_and(|own| record.lineage == own.lineage))
        });
        related.filter_map(move |vid| {
            let other = object.of(vid);
            let still = !view.writable(vid) && !self.replacing.contains(&other);
            Some((other, self.store.header(other).filter(|_| still)?.version))
        })
    }

    /// The older copy was read.
    pub(super) fn take_shared(&mut self, sharing: Sharing, result: Result<Outcome, StoreError>) {
        let Sharing { with, version, header, pieces, then } = sharing;
        let object = header.id;
        let still = !self.replacing.contains(&with)
            && self.store.header(with).is_some_and(|header| header.version == version);
        let rest = match result {
            Ok(Outcome::Read(read)) if still && read.version == version => {
                differing(&pieces, &read_data(read))
            }
            _ => None,
        };
        let Some(rest) = rest else {
            return self.submit(Op::Replace { header, pieces }, Job::Replace(object, then));
        };
        let home = self.store.located(with).map_or(0, |(slot, _)| slot);
        // What power leaves of it before the rest is written was never current.
        let unwritten = CopyHeader { version: Version::default(), validated: Epoch(0), ..header };
        self.submit_to(Op::CloneBlocks { from: with, header: unwritten }, Job::Forget, home);
        self.submit_to(Op::Patch { header, pieces: rest }, Job::Replace(object, then), home);
    }
}

fn data_blocks(body: &Body) -> u32 {
    match body {
        Body::Data { crcs, .. } => crcs.len() as u32,
        _ => 0,
    }
}

/// What is to be written to a clone of an older copy to make it the new one; `None` if that is not worth it, or not
/// possible: a clone loses no blocks.
fn differing(pieces: &[Piece], older: &ReadData) -> Option<Vec<Piece>> {
    let older = blocks(older)?;
    let mut rest: Vec<Piece> = Vec::new();
    let (mut equal, mut covered) = (0, 0);
    for piece in pieces {
        let first = (piece.offset / BLOCK_SIZE) as usize;
        let count = piece.body.len() / BLOCK_SIZE as usize;
        covered += older.get(first..first + count)?.iter().filter(|block| **block != Block::Absent).count();
        let same: Vec<bool> = match &piece.body {
            Body::Data { payload, .. } => {
                let new = payload.chunks(BLOCK_SIZE as usize);
                new.zip(older.get(first..)?).map(|(new, old)| *old == Block::Data(new)).collect()
            }
            Body::Zero { .. } => {
                older.get(first..first + count)?.iter().map(|old| *old == Block::Zero).collect()
            }
            Body::Lost { .. } => return None,
        };
        if matches!(piece.body, Body::Data { .. }) {
            equal += same.iter().filter(|same| **same).count();
        }
        let mut from = 0;
        for run in same.chunk_by(|one, other| one == other) {
            if run.first() == Some(&false) {
                rest.push(part(piece, from, run.len())?);
            }
            from += run.len();
        }
    }
    let all = older.iter().filter(|block| **block != Block::Absent).count();
    (covered == all && equal >= ENOUGH).then_some(rest)
}

/// So many blocks of a piece, from one on.
fn part(piece: &Piece, from: usize, count: usize) -> Option<Piece> {
    let block = BLOCK_SIZE as usize;
    let offset = piece.offset + u32::try_from(from * block).ok()?;
    let body = match &piece.body {
        Body::Data { payload, crcs } => Body::Data {
            payload: payload.slice(from * block..(from + count) * block),
            crcs: crcs.get(from..from + count)?.to_vec(),
        },
        _ => Body::Zero { len: u32::try_from(count * block).ok()? },
    };
    Some(Piece { offset, body })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block<'a> {
    Absent,
    Zero,
    Data(&'a [u8]),
    Bad,
}

/// The blocks of a copy.
fn blocks(read: &ReadData) -> Option<Vec<Block<'_>>> {
    let mut data = read.data.iter();
    let mut all = Vec::new();
    for extent in &read.extents {
        let count = (extent.len / BLOCK_SIZE) as usize;
        match extent.state {
            ExtentState::Absent => all.resize(all.len() + count, Block::Absent),
            ExtentState::Zero => all.resize(all.len() + count, Block::Zero),
            ExtentState::Data => all.extend(data.next()?.chunks(BLOCK_SIZE as usize).map(Block::Data)),
            ExtentState::Lost => all.resize(all.len() + count, Block::Bad),
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use sheep_wire::Extent;

    fn bytes(tags: &[u8]) -> Bytes {
        tags.iter().flat_map(|tag| [*tag; BLOCK_SIZE as usize]).collect()
    }

    fn data(block: u32, tags: &[u8]) -> Piece {
        let payload = bytes(tags);
        let crcs = payload.chunks(BLOCK_SIZE as usize).map(crc32c::crc32c).collect();
        Piece { offset: block * BLOCK_SIZE, body: Body::Data { payload, crcs } }
    }

    fn older(parts: &[(ExtentState, &[u8])]) -> ReadData {
        let mut read = ReadData::default();
        let mut offset = 0;
        for (state, tags) in parts {
            let len = tags.len() as u32 * BLOCK_SIZE;
            read.extents.push(Extent { offset, len, state: *state });
            offset += len;
            if *state == ExtentState::Data {
                read.data.push(bytes(tags));
            }
        }
        read
    }

    #[test]
    fn only_what_differs_is_written() {
        let ten: Vec<u8> = (1..=10).collect();
        let read = older(&[
            (ExtentState::Data, &ten),
            (ExtentState::Zero, &[0, 0]),
            (ExtentState::Lost, &[0]),
            (ExtentState::Absent, &[0, 0, 0]),
        ]);
        let zeros = Piece { offset: 10 * BLOCK_SIZE, body: Body::Zero { len: 2 * BLOCK_SIZE } };
        let new = [data(0, &[1, 2, 33, 4, 5, 6, 7, 8, 9, 10]), zeros, data(12, &[7, 8])];
        assert_eq!(differing(&new, &read), Some(vec![data(2, &[33]), data(12, &[7, 8])]));
        // What the older copy has cannot be taken from a clone.
        let gap = [new[0].clone(), data(11, &[5, 7, 8])];
        assert_eq!(differing(&gap, &read), None);
        let other: Vec<u8> = (50..60).collect();
        let little = [data(0, &other), new[1].clone(), new[2].clone()];
        assert_eq!(differing(&little, &read), None, "nothing in common");
    }
}
