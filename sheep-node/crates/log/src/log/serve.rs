//! Giving other nodes what they lack.

use super::Log;
use crate::api::Output;
use crate::fetch_message::{Chunk, ENTRY_OVERHEAD, FetchKind, FetchMessage};
use crate::mutant::Mutant;
use sheep_types::{NodeId, Place};

impl Log {
    /// Answers a request. Only a log that contains the target answers with entries: then everything up to
    /// it is on the target's chain.
    pub(super) fn serve(&mut self, to: NodeId, request: &FetchMessage, snapshot: Place, offset: u64) {
        let (target, after) = (request.target, request.after);
        let careless = self.without(Mutant::FetchWithoutChain);
        let kind = if !careless && !self.chain.contains(&target) {
            FetchKind::Absent
        } else {
            match self.chain.place(after.index) {
                Some(place) if place == after || careless => self.entries_for(after, target),
                None if after.index < self.chain.root().index => self.chunk_for(target, snapshot, offset),
                _ => FetchKind::Differs,
            }
        };
        let cluster = self.chain.cluster();
        let message = FetchMessage { cluster, target, after, kind }.encode();
        self.outputs.push_back(Output::Send { to, message });
    }

    fn entries_for(&self, after: Place, target: Place) -> FetchKind {
        let mut size = 0;
        let entries = self
            .chain
            .entries_after(after.index)
            .take_while(|e| e.place.index <= target.index)
            .take_while(|e| {
                let first = size == 0;
                size += e.body.len() + ENTRY_OVERHEAD;
                first || size <= self.config.fetch_bytes
            })
            .map(|e| (e.place.term, e.body.clone()))
            .collect();
        FetchKind::Entries(entries)
    }

    fn chunk_for(&self, target: Place, asked: Place, offset: u64) -> FetchKind {
        let Some(snapshot) = self.snapshot.as_ref().filter(|s| s.at.index <= target.index) else {
            return FetchKind::Absent;
        };
        // Another snapshot than the one the asker has begun with: from the beginning.
        let offset = if asked == snapshot.at { offset } else { 0 };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(snapshot.data.len());
        let to = from.saturating_add(self.config.fetch_bytes).min(snapshot.data.len());
        FetchKind::Chunk(Chunk {
            at: snapshot.at,
            voters: snapshot.voters.clone(),
            total: snapshot.data.len() as u64,
            checksum: snapshot.checksum(),
            offset: from as u64,
            data: snapshot.data.slice(from..to),
        })
    }
}
