//! All copies that were current have restarted (power loss): each has everything that was flushed, and some have
//! more. One node, the first up member of the present set, chooses; all up members of the present set become
//! equal to the choice, durably, before any of them serves. Otherwise two could serve different contents, or one
//! could show a write that is lost with it.

use super::walk::Source;
use super::{AskKind, Phase};
use crate::View;
use crate::replica::Replica;
use sheep_types::{Member, ObjectId, Time};
use sheep_wire::Request;

impl Replica {
    /// Makes all up members of the present set equal to this copy.
    pub(super) fn decide(&mut self, now: Time, view: &View, object: ObjectId, source: Source) {
        let (Some(from), Some(record)) = (view.member_now(source.node), view.vid(object.vid())) else {
            return self.walk_failed(now, object);
        };
        let birth = record.birth;
        let members = view.up_set(object);
        if let Some(walk) = self.recovery.walks.get_mut(&object) {
            let missing = members.iter().map(|member| member.node).collect();
            walk.phase = Phase::Equalizing { version: source.version, missing };
        }
        for member in members {
            let request = Request::Equalize { object, birth, source: from, version: source.version };
            self.ask_for(now, view, member, request, AskKind::Equalize { object });
        }
    }

    /// One more has it durably. When all have, they are told to serve.
    pub(super) fn take_equalized(&mut self, now: Time, view: &View, object: ObjectId, from: Member) {
        let Some(walk) = self.recovery.walks.get_mut(&object) else { return };
        let Phase::Equalizing { version, missing } = &mut walk.phase else { return };
        missing.remove(&from.node);
        if !missing.is_empty() {
            return;
        }
        let version = *version;
        walk.phase = Phase::Adopting;
        for member in view.up_set(object) {
            let request = Request::Adopt { object, version };
            self.ask_for(now, view, member, request, AskKind::Adopt { object });
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
