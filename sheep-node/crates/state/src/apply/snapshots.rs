//! Commands that make vids: snapshots, clones, rollback, and the pause that a snapshot of a group needs.

use super::vdis::{check_attributes, check_copies, check_plain};
use super::{Result, Step};
use crate::limits::{MAX_SNAPSHOTS_PER_COMMAND, MAX_VDIS};
use crate::{
    CloneVdi, ClusterState, Guard, Limited, LineageRecord, Lock, Outcome, Refusal, SNAPSHOT_MARK,
    SnapshotItem, SnapshotMade, SnapshotOf, VdiRecord, VidKind, VidRecord,
};
use sheep_types::{Birth, Generation, VdiId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bit from which on an id has the place of a snapshot in its group.
const PLACE_SHIFT: u32 = 48;

impl ClusterState {
    /// Takes snapshots of all these volumes, or of none.
    pub(crate) fn snapshot(&mut self, step: &mut Step, items: &[SnapshotItem]) -> Result {
        if items.len() > MAX_SNAPSHOTS_PER_COMMAND {
            let limit = MAX_SNAPSHOTS_PER_COMMAND as u64;
            return Err(Refusal::Limit { what: Limited::Snapshots, limit });
        }
        let volumes: BTreeSet<VdiId> = items.iter().map(|item| item.vdi).collect();
        if items.is_empty() || volumes.len() != items.len() {
            return Err(Refusal::BadGroup);
        }
        // A name that is taken is told first: the command may be a repetition of one that was done.
        let names: Vec<String> =
            items.iter().map(|item| self.snapshot_name(item)).collect::<Result<Vec<_>>>()?;
        items.iter().try_for_each(|item| self.check_snapshot(step, item))?;
        if self.vdis.len().saturating_add(items.len()) > MAX_VDIS {
            return Err(Refusal::Limit { what: Limited::Vdis, limit: MAX_VDIS as u64 });
        }
        self.check_new_vids(items.len())?;
        let mut made = Vec::new();
        for (place, (item, name)) in (0u64..).zip(items.iter().zip(names)) {
            let id = VdiId(step.at.0 | place << PLACE_SHIFT);
            made.extend(self.take_snapshot(step, item, id, name));
        }
        Ok(Outcome::Snapshots(made))
    }

    fn snapshot_name(&self, item: &SnapshotItem) -> Result<String> {
        let volume = self.volume(item.vdi)?;
        check_plain(&item.tag)?;
        let name = format!("{}{SNAPSHOT_MARK}{}", volume.name, item.tag);
        self.check_free(&name)?;
        Ok(name)
    }

    fn check_snapshot(&self, step: &Step, item: &SnapshotItem) -> Result<()> {
        check_attributes(&item.attributes)?;
        let volume = self.volume(item.vdi)?;
        self.check_lineage(volume.vid)?;
        if self.snapshots_unguarded() {
            return Ok(());
        }
        match item.guard {
            Guard::ClosedClean | Guard::Held(_) | Guard::Paused { .. } => {}
            Guard::Closed(_) => return Err(Refusal::StaleGuard),
        }
        if self.snapshots_unsettled() && item.guard == Guard::ClosedClean && volume.lock.is_none() {
            return Ok(());
        }
        if !self.guard_holds(volume, item.guard, step.origin) {
            return Err(Refusal::StaleGuard);
        }
        // Copies that are not settled must not be frozen.
        let settled = volume.is_clean() || volume.is_settled();
        if settled { Ok(()) } else { Err(Refusal::NotClean) }
    }

    /// The working vid becomes the snapshot's, and the volume goes on under a new one with the same map objects.
    fn take_snapshot(
        &mut self,
        step: &mut Step,
        item: &SnapshotItem,
        id: VdiId,
        name: String,
    ) -> Option<SnapshotMade> {
        let volume = Arc::clone(self.vdi(item.vdi)?);
        let working = self.new_vid();
        let record = self.vids.get_mut(&volume.vid)?;
        (record.kind, record.vdi) = (VidKind::Snapshot { since: step.at }, Some(id));
        let next = VidRecord {
            vid: working,
            vdi: Some(volume.id),
            birth: Birth(step.at.0),
            parent: Some(volume.vid),
            kind: VidKind::Working,
            ..record.clone()
        };
        step.changes.vids.push(volume.vid);
        self.add_vid(step, next);
        self.edit_vdi(volume.id, &mut step.changes, |volume| {
            volume.vid = working;
            if let (Guard::Paused { .. }, Some(lock)) = (item.guard, &mut volume.lock) {
                (lock.pause_asked, lock.paused) = (None, None);
            }
        });
        let snapshot = VdiRecord {
            snapshot_of: Some(SnapshotOf { vdi: volume.id, since: step.at }),
            vid: volume.vid,
            cache: volume.cache,
            attributes: item.attributes.clone(),
            ..VdiRecord::new(id, name, volume.size, step.at, item.created_unix_ms)
        };
        self.add_vdi(step, snapshot);
        Some(SnapshotMade { vdi: id, vid: volume.vid, volume: volume.id, working })
    }

    /// A new volume that reads through a snapshot until it is written.
    pub(crate) fn clone_vdi(&mut self, step: &mut Step, clone: &CloneVdi) -> Result {
        self.check_name(&clone.name)?;
        let snapshot = Arc::clone(self.a_snapshot(clone.snapshot)?);
        let size = clone.size.unwrap_or(snapshot.size);
        self.check_size(size)?;
        if size < snapshot.size {
            return Err(Refusal::WouldShrink { size: snapshot.size });
        }
        check_attributes(&clone.attributes)?;
        self.check_depth(snapshot.vid)?;
        let from = Arc::clone(self.lineage_of(snapshot.vid).ok_or(Refusal::NoSuchVdi)?);
        let copies = clone.copies.unwrap_or(from.copies);
        let min_copies = clone.min_copies.unwrap_or(from.min_copies.min(copies));
        check_copies(copies, min_copies)?;
        self.check_room()?;
        let (vid, id) = (self.new_vid(), VdiId(step.at.0));
        self.lineages.insert(
            vid,
            LineageRecord { origin: Some(snapshot.vid), ..LineageRecord::new(vid, copies, min_copies) },
        );
        self.edit_kin(snapshot.vid, |kin| kin.clones.insert(vid));
        let record = VidRecord {
            parent: Some(snapshot.vid),
            inherits: true,
            ..VidRecord::new(vid, id, Birth(step.at.0), size)
        };
        self.add_vid(step, record);
        let record = VdiRecord {
            vid,
            cache: clone.cache,
            attributes: clone.attributes.clone(),
            ..VdiRecord::new(id, clone.name.clone(), size, step.at, clone.created_unix_ms)
        };
        self.add_vdi(step, record);
        Ok(Outcome::Created { vdi: id, vid })
    }

    /// A volume gets the contents of one of its snapshots again. What it had is gone.
    pub(crate) fn rollback(&mut self, step: &mut Step, vdi: VdiId, snapshot: VdiId, guard: Guard) -> Result {
        let volume = Arc::clone(self.volume(vdi)?);
        let from = Arc::clone(self.a_snapshot(snapshot)?);
        if from.snapshot_of.is_none_or(|of| of.vdi != vdi) {
            return Err(Refusal::NotItsSnapshot);
        }
        let closed = matches!(guard, Guard::ClosedClean | Guard::Closed(_));
        if !closed || !self.guard_holds(&volume, guard, step.origin) {
            return Err(Refusal::StaleGuard);
        }
        if !volume.is_clean() {
            return Err(Refusal::NotClean);
        }
        if !volume.readers.is_empty() {
            return Err(Refusal::InUseByReaders(volume.readers.len() as u32));
        }
        self.check_lineage(from.vid)?;
        self.check_new_vids(1)?;
        let vid = self.new_vid();
        let source = self.vid(from.vid).ok_or(Refusal::NoSuchVdi)?;
        let record = VidRecord {
            vid,
            vdi: Some(vdi),
            birth: Birth(step.at.0),
            parent: Some(from.vid),
            kind: VidKind::Working,
            ..VidRecord::clone(source)
        };
        self.add_vid(step, record);
        let inherits = self.vid(vid).is_some_and(|record| record.inherits);
        self.edit_vdi(vdi, &mut step.changes, |record| {
            (record.vid, record.size, record.clean_since) = (vid, from.size, Some(step.at));
            // What somebody knows of the contents that he left when he closed it holds no more.
            record.last_generation = Generation(step.at.0);
            record.flatten &= inherits;
        });
        self.bury(step, volume.vid);
        Ok(Outcome::RolledBack { vid })
    }

    /// The holder is asked to pause.
    pub(crate) fn ask_pause(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        generation: Generation,
        token: u64,
    ) -> Result {
        let lock = self.volume(vdi)?.lock.filter(|lock| lock.generation == generation);
        let lock = lock.ok_or(Refusal::StaleGuard)?;
        if lock.pause_asked.is_some_and(|former| former != token) {
            return Err(Refusal::Paused);
        }
        self.edit_lock(step, vdi, |lock| lock.pause_asked = Some(token));
        Ok(Outcome::Done)
    }

    /// The holder takes nothing further until the snapshot of its group is made or called off.
    pub(crate) fn pause(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        generation: Generation,
        token: u64,
    ) -> Result {
        self.held_vid(step, vdi, generation)?;
        // Called off meanwhile: nobody would order that it goes on.
        if self.existing(vdi)?.lock.is_none_or(|lock| lock.pause_asked != Some(token)) {
            return Err(Refusal::StaleGuard);
        }
        self.edit_lock(step, vdi, |lock| lock.paused = Some(token));
        Ok(Outcome::Paused { at: step.at })
    }

    /// The pause with this token ends, if there is one; anybody may order it. The group's snapshot, if it is still to
    /// come, does nothing.
    pub(crate) fn resume(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        generation: Generation,
        token: u64,
    ) -> Result {
        let lock = self.existing(vdi)?.lock.filter(|lock| lock.generation == generation);
        let lock = lock.ok_or(Refusal::StaleGuard)?;
        if lock.pause_asked == Some(token) {
            self.edit_lock(step, vdi, |lock| (lock.pause_asked, lock.paused) = (None, None));
        }
        Ok(Outcome::Done)
    }

    fn edit_lock(&mut self, step: &mut Step, vdi: VdiId, edit: impl FnOnce(&mut Lock)) {
        self.edit_vdi(vdi, &mut step.changes, |record| {
            if let Some(lock) = &mut record.lock {
                edit(lock);
            }
        });
    }

    /// A VDI that is not a snapshot.
    pub(crate) fn volume(&self, vdi: VdiId) -> Result<&Arc<VdiRecord>> {
        let record = self.existing(vdi)?;
        if record.is_snapshot() { Err(Refusal::IsSnapshot) } else { Ok(record) }
    }

    fn a_snapshot(&self, vdi: VdiId) -> Result<&Arc<VdiRecord>> {
        let record = self.existing(vdi)?;
        if record.is_snapshot() { Ok(record) } else { Err(Refusal::NotASnapshot) }
    }

    fn snapshots_unsettled(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::SnapshotUnsettled);
        #[cfg(not(feature = "mutants"))]
        false
    }

    fn snapshots_unguarded(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::SnapshotUnguarded);
        #[cfg(not(feature = "mutants"))]
        false
    }
}
