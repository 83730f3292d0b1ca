//! All objects that are being fetched, and the blocks that failed attempts have got.

use super::compare::Blocks;
use super::fetch::{Fetch, Purpose};
use sheep_types::{BLOCK_SIZE, ObjectId};
use sheep_wire::Header;
use std::collections::BTreeMap;

/// Bytes of blocks kept from attempts that failed.
const KEPT_BYTES: u64 = 32 << 20;

/// Objects being fetched, and what is left of attempts that failed.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    pub(super) next: u64,
    pub(super) all: BTreeMap<u64, Fetch>,
    kept: BTreeMap<ObjectId, Blocks>,
    kept_bytes: u64,
}

impl Fetches {
    /// Ends one; what it has got is of use to the next attempt.
    pub(super) fn end(&mut self, fetch: u64) -> Option<Purpose> {
        let fetch = self.all.remove(&fetch)?;
        self.keep(fetch.object, fetch.blocks);
        Some(fetch.purpose)
    }

    /// Ends all. Gives those who asked for equal copies.
    pub(super) fn end_all(&mut self) -> Vec<Header> {
        let all: Vec<u64> = self.all.keys().copied().collect();
        let ended = all.into_iter().filter_map(|fetch| self.end(fetch));
        let askers = ended.filter_map(|purpose| match purpose {
            Purpose::Equalize { asker, .. } => Some(asker),
            Purpose::Walk => None,
        });
        askers.collect()
    }

    /// Bytes that the objects under way still lack, as far as is known.
    pub(super) fn bytes_missing(&self) -> u64 {
        let blocks = self.all.values().flat_map(|fetch| &fetch.missing).map(|(_, len)| u64::from(*len));
        blocks.sum::<u64>() * u64::from(BLOCK_SIZE)
    }

    fn keep(&mut self, object: ObjectId, blocks: Blocks) {
        if blocks.bytes() == 0 {
            return;
        }
        self.drop_kept(object);
        self.kept_bytes += blocks.bytes();
        self.kept.insert(object, blocks);
        while self.kept_bytes > KEPT_BYTES
            && let Some((_, dropped)) = self.kept.pop_first()
        {
            self.kept_bytes -= dropped.bytes();
        }
    }

    pub(super) fn take_kept(&mut self, object: ObjectId) -> Blocks {
        let blocks = self.kept.remove(&object).unwrap_or_default();
        self.kept_bytes -= blocks.bytes();
        blocks
    }

    /// The object is of no interest any more.
    pub(super) fn drop_kept(&mut self, object: ObjectId) {
        self.take_kept(object);
    }
}
