//! All objects of a store, in memory.

use crate::Header;
use crate::map::{BlockMap, Run};
use crate::record::{OBJECT_FIXED, OBJECT_RUN_LEN, OBJECT_SUM_LEN, Record};
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

/// What a record did to the use of blocks.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Data runs with one user less.
    pub(crate) dropped: Vec<Run>,
    /// A page with one user less.
    pub(crate) dropped_page: Option<PageRef>,
    /// Data runs with one user more.
    pub(crate) shared: Vec<Run>,
    /// A page with one user more.
    pub(crate) shared_page: Option<PageRef>,
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Index {
    objects: BTreeMap<ObjectId, Object>,
    /// Runs of all maps.
    runs: u64,
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
            + self.delta * OBJECT_SUM_LEN as u64
    }

    /// Most pages that a checkpoint can have to write now.
    pub(crate) fn pages_to_fold(&self, above: usize) -> u64 {
        (self.objects.len() as u64).min(self.delta / (above as u64 + 1))
    }

    /// Objects whose delta is longer than `above`.
    pub(crate) fn to_fold(&self, above: usize) -> Vec<ObjectId> {
        self.objects.values().filter(|o| o.sums.delta().len() > above).map(|o| o.header.id).collect()
    }

    /// Changes an object in place, keeping the totals right.
    pub(crate) fn change<T>(&mut self, id: ObjectId, f: impl FnOnce(&mut Object) -> T) -> Option<T> {
        let object = self.objects.get_mut(&id)?;
        let (runs, delta) = (object.map.runs().len() as u64, object.sums.delta().len() as u64);
        let result = f(object);
        self.runs = self.runs - runs + object.map.runs().len() as u64;
        self.delta = self.delta - delta + object.sums.delta().len() as u64;
        Some(result)
    }

    /// Puts an object in, from a checkpoint; `false` if there is one of that name.
    pub(crate) fn insert(&mut self, header: Header, map: BlockMap, sums: Sums) -> bool {
        self.runs += map.runs().len() as u64;
        self.delta += sums.delta().len() as u64;
        self.objects.insert(header.id, Object { header, map, sums }).is_none()
    }

    fn remove(&mut self, id: ObjectId, effects: &mut Effects) {
        if let Some(object) = self.objects.remove(&id) {
            self.runs -= object.map.runs().len() as u64;
            self.delta -= object.sums.delta().len() as u64;
            effects.dropped.extend(object.map.data());
            effects.dropped_page = object.sums.base;
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
                effects.shared_page = copy.sums.base;
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
