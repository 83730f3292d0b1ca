//! Commands about VDIs and vids.

use super::{Result, Step, is_printable};
use crate::limits::{
    MAX_ATTRIBUTE_VALUE, MAX_ATTRIBUTES, MAX_COPIES, MAX_MAPS_PER_COMMAND, MAX_NAME, MAX_PAST_COPIES,
    MAX_VDIS,
};
use crate::{
    ClusterState, CreateVdi, Guard, Limited, LineageRecord, Outcome, PastCopies, Refusal, SNAPSHOT_MARK,
    VdiRecord, VidRecord,
};
use sheep_types::{Birth, Epoch, MIN_VOLUME_SIZE, SECTOR_SIZE, VdiId};
use std::collections::BTreeMap;
use std::sync::Arc;

impl ClusterState {
    pub(crate) fn create_vdi(&mut self, step: &mut Step, create: &CreateVdi) -> Result {
        self.check_name(&create.name)?;
        self.check_size(create.size)?;
        let copies = create.copies.unwrap_or(self.settings.copies);
        let min_copies = create.min_copies.unwrap_or(self.settings.min_copies.min(copies));
        check_copies(copies, min_copies)?;
        check_attributes(&create.attributes)?;
        self.check_room()?;
        let (vid, id) = (self.new_vid(), VdiId(step.at.0));
        self.lineages.insert(vid, LineageRecord::new(vid, copies, min_copies));
        self.add_vid(step, VidRecord::new(vid, id, Birth(step.at.0), create.size));
        let record = VdiRecord {
            vid,
            cache: create.cache,
            attributes: create.attributes.clone(),
            ..VdiRecord::new(id, create.name.clone(), create.size, step.at, create.created_unix_ms)
        };
        self.add_vdi(step, record);
        Ok(Outcome::Created { vdi: id, vid })
    }

    /// Whether there may be one more VDI.
    pub(crate) fn check_room(&self) -> Result<()> {
        if self.vdis.len() >= MAX_VDIS {
            return Err(Refusal::Limit { what: Limited::Vdis, limit: MAX_VDIS as u64 });
        }
        self.check_new_vids(1)
    }

    /// Enters a new VDI whose vid is known.
    pub(crate) fn add_vdi(&mut self, step: &mut Step, record: VdiRecord) {
        self.names.insert(record.name.clone(), record.id);
        self.index_snapshot(&record, true);
        step.changes.vdis.push(record.id);
        self.vdis.insert(record.id, record);
    }

    pub(crate) fn delete_vdi(&mut self, step: &mut Step, vdi: VdiId, guard: Guard) -> Result {
        let record = Arc::clone(self.existing(vdi)?);
        self.check_unused(&record)?;
        // An open VDI cannot be deleted, so the holder's guard never holds here.
        if !self.guard_holds(&record, guard, step.origin) {
            return Err(Refusal::StaleGuard);
        }
        self.names.remove(record.name.as_str());
        self.index_snapshot(&record, false);
        self.vdis.remove(&vdi);
        self.index_flattening(vdi, false);
        step.changes.vdis.push(vdi);
        self.bury(step, record.vid);
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
        let record = Arc::clone(self.volume(vdi)?);
        let shrinks = size < record.size;
        let fits = matches!(guard, Guard::Held(_) | Guard::ClosedClean);
        if !fits || !self.guard_holds(&record, guard, step.origin) {
            return Err(Refusal::StaleGuard);
        }
        // Who makes it smaller has discarded what lies beyond the new end, and nobody can have written there since.
        if shrinks && !(shrink && matches!(guard, Guard::Held(_))) {
            return Err(Refusal::WouldShrink { size: record.size });
        }
        self.edit_vdi(vdi, &mut step.changes, |record| record.size = size);
        if let Some(vid) = self.vids.get_mut(&record.vid) {
            vid.size = size;
            step.changes.vids.push(record.vid);
        }
        Ok(Outcome::Done)
    }

    /// A volume's snapshots take its new name on; a snapshot gets another tag.
    pub(crate) fn rename_vdi(&mut self, step: &mut Step, vdi: VdiId, name: &str) -> Result {
        let record = self.existing(vdi)?;
        if record.name == name {
            return Ok(Outcome::Done);
        }
        let mut renamed = vec![(vdi, name.to_owned())];
        match (record.name.split_once(SNAPSHOT_MARK), name.split_once(SNAPSHOT_MARK)) {
            (None, None) => {
                check_plain(name)?;
                let snapshots = self.snapshots_of(vdi).into_iter();
                let tagged = snapshots.filter_map(|record| Some((record.id, record.tag()?)));
                renamed.extend(tagged.map(|(id, tag)| (id, format!("{name}{SNAPSHOT_MARK}{tag}"))));
            }
            (Some((volume, _)), Some((same, tag))) if volume == same => check_plain(tag)?,
            (_, _) => return Err(Refusal::BadName),
        }
        renamed.iter().try_for_each(|(_, name)| self.check_free(name))?;
        for (vdi, name) in renamed {
            let former = self
                .edit_vdi(vdi, &mut step.changes, |record| std::mem::replace(&mut record.name, name.clone()));
            if let Some(former) = former {
                self.names.remove(former.as_str());
            }
            self.names.insert(name, vdi);
        }
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

    /// All or nothing, and nothing if an attribute is not as expected: who has looked at them and decides something is
    /// not overtaken by somebody who decided something else.
    pub(crate) fn change_attributes(
        &mut self,
        step: &mut Step,
        vdi: VdiId,
        expected: &BTreeMap<String, Option<String>>,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result {
        let record = self.existing(vdi)?;
        if expected.iter().any(|(key, value)| record.attributes.get(key) != value.as_ref()) {
            return Err(Refusal::StaleView);
        }
        let mut attributes = record.attributes.clone();
        for (key, value) in changes {
            check_attribute(key, value.as_deref().unwrap_or_default())?;
            match value {
                Some(value) => attributes.insert(key.clone(), value.clone()),
                None => attributes.remove(key),
            };
        }
        check_attributes(&attributes)?;
        self.edit_vdi(vdi, &mut step.changes, |record| record.attributes = attributes);
        Ok(Outcome::Done)
    }

    /// Sets of objects change with the number of copies, as they do with members: a new epoch, in which a copy
    /// on a node that was not in the former set is not current.
    pub(crate) fn set_copies(&mut self, step: &mut Step, vdi: VdiId, copies: u8, min_copies: u8) -> Result {
        check_copies(copies, min_copies)?;
        let vid = self.existing(vdi)?.vid;
        let down = self.members().iter().find(|member| !member.is_up()).map(|member| member.node);
        let oldest = self.oldest_epoch();
        let until = Epoch(self.epoch().0 + 1);
        let lineage = self.vid(vid).map(|record| record.lineage);
        let record = lineage.and_then(|lineage| self.lineages.get_mut(&lineage)).ok_or(Refusal::NoSuchVdi)?;
        let former = record.copies;
        if let Some(node) = down.filter(|_| copies < former) {
            return Err(Refusal::CopiesAway(node));
        }
        if former != copies {
            if record.past_copies.iter().filter(|past| past.until > oldest).count() >= MAX_PAST_COPIES {
                let limit = MAX_PAST_COPIES as u64;
                return Err(Refusal::Limit { what: Limited::CopiesChanges, limit });
            }
            record.past_copies.retain(|past| past.until > oldest);
            record.past_copies.push(PastCopies { until, copies: former });
        }
        (record.copies, record.min_copies) = (copies, min_copies);
        step.changes.vdis.push(vdi);
        step.force_epoch = former != copies;
        Ok(Outcome::Done)
    }

    /// Whether a command may name these map objects.
    pub(crate) fn check_maps(&self, maps: &[u32]) -> Result<()> {
        if maps.len() > MAX_MAPS_PER_COMMAND {
            return Err(Refusal::Limit { what: Limited::Maps, limit: MAX_MAPS_PER_COMMAND as u64 });
        }
        let limit = self.geometry.objects_in(self.geometry.max_volume_size());
        let limit = limit.div_ceil(u64::from(self.geometry.entries_per_map()));
        match maps.iter().find(|map| u64::from(**map) >= limit) {
            Some(beyond) => Err(Refusal::BadMapIndex(*beyond)),
            None => Ok(()),
        }
    }

    pub(crate) fn existing(&self, vdi: VdiId) -> Result<&Arc<VdiRecord>> {
        self.vdi(vdi).ok_or(Refusal::NoSuchVdi)
    }

    /// Whether a volume can be called so.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        check_plain(name)?;
        self.check_free(name)
    }

    /// Whether nobody is called so, and the name is not too long.
    pub(crate) fn check_free(&self, name: &str) -> Result<()> {
        if name.len() > MAX_NAME {
            return Err(Refusal::BadName);
        }
        match self.vdi_by_name(name) {
            Some(taken) => Err(Refusal::NameTaken { vdi: taken.id }),
            None => Ok(()),
        }
    }

    pub(crate) fn check_size(&self, size: u64) -> Result<()> {
        let (min, max) = (MIN_VOLUME_SIZE, self.geometry.max_volume_size());
        let fits = (min..=max).contains(&size) && size.is_multiple_of(u64::from(SECTOR_SIZE));
        if fits { Ok(()) } else { Err(Refusal::BadSize { size, min, max }) }
    }
}

/// The name of a volume, or the tag of a snapshot.
pub(crate) fn check_plain(name: &str) -> Result<()> {
    let at_ends = |c: char| c == '/' || c.is_whitespace();
    let fits = is_printable(name)
        && !name.contains(SNAPSHOT_MARK)
        && !name.starts_with(at_ends)
        && !name.ends_with(at_ends);
    if fits { Ok(()) } else { Err(Refusal::BadName) }
}

pub(crate) fn check_copies(copies: u8, min_copies: u8) -> Result<()> {
    let fits = (1..=MAX_COPIES).contains(&copies) && (1..=copies).contains(&min_copies);
    if fits { Ok(()) } else { Err(Refusal::BadCopies) }
}

fn check_attribute(key: &str, value: &str) -> Result<()> {
    let fits = (1..=MAX_NAME).contains(&key.len()) && value.len() <= MAX_ATTRIBUTE_VALUE;
    if fits { Ok(()) } else { Err(Refusal::BadAttribute) }
}

pub(crate) fn check_attributes(attributes: &BTreeMap<String, String>) -> Result<()> {
    if attributes.len() > MAX_ATTRIBUTES {
        return Err(Refusal::Limit { what: Limited::Attributes, limit: MAX_ATTRIBUTES as u64 });
    }
    attributes.iter().try_for_each(|(key, value)| check_attribute(key, value))
}
