//! Store operations under way, and what follows when they are done.

use super::convert::refusal_of;
use super::equalize::Then;
use super::share::Sharing;
use super::{Replica, read_data};
use sheep_store::{Op, Outcome, StoreError};
use sheep_types::{Epoch, ObjectId, Time};
use sheep_wire::{Header, Refusal, Reply};

/// What a store operation is for.
#[derive(Debug)]
pub(crate) enum Job {
    /// Nobody waits for it.
    Forget,
    /// Give this answer when it is done.
    Answer(Header, Reply),
    /// A write.
    Write {
        /// Who sent it.
        asker: Header,
        /// What it changes.
        object: ObjectId,
        /// Answer only when durable.
        durable: bool,
    },
    /// A read.
    Read {
        /// Who asked.
        asker: Header,
        /// What is read.
        object: ObjectId,
    },
    /// What a copy holds, for another replica.
    Digest {
        /// Who asked.
        asker: Header,
        /// What is looked at.
        object: ObjectId,
    },
    /// A part of what another replica wants to read.
    Part {
        /// The whole.
        gather: u64,
        /// Number of the part.
        index: usize,
    },
    /// A part of what is wanted to compare two objects.
    Compare {
        /// The comparison.
        number: u64,
        /// Of the other object.
        other: bool,
    },
    /// What the own copy holds, to be compared with another one.
    Own {
        /// For what it is fetched.
        fetch: u64,
    },
    /// A copy that does not count, on another disk, which may have what is lost.
    Spare {
        /// The fetch that lacks it.
        fetch: u64,
    },
    /// An older vid's copy, which may have what is lost.
    Older {
        /// The fetch that lacks it.
        fetch: u64,
    },
    /// What a scrub looks at.
    Scrub {
        /// Which question this answers.
        serial: u64,
    },
    /// Copies that were called current are made durable together.
    Confirmed {
        /// The copies.
        objects: Vec<ObjectId>,
        /// Who asked for it, and what to answer.
        answer: Option<(Header, Vec<bool>)>,
    },
    /// An older copy, for a new one to share with.
    Share(Box<Sharing>),
    /// A copy's contents or validity were replaced; they are made durable next.
    Replace(ObjectId, Then),
    /// They are durable.
    ReplaceDurable(ObjectId, Then),
    /// The epoch in which this store holds everything was noted; it is made durable next.
    Floor(Epoch),
    /// It is durable.
    FloorDurable(Epoch),
    /// An object is read that belongs on another disk.
    MoveRead(ObjectId, u8),
    /// It is being written there.
    MoveWrite(ObjectId, u8),
    /// It is being made durable there.
    MoveFlush(ObjectId, u8),
}

impl Replica {
    pub(super) fn finish(&mut self, now: Time, job: Job, result: Result<Outcome, StoreError>) {
        match job {
            Job::Forget => {}
            Job::Answer(asker, reply) => match result {
                Ok(_) => self.answer_held(&asker, reply),
                Err(error) => self.refuse(&asker, refusal_of(&error)),
            },
            Job::Write { asker, object, durable } => self.finish_write(&asker, object, durable, result),
            Job::Read { asker, object } => match result {
                Ok(Outcome::Read(read)) => self.answer_held(&asker, Reply::Read(read_data(read))),
                Ok(_) => self.refuse(&asker, Refusal::StoreFailed),
                Err(error) => self.read_failed(&asker, object, &error),
            },
            Job::Digest { asker, object } => match result {
                Ok(Outcome::Inspect(found)) => self.finish_digest(&asker, object, found),
                Ok(_) => self.refuse(&asker, Refusal::StoreFailed),
                Err(error) => self.read_failed(&asker, object, &error),
            },
            Job::Part { gather, index } => self.finish_part(now, gather, index, result),
            Job::Compare { number, other } => self.take_compared(number, other, result),
            Job::Scrub { serial } => self.take_scrub(now, serial, result),
            Job::Own { fetch } => self.take_own(now, fetch, result),
            Job::Spare { fetch } => self.take_aside(fetch, false, result),
            Job::Older { fetch } => self.take_aside(fetch, true, result),
            // A flush fails with any disk. What the others have is made durable all the same: headers must not say in
            // memory what they do not say on the disk.
            Job::Confirmed { .. } | Job::ReplaceDurable(..) if result.is_err() && self.failed.is_none() => {
                self.submit(Op::Flush, job);
            }
            Job::Confirmed { objects, answer } => {
                self.confirmed(now, objects, result.is_ok());
                if let (Some((asker, which)), true) = (answer, result.is_ok()) {
                    self.answer_held(&asker, Reply::Which(which));
                }
            }
            Job::Share(sharing) => self.take_shared(*sharing, result),
            Job::Replace(object, then) => self.replaced(now, object, then, result),
            Job::ReplaceDurable(object, then) => self.replace_durable(now, object, then, result),
            Job::Floor(epoch) => {
                if result.is_ok() {
                    self.submit(Op::Flush, Job::FloorDurable(epoch));
                }
            }
            Job::FloorDurable(epoch) => {
                if result.is_ok() {
                    self.floor_durable(now, epoch);
                }
            }
            Job::MoveRead(object, to) => self.move_read(now, object, to, result),
            Job::MoveWrite(object, to) => self.move_written(now, object, to, result.is_ok()),
            Job::MoveFlush(object, to) => self.end_move(now, object, Some(to), result.is_ok()),
        }
    }

    /// An answer that took time: if the epoch is another one by now, the asker asks again.
    pub(super) fn answer_held(&mut self, asker: &Header, reply: Reply) {
        if self.misses_disk {
            // The asker may count on what was lost; an epoch that says so is on its way.
            return self.refuse(asker, Refusal::Busy);
        }
        match self.view.as_ref().map(|view| view.epoch()) {
            Some(epoch) if epoch > asker.epoch => self.refuse(asker, Refusal::StaleEpoch(epoch)),
            Some(_) | None => self.answer(asker, reply),
        }
    }

    fn finish_write(
        &mut self,
        asker: &Header,
        object: ObjectId,
        durable: bool,
        result: Result<Outcome, StoreError>,
    ) {
        match result {
            Ok(_) if durable => self.submit(Op::Flush, Job::Answer(*asker, Reply::Done)),
            Ok(_) => self.answer_held(asker, Reply::Done),
            Err(error) => {
                self.refuse(asker, refusal_of(&error));
                self.wake(object);
            }
        }
    }

    pub(super) fn read_failed(&mut self, asker: &Header, object: ObjectId, error: &StoreError) {
        if matches!(error, StoreError::Corrupt { .. } | StoreError::Unreadable { .. }) {
            // That it is lost is known where the store says so; that is no new damage, but there may be some besides.
            if self.store.lost_in(object) == 0 {
                self.found_damage(object);
            }
            self.damage_met(object);
        }
        self.refuse(asker, refusal_of(error));
    }

    /// A block of the own copy could not be given to somebody: it is wanted from others.
    pub(super) fn damage_met(&mut self, object: ObjectId) {
        self.damaged.insert(object);
        if let Some(view) = self.view.clone() {
            self.want(&view, object, true);
        }
    }
}
