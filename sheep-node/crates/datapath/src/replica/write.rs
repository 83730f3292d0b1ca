//! Versioned writes. A copy is always a prefix of the writes to its object: one is applied only to the very
//! version that it names as the one before.

use super::{Job, Replica, convert};
use crate::{Mutant, View};
use sheep_store::{Body as StoreBody, Header as CopyHeader, Op};
use sheep_types::{BLOCK_SIZE, ObjectId, Time, Version};
use sheep_wire::{Body, Header, Refusal, Reply, Request, WriteRequest};

/// What to do with a write, as far as the copy's version says.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// It is the next one.
    Next,
    /// The copy has it already.
    Already,
    /// Earlier writes are missing.
    Behind,
    /// The copy was written by a later generation.
    Over,
    /// A first write of a generation that is not the first.
    Contradiction,
}

fn place_of(write: &WriteRequest, copy: &CopyHeader) -> Place {
    let (have, new) = (copy.version, write.version);
    if have.generation > new.generation {
        return Place::Over;
    }
    if have.generation == new.generation && have >= new {
        return Place::Already;
    }
    match write.previous {
        _ if write.create => Place::Next,
        None if have.generation == new.generation => Place::Contradiction,
        None => Place::Next,
        Some(previous) if have == previous => Place::Next,
        Some(_) => Place::Behind,
    }
}

fn is_well_formed(view: &View, header: &Header, write: &WriteRequest) -> bool {
    let len = write.body.len();
    let checksums = match &write.body {
        Body::Data { payload, crcs } => {
            payload.len() <= view.state.geometry().object_size() as usize
                && crcs.len() == payload.len() / BLOCK_SIZE as usize
        }
        Body::Zero { .. } => true,
    };
    let end = u64::from(write.offset) + u64::from(len);
    checksums
        && write.object.kind().is_some()
        && len.is_multiple_of(BLOCK_SIZE)
        && write.offset.is_multiple_of(BLOCK_SIZE)
        && end <= u64::from(view.state.geometry().object_size())
        && (len > 0 || write.create)
        && write.version.generation == header.generation
        && write.version.sequence > 0
        && write.previous.is_none_or(|previous| previous < write.version)
        && write.base.is_none_or(|base| {
            write.create && base != write.object.vid() && view.are_related(write.object.vid(), base)
        })
}

impl Replica {
    pub(super) fn serve_write(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        write: WriteRequest,
        deadline: Option<Time>,
    ) -> Result<Option<Reply>, Refusal> {
        if !is_well_formed(view, &header, &write) {
            return Err(Refusal::Malformed);
        }
        let object = write.object;
        let writable = view.writable(object.vid()) || self.config.mutants.is(Mutant::WritesFrozen);
        if !writable || !view.is_born(object, write.birth) {
            return Err(Refusal::NotWritable);
        }
        if header.generation.0 == 0 {
            return Err(Refusal::StaleGeneration);
        }
        Self::check_generation(view, object.vid(), header.generation)?;
        self.check_member(view, object)?;
        let copy = self.copy(view, object);
        let place = copy.as_ref().map(|copy| place_of(&write, copy));
        // An object that is created owes nothing to what there was: whatever lower version there is, is an
        // orphan. Everything else is said and done only of a current copy, "already" too: a copy that is not
        // current may still be made equal to one without the write.
        let creates = write.create && matches!(place, None | Some(Place::Next));
        if self.replacing.contains(&object) || (!creates && !self.current_in(view, object)) {
            if self.recovery.is_lost(object) && !self.replacing.contains(&object) {
                return Ok(Some(Reply::Behind(None)));
            }
            self.want(view, object, true);
            let deadline = deadline.unwrap_or(now + self.config.validate_wait);
            let late = Reply::Refused(Refusal::NotCurrent);
            self.wait_for_object(now, object, header, Request::Write(write), deadline, late);
            return Ok(None);
        }
        // A clone of a copy that is not current would have old blocks, and nobody would notice.
        if let Some(base) = write.base.map(|base| object.of(base)).filter(|_| creates)
            && !self.current_in(view, base)
            && !self.config.mutants.is(Mutant::ClonesAnyCopy)
        {
            if self.recovery.is_lost(base) {
                return Err(Refusal::BaseLost);
            }
            self.want(view, base, true);
            let deadline = deadline.unwrap_or(now + self.config.validate_wait);
            let late = Reply::Refused(Refusal::NotCurrent);
            self.wait_for_object(now, base, header, Request::Write(write), deadline, late);
            return Ok(None);
        }
        match place {
            None | Some(Place::Next) => self.apply(now, view, header, write, copy),
            Some(Place::Already) if self.config.mutants.is(Mutant::ResendIsBehind) => {
                return Ok(Some(Reply::Behind(copy.map(|copy| copy.version))));
            }
            Some(Place::Already) => {
                self.hot.confirmed(object.vid(), header.generation, &write.confirmed);
                if !write.durable {
                    return Ok(Some(Reply::Done));
                }
                self.submit(Op::Flush, Job::Answer(header, Reply::Done));
            }
            Some(Place::Behind) => {
                let late = Reply::Behind(copy.map(|copy| copy.version));
                let deadline = deadline.unwrap_or(now + self.config.order_wait);
                self.wait_for_object(now, object, header, Request::Write(write), deadline, late);
            }
            Some(Place::Over) => return Err(Refusal::StaleGeneration),
            Some(Place::Contradiction) => return Err(Refusal::Malformed),
        }
        Ok(None)
    }

    /// Hands a write to the store; later operations see it at once.
    fn apply(
        &mut self,
        now: Time,
        view: &View,
        header: Header,
        write: WriteRequest,
        copy: Option<CopyHeader>,
    ) {
        let object = write.object;
        let create = write.create && !(copy.is_some() && self.config.mutants.is(Mutant::CreateKeepsOrphan));
        if write.create {
            // What was to be validated is an orphan now.
            self.recovery.forget(object);
            self.damaged.remove(&object);
        }
        self.hot.written(object, write.version, &write.confirmed);
        let new = CopyHeader {
            id: object,
            birth: write.birth,
            version: write.version,
            // The copy is current in this epoch, so it may as well say so.
            validated: view.epoch(),
            pending: write.create || copy.is_some_and(|copy| copy.pending),
        };
        let body = convert::body(write.body);
        let job = Job::Write { asker: header, object, durable: write.durable };
        match write.base.map(|base| object.of(base)) {
            None => self.submit(Op::Write { header: new, create, offset: write.offset, body }, job),
            Some(from) => self.clone_and_write(now, from, new, write.offset, body, job),
        }
        self.wake(object);
    }

    /// Makes an object of the blocks of another one and writes to it. Power may go in between: without the write the
    /// clone has the version before all writes of the generation, so that it is a prefix of them.
    fn clone_and_write(
        &mut self,
        now: Time,
        from: ObjectId,
        header: CopyHeader,
        offset: u32,
        body: StoreBody,
        job: Job,
    ) {
        let home = self.store.located(from).map_or(0, |(slot, _)| slot);
        let unwritten = Version { sequence: 0, ..header.version };
        let clone = CopyHeader { version: unwritten, ..header };
        self.submit_to(Op::CloneBlocks { from, header: clone }, Job::Forget, home);
        self.submit_to(Op::Write { header, create: false, offset, body }, job, home);
        if self.is_wounded(from) {
            // It lacks what the other one does, as far as it is not written.
            if self.damaged.contains(&from) {
                self.damaged.insert(header.id);
            }
            self.heal_later(now, header.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::{Birth, Generation, Vid};
    use sheep_wire::Confirmed;

    fn version(generation: u64, sequence: u64) -> Version {
        Version { generation: Generation(generation), sequence }
    }

    fn write(previous: Option<Version>, version: Version, create: bool) -> WriteRequest {
        WriteRequest {
            object: ObjectId::data(Vid(1), 0),
            birth: Birth(1),
            previous,
            version,
            create,
            base: None,
            offset: 0,
            body: Body::Zero { len: BLOCK_SIZE },
            durable: false,
            confirmed: Confirmed::default(),
        }
    }

    #[test]
    fn the_copy_version_decides() {
        let have = CopyHeader { version: version(5, 3), ..CopyHeader::default() };
        let cases = [
            (write(Some(version(5, 3)), version(5, 4), false), Place::Next),
            (write(Some(version(5, 2)), version(5, 3), false), Place::Already),
            (write(Some(version(5, 1)), version(5, 2), false), Place::Already),
            (write(Some(version(5, 4)), version(5, 6), false), Place::Behind),
            (write(None, version(6, 1), false), Place::Next),
            (write(Some(version(6, 1)), version(6, 2), false), Place::Behind),
            (write(None, version(4, 9), false), Place::Over),
            (write(None, version(5, 9), false), Place::Contradiction),
            (write(None, version(6, 9), true), Place::Next),
            (write(None, version(5, 9), true), Place::Next),
            (write(None, version(5, 3), true), Place::Already),
            (write(None, version(4, 3), true), Place::Over),
        ];
        for (write, place) in cases {
            assert_eq!(place_of(&write, &have), place, "{write:?}");
        }
    }
}
