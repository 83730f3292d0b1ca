//! Flushing: data durable on all present members, then map entries, then what discards leave behind.
//!
//! One cycle at a time. A cycle covers every write that had a version when it began; whoever asks for a flush
//! later waits for the next one.

use super::api::{LostReason, OpenError, VolumeError};
use super::discard::Discard;
use super::map::{Change, LayerBlock, MapBlock};
use super::object::{Owner, data_body};
use super::read::makes_partial;
use super::replaced::Replaced;
use super::shared::{Core, Tag};
use super::volume::{Phase, Volume};
use super::write::NewWrite;
use crate::Mutant;
use bytes::Bytes;
use sheep_state::{Command, Outcome, Refusal};
use sheep_types::{Member, ObjectId, Time};
use sheep_wire::Request;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Map objects that one command takes.
const MAX_MAPS_PER_COMMAND: usize = 256;
/// Objects named in one request.
const CLEAR_BATCH: usize = 128;

/// How far the cycle is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    #[default]
    Idle,
    /// Waits until all members have the writes.
    Drain,
    /// Members make them durable.
    Data,
    /// Map blocks are written.
    Map,
    /// New map objects are being made known.
    Order { token: u64 },
    /// Discarded objects go.
    Remove,
    /// Their going becomes durable: a copy that came back with a restart, marked as pending, would look like a new
    /// object that the map does not name yet.
    Removed,
}

#[derive(Debug, Default)]
pub(super) struct Flusher {
    pub(super) stage: Stage,
    /// A cycle is to begin.
    pub(super) wanted: bool,
    /// Time of the first write that no cycle covers yet.
    pub(super) dirty_since: Option<Time>,
    /// Operations that wait for the next cycle, and for this one.
    waiting: Vec<u64>,
    served: Vec<u64>,
    /// Answered writes that are lost, of which no flush has been told yet.
    lost: BTreeSet<u64>,
    /// Sequence of the last write that the cycle covers.
    upto: u64,
    /// Requests of this stage that are not answered.
    pub(super) asked: BTreeSet<u64>,
    /// Created objects whose map entries the cycle writes.
    entering: Vec<u32>,
    /// Objects of which the cycle's entries say that nothing is absent.
    filled: Vec<u32>,
    /// Discards for the next cycle, and of this one.
    pub(super) discards: Vec<Discard>,
    pub(super) clearing: Vec<Discard>,
    /// Changes of map blocks that are not written yet.
    changes: BTreeMap<MapBlock, Vec<(usize, Change)>>,
    written: Vec<(MapBlock, Bytes)>,
    map_writes: Vec<(ObjectId, u64)>,
    new_maps: BTreeSet<u32>,
    /// What the entries named that the cycle changes.
    replaced: Replaced,
    /// Those of them that are not known to the cluster yet.
    unordered: Vec<u32>,
    /// The data stage was done (it comes first but for a broken variant).
    data_done: bool,
}

impl Flusher {
    pub(super) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && self.discards.is_empty() && self.waiting.is_empty()
    }

    /// An operation waits for the next cycle.
    pub(super) fn wait(&mut self, io: u64) {
        self.waiting.push(io);
        self.wanted = true;
    }

    /// An operation does not wait any more.
    pub(super) fn forget(&mut self, io: u64) {
        self.waiting.retain(|waiting| *waiting != io);
        self.served.retain(|waiting| *waiting != io);
    }

    /// Who waits for a cycle that covers this write, or makes it, waits no more; discards that wait for one are not made.
    pub(super) fn give_up(&mut self, sequence: u64) -> Vec<u64> {
        let mut given_up = std::mem::take(&mut self.waiting);
        given_up.extend(self.discards.drain(..).filter_map(|discard| discard.io));
        let is_map = |(_, write): &(ObjectId, u64)| *write == sequence;
        if sequence <= self.upto || self.map_writes.iter().any(is_map) {
            given_up.append(&mut self.served);
            given_up.extend(self.clearing.iter_mut().filter_map(|discard| discard.io.take()));
        }
        given_up
    }

    /// Answered writes are lost: who waits for a cycle that covers them waits no more. If no flush is among those, the next
    /// one is to be told.
    pub(super) fn lose(&mut self, lost: &[u64], is_flush: impl Fn(&u64) -> bool) -> Vec<u64> {
        let (waits, serves) = (self.waiting.iter().any(&is_flush), self.served.iter().any(&is_flush));
        let covered = |sequence: u64| sequence <= self.upto;
        self.lost.extend(lost.iter().filter(|lost| !(waits || serves && covered(**lost))));
        let concerned = lost.iter().any(|lost| covered(*lost));
        let served = if concerned { std::mem::take(&mut self.served) } else { Vec::new() };
        self.waiting.drain(..).chain(served).collect()
    }

    /// A write that was lost has come onto all members.
    pub(super) fn is_found(&mut self, sequence: u64) {
        self.lost.remove(&sequence);
    }

    /// Whether this flush is to be told of a loss; the next one is not.
    pub(super) fn tells_of_loss(&mut self) -> bool {
        !std::mem::take(&mut self.lost).is_empty()
    }

    pub(super) fn discard(&mut self, discard: Discard) {
        self.discards.push(discard);
        self.wanted = true;
    }

    /// Whether the object is being discarded, so that writes to it wait.
    pub(super) fn is_discarding(&self, index: u32) -> bool {
        self.discards.iter().chain(&self.clearing).any(|discard| discard.index == index)
    }

    /// A request of the present stage was answered.
    pub(super) fn answered(&mut self, number: u64) {
        self.asked.remove(&number);
    }
}

impl Volume {
    fn should_flush(&self, core: &Core) -> bool {
        let view = core.view();
        let settings = view.state.settings();
        let late = self.flush_deadline(core).is_some_and(|deadline| deadline <= core.now);
        let much = self.retained > settings.write_buffer_bytes / 2;
        let many = self.pending.len() * 2 > settings.pending_limit as usize;
        let draining = matches!(self.phase, Phase::Draining)
            && !(self.objects.is_empty() && self.pending.is_empty())
            && !self.has_only_failed_writes();
        // Too much or too many counts only while there are writes that a new cycle would cover.
        let covers = || self.flusher.dirty_since.is_some() && !self.has_only_failed_writes();
        self.flusher.wanted || late || draining || ((much || many) && covers())
    }

    /// When the volume flushes by itself.
    pub(super) fn flush_deadline(&self, core: &Core) -> Option<Time> {
        let since = self.flusher.dirty_since.filter(|_| self.flusher.stage == Stage::Idle)?;
        Some(since + Duration::from_millis(core.view().state.settings().flush_interval_ms))
    }

    /// Goes on with the cycle as far as possible.
    pub(super) fn step_flush(&mut self, core: &mut Core) {
        loop {
            let go_on = match self.flusher.stage {
                Stage::Idle => self.should_flush(core) && self.begin_cycle(core),
                Stage::Drain => self.is_drained() && self.flush_data(core),
                Stage::Data => self.flusher.asked.is_empty() && self.end_data(core),
                Stage::Map => self.step_map(core),
                Stage::Order { .. } => false,
                Stage::Remove => self.flusher.asked.is_empty() && self.flush_removed(core),
                Stage::Removed => self.flusher.asked.is_empty() && self.end_cycle(core),
            };
            if !go_on {
                return;
            }
        }
    }

    fn begin_cycle(&mut self, core: &mut Core) -> bool {
        let flusher = &mut self.flusher;
        flusher.wanted = false;
        flusher.dirty_since = None;
        flusher.served = std::mem::take(&mut flusher.waiting);
        flusher.upto = self.sequence;
        flusher.data_done = false;
        flusher.stage = Stage::Drain;
        if core.config.mutants.is(Mutant::MapBeforeData) {
            self.prepare_map(core);
        }
        true
    }

    /// Whether all members of the present sets have every write that the cycle covers. Nobody waits for those that
    /// failed.
    fn is_drained(&self) -> bool {
        self.unconfirmed.range(..=self.flusher.upto).all(|sequence| self.stuck.contains(sequence))
    }

    /// A write has come onto all members: one that failed, which no cycle waits for. If this one covers it, and members are making
    /// durable what they had, nobody knows whether that was among it: they are asked once more.
    pub(super) fn flush_late(&mut self, core: &mut Core, sequence: u64) {
        let covers = self.flusher.stage == Stage::Data && sequence <= self.flusher.upto;
        if covers && !core.config.mutants.is(Mutant::FlushOldSet) {
            std::mem::take(&mut self.flusher.asked).into_iter().for_each(|number| drop(core.cancel(number)));
            self.flusher.stage = Stage::Drain;
        }
    }

    /// Asks all up members of the present sets, whoever was a member when the writes were made.
    fn flush_data(&mut self, core: &mut Core) -> bool {
        self.flusher.stage = Stage::Data;
        let upto = self.flusher.upto;
        let old_set = core.config.mutants.is(Mutant::FlushOldSet);
        let mut members: BTreeSet<Member> = BTreeSet::new();
        for writes in self.objects.values() {
            let covered = writes.writes.iter().filter(|write| write.sequence <= upto && !write.durable);
            for write in covered {
                members.extend(if old_set { &write.acknowledged } else { &writes.placed.members });
            }
        }
        if old_set {
            let up = core.view().up_members();
            members.retain(|member| up.contains(member));
        }
        self.flush_members(core, members);
        true
    }

    fn end_data(&mut self, core: &mut Core) -> bool {
        self.forget_writes(core, self.flusher.upto);
        self.fill.flushed(self.flusher.upto);
        self.again = true;
        if self.flusher.data_done {
            return self.remove_objects(core);
        }
        self.flusher.data_done = true;
        self.prepare_map(core);
        true
    }

    /// Collects the map entries that can be written: of objects that are durable on all members now, and of
    /// discarded objects, which have no writes left that an epoch change could bring back.
    fn prepare_map(&mut self, core: &Core) {
        self.zero_instead(core);
        let vid = self.vid;
        let upto = self.flusher.upto;
        let creating = |index: &u32| {
            let writes = self.objects.get(&ObjectId::data(vid, *index));
            writes.is_some_and(|writes| writes.writes.iter().any(|write| write.create && !write.complete))
        };
        let ripe = self.pending.iter().filter(|(index, created)| **created <= upto && !creating(index));
        let entering: Vec<u32> = ripe.map(|(index, _)| *index).collect();
        let ready = |discard: &Discard| {
            !self.objects.contains_key(&ObjectId::data(vid, discard.index))
                && !self.pending.contains_key(&discard.index)
        };
        let (clearing, discards) = self.flusher.discards.iter().copied().partition(ready);
        let clearing: Vec<Discard> = clearing;
        let mut changes: BTreeMap<MapBlock, Vec<(usize, Change)>> = self.blocks_to_fill();
        let mut filled = self.filled(core, upto);
        filled.retain(|index| !self.pending.contains_key(index) || entering.contains(index));
        let entered = entering.iter().map(|index| (*index, Change::Enter));
        let filling = filled.iter().map(|index| (*index, Change::Whole));
        let cleared = clearing.iter().map(|discard| (discard.index, Change::Clear));
        for (index, change) in entered.chain(filling).chain(cleared) {
            let (block, place) = self.map.place(index);
            changes.entry(block).or_default().push((place, change));
        }
        let flusher = &mut self.flusher;
        (flusher.entering, flusher.clearing, flusher.discards) = (entering, clearing, discards);
        flusher.filled = filled;
        flusher.changes = changes;
        flusher.stage = Stage::Map;
    }

    /// Writes the changed map blocks, durably, and goes on when all members have them.
    fn step_map(&mut self, core: &mut Core) -> bool {
        let (view, own) = (core.view(), self.vid);
        // No more are read together than the cache keeps.
        let mut ahead = self.map.room();
        let blocks: Vec<MapBlock> = self.flusher.changes.keys().copied().collect();
        for block in blocks {
            if let Some(unread) = self.map.unread(block) {
                if ahead > 0 && !self.load(unread) {
                    return self.abort_cycle(core);
                }
                ahead = ahead.saturating_sub(1);
                continue;
            }
            let object = ObjectId::map(self.vid, block.map);
            if !self.may_write(core, object) {
                return false;
            }
            let Some(changes) = self.flusher.changes.remove(&block) else { continue };
            for (old, change) in self.map.replaced(block, &changes) {
                self.flusher.replaced.note(&view, own, old, change);
            }
            let contents = self.map.changed(block, &changes, |old| makes_partial(&view, own, old));
            // A map object of an older vid of the lineage is cloned; what a new one says nothing of, the layer below says.
            let kept_by = self.map.kept_by(0, block.map);
            let exists = kept_by == Some(self.vid);
            let create = !exists && self.flusher.new_maps.insert(block.map);
            let base = kept_by.filter(|_| create);
            let body = data_body(contents.clone());
            let (offset, owner) = (block.offset(), Owner::Map);
            let inherits = false;
            let write = NewWrite { object, create, inherits, base, offset, body, durable: true, owner };
            let sequence = self.write(core, write);
            self.flusher.map_writes.push((object, sequence));
            self.flusher.written.push((block, contents));
        }
        if !self.flusher.changes.is_empty() {
            return false;
        }
        let open = |(object, sequence): &(ObjectId, u64)| {
            let writes = self.objects.get(object);
            writes.is_some_and(|writes| writes.get(*sequence).is_some_and(|write| !write.complete))
        };
        if self.flusher.map_writes.iter().any(open) && !core.config.mutants.is(Mutant::MapNotAwaited) {
            return false;
        }
        self.flusher.unordered = self.flusher.new_maps.iter().copied().collect();
        self.order_maps(core)
    }

    /// Orders new map objects, as many as one command takes; all are known: goes on.
    fn order_maps(&mut self, core: &mut Core) -> bool {
        let left = self.flusher.unordered.len().saturating_sub(MAX_MAPS_PER_COMMAND);
        let maps = self.flusher.unordered.split_off(left);
        if maps.is_empty() || core.config.mutants.is(Mutant::MapUnordered) {
            return self.end_map(core);
        }
        let command = Command::MapExists { vid: self.vid, maps, generation: self.generation };
        let token = core.propose(self.handle, command);
        self.flusher.stage = Stage::Order { token };
        false
    }

    /// New map objects are known to the cluster, or the lock is over.
    pub(super) fn handle_maps_ordered(
        &mut self,
        core: &mut Core,
        token: u64,
        result: &Result<Outcome, Refusal>,
    ) {
        if self.flusher.stage != (Stage::Order { token }) {
            return;
        }
        match result {
            Ok(_) => {
                self.order_maps(core);
            }
            Err(_) => self.lose(core, LostReason::LockEnded),
        }
    }

    /// All entries are durable: what was pending is so no more, and discarded objects may go.
    fn end_map(&mut self, core: &mut Core) -> bool {
        for map in &self.flusher.new_maps {
            self.map.set_exists(*map);
        }
        for (block, contents) in std::mem::take(&mut self.flusher.written) {
            let at = LayerBlock { layer: 0, block };
            // What is still being read may be from before, of the object of an older vid.
            self.drop_load(core, at);
            self.map.insert(at, Some(&contents));
        }
        let replaced = std::mem::take(&mut self.flusher.replaced);
        self.replaced.add(core.now, replaced);
        let vid = self.vid;
        let mut cleared: Vec<ObjectId> =
            self.flusher.entering.iter().map(|index| ObjectId::data(vid, *index)).collect();
        for index in std::mem::take(&mut self.flusher.entering) {
            self.pending.remove(&index);
        }
        self.fill.entered(&std::mem::take(&mut self.flusher.filled));
        cleared.extend(
            std::mem::take(&mut self.flusher.new_maps).into_iter().map(|map| ObjectId::map(vid, map)),
        );
        self.flusher.map_writes.clear();
        self.forget_writes(core, 0);
        self.clear_pending(core, &cleared);
        self.again = true;
        if !self.flusher.data_done {
            self.flusher.data_done = true;
            self.flusher.stage = Stage::Drain;
            return true;
        }
        self.remove_objects(core)
    }

    /// Tells members that map entries are there. Nobody waits for it: the mark only makes a take-over look.
    fn clear_pending(&mut self, core: &mut Core, objects: &[ObjectId]) {
        let mut by_member: BTreeMap<Member, Vec<ObjectId>> = BTreeMap::new();
        for object in objects {
            for member in &self.placed(core, *object).members {
                by_member.entry(*member).or_default().push(*object);
            }
        }
        for (member, objects) in by_member {
            for batch in objects.chunks(CLEAR_BATCH) {
                self.call(core, Tag::ClearPending, member, Request::ClearPending { objects: batch.to_vec() });
            }
        }
    }

    pub(super) fn flush_members(&mut self, core: &mut Core, members: BTreeSet<Member>) {
        for member in members {
            let number = self.call(core, Tag::Flush, member, Request::Flush { vid: self.vid });
            self.flusher.asked.insert(number);
        }
    }

    /// Forgets writes that are durable on all members: those up to `upto`, and such as were made durable at once.
    pub(super) fn forget_writes(&mut self, core: &mut Core, upto: u64) {
        let mut freed = 0;
        for writes in self.objects.values_mut() {
            while let Some(write) = writes.writes.front() {
                let durable = write.complete && (write.durable || write.sequence <= upto);
                if !durable {
                    break;
                }
                freed += write.weight();
                writes.writes.pop_front();
            }
        }
        self.objects.retain(|_, writes| !writes.writes.is_empty());
        self.retained -= freed;
        core.free(freed);
    }

    fn end_cycle(&mut self, core: &mut Core) -> bool {
        let flusher = &mut self.flusher;
        flusher.stage = Stage::Idle;
        flusher.wanted = !flusher.waiting.is_empty() || !flusher.discards.is_empty();
        if flusher.dirty_since.is_none() && !self.objects.is_empty() {
            flusher.dirty_since = Some(core.now);
        }
        for io in std::mem::take(&mut self.flusher.served) {
            self.part_done(core, io, Ok(()), false);
        }
        self.end_discards(core);
        if matches!(self.phase, Phase::Entering) {
            self.order_settled(core);
        }
        self.flusher.wanted
    }

    /// The map cannot be read: nothing was written to it. Created objects stay pending.
    fn abort_cycle(&mut self, core: &mut Core) -> bool {
        let flusher = &mut self.flusher;
        flusher.stage = Stage::Idle;
        flusher.changes.clear();
        flusher.filled.clear();
        self.fill.forget_entries();
        flusher.entering.clear();
        // What was written says the same as what was to be written, and is written again. But a discard is not: the block is
        // read anew, or it would name again what may be gone by then.
        flusher.map_writes.clear();
        for (block, _) in flusher.written.drain(..) {
            self.map.forget(LayerBlock { layer: 0, block });
        }
        flusher.dirty_since = Some(core.now);
        let served = std::mem::take(&mut flusher.served);
        let cleared = std::mem::take(&mut flusher.clearing);
        for io in served.into_iter().chain(cleared.into_iter().filter_map(|discard| discard.io)) {
            self.part_done(core, io, Err(VolumeError::Io), false);
        }
        self.fail_still(core, VolumeError::Io);
        if matches!(self.phase, Phase::Entering) {
            self.open_error = Some(OpenError::MapLost);
            core.cancel_all(self.handle);
            self.unlock(core, false);
        }
        false
    }

    /// A new epoch: sets and runs are others, so members are asked anew. What a stage has achieved stays: it was
    /// durable on all members of its epoch, and a copy that is validated later is durable before it counts.
    pub(super) fn restart_flush(&mut self, core: &mut Core) {
        self.flusher.asked.clear();
        match self.flusher.stage {
            Stage::Data if !core.config.mutants.is(Mutant::FlushOldSet) => self.flusher.stage = Stage::Drain,
            Stage::Remove | Stage::Removed => {
                self.remove_objects(core);
            }
            Stage::Data | Stage::Idle | Stage::Drain | Stage::Map | Stage::Order { .. } => {}
        }
    }
}
