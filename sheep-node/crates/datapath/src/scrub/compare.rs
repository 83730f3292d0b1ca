//! Asking the other members of an object's set what their copies hold, and what follows for the own one.

use super::judge::{Judgement, Seen, judge};
use super::{Check, Doubt, Finding, Stage};
use crate::recovery::{AskKind, cells};
use crate::replica::{Replica, extents};
use crate::{Mutant, View};
use sheep_store::InspectResult;
use sheep_types::{NodeId, ObjectId, Time};
use sheep_wire::{Refusal, Reply, Request};
use std::collections::BTreeMap;

impl Replica {
    /// All blocks of the object being looked at could be read.
    pub(super) fn compare_with_others(&mut self, now: Time, view: &View, found: &InspectResult) {
        let object = found.header.id;
        if self.damaged.contains(&object) && self.scrub.doubt(object).is_none() {
            // What was damaged has been written over.
            self.damaged.remove(&object);
            self.scrub.whole(object);
        }
        if self.is_wounded(object) {
            // What is lost somebody may have by now.
            self.want(view, object, false);
        }
        let cells = cells(&extents(&found.extents), &found.crcs, view.state.geometry());
        let others: Vec<_> = view.up_set(object).into_iter().filter(|member| *member != self.me).collect();
        let (true, Some(cells)) = (self.current_in(view, object), cells) else {
            return self.unsure(now, object);
        };
        let own = Seen { version: found.header.version, hot: self.hot.is_hot(object), cells };
        if let Some(check) = &mut self.scrub.check {
            let missing = others.iter().map(|member| member.node).collect();
            let seen = BTreeMap::from([(self.me.node, own)]);
            check.stage = Stage::Comparing { missing, seen, unsure: false };
        }
        let request = Request::Digest { object, birth: found.header.birth, version: None };
        for member in others {
            self.ask_for(now, view, member, request.clone(), AskKind::Scrub { object });
        }
        self.compared(now, view);
    }

    /// A member has answered, or does not.
    pub(crate) fn scrub_answer(
        &mut self,
        now: Time,
        view: &View,
        from: NodeId,
        object: ObjectId,
        reply: Option<Reply>,
    ) {
        let Some(Check { object: present, stage: Stage::Comparing { missing, seen, unsure }, .. }) =
            &mut self.scrub.check
        else {
            return;
        };
        if *present != object || !missing.remove(&from) {
            return;
        }
        match reply {
            Some(Reply::Digest(digest)) => {
                match cells(&digest.extents, &digest.crcs, view.state.geometry()) {
                    Some(cells) => {
                        seen.insert(from, Seen { version: digest.version, hot: digest.hot, cells });
                    }
                    None => *unsure = true,
                }
            }
            // It knows that, and mends it.
            Some(Reply::Refused(Refusal::Damaged)) => {}
            Some(Reply::Refused(Refusal::NoCopy)) => {
                *unsure = true;
                self.remind(now, view, from, object);
            }
            _ => *unsure = true,
        }
        self.compared(now, view);
    }

    /// A member of the set has no copy: whoever is asked how its copy stands gets itself one.
    fn remind(&mut self, now: Time, view: &View, node: NodeId, object: ObjectId) {
        if let Some(member) = view.member_now(node) {
            let objects = vec![object];
            let request = Request::Standing { objects: objects.clone(), at: view.epoch() };
            self.ask_for(now, view, member, request, AskKind::Surplus { objects });
        }
    }

    fn compared(&mut self, now: Time, view: &View) {
        let Some(Check { object, stage: Stage::Comparing { missing, seen, unsure }, .. }) = &self.scrub.check
        else {
            return;
        };
        if !missing.is_empty() {
            return;
        }
        let (object, unsure) = (*object, *unsure);
        let Some(own) = seen.get(&self.me.node).map(|own| own.version) else { return };
        let unchanged = self.copy(view, object).is_some_and(|copy| copy.version == own);
        let judgement = match judge(self.me.node, seen) {
            _ if !unchanged => Judgement::Moving,
            Judgement::Wrong(_) if self.config.mutants.is(Mutant::ScrubTrustsSelf) => Judgement::Right,
            Judgement::Moving if self.config.mutants.is(Mutant::ScrubIgnoresVersion) => {
                let other = seen.keys().find(|node| **node != self.me.node);
                other.map_or(Judgement::Moving, |node| Judgement::Behind(*node))
            }
            judgement => judgement,
        };
        let theirs = |node: NodeId| seen.get(&node).map_or(own, |copy| copy.version);
        match judgement {
            Judgement::Equal | Judgement::Right if unsure => self.unsure(now, object),
            Judgement::Equal | Judgement::Right => self.object_done(now),
            Judgement::Moving => self.unsure(now, object),
            Judgement::Behind(source) => {
                let by = theirs(source);
                if self.scrub.again.get(&object) != Some(&Some((own, by))) {
                    // Marks may be late: it must be so for a while.
                    self.look_again(object, Some((own, by)));
                    self.scrub.check = None;
                    return self.scrub_after(now, super::STEP);
                }
                self.scrub.status.behind += 1;
                self.replace_doubtful(now, view, object, Doubt { source, version: own, by });
                self.scrub.tell(Finding::Behind(object));
            }
            Judgement::Wrong(source) => {
                self.scrub.status.mismatches += 1;
                self.replace_doubtful(now, view, object, Doubt { source, version: own, by: own });
                self.scrub.tell(Finding::Mismatch(object));
            }
            Judgement::Unresolved => {
                let nodes = seen.keys().copied().collect();
                self.scrub.status.unresolved += 1;
                self.scrub.tell(Finding::Unresolved(object, nodes));
                self.object_done(now);
            }
        }
    }

    /// The own copy is to be made equal to another one.
    fn replace_doubtful(&mut self, now: Time, view: &View, object: ObjectId, doubt: Doubt) {
        self.scrub.doubts.insert(object, doubt);
        self.scrub.told.insert(object);
        self.damaged.insert(object);
        self.want(view, object, false);
        self.object_done(now);
    }

    /// To be looked at again at the end of the pass.
    fn unsure(&mut self, now: Time, object: ObjectId) {
        self.look_again(object, None);
        self.scrub.check = None;
        self.scrub_after(now, super::STEP);
    }
}
