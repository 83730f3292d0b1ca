//! How copies stand with respect to epochs.
//!
//! Each copy carries, durably and never ahead of its data, the epoch `v` it was last validated in. It was current
//! in epoch `f` if `v <= f`, and in every epoch from `v` to `f` its node was up, in one incarnation and in the object's
//! set, with the disk that has the copy working, in one run of that disk. Everything about validity in this crate rests
//! on this one function of ordered history.

use super::Replica;
use super::disks::NEVER_WORKED;
use crate::{Mutant, View};
use sheep_state::{DiskRecord, DiskState, EpochMember};
use sheep_store::Header as CopyHeader;
use sheep_types::{Epoch, Incarnation, ObjectId};
use sheep_wire::{Standing, StandingKind};

/// Runs in which a copy was current: of the node, and of the disk, if epochs list disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Runs {
    node: Incarnation,
    disk: Option<Incarnation>,
}

impl Replica {
    /// The newest epoch at or below `at` in which the copy is known to have been validated.
    ///
    /// Besides the header there are floors: epochs in which its disk held everything it had to, current and
    /// durable. Zero in a header says that the copy was never current, and no floor lifts that.
    fn validated_by(&self, slot: u8, header: &CopyHeader, at: Epoch) -> Option<Epoch> {
        if header.validated == Epoch(0) {
            return None;
        }
        let floor = self.floors.get(&slot).and_then(|floors| floors.range(..=at).next_back());
        let lifted = header.validated.max(floor.copied().unwrap_or_default());
        (lifted <= at).then_some(lifted)
    }

    /// The runs in which the copy was current in an epoch, if it was.
    fn current_as(&self, view: &View, slot: u8, header: &CopyHeader, at: Epoch) -> Option<Runs> {
        let from = self.validated_by(slot, header, at)?;
        self.unbroken(view, slot, header.id, from, at)
    }

    /// The runs in which this node was up and in the object's set, and the disk worked, in every epoch of a range, if
    /// they did.
    fn unbroken(&self, view: &View, slot: u8, object: ObjectId, from: Epoch, at: Epoch) -> Option<Runs> {
        let (disk, _) = self.store.run_of(slot)?;
        let last = self.runs_at(view, disk, at)?;
        let restart_counts = !self.config.mutants.is(Mutant::RestartedIsCurrent);
        let replug_counts = !self.config.mutants.is(Mutant::ReplugIsLive);
        for epoch in (from.0..=at.0).rev().map(Epoch) {
            let then = self.runs_at(view, disk, epoch)?;
            let same =
                (!restart_counts || then.node == last.node) && (!replug_counts || then.disk == last.disk);
            if !same || !view.in_set_at(epoch, object, self.me.node) {
                return None;
            }
        }
        self.kept(view, disk, at).then_some(last)
    }

    /// This node as an epoch lists it, if it was up then.
    fn listed_at<'a>(&self, view: &'a View, at: Epoch) -> Option<&'a EpochMember> {
        view.members_at(at)?.get(self.me.node).filter(|member| member.is_up())
    }

    /// The runs of this node and of a disk of it in an epoch, if both worked then.
    fn runs_at(&self, view: &View, disk: u64, at: Epoch) -> Option<Runs> {
        let member = self.listed_at(view, at)?;
        let run = member.disk_run(disk);
        let unlisted = member.disks.is_empty() || self.config.mutants.is(Mutant::ReplugIsLive);
        (run.is_some() || unlisted).then_some(Runs { node: member.incarnation, disk: run })
    }

    /// Whether the disk was this node's, working or not, since an epoch. One that was given up in between may have
    /// missed what others could do only because of that.
    fn kept(&self, view: &View, disk: u64, since: Epoch) -> bool {
        (since.0 + 1..=view.epoch().0).all(|epoch| {
            let member = view.members_at(Epoch(epoch)).and_then(|members| members.get(self.me.node));
            member.is_none_or(|member| member.disks.is_empty() || member.lists_disk(disk))
        })
    }

    /// Whether what the copy had in memory in these runs, it has.
    fn is_live(&self, slot: u8, runs: Runs) -> bool {
        let disk = self.store.run_of(slot).map(|(_, incarnation)| incarnation);
        let same_node =
            runs.node == self.me.incarnation || self.config.mutants.is(Mutant::RestartedIsCurrent);
        let same_disk = runs.disk.is_none() || runs.disk == disk;
        same_node && (same_disk || self.config.mutants.is(Mutant::ReplugIsLive))
    }

    /// Whether the copy may serve in the present epoch.
    pub(crate) fn current_in(&self, view: &View, object: ObjectId) -> bool {
        !self.replacing.contains(&object) && self.is_right(view, object)
    }

    /// The same, whether or not it is being replaced.
    pub(super) fn is_right(&self, view: &View, object: ObjectId) -> bool {
        let Some((slot, header)) = self.copy_at(view, object) else { return false };
        let runs = self.current_as(view, slot, &header, view.epoch());
        runs.is_some_and(|runs| self.is_live(slot, runs))
    }

    /// Whether blocks of the own copy are lost, or known to be damaged, or in doubt.
    pub(crate) fn is_wounded(&self, object: ObjectId) -> bool {
        self.damaged.contains(&object) || self.store.lost_in(object) > 0
    }

    /// How this node's copy stands with respect to an epoch.
    pub(crate) fn standing(&self, view: &View, object: ObjectId, at: Epoch) -> Standing {
        let copy = self.copy_at(view, object);
        let kind = if self.replacing.contains(&object) {
            // Whatever is said now could be wrong in a moment, and others would build on it.
            StandingKind::Busy
        } else {
            self.standing_kind(view, object, copy.as_ref(), at)
        };
        Standing {
            kind,
            version: copy.map(|(_, header)| header.version),
            validated: copy.map_or(Epoch(0), |(_, header)| header.validated),
            hot: self.hot.is_hot(object),
            wounded: self.is_wounded(object),
        }
    }

    fn standing_kind(
        &self,
        view: &View,
        object: ObjectId,
        copy: Option<&(u8, CopyHeader)>,
        at: Epoch,
    ) -> StandingKind {
        if let Some((slot, header)) = copy {
            if let Some(runs) = self.current_as(view, *slot, header, at) {
                let live = self.is_live(*slot, runs);
                return if live { StandingKind::Live } else { StandingKind::Restarted };
            }
            // Validated later: what it was before then is not recorded. Validated before the oldest epoch that is
            // remembered: nothing can be said, unless what is remembered has a break already. Damaged blocks change
            // nothing: the header is right.
            let oldest = view.oldest_epoch();
            let forgotten = self.validated_by(*slot, header, at).is_some_and(|from| from < oldest)
                && self.unbroken(view, *slot, header.id, oldest, at).is_some();
            if header.validated > at || forgotten {
                return StandingKind::Unknown;
            }
        }
        if self.had_these_disks(view, at) && view.in_set_at(at, object, self.me.node) {
            StandingKind::Never
        } else {
            StandingKind::Unknown
        }
    }

    /// Whether this node was up in an epoch, and every disk that worked then is here: only then does the absence of a
    /// copy prove that nothing was acknowledged in that epoch, but for what was lost with a memory. A disk that was
    /// opened anew since counts like one whose node has restarted.
    fn had_these_disks(&self, view: &View, at: Epoch) -> bool {
        let Some(member) = self.listed_at(view, at) else { return false };
        let careless = self.config.mutants.is(Mutant::NeverWithLostDisk);
        let here = |id: u64| self.store.working(id).is_some() && self.kept(view, id, at);
        let gone = |id: u64| self.was_emptied(view, id, at) || self.never_worked(view, member, id, at);
        careless || member.working_disks().all(|disk| here(disk.id) || gone(disk.id))
    }

    /// Whether a disk that an epoch counted on could not be opened when the node started: until the epoch that said so
    /// the node answered nothing.
    fn never_worked(&self, view: &View, member: &EpochMember, id: u64, since: Epoch) -> bool {
        let mut later = (since.0 + 1..=view.epoch().0).filter_map(|epoch| {
            let then = view.members_at(Epoch(epoch))?.get(self.me.node)?;
            let same = then.incarnation == member.incarnation;
            then.disks.iter().find(|disk| same && disk.id == id && disk.state != DiskState::Up)
        });
        later.next().is_some_and(|disk| disk.incarnation == NEVER_WORKED)
    }

    /// Whether a disk left this node after an epoch, with nothing on it: what it had, the others have, or it was
    /// deleted for good reason.
    fn was_emptied(&self, view: &View, id: u64, since: Epoch) -> bool {
        let empty = |disk: &DiskRecord| disk.id == id && disk.state == DiskState::Empty;
        (since.0 + 1..=view.epoch().0).any(|epoch| {
            let member = view.members_at(Epoch(epoch)).and_then(|members| members.get(self.me.node));
            member.is_some_and(|member| member.disks.iter().any(empty))
        })
    }
}
