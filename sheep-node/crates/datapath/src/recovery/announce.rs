//! Saying that everything is recovered.
//!
//! When a node holds everything that it must in an epoch, current and durable, it notes the epoch in its store
//! (the *floor*) and orders a `Recovered`. The floor spares rewriting the header of every object: a copy that
//! was validated before is known to have been current in that epoch too. Once all have recovered, the cluster
//! forgets older epochs.

use super::{Announced, Recovery, RecoveryTimer};
use crate::View;
use crate::replica::{Job, Replica};
use core::time::Duration;
use sheep_state::Command;
use sheep_store::{Body, Header as CopyHeader, Op};
use sheep_types::{Birth, Epoch, Generation, ObjectId, Time, Version};

/// The name under which the floor is kept in the store; its header's epoch is what counts. No vid is so high.
pub(crate) const FLOOR: ObjectId = ObjectId(u64::MAX);

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
        if !up || self.recovery.epoch != view.epoch() || !self.recovery.is_announceable() {
            return false;
        }
        self.recovery.announced = Announced::Storing;
        let header = CopyHeader {
            id: FLOOR,
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
        if self.recovery.epoch != epoch || self.recovery.announced != Announced::Storing {
            return;
        }
        self.recovery.announced = Announced::Proposed;
        self.propose(Command::Recovered { epoch });
        self.set_timer(now, AGAIN, RecoveryTimer::Announce);
        self.set_timer(now, Duration::ZERO, RecoveryTimer::Surplus);
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
