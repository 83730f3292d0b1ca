//! A model replica: everything a real one must do for the gateway, in memory, at once.

use crate::world::{BLOCK, OBJECT};
use bytes::Bytes;
use sheep_datapath::View;
use sheep_types::{Birth, Epoch, Generation, Incarnation, Member, ObjectId, Version};
use sheep_wire::{
    Body, Compared, Confirmed, Extent, ExtentState, Header, HotObject, ReadData, Refusal, Reply, Request,
    Standing, StandingKind, WriteRequest,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A copy of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) birth: Birth,
    pub(crate) version: Version,
    pub(crate) pending: bool,
    /// Absent blocks are not listed.
    pub(crate) blocks: BTreeMap<u32, Bytes>,
}

#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) me: Member,
    pub(crate) view: Option<Arc<View>>,
    pub(crate) memory: BTreeMap<ObjectId, Copy>,
    pub(crate) disk: BTreeMap<ObjectId, Copy>,
    /// Copies that are current in the present epoch.
    pub(crate) current: BTreeMap<ObjectId, bool>,
    /// Per generation: what the holder confirmed.
    marks: BTreeMap<Generation, (Epoch, Confirmed)>,
    settled: Generation,
    /// Recovery was here since the epoch began: what is missing is nowhere.
    pub(crate) recovered: bool,
    /// Writes are refused, and why.
    pub(crate) full: bool,
    pub(crate) refusal: Refusal,
    /// Reads find damage.
    pub(crate) damaged: bool,
    pub(crate) requests: BTreeMap<&'static str, u64>,
}

/// What became of a request.
pub(crate) enum Handled {
    Reply(Reply),
    /// Not now: the view is behind, or an earlier write is missing.
    Later,
    Unanswered,
}

impl Replica {
    pub(crate) fn new(me: Member) -> Self {
        Self {
            me,
            view: None,
            memory: BTreeMap::new(),
            disk: BTreeMap::new(),
            current: BTreeMap::new(),
            marks: BTreeMap::new(),
            settled: Generation(0),
            recovered: true,
            full: false,
            refusal: Refusal::NoSpace,
            damaged: false,
            requests: BTreeMap::new(),
        }
    }

    /// A new run: only what was flushed is left, and nothing is current.
    pub(crate) fn restart(&mut self, incarnation: Incarnation) {
        self.me.incarnation = incarnation;
        self.view = None;
        self.memory = self.disk.clone();
        self.current.clear();
        self.marks.clear();
        self.settled = Generation(0);
        self.full = false;
        self.recovered = false;
    }

    /// A newer view: copies stay current while the node stays in their sets.
    pub(crate) fn set_view(&mut self, view: Arc<View>) {
        let present = &view;
        self.recovered &= self.view.as_ref().is_none_or(|known| known.epoch() == view.epoch());
        self.current.retain(|object, _| present.up_set(*object).contains(&self.me));
        self.view = Some(view);
    }

    pub(crate) fn is_current(&self, object: ObjectId) -> bool {
        self.current.contains_key(&object)
    }

    pub(crate) fn handle(&mut self, header: &Header, request: &Request, patience: bool) -> Handled {
        let Some(view) = self.view.clone() else { return Handled::Later };
        if header.to != self.me.incarnation {
            return Handled::Reply(Reply::Refused(Refusal::WrongIncarnation));
        }
        if header.epoch > view.epoch() || header.relies_on > view.index {
            return Handled::Later;
        }
        if header.epoch < view.epoch() {
            return Handled::Reply(Reply::Refused(Refusal::StaleEpoch(view.epoch())));
        }
        let (name, vid) = match request {
            Request::GiveWay => {
                *self.requests.entry("give way").or_default() += 1;
                return Handled::Unanswered;
            }
            Request::Write(write) => ("write", write.object.vid()),
            Request::Read { object, .. } => ("read", object.vid()),
            Request::Flush { vid } => ("flush", *vid),
            Request::Settle { vid, .. } => ("settle", *vid),
            Request::Settled { vid, .. } => ("settled", *vid),
            Request::Equalize { object, .. } => ("equalize", object.vid()),
            Request::Adopt { object, .. } => ("adopt", object.vid()),
            Request::Remove { object, .. } => ("remove", object.vid()),
            Request::ClearPending { objects } => ("clear", objects[0].vid()),
            Request::Standing { objects, .. } => ("standing", objects[0].vid()),
            Request::Compare { object, .. } => ("compare", object.vid()),
            other => panic!("a gateway does not send {other:?}"),
        };
        *self.requests.entry(name).or_default() += 1;
        if view.writable(vid) && view.generation(vid).unwrap_or(Generation(0)) != header.generation {
            return Handled::Reply(Reply::Refused(Refusal::StaleGeneration));
        }
        self.carry_out(header, request, patience)
    }

    fn carry_out(&mut self, header: &Header, request: &Request, patience: bool) -> Handled {
        Handled::Reply(match request {
            Request::Write(write) => return self.write(header, write, patience),
            Request::Read { object, offset, len, .. } => self.read(*object, *offset, *len),
            Request::Flush { .. } => {
                self.disk = self.memory.clone();
                Reply::Done
            }
            Request::Settle { vid, after } => {
                let listed = self.memory.iter().filter(|(object, copy)| {
                    object.vid() == *vid
                        && (copy.pending || self.is_hot(copy.version))
                        && Some(**object) > *after
                });
                let mut list: Vec<HotObject> = listed
                    .map(|(object, copy)| HotObject {
                        object: *object,
                        version: copy.version,
                        pending: copy.pending,
                        current: self.is_current(*object),
                    })
                    .collect();
                // Small pages, so that there are several.
                let more = list.len() > 3;
                list.truncate(3);
                Reply::Hot(list, more)
            }
            Request::Settled { .. } => {
                self.settled = header.generation;
                Reply::Done
            }
            Request::Standing { objects, .. } => {
                let standings = objects.iter().map(|object| self.standing(*object)).collect();
                Reply::Standings(standings)
            }
            Request::Compare { object, other, .. } => {
                self.compare(*object, other.map(|(vid, _)| object.of(vid)))
            }
            Request::Adopt { object, version } => match self.memory.get(object) {
                Some(copy) if copy.version == *version => {
                    self.current.insert(*object, true);
                    Reply::Done
                }
                _ => Reply::Refused(Refusal::OtherVersion),
            },
            Request::Remove { object, version, .. } => {
                if self.memory.get(object).is_some_and(|copy| copy.version <= *version) {
                    self.memory.remove(object);
                    self.current.remove(object);
                }
                Reply::Done
            }
            Request::ClearPending { objects } => {
                for object in objects {
                    if let Some(copy) = self.memory.get_mut(object) {
                        copy.pending = false;
                    }
                }
                Reply::Done
            }
            other => panic!("the world handles {other:?}"),
        })
    }

    /// Blocks of zeros are told as such, whoever wrote them.
    fn compare(&self, object: ObjectId, other: Option<ObjectId>) -> Reply {
        let mut copies = Vec::new();
        for id in [Some(object), other].into_iter().flatten() {
            let Some(copy) = self.memory.get(&id).filter(|_| self.is_current(id)) else {
                return Reply::Refused(Refusal::NotCurrent);
            };
            copies.push(copy);
        }
        let at = |copy: Option<&&Copy>, block: u32| copy.and_then(|copy| copy.blocks.get(&block).cloned());
        let state = |block: &Option<Bytes>| match block {
            None => ExtentState::Absent,
            Some(block) if block.iter().all(|byte| *byte == 0) => ExtentState::Zero,
            Some(_) => ExtentState::Data,
        };
        let one = |block| {
            let (one, other) = (at(copies.first(), block), at(copies.get(1), block));
            let same = state(&one) == ExtentState::Data && one == other;
            Compared { len: BLOCK as u32, state: state(&one), other: state(&other), same }
        };
        Reply::Compared((0..OBJECT as u32 / BLOCK as u32).map(one).collect())
    }

    fn standing(&self, object: ObjectId) -> Standing {
        let copy = self.memory.get(&object);
        let kind = match (copy, self.is_current(object)) {
            (Some(_), true) => StandingKind::Live,
            (Some(_), false) => StandingKind::Restarted,
            (None, _) if self.recovered => StandingKind::Never,
            (None, _) => StandingKind::Unknown,
        };
        Standing {
            kind,
            version: copy.map(|copy| copy.version),
            validated: Epoch(0),
            hot: false,
            wounded: false,
        }
    }

    fn is_hot(&self, version: Version) -> bool {
        let covered = self.marks.get(&version.generation).is_some_and(|mark| mark.1.covers(version.sequence));
        version.generation >= self.settled && !covered
    }

    fn write(&mut self, header: &Header, write: &WriteRequest, patience: bool) -> Handled {
        let refuse = |refusal| Handled::Reply(Reply::Refused(refusal));
        if let Body::Data { payload, crcs } = &write.body {
            let sums: Vec<u32> = payload.chunks(BLOCK).map(crc32c::crc32c).collect();
            assert_eq!(sums[..], crcs[..], "checksums fit the payload");
        }
        let generation = header.generation;
        let mark = (header.epoch, write.confirmed.clone());
        let known = self.marks.get(&generation);
        if known.is_none_or(|known| (known.0, known.1.upto) <= (mark.0, mark.1.upto)) {
            self.marks.insert(generation, mark);
        }
        let copy = self.memory.get(&write.object);
        let already = copy.is_some_and(|copy| {
            copy.version.generation == generation && copy.version.sequence >= write.version.sequence
        });
        if write.create && !already {
            if self.full {
                return refuse(self.refusal);
            }
            let blocks = match write.base.map(|base| write.object.of(base)) {
                None => BTreeMap::new(),
                Some(base) if self.is_current(base) => self.memory[&base].blocks.clone(),
                Some(_) if self.recovered => return refuse(Refusal::BaseLost),
                Some(_) => return refuse(Refusal::NotCurrent),
            };
            let copy = Copy { birth: write.birth, version: write.version, pending: true, blocks };
            self.memory.insert(write.object, copy);
            self.current.insert(write.object, true);
            return self.apply(write);
        }
        let Some(copy) = copy else {
            return Handled::Reply(match self.recovered {
                true => Reply::Behind(None),
                false => Reply::Refused(Refusal::NotCurrent),
            });
        };
        if !self.is_current(write.object) {
            return refuse(Refusal::NotCurrent);
        }
        if already {
            return Handled::Reply(self.done(write));
        }
        let own = copy.version.generation == generation;
        match write.previous {
            None => assert!(!own, "a write of this generation was made before: {write:?}"),
            Some(previous) if previous == copy.version => {}
            Some(previous) => {
                assert!(copy.version < previous, "chains are not forked: {write:?}");
                return if patience {
                    Handled::Later
                } else {
                    Handled::Reply(Reply::Behind(Some(copy.version)))
                };
            }
        }
        if self.full {
            return refuse(self.refusal);
        }
        self.apply(write)
    }

    fn apply(&mut self, write: &WriteRequest) -> Handled {
        let copy = self.memory.get_mut(&write.object).unwrap();
        copy.version = write.version;
        for block in 0..write.body.len() / BLOCK as u32 {
            let number = write.offset / BLOCK as u32 + block;
            let contents = match &write.body {
                Body::Data { payload, .. } => {
                    payload.slice(block as usize * BLOCK..(block as usize + 1) * BLOCK)
                }
                Body::Zero { .. } => Bytes::from(vec![0; BLOCK]),
            };
            copy.blocks.insert(number, contents);
        }
        Handled::Reply(self.done(write))
    }

    fn done(&mut self, write: &WriteRequest) -> Reply {
        if write.durable {
            // No more than was asked for: a real store may make other objects durable too.
            self.disk.insert(write.object, self.memory[&write.object].clone());
        }
        Reply::Done
    }

    fn read(&self, object: ObjectId, offset: u32, len: u32) -> Reply {
        let Some(copy) = self.memory.get(&object) else {
            return Reply::Refused(if self.recovered { Refusal::NoCopy } else { Refusal::NotCurrent });
        };
        if !self.is_current(object) {
            return Reply::Refused(Refusal::NotCurrent);
        }
        if self.damaged {
            return Reply::Refused(Refusal::Damaged);
        }
        let mut data = ReadData { version: copy.version, ..ReadData::default() };
        for number in offset / BLOCK as u32..(offset + len) / BLOCK as u32 {
            let block = copy.blocks.get(&number);
            let state = if block.is_some() { ExtentState::Data } else { ExtentState::Absent };
            data.extents.push(Extent { offset: number * BLOCK as u32, len: BLOCK as u32, state });
            if let Some(block) = block {
                data.data.push(block.clone());
                data.crcs.push(crc32c::crc32c(block));
            }
        }
        Reply::Read(data)
    }
}
