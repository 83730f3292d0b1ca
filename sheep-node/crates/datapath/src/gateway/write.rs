//! Writes: given a version, sent to every up member of the object's set, kept until durable, sent again where they
//! are missing.

use super::api::{LostReason, VolumeError};
use super::io::{Action, Piece};
use super::object::{ObjectWrites, Owner, Placed, RetainedWrite, data_body, weight};
use super::read::Location;
use super::refused::NO_SPACE_PAUSE;
use super::shared::{Core, Tag};
use super::volume::Volume;
use crate::Mutant;
use sheep_types::{Epoch, Member, ObjectId, Version, Vid};
use sheep_wire::{Body, Refusal, Reply, Request};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// Epochs in a row that are looked through for a member's absence; beyond them nobody counts as having stayed.
const EPOCHS_LOOKED_AT: u64 = 32;
/// A missing predecessor is not sent again sooner.
const RESEND_PAUSE: Duration = Duration::from_millis(20);
/// Objects whose members are remembered between views.
const PLACES_KEPT: usize = 1 << 16;

/// Whether a part of a changing operation can be forgotten, or must wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Done,
    Wait,
    /// It waits for room, and so must everything behind it.
    Full,
}

/// What a write is made of, apart from its version.
pub(super) struct NewWrite {
    pub(super) object: ObjectId,
    pub(super) create: bool,
    /// It takes the place of another vid's object.
    pub(super) inherits: bool,
    /// The vid whose object it begins as a clone of.
    pub(super) base: Option<Vid>,
    pub(super) offset: u32,
    pub(super) body: Body,
    pub(super) durable: bool,
    pub(super) owner: Owner,
}

impl Volume {
    /// Gives versions to parts that can have one. A part waits behind an earlier one that it overlaps.
    pub(super) fn start_pieces(&mut self, core: &mut Core) {
        if self.is_still() {
            return;
        }
        let mut blocked: Vec<(u32, u32, u32)> = Vec::new();
        let mut full = false;
        for _ in 0..self.queue.len() {
            let Some(mut piece) = self.queue.pop_front() else { break };
            let (start, end) = piece.blocks();
            let behind =
                blocked.iter().any(|(index, from, to)| *index == piece.index && *from < end && start < *to);
            let step = if full || behind {
                Step::Wait
            } else if self.flusher.is_discarding(piece.index) {
                self.wait_for_flush(core, &piece)
            } else {
                self.step_piece(core, &mut piece)
            };
            full |= step == Step::Full;
            if step != Step::Done {
                blocked.push((piece.index, start, end));
                self.queue.push_back(piece);
            }
        }
    }

    pub(super) fn step_piece(&mut self, core: &mut Core, piece: &mut Piece) -> Step {
        let place = match self.locate(core, piece.index) {
            Location::Loading => return Step::Wait,
            Location::Unreadable => return self.fail_piece(core, piece, VolumeError::Io),
            Location::Unknown => return self.fail_piece(core, piece, VolumeError::NotSupported),
            Location::Absent => None,
            Location::At(place) => Some(place),
        };
        let exists = place.is_some();
        if !exists && piece.only_existing {
            self.part_done(core, piece.io, Ok(()), false);
            return Step::Done;
        }
        let object = ObjectId::data(self.vid, piece.index);
        let is_own = place.is_some_and(|place| place.vid == self.vid);
        // Behind a write that some member cannot store nothing else can be stored there.
        if let Some(error) = self.objects.get(&object).and_then(ObjectWrites::refused) {
            return self.fail_piece(core, piece, error);
        }
        let (start, end) = piece.blocks();
        let body = match &piece.action {
            Action::Discard => return self.step_discard(core, piece, object),
            Action::Zero => match self.must_wait(core, piece, is_own, 0) {
                Some(step) => return step,
                None => Body::Zero { len: end - start },
            },
            Action::Data(data) => {
                let data = data.clone();
                if !self.edges_ready(piece, exists) {
                    return Step::Wait;
                }
                if let Some(step) = self.must_wait(core, piece, is_own, u64::from(end - start)) {
                    return step;
                }
                data_body(piece.compose(&data))
            }
        };
        let durable = is_own
            && !self.pending.contains_key(&piece.index)
            && self.ios.get(&piece.io).is_some_and(|io| io.fua);
        let owner = Owner::Client { io: piece.io };
        let create = !is_own;
        // In its own lineage the object's members have what it begins as.
        let base =
            place.map(|place| place.vid).filter(|vid| create && core.view().are_related(*vid, self.vid));
        let inherits = create && exists;
        let write = NewWrite { object, create, inherits, base, offset: start, body, durable, owner };
        let sequence = self.write(core, write);
        if create {
            self.pending.insert(piece.index, sequence);
        }
        let lacked = place.is_some_and(|place| place.below.is_some()) || inherits && base.is_none();
        if lacked && (start, end) == (0, self.geometry.object_size()) {
            self.fill.is_whole(piece.index, sequence);
        }
        Step::Done
    }

    /// A part waits for a cycle to end, if it can.
    pub(super) fn wait_for_flush(&mut self, core: &mut Core, piece: &Piece) -> Step {
        if self.cannot_flush() { self.fail_piece(core, piece, self.why_refused()) } else { Step::Wait }
    }

    fn fail_piece(&mut self, core: &mut Core, piece: &Piece, error: VolumeError) -> Step {
        self.part_done(core, piece.io, Err(error), false);
        Step::Done
    }

    /// What becomes of a part that writes so many bytes, if it cannot be sent now.
    fn must_wait(&mut self, core: &mut Core, piece: &Piece, is_own: bool, bytes: u64) -> Option<Step> {
        if !self.may_write(core, ObjectId::data(self.vid, piece.index)) {
            return Some(Step::Wait);
        }
        let view = core.view();
        let settings = view.state.settings();
        let too_many = !is_own && self.pending.len() >= settings.pending_limit as usize;
        let limit = settings.write_buffer_bytes;
        // One write always fits, however small the limit.
        let own = self.retained > 0 && self.retained + bytes > limit;
        let all = core.retained > 0 && core.retained + bytes > core.config.buffer_bytes;
        if !(too_many || own || all) {
            return None;
        }
        let only_failed = self.has_only_failed_writes();
        let no_room = own && only_failed || too_many && self.has_only_failed_creations();
        if no_room || self.cannot_flush() {
            return Some(self.fail_piece(core, piece, self.why_refused()));
        }
        // The flush follows in the same round.
        self.flusher.wanted |= self.flusher.dirty_since.is_some() && !only_failed;
        Some(Step::Full)
    }

    /// Whether the lease and the number of members allow a write to the object.
    pub(super) fn may_write(&mut self, core: &Core, object: ObjectId) -> bool {
        core.lease_valid() && self.placed(core, object).is_enough()
    }

    /// Where an object belongs in the present view.
    pub(super) fn placed(&mut self, core: &Core, object: ObjectId) -> Arc<Placed> {
        if self.places.len() >= PLACES_KEPT {
            self.places.clear();
        }
        let look_up = || {
            let view = core.view();
            Arc::new(Placed { members: view.up_set(object), min_copies: view.min_copies(object) })
        };
        Arc::clone(self.places.entry(object).or_insert_with(look_up))
    }

    /// Gives a write its version and sends it.
    pub(super) fn write(&mut self, core: &mut Core, new: NewWrite) -> u64 {
        self.sequence += 1;
        let (sequence, object) = (self.sequence, new.object);
        let previous = self.last.insert(object, sequence).filter(|_| !new.create);
        self.unconfirmed.insert(sequence);
        self.flusher.dirty_since.get_or_insert(core.now);
        let bytes = weight(&new.body);
        let fills = new.owner == Owner::Fill;
        if !fills {
            let range = (new.offset, new.offset + new.body.len());
            self.fill.touch(object, range, new.create && !new.inherits);
        }
        self.retained += bytes;
        core.retained += bytes;
        let placed = self.placed(core, object);
        let members = &placed.members;
        let writes = self.objects.entry(object).or_default();
        writes.placed = Arc::clone(&placed);
        writes.writes.push_back(RetainedWrite {
            sequence,
            previous,
            create: new.create,
            inherits: new.inherits,
            fills,
            base: new.base,
            offset: new.offset,
            body: new.body,
            durable: new.durable,
            owner: new.owner,
            calls: SmallVec::new(),
            complete: false,
            answered: false,
            refused: None,
            doubted: Vec::new(),
            acknowledged: Vec::new(),
        });
        for member in members {
            self.send_write(core, object, sequence, *member);
        }
        sequence
    }

    /// Sends a write to a member, unless that is under way.
    fn send_write(&mut self, core: &mut Core, object: ObjectId, sequence: u64, member: Member) {
        let confirmed = self.confirmed();
        let (birth, generation) = (self.birth, self.generation);
        let (handle, basis) = (self.handle, self.basis());
        let Some(write) = self.objects.get_mut(&object).and_then(|writes| writes.find(sequence)) else {
            return;
        };
        if write.call_to(member).is_none() {
            let request = Request::Write(write.request(object, birth, generation, confirmed));
            let number = core.call(handle, Tag::Write { object, sequence }, member, basis, request);
            write.calls.push((member, number));
        }
    }

    pub(super) fn handle_write_reply(
        &mut self,
        core: &mut Core,
        number: u64,
        write: (ObjectId, u64),
        from: Member,
        reply: Reply,
    ) {
        let (object, sequence) = write;
        match reply {
            Reply::Done => self.held_by(core, object, sequence, from),
            Reply::Behind(version) => self.behind(core, number, write, from, version),
            Reply::Refused(Refusal::NoCopy) if self.is_created_here(object) => {
                self.behind(core, number, write, from, None);
            }
            // Damaged: on its way.
            Reply::Refused(Refusal::NotCurrent | Refusal::Busy | Refusal::Damaged) => {
                core.back_off(number, core.config.not_ready)
            }
            Reply::Refused(Refusal::NoSpace) => self.fail_write(core, number, write, VolumeError::NoSpace),
            Reply::Refused(Refusal::NoCopy | Refusal::BaseLost | Refusal::Malformed) => {
                self.fail_write(core, number, write, VolumeError::Io);
            }
            // The view will change, or the member recover: sent again when its time comes.
            _ => {}
        }
    }

    fn is_created_here(&self, object: ObjectId) -> bool {
        let writes = self.objects.get(&object).and_then(|writes| writes.writes.front());
        writes.is_some_and(|write| write.create)
    }

    fn held_by(&mut self, core: &mut Core, object: ObjectId, sequence: u64, member: Member) {
        let Some(writes) = self.objects.get_mut(&object) else { return };
        writes.hold(member, sequence, |number| drop(core.cancel(number)));
        self.review(core, object);
    }

    /// Tells the owners of writes that all members have now; takes back what only some have.
    fn review(&mut self, core: &mut Core, object: ObjectId) {
        let Some(writes) = self.objects.get_mut(&object) else { return };
        let (changed, gained) = writes.review();
        if !gained {
            self.unconfirmed.extend(writes.writes.range(changed).map(|write| write.sequence));
            return;
        }
        for place in changed {
            let Some(writes) = self.objects.get_mut(&object) else { return };
            let Some(sequence) = writes.writes.get(place).map(|write| write.sequence) else { return };
            self.unconfirmed.remove(&sequence);
            self.again = true;
            let old_set = core.config.mutants.is(Mutant::FlushOldSet);
            let holders = if old_set { writes.holders(sequence) } else { Vec::new() };
            let Some(write) = writes.find(sequence) else { return };
            if !write.answered {
                write.acknowledged = holders;
            }
            write.answered = true;
            write.refused = None;
            let (durable, owner, bytes) = (write.durable, write.owner, write.weight());
            if let Owner::Client { io } = owner {
                write.owner = Owner::Nobody;
                self.part_done(core, io, Ok(()), !durable);
            }
            self.take_back(core, sequence, bytes);
        }
    }

    /// A member's copy lacks earlier writes: they are sent from there on. If they are not kept any more, the copy
    /// has lost what was acknowledged, and the volume must not be served from it.
    fn behind(
        &mut self,
        core: &mut Core,
        number: u64,
        write: (ObjectId, u64),
        member: Member,
        version: Option<Version>,
    ) {
        let (object, sequence) = write;
        let generation = self.generation;
        let own = version.filter(|version| version.generation == generation);
        let has = own.map_or(0, |version| version.sequence);
        let Some(writes) = self.objects.get_mut(&object) else { return };
        if has >= sequence {
            // It does not say that the write is durable.
            return match writes.get(sequence).is_some_and(|write| write.durable) {
                true => core.back_off(number, core.config.not_ready),
                false => self.held_by(core, object, sequence, member),
            };
        }
        let Some(upto) = writes.position(sequence) else { return };
        let first = writes.writes.partition_point(|write| write.sequence <= has).min(upto);
        let reachable = writes.writes.get(first).is_some_and(|write| {
            write.create || write.previous.map_or(version.is_some(), |previous| previous <= has)
        });
        if !reachable && version.is_none() {
            // The object's last copy is gone: that is an error of the object, not of the volume.
            return self.fail_write(core, number, write, VolumeError::Io);
        }
        if !reachable {
            return self.doubt(core, number, write, member);
        }
        // What it cannot store is sent again in its own time, and this after it.
        let stuck = |write: &RetainedWrite| write.refused.is_some() && write.call_to(member).is_some();
        if first < upto && writes.writes.get(first).is_some_and(stuck) {
            return core.back_off(number, NO_SPACE_PAUSE);
        }
        let missing: Vec<u64> = writes.writes.range(first..=upto).map(|write| write.sequence).collect();
        writes.lacks_after(member, has);
        let mut sent = false;
        for (place, sequence) in missing.iter().enumerate() {
            let Some(write) = self.objects.get_mut(&object).and_then(|writes| writes.find(*sequence)) else {
                return;
            };
            let last = place + 1 == missing.len();
            match write.call_to(member) {
                None => {
                    self.send_write(core, object, *sequence, member);
                    sent = true;
                }
                // Who has no copy says so at once, also while its creation waits there for something.
                Some(call) if last && version.is_none() && !sent => {
                    core.back_off(call, core.config.not_ready);
                }
                Some(call) if last || (place == 0 && sent_long_ago(core, call)) => {
                    core.resend(call);
                    sent = true;
                }
                Some(_) => {}
            }
        }
        self.review(core, object);
    }

    /// The answer may be older than the flush after which the predecessor was forgotten: the member is asked once
    /// more, with another number.
    fn doubt(&mut self, core: &mut Core, number: u64, write: (ObjectId, u64), member: Member) {
        let (object, sequence) = write;
        let Some(found) = self.objects.get_mut(&object).and_then(|writes| writes.find(sequence)) else {
            return;
        };
        if found.doubted.contains(&member) {
            return self.lose(core, LostReason::WritesMissing);
        }
        found.doubted.push(member);
        found.calls.retain(|(_, call)| *call != number);
        core.cancel(number);
        self.send_write(core, object, sequence, member);
    }

    /// A new epoch: who holds what is worked out anew. A member keeps what it holds only if it was up, in the same
    /// run and in the set, all the time, and lost no disk; another one's copy may have been replaced meanwhile.
    pub(super) fn regroup_writes(&mut self, core: &mut Core, before: Epoch) {
        let view = core.view();
        self.awaited.clear();
        let objects: Vec<ObjectId> = self.objects.keys().copied().collect();
        let span = view.epoch().0.saturating_sub(before.0);
        for object in objects {
            let forgets = core.config.mutants.is(Mutant::GatewayForgetsLostDisk);
            let stayed = |member: &Member| {
                span <= EPOCHS_LOOKED_AT
                    && (forgets || view.kept_disks(member.node, before, view.epoch()))
                    && (before.0 + 1..=view.epoch().0).all(|epoch| {
                        view.up_set_at(Epoch(epoch), object).is_some_and(|set| set.contains(member))
                    })
            };
            let Some(writes) = self.objects.get_mut(&object) else { continue };
            let stayed: Vec<Member> = writes.placed.members.iter().copied().filter(stayed).collect();
            writes.keep_holders(&stayed);
            writes.forget_refusals();
            for write in &mut writes.writes {
                write.calls.clear();
                write.doubted.clear();
            }
            writes.stayed = stayed;
            let placed = self.placed(core, object);
            if let Some(writes) = self.objects.get_mut(&object) {
                writes.placed = placed;
            }
            self.review(core, object);
        }
        self.resend = true;
    }

    /// Members that were too few for what is under way may be enough now: `min_copies` is lowered without a new epoch.
    pub(super) fn review_too_few(&mut self, core: &mut Core) {
        let few = self.objects.iter().filter(|(_, writes)| !writes.placed.is_enough());
        let few: Vec<ObjectId> = few.map(|(object, _)| *object).collect();
        for object in few {
            let placed = self.placed(core, object);
            if let Some(writes) = self.objects.get_mut(&object) {
                writes.placed = placed;
            }
            self.review(core, object);
        }
    }

    /// Sends what members lack. To one that is new to the object only the newest write: having that it has all,
    /// else it says where to begin.
    pub(super) fn send_missing(&mut self, core: &mut Core) {
        self.resend = false;
        let mut missing: Vec<(ObjectId, u64, Member)> = Vec::new();
        for (object, writes) in &self.objects {
            for member in &writes.placed.members {
                let held = writes.held_upto(*member);
                let lacks = writes.writes.iter().filter(|write| write.sequence > held);
                let lacks = lacks.map(|write| (*object, write.sequence, *member));
                if writes.stayed.contains(member) {
                    missing.extend(lacks);
                } else {
                    missing.extend(lacks.last());
                }
            }
        }
        for (object, sequence, member) in missing {
            self.send_write(core, object, sequence, member);
        }
    }
}

fn sent_long_ago(core: &Core, number: u64) -> bool {
    core.get_call(number).is_some_and(|call| core.now.since(call.last_sent) >= RESEND_PAUSE)
}
