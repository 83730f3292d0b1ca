//! What the stores say becomes what the set says.

use super::{Condition, INTERNAL, Inner, SetEvent, StoreSet};
use crate::{Event, Outcome, StoreError};

impl StoreSet {
    /// Next event, if any.
    pub fn poll_event(&mut self) -> Option<SetEvent> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        for slot in 0..self.slots.len() {
            while let Some(event) =
                self.slots.get_mut(slot).and_then(|slot| slot.store.as_mut()?.poll_event())
            {
                self.take(slot, event);
                if let Some(event) = self.events.pop_front() {
                    return Some(event);
                }
            }
        }
        None
    }

    fn take(&mut self, slot: usize, event: Event) {
        match event {
            Event::Done { token, result } if token & INTERNAL != 0 => self.inner_done(token, result),
            Event::Done { token, result } => self.events.push_back(SetEvent::Done { token, result }),
            Event::SpaceLow => self.events.push_back(SetEvent::SpaceLow(slot as u8)),
            Event::Ready => self.slot_ready(slot),
            Event::Failed(error) => self.slot_failed(slot, error),
        }
    }

    fn slot_ready(&mut self, number: usize) {
        let Some(slot) = self.slots.get_mut(number) else { return };
        if let Some(store) = &mut slot.store
            && store.identity().store != slot.id
        {
            // Not the disk that the others were told of. Comes back as a failure.
            slot.error = Some(StoreError::WrongStore { found: store.identity().store });
            store.close();
            return;
        }
        slot.condition = Condition::Working;
        if self.started {
            self.merge(number, true);
            self.events.push_back(SetEvent::DiskReady(number as u8));
        } else {
            self.start();
        }
    }

    /// The set is ready when no disk is starting any more.
    fn start(&mut self) {
        if self.started || self.slots.iter().any(|slot| slot.condition == Condition::Starting) {
            return;
        }
        self.started = true;
        let working = self.working_slots();
        if let Some(error) =
            self.slots.iter().find_map(|slot| slot.error.clone()).filter(|_| working.is_empty())
        {
            self.failed = true;
            return self.events.push_back(SetEvent::Failed(error));
        }
        for slot in working {
            self.merge(slot, false);
        }
        self.events.push_back(SetEvent::Ready);
        for (number, slot) in self.slots.iter().enumerate() {
            if let Some(error) = &slot.error {
                self.events.push_back(SetEvent::DiskFailed(number as u8, error.clone()));
            }
        }
    }

    fn slot_failed(&mut self, number: usize, error: StoreError) {
        let Some(slot) = self.slots.get_mut(number) else { return };
        let error = slot.error.take().unwrap_or(error);
        let removed = error == StoreError::Closed;
        slot.condition = if removed { Condition::Removed } else { Condition::Failed };
        slot.error = Some(error.clone());
        let mut rest = Vec::new();
        if let Some(mut store) = slot.store.take() {
            rest.extend(core::iter::from_fn(|| store.poll_event()));
        }
        self.hidden.retain(|(_, slot)| *slot != number);
        self.free_spares(number);
        if !self.started {
            self.start();
        } else if self.slots.iter().any(|slot| slot.store.is_some()) {
            self.events.push_back(SetEvent::DiskFailed(number as u8, error));
        } else if !core::mem::replace(&mut self.failed, true) {
            self.events.push_back(SetEvent::Failed(error));
        }
        for event in rest {
            self.take(number, event);
        }
    }

    fn inner_done(&mut self, token: u64, result: Result<Outcome, StoreError>) {
        match self.inner.get_mut(&token) {
            Some(Inner::Join { left, result: all, .. }) => {
                *left -= 1;
                if let Err(error) = result {
                    *all = Err(error);
                }
                if *left > 0 {
                    return;
                }
            }
            Some(Inner::Tidy { left, failed, .. }) => {
                *left -= 1;
                *failed |= result.is_err();
                if *left > 0 {
                    return;
                }
            }
            Some(Inner::Spare { left, .. }) => {
                *left -= 1;
                // If it failed, the copy stays what it is: the disk is failing.
                if result.is_err() {
                    self.inner.remove(&token);
                    return;
                }
                if *left > 0 {
                    return;
                }
            }
            Some(Inner::Delete { .. }) | None => {}
        }
        match self.inner.remove(&token) {
            Some(Inner::Join { token, result, .. }) => {
                self.events.push_back(SetEvent::Done { token, result: result.map(|()| Outcome::Done) });
            }
            Some(Inner::Tidy { losers, failed, .. }) => self.tidy(losers, failed),
            Some(Inner::Spare { loser, .. }) => self.spare_kept(loser),
            Some(Inner::Delete { object, slot }) => {
                self.hidden.remove(&(object, slot));
            }
            None => {}
        }
    }
}
