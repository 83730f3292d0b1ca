//! The replica: owns object copies, serves reads and writes of them, and (with [`crate::recovery`]) brings them
//! up to date after each change of the epoch.

mod admit;
mod api;
mod bulk;
mod compare;
mod convert;
mod disks;
mod equalize;
mod hot;
mod jobs;
mod moves;
mod pace;
mod serve;
mod share;
mod source;
mod standing;
mod sweep;
mod timers;
mod waiting;
mod write;

use crate::View;
use crate::recovery::{FLOORS, Recovery};
use crate::scrub::Scrub;
pub use api::{ReplicaConfig, ReplicaOutput, ReplicaStatus};
use hot::HotMarks;
pub(crate) use jobs::Job;
use sheep_state::Command;
use sheep_store::{DiskOpId, DiskResult, Header as CopyHeader, Op, SetEvent, StoreError, StoreSet};
use sheep_types::{ClusterId, Epoch, LogIndex, Member, ObjectId, Time, Vid};
use sheep_wire::{Header, Message, Packet, Refusal, Reply, Request};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
pub(crate) use timers::{Timer, Timers};
use waiting::Waiting;

pub(crate) use convert::{extents, read_data};
pub(crate) use equalize::{Contents, Then};
pub(crate) use source::is_damaged;

/// The replica of one shard. See the [crate] documentation.
///
/// After each call poll [`Replica::poll_output`] until it is empty.
#[derive(Debug)]
pub struct Replica {
    pub(crate) config: ReplicaConfig,
    pub(crate) me: Member,
    pub(crate) cluster: ClusterId,
    pub(crate) view: Option<Arc<View>>,
    pub(crate) store: StoreSet,
    ready: bool,
    failed: Option<StoreError>,
    foreign: u64,
    busy: u64,
    garbled: u64,
    next_token: u64,
    next_request: u64,
    jobs: BTreeMap<u64, Job>,
    waiting: Waiting,
    /// Objects whose copy is being replaced or validated, until that is durable.
    pub(crate) replacing: BTreeSet<ObjectId>,
    /// Of these, those that were called current and are made durable together, soon.
    pub(crate) confirming: Vec<ObjectId>,
    /// Reads for other replicas.
    gathers: source::Gathers,
    /// Copies that failed a checksum and wait for repair.
    pub(crate) damaged: BTreeSet<ObjectId>,
    pub(crate) hot: HotMarks,
    /// Copies whose map entry is not confirmed.
    pending: BTreeSet<ObjectId>,
    /// Epochs in which each disk held everything it had to, by slot.
    pub(crate) floors: BTreeMap<u8, BTreeSet<Epoch>>,
    /// Vids that the store has objects of.
    vids: BTreeSet<Vid>,
    pub(crate) recovery: Recovery,
    pub(crate) scrub: Scrub,
    /// When this replica was made.
    pub(crate) started: Time,
    pub(crate) timers: Timers,
    pace: pace::Pace,
    outputs: VecDeque<ReplicaOutput>,
    /// Objects whose waiting requests may have become possible.
    woken: BTreeSet<ObjectId>,
    /// What has come in and is not looked at yet.
    inbox: VecDeque<Input>,
    /// Changes that the store has taken but not executed: it waits for space, or for room in its log. Until
    /// they are, headers are not what they will be, and nothing is answered or begun on their ground.
    stalled: BTreeSet<u64>,
    /// The present epoch counts on a disk that does not work, or not on one that does. Until an epoch says how it is
    /// nothing is answered or begun: what was lost may have been acknowledged in this one.
    pub(crate) misses_disk: bool,
    disks: disks::Disks,
    moves: moves::Moves,
}

/// Something that has come in.
#[derive(Debug)]
enum Input {
    Request(Header, Request),
    Reply(Header, Reply),
    Timer(Timer),
}

impl Replica {
    /// A replica over a store that is being opened. Requests wait until the store is ready and the first view
    /// has come.
    pub fn new(
        config: ReplicaConfig,
        me: Member,
        cluster: ClusterId,
        store: impl Into<StoreSet>,
        now: Time,
    ) -> Self {
        let mut replica = Self {
            config,
            me,
            cluster,
            view: None,
            store: store.into(),
            ready: false,
            failed: None,
            foreign: 0,
            busy: 0,
            garbled: 0,
            next_token: 0,
            // Odd numbers are the replica's, even ones the gateway's.
            next_request: 1,
            jobs: BTreeMap::new(),
            waiting: Waiting::default(),
            replacing: BTreeSet::new(),
            confirming: Vec::new(),
            gathers: source::Gathers::default(),
            damaged: BTreeSet::new(),
            hot: HotMarks::default(),
            pending: BTreeSet::new(),
            floors: BTreeMap::new(),
            vids: BTreeSet::new(),
            recovery: Recovery::default(),
            scrub: Scrub::default(),
            started: now,
            timers: Timers::default(),
            pace: pace::Pace::new(now),
            outputs: VecDeque::new(),
            woken: BTreeSet::new(),
            inbox: VecDeque::new(),
            stalled: BTreeSet::new(),
            misses_disk: false,
            disks: disks::Disks::default(),
            moves: moves::Moves::default(),
        };
        replica.pump(now);
        replica
    }

    /// A newer picture of the cluster.
    pub fn handle_view(&mut self, now: Time, view: Arc<View>) {
        let before = self.view.as_ref().map(|view| (view.epoch(), view.index));
        assert!(before.is_none_or(|(_, index)| index <= view.index), "views go forward");
        let new_epoch = before.is_none_or(|(epoch, _)| epoch != view.epoch());
        let oldest = self.view.as_ref().map(|view| view.oldest_epoch());
        let forgotten = oldest.is_some_and(|oldest| oldest != view.oldest_epoch());
        self.view = Some(view);
        if forgotten {
            self.drop_floors();
        }
        self.look_at_disks(now);
        self.drop_gone(now);
        if new_epoch {
            self.begin_epoch(now);
            self.woken.extend(self.waiting.objects());
        }
        self.readmit();
        self.pump(now);
    }

    /// Requests that waited for a view or the store are looked at again.
    fn readmit(&mut self) {
        let waited = self.waiting.take_for_view();
        self.inbox.extend(waited.into_iter().map(|(header, request)| Input::Request(header, request)));
    }

    /// A request of a node, possibly this one.
    pub fn handle_request(&mut self, now: Time, header: Header, request: Request) {
        if self.inbox.len() >= self.config.waiting_requests {
            self.busy += 1;
            return self.refuse(&header, Refusal::Busy);
        }
        self.inbox.push_back(Input::Request(header, request));
        self.pump(now);
    }

    /// A reply to a request of this replica (odd numbers).
    pub fn handle_reply(&mut self, now: Time, header: Header, reply: Reply) {
        self.inbox.push_back(Input::Reply(header, reply));
        self.pump(now);
    }

    /// Result of a disk operation.
    pub fn handle_disk(&mut self, now: Time, id: DiskOpId, result: DiskResult) {
        self.store.handle_disk(id, result);
        self.pump(now);
    }

    /// Time has come to what [`Replica::poll_timeout`] said.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(timer) = self.timers.pop(now) {
            self.inbox.push_back(Input::Timer(timer));
        }
        self.pump(now);
    }

    /// When to call [`Replica::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    /// Next effect, if any.
    pub fn poll_output(&mut self) -> Option<ReplicaOutput> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        self.store.poll_disk().map(ReplicaOutput::Disk)
    }

    /// What is under way.
    pub fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            serving: self.ready && self.failed.is_none(),
            waiting: self.waiting.len(),
            jobs: self.jobs.len(),
            foreign: self.foreign,
            busy: self.busy,
            garbled: self.garbled,
            pace: self.pace.rate(),
        }
    }

    /// Why the store has failed, if it has.
    pub fn store_failure(&self) -> Option<&StoreError> {
        self.failed.as_ref()
    }

    /// The store, to look at.
    pub fn store(&self) -> &StoreSet {
        &self.store
    }

    /// Whether this node's copy of the object may serve in the present epoch.
    pub fn is_current(&self, object: ObjectId) -> bool {
        self.view.as_ref().is_some_and(|view| self.current_in(view, object))
    }

    /// Carries on with everything that has become possible.
    pub(crate) fn pump(&mut self, now: Time) {
        loop {
            if let Some(event) = self.store.poll_event() {
                self.take_event(now, event);
            } else if !self.stalled.is_empty() {
                return;
            } else if let Some(object) = self.woken.pop_first() {
                self.retry_waiting(now, object);
            } else if let Some(input) = self.inbox.pop_front() {
                self.take_input(now, input);
            } else if !self.recovery_step(now) {
                return;
            }
        }
    }

    fn take_input(&mut self, now: Time, input: Input) {
        match input {
            Input::Request(header, request) => self.serve(now, header, request, None),
            Input::Reply(header, _) if header.cluster != self.cluster => self.foreign += 1,
            Input::Reply(..) if self.misses_disk => {}
            Input::Reply(header, reply) => self.take_reply(now, header, reply),
            Input::Timer(Timer::Disks) => self.report_disks(now, true),
            Input::Timer(Timer::Move) => self.move_next(now),
            Input::Timer(Timer::View) => {
                for (header, reply) in self.waiting.expired_for_view(now) {
                    self.answer(&header, reply);
                }
            }
            Input::Timer(Timer::Object(object)) => {
                for (header, reply) in self.waiting.expired(now, object) {
                    self.answer(&header, reply);
                }
            }
            Input::Timer(Timer::Gone) => self.drop_gone(now),
            Input::Timer(Timer::Scrub) => self.scrub_timer(now),
            Input::Timer(Timer::Recovery(timer)) => self.recovery_timer(now, timer),
            // What this node fetches itself goes on by itself.
            Input::Timer(Timer::Pace) => self.move_on(now),
        }
    }

    fn take_event(&mut self, now: Time, event: SetEvent) {
        match event {
            SetEvent::Ready => {
                self.ready = true;
                let slots: Vec<u8> = self.store.disks().map(|disk| disk.slot).collect();
                slots.into_iter().for_each(|slot| self.load(slot, true));
                self.look_at_disks(now);
                if self.view.is_some() {
                    self.drop_gone(now);
                    self.begin_epoch(now);
                }
                self.readmit();
            }
            SetEvent::Done { token, result } => {
                self.stalled.remove(&token);
                self.garbled += u64::from(matches!(result, Err(StoreError::BadChecksum { .. })));
                if let Some(job) = self.jobs.remove(&token) {
                    self.finish(now, job, result);
                }
            }
            SetEvent::DiskReady(slot) => self.disk_came(now, slot),
            SetEvent::DiskFailed(slot, error) => self.disk_went(now, slot, error),
            SetEvent::Failed(problem) => {
                self.failed = Some(problem);
                self.stalled.clear();
                self.outputs.push_back(ReplicaOutput::StoreFailed);
                for (header, _) in self.waiting.take_all() {
                    self.refuse(&header, Refusal::StoreFailed);
                }
            }
            SetEvent::SpaceLow(_) => {}
        }
    }

    /// The header of this node's copy, if it belongs to the object's vid.
    pub(crate) fn copy(&self, view: &View, object: ObjectId) -> Option<CopyHeader> {
        self.copy_at(view, object).map(|(_, header)| header)
    }

    /// The same, and the slot of the disk that it is on.
    pub(crate) fn copy_at(&self, view: &View, object: ObjectId) -> Option<(u8, CopyHeader)> {
        let (slot, header) = self.store.located(object)?;
        view.is_born(object, header.birth).then_some((slot, *header))
    }

    /// Headers from an object on, whatever they belong to.
    pub(crate) fn headers_from(&self, from: ObjectId) -> impl Iterator<Item = &CopyHeader> {
        self.store.objects(from)
    }

    /// Header under a name, whatever it belongs to.
    pub(crate) fn raw_header(&self, object: ObjectId) -> Option<CopyHeader> {
        self.store.header(object).copied()
    }

    /// Whether the store works.
    pub(crate) fn is_serving(&self) -> bool {
        self.ready && self.failed.is_none()
    }

    /// Store operations under way.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Hands an operation to the store. Its result, even an immediate one, comes to `finish` later.
    pub(crate) fn submit(&mut self, op: Op, job: Job) {
        let home = if self.store.is_several() { self.home_for(&op) } else { 0 };
        self.submit_to(op, job, home);
    }

    /// The same; `home` is the disk on which the object is made if it is on none.
    pub(super) fn submit_to(&mut self, op: Op, job: Job, home: u8) {
        if let Op::Write { header, .. }
        | Op::Replace { header, .. }
        | Op::Patch { header, .. }
        | Op::CloneBlocks { header, .. }
        | Op::SetHeader { header } = &op
        {
            let object = header.id;
            if object.vid() != FLOORS {
                self.vids.insert(object.vid());
            }
            if header.pending {
                self.pending.insert(object);
            } else {
                self.pending.remove(&object);
            }
        }
        let expected = match &op {
            Op::Write { header, .. }
            | Op::Replace { header, .. }
            | Op::Patch { header, .. }
            | Op::CloneBlocks { header, .. }
            | Op::SetHeader { header } => Some((header.id, Some(*header))),
            Op::Delete { object } => Some((*object, None)),
            _ => None,
        };
        let token = self.begin_job(job);
        self.store.submit(token, op, home);
        if let Some((object, header)) = expected
            && self.store.header(object) != header.as_ref()
        {
            self.stalled.insert(token);
        }
    }

    fn begin_job(&mut self, job: Job) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.jobs.insert(token, job);
        token
    }

    /// Deletes a copy and what is noted about it.
    pub(crate) fn delete_copy(&mut self, object: ObjectId, job: Job) {
        self.hot.forget(object);
        self.pending.remove(&object);
        self.damaged.remove(&object);
        self.scrub.whole(object);
        self.submit(Op::Delete { object }, job);
    }

    /// Something about the object has changed: requests that wait for it are tried again.
    pub(crate) fn wake(&mut self, object: ObjectId) {
        self.woken.insert(object);
    }

    fn retry_waiting(&mut self, now: Time, object: ObjectId) {
        for entry in self.waiting.take(object) {
            let (header, request, deadline) = entry.into_parts();
            self.serve(now, header, request, Some(deadline));
        }
    }

    /// Answers a request.
    pub(crate) fn answer(&mut self, to: &Header, reply: Reply) {
        let (epoch, index) =
            self.view.as_ref().map_or((Epoch(0), LogIndex(0)), |view| (view.epoch(), view.index));
        let header = Header {
            request: to.request,
            cluster: self.cluster,
            from: self.me,
            to: to.from.incarnation,
            shard: to.shard,
            epoch,
            relies_on: index,
            generation: to.generation,
        };
        let message = Message::Reply(reply);
        self.outputs.push_back(ReplicaOutput::Send(Packet { to: to.from.node, header, message }));
    }

    /// Refuses a request.
    pub(crate) fn refuse(&mut self, to: &Header, refusal: Refusal) {
        self.answer(to, Reply::Refused(refusal));
    }

    /// Sends a request of the replica itself, in the present epoch, and returns its number.
    pub(crate) fn ask(&mut self, view: &View, to: Member, request: Request) -> u64 {
        let number = self.next_request;
        self.next_request += 2;
        let header = Header {
            request: number,
            cluster: self.cluster,
            from: self.me,
            to: to.incarnation,
            shard: 0,
            epoch: view.epoch(),
            relies_on: view.index,
            generation: sheep_types::Generation(0),
        };
        let message = Message::Request(request);
        self.outputs.push_back(ReplicaOutput::Send(Packet { to: to.node, header, message }));
        number
    }

    /// Orders a command.
    pub(crate) fn propose(&mut self, command: Command) {
        self.outputs.push_back(ReplicaOutput::Propose(command));
    }
}
