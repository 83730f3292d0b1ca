//! All copies that were current have restarted (power loss): each has everything that was flushed, and some have
//! more. One node, the first up member of the present set, chooses; all up members of the present set become
//! equal to the choice, durably, before any of them serves. Otherwise two could serve different contents, or one
//! could show a write that is lost with it.

use super::walk::Source;
use super::{AskKind, Phase};
use crate::View;
use crate::replica::Replica;
use sheep_types::{Member, ObjectId, Time, Version};
use sheep_wire::Request;

impl Replica {
    /// Makes all up members of the present set equal to this copy. Those that have its version already, as far as
    /// is known, are told together with other objects.
    pub(super) fn decide(&mut self, now: Time, view: &View, object: ObjectId, source: Source) {
        let members = view.up_set(object);
        let Some(walk) = self.recovery.walks.get_mut(&object) else { return };
        let missing = members.iter().map(|member| member.node).collect();
        let phase = Phase::Equalizing { source, missing };
        let (before, urgent) = (core::mem::replace(&mut walk.phase, phase), walk.urgent);
        for member in members {
            let equal = match &before {
                Phase::Asking { answers, .. } => {
                    answers.get(&member.node).is_some_and(|answer| answer.version == Some(source.version))
                }
                _ => false,
            };
            if equal {
                self.recovery.outbox.secure(member, object, source.version);
            } else {
                self.equalize(now, view, object, member);
            }
        }
        self.post(now, urgent);
    }

    /// Tells one member to become equal to the source.
    fn equalize(&mut self, now: Time, view: &View, object: ObjectId, member: Member) {
        let Some(Phase::Equalizing { source, .. }) = self.recovery.walks.get(&object).map(|walk| &walk.phase)
        else {
            return;
        };
        let version = source.version;
        let (Some(from), Some(record)) = (view.member_now(source.node), view.vid(object.vid())) else {
            return self.walk_failed(now, object);
        };
        let request = Request::Equalize { object, birth: record.birth, source: from, version };
        self.ask_for(now, view, member, request, AskKind::Equalize { object, version });
    }

    /// A member has made these durable, where they had the right version.
    pub(super) fn take_secured(
        &mut self,
        now: Time,
        view: &View,
        from: Member,
        objects: &[(ObjectId, Version)],
        which: &[bool],
    ) {
        for ((object, version), done) in objects.iter().zip(which) {
            let phase = self.recovery.walks.get(object).map(|walk| &walk.phase);
            let asked = matches!(phase, Some(Phase::Equalizing { source, .. }) if source.version == *version);
            if asked && *done {
                self.take_equalized(now, view, (*object, *version), from);
            } else if asked {
                self.equalize(now, view, *object, from);
            }
        }
    }

    /// One more has it durably. When all have, they are told to serve.
    pub(super) fn take_equalized(
        &mut self,
        now: Time,
        view: &View,
        (object, version): (ObjectId, Version),
        from: Member,
    ) {
        let Some(walk) = self.recovery.walks.get_mut(&object) else { return };
        let Phase::Equalizing { source, missing } = &mut walk.phase else { return };
        // An answer to an earlier attempt may have been about another version.
        if source.version != version || !missing.remove(&from.node) || !missing.is_empty() {
            return;
        }
        walk.phase = Phase::Adopting;
        let urgent = walk.urgent;
        for member in view.up_set(object) {
            self.recovery.outbox.adopt(member, object, version);
        }
        self.post(now, urgent);
    }

    pub(super) fn take_adopted(&mut self, now: Time, objects: &[(ObjectId, Version)], which: &[bool]) {
        for ((object, _), done) in objects.iter().zip(which) {
            if !*done {
                self.decision_failed(now, *object);
            }
        }
    }

    /// Somebody could not: everything is asked anew. What was made equal already stays a candidate, and the
    /// choice comes out the same.
    pub(super) fn decision_failed(&mut self, now: Time, object: ObjectId) {
        let phase = self.recovery.walks.get(&object).map(|walk| &walk.phase);
        if matches!(phase, Some(Phase::Equalizing { .. } | Phase::Adopting)) {
            self.walk_failed(now, object);
        }
    }
}
