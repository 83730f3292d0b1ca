//! Scrubbing: everything that the store has is read on a schedule, and copies are compared.
//!
//! A pass goes over the own objects in the order of their names. Each is read, which checks its checksums; then
//! all up members of its set are asked what theirs hold. A node repairs only its own copy, and only from one that
//! is current at that moment, by the way that recovery goes. What is being written, recovered or settled is
//! looked at again when the pass has come to its end.

mod compare;
mod judge;
mod record;
mod status;

use crate::View;
use crate::recovery::FLOORS;
use crate::replica::{Job, Replica, Timer, is_damaged};
use core::time::Duration;
pub(crate) use record::ScrubRecord;
use sheep_store::{Op, Outcome, StoreError};
use sheep_types::{NodeId, ObjectId, Time, Version};
pub use status::{Finding, ScrubOrder, ScrubStatus};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of one read.
const READ: u32 = 256 << 10;
/// While there is nothing to do, whether a pass is due is looked at this often.
const IDLE: Duration = Duration::from_secs(60);
/// Between two objects, at least.
const STEP: Duration = Duration::from_millis(1);
/// Operations of clients under way above which a read waits,
const BUSY_JOBS: usize = 8;
/// so long before it looks again,
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// but not more often than this for one read: a node that is always busy is scrubbed too, slowly.
const BUSY_PAUSES: u32 = 50;
/// Objects that can wait to be looked at again.
const AGAIN: usize = 4096;
/// How often they are looked at again, and how long after.
const ROUNDS: u32 = 3;
const ROUND_PAUSE: Duration = Duration::from_secs(5);
/// Objects after which the cursor is noted.
const NOTE: u64 = 64;
/// Findings kept until somebody takes them.
const FINDINGS: usize = 256;

/// An object that is being looked at.
#[derive(Debug)]
struct Check {
    object: ObjectId,
    stage: Stage,
    /// When its last read was sent.
    since: Time,
}

#[derive(Debug)]
enum Stage {
    /// It is read; the next read begins here.
    Reading { offset: u32, under_way: bool },
    /// The store is asked what its blocks are.
    Inspecting,
    /// The others are.
    Comparing { missing: BTreeSet<NodeId>, seen: BTreeMap<NodeId, judge::Seen>, unsure: bool },
}

/// What a copy that is to be made good is made equal to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// Only this node's copy will do.
    pub(crate) source: NodeId,
    /// The own copy may be replaced only while it has this version,
    pub(crate) version: Version,
    /// by this one.
    pub(crate) by: Version,
}

/// State of scrubbing.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    record: ScrubRecord,
    /// When the timer that counts fires.
    next: Option<Time>,
    paused: bool,
    check: Option<Check>,
    /// Names the job that the present check waits for.
    serial: u64,
    /// Pauses for clients before the present read.
    pauses: u32,
    /// To be looked at again; with the own version and the newest one if the own copy seemed to lack writes.
    again: BTreeMap<ObjectId, Option<(Version, Version)>>,
    /// Rounds over these that are done, and those left of the present one.
    rounds: u32,
    round: VecDeque<ObjectId>,
    /// Own copies that are not what they should be although their checksums are right.
    doubts: BTreeMap<ObjectId, Doubt>,
    /// Damage that is told and not made good yet.
    told: BTreeSet<ObjectId>,
    told_lost: BTreeSet<ObjectId>,
    /// Objects with lost blocks that were told.
    told_wounds: BTreeSet<ObjectId>,
    /// Objects with blocks that nobody has, and that were told.
    hopeless: BTreeSet<ObjectId>,
    findings: VecDeque<Finding>,
    status: ScrubStatus,
}

impl Scrub {
    pub(crate) fn load(record: ScrubRecord) -> Self {
        Self { record, ..Self::default() }
    }

    fn record(&self) -> ScrubRecord {
        self.record
    }

    /// How the own copy of an object is to be made good, if its checksums are right.
    pub(crate) fn doubt(&self, object: ObjectId) -> Option<Doubt> {
        self.doubts.get(&object).copied()
    }

    /// The own copy of an object has nothing bad any more.
    pub(crate) fn whole(&mut self, object: ObjectId) {
        self.told.remove(&object);
        self.told_wounds.remove(&object);
        self.hopeless.remove(&object);
    }

    /// All blocks could be read but those that are lost.
    pub(crate) fn not_damaged(&mut self, object: ObjectId) {
        self.told.remove(&object);
    }

    fn tell(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS {
            self.findings.push_back(finding);
        }
    }
}

impl Replica {
    /// How far scrubbing is.
    pub fn scrub_status(&self) -> ScrubStatus {
        let scrub = &self.scrub;
        ScrubStatus {
            running: scrub.record.cursor.is_some(),
            paused: scrub.paused,
            objects_total: self.store().usage().objects.saturating_sub(self.floors.len() as u64 + 1),
            objects_again: (scrub.again.len() + scrub.round.len()) as u64,
            last_pass: scrub.record.ended(),
            damaged_now: self.damaged.len() as u64,
            lost_objects: self.store().lost().count() as u64,
            lost_blocks: self.store().lost().map(|(_, blocks)| u64::from(blocks)).sum(),
            ..scrub.status
        }
    }

    /// Takes what was found since the last time.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        self.scrub.findings.drain(..).collect()
    }

    /// Objects of which no copy can be trusted, as far as this node has found out.
    pub fn lost_objects(&self) -> impl Iterator<Item = ObjectId> {
        self.recovery.lost_objects()
    }

    /// An order of an operator.
    pub fn order_scrub(&mut self, now: Time, order: ScrubOrder) {
        match order {
            ScrubOrder::Pause => self.scrub.paused = true,
            ScrubOrder::Start | ScrubOrder::Resume => {
                self.scrub.paused = false;
                if order == ScrubOrder::Start && self.scrub.record.cursor.is_none() {
                    self.begin_pass();
                }
                self.scrub_after(now, Duration::ZERO);
            }
        }
        self.pump(now);
    }

    /// The present time since the Unix epoch.
    fn wall(&self, now: Time) -> Duration {
        self.config.wall + now.since(self.started)
    }

    fn scrub_after(&mut self, now: Time, pause: Duration) {
        self.scrub.next = Some(now + pause);
        self.timers.set(now + pause, Timer::Scrub);
    }

    /// A new epoch: answers about the old one do not count, and the object is looked at once more. Copies that
    /// differ are compared anew.
    pub(crate) fn scrub_epoch(&mut self, now: Time) {
        for object in core::mem::take(&mut self.scrub.doubts).into_keys() {
            self.damaged.remove(&object);
        }
        if let Some(check) = self.scrub.check.take() {
            self.look_again(check.object, None);
        }
        self.scrub.serial += 1;
        self.scrub_after(now, STEP);
    }

    pub(crate) fn scrub_timer(&mut self, now: Time) {
        if self.scrub.next.is_none_or(|next| next > now) {
            return;
        }
        self.scrub.next = None;
        let Some(view) = self.view.clone().filter(|_| self.is_serving() && !self.scrub.paused) else {
            return self.scrub_after(now, IDLE);
        };
        if self.scrub.record.cursor.is_none() && !self.is_due(now, &view) {
            return self.scrub_after(now, IDLE);
        }
        if self.scrub.record.cursor.is_none() {
            self.begin_pass();
        }
        if self.gives_way() && self.scrub.pauses < BUSY_PAUSES {
            self.scrub.pauses += 1;
            return self.scrub_after(now, BUSY_PAUSE);
        }
        self.scrub.pauses = 0;
        match self.scrub.check.as_ref().map(|check| &check.stage) {
            None => self.next_object(now, &view),
            Some(Stage::Reading { under_way: false, .. }) => self.read_on(now, &view),
            Some(Stage::Reading { .. } | Stage::Inspecting | Stage::Comparing { .. }) => {}
        }
    }

    /// Whether it is time for a pass. A node that has never made one waits for as long as after one, and one that
    /// does not know the time of day is never due.
    fn is_due(&mut self, now: Time, view: &View) -> bool {
        if self.config.wall.is_zero() {
            return false;
        }
        let interval = Duration::from_millis(view.state.settings().scrub_interval_ms);
        let wall = self.wall(now);
        if self.scrub.record.last_pass == 0 {
            self.scrub.record.last_pass = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX).max(1);
            self.scrub.record.never = true;
            self.note_scrub();
        }
        let last = Duration::from_millis(self.scrub.record.last_pass);
        !interval.is_zero() && wall >= last + interval
    }

    fn begin_pass(&mut self) {
        self.scrub.record.cursor = Some(ObjectId(0));
        self.scrub.rounds = 0;
        self.scrub.again.clear();
        self.scrub.round.clear();
        self.scrub.status.objects = 0;
        self.note_scrub();
    }

    fn gives_way(&self) -> bool {
        let clients = |job: &&Job| matches!(job, Job::Write { .. } | Job::Read { .. });
        self.recovery.is_moving() || self.jobs().filter(clients).count() > BUSY_JOBS
    }

    fn next_object(&mut self, now: Time, view: &View) {
        if let Some(object) = self.scrub.round.pop_front() {
            return self.look_at(now, view, object);
        }
        let from = self.scrub.record.cursor.unwrap_or_default();
        let next = self.headers_from(from).map(|header| header.id).find(|id| id.vid() != FLOORS);
        if let Some(object) = next {
            self.scrub.record.cursor = Some(ObjectId(object.0.saturating_add(1)));
            self.scrub.status.objects += 1;
            self.scrub.status.objects_ever += 1;
            if self.scrub.status.objects.is_multiple_of(NOTE) {
                self.note_scrub();
            }
            return self.look_at(now, view, object);
        }
        if !self.scrub.again.is_empty() && self.scrub.rounds < ROUNDS {
            self.scrub.rounds += 1;
            self.scrub.round = self.scrub.again.keys().copied().collect();
            return self.scrub_after(now, ROUND_PAUSE);
        }
        self.end_pass(now);
    }

    fn end_pass(&mut self, now: Time) {
        let wall = self.wall(now);
        let scrub = &mut self.scrub;
        scrub.status.skipped += scrub.again.len() as u64;
        scrub.again.clear();
        scrub.status.passes += 1;
        let millis = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        scrub.record = ScrubRecord { cursor: None, last_pass: millis.max(1), never: false };
        self.note_scrub();
        self.submit(Op::Flush, Job::Forget);
        self.scrub_after(now, IDLE);
    }

    /// Begins with an object. What is not current here is none of this node's business yet.
    fn look_at(&mut self, now: Time, view: &View, object: ObjectId) {
        let ours = self.copy(view, object).is_some() && view.in_up_set(object, self.me);
        if !ours {
            self.scrub.again.remove(&object);
            return self.scrub_after(now, STEP);
        }
        if !self.current_in(view, object) {
            self.look_again(object, None);
            return self.scrub_after(now, STEP);
        }
        let stage = Stage::Reading { offset: 0, under_way: false };
        self.scrub.check = Some(Check { object, stage, since: now });
        self.read_on(now, view);
    }

    /// Reads the next piece, or goes on to compare.
    fn read_on(&mut self, now: Time, view: &View) {
        let size = view.state.geometry().object_size();
        let Some(check) = &mut self.scrub.check else { return };
        let Stage::Reading { offset, under_way } = &mut check.stage else { return };
        let object = check.object;
        check.since = now;
        self.scrub.serial += 1;
        let serial = self.scrub.serial;
        if *offset >= size {
            check.stage = Stage::Inspecting;
            return self.submit(Op::Inspect { object }, Job::Scrub { serial });
        }
        *under_way = true;
        let (offset, len) = (*offset, READ.min(size - *offset));
        self.submit(Op::Salvage { object, offset, len }, Job::Scrub { serial });
    }

    /// The store has answered.
    pub(crate) fn take_scrub(&mut self, now: Time, serial: u64, result: Result<Outcome, StoreError>) {
        let Some(view) = self.view.clone().filter(|_| serial == self.scrub.serial) else { return };
        let rate = view.state.settings().scrub_bytes_per_second.max(1);
        let Some(check) = &mut self.scrub.check else { return };
        let (object, took) = (check.object, now.since(check.since));
        match (result, &mut check.stage) {
            (Ok(Outcome::Read(read)), _) if is_damaged(&read.extents) => {
                self.found_damage(object);
                self.want(&view, object, false);
                self.object_done(now);
            }
            (Ok(Outcome::Read(read)), Stage::Reading { offset, under_way }) => {
                *under_way = false;
                *offset = offset.saturating_add(READ);
                let bytes: u64 = read.data.iter().map(|data| data.len() as u64).sum();
                self.scrub.status.bytes_ever += bytes;
                // As slowly as it was told, and never more than half of the disk's time.
                let pause = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
                if bytes == 0 { self.read_on(now, &view) } else { self.scrub_after(now, pause.max(took)) }
            }
            (Ok(Outcome::Inspect(found)), Stage::Inspecting) => self.compare_with_others(now, &view, &found),
            (Err(StoreError::Corrupt { .. } | StoreError::Unreadable { .. }), _) => {
                self.found_damage(object);
                self.want(&view, object, false);
                self.object_done(now);
            }
            // It was deleted meanwhile, or the store has failed.
            _ => self.object_done(now),
        }
    }

    /// A block of the own copy fails its checksum or can't be read: the copy is repaired from somebody else.
    pub(crate) fn found_damage(&mut self, object: ObjectId) {
        self.damaged.insert(object);
        if self.scrub.told.insert(object) {
            self.scrub.status.damaged += 1;
            self.scrub.tell(Finding::Damaged(object));
        }
    }

    /// The own copy was replaced, durably. `healed`: only what was bad of it, so that a doubt stays.
    pub(crate) fn copy_replaced(&mut self, object: ObjectId, healed: bool) {
        if !healed {
            self.scrub.doubts.remove(&object);
        }
        if self.is_wounded(object) {
            return;
        }
        let told = self.scrub.told.contains(&object) || self.scrub.told_wounds.contains(&object);
        self.scrub.whole(object);
        if told {
            self.scrub.status.repaired += 1;
            self.scrub.tell(Finding::Repaired(object));
        }
    }

    /// Nobody has a better copy now.
    pub(crate) fn not_repaired(&mut self, object: ObjectId) {
        if self.scrub.doubts.remove(&object).is_some() {
            // Its checksums are right; the next pass compares it again.
            self.damaged.remove(&object);
            self.scrub.told.remove(&object);
        } else {
            self.scrub.status.unrepairable += 1;
            if self.scrub.hopeless.insert(object) {
                self.scrub.tell(Finding::Unrepairable(object));
            }
        }
    }

    /// Blocks that nobody has, as ranges of bytes, become lost here or stay so.
    pub(crate) fn tell_lost(&mut self, object: ObjectId, ranges: &[(u32, u32)]) {
        if !ranges.is_empty() && self.scrub.told_wounds.insert(object) {
            self.scrub.tell(Finding::BlocksLost(object, ranges.to_vec()));
        }
    }

    /// No copy of the object can be trusted.
    pub(crate) fn found_lost(&mut self, object: ObjectId) {
        if self.scrub.told_lost.len() < FINDINGS && self.scrub.told_lost.insert(object) {
            self.scrub.tell(Finding::Lost(object));
        }
    }

    fn look_again(&mut self, object: ObjectId, behind: Option<(Version, Version)>) {
        if self.scrub.again.len() < AGAIN || self.scrub.again.contains_key(&object) {
            self.scrub.again.insert(object, behind);
        } else {
            self.scrub.status.skipped += 1;
        }
    }

    /// Nothing is left to do for the object.
    fn object_done(&mut self, now: Time) {
        if let Some(check) = self.scrub.check.take() {
            self.scrub.again.remove(&check.object);
        }
        self.scrub_after(now, STEP);
    }
}
