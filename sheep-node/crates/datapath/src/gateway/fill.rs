//! Flattening: a clone gets everything that it reads from its origin, beside what clients do.
//!
//! The map is gone through, entry after entry. An object that lacks blocks, or is another lineage's, is read range by
//! range, and what the own object has not is written to it like any other write. Blocks that clients change between
//! such a read and its write are left out. When nothing of an object is absent any more, and that is durable on all
//! members, its entry says so. The end is a pass that finds nothing to do. Nothing but the wish is recorded anywhere: how
//! far it is says the map, and who takes the volume over goes through it from the start.

mod pace;
mod work;

pub(super) use pace::Filled;
pub use pace::{FillProgress, FillState};

use super::OpenMode;
use super::map::{ENTRIES, MapBlock};
use super::read::{Location, ReadOwner};
use super::shared::Core;
use super::volume::{Phase, Volume};
use crate::Mutant;
use sheep_state::{Command, Outcome, Refusal, VdiRecord};
use sheep_types::{ObjectId, ObjectKind, Time};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use work::Job;

/// Entries of the map that are looked at in one step.
const LOOKED_AT: u32 = 4096;
/// Pause between such steps.
const BETWEEN_STEPS: Duration = Duration::from_millis(1);
/// Blocks of the map that wait to be written.
const MAX_BLOCKS: usize = 256;
/// Wait before what could not be filled is looked at again.
const LEFT_PAUSE: Duration = Duration::from_secs(60);
/// Wait after a refused command.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// What a pass is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The map is gone through.
    #[default]
    Looking,
    /// What was found is becoming durable, and entered in the map.
    Flushing,
    /// That nothing is left is being ordered; without a token: the view does not show it yet.
    Ordering { token: Option<u64> },
}

/// How far the flattening of a volume is.
#[derive(Debug, Default)]
pub(super) struct Fill {
    /// It is wanted.
    wanted: bool,
    stage: Stage,
    /// The entry to be looked at next.
    next: u64,
    /// The pass has found something to do.
    found: bool,
    /// The first pass is over.
    again: bool,
    /// Objects that are being filled.
    jobs: BTreeMap<u32, Job>,
    /// Objects in which nothing is absent once this write is on all members. Their entries do not say so yet.
    whole: BTreeMap<u32, u64>,
    /// Blocks of the map that the volume itself is to have.
    blocks: BTreeSet<MapBlock>,
    /// Objects of this pass that cannot be read, or written.
    left: BTreeSet<u32>,
    /// Writes that are not durable: sequence and weight.
    unflushed: VecDeque<(u64, u64)>,
    /// Nothing is done before.
    not_before: Option<Time>,
    /// When a client's operation came last.
    client_at: Option<Time>,
    /// A member has no room.
    no_room: bool,
    /// Bytes that were written.
    bytes: u64,
}

/// What is to be done about an entry.
enum Look {
    Nothing,
    Fill,
    /// It cannot be told now, nor of the rest of its block.
    Unreadable,
    /// Its block of the map is being read, or too much waits.
    Wait,
}

impl Fill {
    /// A client's operation has come.
    pub(super) fn note_client(&mut self, now: Time) {
        self.client_at = Some(now);
    }

    /// A range of an object gets contents by a write. `blank`: what the object was before does not count any more.
    pub(super) fn touch(&mut self, object: ObjectId, range: (u32, u32), blank: bool) {
        if object.kind() != Some(ObjectKind::Data) {
            return;
        }
        if blank {
            self.void(object.index());
        } else if let Some(job) = self.jobs.get_mut(&object.index()) {
            job.touch(range);
        }
    }

    /// An object goes, or becomes another one.
    pub(super) fn void(&mut self, index: u32) {
        self.whole.remove(&index);
        if let Some(job) = self.jobs.get_mut(&index) {
            job.void = true;
        }
    }

    /// A write has given a whole object contents that lacked some, or did not exist.
    pub(super) fn is_whole(&mut self, index: u32, sequence: u64) {
        self.whole.insert(index, sequence);
    }

    /// Everything up to this write is durable.
    pub(super) fn flushed(&mut self, upto: u64) {
        while self.unflushed.front().is_some_and(|(sequence, _)| *sequence <= upto) {
            self.unflushed.pop_front();
        }
    }

    /// A member cannot store what was written.
    pub(super) fn refused(&mut self, now: Time) {
        self.no_room = true;
        self.not_before = Some(now + pace::NO_ROOM_PAUSE);
    }

    /// Entries of these objects say that nothing is absent.
    pub(super) fn entered(&mut self, indexes: &[u32]) {
        self.whole.retain(|index, _| !indexes.contains(index));
    }

    /// The map could not be written.
    pub(super) fn forget_entries(&mut self) {
        self.whole.clear();
        self.blocks.clear();
        self.found = true;
    }

    fn pause(&mut self, until: Time) {
        self.not_before = Some(until);
    }

    /// What is still to be told the map.
    fn is_entered(&self) -> bool {
        self.whole.is_empty() && self.blocks.is_empty()
    }
}

impl Volume {
    /// A newer view, or the volume is open: whether it is to be flattened, and whether it is flat.
    pub(super) fn follow_fill(&mut self, core: &mut Core, record: &VdiRecord) {
        let view = core.view();
        let inherits = view.vid(self.vid).is_some_and(|vid| vid.inherits);
        let wanted = record.flatten && inherits && self.mode == OpenMode::Write;
        if wanted != self.fill.wanted {
            self.drop_reads_for(core, |owner| matches!(owner, ReadOwner::Fill { .. }));
            let whole = std::mem::take(&mut self.fill.whole);
            self.fill = Fill { wanted, whole, ..Fill::default() };
            self.again = true;
        }
        if !inherits && self.map.has_origin() {
            self.forget_origin(core);
        }
        let asked = record.lock.is_some_and(|lock| lock.asked);
        if self.background && (asked || !wanted) {
            self.close(core);
        }
    }

    /// The volume does not read through its origin any more. What is being read from there is read anew.
    fn forget_origin(&mut self, core: &mut Core) {
        self.map.forget_origin();
        self.loading.retain(|at| at.layer == 0);
        self.drop_reads_for(core, |owner| matches!(owner, ReadOwner::Map(at) if at.layer > 0));
        self.reads_begin_anew(core);
    }

    /// The volume goes on under another vid.
    pub(super) fn restart_fill(&mut self, core: &mut Core) {
        self.drop_reads_for(core, |owner| matches!(owner, ReadOwner::Fill { .. }));
        let Fill { wanted, again, next, client_at, bytes, .. } = std::mem::take(&mut self.fill);
        self.fill = Fill { wanted, again, next, client_at, bytes, found: true, ..Fill::default() };
    }

    /// When to go on.
    pub(super) fn fill_deadline(&self) -> Option<Time> {
        self.fill.not_before.filter(|_| self.fill.wanted)
    }

    /// Goes on with flattening, if it is wanted and clients' work lets it.
    pub(super) fn step_fill(&mut self, core: &mut Core) {
        if self.fill.not_before.is_some_and(|time| time <= core.now) {
            self.fill.not_before = None;
        }
        let may = self.fill.wanted
            && matches!(self.phase, Phase::Serving)
            && !self.is_still()
            && core.lease_valid()
            && self.fill.not_before.is_none();
        if !may {
            return;
        }
        match self.fill.stage {
            Stage::Looking => self.look_on(core),
            Stage::Flushing if core.config.mutants.is(Mutant::FlattenedUnfinished) => {
                self.fill.found = false;
                self.end_pass(core);
            }
            Stage::Flushing => {
                self.leave_stuck();
                if self.fill.is_entered() { self.end_pass(core) } else { self.want_cycle(core) }
            }
            Stage::Ordering { .. } => {}
        }
    }

    /// Objects with writes that some member cannot store will not be entered soon: they are left for another pass.
    fn leave_stuck(&mut self) {
        let (objects, vid) = (&self.objects, self.vid);
        let is_stuck = |index: u32| {
            objects.get(&ObjectId::data(vid, index)).is_some_and(|writes| writes.refused().is_some())
        };
        let before = self.fill.whole.len();
        self.fill.whole.retain(|index, _| !is_stuck(*index));
        self.fill.found |= before > self.fill.whole.len();
    }

    /// Entries wait for a cycle of the flusher. One that has just ended may have been too early for them.
    fn want_cycle(&mut self, core: &Core) {
        self.flusher.wanted |= self.flusher.is_idle();
        self.fill.pause(core.now + pace::CYCLE_PAUSE);
    }

    fn look_on(&mut self, core: &mut Core) {
        let jobs: Vec<u32> = self.fill.jobs.keys().copied().collect();
        for index in jobs {
            self.step_job(core, index);
        }
        let end = self.entries_to_look_at();
        if self.fill.next == 0 {
            self.fill.left.clear();
        }
        let mut left = LOOKED_AT;
        while self.fill.jobs.len() < self.jobs_at_once(core) && self.fill.next < end {
            if left == 0 {
                return self.fill.pause(core.now + BETWEEN_STEPS);
            }
            left -= 1;
            let Ok(index) = u32::try_from(self.fill.next) else { break };
            let look = self.look(core, index);
            match look {
                Look::Wait => return,
                Look::Nothing => {}
                Look::Unreadable => {
                    self.fill.left.insert(index);
                    self.fill.next |= u64::from(ENTRIES - 1);
                }
                Look::Fill => {
                    self.fill.jobs.insert(index, Job::default());
                }
            }
            self.fill.next += 1;
            if matches!(look, Look::Fill) {
                self.step_job(core, index);
            }
        }
        if self.fill.next >= end && self.fill.jobs.is_empty() {
            self.fill.stage = Stage::Flushing;
            self.again = true;
        }
    }

    /// All blocks of the map that the volume's size needs, and those beyond that the volume itself has.
    fn entries_to_look_at(&self) -> u64 {
        let objects = self.size.div_ceil(u64::from(self.geometry.object_size()));
        objects.next_multiple_of(u64::from(ENTRIES)).max(self.map.own_end())
    }

    /// Whether the volume itself has a block of the map.
    fn has_block(&mut self, block: MapBlock) -> Result<bool, Look> {
        match self.map.has_own(block) {
            Ok(has) => Ok(has),
            Err(unread) if self.load(unread) => Err(Look::Wait),
            Err(_) => Err(Look::Unreadable),
        }
    }

    fn look(&mut self, core: &mut Core, index: u32) -> Look {
        let (block, place) = self.map.place(index);
        let beyond = u64::from(index) * u64::from(self.geometry.object_size()) >= self.size;
        if place == 0 && beyond {
            match self.has_block(block) {
                Ok(true) => {}
                Ok(false) => {
                    self.fill.next |= u64::from(ENTRIES - 1);
                    return Look::Nothing;
                }
                Err(look) => return look,
            }
        }
        let location = self.locate(core, index);
        match location {
            Location::Loading => return Look::Wait,
            Location::Unreadable | Location::Unknown => return Look::Unreadable,
            Location::Absent | Location::At(_) => {}
        }
        if place == 0 && self.map.has_own(block) == Ok(false) {
            if self.fill.blocks.len() >= MAX_BLOCKS {
                self.want_cycle(core);
                return Look::Wait;
            }
            self.fill.blocks.insert(block);
            self.fill.found = true;
        }
        if self.flusher.is_discarding(index) {
            self.fill.found = true;
            return Look::Nothing;
        }
        let Location::At(place) = location else { return Look::Nothing };
        let keeps_foreign = core.config.mutants.is(Mutant::FlattensForeign);
        let foreign = !core.view().are_related(place.vid, self.vid) && !keeps_foreign;
        if foreign || place.below.is_some() { Look::Fill } else { Look::Nothing }
    }

    /// All entries were looked at, and what was found is done.
    fn end_pass(&mut self, core: &mut Core) {
        let fill = &mut self.fill;
        let (found, left) = (std::mem::take(&mut fill.found), !fill.left.is_empty());
        (fill.next, fill.again, fill.stage) = (0, true, Stage::Looking);
        if found {
            // What was found may be something to wait for.
            fill.pause(core.now + pace::CYCLE_PAUSE);
        } else if !left {
            let command = Command::Flattened { vdi: self.vdi, generation: self.generation };
            self.fill.stage = Stage::Ordering { token: Some(core.propose(self.handle, command)) };
        } else if self.background {
            self.close(core);
        } else {
            fill.pause(core.now + LEFT_PAUSE);
        }
    }

    /// The result of the command of this page; false if it is another's.
    pub(super) fn handle_fill_ordered(
        &mut self,
        core: &Core,
        token: u64,
        result: &Result<Outcome, Refusal>,
    ) -> bool {
        if self.fill.stage != (Stage::Ordering { token: Some(token) }) {
            return false;
        }
        self.fill.stage = Stage::Ordering { token: None };
        if result.is_err() {
            self.fill.stage = Stage::Looking;
            self.fill.pause(core.now + REFUSED_PAUSE);
        }
        true
    }

    /// Blocks of the map that the volume itself is to have, as changes that change nothing.
    pub(super) fn blocks_to_fill<T>(&mut self) -> BTreeMap<MapBlock, Vec<T>> {
        if self.is_still() {
            return BTreeMap::new();
        }
        let blocks = std::mem::take(&mut self.fill.blocks).into_iter();
        blocks.filter(|block| self.map.has_own(*block) != Ok(true)).map(|block| (block, Vec::new())).collect()
    }

    /// Objects whose entries may say now that nothing is absent: all writes that made it so are durable on all members.
    pub(super) fn filled(&self, core: &Core, upto: u64) -> Vec<u32> {
        if self.is_still() {
            return Vec::new();
        }
        let durable = |index: u32, sequence: u64| {
            let writes = self.objects.get(&ObjectId::data(self.vid, index));
            let first = writes.and_then(|writes| writes.writes.front());
            sequence <= upto && first.is_none_or(|first| first.sequence > sequence)
        };
        let whole = self.fill.whole.iter().filter(|(index, sequence)| durable(**index, **sequence));
        let mut filled: Vec<u32> = whole.map(|(index, _)| *index).collect();
        if core.config.mutants.is(Mutant::FilledBeforeDurable) {
            filled.extend(self.fill.jobs.keys());
        }
        filled
    }
}
