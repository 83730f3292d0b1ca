//! Filling one object: a range is read through all layers, and what the own object has not is written to it.

use super::super::VolumeError;
use super::super::contents::{Found, cut, flatten};
use super::super::object::{Owner, data_body};
use super::super::read::{Location, Place, ReadOwner, ReadPiece, Target};
use super::super::shared::Core;
use super::super::volume::{Phase, Volume};
use super::super::write::NewWrite;
use super::pace;
use crate::Mutant;
use sheep_types::{BLOCK_SIZE, ObjectId, Time, Vid};
use sheep_wire::Body;

/// Ranges of an object that are read and written one after the other.
const RANGES: u32 = 16;
/// Bytes of one, at least.
const LEAST: u32 = 4 * BLOCK_SIZE;

/// An object being filled.
#[derive(Debug, Default)]
pub(super) struct Job {
    /// Everything before is there.
    at: u32,
    reading: Option<Reading>,
    /// The object has become another one.
    pub(super) void: bool,
}

/// A range being read.
#[derive(Debug)]
struct Reading {
    end: u32,
    since: Time,
    /// What was written meanwhile.
    changed: Vec<(u32, u32)>,
}

impl Job {
    pub(super) fn touch(&mut self, range: (u32, u32)) {
        if let Some(reading) = &mut self.reading {
            reading.changed.push(range);
        }
    }
}

/// The blocks of a range, from its first byte on, that the own object lacks and nobody has changed: runs of bytes that
/// have contents, or are zeros.
fn lacking(
    start: u32,
    whole: &[Found],
    own: Option<&[Found]>,
    changed: &[(u32, u32)],
) -> Vec<(u32, u32, bool)> {
    let mut runs: Vec<(u32, u32, bool)> = Vec::new();
    let (whole, own) = (states(whole), own.map(states));
    for (number, state) in whole.iter().enumerate() {
        let at = start + number as u32 * BLOCK_SIZE;
        let end = at + BLOCK_SIZE;
        let has = own.as_ref().and_then(|own| own.get(number)).is_some_and(|own| *own != State::Absent);
        if has || changed.iter().any(|(from, to)| *from < end && at < *to) {
            continue;
        }
        let zero = *state != State::Data;
        match runs.last_mut() {
            Some(last) if last.1 == at && last.2 == zero => last.1 = end,
            _ => runs.push((at, end, zero)),
        }
    }
    runs
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Data,
    Zero,
    Absent,
}

fn states(found: &[Found]) -> Vec<State> {
    let of = |part: &Found| match part {
        Found::Data(data) => (State::Data, data.len()),
        Found::Zero(len) => (State::Zero, *len as usize),
        Found::Absent(len) => (State::Absent, *len as usize),
    };
    found
        .iter()
        .flat_map(|part| {
            let (state, len) = of(part);
            std::iter::repeat_n(state, len / BLOCK_SIZE as usize)
        })
        .collect()
}

impl Volume {
    /// Reads the next range of an object, if nothing is in the way.
    pub(super) fn step_job(&mut self, core: &mut Core, index: u32) {
        let Some(job) = self.fill.jobs.get(&index).filter(|job| job.reading.is_none()) else { return };
        let (at, size) = (job.at, self.geometry.object_size());
        if job.void || self.flusher.is_discarding(index) {
            self.end_job(index);
            return;
        }
        if at >= size {
            self.fill.whole.insert(index, self.sequence);
            self.end_job(index);
            return;
        }
        if !self.has_room_to_fill(core, index) {
            return;
        }
        let end = (at + (size / RANGES).max(LEAST)).min(size);
        let reading = Reading { end, since: core.now, changed: Vec::new() };
        if let Some(job) = self.fill.jobs.get_mut(&index) {
            job.reading = Some(reading);
        }
        let owner = ReadOwner::Fill { index };
        self.add_read(ReadPiece::new(owner, Target::Data(index), (at, end), self.sequence));
        self.again = true;
    }

    /// The object is filled, or is another one now.
    fn end_job(&mut self, index: u32) {
        self.fill.found = true;
        self.leave_job(index);
    }

    fn leave_job(&mut self, index: u32) {
        self.fill.jobs.remove(&index);
        self.again = true;
    }

    /// A range was read. `first`: whose object was asked first, and what it has.
    pub(in super::super) fn fill_arrived(
        &mut self,
        core: &mut Core,
        index: u32,
        first: Option<(Vid, Vec<Found>)>,
        result: Result<Vec<Found>, VolumeError>,
    ) {
        let Some(job) = self.fill.jobs.get_mut(&index) else { return };
        let Some(mut reading) = job.reading.take() else { return };
        let (at, void) = (job.at, job.void);
        self.again = true;
        let Ok(whole) = result else {
            self.fill.left.insert(index);
            return self.leave_job(index);
        };
        let object = ObjectId::data(self.vid, index);
        if void || self.flusher.is_discarding(index) {
            return self.end_job(index);
        }
        // It is read again when something can be written again.
        if !matches!(self.phase, Phase::Serving) || self.is_still() {
            return;
        }
        // What could not be made on some member is to be tried again as it is: a second creation would be without it.
        let refused = self.objects.get(&object).is_some_and(|writes| writes.refused().is_some());
        if refused || !self.may_write(core, object) {
            return self.fill.pause(core.now + pace::NOT_NOW);
        }
        let place = match self.locate(core, index) {
            Location::At(place) => place,
            Location::Loading => return,
            Location::Absent | Location::Unreadable | Location::Unknown => return self.end_job(index),
        };
        if core.config.mutants.is(Mutant::FillsOverWrites) {
            reading.changed.clear();
        }
        let own = first.filter(|(vid, _)| core.view().are_related(*vid, self.vid)).map(|(_, found)| found);
        let runs = lacking(at, &whole, own.as_deref(), &reading.changed);
        self.write_runs(core, index, place, &whole, &runs);
        if let Some(job) = self.fill.jobs.get_mut(&index) {
            job.at = reading.end;
        }
        self.rest(core, reading.since);
    }

    fn write_runs(
        &mut self,
        core: &mut Core,
        index: u32,
        place: Place,
        whole: &[Found],
        runs: &[(u32, u32, bool)],
    ) {
        let object = ObjectId::data(self.vid, index);
        let Some(from) = self.fill.jobs.get(&index).map(|job| job.at) else { return };
        let mut create = place.vid != self.vid;
        let related = core.view().are_related(place.vid, self.vid);
        for (start, end, zero) in runs {
            let body = match zero {
                true => Body::Zero { len: end - start },
                false => data_body(flatten(&cut(whole, start - from, end - start))),
            };
            let weight = super::super::object::weight(&body);
            if !zero {
                self.note_filled(core, object, u64::from(end - start));
            }
            let base = (create && related).then_some(place.vid);
            let (offset, owner) = (*start, Owner::Fill);
            let write =
                NewWrite { object, create, inherits: create, base, offset, body, durable: false, owner };
            let sequence = self.write(core, write);
            if create {
                self.pending.insert(index, sequence);
            }
            create = false;
            self.fill.unflushed.push_back((sequence, weight));
            self.fill.bytes += u64::from(end - start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn what_is_there_or_was_changed_is_left_alone() {
        let block = BLOCK_SIZE;
        let data = |blocks: u32| Found::Data(Bytes::from(vec![1; (blocks * block) as usize]));
        let whole = [data(2), Found::Zero(block), data(3), Found::Absent(2 * block)];
        let all = lacking(block, &whole, None, &[]);
        let at = |n: u32| (n + 1) * block;
        assert_eq!(
            all,
            [(at(0), at(2), false), (at(2), at(3), true), (at(3), at(6), false), (at(6), at(8), true)]
        );
        let own = [Found::Absent(block), data(1), Found::Absent(5 * block), Found::Zero(block)];
        let some = lacking(block, &whole, Some(&own), &[(at(4) + 512, at(4) + 1024)]);
        assert_eq!(
            some,
            [
                (at(0), at(1), false),
                (at(2), at(3), true),
                (at(3), at(4), false),
                (at(5), at(6), false),
                (at(6), at(7), true)
            ]
        );
    }
}
