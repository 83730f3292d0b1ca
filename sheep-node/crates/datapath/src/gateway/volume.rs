//! One volume of a gateway: what it is doing, and where replies and time go.

use super::api::{GatewayOutput, LostReason, OpenError, OpenMode, VolumeError, VolumeReply};
use super::check::Query;
use super::diff::Diffs;
use super::fill::Fill;
use super::flush::Flusher;
use super::habit::Habit;
use super::io::{Io, Piece};
use super::map::{LayerBlock, MapCache};
use super::object::{ObjectWrites, Placed};
use super::read::ReadPiece;
use super::replaced::Replaced;
use super::settle::Settle;
use super::shared::{Basis, Core, Tag, passes_soon};
use super::snapshot::Still;
use sheep_state::{CacheMode, VdiRecord};
use sheep_types::{Birth, Epoch, Generation, Geometry, LogIndex, Member, ObjectId, Time, VdiId, Vid};
use sheep_wire::{Confirmed, Refusal, Reply};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Exceptions in a mark of confirmed writes; beyond them the mark itself is lowered.
const MARK_EXCEPTIONS: usize = 64;

/// What a volume is doing.
#[derive(Debug)]
pub(super) enum Phase {
    /// The lock is asked for.
    Locking { token: u64 },
    /// The lock is granted; the view does not show it yet.
    Granted,
    /// A former holder may believe in its lease until then.
    Waiting { until: Time },
    /// Copies are made equal after a former holder.
    Settling(Box<Settle>),
    /// Objects that the former holder created are entered in the map.
    Entering,
    /// The end of settling is being ordered.
    Marking { token: u64 },
    /// Open.
    Serving,
    /// Closing: what was accepted is carried out and made durable.
    Draining,
    /// The lock is given back.
    Unlocking { token: u64 },
    /// Lost; waits to be closed.
    Failed,
    /// To be forgotten.
    Gone,
}

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) handle: u64,
    pub(super) vdi: VdiId,
    /// For writing or reading.
    pub(super) mode: OpenMode,
    /// Open to be flattened, for nobody.
    pub(super) background: bool,
    pub(super) phase: Phase,
    /// Why opening failed, while the lock is being given back.
    pub(super) open_error: Option<OpenError>,
    /// Close was asked for before it was open.
    pub(super) abandoned: bool,
    pub(super) vid: Vid,
    pub(super) birth: Birth,
    pub(super) size: u64,
    pub(super) geometry: Geometry,
    pub(super) write_through: bool,
    pub(super) granted_clean: bool,
    /// Lost, but the lock is still this gateway's.
    pub(super) keeps_lock: bool,
    pub(super) generation: Generation,

    /// Sequence of the last write.
    pub(super) sequence: u64,
    /// Writes that are not on all up members.
    pub(super) unconfirmed: BTreeSet<u64>,
    /// Those of them that failed on some member; their owners were told.
    pub(super) stuck: BTreeSet<u64>,
    /// Those that some member refused, and that a flush waits for all the same.
    pub(super) awaited: BTreeSet<u64>,
    /// Last write of this generation to each object.
    pub(super) last: BTreeMap<ObjectId, u64>,
    pub(super) objects: BTreeMap<ObjectId, ObjectWrites>,
    /// Bytes of retained writes.
    pub(super) retained: u64,
    /// Those of failed ones among them, which count for this volume only.
    pub(super) set_aside: u64,
    /// Writes were not sent again after an epoch change, for want of a lease.
    pub(super) resend: bool,

    /// Members of objects, in the present view.
    pub(super) places: BTreeMap<ObjectId, Arc<Placed>>,

    /// Operations that are not answered.
    pub(super) ios: BTreeMap<u64, Io>,
    pub(super) habit: Habit,
    /// Parts of writing operations that have no version yet, in order of arrival.
    pub(super) queue: VecDeque<Piece>,
    pub(super) next_piece: u64,
    pub(super) reads: BTreeMap<u64, ReadPiece>,
    /// Objects that are looked at.
    pub(super) queries: BTreeMap<u64, Query>,
    /// Comparisons with snapshots.
    pub(super) diffs: Diffs,
    /// Answers held back until the lease is renewed.
    pub(super) held: Vec<(u64, Result<VolumeReply, VolumeError>)>,

    pub(super) map: MapCache,
    pub(super) loading: BTreeSet<LayerBlock>,
    /// Map blocks whose loading has just failed.
    pub(super) unreadable: BTreeSet<LayerBlock>,
    /// Created objects without a confirmed map entry, with the sequence of their creation.
    pub(super) pending: BTreeMap<u32, u64>,
    pub(super) flusher: Flusher,
    /// What confirmed entries named before.
    pub(super) replaced: Replaced,
    pub(super) fill: Fill,
    /// What the volume stands still for, the first one now.
    pub(super) stills: VecDeque<Still>,
    /// Something happened that may let waiting work go on.
    pub(super) again: bool,
}

impl Volume {
    pub(super) fn new((handle, vdi): (u64, VdiId), mode: OpenMode, geometry: Geometry, token: u64) -> Self {
        let background = mode == OpenMode::Flatten;
        Self {
            handle,
            vdi,
            mode: if background { OpenMode::Write } else { mode },
            background,
            phase: Phase::Locking { token },
            open_error: None,
            abandoned: false,
            vid: Vid(0),
            birth: Birth(0),
            size: 0,
            geometry,
            write_through: false,
            granted_clean: false,
            keeps_lock: false,
            generation: Generation(0),
            sequence: 0,
            unconfirmed: BTreeSet::new(),
            stuck: BTreeSet::new(),
            awaited: BTreeSet::new(),
            last: BTreeMap::new(),
            objects: BTreeMap::new(),
            retained: 0,
            set_aside: 0,
            resend: false,
            places: BTreeMap::new(),
            ios: BTreeMap::new(),
            habit: Habit::default(),
            queue: VecDeque::new(),
            next_piece: 0,
            reads: BTreeMap::new(),
            queries: BTreeMap::new(),
            diffs: Diffs::default(),
            held: Vec::new(),
            map: MapCache::new(geometry, 0, Vec::new()),
            loading: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            pending: BTreeMap::new(),
            flusher: Flusher::default(),
            replaced: Replaced::default(),
            fill: Fill::default(),
            stills: VecDeque::new(),
            again: false,
        }
    }

    /// What requests of this volume name. Shared readers have no generation.
    pub(super) fn basis(&self) -> Basis {
        let writer = self.mode == OpenMode::Write;
        let generation = if writer { self.generation } else { Generation(0) };
        Basis { generation, relies_on: LogIndex(self.generation.0.max(self.birth.0)) }
    }

    pub(super) fn call(&self, core: &mut Core, tag: Tag, to: Member, request: sheep_wire::Request) -> u64 {
        core.call(self.handle, tag, to, self.basis(), request)
    }

    /// The mark of confirmed writes that goes with each write.
    pub(super) fn confirmed(&self) -> Confirmed {
        mark(&self.unconfirmed, self.sequence)
    }

    /// Whether client operations, or those of opening, are carried out.
    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Entering | Phase::Marking { .. } | Phase::Serving | Phase::Draining)
    }

    /// Whether the lock was granted and not given back or lost.
    pub(super) fn has_lock(&self) -> bool {
        !matches!(self.phase, Phase::Locking { .. } | Phase::Unlocking { .. } | Phase::Failed | Phase::Gone)
    }

    pub(super) fn is_held(&self, core: &Core, record: &VdiRecord) -> bool {
        match self.mode {
            OpenMode::Write | OpenMode::Flatten => record.is_held_by(core.me, self.generation),
            OpenMode::Read => record
                .readers
                .iter()
                .any(|reader| reader.holder == core.me && reader.granted.0 == self.generation.0),
        }
    }

    /// A newer view; `before` is the epoch of the one before.
    pub(super) fn handle_view(&mut self, core: &mut Core, before: Epoch) {
        self.places.clear();
        if !self.has_lock() {
            return;
        }
        let view = core.view();
        if view.index.0 < self.generation.0 {
            return;
        }
        let Some(record) = view.state.vdi(self.vdi) else { return self.lose(core, LostReason::Deleted) };
        if !self.is_held(core, record) {
            return self.lose(core, LostReason::LockEnded);
        }
        self.write_through = record.cache == CacheMode::WriteThrough;
        if matches!(self.phase, Phase::Granted) {
            return self.handle_grant(core);
        }
        let record = record.as_ref().clone();
        self.follow_vid(core, &record);
        if !self.has_lock() {
            return;
        }
        if record.size != self.size {
            self.size = record.size;
            if matches!(self.phase, Phase::Serving) {
                core.outputs.push_back(GatewayOutput::Resized { handle: self.handle, size: self.size });
            }
        }
        if view.epoch() == before {
            self.review_too_few(core);
        } else {
            self.handle_epoch(core, before);
        }
        self.follow_fill(core, &record);
        self.again = true;
    }

    /// Everything that was asked in an older epoch is asked anew.
    fn handle_epoch(&mut self, core: &mut Core, before: Epoch) {
        core.cancel_all(self.handle);
        for piece in self.reads.values_mut() {
            piece.restart();
        }
        self.restart_queries();
        self.diffs.restart();
        if let Phase::Settling(settle) = &mut self.phase {
            **settle = Settle::default();
            return self.step_settle(core);
        }
        self.regroup_writes(core, before);
        self.restart_flush(core);
    }

    pub(super) fn handle_reply(
        &mut self,
        core: &mut Core,
        number: u64,
        tag: Tag,
        from: Member,
        reply: Reply,
    ) {
        match tag {
            Tag::Write { object, sequence } => {
                self.handle_write_reply(core, number, (object, sequence), from, reply);
            }
            Tag::Read { piece } => {
                core.cancel(number);
                self.handle_read_reply(core, piece, from, reply);
            }
            Tag::Query { query } => {
                core.cancel(number);
                self.handle_query_reply(core, query, from, reply);
            }
            Tag::Compare { question } => self.handle_compared(core, number, question, from, reply),
            Tag::QueryBlock { query } => {
                core.cancel(number);
                self.handle_query_block(query, from, reply);
            }
            _ => self.handle_plain_reply(core, number, tag, from, reply),
        }
        self.again = true;
    }

    /// Replies to requests that are repeated until they succeed.
    fn handle_plain_reply(&mut self, core: &mut Core, number: u64, tag: Tag, from: Member, reply: Reply) {
        match reply {
            Reply::Refused(refusal) => {
                if passes_soon(refusal) {
                    core.back_off(number, core.config.not_ready);
                }
                // A discarded object that is not there any more is what was wanted.
                let removed = tag == Tag::Remove && refusal == Refusal::NoCopy;
                if removed {
                    core.cancel(number);
                    self.flusher.answered(number);
                } else {
                    self.settle_refused(core, number, tag, refusal);
                }
            }
            reply => {
                core.cancel(number);
                match tag {
                    Tag::Flush | Tag::ClearPending | Tag::Remove => self.flusher.answered(number),
                    _ => self.handle_settle_reply(core, tag, from, reply),
                }
            }
        }
    }

    /// A request's time has come.
    pub(super) fn handle_due(&mut self, core: &mut Core, number: u64) {
        let Some((tag, to)) = core.get_call(number).map(|call| (call.tag, call.to)) else { return };
        core.note_silence(number);
        match tag {
            Tag::Read { piece } => {
                core.cancel(number);
                self.read_timed_out(piece, to);
                self.again = true;
            }
            Tag::Write { .. } if !core.lease_valid() => core.back_off(number, core.config.not_ready),
            _ => core.resend(number),
        }
    }

    /// Time has passed, or the lease was renewed.
    pub(super) fn handle_time(&mut self, core: &mut Core) {
        match &mut self.phase {
            Phase::Waiting { until } if *until <= core.now => self.begin_settling(core),
            Phase::Settling(_) => self.step_settle(core),
            _ => {}
        }
        self.again = true;
    }

    /// Carries on whatever can go on.
    pub(super) fn pump(&mut self, core: &mut Core) {
        self.release_held(core);
        while std::mem::take(&mut self.again) && self.is_running() {
            let stale = self.unreadable.clone();
            self.expire(core);
            if self.resend && core.lease_valid() {
                self.send_missing(core);
            }
            self.start_reads(core);
            self.start_pieces(core);
            self.answer_statuses(core);
            self.step_queries(core);
            self.step_diffs(core);
            self.step_fill(core);
            self.step_flush(core);
            self.step_replaced(core);
            self.step_still(core);
            // Everybody who waited for such a block has seen that it failed; who comes later tries again.
            self.unreadable.retain(|block| !stale.contains(block));
            self.step_close(core);
        }
    }

    fn release_held(&mut self, core: &mut Core) {
        if core.lease_valid() {
            let handle = self.handle;
            let done = self.held.drain(..).map(|(io, result)| GatewayOutput::Done { handle, io, result });
            core.outputs.extend(done);
        }
    }

    /// Gives an operation its answer: at once with a valid lease, else when it is renewed.
    pub(super) fn answer(&mut self, core: &mut Core, io: u64, result: Result<VolumeReply, VolumeError>) {
        if result.is_err() || core.lease_valid() {
            core.outputs.push_back(GatewayOutput::Done { handle: self.handle, io, result });
        } else {
            self.held.push((io, result));
        }
    }

    /// The right to serve is gone: nothing is answered from old knowledge any more.
    pub(super) fn lose(&mut self, core: &mut Core, reason: LostReason) {
        let opening = !matches!(self.phase, Phase::Serving | Phase::Draining);
        let draining = matches!(self.phase, Phase::Draining);
        self.drop_everything(core);
        if opening {
            let error = match reason {
                LostReason::Deleted => OpenError::NoSuchVdi,
                LostReason::LockEnded => OpenError::LockEnded,
                LostReason::WritesMissing => OpenError::MapLost,
            };
            self.open_error = Some(error);
            // Missing writes end the volume, not the lock.
            if reason == LostReason::WritesMissing {
                self.unlock(core, false)
            } else {
                self.finish_close(core)
            }
            return;
        }
        core.outputs.push_back(GatewayOutput::Lost { handle: self.handle, reason });
        self.phase = Phase::Failed;
        self.keeps_lock = reason == LostReason::WritesMissing;
        if draining {
            self.close_failed(core);
        }
    }

    fn drop_everything(&mut self, core: &mut Core) {
        core.cancel_all(self.handle);
        self.free_all(core);
        self.objects.clear();
        self.queue.clear();
        self.reads.clear();
        self.queries.clear();
        self.diffs = Diffs::default();
        self.loading.clear();
        self.flusher = Flusher::default();
        self.fill = Fill::default();
        self.stills.clear();
        let held = std::mem::take(&mut self.held).into_iter().map(|(io, _)| io);
        let open = std::mem::take(&mut self.ios).into_keys();
        let handle = self.handle;
        let lost =
            held.chain(open).map(|io| GatewayOutput::Done { handle, io, result: Err(VolumeError::Lost) });
        core.outputs.extend(lost);
    }

    /// When to look again, apart from requests under way.
    pub(super) fn next_timeout(&self, core: &Core) -> Option<Time> {
        let phase = match &self.phase {
            Phase::Waiting { until } => Some(*until),
            Phase::Settling(settle) => settle.next_timeout(),
            _ => None,
        };
        let reads = self.reads.values().filter_map(|piece| piece.retry_at).min();
        let running = self.is_running();
        let flush = running.then(|| self.flush_deadline(core)).flatten();
        let expiry = running.then(|| self.expiry(core)).flatten();
        let replaced = self.replaced.deadline().filter(|_| running);
        let fill = running.then(|| self.fill_deadline()).flatten();
        [phase, reads, flush, fill, expiry, replaced, self.still_deadline()].into_iter().flatten().min()
    }
}

/// The mark of all writes up to the newest one but for these. Its exceptions are bounded: it is lowered rather than made
/// long.
fn mark(unconfirmed: &BTreeSet<u64>, newest: u64) -> Confirmed {
    let mut open = unconfirmed.iter().copied();
    let mut except: SmallVec<[u64; MARK_EXCEPTIONS]> = open.by_ref().take(MARK_EXCEPTIONS).collect();
    let mut upto = open.next().map_or(newest, |beyond| beyond - 1);
    // Most writes that are not confirmed are the newest ones: the mark ends before them.
    while except.last() == Some(&upto) {
        except.pop();
        upto -= 1;
    }
    Confirmed { upto, except: except.iter().copied().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mark_covers_what_is_confirmed_and_nothing_else(
            open in proptest::collection::btree_set(1u64..200, 0..150), newest in 200u64..210,
        ) {
            let mark = mark(&open, newest);
            let bounded = open.iter().nth(MARK_EXCEPTIONS).copied().unwrap_or(u64::MAX);
            for sequence in 1..newest + 10 {
                let confirmed = sequence <= newest && !open.contains(&sequence);
                prop_assert_eq!(mark.covers(sequence), confirmed && sequence < bounded, "{}", sequence);
            }
            prop_assert!(mark.except.len() <= MARK_EXCEPTIONS);
            prop_assert!(mark.except.last() != Some(&mark.upto));
        }
    }

    #[test]
    fn the_newest_writes_need_no_exceptions() {
        let mark = mark(&(70..=100).collect(), 100);
        assert_eq!((mark.upto, mark.except.len()), (69, 0));
    }
}
