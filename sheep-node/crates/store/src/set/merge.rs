//! All objects as one sequence, and objects that two disks have.
//!
//! A disk that was away comes back with old copies; a crash in the middle of a move leaves two equal ones. The copy that
//! was called current later counts, or has more of the writes; the other one is deleted when that one is durable.

use super::{Inner, NOTES, StoreSet};
use crate::{Header, Op};
use sheep_types::ObjectId;

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
            self.delete_hidden(loser.object, loser.slot);
        }
    }
}
