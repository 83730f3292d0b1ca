//! Looking at all copies of one object, and giving up an object that is lost.
//!
//! A member of the object's set is asked what its copy holds. Who has none that is current is asked for a block,
//! and says by its refusal whether the object may come back. Giving up a lost object is *creating* it, full of
//! zeros, by a write with a version like any other: a copy that comes back later has a lower version and is not
//! current, so it is made equal to the new one.

use super::api::{CopyState, ObjectCheck, VolumeError, VolumeReply};
use super::read::Location;
use super::shared::{Core, Tag};
use super::volume::Volume;
use crate::Mutant;
use crate::recovery::{Cell, cells, ranges_of};
use sheep_types::{BLOCK_SIZE, Birth, Member, NodeId, ObjectId, Vid};
use sheep_wire::{Refusal, Reply, Request};
use std::collections::{BTreeMap, BTreeSet};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Only to be told.
    Look,
    /// The object is lost and shall be zeros. `force`: whatever nodes that are away may have.
    GiveUp { force: bool },
}

/// An object that is looked at.
#[derive(Debug)]
pub(super) struct Query {
    io: u64,
    map: bool,
    index: u32,
    purpose: Purpose,
    /// The vid whose object it is, if it is data.
    vid: Option<Vid>,
    /// Up members, and what they said.
    asked: Option<BTreeMap<Member, Option<CopyState>>>,
    /// Blocks that one of them has lost.
    lost: BTreeSet<u32>,
}

/// Checksum over states and checksums of all blocks.
fn sum(cells: &[Cell]) -> u32 {
    cells.iter().fold(0, |sum, cell| {
        let (kind, crc) = match cell {
            Cell::Absent => (0u8, 0),
            Cell::Zero => (1, 0),
            // Of what is lost is known what it should be.
            Cell::Data(crc) | Cell::Lost(crc) => (2, *crc),
        };
        crc32c::crc32c_append(crc32c::crc32c_append(sum, &[kind]), &crc.to_le_bytes())
    })
}

impl Volume {
    pub(super) fn add_query(&mut self, io: u64, (map, index): (bool, u32), purpose: Purpose) {
        let id = self.next_piece;
        self.next_piece += 1;
        let query = Query { io, map, index, purpose, vid: None, asked: None, lost: BTreeSet::new() };
        self.queries.insert(id, query);
    }

    /// Answers about the former epoch do not count.
    pub(super) fn restart_queries(&mut self) {
        self.queries.values_mut().for_each(|query| {
            query.asked = None;
            query.lost.clear();
        });
    }

    fn object_of(&self, query: &Query) -> ObjectId {
        match query.map {
            true => ObjectId::map(self.map.kept_by(0, query.index).unwrap_or(self.vid), query.index),
            false => ObjectId::data(query.vid.unwrap_or(self.vid), query.index),
        }
    }

    /// Carries on what can go on.
    pub(super) fn step_queries(&mut self, core: &mut Core) {
        // A lost object is given up by a write, and none may happen while a snapshot is ordered.
        if self.is_at_a_standstill() {
            return;
        }
        for id in self.queries.keys().copied().collect::<Vec<_>>() {
            self.step_query(core, id);
        }
    }

    fn step_query(&mut self, core: &mut Core, id: u64) {
        let Some(query) = self.queries.get(&id) else { return };
        let (io, index, map) = (query.io, query.index, query.map);
        if let Some(asked) = &query.asked {
            if asked.values().all(Option::is_some) {
                self.end_query(core, id);
            }
            return;
        }
        let exists = match map {
            true => self.map.kept_by(0, index).is_some(),
            false => match self.locate(core, index) {
                Location::Loading => return,
                Location::Unreadable | Location::Unknown => {
                    self.queries.remove(&id);
                    return self.part_done(core, io, Err(VolumeError::Io), false);
                }
                Location::Absent => false,
                Location::At(place) => {
                    self.queries.entry(id).and_modify(|query| query.vid = Some(place.vid));
                    true
                }
            },
        };
        let Some(query) = self.queries.get(&id) else { return };
        let object = self.object_of(query);
        if !exists {
            self.queries.remove(&id);
            return self.tell(core, io, ObjectCheck::default());
        }
        let members = core.view().up_set(object);
        if let Some(query) = self.queries.get_mut(&id) {
            query.asked = Some(members.iter().map(|member| (*member, None)).collect());
        }
        for member in members {
            let request = Request::Digest { object, birth: self.birth_of(core, object), version: None };
            self.call(core, Tag::Query { query: id }, member, request);
        }
        // Without members there is nobody to wait for.
        self.again = true;
    }

    /// Birth of an object's vid.
    pub(super) fn birth_of(&self, core: &Core, object: ObjectId) -> Birth {
        core.view().vid(object.vid()).map_or(self.birth, |record| record.birth)
    }

    pub(super) fn handle_query_reply(&mut self, core: &mut Core, id: u64, from: Member, reply: Reply) {
        let Some(query) = self.queries.get(&id) else { return };
        let object = self.object_of(query);
        let state = match reply {
            Reply::Digest(digest) => match cells(&digest.extents, &digest.crcs, self.geometry) {
                Some(cells) => {
                    let lost = (0u32..).zip(&cells).filter(|(_, cell)| matches!(cell, Cell::Lost(_)));
                    let lost: Vec<u32> = lost.map(|(block, _)| block).collect();
                    if let Some(query) = self.queries.get_mut(&id) {
                        query.lost.extend(lost);
                    }
                    CopyState::Current { version: digest.version, sum: sum(&cells) }
                }
                None => CopyState::NotCurrent,
            },
            Reply::Refused(Refusal::Damaged) => CopyState::Damaged,
            // The answer to a block.
            Reply::Read(_) => CopyState::NotCurrent,
            Reply::Refused(Refusal::NoCopy | Refusal::NotCurrent) => {
                let birth = self.birth_of(core, object);
                let request = Request::Read { object, birth, offset: 0, len: BLOCK_SIZE };
                self.call(core, Tag::QueryBlock { query: id }, from, request);
                return;
            }
            _ => CopyState::NotCurrent,
        };
        self.note_copy(id, from, state);
    }

    pub(super) fn handle_query_block(&mut self, id: u64, from: Member, reply: Reply) {
        let state = match reply {
            Reply::Refused(Refusal::NoCopy) => CopyState::Lost,
            Reply::Refused(Refusal::Damaged) => CopyState::Damaged,
            _ => CopyState::NotCurrent,
        };
        self.note_copy(id, from, state);
    }

    fn note_copy(&mut self, id: u64, from: Member, state: CopyState) {
        let asked = self.queries.get_mut(&id).and_then(|query| query.asked.as_mut());
        if let Some(place) = asked.and_then(|asked| asked.get_mut(&from)) {
            *place = Some(state);
        }
    }

    fn end_query(&mut self, core: &mut Core, id: u64) {
        let Some(query) = self.queries.remove(&id) else { return };
        let object = self.object_of(&query);
        let view = core.view();
        let lost = ranges_of(query.lost.iter().copied());
        let mut copies: BTreeMap<NodeId, CopyState> =
            view.set(object).into_iter().map(|node| (node, CopyState::Down)).collect();
        for (member, state) in query.asked.into_iter().flatten() {
            copies.insert(member.node, state.unwrap_or(CopyState::NotCurrent));
        }
        let check = ObjectCheck { exists: true, copies, may_hold: view.absent_holders(object), lost };
        match query.purpose {
            Purpose::Look => self.tell(core, query.io, check),
            Purpose::GiveUp { force } => self.give_up(core, query.io, object, query.index, &check, force),
        }
    }

    fn tell(&mut self, core: &mut Core, io: u64, check: ObjectCheck) {
        // It may have been given up for taking too long.
        if self.ios.remove(&io).is_some() {
            self.again = true;
            self.answer(core, io, Ok(VolumeReply::Checked(check)));
        }
    }

    /// The object becomes zeros, if it is lost indeed.
    fn give_up(
        &mut self,
        core: &mut Core,
        io: u64,
        object: ObjectId,
        index: u32,
        check: &ObjectCheck,
        force: bool,
    ) {
        let careless = core.config.mutants.is(Mutant::AcceptLossWhileDown);
        let has = |state: &CopyState| matches!(state, CopyState::Current { .. } | CopyState::Damaged);
        if !self.ios.contains_key(&io) {
            return;
        }
        if check.copies.values().any(has) || !check.exists || self.flusher.is_discarding(index) {
            return self.part_done(core, io, Err(VolumeError::NotLost), false);
        }
        let proven =
            check.copies.values().all(|state| *state == CopyState::Lost) && check.may_hold.is_empty();
        if !(proven || force || careless) || core.view().up_set(object).is_empty() {
            return self.part_done(core, io, Err(VolumeError::MayComeBack), false);
        }
        self.create_zeros(core, Some(io), index);
    }
}
