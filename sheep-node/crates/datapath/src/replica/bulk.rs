//! What a deciding replica asks about many objects at once.

use super::admit::{OBJECTS_PER_REQUEST, Served};
use super::{Job, Replica};
use crate::View;
use sheep_store::Op;
use sheep_types::{ObjectId, Time, Version};
use sheep_wire::{Header, Refusal, Reply};

impl Replica {
    /// Makes durable what the store has, and says which copies are exactly these versions.
    pub(super) fn serve_secure(
        &mut self,
        view: &View,
        header: Header,
        objects: &[(ObjectId, Version)],
    ) -> Served {
        if objects.len() > OBJECTS_PER_REQUEST {
            return Err(Refusal::Malformed);
        }
        let which = objects.iter().map(|(object, version)| self.has(view, *object, *version)).collect();
        self.submit(Op::Flush, Job::Answer(header, Reply::Which(which)));
        Ok(None)
    }

    fn has(&self, view: &View, object: ObjectId, version: Version) -> bool {
        !self.replacing.contains(&object) && self.copy(view, object).is_some_and(|c| c.version == version)
    }

    /// Calls current, in one durable step, all copies that have these versions.
    pub(super) fn serve_adopt_all(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        objects: &[(ObjectId, Version)],
    ) -> Served {
        if objects.len() > OBJECTS_PER_REQUEST {
            return Err(Refusal::Malformed);
        }
        let mut which = Vec::with_capacity(objects.len());
        let mut called = Vec::new();
        for (object, version) in objects {
            let right = self.has(view, *object, *version) && self.check_member(view, *object).is_ok();
            which.push(right);
            let copy = self.copy(view, *object).filter(|_| right && !self.current_in(view, *object));
            if let Some(copy) = copy {
                self.interrupt(now, *object);
                self.call_current(view, copy);
                called.push(*object);
            }
        }
        if called.is_empty() {
            return Ok(Some(Reply::Which(which)));
        }
        self.submit(Op::Flush, Job::Confirmed { objects: called, answer: Some((header, which)) });
        Ok(None)
    }
}
