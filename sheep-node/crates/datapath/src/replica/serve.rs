//! Requests that change no contents: reads, flushes, and what a take-over and other replicas ask.

use super::admit::{OBJECTS_PER_REQUEST, Served};
use super::{Job, Replica};
use crate::View;
use crate::recovery::FLOORS;
use sheep_store::Op;
use sheep_types::{BLOCK_SIZE, Birth, Epoch, NodeId, ObjectId, Time, Version, Vid};
use sheep_wire::{Confirmed, Header, HotObject, Listed, Refusal, Reply, Request};

/// Lines of one page of hot objects.
const PAGE: usize = 256;
/// Lines of one page of a listing.
const LIST_PAGE: usize = 1024;

impl Replica {
    pub(super) fn serve_read(
        &mut self,
        view: &View,
        header: Header,
        object: ObjectId,
        birth: Birth,
        offset: u32,
        len: u32,
    ) -> Served {
        let size = view.state.geometry().object_size();
        let fits = len > 0 && u64::from(offset) + u64::from(len) <= u64::from(size);
        if !fits || !len.is_multiple_of(BLOCK_SIZE) || !offset.is_multiple_of(BLOCK_SIZE) {
            return Err(Refusal::Malformed);
        }
        Self::check_birth(view, object, birth)?;
        Self::check_generation(view, object.vid(), header.generation)?;
        self.check_member(view, object)?;
        if !self.current_in(view, object) {
            if self.recovery.is_lost(object) {
                return Err(Refusal::NoCopy);
            }
            self.want(view, object, true);
            return Err(Refusal::NotCurrent);
        }
        self.submit(Op::Read { object, offset, len }, Job::Read { asker: header, object });
        Ok(None)
    }

    pub(super) fn serve_flush(&mut self, view: &View, header: Header, vid: Vid) -> Served {
        if view.vid(vid).is_none() {
            return Err(Refusal::NotWritable);
        }
        Self::check_generation(view, vid, header.generation)?;
        self.submit(Op::Flush, Job::Answer(header, Reply::Done));
        Ok(None)
    }

    /// The answer is this node's promise to refuse older generations: it has applied the grant, or it would not
    /// be here.
    pub(super) fn serve_settle(
        &mut self,
        view: &View,
        header: Header,
        vid: Vid,
        after: Option<ObjectId>,
    ) -> Served {
        if !view.writable(vid) {
            return Err(Refusal::NotWritable);
        }
        if header.generation.0 == 0 || view.generation(vid) != Some(header.generation) {
            return Err(Refusal::StaleGeneration);
        }
        let mut objects = self.hot.of(vid);
        let first = ObjectId(u64::from(vid.0) << 32);
        objects.extend(self.pending.range(first..).take_while(|object| object.vid() == vid));
        let mut list = Vec::new();
        let mut more = false;
        for object in objects.into_iter().filter(|object| after.is_none_or(|after| *object > after)) {
            let Some(copy) = self.copy(view, object) else { continue };
            if list.len() == PAGE {
                more = true;
                break;
            }
            let current = self.current_in(view, object);
            list.push(HotObject { object, version: copy.version, pending: copy.pending, current });
        }
        Ok(Some(Reply::Hot(list, more)))
    }

    pub(super) fn serve_settled(
        &mut self,
        view: &View,
        header: Header,
        vid: Vid,
        confirmed: &Confirmed,
    ) -> Served {
        if header.generation.0 == 0 || view.generation(vid) != Some(header.generation) {
            return Err(Refusal::StaleGeneration);
        }
        self.hot.settled(vid, header.generation, confirmed);
        Ok(Some(Reply::Done))
    }

    pub(super) fn serve_clear_pending(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        objects: Vec<ObjectId>,
        deadline: Option<Time>,
    ) -> Served {
        let Some(first) = objects.first().copied() else { return Ok(Some(Reply::Done)) };
        let one_vid = objects.iter().all(|object| object.vid() == first.vid());
        if objects.len() > OBJECTS_PER_REQUEST || !one_vid {
            return Err(Refusal::Malformed);
        }
        Self::check_generation(view, first.vid(), header.generation)?;
        if let Some(busy) = objects.iter().copied().find(|object| self.replacing.contains(object)) {
            let deadline = deadline.unwrap_or(now + self.config.validate_wait);
            let late = Reply::Refused(Refusal::Busy);
            self.wait_for_object(now, busy, header, Request::ClearPending { objects }, deadline, late);
            return Ok(None);
        }
        for object in objects {
            if let Some(copy) = self.copy(view, object).filter(|copy| copy.pending) {
                let header = sheep_store::Header { pending: false, ..copy };
                self.submit(Op::SetHeader { header }, Job::Forget);
            }
        }
        // In memory is enough: the flag that a crash brings back only makes a take-over look at the object.
        Ok(Some(Reply::Done))
    }

    pub(super) fn serve_remove(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        object: ObjectId,
        birth: Birth,
        version: Version,
        deadline: Option<Time>,
    ) -> Served {
        Self::check_birth(view, object, birth)?;
        Self::check_generation(view, object.vid(), header.generation)?;
        if self.replacing.contains(&object) {
            let deadline = deadline.unwrap_or(now + self.config.validate_wait);
            let late = Reply::Refused(Refusal::Busy);
            self.wait_for_object(
                now,
                object,
                header,
                Request::Remove { object, birth, version },
                deadline,
                late,
            );
            return Ok(None);
        }
        self.recovery.forget(object);
        match self.raw_header(object) {
            Some(copy) if copy.birth == birth && copy.version > version => Ok(Some(Reply::Done)),
            Some(_) => {
                self.delete_copy(object, Job::Answer(header, Reply::Done));
                Ok(None)
            }
            None => Ok(Some(Reply::Done)),
        }
    }

    pub(super) fn serve_standing(
        &mut self,
        view: &View,
        header: Header,
        objects: &[ObjectId],
        at: Epoch,
    ) -> Served {
        if objects.len() > OBJECTS_PER_REQUEST || at > header.epoch {
            return Err(Refusal::Malformed);
        }
        let hasty = self.config.mutants.is(crate::Mutant::SourceAtOlderEpoch);
        let at = if hasty { at.min(view.epoch()) } else { at };
        if header.generation.0 > 0 {
            for object in objects {
                Self::check_generation(view, object.vid(), header.generation)?;
            }
        }
        let standings = objects.iter().map(|object| self.standing(view, *object, at)).collect();
        // Who asks about the present wants the object: if it is this node's to decide, it had better know.
        if at == view.epoch() {
            for object in objects {
                if !self.replacing.contains(object) && !self.current_in(view, *object) {
                    self.want(view, *object, header.generation.0 > 0);
                }
            }
        }
        Ok(Some(Reply::Standings(standings)))
    }

    pub(super) fn serve_list(
        &mut self,
        view: &View,
        header: Header,
        member: NodeId,
        after: Option<ObjectId>,
    ) -> Served {
        if member != header.from.node {
            return Err(Refusal::Malformed);
        }
        let from = after.map_or(ObjectId(0), |after| ObjectId(after.0.saturating_add(1)));
        let epoch = view.epoch();
        let mut listed: Vec<Listed> = self
            .headers_from(from)
            .filter(|copy| copy.id.vid() != FLOORS && view.is_born(copy.id, copy.birth))
            .filter(|copy| view.in_set_at(epoch, copy.id, member))
            .take(LIST_PAGE + 1)
            .map(|copy| Listed {
                object: copy.id,
                birth: copy.birth,
                version: copy.version,
                validated: copy.validated,
                live: self.current_in(view, copy.id),
                hot: self.hot.is_hot(copy.id),
            })
            .collect();
        let more = listed.len() > LIST_PAGE;
        listed.truncate(LIST_PAGE);
        Ok(Some(Reply::Listing(listed, more)))
    }
}
