//! The duplicate filter: every ordered command does something exactly once.

use crate::limits::MAX_ORIGINS;
use serde::{Deserialize, Serialize};
use sheep_types::{CommandSeq, Incarnation, LogIndex, Member, NodeId};
use std::collections::BTreeMap;

/// What is remembered of a node's commands, also after the node was removed: a store that comes back as an
/// older run is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    incarnation: Incarnation,
    /// Number of the last command of this run that was accepted.
    last: CommandSeq,
    /// Index of that command.
    at: LogIndex,
    /// The node was removed in this run.
    removed: bool,
}

/// What to do with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is the origin's next one: it takes effect.
    Next,
    /// It had its effect before, or others come before it: it does nothing and is not answered. Its origin
    /// sends again, in order, everything that is not committed.
    OutOfTurn,
    /// A newer run of the node is known.
    OldRun(Incarnation),
}

/// Last command of each origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origins {
    known: BTreeMap<NodeId, Origin>,
}

impl Origins {
    /// Decides about a command. `any_later` leaves out the rule that none may be missed (a broken variant).
    pub(crate) fn admit(
        &mut self,
        from: Member,
        seq: CommandSeq,
        at: LogIndex,
        any_later: bool,
    ) -> Admission {
        let fresh = Origin { incarnation: from.incarnation, last: CommandSeq(0), at, removed: false };
        if !self.known.contains_key(&from.node) && self.known.len() >= MAX_ORIGINS {
            self.forget_oldest();
        }
        let origin = self.known.entry(from.node).or_insert(fresh);
        if from.incarnation < origin.incarnation {
            return Admission::OldRun(origin.incarnation);
        }
        if from.incarnation > origin.incarnation {
            *origin = fresh;
        }
        let next = seq.0 == origin.last.0 + 1 || (any_later && seq > origin.last);
        if !next {
            return Admission::OutOfTurn;
        }
        origin.last = seq;
        origin.at = at;
        Admission::Next
    }

    /// The last command of a node that took its turn, with its run.
    pub(crate) fn last(&self, node: NodeId) -> Option<(Incarnation, CommandSeq)> {
        self.known.get(&node).map(|origin| (origin.incarnation, origin.last))
    }

    /// The node was removed: its present run may not come up again.
    pub(crate) fn remove(&mut self, node: NodeId, incarnation: Incarnation) {
        if let Some(origin) = self.known.get_mut(&node) {
            origin.removed = origin.incarnation == incarnation;
        }
    }

    /// Whether the node was removed in this run.
    pub(crate) fn is_removed(&self, member: Member) -> bool {
        self.known
            .get(&member.node)
            .is_some_and(|origin| origin.removed && origin.incarnation == member.incarnation)
    }

    /// Nodes come and go for ever, memory does not: whoever has been silent for longest is forgotten.
    fn forget_oldest(&mut self) {
        if let Some(node) = self.known.iter().min_by_key(|(_, origin)| origin.at).map(|(node, _)| *node) {
            self.known.remove(&node);
        }
    }
}
