//! Copies that are right as they are: many are called current in one durable step.

use super::{Phase, Walk};
use crate::replica::{Job, Replica};
use crate::{Mutant, View};
use sheep_store::{Header as CopyHeader, Op};
use sheep_types::{ObjectId, Time};
use sheep_wire::Listed;

impl Replica {
    /// The own copy, as it is, is right: it is called current. `hot`: the mark of the copy that it is equal to.
    pub(super) fn confirm(&mut self, view: &View, object: ObjectId, hot: Option<bool>) {
        let Some(copy) = self.copy(view, object) else { return };
        if let Some(hot) = hot {
            let hot = hot && !self.config.mutants.is(Mutant::HotNotInherited);
            self.hot.inherit(object, copy.version, hot);
        }
        if let Some(walk) = self.recovery.walks.get_mut(&object) {
            walk.phase = Phase::Storing;
        }
        self.call_current(view, copy);
        self.confirming.push(object);
    }

    /// Notes in a copy's header that it is current. That counts only when it is durable: until then the object is
    /// among those being replaced, and whoever called this must end that.
    pub(crate) fn call_current(&mut self, view: &View, copy: CopyHeader) {
        self.replacing.insert(copy.id);
        let header = CopyHeader { validated: view.epoch(), ..copy };
        self.submit(Op::SetHeader { header }, Job::Forget);
    }

    /// Makes durable what was confirmed since the last time, all at once.
    pub(super) fn secure_confirmed(&mut self) -> bool {
        let objects = core::mem::take(&mut self.confirming);
        if objects.is_empty() {
            return false;
        }
        self.submit(Op::Flush, Job::Confirmed { objects, answer: None });
        true
    }

    /// Copies that were called current are so durably, or the store has failed.
    pub(crate) fn confirmed(&mut self, now: Time, objects: Vec<ObjectId>, durable: bool) {
        for object in objects {
            self.replacing.remove(&object);
            self.wake(object);
            if durable {
                self.walk_stored(now, object, 0);
            } else {
                self.walk_failed(now, object);
            }
        }
    }

    /// A peer's copy is current in the present epoch and has the version of the own one: that is all that a walk
    /// could find out. Whether it was so.
    pub(super) fn confirm_listed(&mut self, view: &View, line: &Listed) -> bool {
        let object = line.object;
        // A walk that still asks has not found out more than this.
        let walk = self.recovery.walks.get(&object).map(|walk| &walk.phase);
        let busy = self.replacing.contains(&object)
            || self.scrub.doubt(object).is_some()
            || !matches!(walk, None | Some(Phase::Asking { .. }))
            || self.recovery.is_lost(object);
        let careless = self.config.mutants.is(Mutant::ConfirmAnyVersion);
        let equal = self.copy(view, object).is_some_and(|copy| careless || copy.version == line.version);
        if busy || !line.live || !equal || !view.in_up_set(object, self.me) {
            return false;
        }
        let todo = self.recovery.todo.remove(&object).unwrap_or_default();
        self.recovery.ready.remove(&object);
        self.recovery.urgent.remove(&object);
        let walk = Walk { phase: Phase::Storing, tries: todo.tries, urgent: todo.urgent };
        self.recovery.walks.entry(object).or_insert(walk).phase = Phase::Storing;
        self.confirm(view, object, Some(line.hot));
        true
    }
}
