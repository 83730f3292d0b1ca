//! How copies stand with respect to epochs.
//!
//! Each copy carries, durably and never ahead of its data, the epoch `v` it was last validated in. It was current
//! in epoch `f` if `v <= f` and its node was up, in one incarnation and in the object's set, in every epoch from
//! `v` to `f`. Everything about validity in this crate rests on this one function of ordered history.

use super::Replica;
use crate::{Mutant, View};
use sheep_store::Header as CopyHeader;
use sheep_types::{Epoch, Incarnation, ObjectId};
use sheep_wire::{Standing, StandingKind};

impl Replica {
    /// The newest epoch at or below `at` in which the copy is known to have been validated.
    ///
    /// Besides the header there are floors: epochs in which this store held everything it had to, current and
    /// durable. Zero in a header says that the copy was never current, and no floor lifts that.
    fn validated_by(&self, header: &CopyHeader, at: Epoch) -> Option<Epoch> {
        if header.validated == Epoch(0) {
            return None;
        }
        let floor = self.floors.range(..=at).next_back().copied().unwrap_or_default();
        let lifted = header.validated.max(floor);
        (lifted <= at).then_some(lifted)
    }

    /// The incarnation in which the copy was current in an epoch, if it was.
    fn current_as(&self, view: &View, header: &CopyHeader, at: Epoch) -> Option<Incarnation> {
        let from = self.validated_by(header, at)?;
        self.unbroken(view, header.id, from, at)
    }

    /// The incarnation in which this node was up and in the object's set in every epoch of a range, if it was.
    fn unbroken(&self, view: &View, object: ObjectId, from: Epoch, at: Epoch) -> Option<Incarnation> {
        let member = view.up_at(at, self.me.node)?;
        let restart_counts = !self.config.mutants.is(Mutant::RestartedIsCurrent);
        for epoch in (from.0..=at.0).rev().map(Epoch) {
            let then = view.up_at(epoch, self.me.node)?;
            if restart_counts && then.incarnation != member.incarnation {
                return None;
            }
            if !view.in_set_at(epoch, object, self.me.node) {
                return None;
            }
        }
        Some(member.incarnation)
    }

    /// Whether the copy may serve in the present epoch.
    pub(crate) fn current_in(&self, view: &View, object: ObjectId) -> bool {
        if self.replacing.contains(&object) {
            return false;
        }
        let Some(header) = self.copy(view, object) else { return false };
        let current = self.current_as(view, &header, view.epoch());
        current.is_some_and(|incarnation| {
            incarnation == self.me.incarnation || self.config.mutants.is(Mutant::RestartedIsCurrent)
        })
    }

    /// How this node's copy stands with respect to an epoch.
    pub(crate) fn standing(&self, view: &View, object: ObjectId, at: Epoch) -> Standing {
        let header = self.copy(view, object);
        let kind = if self.replacing.contains(&object) {
            // Whatever is said now could be wrong in a moment, and others would build on it.
            StandingKind::Busy
        } else {
            self.standing_kind(view, object, header.as_ref(), at)
        };
        Standing {
            kind,
            version: header.map(|header| header.version),
            validated: header.map_or(Epoch(0), |header| header.validated),
            hot: self.hot.is_hot(object),
        }
    }

    fn standing_kind(
        &self,
        view: &View,
        object: ObjectId,
        header: Option<&CopyHeader>,
        at: Epoch,
    ) -> StandingKind {
        if let Some(header) = header {
            if let Some(incarnation) = self.current_as(view, header, at) {
                let live =
                    incarnation == self.me.incarnation || self.config.mutants.is(Mutant::RestartedIsCurrent);
                return if live { StandingKind::Live } else { StandingKind::Restarted };
            }
            // Validated later: what it was before then is not recorded. Validated before the oldest epoch that is
            // remembered: nothing can be said, unless what is remembered has a break already. Damaged blocks change
            // nothing: the header is right.
            let oldest = view.oldest_epoch();
            let forgotten = self.validated_by(header, at).is_some_and(|from| from < oldest)
                && self.unbroken(view, header.id, oldest, at).is_some();
            if header.validated > at || forgotten {
                return StandingKind::Unknown;
            }
        }
        if self.was_same_disk(view, at) && view.in_set_at(at, object, self.me.node) {
            StandingKind::Never
        } else {
            StandingKind::Unknown
        }
    }

    /// Whether this node was up in an epoch with the very disk that it has now: only then does the absence of a
    /// copy prove that nothing was acknowledged in that epoch.
    fn was_same_disk(&self, view: &View, at: Epoch) -> bool {
        let Some(member) = view.members_at(at).and_then(|members| members.get(self.me.node)) else {
            return false;
        };
        let same = match self.config.disk {
            Some(id) if !member.disks.is_empty() => member.disks.iter().any(|disk| disk.id == id),
            Some(_) | None => true,
        };
        member.is_up() && same
    }
}
