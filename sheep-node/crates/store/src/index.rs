//! All objects of a store, in memory.

use crate::Header;
use crate::map::{BlockMap, Run};
use crate::record::{OBJECT_CHANGE_LEN, OBJECT_FIXED, OBJECT_RUN_LEN, Record};
use crate::sums::{PageRef, Sums};
use sheep_types::ObjectId;
use std::collections::BTreeMap;

/// One object.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) header: Header,
    pub(crate) map: BlockMap,
    pub(crate) sums: Sums,
}

impl Object {
    /// What it adds to the totals.
    fn weight(&self) -> Weight {
        let paged = self.sums.map.is_some();
        let runs = if paged { 0 } else { self.map.runs().len() as u64 };
        Weight { runs, paged: u64::from(paged), delta: self.sums.delta().len() as u64 }
    }
}

#[derive(Clone, Copy)]
struct Weight {
    runs: u64,
    paged: u64,
    delta: u64,
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
}

impl Index {
    pub(crate) fn get(&self, id: ObjectId) -> Option<&Object> {
        self.objects.get(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
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
        self.subtract(before);
        self.add(after);
        Some(result)
    }

    /// Puts an object in, from a checkpoint; `false` if there is one of that name.
    pub(crate) fn insert(&mut self, header: Header, map: BlockMap, sums: Sums) -> bool {
        let object = Object { header, map, sums };
        self.add(object.weight());
        self.objects.insert(header.id, object).is_none()
    }

    fn add(&mut self, weight: Weight) {
        self.runs += weight.runs;
        self.paged += weight.paged;
        self.delta += weight.delta;
    }

    fn subtract(&mut self, weight: Weight) {
        self.runs -= weight.runs;
        self.paged -= weight.paged;
        self.delta -= weight.delta;
    }

    fn remove(&mut self, id: ObjectId, effects: &mut Effects) {
        if let Some(object) = self.objects.remove(&id) {
            self.subtract(object.weight());
            effects.dropped.extend(object.map.data());
            effects.dropped_pages.extend(object.sums.pages());
        }
    }

    /// Does what a record says. `None`, and nothing done, if it names an object that is not there.
    pub(crate) fn apply(&mut self, record: &Record) -> Option<Effects> {
        let mut effects = Effects::default();
        match record {
            Record::Put { header, reset, runs, crcs } => {
                if *reset {
                    self.remove(header.id, &mut effects);
                    self.insert(*header, BlockMap::default(), Sums::default());
                }
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
                self.insert(*header, copy.map, copy.sums);
            }
            Record::Delete(id) => self.remove(*id, &mut effects),
        }
        Some(effects)
    }
}

/// Puts runs and their checksums into an object; returns the data runs that were there.
fn put(object: &mut Object, runs: &[crate::map::MapRun], mut crcs: &[u32]) -> Vec<Run> {
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
