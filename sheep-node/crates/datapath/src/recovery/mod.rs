//! Recovery: what a node must hold in the present epoch, and bringing it up to date.
//!
//! On each new epoch the store is scanned, the peers are asked what they have of what this node must hold, and
//! every object that is not current is walked ([`walk`]). What clients wait for comes first.

mod announce;
mod compare;
mod confirm;
mod decide;
mod fetch;
mod fetches;
mod help;
mod list;
mod outbox;
mod run;
mod surplus;
mod walk;

use crate::replica::Replica;
use core::time::Duration;
use sheep_types::{Epoch, Member, NodeId, ObjectId, Time, Version};
use sheep_wire::Standing;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) use announce::FLOORS;
pub(crate) use compare::{Cell, cells, ranges_of};
use fetches::Fetches;
use list::Lists;
use walk::Source;

/// How far recovery is in the present epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The epoch.
    pub epoch: Epoch,
    /// Objects known to need work.
    pub objects_left: u64,
    /// Objects brought up to date in this epoch.
    pub objects_done: u64,
    /// Bytes fetched from other nodes in this epoch.
    pub bytes_done: u64,
    /// Bytes still to be fetched, supposed that the objects left are like those done.
    pub bytes_left: u64,
    /// Time until all is done, at the pace so far; none before anything is done.
    pub time_left: Option<Duration>,
    /// Bytes fetched from other nodes since the node started.
    pub bytes_ever: u64,
    /// Objects found equal and called current without moving data, since the node started.
    pub confirmed_ever: u64,
    /// Objects without any copy that could be trusted.
    pub objects_lost: u64,
    /// Copies that this node holds although it need not, until all members have theirs.
    pub objects_surplus: u64,
    /// Everything is known (own store scanned, all peers asked).
    pub listed: bool,
    /// Everything this node must hold is validated and durable.
    pub complete: bool,
}

/// Deadlines of recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RecoveryTimer {
    /// No answer to this request.
    Ask(u64),
    /// Try the object again.
    Retry(ObjectId),
    /// Ask again for what the own copy lacks.
    Heal(ObjectId),
    /// Ask this node for its list again.
    List(NodeId),
    /// Go on with the scan of the store.
    Scan,
    /// What has gathered in the outbox goes out.
    Gathered,
    /// Look at surplus copies again.
    Surplus,
    /// Say again that everything is recovered, if the state does not show it.
    Announce,
}

/// An object to be brought up to date, while nothing is under way for it.
#[derive(Clone, Copy, Debug, Default)]
struct Todo {
    /// Failed attempts in this epoch.
    tries: u32,
    /// Somebody waits for it.
    urgent: bool,
}

/// What is under way for an object.
#[derive(Debug)]
enum Phase {
    /// Standings at an epoch are asked for.
    Asking { at: Epoch, missing: BTreeSet<NodeId>, answers: BTreeMap<NodeId, Standing> },
    /// Waits for its turn to fetch.
    Queued(Source),
    /// What differs is on its way.
    Fetching { source: Source, fetch: u64 },
    /// It is being made durable here.
    Storing,
    /// This node decides: all members of the set are made equal.
    Equalizing { source: Source, missing: BTreeSet<NodeId> },
    /// All are equal; they are told so, this node too.
    Adopting,
}

#[derive(Debug)]
struct Walk {
    phase: Phase,
    tries: u32,
    urgent: bool,
}

/// A question that is on its way to another replica.
#[derive(Debug)]
struct Ask {
    to: Member,
    kind: AskKind,
}

#[derive(Debug)]
pub(crate) enum AskKind {
    /// Standings of objects at an epoch, for walks.
    Standing { objects: Vec<ObjectId>, at: Epoch },
    /// What the source's copy holds.
    Digest { fetch: u64 },
    /// Some blocks of it.
    Blocks { fetch: u64, ranges: Vec<(u32, u32)> },
    /// Blocks that the source of a fetch does not have.
    Help { fetch: u64, ranges: Vec<(u32, u32)> },
    /// This node decides: make your copy equal.
    Equalize { object: ObjectId, version: Version },
    /// The same for copies that are equal already: make them durable.
    Secure { objects: Vec<(ObjectId, Version)> },
    /// This node decides: all are equal.
    Adopt { objects: Vec<(ObjectId, Version)> },
    /// A page of a list.
    List,
    /// What a copy holds, to be compared with the own one.
    Scrub { object: ObjectId },
    /// Standings of surplus copies.
    Surplus { objects: Vec<ObjectId> },
}

/// How far the announcement of the present epoch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Announced {
    /// Not everything is validated.
    #[default]
    No,
    /// Being noted durably.
    Storing,
    /// Proposed.
    Proposed,
}

/// State of recovery, of the present epoch only: a new one starts afresh.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    epoch: Epoch,
    /// The scan of the own store goes on here.
    scan: Option<ObjectId>,
    lists: Lists,
    todo: BTreeMap<ObjectId, Todo>,
    urgent: BTreeSet<ObjectId>,
    ready: BTreeSet<ObjectId>,
    walks: BTreeMap<ObjectId, Walk>,
    /// Walks that wait for their turn to fetch.
    fetch_urgent: BTreeSet<ObjectId>,
    fetch_ready: BTreeSet<ObjectId>,
    fetching: usize,
    fetches: Fetches,
    /// Questions and decisions to be sent.
    outbox: outbox::Outbox,
    asks: BTreeMap<u64, Ask>,
    /// Objects of which no copy can be trusted.
    lost: BTreeSet<ObjectId>,
    /// Objects with blocks that nobody gave in earlier attempts.
    missed: BTreeMap<ObjectId, help::Missed>,
    /// Current copies that lack blocks which are asked for again, and how often that was.
    heals: BTreeMap<ObjectId, u32>,
    surplus: surplus::Surplus,
    announced: Announced,
    objects_done: u64,
    bytes_done: u64,
    /// When this epoch's recovery began, and when it last finished an object.
    began: Time,
    moved: Time,
    bytes_ever: u64,
    confirmed_ever: u64,
}

impl Recovery {
    /// Whether it is known that no copy of the object can be trusted.
    pub(crate) fn is_lost(&self, object: ObjectId) -> bool {
        self.lost.contains(&object)
    }

    /// Objects of which no copy can be trusted.
    pub(crate) fn lost_objects(&self) -> impl Iterator<Item = ObjectId> {
        self.lost.iter().copied()
    }

    /// Whether objects are being walked or fetched.
    pub(crate) fn is_moving(&self) -> bool {
        !self.walks.is_empty()
    }

    /// The object needs no recovery any more: it was created anew or removed. What is under way for it is
    /// dropped when it arrives.
    pub(crate) fn forget(&mut self, object: ObjectId) {
        self.drop_walk(object);
        self.todo.remove(&object);
        self.ready.remove(&object);
        self.urgent.remove(&object);
        self.lost.remove(&object);
        self.surplus.forget(object);
        self.missed.remove(&object);
        self.fetches.drop_kept(object);
    }

    /// Forgets objects of which no copy can be trusted, and which nobody reaches.
    pub(crate) fn forget_lost(&mut self, is_free: impl Fn(ObjectId) -> bool) {
        self.lost.retain(|object| !is_free(*object));
    }

    fn drop_walk(&mut self, object: ObjectId) -> Option<Walk> {
        let walk = self.walks.remove(&object)?;
        match walk.phase {
            Phase::Fetching { fetch, .. } => {
                self.fetching -= 1;
                self.fetches.end(fetch);
            }
            Phase::Queued(_) => {
                self.fetch_urgent.remove(&object);
                self.fetch_ready.remove(&object);
            }
            Phase::Asking { .. } | Phase::Storing | Phase::Equalizing { .. } | Phase::Adopting => {}
        }
        Some(walk)
    }

    /// Nothing is left that this node knows of.
    fn is_idle(&self) -> bool {
        self.scan.is_none() && self.lists.are_complete() && self.todo.is_empty() && self.walks.is_empty()
    }
}

impl Replica {
    /// How far recovery is.
    pub fn progress(&self) -> Progress {
        let recovery = &self.recovery;
        let (left, done) = ((recovery.todo.len() + recovery.walks.len()) as u64, recovery.objects_done);
        let share = |of: u64| {
            u64::try_from(u128::from(of) * u128::from(left) / u128::from(done.max(1))).unwrap_or(u64::MAX)
        };
        let took = recovery.moved.as_nanos() - recovery.began.as_nanos();
        Progress {
            epoch: recovery.epoch,
            objects_left: left,
            bytes_left: share(recovery.bytes_done).max(recovery.fetches.bytes_missing()),
            time_left: (done > 0).then(|| Duration::from_nanos(share(took))),
            objects_done: recovery.objects_done,
            bytes_done: recovery.bytes_done,
            bytes_ever: recovery.bytes_ever,
            confirmed_ever: recovery.confirmed_ever,
            objects_lost: recovery.lost.len() as u64,
            objects_surplus: recovery.surplus.len() as u64,
            listed: recovery.scan.is_none() && recovery.lists.are_complete(),
            complete: recovery.announced == Announced::Proposed,
        }
    }

    /// Objects that are not up to date here yet, for diagnosis.
    pub fn unrecovered(&self) -> Vec<ObjectId> {
        self.recovery.todo.keys().chain(self.recovery.walks.keys()).copied().collect()
    }

    /// How the own copy of an object stood in an epoch, for diagnosis.
    pub fn standing_at(&self, object: ObjectId, at: Epoch) -> Option<Standing> {
        self.view.as_ref().map(|view| self.standing(view, object, at))
    }

    /// A new epoch: everything that is known about others is void. Replacements that the store has begun go on;
    /// until they are durable nothing is said about their objects.
    pub(crate) fn begin_epoch(&mut self, now: Time) {
        let Some(view) = self.view.clone() else { return };
        let before = core::mem::take(&mut self.recovery);
        let mut fetches = before.fetches;
        let askers = fetches.end_all();
        self.recovery = Recovery {
            epoch: view.epoch(),
            began: now,
            moved: now,
            // Blocks that have come are of use in any epoch: they are compared again.
            fetches,
            bytes_ever: before.bytes_ever,
            confirmed_ever: before.confirmed_ever,
            ..Recovery::default()
        };
        for asker in askers {
            self.refuse(&asker, sheep_wire::Refusal::StaleEpoch(view.epoch()));
        }
        if !self.is_serving() || view.member_now(self.me.node) != Some(self.me) {
            return;
        }
        self.scrub_epoch(now);
        self.begin_moves(now);
        self.recovery.scan = Some(ObjectId(0));
        self.set_timer(now, Duration::ZERO, RecoveryTimer::Scan);
        self.begin_lists(now, &view);
    }

    fn set_timer(&mut self, now: Time, after: Duration, timer: RecoveryTimer) {
        self.timers.set(now + after, crate::replica::Timer::Recovery(timer));
    }

    pub(crate) fn recovery_timer(&mut self, now: Time, timer: RecoveryTimer) {
        let Some(view) = self.view.clone().filter(|_| self.is_serving() && !self.misses_disk) else { return };
        match timer {
            RecoveryTimer::Ask(number) => {
                if let Some(ask) = self.recovery.asks.remove(&number) {
                    self.ask_failed(now, &view, ask);
                }
            }
            RecoveryTimer::Retry(object) => self.queue(object),
            RecoveryTimer::Heal(object) => self.heal_again(now, &view, object),
            RecoveryTimer::List(node) => self.ask_list(now, &view, node),
            RecoveryTimer::Scan => self.scan(now, &view),
            RecoveryTimer::Gathered => self.recovery.outbox.gathered(),
            RecoveryTimer::Surplus => self.check_surplus(now, &view),
            RecoveryTimer::Announce => self.announce_again(now, &view),
        }
    }

    /// Does a piece of work that has become possible; whether it did.
    pub(crate) fn recovery_step(&mut self, now: Time) -> bool {
        let Some(view) = self.view.clone().filter(|_| self.is_serving() && !self.misses_disk) else {
            return false;
        };
        self.start_walk(now, &view)
            || self.start_fetch(now, &view)
            || self.move_fetch(now, &view)
            || self.send_gathered(now, &view)
            || self.secure_confirmed()
            || self.announce(&view)
    }
}
