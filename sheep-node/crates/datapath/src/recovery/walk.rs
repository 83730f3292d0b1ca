//! Where an object's contents come from: the question of one epoch, and what its answers say.
//!
//! From the present epoch down, all up members of the object's set of that epoch are asked how their copies
//! stood in it. A copy that was current there is a source. If there is none, one answer "up then, and never
//! current then" proves that nothing was acknowledged in that epoch (a write needs all up members), and the
//! epoch before is asked about. If nobody can say anything, the object waits.

use sheep_types::{Epoch, NodeId, Version};
use sheep_wire::{Standing, StandingKind};
use std::collections::BTreeMap;

/// What is known about one epoch of an object.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    /// The epoch asked about.
    pub(crate) at: Epoch,
    /// The present epoch.
    pub(crate) present: Epoch,
    /// The oldest that is remembered.
    pub(crate) oldest: Epoch,
    /// This node.
    pub(crate) me: NodeId,
    /// Whether this node decides: the first up member of the present set.
    pub(crate) decider: bool,
    /// No member of that epoch's set was up in it: nobody can have acknowledged anything.
    pub(crate) nobody_was_up: bool,
    /// Not everybody has answered yet.
    pub(crate) incomplete: bool,
    /// A member that was up in that epoch has not been heard, and may not have restarted since: it may hold in
    /// memory what was acknowledged and never flushed.
    pub(crate) unheard: bool,
    /// Answers, this node's own included.
    pub(crate) answers: &'a BTreeMap<NodeId, Standing>,
}

/// Where to take contents from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Whose copy.
    pub(crate) node: NodeId,
    /// Its version.
    pub(crate) version: Version,
    /// It is hot.
    pub(crate) hot: bool,
    /// The copy serves at present and may have gone on; otherwise it must be exactly that version.
    pub(crate) serves: bool,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Become equal to this copy, and with that current.
    Take(Source),
    /// All copies that were current have restarted: make all members equal to this one before any serves.
    Decide(Source),
    /// Nothing was acknowledged in this epoch: ask about the one before.
    Older,
    /// No copy was current in any epoch.
    Lost,
    /// Ask again later.
    Wait,
}

/// What the answers say.
pub(crate) fn judge(question: &Question<'_>) -> Verdict {
    let of_kind =
        |kind: StandingKind| question.answers.iter().filter(move |(_, standing)| standing.kind == kind);
    let any = |kind| of_kind(kind).next().is_some();
    let serves = question.at == question.present;
    // The highest version has most of what is not yet acknowledged, and is as right as any other. Of equal ones, those
    // without lost or damaged blocks, then the own one (nothing has to be moved).
    let best = |kind| {
        of_kind(kind)
            .filter_map(|(node, standing)| Some((*node, standing, standing.version?)))
            .max_by_key(|(node, standing, version)| {
                (*version, !standing.wounded, *node == question.me, core::cmp::Reverse(*node))
            })
            .map(|(node, standing, version)| Source { node, version, hot: standing.hot, serves })
    };
    if serves && let Some(source) = best(StandingKind::Live) {
        return Verdict::Take(source);
    }
    // A copy that is being made current would change the answer. One that became so while earlier epochs were
    // asked about says nothing of them any more, and is what was looked for.
    let overtaken =
        question.answers.values().any(|standing| !serves && standing.validated >= question.present);
    if question.incomplete || overtaken || any(StandingKind::Busy) {
        return Verdict::Wait;
    }
    // Only one node brings an object from an earlier epoch into the present one. If two did, from two sources
    // that differ in what was never acknowledged, one could undo what the other has served.
    if let Some(source) = best(StandingKind::Live) {
        return if question.decider { Verdict::Take(source) } else { Verdict::Wait };
    }
    if let Some(source) = best(StandingKind::Restarted) {
        let decides = question.decider && !question.unheard;
        return if decides { Verdict::Decide(source) } else { Verdict::Wait };
    }
    if !any(StandingKind::Never) && !question.nobody_was_up {
        return Verdict::Wait;
    }
    if question.at <= question.oldest { Verdict::Lost } else { Verdict::Older }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::Generation;

    const ME: NodeId = NodeId(1);

    fn standing(kind: StandingKind, sequence: Option<u64>) -> Standing {
        let version = sequence.map(|sequence| Version { generation: Generation(1), sequence });
        Standing { kind, version, validated: Epoch(1), hot: false, wounded: false }
    }

    fn ask(at: u64, decider: bool, answers: &[(u64, StandingKind, Option<u64>)]) -> Verdict {
        let answers = answers.iter().map(|(node, kind, v)| (NodeId(*node), standing(*kind, *v))).collect();
        judge(&Question {
            at: Epoch(at),
            present: Epoch(5),
            oldest: Epoch(3),
            me: ME,
            decider,
            nobody_was_up: false,
            incomplete: false,
            unheard: false,
            answers: &answers,
        })
    }

    fn source(node: u64, sequence: u64, serves: bool) -> Source {
        let version = Version { generation: Generation(1), sequence };
        Source { node: NodeId(node), version, hot: false, serves }
    }

    use StandingKind::{Busy, Live, Never, Restarted, Unknown};

    #[test]
    fn a_live_copy_of_the_present_is_a_source_for_everybody() {
        let answers = [(1, Never, Some(9)), (2, Live, Some(4)), (3, Busy, Some(9))];
        assert_eq!(ask(5, false, &answers), Verdict::Take(source(2, 4, true)));
    }

    #[test]
    fn only_the_decider_brings_an_object_into_the_present() {
        let live = [(1, Never, None), (2, Live, Some(4)), (3, Restarted, Some(9))];
        assert_eq!(ask(4, false, &live), Verdict::Wait);
        assert_eq!(ask(4, true, &live), Verdict::Take(source(2, 4, false)));
        let restarted = [(1, Restarted, Some(5)), (2, Restarted, Some(6)), (3, Never, None)];
        assert_eq!(ask(4, false, &restarted), Verdict::Wait);
        assert_eq!(ask(4, true, &restarted), Verdict::Decide(source(2, 6, false)));
        // The own copy of equal version is preferred.
        let equal = [(1, Restarted, Some(6)), (2, Restarted, Some(6))];
        assert_eq!(ask(4, true, &equal), Verdict::Decide(source(1, 6, false)));
    }

    #[test]
    fn of_equal_copies_a_whole_one_is_taken() {
        let answer = |wounded, sequence| Standing { wounded, ..standing(Restarted, Some(sequence)) };
        let asked = |own, other| {
            let answers = BTreeMap::from([(ME, own), (NodeId(2), other)]);
            judge(&Question {
                at: Epoch(4),
                present: Epoch(5),
                oldest: Epoch(3),
                me: ME,
                decider: true,
                nobody_was_up: false,
                incomplete: false,
                unheard: false,
                answers: &answers,
            })
        };
        assert_eq!(asked(answer(true, 6), answer(false, 6)), Verdict::Decide(source(2, 6, false)));
        assert_eq!(asked(answer(true, 7), answer(false, 6)), Verdict::Decide(source(1, 7, false)));
        assert_eq!(asked(answer(true, 6), answer(true, 6)), Verdict::Decide(source(1, 6, false)));
    }

    #[test]
    fn never_proves_and_unknown_does_not() {
        assert_eq!(ask(4, true, &[(1, Never, Some(3)), (2, Unknown, None)]), Verdict::Older);
        assert_eq!(ask(4, true, &[(1, Unknown, Some(3)), (2, Unknown, None)]), Verdict::Wait);
        assert_eq!(ask(3, true, &[(1, Never, Some(3))]), Verdict::Lost);
        assert_eq!(ask(4, true, &[(1, Never, None), (2, Busy, Some(3))]), Verdict::Wait);
        assert_eq!(ask(4, true, &[]), Verdict::Wait);
    }

    #[test]
    fn a_copy_that_has_become_current_meanwhile_is_not_passed_by() {
        let mut answers =
            BTreeMap::from([(ME, standing(Never, None)), (NodeId(2), standing(Unknown, Some(4)))]);
        let question = |answers: &BTreeMap<NodeId, Standing>| {
            judge(&Question {
                at: Epoch(3),
                present: Epoch(5),
                oldest: Epoch(3),
                me: ME,
                decider: true,
                nobody_was_up: false,
                incomplete: false,
                unheard: false,
                answers,
            })
        };
        assert_eq!(question(&answers), Verdict::Lost);
        answers.insert(NodeId(2), Standing { validated: Epoch(5), ..standing(Unknown, Some(4)) });
        assert_eq!(question(&answers), Verdict::Wait);
    }

    #[test]
    fn nobody_up_or_not_all_answered() {
        let answers = BTreeMap::from([(ME, standing(Unknown, None))]);
        let mut question = Question {
            at: Epoch(4),
            present: Epoch(5),
            oldest: Epoch(3),
            me: ME,
            decider: true,
            nobody_was_up: true,
            incomplete: false,
            unheard: false,
            answers: &answers,
        };
        assert_eq!(judge(&question), Verdict::Older);
        question.incomplete = true;
        assert_eq!(judge(&question), Verdict::Wait);
    }

    #[test]
    fn nothing_is_decided_while_a_copy_in_memory_may_come_back() {
        let answers = BTreeMap::from([(ME, standing(Restarted, Some(4)))]);
        let mut question = Question {
            at: Epoch(4),
            present: Epoch(5),
            oldest: Epoch(3),
            me: ME,
            decider: true,
            nobody_was_up: false,
            incomplete: false,
            unheard: true,
            answers: &answers,
        };
        assert_eq!(judge(&question), Verdict::Wait);
        question.unheard = false;
        assert_eq!(judge(&question), Verdict::Decide(source(1, 4, false)));
    }
}
