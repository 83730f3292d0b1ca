//! Commands about VDIs and vids.

use super::{Result, Step, is_printable};
use crate::limits::{
    MAX_ATTRIBUTE_VALUE, MAX_ATTRIBUTES, MAX_COPIES, MAX_MAPS_PER_COMMAND, MAX_NAME, MAX_PAST_COPIES,
    MAX_VDIS, VID_LIMIT,
};
use crate::{
    ClusterState, CreateVdi, Guard, Limited, LineageRecord, Outcome, PastCopies, Refusal, SNAPSHOT_MARK,
    VdiRecord, VidKind, VidRecord,
};
use sheep_types::{Birth, Epoch, Generation, MIN_VOLUME_SIZE, SECTOR_SIZE, VdiId, Vid};
use std::sync::Arc;

impl ClusterState {
    pub(crate) fn create_vdi(&mut self, step: &mut Step, create: &CreateVdi) -> Result {
        self.check_name(&create.name)?;
        self.check_size(create.size)?;
        let copies = create.copies.unwrap_or(self.settings.copies);
        let min_copies = create.min_copies.unwrap_or(self.settings.min_copies.min(copies));
        check_copies(copies, min_copies)?;
        if create.attributes.len() > MAX_ATTRIBUTES {
            return Err(Refusal::Limit { what: Limited::Attributes, limit: MAX_ATTRIBUTES as u64 });
        }
        create.attributes.iter().try_for_each(|(key, value)| check_attribute(key, value))?;
        if self.vdis.len() >= MAX_VDIS {
            return Err(Refusal::Limit { what: Limited::Vdis, limit: MAX_VDIS as u64 });
        }
        let vid = self.new_vid()?;
        let id = VdiId(step.at.0);
        self.vids.insert(
            vid,
            VidRecord {
                vid,
                vdi: Some(id),
                lineage: vid,
                birth: Birth(step.at.0),
                parent: None,
                kind: VidKind::Working,
                size: create.size,
                inherits: false,
                maps: Arc::default(),
            },
        );
        self.lineages.insert(
            vid,
            LineageRecord {
                lineage: vid,
                copies,
                min_copies,
                past_copies: Vec::new(),
                origin: None,
                vids: 1,
                inheriting: 0,
            },
        );
        self.vdis.insert(
            id,
            VdiRecord {
                id,
                name: create.name.clone(),
                snapshot_of: None,
                vid,
                size: create.size,
                cache: create.cache,
                created_unix_ms: create.created_unix_ms,
                attributes: create.attributes.clone(),
                // Nothing was ever written.
                clean_since: Some(step.at),
                lock: None,
                last_generation: Generation(0),
                last_settled: Generation(0),
                ended: Vec::new(),
                attachments: Vec::new(),
                readers: Vec::new(),
            },
        );
        self.names.insert(create.name.clone(), id);
        step.changes.vdis.push(id);
        step.changes.vids.push(vid);
        Ok(Outcome::Created { vdi: id, vid })
    }

    /// Takes the next vid. A number once used is never used again: a node that slept through the deletion would
    /// take old objects for those of the new VDI.
    fn new_vid(&mut self) -> Result<Vid> {
        #[cfg(feature = "mutants")]
        if self.is_mutant(crate::Mutant::VidReuse)
            && let Some(free) = (1..self.next_vid).map(Vid).find(|vid| self.vid(*vid).is_none())
        {
            return Ok(free);
        }
        if self.next_vid >= VID_LIMIT {
            return Err(Refusal::Limit { what: Limited::Vids, limit: u64::from(VID_LIMIT) - 1 });
        }
        let vid = Vid(self.next_vid);
        self.next_vid += 1;
        Ok(vid)
    }

    pub(crate) fn delete_vdi(&mut self, step: &mut Step, vdi: VdiId, guard: Guard) -> Result {
        let record = Arc::clone(self.existing(vdi)?);
        self.check_unused(&record)?;
        // An open VDI cannot be deleted, so the holder's guard never holds here.
        if !self.guard_holds(&record, guard, step.origin) {
            return Err(Refusal::StaleGuard);
        }
        if let Some(vid) = self.vids.remove(&record.vid) {
            self.lineages.remove(&vid.lineage);
        }
        self.names.remove(record.name.as_str());
        self.vdis.remove(&vdi);
        step.changes.vdis.push(vdi);
        step.changes.vids.push(record.vid);
        Ok(Outcome::Done)
    }

    /// Neither held nor read nor attached.
    fn check_unused(&self, record: &VdiRecord) -> Result<()> {
        if let Some(lock) = record.lock {
            return Err(Refusal::Locked { holder: lock.holder, generation: lock.generation });
        }
        if !record.readers.is_empty() {
            return Err(Refusal::InUseByReaders(record.readers.len() as u32));
        }
        match record.attachments.first() {
            Some(attachment) => Err(Refusal::Attached(attachment.node)),
            None => Ok(()),
        }
    }

    pub(crate) fn resize_vdi(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        size: u64,
        guard: Guard,
        shrink: bool,
    ) -> Result {
        self.check_size(size)?;
        let record = Arc::clone(self.existing(vdi)?);
        if record.is_snapshot() {
            return Err(Refusal::IsSnapshot);
        }
        if matches!(guard, Guard::Closed(_)) || !self.guard_holds(&record, guard, step.origin) {
            return Err(Refusal::StaleGuard);
        }
        if size < record.size {
            if !shrink || guard != Guard::ClosedClean {
                return Err(Refusal::WouldShrink { size: record.size });
            }
            if !record.readers.is_empty() {
                return Err(Refusal::InUseByReaders(record.readers.len() as u32));
            }
        }
        self.edit_vdi(vdi, &mut step.changes, |record| record.size = size);
        if let Some(vid) = self.vids.get_mut(&record.vid) {
            vid.size = size;
            step.changes.vids.push(record.vid);
        }
        Ok(Outcome::Done)
    }

    pub(crate) fn rename_vdi(&mut self, step: &mut Step, vdi: VdiId, name: &str) -> Result {
        let record = self.existing(vdi)?;
        if record.name == name {
            return Ok(Outcome::Done);
        }
        let former = record.name.clone();
        self.check_name(name)?;
        self.edit_vdi(vdi, &mut step.changes, |record| record.name = name.to_owned());
        self.names.remove(former.as_str());
        self.names.insert(name.to_owned(), vdi);
        Ok(Outcome::Done)
    }

    pub(crate) fn set_attribute(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        key: &str,
        value: Option<&str>,
    ) -> Result {
        let record = self.existing(vdi)?;
        check_attribute(key, value.unwrap_or_default())?;
        let grows = value.is_some() && !record.attributes.contains_key(key);
        if grows && record.attributes.len() >= MAX_ATTRIBUTES {
            return Err(Refusal::Limit { what: Limited::Attributes, limit: MAX_ATTRIBUTES as u64 });
        }
        self.edit_vdi(vdi, &mut step.changes, |record| match value {
            Some(value) => record.attributes.insert(key.to_owned(), value.to_owned()),
            None => record.attributes.remove(key),
        });
        Ok(Outcome::Done)
    }

    /// Sets of objects change with the number of copies, as they do with members: a new epoch, in which a copy
    /// on a node that was not in the former set is not current.
    pub(crate) fn set_copies(&mut self, step: &mut Step, vdi: VdiId, copies: u8, min_copies: u8) -> Result {
        check_copies(copies, min_copies)?;
        let vid = self.existing(vdi)?.vid;
        let oldest = self.oldest_epoch();
        let until = Epoch(self.epoch().0 + 1);
        let lineage = self.vid(vid).map(|record| record.lineage);
        let record = lineage.and_then(|lineage| self.lineages.get_mut(&lineage)).ok_or(Refusal::NoSuchVdi)?;
        let former = record.copies;
        record.past_copies.retain(|past| past.until > oldest);
        if former != copies {
            if record.past_copies.len() >= MAX_PAST_COPIES {
                let limit = MAX_PAST_COPIES as u64;
                return Err(Refusal::Limit { what: Limited::CopiesChanges, limit });
            }
            record.past_copies.push(PastCopies { until, copies: former });
        }
        (record.copies, record.min_copies) = (copies, min_copies);
        step.changes.vdis.push(vdi);
        step.force_epoch = former != copies;
        Ok(Outcome::Done)
    }

    pub(crate) fn map_exists(
        &mut self,
        step: &mut Step,
        vid: Vid,
        maps: &[u32],
        generation: Generation,
    ) -> Result {
        if maps.len() > MAX_MAPS_PER_COMMAND {
            return Err(Refusal::Limit { what: Limited::Maps, limit: MAX_MAPS_PER_COMMAND as u64 });
        }
        let limit = self.geometry.objects_in(self.geometry.max_volume_size());
        let limit = limit.div_ceil(u64::from(self.geometry.entries_per_map()));
        if let Some(beyond) = maps.iter().find(|map| u64::from(**map) >= limit) {
            return Err(Refusal::BadMapIndex(*beyond));
        }
        if !self.writable(vid) {
            return Err(Refusal::NotWritable(vid));
        }
        if !self.vdi_of(vid).is_some_and(|vdi| vdi.is_held_by(step.origin, generation)) {
            return Err(Refusal::StaleGuard);
        }
        if let Some(record) = self.vids.get_mut(&vid) {
            Arc::make_mut(&mut record.maps).extend(maps.iter().map(|map| (*map, vid)));
            step.changes.vids.push(vid);
        }
        Ok(Outcome::Done)
    }

    pub(crate) fn existing(&self, vdi: VdiId) -> Result<&Arc<VdiRecord>> {
        self.vdi(vdi).ok_or(Refusal::NoSuchVdi)
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let at_ends = |c: char| c == '/' || c.is_whitespace();
        if !is_printable(name)
            || name.contains(SNAPSHOT_MARK)
            || name.starts_with(at_ends)
            || name.ends_with(at_ends)
        {
            return Err(Refusal::BadName);
        }
        match self.vdi_by_name(name) {
            Some(taken) => Err(Refusal::NameTaken { vdi: taken.id }),
            None => Ok(()),
        }
    }

    fn check_size(&self, size: u64) -> Result<()> {
        let (min, max) = (MIN_VOLUME_SIZE, self.geometry.max_volume_size());
        let fits = (min..=max).contains(&size) && size.is_multiple_of(u64::from(SECTOR_SIZE));
        if fits { Ok(()) } else { Err(Refusal::BadSize { size, min, max }) }
    }
}

fn check_copies(copies: u8, min_copies: u8) -> Result<()> {
    let fits = (1..=MAX_COPIES).contains(&copies) && (1..=copies).contains(&min_copies);
    if fits { Ok(()) } else { Err(Refusal::BadCopies) }
}

fn check_attribute(key: &str, value: &str) -> Result<()> {
    let fits = (1..=MAX_NAME).contains(&key.len()) && value.len() <= MAX_ATTRIBUTE_VALUE;
    if fits { Ok(()) } else { Err(Refusal::BadAttribute) }
}
