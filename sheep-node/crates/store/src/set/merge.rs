//! All objects as one sequence, and objects that two disks have.
//!
//! A disk that was away comes back with old copies; a crash in the middle of a move leaves two equal ones. The copy that
//! was called current later counts, or has more of the writes; the other one is deleted when that one is durable. If that one has
//! lost blocks, the other one is kept as a *spare*, which is never current, until they are made good.

use super::{Inner, NOTES, StoreSet};
use crate::{Header, Op};
use sheep_types::{Epoch, ObjectId};

/// A copy that lost, and the disk of the one that won.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loser {
    object: ObjectId,
    slot: usize,
    winner: usize,
}

impl StoreSet {
    /// Headers of all disks in order of id, without those that do not count.
    pub(super) fn merged(&self, from: ObjectId) -> impl Iterator<Item = &Header> {
        let stores = (0..self.slots.len()).filter_map(|slot| Some((slot, self.store(slot)?)));
        let mut sources: Vec<_> = stores
            .map(|(slot, store)| {
                let counts = move |header: &&Header| {
                    self.hidden.is_empty() || !self.hidden.contains(&(header.id, slot))
                };
                store.objects(from).filter(counts).peekable()
            })
            .collect();
        core::iter::from_fn(move || {
            if let [only] = sources.as_mut_slice() {
                return only.next();
            }
            let heads = sources.iter_mut().enumerate();
            let heads = heads.filter_map(|(place, source)| Some((source.peek()?.id, place)));
            let (_, place) = heads.min()?;
            sources.get_mut(place)?.next()
        })
    }

    /// A disk has come: which of its objects have other disks too? `flush`: theirs may not be durable yet.
    pub(super) fn merge(&mut self, slot: usize, flush: bool) {
        let Some(store) = self.store(slot) else { return };
        let mut losers = Vec::new();
        for header in store.objects(ObjectId(0)).filter(|header| header.id.vid() != NOTES) {
            let others = (0..self.slots.len()).filter(|other| *other != slot);
            let other = others.filter_map(|other| Some((other, self.visible(other, header.id)?))).next();
            let Some((other, there)) = other.filter(|_| !self.hidden.contains(&(header.id, slot))) else {
                continue;
            };
            let rank = |header: &Header| (header.validated, header.version);
            let (winner, loser) = if rank(header) > rank(there) { (slot, other) } else { (other, slot) };
            losers.push(Loser { object: header.id, slot: loser, winner });
        }
        for loser in &losers {
            self.hidden.insert((loser.object, loser.slot));
        }
        if flush {
            self.tidy_after_flush(losers);
        } else {
            self.tidy(losers, false);
        }
    }

    fn tidy_after_flush(&mut self, losers: Vec<Loser>) {
        if losers.is_empty() {
            return;
        }
        let slots = self.working_slots();
        let token = self.inner(Inner::Tidy { losers, left: slots.len(), failed: false });
        for slot in slots {
            if let Some(store) = self.slots.get_mut(slot).and_then(|slot| slot.store.as_mut()) {
                store.submit(token, Op::Flush);
            }
        }
    }

    /// The winners are durable, unless a disk failed meanwhile: losers of winners that are gone count again.
    pub(super) fn tidy(&mut self, losers: Vec<Loser>, failed: bool) {
        let (kept, orphaned): (Vec<Loser>, Vec<Loser>) =
            losers.into_iter().partition(|loser| self.visible(loser.winner, loser.object).is_some());
        for loser in orphaned {
            self.hidden.remove(&(loser.object, loser.slot));
        }
        // Those that were deleted with their object are not hidden any more.
        let kept: Vec<Loser> =
            kept.into_iter().filter(|loser| self.hidden.contains(&(loser.object, loser.slot))).collect();
        if failed {
            return self.tidy_after_flush(kept);
        }
        for loser in kept {
            if self.lacks(loser) {
                self.keep_spare(loser);
            } else {
                self.delete_hidden(loser.object, loser.slot);
            }
        }
    }

    /// Whether the winner has lost blocks, which the other one may have.
    fn lacks(&self, loser: Loser) -> bool {
        self.store(loser.winner).is_some_and(|store| store.lost().contains_key(&loser.object))
    }

    /// Nothing lifts a copy that was never current: it may stay, and counts for nothing but its contents.
    fn keep_spare(&mut self, loser: Loser) {
        let Some(header) = self.store(loser.slot).and_then(|store| store.header(loser.object)) else {
            return;
        };
        let header = Header { validated: Epoch(0), ..*header };
        let token = self.inner(Inner::Spare { loser, left: 2 });
        self.submit_to(Some(loser.slot), token, Op::SetHeader { header });
        self.submit_to(Some(loser.slot), token, Op::Flush);
    }

    pub(super) fn spare_kept(&mut self, loser: Loser) {
        let place = (loser.object, loser.slot);
        if self.hidden.contains(&place) && self.find(loser.object).is_some() {
            self.spares.insert(place);
        } else {
            self.hidden.remove(&place);
        }
    }

    /// Reads a spare copy.
    pub fn read_spare(&mut self, token: u64, object: ObjectId, len: u32) {
        let slot = self.spare_slot(object);
        self.submit_to(slot, token, Op::Salvage { object, offset: 0, len });
    }

    /// The copy that counts is durable: if it lacks nothing any more, the spare one goes.
    pub fn drop_spare(&mut self, object: ObjectId) {
        if self.lost_in(object) == 0
            && let Some(slot) = self.spare_slot(object)
        {
            self.spares.remove(&(object, slot));
            self.delete_hidden(object, slot);
        }
    }

    /// A disk has failed: spare copies of what it had are the only ones now, such as they are.
    pub(super) fn free_spares(&mut self, failed: usize) {
        self.spares.retain(|(_, slot)| *slot != failed);
        let alone: Vec<_> =
            self.spares.iter().copied().filter(|(object, _)| self.find(*object).is_none()).collect();
        for place in alone {
            self.spares.remove(&place);
            self.hidden.remove(&place);
        }
    }
}
