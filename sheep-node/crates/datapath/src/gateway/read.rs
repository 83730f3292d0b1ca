//! Reading a range of one object from one of its members.

use super::api::VolumeError;
use super::contents::{self, Found, flatten, overlay, shown};
use super::io::IoKind;
use super::map::{Entry, LayerBlock};
use super::object::ObjectWrites;
use super::shared::{Core, Tag};
use super::volume::Volume;
use crate::{Mutant, View};
use sheep_types::{BLOCK_SIZE, Member, ObjectId, Time, Vid};
use sheep_wire::{ExtentState, Refusal, Reply, Request};

/// What the contents are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOwner {
    /// A part of a client's read, and the range that was asked for.
    Client { io: u64, part: usize, start: u32, end: u32 },
    /// A block that a write covers partly.
    Edge { piece: u64, offset: u32 },
    /// The volume itself.
    Map(LayerBlock),
    /// The same for the map of another vid, which the volume is compared with.
    OldMap { vid: Vid, at: LayerBlock },
    /// A range of an object that lacks blocks, to fill it.
    Fill { index: u32 },
}

/// Which object is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The one that the map names.
    Data(u32),
    /// A map object.
    Map(ObjectId),
}

/// An object that has contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The vid whose object it is.
    pub(super) vid: Vid,
    /// The layer of the map that says where its absent blocks are; without, they are zeros.
    pub(super) below: Option<usize>,
}

/// Where the contents of a data object are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// The map block is being read.
    Loading,
    /// The map block cannot be read.
    Unreadable,
    /// Nowhere: zeros.
    Absent,
    /// In an object.
    At(Place),
    /// Somewhere that this version does not know.
    Unknown,
}

/// Why a member did not give the contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    /// It may later.
    Later,
    /// It never will: the object, or the contents, are not there any more.
    Never,
}

/// A range of whole blocks of one object being read.
#[derive(Debug)]
pub(super) struct ReadPiece {
    pub(super) owner: ReadOwner,
    target: Target,
    start: u32,
    end: u32,
    /// Writes up to this sequence come before the read.
    barrier: u64,
    asked: bool,
    misses: Vec<(Member, Miss)>,
    pub(super) retry_at: Option<Time>,
    rounds: u32,
    /// Where the object was that was asked for last.
    place: Option<Place>,
    /// Contents that arrived, and the sequence of the last write in them.
    arrived: Option<(u64, Vec<Found>)>,
    /// The layer of the map that is read through.
    layer: usize,
    /// What the objects above said, from which byte on, and what is asked of this one lies in it.
    above: Option<(u32, Vec<Found>)>,
    /// What was asked for, without the layers.
    range: (u32, u32),
    /// Whose object was asked first, and what it has; only to fill it.
    first: Option<(Vid, Vec<Found>)>,
}

impl ReadPiece {
    pub(super) fn new(owner: ReadOwner, target: Target, range: (u32, u32), barrier: u64) -> Self {
        let start = range.0 / BLOCK_SIZE * BLOCK_SIZE;
        let end = range.1.next_multiple_of(BLOCK_SIZE);
        Self {
            owner,
            target,
            start,
            end,
            barrier,
            asked: false,
            misses: Vec::new(),
            retry_at: None,
            rounds: 0,
            place: None,
            arrived: None,
            layer: 0,
            above: None,
            range: (start, end),
            first: None,
        }
    }

    /// The layers of the map have changed.
    fn begin_anew(&mut self) {
        (self.start, self.end) = self.range;
        (self.layer, self.above, self.first, self.arrived, self.place) = (0, None, None, None, None);
        self.restart();
    }

    /// Takes what an object holds; the contents, if they are complete. Otherwise the layer below is read next.
    fn take(&mut self, found: Vec<Found>, below: Option<usize>) -> Option<Vec<Found>> {
        let (from, whole) = match self.above.take() {
            Some((from, above)) => (from, overlay(above, self.start - from, &found)),
            None => (self.start, found),
        };
        let (Some(layer), Some((first, end))) = (below, contents::absent(&whole)) else { return Some(whole) };
        (self.start, self.end) = (from + first, from + end);
        self.layer = layer;
        self.above = Some((from, whole));
        self.restart();
        None
    }

    /// The request under way was cancelled.
    pub(super) fn restart(&mut self) {
        self.asked = false;
        self.misses.clear();
        self.retry_at = None;
    }
}

/// What the next step of a read is.
enum Next {
    Wait,
    Deliver(Result<Vec<Found>, VolumeError>),
    Ask(ObjectId),
}

/// Whether an object of a vid that takes the place of what an entry names lacks what it does not get by writes: it cannot
/// begin as a clone of an object of another lineage.
pub(super) fn makes_partial(view: &View, vid: Vid, entry: Entry) -> bool {
    match entry {
        Entry::Absent | Entry::Unknown => false,
        Entry::At { vid: other, partial } => partial || !view.are_related(other, vid),
    }
}

impl Volume {
    pub(super) fn add_read(&mut self, piece: ReadPiece) {
        let id = self.next_piece;
        self.next_piece += 1;
        self.reads.insert(id, piece);
    }

    /// Forgets the reads of an operation.
    pub(super) fn drop_reads(&mut self, core: &mut Core, io: u64) {
        let of_io = |owner| matches!(owner, ReadOwner::Client { io: other, .. } if other == io);
        self.drop_reads_for(core, of_io);
    }

    /// Forgets reads that are not wanted any more.
    pub(super) fn drop_reads_for(&mut self, core: &mut Core, is_meant: impl Fn(ReadOwner) -> bool) {
        let ids: Vec<u64> =
            self.reads.iter().filter(|(_, piece)| is_meant(piece.owner)).map(|(id, _)| *id).collect();
        for id in ids {
            self.reads.remove(&id);
            core.cancel_where(self.handle, |tag| *tag == Tag::Read { piece: id });
        }
    }

    /// Reads that have gone below the volume's own layer begin anew: what is there has moved up.
    pub(super) fn reads_begin_anew(&mut self, core: &mut Core) {
        let is_below =
            |piece: &ReadPiece| piece.layer > 0 || piece.place.is_some_and(|place| place.below.is_some());
        for (id, piece) in self.reads.iter_mut().filter(|(_, piece)| is_below(piece)) {
            piece.begin_anew();
            core.cancel_where(self.handle, |tag| *tag == Tag::Read { piece: *id });
        }
        self.again = true;
    }

    /// Where a data object of the volume is; starts to load its map block if need be.
    pub(super) fn locate(&mut self, core: &Core, index: u32) -> Location {
        self.locate_in(core, 0, index)
    }

    /// The same, as a layer of the map says.
    pub(super) fn locate_in(&mut self, core: &Core, layer: usize, index: u32) -> Location {
        let entry = match self.map.entry(layer, index) {
            Ok(entry) => entry,
            Err(block) if self.load(block) => return Location::Loading,
            Err(_) => return Location::Unreadable,
        };
        // The map does not say yet that the own object is there. While it cannot be made on some member, what it was to
        // take the place of is still there.
        if layer == 0 && self.pending.contains_key(&index) && !self.cannot_be_made(index) {
            let partial = makes_partial(&core.view(), self.vid, entry);
            return self.place(core, self.vid, partial);
        }
        match entry {
            Entry::Absent => Location::Absent,
            Entry::At { vid, partial } => self.place(core, vid, partial),
            Entry::Unknown => Location::Unknown,
        }
    }

    /// Whether an own object that is to take the place of another one failed to be made.
    fn cannot_be_made(&self, index: u32) -> bool {
        let own = self.objects.get(&ObjectId::data(self.vid, index));
        own.is_some_and(|writes| writes.fails_to_replace())
    }

    fn place(&self, core: &Core, vid: Vid, partial: bool) -> Location {
        if vid == self.vid && !partial {
            return Location::At(Place { vid, below: None });
        }
        let view = core.view();
        let Some(record) = view.vid(vid) else { return Location::Unknown };
        match self.map.below(record.lineage) {
            below @ Some(_) if partial => Location::At(Place { vid, below }),
            None if partial => Location::Unknown,
            _ => Location::At(Place { vid, below: None }),
        }
    }

    /// Loads a map block; false if that has just failed.
    pub(super) fn load(&mut self, at: LayerBlock) -> bool {
        if self.unreadable.contains(&at) {
            return false;
        }
        if self.loading.insert(at) {
            let block = at.block;
            // A layer asks only for blocks of map objects that there are.
            let vid = self.map.kept_by(at.layer, block.map).unwrap_or(self.vid);
            let range = (block.offset(), block.offset() + BLOCK_SIZE);
            let target = Target::Map(ObjectId::map(vid, block.map));
            self.add_read(ReadPiece::new(ReadOwner::Map(at), target, range, self.sequence));
            self.again = true;
        }
        true
    }

    /// What is being read of a map block is not wanted any more.
    pub(super) fn drop_load(&mut self, core: &mut Core, at: LayerBlock) {
        if self.loading.remove(&at) {
            self.drop_reads_for(core, |owner| owner == ReadOwner::Map(at));
        }
    }

    /// Carries on reads that are not waiting for an answer.
    pub(super) fn start_reads(&mut self, core: &mut Core) {
        let idle = |piece: &ReadPiece| !piece.asked && piece.retry_at.is_none_or(|at| at <= core.now);
        let ids: Vec<u64> = self.reads.iter().filter(|(_, piece)| idle(piece)).map(|(id, _)| *id).collect();
        for id in ids {
            self.step_read(core, id);
        }
    }

    fn step_read(&mut self, core: &mut Core, id: u64) {
        match self.next_of_read(core, id) {
            Next::Wait => {}
            Next::Deliver(result) => {
                if let Some(piece) = self.reads.remove(&id) {
                    self.deliver(core, piece, result);
                }
            }
            Next::Ask(object) => self.ask_member(core, id, object),
        }
    }

    fn next_of_read(&mut self, core: &Core, id: u64) -> Next {
        let Some(piece) = self.reads.get_mut(&id) else { return Next::Wait };
        piece.retry_at = None;
        let (layer, target) = (piece.layer, piece.target);
        let place = match target {
            Target::Map(object) => Place { vid: object.vid(), below: None },
            Target::Data(index) => match self.locate_in(core, layer, index) {
                Location::Loading => return Next::Wait,
                Location::Unreadable => return Next::Deliver(Err(VolumeError::Io)),
                Location::Unknown => return Next::Deliver(Err(VolumeError::NotSupported)),
                Location::At(place) => place,
                Location::Absent => {
                    let Some(piece) = self.reads.get_mut(&id) else { return Next::Wait };
                    let zeros = vec![Found::Zero(piece.end - piece.start)];
                    return piece.take(zeros, None).map_or(Next::Wait, |found| Next::Deliver(Ok(found)));
                }
            },
        };
        let object = match target {
            Target::Map(object) => object,
            Target::Data(index) => ObjectId::data(place.vid, index),
        };
        let Some(piece) = self.reads.get_mut(&id) else { return Next::Wait };
        // What was read may be a write that not all members have: if they and this gateway died now, it might
        // never have been. It is told only when all have it.
        let upto = piece.arrived.as_ref().map_or(piece.barrier, |(sequence, _)| *sequence);
        let careless = core.config.mutants.is(Mutant::ReadsUnanswered);
        // What failed to be written counts also where the object that was to have it could not be made.
        let written =
            if layer == 0 && matches!(target, Target::Data(_)) { object.of(self.vid) } else { object };
        if let Some(error) = self.objects.get(&written).and_then(|w| w.failed(piece.start, piece.end)) {
            return Next::Deliver(Err(error));
        }
        let unanswered = |writes: &ObjectWrites| writes.unanswered(piece.start, piece.end, upto);
        if self.objects.get(&object).is_some_and(unanswered) && !careless {
            return Next::Wait;
        }
        let below = piece.place.unwrap_or(place).below;
        if let Some((_, found)) = piece.arrived.take() {
            if matches!(piece.owner, ReadOwner::Fill { .. }) && piece.first.is_none() {
                // Whose object was asked, which may be another one by now.
                piece.first = Some((piece.place.unwrap_or(place).vid, found.clone()));
            }
            return match piece.take(found, below) {
                Some(found) => Next::Deliver(Ok(found)),
                // The layer below.
                None => self.next_of_read(core, id),
            };
        }
        // The object has become another one meanwhile: what was said of the former one does not count.
        if piece.place.replace(place).is_some_and(|before| before != place) {
            piece.misses.clear();
        }
        Next::Ask(object)
    }

    /// Asks the next member that can have the contents: the own node first, then others in turn.
    fn ask_member(&mut self, core: &mut Core, id: u64, object: ObjectId) {
        let placed = self.placed(core, object);
        let up = &placed.members;
        let Some(piece) = self.reads.get_mut(&id) else { return };
        let writes = self.objects.get(&object);
        let fresh =
            |member: &Member| writes.is_none_or(|writes| writes.is_fresh(*member, piece.start, piece.end));
        let untried = |member: &Member| piece.misses.iter().all(|(missed, _)| missed != member);
        let next: Vec<Member> =
            up.iter().copied().filter(|member| fresh(member) && untried(member)).collect();
        let own = next.iter().find(|member| member.node == core.me.node);
        let turn = usize::try_from(id).unwrap_or(0) % next.len().max(1);
        if let Some(member) = own.or(next.get(turn)).copied() {
            piece.asked = true;
            let (offset, len) = (piece.start, piece.end - piece.start);
            let birth = self.birth_of(core, object);
            self.call(core, Tag::Read { piece: id }, member, Request::Read { object, birth, offset, len });
            return;
        }
        let lost = |member: &Member| {
            piece.misses.iter().any(|(missed, miss)| missed == member && *miss == Miss::Never)
        };
        // Its entry in the map is going, and the object may be gone already.
        let going = matches!(piece.target, Target::Data(index) if self.flusher.is_discarding(index));
        if !up.is_empty() && up.iter().all(lost) && !going {
            if let Some(piece) = self.reads.remove(&id) {
                self.deliver(core, piece, Err(VolumeError::Io));
            }
            return;
        }
        // Nobody can serve it at the moment.
        piece.misses.clear();
        let wait = core.config.not_ready.saturating_mul(1 << piece.rounds.min(6)).min(core.config.retry_max);
        piece.rounds += 1;
        piece.retry_at = Some(core.now + wait);
    }

    pub(super) fn handle_read_reply(&mut self, core: &mut Core, id: u64, from: Member, reply: Reply) {
        let generation = self.generation;
        let Some(piece) = self.reads.get_mut(&id) else { return };
        piece.asked = false;
        piece.retry_at = None;
        let verify = from.node != core.me.node;
        let miss = match reply {
            // Nobody answers a client's read like that.
            Reply::Read(data) if data.extents.iter().any(|extent| extent.state == ExtentState::Lost) => {
                Miss::Never
            }
            Reply::Read(data) => match contents::check(&data, piece.start, piece.end, verify) {
                Some(found) => {
                    let own = data.version.generation == generation;
                    piece.arrived = Some((if own { data.version.sequence } else { 0 }, found));
                    return;
                }
                // Damaged on its way: what is there may be good.
                None => {
                    core.garbled += 1;
                    Miss::Later
                }
            },
            Reply::Refused(Refusal::NoCopy | Refusal::Damaged) => Miss::Never,
            _ => Miss::Later,
        };
        piece.misses.push((from, miss));
    }

    pub(super) fn read_timed_out(&mut self, id: u64, from: Member) {
        if let Some(piece) = self.reads.get_mut(&id) {
            piece.asked = false;
            piece.misses.push((from, Miss::Later));
        }
    }

    fn deliver(&mut self, core: &mut Core, piece: ReadPiece, result: Result<Vec<Found>, VolumeError>) {
        self.again = true;
        let asked = match piece.target {
            Target::Map(object) => Some(object.vid()),
            Target::Data(_) => None,
        };
        match piece.owner {
            ReadOwner::Client { io, part, start, end } => {
                let result = result.map(|found| {
                    let wanted = shown(&found, start % BLOCK_SIZE, end - start);
                    if let Some(IoKind::Read { parts }) = self.ios.get_mut(&io).map(|io| &mut io.kind)
                        && let Some(slot) = parts.get_mut(part)
                    {
                        *slot = wanted;
                    }
                });
                self.part_done(core, io, result, false);
            }
            ReadOwner::Edge { piece: id, offset } => self.edge_arrived(core, id, offset, result),
            ReadOwner::OldMap { vid, at } => self.old_map_arrived(vid, at, result),
            ReadOwner::Fill { index } => self.fill_arrived(core, index, piece.first, result),
            ReadOwner::Map(at) => {
                self.loading.remove(&at);
                // It may have been the map object of an older vid, and gone as soon as this volume has its own.
                let view = core.view();
                let ordered = view.vid(self.vid).and_then(|record| record.maps.get(&at.block.map).copied());
                let replaced =
                    at.layer == 0 && (self.map.kept_by(0, at.block.map) != asked || ordered != asked);
                match result.as_deref() {
                    Err(_) if replaced => {}
                    Ok([Found::Absent(_)]) => self.map.insert(at, None),
                    Ok(found) => self.map.insert(at, Some(&flatten(found))),
                    Err(_) if core.config.mutants.is(Mutant::LostMapIsEmpty) => self.map.insert(at, None),
                    Err(_) => {
                        self.unreadable.insert(at);
                    }
                }
            }
        }
    }
}
