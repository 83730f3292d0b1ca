//! Making a copy equal to another one, and calling it current: durably, and in that order.

use super::convert::refusal_of;
use super::{Job, Replica};
use crate::View;
use sheep_store::{Header as CopyHeader, Op, Outcome, Piece, StoreError};
use sheep_types::{Birth, Epoch, Member, ObjectId, Time, Version};
use sheep_wire::{Header, Refusal, Reply, Request};

/// What follows when a replacement is durable.
#[derive(Debug)]
pub(crate) enum Then {
    /// Answer a request with "done".
    Answer(Header),
    /// The copy's own validation is done; bytes that were moved for it.
    Validated(u64),
    /// The same, where bad blocks of a current copy were made good.
    Healed(u64),
}

/// What makes the own copy equal to another one.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Birth of its vid.
    pub(crate) birth: Birth,
    /// Version of the other copy.
    pub(crate) version: Version,
    /// Its map entry is not confirmed.
    pub(crate) pending: bool,
    /// It is hot.
    pub(crate) hot: bool,
    /// Nothing of it is lost.
    pub(crate) whole: bool,
    /// The pieces are what differs from the own copy; otherwise they are everything.
    pub(crate) patches: bool,
    /// The contents.
    pub(crate) pieces: Vec<Piece>,
}

impl Replica {
    /// `what`: object, birth, source, version.
    pub(super) fn serve_equalize(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        what: (ObjectId, Birth, Member, Version),
        deadline: Option<Time>,
    ) -> Result<Option<Reply>, Refusal> {
        let (object, birth, source, version) = what;
        Self::check_birth(view, object, birth)?;
        let by_gateway = header.generation.0 > 0;
        if by_gateway {
            Self::check_generation(view, object.vid(), header.generation)?;
        }
        if self.replacing.contains(&object) {
            let deadline = deadline.unwrap_or(now + self.config.validate_wait);
            let late = Reply::Refused(Refusal::Busy);
            let request = Request::Equalize { object, birth, source, version };
            self.wait_for_object(now, object, header, request, deadline, late);
            return Ok(None);
        }
        let have = self.copy(view, object).map(|copy| copy.version);
        if have == Some(version) {
            self.submit(Op::Flush, Job::Answer(header, Reply::Done));
            return Ok(None);
        }
        // A replica decides only because it knows of nobody who is current. If this copy is (the object was
        // created anew in this very epoch), it must look again.
        if source == self.me || (!by_gateway && self.current_in(view, object)) {
            return Err(Refusal::OtherVersion);
        }
        self.interrupt(now, object);
        self.fetch_for(now, view, header, source, (object, birth, version));
        Ok(None)
    }

    pub(super) fn serve_adopt(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        object: ObjectId,
        version: Version,
        deadline: Option<Time>,
    ) -> Result<Option<Reply>, Refusal> {
        if header.generation.0 > 0 {
            Self::check_generation(view, object.vid(), header.generation)?;
        }
        self.check_member(view, object)?;
        if self.replacing.contains(&object) {
            let deadline = deadline.unwrap_or(now + self.config.validate_wait);
            let late = Reply::Refused(Refusal::Busy);
            self.wait_for_object(now, object, header, Request::Adopt { object, version }, deadline, late);
            return Ok(None);
        }
        let copy = self.copy(view, object).filter(|copy| copy.version == version);
        let Some(copy) = copy else { return Err(Refusal::OtherVersion) };
        if self.current_in(view, object) {
            return Ok(Some(Reply::Done));
        }
        self.interrupt(now, object);
        let new = CopyHeader { validated: view.epoch(), ..copy };
        self.replace(object, Op::SetHeader { header: new }, Then::Answer(header));
        Ok(None)
    }

    /// What [`Request::Equalize`] asked for is here. `changed`: the own copy is not what it was when it was asked
    /// for, so that the difference means nothing; or it has gone on in the meantime.
    pub(crate) fn equalize_with(
        &mut self,
        view: &View,
        asker: Header,
        what: (ObjectId, Birth, Version),
        contents: Contents,
        changed: bool,
    ) {
        let (object, birth, version) = what;
        if contents.birth != birth || contents.version != version {
            return self.refuse(&asker, Refusal::OtherVersion);
        }
        if self.replacing.contains(&object) {
            return self.refuse(&asker, Refusal::Busy);
        }
        let copy = self.copy(view, object);
        if copy.is_some_and(|copy| copy.version == version) {
            return self.submit(Op::Flush, Job::Answer(asker, Reply::Done));
        }
        if asker.generation.0 == 0 && self.current_in(view, object) {
            return self.refuse(&asker, Refusal::OtherVersion);
        }
        if changed {
            return self.refuse(&asker, Refusal::Busy);
        }
        // What the copy was validated in stays: this makes it equal, not current. If all this stops half way,
        // the copy must still be able to say that it was current then.
        let validated = copy.map_or(Epoch(0), |copy| copy.validated);
        self.replace_with(object, contents, validated, Then::Answer(asker));
    }

    /// Makes the copy equal.
    pub(crate) fn replace_with(
        &mut self,
        object: ObjectId,
        contents: Contents,
        validated: Epoch,
        then: Then,
    ) {
        let Contents { birth, version, pending, hot, whole, patches, pieces } = contents;
        let header = CopyHeader { id: object, birth, version, validated, pending };
        let hot = hot && !self.config.mutants.is(crate::Mutant::HotNotInherited);
        self.hot.inherit(object, version, hot);
        if whole && self.scrub.doubt(object).is_none() {
            self.damaged.remove(&object);
        }
        let fresh = whole && !patches && self.store.header(object).is_none();
        if fresh {
            return self.make_copy(header, pieces, then);
        }
        let op = if patches { Op::Patch { header, pieces } } else { Op::Replace { header, pieces } };
        self.replace(object, op, then);
    }

    /// Begins a change of contents or validity that counts only when it is durable.
    pub(crate) fn replace(&mut self, object: ObjectId, op: Op, then: Then) {
        self.replacing.insert(object);
        if matches!(op, Op::Replace { .. }) {
            self.damaged.remove(&object);
        }
        self.submit(op, Job::Replace(object, then));
    }

    pub(super) fn replaced(
        &mut self,
        now: Time,
        object: ObjectId,
        then: Then,
        result: Result<Outcome, StoreError>,
    ) {
        match result {
            Ok(_) => self.submit(Op::Flush, Job::ReplaceDurable(object, then)),
            Err(error) => self.replace_failed(now, object, then, &error),
        }
    }

    pub(super) fn replace_durable(
        &mut self,
        now: Time,
        object: ObjectId,
        then: Then,
        result: Result<Outcome, StoreError>,
    ) {
        if let Err(error) = result {
            return self.replace_failed(now, object, then, &error);
        }
        self.replacing.remove(&object);
        self.store.drop_spare(object);
        self.copy_replaced(object, matches!(then, Then::Healed(_)));
        self.wake(object);
        let bytes = match then {
            Then::Answer(asker) => {
                self.answer_held(&asker, Reply::Done);
                0
            }
            Then::Validated(bytes) | Then::Healed(bytes) => bytes,
        };
        self.walk_stored(now, object, bytes);
    }

    fn replace_failed(&mut self, now: Time, object: ObjectId, then: Then, error: &StoreError) {
        self.replacing.remove(&object);
        self.wake(object);
        if let Then::Answer(asker) = then {
            self.refuse(&asker, refusal_of(error));
        }
        self.walk_failed(now, object);
    }
}
