//! The disks of this node: they come, fail and go while it runs, and epochs say so.
//!
//! A copy on a disk is worth what the disk's record in ordered history says. So a disk that fails is an epoch change, like
//! a node that restarts, and between the failure and that epoch nothing is answered that could be affected: whatever was
//! acknowledged in the present epoch may have been on that disk.

use super::{Replica, ReplicaOutput, Timer};
use crate::recovery::FLOORS;
use crate::scrub::{Scrub, ScrubRecord};
use core::time::Duration;
use sheep_placement::{Disk as Placed, Key, disk_for};
use sheep_state::{Command, DiskRecord, DiskState};
use sheep_store::{Condition, Disk, Op, StoreConfig, StoreError, StoreIdentity};
use sheep_types::{Incarnation, ObjectId, Time};
use std::collections::BTreeSet;

/// After this time without its effect in the state, the list of disks is ordered again.
const AGAIN: Duration = Duration::from_millis(500);

/// Listed as the run of a failed disk that has not worked since its node started: whatever epochs say that counted on it
/// in this run of the node, it took part in nothing.
pub(super) const NEVER_WORKED: Incarnation = Incarnation(0);

/// What the cluster was told of the disks.
#[derive(Debug, Default)]
pub(super) struct Disks {
    told: Option<Vec<DiskRecord>>,
    /// Given up for good: not to be listed any more.
    given_up: BTreeSet<u64>,
    /// Empty, and given up once an epoch says so.
    emptied: BTreeSet<u64>,
    /// Those that have worked since the node started.
    worked: BTreeSet<u64>,
}

impl Replica {
    /// Adds a disk and opens its store, or makes one with `format_new`; returns its slot, or `None` if that is not
    /// possible. When it works, an epoch will list it.
    pub fn add_disk(
        &mut self,
        now: Time,
        config: StoreConfig,
        identity: StoreIdentity,
        format_new: bool,
        weight: u32,
    ) -> Option<u8> {
        self.disks.given_up.remove(&identity.store);
        self.disks.emptied.remove(&identity.store);
        let slot = self.store.add(config, identity, format_new, weight);
        self.pump(now);
        slot
    }

    /// Gives a disk up, with whatever is on it; it need not be there any more. The last working one stays.
    pub fn give_up_disk(&mut self, now: Time, id: u64) -> bool {
        let found = self.store.disks().find(|disk| disk.id == id);
        let others = self.store.disks().any(|disk| disk.id != id && disk.condition == Condition::Working);
        if !others {
            return false;
        }
        let is_empty = |disk: &Disk| {
            disk.condition == Condition::Working && disk.weight == 0 && self.objects_on(disk.slot) == 0
        };
        match found {
            // History is to show that nothing was lost with it.
            Some(disk) if is_empty(&disk) => _ = self.disks.emptied.insert(id),
            found => self.drop_disk(id, found),
        }
        self.pump(now);
        self.look_at_disks(now);
        self.pump(now);
        true
    }

    fn drop_disk(&mut self, id: u64, disk: Option<Disk>) {
        self.disks.emptied.remove(&id);
        self.disks.given_up.insert(id);
        if let Some(disk) = disk {
            self.store.remove(disk.slot);
        }
    }

    /// A disk was taken away: as if it had failed.
    pub fn close_disk(&mut self, now: Time, slot: u8) {
        self.store.remove(slot);
        self.pump(now);
    }

    /// Changes a disk's share of objects; without one it is emptied. The last one keeps its share.
    pub fn set_disk_weight(&mut self, now: Time, id: u64, weight: u32) -> bool {
        let takes = |disk: &Disk| disk.id != id && disk.condition == Condition::Working && disk.weight > 0;
        let others = self.store.disks().any(|disk| takes(&disk));
        let Some(slot) = self.store.disks().find(|disk| disk.id == id).map(|disk| disk.slot) else {
            return false;
        };
        if weight == 0 && !others {
            return false;
        }
        self.store.set_weight(slot, weight);
        self.report_disks(now, false);
        self.pump(now);
        true
    }

    /// Copies on all disks, those that do not count too; without what the node notes for itself.
    pub fn objects(&self) -> u64 {
        self.store.disks().map(|disk| self.objects_on(disk.slot)).sum()
    }

    /// The same of one disk.
    pub fn objects_on(&self, slot: u8) -> u64 {
        let notes = ObjectId(u64::from(FLOORS.0) << 32);
        let notes = self.store.objects_on(slot, notes).count() as u64;
        self.store.usage_of(slot).objects.saturating_sub(notes)
    }

    /// Builds what is derived from the headers on a disk. How far scrubbing is, is known once the node has started.
    pub(super) fn load(&mut self, slot: u8, at_start: bool) {
        self.disks.worked.extend(self.store.run_of(slot).map(|(id, _)| id));
        let floors = self.floors.entry(slot).or_default();
        for header in self.store.objects_on(slot, ObjectId(0)) {
            if let Some(record) = ScrubRecord::of(header) {
                if at_start {
                    self.scrub = Scrub::load(record);
                }
                continue;
            }
            if header.id.vid() == FLOORS {
                floors.insert(header.validated);
                continue;
            }
            if header.pending {
                self.pending.insert(header.id);
            }
            self.vids.insert(header.id.vid());
        }
    }

    /// A disk that was added works. Its copies are judged by what epochs say of it.
    pub(super) fn disk_came(&mut self, now: Time, slot: u8) {
        self.floors.remove(&slot);
        self.load(slot, false);
        self.drop_gone(now);
        self.look_at_disks(now);
    }

    /// A disk is not used any more.
    pub(super) fn disk_went(&mut self, now: Time, slot: u8, error: StoreError) {
        self.floors.remove(&slot);
        let there = |object: &ObjectId| self.store.header(*object).is_some();
        self.pending.retain(there);
        self.damaged.retain(there);
        self.outputs.push_back(ReplicaOutput::DiskFailed { slot, error });
        self.look_at_disks(now);
    }

    /// Compares the disks with what the present epoch says of them.
    pub(super) fn look_at_disks(&mut self, now: Time) {
        let careless = self.config.mutants.is(crate::Mutant::ServesWithLostDisk);
        let own = self.view.as_ref().and_then(|view| view.state.members().get(self.me.node));
        let own = own.filter(|own| own.incarnation == self.me.incarnation && self.ready && !careless);
        // One that works and is in no epoch yet counts as well: a copy that was called current on it now could say
        // neither that it is, nor any more when it was.
        self.misses_disk = own.is_some_and(|own| {
            let lost = |disk: &DiskRecord| self.store.working(disk.id) != Some(disk.incarnation);
            let left =
                |id: u64| own.disks.iter().any(|known| known.id == id && known.state == DiskState::Empty);
            let new = |disk: Disk| {
                let working = disk.condition == Condition::Working;
                working && !left(disk.id) && !own.has_disk(disk.id, disk.incarnation)
            };
            !own.disks.is_empty() && (own.working_disks().any(lost) || self.store.disks().any(new))
        });
        let emptied = own.filter(|_| !self.disks.emptied.is_empty()).map(|own| own.disks.clone());
        let emptied = emptied.unwrap_or_default().into_iter().filter(|disk| disk.state == DiskState::Empty);
        for record in emptied.filter(|record| self.disks.emptied.contains(&record.id)).collect::<Vec<_>>() {
            let disk = self.store.disks().find(|disk| disk.id == record.id);
            self.drop_disk(record.id, disk);
        }
        self.report_disks(now, false);
    }

    /// Orders the list of disks if the cluster has another one. `again`: it should have had its effect by now.
    pub(super) fn report_disks(&mut self, now: Time, again: bool) {
        let own = self.view.as_ref().and_then(|view| view.state.node(self.me.node));
        let up = own.filter(|own| own.is_up_as(self.me.incarnation) && self.is_serving());
        let Some(known) = up.map(|own| own.disks.clone()).filter(|known| !known.is_empty()) else {
            self.disks.told = None;
            return;
        };
        let disks = self.records(&known);
        if disks == known {
            self.disks.told = None;
        } else if again || self.disks.told.as_ref() != Some(&disks) {
            self.disks.told = Some(disks.clone());
            self.propose(Command::SetDisks { disks });
            self.timers.set(now + AGAIN, Timer::Disks);
        }
    }

    /// The disks as they are, for the cluster's list, which is `known`.
    fn records(&self, known: &[DiskRecord]) -> Vec<DiskRecord> {
        let before = |id: u64| known.iter().find(|record| record.id == id);
        let here = self.store.disks().filter_map(|disk| match disk.condition {
            Condition::Working => Some(DiskRecord {
                id: disk.id,
                incarnation: disk.incarnation,
                state: if self.disks.emptied.contains(&disk.id) { DiskState::Empty } else { DiskState::Up },
                weight: disk.weight,
            }),
            // What it will be is not known: as it was, but not working.
            Condition::Starting | Condition::Failed => before(disk.id).map(|record| self.failed(record)),
            Condition::Removed => None,
        });
        let mut records: Vec<DiskRecord> = here.collect();
        // Those that the node no longer has anything of, until somebody gives them up.
        let gone = known.iter().filter(|record| self.store.disks().all(|disk| disk.id != record.id));
        records.extend(gone.map(|record| self.failed(record)));
        // One that never worked is listed as such before it goes.
        let told = |record: &DiskRecord| {
            let counted_on = before(record.id).is_some_and(|known| known.state == DiskState::Up);
            record.incarnation != NEVER_WORKED || !counted_on
        };
        records.retain(|record| !self.disks.given_up.contains(&record.id) || !told(record));
        records.sort_unstable();
        records
    }

    /// What is said of a disk that does not work.
    fn failed(&self, known: &DiskRecord) -> DiskRecord {
        let never = known.state == DiskState::Up && !self.disks.worked.contains(&known.id);
        let incarnation = if never { NEVER_WORKED } else { known.incarnation };
        DiskRecord { state: DiskState::Failed, incarnation, ..*known }
    }

    /// The slot that an object belongs on: of the disks that the present epoch counts on. Zero if there is none.
    pub(super) fn home_of(&self, object: ObjectId) -> Option<u8> {
        let view = self.view.as_ref()?;
        let own = view.state.members().get(self.me.node)?;
        let (lineage, kind) = (view.vid(object.vid())?.lineage, object.kind()?);
        let disks = own.working_disks().filter(|disk| self.store.working(disk.id) == Some(disk.incarnation));
        let disks: Vec<Placed> = disks.map(|disk| Placed { id: disk.id, weight: disk.weight }).collect();
        let id = disk_for(&disks, Key { lineage, kind, index: object.index() })?;
        self.store.disks().find(|disk| disk.id == id).map(|disk| disk.slot)
    }

    /// Where an operation makes its object, if it is on no disk.
    pub(super) fn home_for(&self, op: &Op) -> u8 {
        match op {
            Op::Write { header, create: true, .. } | Op::Replace { header, .. }
                if self.store.header(header.id).is_none() =>
            {
                self.home_of(header.id).unwrap_or_default()
            }
            _ => 0,
        }
    }
}
