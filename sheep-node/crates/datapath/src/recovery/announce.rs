//! Saying that everything is recovered.
//!
//! When a node holds everything that it must in an epoch, current and durable, it notes the epoch in its store
//! (a *floor*) and orders a `Recovered`. Floors spare rewriting the header of every object: a copy that was
//! validated before, and whose set has this node in the epoch of the floor, is known to have been current then.
//! Once all have recovered, the cluster forgets older epochs.
//!
//! A newer floor does not replace an older one: a copy that this node need no longer hold was current up to some
//! epoch between the two, and it may be the only one that can say so.

use super::{Announced, Recovery, RecoveryTimer};
use crate::View;
use crate::replica::{Job, Replica};
use core::time::Duration;
use sheep_state::Command;
use sheep_store::{Body, Header as CopyHeader, Op};
use sheep_types::{Birth, Epoch, Generation, ObjectId, Time, Version, Vid};
use std::collections::BTreeSet;

/// Floors are kept as notes on each disk that works, and lift the copies of that disk: one that was away knows nothing of
/// what was recovered meanwhile. Their header's epoch is what counts.
pub(crate) const FLOORS: Vid = sheep_store::NOTES;

/// Name of the floor of an epoch. Floors that matter are fewer than 2^32 epochs apart.
fn floor_of(epoch: Epoch) -> ObjectId {
    ObjectId((u64::from(FLOORS.0) << 32) | (epoch.0 & 0xffff_ffff))
}

/// After this time without its effect in the state, the command is ordered again.
const AGAIN: Duration = Duration::from_secs(5);

impl Recovery {
    fn is_announceable(&self) -> bool {
        self.announced == Announced::No && self.is_idle()
    }
}

impl Replica {
    /// Notes the floor if everything is done; whether it did.
    pub(super) fn announce(&mut self, view: &View) -> bool {
        let up = view.member_now(self.me.node) == Some(self.me);
        // A disk with copies that do not count must not say that all of its copies are right.
        let tidy = !self.store.is_tidying();
        if !up || !tidy || self.recovery.epoch != view.epoch() || !self.recovery.is_announceable() {
            return false;
        }
        self.recovery.announced = Announced::Storing;
        let header = CopyHeader {
            id: floor_of(view.epoch()),
            birth: Birth(0),
            version: Version { generation: Generation(self.me.incarnation.0), sequence: view.epoch().0 },
            validated: view.epoch(),
            pending: false,
        };
        let body = Body::Zero { len: 0 };
        self.submit(Op::Write { header, create: true, offset: 0, body }, Job::Floor(view.epoch()));
        true
    }

    pub(crate) fn floor_durable(&mut self, now: Time, epoch: Epoch) {
        let floor = floor_of(epoch);
        let noted = self.store.disks().map(|disk| disk.slot);
        let noted: Vec<u8> = noted.filter(|slot| self.store.note_on(*slot, floor).is_some()).collect();
        for slot in noted {
            self.floors.entry(slot).or_default().insert(epoch);
        }
        self.drop_floors();
        if self.recovery.epoch != epoch || self.recovery.announced != Announced::Storing {
            return;
        }
        self.recovery.announced = Announced::Proposed;
        self.propose(Command::Recovered { epoch });
        self.set_timer(now, AGAIN, RecoveryTimer::Announce);
        self.watch_surplus(now);
    }

    /// Of the floors up to the oldest remembered epoch only the newest is of use.
    pub(crate) fn drop_floors(&mut self) {
        let oldest = self.view.as_ref().map_or(Epoch(0), |view| view.oldest_epoch());
        // Deleting one deletes it on all disks: it must be of no use on any.
        let keep = self.floors.values().map(|floors| floors.range(..=oldest).next_back().copied());
        let Some(keep) = keep.map(Option::unwrap_or_default).min() else { return };
        let old = self.floors.values().flat_map(|floors| floors.range(..keep)).copied();
        for floor in old.collect::<BTreeSet<_>>() {
            self.floors.values_mut().for_each(|floors| _ = floors.remove(&floor));
            self.delete_copy(floor_of(floor), Job::Forget);
        }
    }

    pub(super) fn announce_again(&mut self, now: Time, view: &View) {
        let known = view.state.node(self.me.node).is_none_or(|record| record.recovered >= view.epoch());
        if known || self.recovery.epoch != view.epoch() || self.recovery.announced != Announced::Proposed {
            return;
        }
        self.propose(Command::Recovered { epoch: view.epoch() });
        self.set_timer(now, AGAIN, RecoveryTimer::Announce);
    }
}
