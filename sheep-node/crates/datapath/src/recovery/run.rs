//! Walking objects: asking, and what follows from the answers.

use super::walk::{Question, Source, Verdict, judge};
use super::{Ask, AskKind, Phase, Todo, Walk};
use crate::replica::Replica;
use crate::{Mutant, View};
use core::time::Duration;
use sheep_state::NodeState;
use sheep_store::{Header as CopyHeader, Op};
use sheep_types::{Epoch, Member, NodeId, ObjectId, Time};
use sheep_wire::{Header, Refusal, Reply, Request, Standing, StandingKind};
use std::collections::{BTreeMap, BTreeSet};

/// Attempts to get a better copy of what is damaged.
const REPAIRS: u32 = 8;

impl Replica {
    /// The object should be current here. `urgent`: somebody waits for it.
    pub(crate) fn want(&mut self, view: &View, object: ObjectId, urgent: bool) {
        if self.recovery.epoch != view.epoch() || self.recovery.lost.contains(&object) {
            return;
        }
        if let Some(walk) = self.recovery.walks.get_mut(&object) {
            walk.urgent |= urgent;
            if urgent && self.recovery.fetch_ready.remove(&object) {
                self.recovery.fetch_urgent.insert(object);
            }
            return;
        }
        if !view.in_up_set(object, self.me) {
            return;
        }
        let known = self.recovery.todo.contains_key(&object);
        self.recovery.todo.entry(object).or_default().urgent |= urgent;
        if urgent {
            // It may be pausing after a failed attempt, and goes on pausing: those who wait ask often.
            if !known || self.recovery.ready.remove(&object) {
                self.recovery.urgent.insert(object);
            }
        } else if !known {
            self.recovery.ready.insert(object);
        }
    }

    /// A pause is over.
    pub(super) fn queue(&mut self, object: ObjectId) {
        match self.recovery.todo.get(&object) {
            Some(todo) if todo.urgent => self.recovery.urgent.insert(object),
            Some(_) => self.recovery.ready.insert(object),
            None => false,
        };
    }

    pub(super) fn start_walk(&mut self, now: Time, view: &View) -> bool {
        if self.recovery.walks.len() >= self.config.walks {
            return false;
        }
        let urgent = self.recovery.urgent.pop_first();
        let Some(object) = urgent.or_else(|| self.recovery.ready.pop_first()) else { return false };
        let Some(todo) = self.recovery.todo.remove(&object) else { return true };
        if view.vid(object.vid()).is_none() {
            // Its vid was deleted meanwhile: nobody has it, or is to have it.
            return true;
        }
        let own = self.copy(view, object).filter(|_| self.current_in(view, object));
        if let Some(copy) = own.filter(|_| self.scrub.doubt(object).is_none()) {
            self.wake(object);
            if self.is_wounded(object) {
                // Itself is what it is made good from, with what others have of it.
                let (node, hot) = (self.me.node, self.hot.is_hot(object));
                let source = Source { node, version: copy.version, hot, serves: true };
                let phase = Phase::Queued(source);
                self.recovery.walks.insert(object, Walk { phase, tries: todo.tries, urgent: todo.urgent });
                let queue = if todo.urgent {
                    &mut self.recovery.fetch_urgent
                } else {
                    &mut self.recovery.fetch_ready
                };
                queue.insert(object);
            }
            return true;
        }
        if self.replacing.contains(&object) {
            // It is decided elsewhere; `walk_stored` looks at it again.
            return true;
        }
        let phase = Phase::Asking { at: view.epoch(), missing: BTreeSet::new(), answers: BTreeMap::new() };
        self.recovery.walks.insert(object, Walk { phase, tries: todo.tries, urgent: todo.urgent });
        self.ask_about(now, view, object, view.epoch());
        true
    }

    /// Asks all up members of the set of an epoch, and of the present set, how their copies stood in it.
    fn ask_about(&mut self, now: Time, view: &View, object: ObjectId, at: Epoch) {
        let then = view.set_at(at, object).unwrap_or_default();
        let mut members: BTreeSet<Member> = then.iter().filter_map(|node| view.member_now(*node)).collect();
        members.extend(view.up_set(object));
        members.remove(&self.me);
        let mut own = self.standing(view, object, at);
        if self.scrub.doubt(object).is_some() && at == view.epoch() && own.kind == StandingKind::Live {
            // It serves, but is made equal to somebody else's.
            own.kind = StandingKind::Unknown;
        }
        let answers = BTreeMap::from([(self.me.node, own)]);
        let missing: BTreeSet<_> = members.iter().map(|member| member.node).collect();
        for member in members {
            self.recovery.outbox.ask(member, at, object);
        }
        if let Some(walk) = self.recovery.walks.get_mut(&object) {
            walk.phase = Phase::Asking { at, missing, answers };
            let urgent = walk.urgent;
            self.post(now, urgent);
        }
        self.consider(now, view, object);
    }

    pub(crate) fn ask_for(&mut self, now: Time, view: &View, to: Member, request: Request, kind: AskKind) {
        let number = self.ask(view, to, request);
        // Answers that carry or move blocks, or wait for a disk, take longer.
        let timeout = match kind {
            AskKind::Standing { .. } | AskKind::List | AskKind::Surplus { .. } => self.config.ask_timeout,
            AskKind::Digest { .. }
            | AskKind::Scrub { .. }
            | AskKind::Blocks { .. }
            | AskKind::Help { .. }
            | AskKind::Equalize { .. }
            | AskKind::Secure { .. }
            | AskKind::Adopt { .. } => self.config.move_timeout,
        };
        self.recovery.asks.insert(number, Ask { to, kind });
        self.set_timer(now, timeout, super::RecoveryTimer::Ask(number));
    }

    pub(crate) fn take_reply(&mut self, now: Time, header: Header, reply: Reply) {
        let Some(view) = self.view.clone() else { return };
        let Some(ask) = self.recovery.asks.get(&header.request) else { return };
        if header.from != ask.to || header.to != self.me.incarnation {
            return;
        }
        let Some(ask) = self.recovery.asks.remove(&header.request) else { return };
        let honest = header.epoch == view.epoch() || self.config.mutants.is(Mutant::SourceAtOlderEpoch);
        if !honest {
            return self.ask_failed(now, &view, ask);
        }
        match (ask.kind, reply) {
            (AskKind::Standing { objects, at }, Reply::Standings(list)) if list.len() == objects.len() => {
                for (object, standing) in objects.into_iter().zip(list) {
                    self.take_standing(now, &view, object, at, ask.to, standing);
                }
            }
            (AskKind::Digest { fetch }, Reply::Digest(digest)) => {
                self.take_digest(now, &view, fetch, *digest);
            }
            (AskKind::Blocks { fetch, ranges }, Reply::Read(data)) => {
                self.take_blocks(now, fetch, &ranges, data);
            }
            (AskKind::Blocks { fetch, .. }, Reply::Refused(Refusal::OtherVersion)) => {
                self.source_moved(now, fetch);
            }
            (AskKind::Help { fetch, ranges }, reply) => self.take_help(ask.to, fetch, &ranges, Some(reply)),
            (AskKind::Digest { fetch } | AskKind::Blocks { fetch, .. }, Reply::Refused(refusal)) => {
                self.fetch_failed(now, fetch, refusal);
            }
            (AskKind::Equalize { object, version }, Reply::Done) => {
                self.take_equalized(now, &view, (object, version), ask.to);
            }
            (AskKind::Secure { objects }, Reply::Which(list)) if list.len() == objects.len() => {
                self.take_secured(now, &view, ask.to, &objects, &list);
            }
            (AskKind::Adopt { objects }, Reply::Which(list)) if list.len() == objects.len() => {
                self.take_adopted(now, &objects, &list);
            }
            (AskKind::Scrub { object }, reply) => {
                self.scrub_answer(now, &view, ask.to.node, object, Some(reply));
            }
            (AskKind::List, Reply::Listing(lines, more)) => self.take_list(now, &view, ask.to, &lines, more),
            (AskKind::Surplus { objects }, Reply::Standings(list)) if list.len() == objects.len() => {
                self.take_surplus(&view, ask.to, &objects, &list);
            }
            (kind, _) => self.ask_failed(now, &view, Ask { to: ask.to, kind }),
        }
    }

    /// No answer, or one that does not help.
    pub(super) fn ask_failed(&mut self, now: Time, view: &View, ask: Ask) {
        match ask.kind {
            AskKind::Standing { objects, at } => {
                for object in objects {
                    let asking = self.recovery.walks.get(&object).is_some_and(|walk| {
                        matches!(&walk.phase, Phase::Asking { at: now_at, missing, .. }
                            if *now_at == at && missing.contains(&ask.to.node))
                    });
                    if asking {
                        self.walk_failed(now, object);
                    }
                }
            }
            AskKind::Digest { fetch } | AskKind::Blocks { fetch, .. } => {
                self.fetch_failed(now, fetch, Refusal::Busy);
            }
            AskKind::Help { fetch, ranges } => self.take_help(ask.to, fetch, &ranges, None),
            AskKind::Equalize { object, .. } => self.decision_failed(now, object),
            AskKind::Secure { objects } | AskKind::Adopt { objects } => {
                for (object, _) in objects {
                    self.decision_failed(now, object);
                }
            }
            AskKind::List => self.list_failed(now, view, ask.to),
            AskKind::Scrub { object } => self.scrub_answer(now, view, ask.to.node, object, None),
            AskKind::Surplus { .. } => {}
        }
    }

    fn take_standing(
        &mut self,
        now: Time,
        view: &View,
        object: ObjectId,
        at: Epoch,
        from: Member,
        standing: Standing,
    ) {
        let Some(walk) = self.recovery.walks.get_mut(&object) else { return };
        let Phase::Asking { at: asked, missing, answers } = &mut walk.phase else { return };
        if *asked != at || !missing.remove(&from.node) {
            return;
        }
        answers.insert(from.node, standing);
        self.consider(now, view, object);
    }

    /// Looks at the answers so far.
    fn consider(&mut self, now: Time, view: &View, object: ObjectId) {
        let own_decision = self.config.mutants.is(Mutant::EachDecides);
        let Some(walk) = self.recovery.walks.get(&object) else { return };
        let Phase::Asking { at, missing, answers } = &walk.phase else { return };
        let (at, incomplete) = (*at, !missing.is_empty());
        let trusted = self.scrub.doubt(object).map(|doubt| only_from(answers, doubt.source));
        let answers = trusted.as_ref().unwrap_or(answers);
        let question = Question {
            at,
            present: view.epoch(),
            oldest: view.oldest_epoch(),
            me: self.me.node,
            decider: view.up_set(object).first() == Some(&self.me),
            nobody_was_up: view.up_set_at(at, object).is_some_and(|up| up.is_empty()),
            incomplete,
            unheard: self.unheard(view, object, at, answers),
            answers,
        };
        let verdict = judge(&question);
        let repairs = self.damaged.contains(&object) && self.current_in(view, object);
        let own = answers.get(&self.me.node).copied();
        let absent_elsewhere = answers.values().any(|standing| standing.version.is_none());
        match verdict {
            Verdict::Wait if incomplete => {}
            Verdict::Wait | Verdict::Decide(_)
                if own_decision && own.is_some_and(|own| own.kind == StandingKind::Restarted) =>
            {
                self.confirm(view, object, None);
            }
            Verdict::Wait | Verdict::Older | Verdict::Lost | Verdict::Decide(_) if repairs => {
                // The next read that meets the damage tries again.
                self.recovery.forget(object);
                self.not_repaired(object);
                self.heal_later(now, object);
            }
            _ if absent_elsewhere && self.config.mutants.is(Mutant::DeleteOnAbsence) => {
                self.recovery.forget(object);
                self.delete_copy(object, crate::replica::Job::Forget);
            }
            Verdict::Wait => self.walk_failed(now, object),
            Verdict::Older => self.ask_about(now, view, object, Epoch(at.0 - 1)),
            Verdict::Lost => self.lose(view, object),
            Verdict::Take(source) => self.take_from(view, object, source),
            Verdict::Decide(source) => self.decide(now, view, object, source),
        }
    }

    /// Whether a member that was up in an epoch has not answered and may still be in that run. One that is out or
    /// was removed has been given up, and with it what it alone remembers.
    fn unheard(
        &self,
        view: &View,
        object: ObjectId,
        at: Epoch,
        answers: &BTreeMap<NodeId, Standing>,
    ) -> bool {
        let then = view.up_set_at(at, object).unwrap_or_default();
        then.iter().filter(|member| !answers.contains_key(&member.node)).any(|member| {
            let now = view.state.node(member.node);
            now.is_some_and(|now| {
                now.incarnation == member.incarnation && !matches!(now.state, NodeState::Out { .. })
            })
        })
    }

    /// Becomes equal to a copy: at once if the own one has its version, for a version names one prefix of the
    /// writes to the object.
    fn take_from(&mut self, view: &View, object: ObjectId, source: Source) {
        let own = self.copy(view, object).map(|copy| copy.version);
        let keep_higher = self.config.mutants.is(Mutant::HigherVersionWins);
        let equal = own == Some(source.version) || (keep_higher && own > Some(source.version));
        let tries = self.recovery.walks.get(&object).map_or(0, |walk| walk.tries);
        let doubted = self.scrub.doubt(object).is_some();
        let repair = doubted && source.node != self.me.node && tries < REPAIRS;
        if equal && !repair && doubted {
            self.not_repaired(object);
        }
        if equal && !repair {
            let hot = (source.node != self.me.node).then_some(source.hot);
            return self.confirm(view, object, hot);
        }
        let Some(walk) = self.recovery.walks.get_mut(&object) else { return };
        walk.phase = Phase::Queued(source);
        let queue =
            if walk.urgent { &mut self.recovery.fetch_urgent } else { &mut self.recovery.fetch_ready };
        queue.insert(object);
    }

    /// A replacement of the copy is durable. If that was in an epoch that is over, ordered history says whether
    /// the copy is current now.
    pub(crate) fn walk_stored(&mut self, now: Time, object: ObjectId, bytes: u64) {
        let Some(view) = self.view.clone() else { return };
        if self.current_in(&view, object) {
            if self.recovery.drop_walk(object).is_some() || self.recovery.todo.contains_key(&object) {
                self.recovery.objects_done += 1;
                self.recovery.moved = now;
                self.recovery.confirmed_ever += u64::from(bytes == 0);
            }
            self.recovery.forget(object);
            // What it lacks somebody may have.
            if self.scrub.doubt(object).is_some() {
                self.want(&view, object, false);
            } else if self.is_wounded(object) {
                if bytes == 0 { self.want(&view, object, false) } else { self.heal_later(now, object) }
            }
            return;
        }
        match self.recovery.walks.get(&object).map(|walk| &walk.phase) {
            // Made equal by this node's own decision: goes on when the others are, too.
            Some(Phase::Equalizing { .. } | Phase::Adopting) => {}
            Some(_) => self.walk_failed(now, object),
            None => self.want(&view, object, false),
        }
    }

    /// Somebody else makes the copy equal or current: an own attempt must not come in between, and is made again
    /// later. A decision of this node goes on, for it is then this node's own request.
    pub(crate) fn interrupt(&mut self, now: Time, object: ObjectId) {
        let phase = self.recovery.walks.get(&object).map(|walk| &walk.phase);
        if matches!(phase, Some(Phase::Asking { .. } | Phase::Queued(_) | Phase::Fetching { .. })) {
            self.walk_failed(now, object);
        }
    }

    /// The attempt is over; another one follows after a pause.
    pub(crate) fn walk_failed(&mut self, now: Time, object: ObjectId) {
        let Some(walk) = self.recovery.drop_walk(object) else { return };
        if walk.tries >= REPAIRS && self.is_wounded(object) && self.is_current(object) {
            // What is good of it serves; the next read or scrub that meets the damage tries again.
            self.recovery.forget(object);
            self.not_repaired(object);
            return self.heal_later(now, object);
        }
        let tries = walk.tries.saturating_add(1);
        self.recovery.todo.insert(object, Todo { tries, urgent: walk.urgent });
        let doubled = self.config.retry_min.saturating_mul(1 << walk.tries.min(16));
        // Clients ask for what they wait for again and again: not much slower than they do.
        let longest = if walk.urgent { self.config.retry_max / 8 } else { self.config.retry_max };
        let pause: Duration = doubled.min(longest);
        self.set_timer(now, pause, super::RecoveryTimer::Retry(object));
    }

    /// No copy was current in any epoch that is remembered.
    fn lose(&mut self, view: &View, object: ObjectId) {
        self.recovery.forget(object);
        self.recovery.lost.insert(object);
        self.found_lost(object);
        // A copy that proves nothing must not be lifted by the floor later.
        if let Some(copy) = self.copy(view, object).filter(|copy| copy.validated != Epoch(0)) {
            let header = CopyHeader { validated: Epoch(0), ..copy };
            self.submit(Op::SetHeader { header }, crate::replica::Job::Forget);
        }
        self.wake(object);
    }
}

/// Answers with copies that only one node's can be made good from.
fn only_from(answers: &BTreeMap<NodeId, Standing>, source: NodeId) -> BTreeMap<NodeId, Standing> {
    let of = |(node, standing): (&NodeId, &Standing)| {
        let kind = if *node == source { standing.kind } else { StandingKind::Unknown };
        (*node, Standing { kind, ..*standing })
    };
    answers.iter().map(of).collect()
}
