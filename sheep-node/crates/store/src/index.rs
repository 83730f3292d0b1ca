//! All objects of a store, in memory.

use crate::Header;
use crate::map::{BlockMap, MapRun, Run};
use crate::record::{OBJECT_CHANGE_LEN, OBJECT_FIXED, OBJECT_RUN_LEN, Record};
use crate::resident::Resident;
use crate::sums::{PageRef, Sums};
use sheep_types::ObjectId;
use std::collections::BTreeMap;

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) header: Header,
    /// Where all its blocks are if `whole`, otherwise only those of the delta; the others are in the map page.
    pub(crate) map: BlockMap,
    pub(crate) sums: Sums,
    /// The whole map is in memory.
    pub(crate) whole: bool,
    /// The map was needed since the hand of the clock came by.
    used: bool,
}

impl Object {
    /// An object as a checkpoint or a put describes it: with a map page, `map` is what the page does not have.
    pub(crate) fn new(header: Header, map: BlockMap, sums: Sums) -> Self {
        Self { header, map, whole: sums.map.is_none(), sums, used: false }
    }

    /// Its map page, if that has what is not in memory.
    pub(crate) fn missing_map(&self) -> Option<PageRef> {
        self.sums.map.filter(|_| !self.whole)
    }

    /// What it adds to the totals.
    fn weight(&self) -> Weight {
        let paged = self.sums.map.is_some();
        let runs = if paged { 0 } else { self.map.runs().len() as u64 };
        let delta = self.sums.delta().len() as u64;
        let resident = (paged && self.whole).then(|| self.map.heap_bytes() as u64);
        Weight { runs, paged: u64::from(paged), delta, resident }
    }
}

#[derive(Clone, Copy)]
struct Weight {
    runs: u64,
    paged: u64,
    delta: u64,
    /// Bytes of a map that is in memory although a page has it.
    resident: Option<u64>,
}

impl Weight {
    const NONE: Self = Self { runs: 0, paged: 0, delta: 0, resident: None };
}

/// What a record did to the use of blocks.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Data runs with one user less.
    pub(crate) dropped: Vec<Run>,
    /// Pages with one user less.
    pub(crate) dropped_pages: Vec<PageRef>,
    /// Data runs with one user more.
    pub(crate) shared: Vec<Run>,
    /// Pages with one user more.
    pub(crate) shared_pages: Vec<PageRef>,
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Index {
    objects: BTreeMap<ObjectId, Object>,
    /// Runs of all maps that are in no page.
    runs: u64,
    /// Objects with a map page.
    paged: u64,
    /// Entries of all deltas.
    delta: u64,
    /// Objects with lost blocks, and how many.
    lost: BTreeMap<ObjectId, u32>,
    resident: Resident,
}

impl Index {
    pub(crate) fn get(&self, id: ObjectId) -> Option<&Object> {
        self.objects.get(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Objects with lost blocks, and how many.
    pub(crate) fn lost(&self) -> &BTreeMap<ObjectId, u32> {
        &self.lost
    }

    /// Counts the lost blocks of an object whose map is whole.
    pub(crate) fn count_lost(&mut self, id: ObjectId) {
        let lost = self.objects.get(&id).map_or(0, |object| object.map.lost(0, u32::MAX));
        self.set_lost(id, lost);
    }

    fn set_lost(&mut self, id: ObjectId, lost: u32) {
        if lost > 0 {
            self.lost.insert(id, lost);
        } else {
            self.lost.remove(&id);
        }
    }

    /// Keeps the count right when runs are put into an object.
    fn weigh_lost(&mut self, id: ObjectId, runs: &[MapRun]) {
        let new: u32 = runs.iter().filter(|run| run.is_lost()).map(|run| run.count()).sum();
        let before = self.lost.get(&id).copied().unwrap_or_default();
        if before + new > 0
            && let Some(object) = self.objects.get(&id)
        {
            let old: u32 = runs.iter().map(|run| object.map.lost(run.first(), run.end())).sum();
            self.set_lost(id, (before + new).saturating_sub(old));
        }
    }

    /// Bytes of memory that all objects take, nodes of the tree that are not full left out.
    pub(crate) fn heap_bytes(&self) -> u64 {
        let each = size_of::<(ObjectId, Object)>();
        self.objects.values().map(|o| (each + o.map.heap_bytes() + o.sums.heap_bytes()) as u64).sum()
    }

    /// Objects from `from` on.
    pub(crate) fn from(&self, from: ObjectId) -> impl Iterator<Item = &Object> {
        self.objects.range(from..).map(|(_, o)| o)
    }

    /// Checksums that are in no page.
    pub(crate) fn delta(&self) -> u64 {
        self.delta
    }

    /// Most bytes that the object records of a checkpoint can take now.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        self.objects.len() as u64 * OBJECT_FIXED as u64
            + self.runs * OBJECT_RUN_LEN as u64
            + self.delta * OBJECT_CHANGE_LEN as u64
    }

    /// Most pages that a checkpoint can have to write now, if deltas longer than `fold_above` are folded and maps
    /// of more than `inline_runs` runs get a page.
    pub(crate) fn pages_to_fold(&self, fold_above: usize, inline_runs: usize) -> u64 {
        let folds = (self.objects.len() as u64).min(self.delta / (fold_above as u64 + 1));
        folds + folds.min(self.paged + self.runs / (inline_runs as u64 + 1))
    }

    /// Objects whose delta is longer than `above`.
    pub(crate) fn to_fold(&self, above: usize) -> Vec<ObjectId> {
        self.objects.values().filter(|o| o.sums.delta().len() > above).map(|o| o.header.id).collect()
    }

    /// Changes an object in place, keeping the totals right.
    pub(crate) fn change<T>(&mut self, id: ObjectId, f: impl FnOnce(&mut Object) -> T) -> Option<T> {
        let object = self.objects.get_mut(&id)?;
        let before = object.weight();
        let result = f(object);
        let after = object.weight();
        self.weigh(id, before, after);
        Some(result)
    }

    /// Puts an object in; `false`, and nothing done, if there is one of that name.
    pub(crate) fn insert(&mut self, object: Object) -> bool {
        let (id, weight) = (object.header.id, object.weight());
        if self.objects.contains_key(&id) {
            return false;
        }
        self.objects.insert(id, object);
        self.weigh(id, Weight::NONE, weight);
        true
    }

    fn weigh(&mut self, id: ObjectId, before: Weight, after: Weight) {
        self.runs = self.runs - before.runs + after.runs;
        self.paged = self.paged - before.paged + after.paged;
        self.delta = self.delta - before.delta + after.delta;
        self.resident.change(id, before.resident, after.resident);
    }

    /// The map of an object is needed: its page, if it is not in memory.
    pub(crate) fn use_map(&mut self, id: ObjectId) -> Option<PageRef> {
        let object = self.objects.get_mut(&id)?;
        object.used = true;
        object.missing_map()
    }

    /// What the map page of an object holds: with what has changed since the map is whole. `false` if it has another
    /// page or none.
    pub(crate) fn take_map(
        &mut self,
        id: ObjectId,
        page: PageRef,
        mut map: BlockMap,
        changes_too: bool,
    ) -> bool {
        let taken = self.change(id, |object| {
            if object.whole || object.sums.map != Some(page) {
                return false;
            }
            if changes_too {
                map.overlay(&object.map);
            }
            map.trim();
            object.map = map;
            object.whole = true;
            true
        });
        taken == Some(true)
    }

    /// Leaves maps out of memory that pages have, until those that are left take at most `limit` bytes.
    pub(crate) fn shed_maps(&mut self, limit: u64, pinned: impl Fn(ObjectId) -> bool) {
        // Twice round: the first time only takes the marks away.
        let mut turns = 2 * self.resident.len() + 1;
        while self.resident.bytes() > limit
            && turns > 0
            && let Some(id) = self.resident.turn()
        {
            turns -= 1;
            self.change(id, |object| {
                let keep = std::mem::take(&mut object.used) || pinned(id);
                if !keep {
                    object.map = object.sums.changed(&object.map);
                    object.whole = false;
                }
            });
        }
    }

    fn remove(&mut self, id: ObjectId, effects: &mut Effects) {
        if let Some(object) = self.objects.remove(&id) {
            self.weigh(id, object.weight(), Weight::NONE);
            self.lost.remove(&id);
            effects.dropped.extend(object.map.data());
            effects.dropped_pages.extend(object.sums.pages());
        }
    }

    /// Does what a record says. `None`, and nothing done, if it names an object that is not there. The effects are
    /// true only if the maps of all objects that it names are whole; what the index holds afterwards always is.
    pub(crate) fn apply(&mut self, record: &Record) -> Option<Effects> {
        let mut effects = Effects::default();
        match record {
            Record::Put { header, reset, runs, crcs } => {
                if *reset {
                    self.remove(header.id, &mut effects);
                    self.insert(Object::new(*header, BlockMap::default(), Sums::default()));
                }
                self.weigh_lost(header.id, runs);
                let dropped = self.change(header.id, |object| {
                    object.header = *header;
                    put(object, runs, crcs)
                })?;
                effects.dropped.extend(dropped);
            }
            Record::SetHeader(header) => {
                self.change(header.id, |object| object.header = *header)?;
            }
            Record::Clone { header, from } => {
                let mut copy = self.objects.get(from)?.clone();
                // A clone onto itself keeps what it has.
                if *from == header.id {
                    self.change(header.id, |object| object.header = *header)?;
                    return Some(effects);
                }
                effects.shared.extend(copy.map.data());
                effects.shared_pages.extend(copy.sums.pages());
                self.remove(header.id, &mut effects);
                copy.header = *header;
                self.set_lost(header.id, self.lost.get(from).copied().unwrap_or_default());
                self.insert(copy);
            }
            Record::Delete(id) => self.remove(*id, &mut effects),
        }
        Some(effects)
    }
}

/// Puts runs and their checksums into an object; returns the data runs that were there.
fn put(object: &mut Object, runs: &[MapRun], mut crcs: &[u32]) -> Vec<Run> {
    let mut dropped = Vec::new();
    for run in runs {
        dropped.extend(object.map.replace(std::slice::from_ref(run)));
        if run.is_zero() {
            object.sums.clear(run.first(), run.end());
        } else if let Some((now, later)) = crcs.split_at_checked(run.count() as usize) {
            object.sums.set(run.first(), now);
            crcs = later;
        }
    }
    dropped
}
