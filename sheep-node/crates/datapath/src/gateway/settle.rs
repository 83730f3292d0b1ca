//! Settling: what a new holder does after one that did not end cleanly. Every copy of what the former holder had
//! under way is made equal to one of them, and all is made durable, before anything is served.

use super::api::OpenError;
use super::coverage::is_covered;
use super::shared::{Core, Tag};
use super::volume::{Phase, Volume};
use sheep_types::{Epoch, Member, ObjectId, ObjectKind, Time, Version};
use sheep_wire::{Confirmed, HotObject, Refusal, Reply, Request, Standing, StandingKind};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Objects looked at together.
const WINDOW: usize = 32;
/// Wait before an object is looked at again.
const AGAIN: Duration = Duration::from_millis(100);
/// An object that no up member of its set has, although all say that they have recovered, is an orphan after so
/// long.
const ORPHAN: Duration = Duration::from_secs(5);
/// More hot objects than holders can have under way: the listing is not believed.
const MOST_OBJECTS: usize = 1 << 20;

/// How far it is.
#[derive(Debug, Default)]
enum Stage {
    #[default]
    Start,
    /// Hot objects are being listed.
    Listing,
    /// Members that may have objects that nobody else knows of are away. A new epoch begins anew.
    Missing,
    /// Hot objects are being made equal.
    Equalizing,
    /// Everything becomes durable.
    Flushing,
    /// Members forget former hot marks.
    Closing,
}

/// A hot object.
#[derive(Debug, Default)]
struct Hot {
    /// Highest version with which somebody listed it as pending.
    pending: Option<Version>,
    work: Work,
    /// Since when no member of its set has had a copy.
    missing_since: Option<Time>,
}

#[derive(Debug, Default)]
enum Work {
    /// To be looked at, from this time on.
    #[default]
    Waiting,
    Later(Time),
    /// Its members are asked how their copies stand.
    Asking {
        members: Vec<Member>,
        answers: BTreeMap<Member, Standing>,
    },
    /// Some copies are made equal to the highest current one; true: that is done, the copy is being adopted.
    Equalizing {
        version: Version,
        left: BTreeMap<Member, bool>,
    },
    /// Equal on all.
    Done,
}

/// A settling in one epoch.
#[derive(Debug, Default)]
pub(super) struct Settle {
    stage: Stage,
    waiting: BTreeSet<Member>,
    hot: BTreeMap<(bool, ObjectId), Hot>,
}

/// Maps come before data.
fn key(object: ObjectId) -> (bool, ObjectId) {
    (object.kind() != Some(ObjectKind::Map), object)
}

impl Settle {
    /// Whether it waits for members that are away.
    pub(super) fn is_missing_members(&self) -> bool {
        matches!(self.stage, Stage::Missing)
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        let later = self.hot.values().filter_map(|hot| match hot.work {
            Work::Later(time) => Some(time),
            _ => None,
        });
        later.min()
    }
}

/// The settling of a volume; returns from the caller if the volume is not at it any more.
macro_rules! settle {
    ($volume:expr) => {
        match &mut $volume.phase {
            Phase::Settling(settle) => settle,
            _ => return,
        }
    };
}

impl Volume {
    /// Goes on with settling.
    pub(super) fn step_settle(&mut self, core: &mut Core) {
        let settle = settle!(self);
        match settle.stage {
            Stage::Start => {
                settle.stage = Stage::Listing;
                let vid = self.vid;
                self.ask_everybody(core, Tag::SettleList, &Request::Settle { vid, after: None });
            }
            Stage::Listing if settle.waiting.is_empty() => self.end_listing(core),
            Stage::Equalizing => self.step_objects(core),
            Stage::Flushing if settle.waiting.is_empty() => {
                settle.stage = Stage::Closing;
                let request = Request::Settled { vid: self.vid, confirmed: Confirmed::default() };
                self.ask_everybody(core, Tag::SettleDone, &request);
            }
            Stage::Closing if settle.waiting.is_empty() => self.end_settling(core),
            Stage::Listing | Stage::Missing | Stage::Flushing | Stage::Closing => {}
        }
    }

    fn ask_everybody(&mut self, core: &mut Core, tag: Tag, request: &Request) {
        let members = core.view().up_members();
        let settle = settle!(self);
        settle.waiting = members.iter().copied().collect();
        for member in members {
            self.call(core, tag, member, request.clone());
        }
    }

    /// An answer to one of the requests of this page.
    pub(super) fn handle_settle_reply(&mut self, core: &mut Core, tag: Tag, from: Member, reply: Reply) {
        let settle = settle!(self);
        match (tag, reply) {
            (Tag::SettleList, Reply::Hot(list, more)) => self.take_list(core, from, &list, more),
            (Tag::SettleStanding { object }, Reply::Standings(standings)) => {
                let standing = standings.first().copied();
                let Some(hot) = settle.hot.get_mut(&key(object)) else { return };
                if let Work::Asking { answers, .. } = &mut hot.work {
                    let unknown = Standing { kind: StandingKind::Busy, ..no_standing() };
                    answers.insert(from, standing.unwrap_or(unknown));
                }
                self.judge(core, object);
            }
            (Tag::SettleEqualize { object }, Reply::Done) => self.equalized(core, object, from),
            (Tag::SettleFlush | Tag::SettleDone, Reply::Done) => {
                settle.waiting.remove(&from);
            }
            // Not an answer to what was asked: the member is asked again later with the object or the stage.
            (Tag::SettleStanding { object } | Tag::SettleEqualize { object }, _) => {
                self.postpone(core, object)
            }
            (tag @ (Tag::SettleFlush | Tag::SettleDone), _) => self.ask_again(core, tag, from),
            _ => {}
        }
        self.step_settle(core);
    }

    fn ask_again(&mut self, core: &mut Core, tag: Tag, member: Member) {
        let request = match tag {
            Tag::SettleFlush => Request::Flush { vid: self.vid },
            _ => Request::Settled { vid: self.vid, confirmed: Confirmed::default() },
        };
        let number = self.call(core, tag, member, request);
        core.back_off(number, AGAIN);
    }

    /// A page of a member's hot objects. Pages go forward, or they would never end.
    fn take_list(&mut self, core: &mut Core, from: Member, list: &[HotObject], more: bool) {
        let vid = self.vid;
        let settle = settle!(self);
        for item in list.iter().filter(|item| item.object.vid() == vid && item.object.kind().is_some()) {
            let hot = settle.hot.entry(key(item.object)).or_default();
            if item.pending {
                hot.pending = hot.pending.max(Some(item.version));
            }
        }
        if settle.hot.len() > MOST_OBJECTS {
            self.open_error = Some(OpenError::MapLost);
            core.cancel_all(self.handle);
            return self.unlock(core, false);
        }
        match list.last().filter(|_| more) {
            Some(last) => {
                let request = Request::Settle { vid, after: Some(last.object) };
                self.call(core, Tag::SettleList, from, request);
            }
            None => {
                settle.waiting.remove(&from);
            }
        }
    }

    /// Everybody has listed what it has: is it all there is?
    fn end_listing(&mut self, core: &mut Core) {
        let since = self.settled_before(core);
        let covered = is_covered(&core.view(), self.vid, self.geometry, self.size, since);
        let settle = settle!(self);
        settle.stage = if covered { Stage::Equalizing } else { Stage::Missing };
        if covered {
            self.step_objects(core);
        }
    }

    /// Starts as many objects as may be looked at together; goes on when all are equal.
    fn step_objects(&mut self, core: &mut Core) {
        let settle = settle!(self);
        let now = core.now;
        let mut active = 0;
        let mut start = Vec::new();
        let mut done = true;
        for ((_, object), hot) in &mut settle.hot {
            match hot.work {
                Work::Done => continue,
                Work::Asking { .. } | Work::Equalizing { .. } => active += 1,
                Work::Later(time) if time > now => {}
                Work::Waiting | Work::Later(_) if active + start.len() < WINDOW => start.push(*object),
                Work::Waiting | Work::Later(_) => hot.work = Work::Waiting,
            }
            done = false;
        }
        for object in start {
            self.ask_standing(core, object);
        }
        if !done {
            return;
        }
        let settle = settle!(self);
        settle.stage = Stage::Flushing;
        if core.config.mutants.is(crate::Mutant::SettleWithoutFlush) {
            settle.waiting.clear();
            return self.step_settle(core);
        }
        let vid = self.vid;
        self.ask_everybody(core, Tag::SettleFlush, &Request::Flush { vid });
    }

    fn ask_standing(&mut self, core: &mut Core, object: ObjectId) {
        let view = core.view();
        let members = view.up_set(object);
        let careless = core.config.mutants.is(crate::Mutant::SettlesBelowMin);
        if members.len() < view.min_copies(object) && !careless {
            return self.postpone(core, object);
        }
        self.set_work(object, Work::Asking { members: members.clone(), answers: BTreeMap::new() });
        for member in members {
            let request = Request::Standing { objects: vec![object], at: view.epoch() };
            self.call(core, Tag::SettleStanding { object }, member, request);
        }
    }

    fn set_work(&mut self, object: ObjectId, work: Work) {
        let settle = settle!(self);
        if let Some(hot) = settle.hot.get_mut(&key(object)) {
            hot.work = work;
        }
    }

    fn postpone(&mut self, core: &mut Core, object: ObjectId) {
        let about = |tag: &Tag| {
            matches!(tag, Tag::SettleStanding { object: other } | Tag::SettleEqualize { object: other }
                if *other == object)
        };
        core.cancel_where(self.handle, about);
        self.set_work(object, Work::Later(core.now + AGAIN));
    }

    /// When all members have said how their copies stand: the highest current copy wins. Others are made equal to
    /// it, and thereby validated; without any current copy the members must first find one.
    fn judge(&mut self, core: &mut Core, object: ObjectId) {
        let now = core.now;
        let birth = self.birth;
        let settle = settle!(self);
        let Some(hot) = settle.hot.get_mut(&key(object)) else { return };
        let Work::Asking { members, answers } = &hot.work else { return };
        if answers.len() < members.len() {
            return;
        }
        let current = |standing: &Standing| standing.version.filter(|_| standing.kind == StandingKind::Live);
        let best = answers.iter().filter_map(|(member, standing)| Some((current(standing)?, *member)));
        let best = best.max_by_key(|(version, member)| (*version, std::cmp::Reverse(*member)));
        let busy = answers.values().any(|standing| standing.kind == StandingKind::Busy);
        // A copy validated in epoch zero is one that recovery has proved never to have been current.
        let orphan = |standing: &Standing| standing.version.is_none() || standing.validated == Epoch(0);
        let nowhere = answers.values().all(orphan) && !busy;
        // A copy elsewhere may still be fetched, until all members say that they have recovered.
        let view = core.view();
        let recovered = members.iter().all(|member| {
            view.state.node(member.node).is_some_and(|record| record.recovered >= view.epoch())
        });
        let Some((version, source)) = best.filter(|_| !busy) else {
            let since = *hot.missing_since.get_or_insert(now);
            if !(nowhere && recovered) {
                hot.missing_since = None;
            } else if now.since(since) >= ORPHAN {
                hot.pending = None;
                hot.work = Work::Done;
                return;
            }
            return self.postpone(core, object);
        };
        let differs = |standing: &Standing| current(standing) != Some(version);
        let others = answers.iter().filter(|(_, standing)| differs(standing));
        let left: BTreeMap<Member, bool> = others.map(|(member, _)| (*member, false)).collect();
        if left.is_empty() {
            hot.work = Work::Done;
            return;
        }
        let members: Vec<Member> = left.keys().copied().collect();
        hot.work = Work::Equalizing { version, left };
        for member in members {
            let request = Request::Equalize { object, birth, source, version };
            self.call(core, Tag::SettleEqualize { object }, member, request);
        }
    }

    /// A member has the winner's contents durably: the copy is current from now on if it still has them.
    fn equalized(&mut self, core: &mut Core, object: ObjectId, from: Member) {
        let settle = settle!(self);
        let Some(hot) = settle.hot.get_mut(&key(object)) else { return };
        let Work::Equalizing { version, left } = &mut hot.work else { return };
        match left.get_mut(&from) {
            Some(adopting) if !*adopting => {
                *adopting = true;
                let request = Request::Adopt { object, version: *version };
                self.call(core, Tag::SettleEqualize { object }, from, request);
            }
            _ => {
                left.remove(&from);
                if left.is_empty() {
                    hot.work = Work::Done;
                }
            }
        }
    }

    /// What cannot be answered yet is asked again; what changed meanwhile is looked at anew.
    pub(super) fn settle_refused(&mut self, core: &mut Core, number: u64, tag: Tag, refusal: Refusal) {
        let anew = matches!(refusal, Refusal::OtherVersion | Refusal::NoCopy);
        match tag {
            Tag::SettleStanding { object } | Tag::SettleEqualize { object } if anew => {
                core.cancel(number);
                self.postpone(core, object);
            }
            _ => {}
        }
    }

    /// All is equal and durable. What the last holder created and did not enter in the map is entered now.
    fn end_settling(&mut self, core: &mut Core) {
        let floor = self.settled_before(core);
        let settle = settle!(self);
        for ((_, object), hot) in &settle.hot {
            let last = hot.pending.is_some_and(|version| version.generation >= floor);
            if last && object.kind() == Some(ObjectKind::Data) {
                self.pending.insert(object.index(), 0);
            }
        }
        self.phase = Phase::Entering;
        self.flusher.wanted = true;
        self.again = true;
    }
}

fn no_standing() -> Standing {
    Standing { kind: StandingKind::Unknown, version: None, validated: Epoch(0), hot: false, wounded: false }
}
