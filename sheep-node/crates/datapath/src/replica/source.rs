//! What other replicas ask of a copy that theirs shall become equal to.

use super::admit::Served;
use super::compare::Comparisons;
use super::{Job, Replica, convert, read_data};
use crate::{Mutant, View};
use sheep_store::{BlockState, Extent, InspectResult, Op, Outcome, ReadResult, StoreError};
use sheep_types::{BLOCK_SIZE, Birth, ObjectId, Time, Version};
use sheep_wire::{Header, ObjectDigest, ReadData, Refusal, Reply, Request};
use std::collections::BTreeMap;

/// Reads whose results make one answer.
#[derive(Debug, Default)]
pub(super) struct Gathers {
    next: u64,
    all: BTreeMap<u64, Gather>,
    /// Objects that are compared for gateways.
    pub(super) comparisons: Comparisons,
}

#[derive(Debug)]
struct Gather {
    asker: Header,
    object: ObjectId,
    parts: Vec<Option<ReadResult>>,
}

impl Gathers {
    /// Requests that are being carried out.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

impl Replica {
    /// What a copy holds: one that is current here, or one that is exactly the version asked for.
    pub(super) fn serve_digest(
        &mut self,
        view: &View,
        header: Header,
        object: ObjectId,
        birth: Birth,
        version: Option<Version>,
    ) -> Served {
        Self::check_birth(view, object, birth)?;
        if self.replacing.contains(&object) {
            return Err(Refusal::NotCurrent);
        }
        let copy = self.copy(view, object).ok_or(Refusal::NoCopy)?;
        match version {
            Some(version) if copy.version != version => return Err(Refusal::OtherVersion),
            None if !self.current_in(view, object) && !self.config.mutants.is(Mutant::SourceAtOlderEpoch) => {
                return Err(Refusal::NotCurrent);
            }
            Some(_) | None => {}
        }
        self.submit(Op::Inspect { object }, Job::Digest { asker: header, object });
        Ok(None)
    }

    pub(super) fn finish_digest(&mut self, asker: &Header, object: ObjectId, found: InspectResult) {
        if is_damaged(&found.extents) {
            self.found_damage(object);
            self.damage_met(object);
        }
        let digest = ObjectDigest {
            birth: found.header.birth,
            pending: found.header.pending,
            // Of the copy as it is now, which may have gone on: at worst one mark too many.
            hot: self.hot.is_hot(object),
            version: found.header.version,
            extents: convert::extents(&found.extents),
            crcs: found.crcs,
        };
        self.answer_held(asker, Reply::Digest(Box::new(digest)));
    }

    /// Ranges of a copy of exactly this version. A version names one prefix of the writes, so the copy need not
    /// be current.
    pub(super) fn serve_blocks(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        what: (ObjectId, Birth, Version),
        ranges: Vec<(u32, u32)>,
        urgent: bool,
    ) -> Served {
        let (object, birth, version) = what;
        let size = view.state.geometry().object_size();
        if ranges.is_empty() || !are_in_order(&ranges, size) {
            return Err(Refusal::Malformed);
        }
        if !urgent && !self.may_serve(now) {
            let request = Request::Blocks { object, birth, version, ranges, urgent };
            return if self.delay(header, request) { Ok(None) } else { Err(Refusal::Busy) };
        }
        Self::check_birth(view, object, birth)?;
        if self.replacing.contains(&object) {
            return Err(Refusal::NotCurrent);
        }
        let copy = self.copy(view, object).ok_or(Refusal::NoCopy)?;
        if copy.version != version && !self.config.mutants.is(Mutant::PatchAnyVersion) {
            return Err(Refusal::OtherVersion);
        }
        self.moves(now, view, ranges.iter().map(|(_, len)| u64::from(*len)).sum());
        let gather = self.gathers.next;
        self.gathers.next += 1;
        let parts = ranges.iter().map(|_| None).collect();
        self.gathers.all.insert(gather, Gather { asker: header, object, parts });
        // All of them begin at this instant, so they see one version.
        for (index, (offset, len)) in ranges.iter().enumerate() {
            let read = Op::Salvage { object, offset: *offset, len: *len };
            self.submit(read, Job::Part { gather, index });
        }
        Ok(None)
    }

    pub(super) fn finish_part(
        &mut self,
        now: Time,
        gather: u64,
        index: usize,
        result: Result<Outcome, StoreError>,
    ) {
        self.take_part(gather, index, result);
        self.move_on(now);
    }

    fn take_part(&mut self, gather: u64, index: usize, result: Result<Outcome, StoreError>) {
        let Some(state) = self.gathers.all.get_mut(&gather) else { return };
        let (asker, object) = (state.asker, state.object);
        match result {
            Ok(Outcome::Read(read)) => {
                if is_damaged(&read.extents) {
                    self.found_damage(object);
                    self.damage_met(object);
                }
                let Some(state) = self.gathers.all.get_mut(&gather) else { return };
                if let Some(part) = state.parts.get_mut(index) {
                    *part = Some(read);
                }
                if state.parts.iter().all(Option::is_some) {
                    self.answer_parts(gather);
                }
            }
            Ok(_) => {
                self.gathers.all.remove(&gather);
                self.refuse(&asker, Refusal::StoreFailed);
            }
            Err(error) => {
                self.gathers.all.remove(&gather);
                self.read_failed(&asker, object, &error);
            }
        }
    }

    fn answer_parts(&mut self, gather: u64) {
        let Some(state) = self.gathers.all.remove(&gather) else { return };
        let mut whole = ReadData::default();
        for part in state.parts.into_iter().flatten().map(read_data) {
            whole.version = part.version;
            whole.extents.extend(part.extents);
            whole.data.extend(part.data);
            whole.crcs.extend(part.crcs);
        }
        self.answer_held(&state.asker, Reply::Read(whole));
    }
}

/// Whether there are blocks that are bad, but not known to be lost.
pub(crate) fn is_damaged(extents: &[Extent]) -> bool {
    extents.iter().any(|extent| extent.state == BlockState::Damaged)
}

/// Whether ranges are whole blocks within an object, in order and apart.
fn are_in_order(ranges: &[(u32, u32)], size: u32) -> bool {
    let mut end = 0;
    ranges.iter().all(|(offset, len)| {
        let aligned = offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE) && *len > 0;
        let fits = aligned && *offset >= end && *offset <= size && *len <= size - offset;
        end = offset.saturating_add(*len);
        fits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let block = BLOCK_SIZE;
        let ok = |ranges: &[(u32, u32)]| are_in_order(ranges, 4 * block);
        assert!(ok(&[(0, block), (block, 2 * block), (3 * block, block)]));
        for bad in [
            [(0, 0)].as_slice(),
            &[(0, 5 * block)],
            &[(4 * block, block)],
            &[(u32::MAX - block + 1, block)],
            &[(512, block)],
            &[(0, 512)],
            &[(0, 2 * block), (block, block)],
            &[(2 * block, block), (0, block)],
        ] {
            assert!(!ok(bad), "{bad:?}");
        }
    }
}
