//! Several stores, one per disk, behind the interface of one.
//!
//! A copy lives on the disk whose index has it; a new one goes where the caller says. Disks come and go while the set
//! runs: one that fails takes its objects with it, and the others go on. With one disk the set is that disk's store.
//!
//! Names of disk operations carry the disk's slot ([`DiskOpId::slot`]), so that one driver serves all.

mod merge;
mod poll;
mod submit;

use crate::{
    DiskOp, DiskOpId, DiskResult, Header, Outcome, Stats, Store, StoreConfig, StoreError, StoreIdentity,
    Usage,
};
use sheep_types::{Incarnation, ObjectId, Vid};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Objects of this vid are notes about a disk itself: each disk has its own of a name, and what is written under one is
/// written on all. No real vid is so high.
pub const NOTES: Vid = Vid(u32::MAX);

/// Tokens of operations of the set itself.
const INTERNAL: u64 = 1 << 63;

/// How a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its store is being opened.
    Starting,
    /// In use.
    Working,
    /// Failed; nothing of it is used.
    Failed,
    /// Taken away.
    Removed,
}

/// What is known of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its place in the set.
    pub slot: u8,
    /// Random number of its store.
    pub id: u64,
    /// Number of its openings in this run: another one may have lost what was not flushed.
    pub incarnation: Incarnation,
    /// Share of new objects, relative to the other disks; a disk without one is being emptied.
    pub weight: u32,
    /// How it is.
    pub condition: Condition,
    /// Why it failed.
    pub error: Option<StoreError>,
    /// How full it is.
    pub usage: Usage,
}

/// Something the set has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetEvent {
    /// Start-up is done: all disks work or have failed.
    Ready,
    /// An operation is done.
    Done {
        /// As given to [`StoreSet::submit`].
        token: u64,
        /// Its result.
        result: Result<Outcome, StoreError>,
    },
    /// A disk that was added works.
    DiskReady(u8),
    /// A disk, not the last one, has failed or was removed: what it had is gone, and operations on it have failed.
    DiskFailed(u8, StoreError),
    /// No disk works any more. Said once.
    Failed(StoreError),
    /// A disk is nearly full.
    SpaceLow(u8),
}

#[derive(Debug)]
struct Slot {
    id: u64,
    incarnation: Incarnation,
    weight: u32,
    condition: Condition,
    error: Option<StoreError>,
    /// There while it is starting or working.
    store: Option<Store>,
    /// How often the slot was used; part of the names of its operations.
    opening: u8,
}

/// An operation of the set itself, or one that several stores take part in.
#[derive(Debug)]
enum Inner {
    /// All stores are asked; the caller is told when the last one has answered.
    Join { token: u64, left: usize, result: Result<(), StoreError> },
    /// Copies that lost against others are deleted when those are durable.
    Tidy { losers: Vec<merge::Loser>, left: usize, failed: bool },
    /// A hidden copy is called never current, durably, and kept.
    Spare { loser: merge::Loser, left: u8 },
    /// A hidden copy is being deleted.
    Delete { object: ObjectId, slot: usize },
}

/// The stores of all disks of a node. See the module's documentation.
#[derive(Debug, Default)]
pub struct StoreSet {
    slots: Vec<Slot>,
    started: bool,
    failed: bool,
    events: VecDeque<SetEvent>,
    inner: BTreeMap<u64, Inner>,
    next_inner: u64,
    /// Copies that do not count: another disk has the object's copy, or is still getting it.
    hidden: BTreeSet<(ObjectId, usize)>,
    /// Of these, durably not current ones that are kept because the copy that counts has lost blocks.
    spares: BTreeSet<(ObjectId, usize)>,
    /// Openings of each store in this run.
    openings: BTreeMap<u64, u64>,
}

impl From<Store> for StoreSet {
    fn from(store: Store) -> Self {
        let mut set = Self::default();
        set.place(store.identity().store, 1, |_| store);
        set
    }
}

impl StoreSet {
    /// A set without disks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a disk and opens its store, or makes one with `format_new`; `identity.store` is the store's number in
    /// either case. Before anything is polled this belongs to the start-up; later [`SetEvent::DiskReady`] or
    /// [`SetEvent::DiskFailed`] tells what came of it. Returns its slot; `None` if there are too many, or the disk
    /// is there already.
    pub fn add(
        &mut self,
        config: StoreConfig,
        identity: StoreIdentity,
        format_new: bool,
        weight: u32,
    ) -> Option<u8> {
        let there = self.slots.iter().any(|slot| slot.id == identity.store && slot.store.is_some());
        let full = self.slots.len() > usize::from(u8::MAX) && self.free_slot(identity.store).is_none();
        if there || full {
            return None;
        }
        Some(self.place(identity.store, weight, |first_id| {
            Store::open_numbered(config, identity, format_new, first_id)
        }))
    }

    fn free_slot(&self, id: u64) -> Option<usize> {
        let same = self.slots.iter().position(|slot| slot.id == id);
        same.or_else(|| self.slots.iter().position(|slot| slot.condition == Condition::Removed))
    }

    fn place(&mut self, id: u64, weight: u32, open: impl FnOnce(u64) -> Store) -> u8 {
        let openings = self.openings.entry(id).or_insert(0);
        *openings += 1;
        let incarnation = Incarnation(*openings);
        let place = self.free_slot(id).unwrap_or(self.slots.len());
        let opening = self.slots.get(place).map_or(0, |slot| slot.opening.wrapping_add(1));
        let first_id = DiskOpId::first(place as u8, opening);
        let slot = Slot {
            id,
            incarnation,
            weight,
            condition: Condition::Starting,
            error: None,
            store: Some(open(first_id)),
            opening,
        };
        match self.slots.get_mut(place) {
            Some(old) => *old = slot,
            None => self.slots.push(slot),
        }
        place as u8
    }

    /// Takes a disk away, whatever is on it. Told by [`SetEvent::DiskFailed`] if it was in use.
    pub fn remove(&mut self, slot: u8) {
        let Some(found) = self.slots.get_mut(usize::from(slot)) else { return };
        match &mut found.store {
            Some(store) => store.close(),
            None => found.condition = Condition::Removed,
        }
    }

    /// Changes a disk's share of new objects.
    pub fn set_weight(&mut self, slot: u8, weight: u32) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            slot.weight = weight;
        }
    }

    /// All disks that are not removed.
    pub fn disks(&self) -> impl Iterator<Item = Disk> {
        let there = self.slots.iter().enumerate().filter(|(_, slot)| slot.condition != Condition::Removed);
        there.map(|(number, slot)| Disk {
            slot: number as u8,
            id: slot.id,
            incarnation: slot.incarnation,
            weight: slot.weight,
            condition: slot.condition,
            error: slot.error.clone(),
            usage: slot.store.as_ref().map(Store::usage).unwrap_or_default(),
        })
    }

    /// Identity and run of a disk that works.
    pub fn run_of(&self, slot: u8) -> Option<(u64, Incarnation)> {
        let slot = self.slots.get(usize::from(slot)).filter(|slot| slot.condition == Condition::Working)?;
        Some((slot.id, slot.incarnation))
    }

    /// The run of the disk with this identity, if it works.
    pub fn working(&self, id: u64) -> Option<Incarnation> {
        let slot = self.slots.iter().find(|slot| slot.id == id && slot.condition == Condition::Working)?;
        Some(slot.incarnation)
    }

    /// Whether there was ever more than one disk: then new objects must be placed.
    pub fn is_several(&self) -> bool {
        self.slots.len() > 1
    }

    /// Takes the result of a disk operation.
    pub fn handle_disk(&mut self, id: DiskOpId, result: DiskResult) {
        if let Some(store) = self.slots.get_mut(usize::from(id.slot())).and_then(|slot| slot.store.as_mut()) {
            store.handle_disk(id, result);
        }
    }

    /// Next disk operation, if any.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        self.slots.iter_mut().find_map(|slot| slot.store.as_mut()?.poll_disk())
    }

    /// A working store.
    fn store(&self, slot: usize) -> Option<&Store> {
        let slot = self.slots.get(slot).filter(|slot| slot.condition == Condition::Working)?;
        slot.store.as_ref()
    }

    /// A disk's copy of an object, if it counts.
    fn visible(&self, slot: usize, object: ObjectId) -> Option<&Header> {
        let header = self.store(slot)?.header(object)?;
        (self.hidden.is_empty() || !self.hidden.contains(&(object, slot))).then_some(header)
    }

    fn find(&self, object: ObjectId) -> Option<(usize, &Header)> {
        (0..self.slots.len()).find_map(|slot| Some((slot, self.visible(slot, object)?)))
    }

    /// Header of an object, from memory.
    pub fn header(&self, object: ObjectId) -> Option<&Header> {
        self.find(object).map(|(_, header)| header)
    }

    /// Header of an object, and the slot of the disk that has it.
    pub fn located(&self, object: ObjectId) -> Option<(u8, &Header)> {
        self.find(object).map(|(slot, header)| (slot as u8, header))
    }

    /// Headers of all objects from `from` on, in order of id. Notes come once for each disk.
    pub fn objects(&self, from: ObjectId) -> impl Iterator<Item = &Header> {
        self.merged(from)
    }

    /// Headers of a disk's objects, notes among them.
    pub fn objects_on(&self, slot: u8, from: ObjectId) -> impl Iterator<Item = &Header> {
        let slot = usize::from(slot);
        let all = self.store(slot).into_iter().flat_map(move |store| store.objects(from));
        all.filter(move |header| !self.hidden.contains(&(header.id, slot)))
    }

    /// Objects with lost blocks, and how many each has.
    pub fn lost(&self) -> impl Iterator<Item = (ObjectId, u32)> {
        let stores = (0..self.slots.len()).filter_map(|slot| Some((slot, self.store(slot)?)));
        let all = stores.flat_map(|(slot, store)| store.lost().iter().map(move |lost| (slot, lost)));
        all.filter(|(slot, (object, _))| !self.hidden.contains(&(**object, *slot)))
            .map(|(_, (o, n))| (*o, *n))
    }

    /// Lost blocks of an object.
    pub fn lost_in(&self, object: ObjectId) -> u32 {
        let store = self.find(object).and_then(|(slot, _)| self.store(slot));
        store.and_then(|store| store.lost().get(&object).copied()).unwrap_or_default()
    }

    /// A disk's own note.
    pub fn note_on(&self, slot: u8, note: ObjectId) -> Option<&Header> {
        self.store(usize::from(slot))?.header(note)
    }

    /// Whether copies that do not count are still to be deleted, or to count.
    pub fn is_tidying(&self) -> bool {
        self.hidden.iter().any(|copy| !self.spares.contains(copy))
    }

    /// A copy that does not count, and may have what the one that does has lost.
    pub fn spare(&self, object: ObjectId) -> Option<&Header> {
        self.store(self.spare_slot(object)?)?.header(object)
    }

    fn spare_slot(&self, object: ObjectId) -> Option<usize> {
        self.spares.range((object, 0)..=(object, usize::MAX)).next().map(|(_, slot)| *slot)
    }

    /// How full the working disks are together.
    pub fn usage(&self) -> Usage {
        let stores = (0..self.slots.len()).filter_map(|slot| self.store(slot));
        stores.map(Store::usage).fold(Usage::default(), |sum, one| Usage {
            capacity: sum.capacity + one.capacity,
            used: sum.used + one.used,
            objects: sum.objects + one.objects,
        })
    }

    /// How full a disk is.
    pub fn usage_of(&self, slot: u8) -> Usage {
        self.store(usize::from(slot)).map(Store::usage).unwrap_or_default()
    }

    /// What the working disks have done since they were opened.
    pub fn stats(&self) -> Stats {
        let stores = (0..self.slots.len()).filter_map(|slot| self.store(slot));
        stores.map(Store::stats).fold(Stats::default(), |sum, one| Stats {
            commits: sum.commits + one.commits,
            checkpoints: sum.checkpoints + one.checkpoints,
            pages: sum.pages + one.pages,
            maps: sum.maps + one.maps,
        })
    }

    /// True once nothing is under way or waiting.
    pub fn is_idle(&self) -> bool {
        self.inner.is_empty() && self.slots.iter().flat_map(|slot| &slot.store).all(Store::is_idle)
    }
}
