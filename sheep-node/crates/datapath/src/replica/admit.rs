//! Which requests are answered at all: fenced by cluster, incarnation, epoch, log index and generation.

use super::{Replica, Timer};
use crate::{Mutant, View};
use sheep_types::{Birth, Generation, LogIndex, ObjectId, ObjectKind, Time, Vid};
use sheep_wire::{Header, Refusal, Reply, Request};
use std::sync::Arc;

/// Most objects that one request may name.
pub(crate) const OBJECTS_PER_REQUEST: usize = 1024;

/// The answer to a request, now; none: it comes later.
pub(super) type Served = Result<Option<Reply>, Refusal>;

impl Replica {
    /// Answers a request, or lets it wait. `deadline`: it has waited already, and until when it may.
    pub(super) fn serve(&mut self, now: Time, header: Header, request: Request, deadline: Option<Time>) {
        if header.cluster != self.cluster {
            self.foreign += 1;
            return;
        }
        let is_ping = matches!(request, Request::Ping);
        let any_run = is_ping && header.to.0 == 0;
        if header.to != self.me.incarnation && !any_run {
            return self.refuse(&header, Refusal::WrongIncarnation);
        }
        if self.failed.is_some() {
            return self.refuse(&header, Refusal::StoreFailed);
        }
        match request {
            Request::Ping => return self.answer(&header, Reply::Done),
            Request::GiveWay => return self.give_way(now),
            _ => {}
        }
        let Some(view) = self.view.clone().filter(|_| self.ready) else {
            return self.wait_for_view(now, header, request);
        };
        let fenced = !self.config.mutants.is(Mutant::SourceAtOlderEpoch)
            || !matches!(request, Request::Digest { .. } | Request::Blocks { .. } | Request::Standing { .. });
        // A generation is the index of its grant.
        let relies_on = header.relies_on.max(LogIndex(header.generation.0));
        if fenced && (header.epoch > view.epoch() || relies_on > view.index) {
            return self.wait_for_view(now, header, request);
        }
        if fenced && header.epoch < view.epoch() {
            return self.refuse(&header, Refusal::StaleEpoch(view.epoch()));
        }
        if self.misses_disk {
            return self.wait_for_view(now, header, request);
        }
        self.dispatch(now, &view, header, request, deadline);
    }

    fn dispatch(
        &mut self,
        now: Time,
        view: &Arc<View>,
        header: Header,
        request: Request,
        deadline: Option<Time>,
    ) {
        // Maps are read by sweeps more than for clients, who read and write data besides.
        let for_client = match &request {
            Request::Write(_) => true,
            Request::Read { object, .. } => object.kind() == Some(ObjectKind::Data),
            _ => false,
        };
        if for_client {
            self.serves_client(now);
        }
        let result = match request {
            Request::Write(write) => self.serve_write(now, view, header, write, deadline),
            Request::Read { object, birth, offset, len } => {
                self.serve_read(view, header, object, birth, offset, len)
            }
            Request::Flush { vid } => self.serve_flush(view, header, vid),
            Request::Settle { vid, after } => self.serve_settle(view, header, vid, after),
            Request::Settled { vid, confirmed } => self.serve_settled(view, header, vid, &confirmed),
            Request::ClearPending { objects } => {
                self.serve_clear_pending(now, view, header, objects, deadline)
            }
            Request::Remove { object, birth, version } => {
                self.serve_remove(now, view, header, object, birth, version, deadline)
            }
            Request::Equalize { object, birth, source, version } => {
                self.serve_equalize(now, view, header, (object, birth, source, version), deadline)
            }
            Request::Adopt { object, version } => {
                self.serve_adopt(now, view, header, object, version, deadline)
            }
            Request::Standing { objects, at } => self.serve_standing(view, header, &objects, at),
            Request::List { member, after } => self.serve_list(view, header, member, after),
            Request::Digest { object, birth, version } => {
                self.serve_digest(view, header, object, birth, version)
            }
            Request::Blocks { object, birth, version, ranges, urgent } => {
                self.serve_blocks(now, view, header, (object, birth, version), ranges, urgent)
            }
            Request::Compare { object, birth, other } => {
                self.serve_compare(view, header, object, birth, other)
            }
            Request::Secure { objects } => self.serve_secure(view, header, &objects),
            Request::AdoptAll { objects } => self.serve_adopt_all(now, view, header, &objects),
            Request::Sweep { vids, first, last, keep, from } => {
                self.serve_sweep(now, view, header, &vids, (first, last), &keep, from)
            }
            Request::Ping | Request::GiveWay => Ok(None),
        };
        match result {
            Ok(Some(reply)) => self.answer(&header, reply),
            Ok(None) => {}
            Err(refusal) => self.refuse(&header, refusal),
        }
    }

    /// Lets a request wait for a view, or for the store.
    fn wait_for_view(&mut self, now: Time, header: Header, request: Request) {
        if self.is_full(&request) {
            return self.refuse(&header, Refusal::Busy);
        }
        let deadline = now + self.config.view_wait;
        self.waiting.push_for_view(header, request, deadline);
        self.timers.set(deadline, Timer::View);
    }

    /// Lets a request wait until something about an object changes; `late` is the answer if nothing does.
    pub(super) fn wait_for_object(
        &mut self,
        now: Time,
        object: ObjectId,
        header: Header,
        request: Request,
        deadline: Time,
        late: Reply,
    ) {
        if deadline <= now {
            return self.answer(&header, late);
        }
        if self.is_full(&request) {
            return self.refuse(&header, Refusal::Busy);
        }
        self.waiting.push(object, header, request, deadline, late);
        self.timers.set(deadline, Timer::Object(object));
    }

    fn is_full(&mut self, request: &Request) -> bool {
        let full = self.waiting.is_full(request, self.config.waiting_requests, self.config.waiting_bytes);
        self.busy += u64::from(full);
        full
    }

    /// The generation of a request about a vid must be the VDI's present one; zero is right only while nobody
    /// holds the VDI. A vid that is not the working one does not change, whoever asks.
    pub(super) fn check_generation(view: &View, vid: Vid, generation: Generation) -> Result<(), Refusal> {
        if !view.writable(vid) || view.generation(vid).unwrap_or_default() == generation {
            Ok(())
        } else {
            Err(Refusal::StaleGeneration)
        }
    }

    /// The vid must be known, with this birth.
    pub(super) fn check_birth(view: &View, object: ObjectId, birth: Birth) -> Result<(), Refusal> {
        if object.kind().is_some() && view.is_born(object, birth) { Ok(()) } else { Err(Refusal::NoCopy) }
    }

    /// This node, in this run, must be an up member of the object's present set.
    pub(super) fn check_member(&self, view: &View, object: ObjectId) -> Result<(), Refusal> {
        if view.in_up_set(object, self.me) { Ok(()) } else { Err(Refusal::NotMember) }
    }
}
