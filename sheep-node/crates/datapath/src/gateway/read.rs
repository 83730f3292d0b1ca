//! Reading a range of one object from one of its members.

use super::api::{ReadExtent, VolumeError};
use super::io::IoKind;
use super::map::{Entry, MapBlock};
use super::shared::{Core, Tag};
use super::volume::Volume;
use crate::Mutant;
use bytes::Bytes;
use sheep_types::{BLOCK_SIZE, Member, ObjectId, Time};
use sheep_wire::{ExtentState, ReadData, Refusal, Reply, Request};

/// What the contents are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOwner {
    /// A part of a client's read, and the range that was asked for.
    Client { io: u64, part: usize, start: u32, end: u32 },
    /// A block that a write covers partly.
    Edge { piece: u64 },
    /// The volume itself.
    Map(MapBlock),
}

/// Which object is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The one that the map names.
    Data(u32),
    /// A map object of the volume.
    Map(u32),
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
    /// In the volume's own object.
    Own,
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
    /// Contents that arrived, and the sequence of the last write in them.
    arrived: Option<(u64, Vec<ReadExtent>)>,
}

impl ReadPiece {
    pub(super) fn new(owner: ReadOwner, target: Target, range: (u32, u32), barrier: u64) -> Self {
        let start = range.0 / BLOCK_SIZE * BLOCK_SIZE;
        let end = range.1.next_multiple_of(BLOCK_SIZE);
        let (asked, misses, retry_at, rounds, arrived) = (false, Vec::new(), None, 0, None);
        Self { owner, target, start, end, barrier, asked, misses, retry_at, rounds, arrived }
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
    Deliver(Result<Vec<ReadExtent>, VolumeError>),
    Ask(ObjectId),
}

impl Volume {
    pub(super) fn add_read(&mut self, piece: ReadPiece) {
        let id = self.next_piece;
        self.next_piece += 1;
        self.reads.insert(id, piece);
    }

    /// Forgets the reads of an operation.
    pub(super) fn drop_reads(&mut self, core: &mut Core, io: u64) {
        let of_io = |owner: ReadOwner| matches!(owner, ReadOwner::Client { io: other, .. } if other == io);
        let ids: Vec<u64> =
            self.reads.iter().filter(|(_, piece)| of_io(piece.owner)).map(|(id, _)| *id).collect();
        for id in ids {
            self.reads.remove(&id);
            core.cancel_where(self.handle, |tag| *tag == Tag::Read { piece: id });
        }
    }

    /// Where a data object is; starts to load its map block if need be.
    pub(super) fn locate(&mut self, index: u32) -> Location {
        if self.pending.contains_key(&index) {
            return Location::Own;
        }
        match self.map.entry(index) {
            Ok(Entry::Absent) => Location::Absent,
            Ok(Entry::Owned(vid)) if vid == self.vid => Location::Own,
            Ok(Entry::Owned(_) | Entry::Unknown) => Location::Unknown,
            Err(block) if self.load(block) => Location::Loading,
            Err(_) => Location::Unreadable,
        }
    }

    /// Loads a map block; false if that has just failed.
    pub(super) fn load(&mut self, block: MapBlock) -> bool {
        if self.unreadable.contains(&block) {
            return false;
        }
        if self.loading.insert(block) {
            let range = (block.offset(), block.offset() + BLOCK_SIZE);
            let piece = ReadPiece::new(ReadOwner::Map(block), Target::Map(block.map), range, self.sequence);
            self.add_read(piece);
            self.again = true;
        }
        true
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
        match self.next_of_read(id, core.config.mutants.is(Mutant::ReadsUnanswered)) {
            Next::Wait => {}
            Next::Deliver(result) => {
                if let Some(piece) = self.reads.remove(&id) {
                    self.deliver(core, piece, result);
                }
            }
            Next::Ask(object) => self.ask_member(core, id, object),
        }
    }

    fn next_of_read(&mut self, id: u64, careless: bool) -> Next {
        let Some(piece) = self.reads.get_mut(&id) else { return Next::Wait };
        piece.retry_at = None;
        let (start, end) = (piece.start, piece.end);
        let object = match piece.target {
            Target::Map(map) => ObjectId::map(self.vid, map),
            Target::Data(index) => match self.locate(index) {
                Location::Loading => return Next::Wait,
                Location::Unreadable => return Next::Deliver(Err(VolumeError::Io)),
                Location::Unknown => return Next::Deliver(Err(VolumeError::NotSupported)),
                Location::Absent => return Next::Deliver(Ok(vec![ReadExtent::Hole(end - start)])),
                Location::Own => ObjectId::data(self.vid, index),
            },
        };
        let Some(piece) = self.reads.get_mut(&id) else { return Next::Wait };
        // What was read may be a write that not all members have: if they and this gateway died now, it might
        // never have been. It is told only when all have it.
        let upto = piece.arrived.as_ref().map_or(piece.barrier, |(sequence, _)| *sequence);
        if let Some(writes) = self.objects.get(&object) {
            if let Some(error) = writes.failed(start, end) {
                return Next::Deliver(Err(error));
            }
            if writes.unanswered(start, end, upto) && !careless {
                return Next::Wait;
            }
        }
        match piece.arrived.take() {
            Some((_, contents)) => Next::Deliver(Ok(contents)),
            None => Next::Ask(object),
        }
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
            let (start, end) = (piece.start, piece.end);
            let request = Request::Read { object, birth: self.birth, offset: start, len: end - start };
            self.call(core, Tag::Read { piece: id }, member, request);
            return;
        }
        let lost = |member: &Member| {
            piece.misses.iter().any(|(missed, miss)| missed == member && *miss == Miss::Never)
        };
        if !up.is_empty() && up.iter().all(lost) {
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
            Reply::Read(data) => match contents(&data, piece.start, piece.end, verify) {
                Some(extents) => {
                    let own = data.version.generation == generation;
                    piece.arrived = Some((if own { data.version.sequence } else { 0 }, extents));
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

    fn deliver(&mut self, core: &mut Core, piece: ReadPiece, result: Result<Vec<ReadExtent>, VolumeError>) {
        self.again = true;
        match piece.owner {
            ReadOwner::Client { io, part, start, end } => {
                let result = result.map(|contents| {
                    let wanted = trim(contents, start - piece.start, end - start);
                    if let Some(IoKind::Read { parts }) = self.ios.get_mut(&io).map(|io| &mut io.kind)
                        && let Some(slot) = parts.get_mut(part)
                    {
                        *slot = wanted;
                    }
                });
                self.part_done(core, io, result, false);
            }
            ReadOwner::Edge { piece: id } => self.edge_arrived(core, id, piece.start, result),
            ReadOwner::Map(block) => {
                self.loading.remove(&block);
                match result {
                    Ok(contents) => self.map.insert(block, &flatten(contents)),
                    Err(_) if core.config.mutants.is(Mutant::LostMapIsEmpty) => self.map.insert(block, &[]),
                    Err(_) => {
                        self.unreadable.insert(block);
                    }
                }
            }
        }
    }
}

/// Checks what a member sent against what was asked for: extents without gaps, buffers that fit them, checksums.
fn contents(data: &ReadData, start: u32, end: u32, verify: bool) -> Option<Vec<ReadExtent>> {
    let mut at = start;
    let mut buffers = data.data.iter();
    let mut crcs = data.crcs.iter();
    let mut found = Vec::with_capacity(data.extents.len());
    for extent in &data.extents {
        let next = at.checked_add(extent.len)?;
        if extent.offset != at || next > end || extent.len == 0 || !extent.len.is_multiple_of(BLOCK_SIZE) {
            return None;
        }
        at = next;
        if extent.state != ExtentState::Data {
            found.push(ReadExtent::Hole(extent.len));
            continue;
        }
        let buffer = buffers.next()?;
        if buffer.len() != extent.len as usize {
            return None;
        }
        for block in buffer.chunks(BLOCK_SIZE as usize) {
            let crc = crcs.next()?;
            if verify && crc32c::crc32c(block) != *crc {
                return None;
            }
        }
        found.push(ReadExtent::Data(buffer.clone()));
    }
    (at == end).then_some(found)
}

/// Cuts `len` bytes out of contents, after `skip` bytes.
fn trim(contents: Vec<ReadExtent>, skip: u32, len: u32) -> Vec<ReadExtent> {
    let (mut skip, mut left) = (skip as usize, len as usize);
    let mut wanted = Vec::with_capacity(contents.len());
    for extent in contents {
        let from = skip.min(extent.len());
        skip -= from;
        let take = (extent.len() - from).min(left);
        left -= take;
        if take > 0 {
            wanted.push(match extent {
                ReadExtent::Data(data) => ReadExtent::Data(data.slice(from..from + take)),
                ReadExtent::Hole(_) => ReadExtent::Hole(take as u32),
            });
        }
    }
    wanted
}

/// Contents in one buffer.
pub(super) fn flatten(contents: Vec<ReadExtent>) -> Bytes {
    if let [ReadExtent::Data(data)] = contents.as_slice() {
        return data.clone();
    }
    let mut whole = Vec::with_capacity(contents.iter().map(ReadExtent::len).sum());
    for extent in contents {
        match extent {
            ReadExtent::Data(data) => whole.extend_from_slice(&data),
            ReadExtent::Hole(len) => whole.resize(whole.len() + len as usize, 0),
        }
    }
    Bytes::from(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_types::Version;
    use sheep_wire::Extent;

    fn answer() -> ReadData {
        let block = Bytes::from(vec![7; 4096]);
        ReadData {
            version: Version::default(),
            extents: vec![
                Extent { offset: 4096, len: 8192, state: ExtentState::Zero },
                Extent { offset: 12288, len: 4096, state: ExtentState::Data },
            ],
            crcs: vec![crc32c::crc32c(&block)],
            data: vec![block],
        }
    }

    #[test]
    fn answers_must_cover_exactly_what_was_asked() {
        let good = contents(&answer(), 4096, 16384, true).unwrap();
        assert_eq!(flatten(good).len(), 12288);
        assert!(contents(&answer(), 4096, 20480, true).is_none(), "too short");
        assert!(contents(&answer(), 4096, 12288, true).is_none(), "too long");
        assert!(contents(&answer(), 0, 16384, true).is_none(), "elsewhere");
        let mut missing = answer();
        missing.data.clear();
        assert!(contents(&missing, 4096, 16384, true).is_none());
        let mut short = answer();
        short.data[0].truncate(100);
        assert!(contents(&short, 4096, 16384, true).is_none());
        let mut overflow = answer();
        overflow.extents[1].len = u32::MAX;
        assert!(contents(&overflow, 4096, 16384, true).is_none());
    }

    #[test]
    fn damage_on_the_way_is_found() {
        let mut damaged = answer();
        damaged.crcs[0] ^= 1;
        assert!(contents(&damaged, 4096, 16384, true).is_none());
        assert!(contents(&damaged, 4096, 16384, false).is_some(), "the own node's memory is believed");
    }

    #[test]
    fn sectors_are_cut_out_of_blocks() {
        let extents = vec![ReadExtent::Hole(4096), ReadExtent::Data(Bytes::from(vec![1; 4096]))];
        let cut = trim(extents, 3584, 1024);
        assert_eq!(cut, vec![ReadExtent::Hole(512), ReadExtent::Data(Bytes::from(vec![1; 512]))]);
    }
}
