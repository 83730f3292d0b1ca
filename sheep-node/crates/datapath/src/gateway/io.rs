//! Client operations: cut at object boundaries, completed to whole blocks, put together again.

use super::OpenMode;
use super::api::{BlockExtent, ReadExtent, VolumeError, VolumeOp, VolumeReply};
use super::check::Purpose;
use super::read::{ReadOwner, ReadPiece, Target};
use super::shared::Core;
use super::snapshot::{Still, StillFor};
use super::volume::{Phase, Volume};
use bytes::{Bytes, BytesMut};
use sheep_state::{Guard, SnapshotItem, WhenUnavailable};
use sheep_types::{BLOCK_SIZE, SECTOR_SIZE, Time};
use std::time::Duration;

/// Objects that one status answer looks at.
const STATUS_OBJECTS: u64 = 4096;

/// A client operation under way.
#[derive(Debug)]
pub(super) struct Io {
    pub(super) kind: IoKind,
    /// Parts not done.
    pub(super) left: usize,
    pub(super) error: Option<VolumeError>,
    /// Must be durable before it is answered.
    pub(super) fua: bool,
    /// A part of it is durable only after a flush (its object is new).
    pub(super) needs_flush: bool,
    since: Time,
}

#[derive(Debug)]
pub(super) enum IoKind {
    /// Contents by part.
    Read {
        parts: Vec<Vec<ReadExtent>>,
    },
    Change,
    Check,
    Flush,
    Status {
        offset: u64,
        len: u64,
        req_one: bool,
    },
}

/// What happens to a range of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// New contents.
    Data(Bytes),
    /// Whole blocks become zeros; nothing to do where there is no object.
    Zero,
    /// The whole object goes.
    Discard,
}

/// The part of a changing operation that falls into one object.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) id: u64,
    pub(super) io: u64,
    pub(super) index: u32,
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) action: Action,
    /// Nothing to do where there is no object.
    pub(super) only_existing: bool,
    /// First and last block, where the range covers them partly: read before the write. `None` inside: under
    /// way.
    pub(super) edges: Vec<(u32, Option<Bytes>)>,
}

impl Piece {
    /// The range widened to whole blocks.
    pub(super) fn blocks(&self) -> (u32, u32) {
        (self.start / BLOCK_SIZE * BLOCK_SIZE, self.end.next_multiple_of(BLOCK_SIZE))
    }

    /// Offsets of the blocks that are covered partly.
    pub(super) fn partial_blocks(&self) -> Vec<u32> {
        let (first, end) = self.blocks();
        let mut partial = Vec::new();
        if self.start != first {
            partial.push(first);
        }
        let last = end - BLOCK_SIZE;
        if self.end != end && !partial.contains(&last) {
            partial.push(last);
        }
        partial
    }

    /// Whole blocks: the contents, in the blocks that were read.
    pub(super) fn compose(&self, data: &Bytes) -> Bytes {
        let (first, end) = self.blocks();
        if self.edges.is_empty() {
            return data.clone();
        }
        let mut whole = BytesMut::zeroed((end - first) as usize);
        for (offset, block) in &self.edges {
            let at = (offset - first) as usize;
            let block = block.as_deref().unwrap_or_default();
            whole[at..at + block.len()].copy_from_slice(block);
        }
        let at = (self.start - first) as usize;
        whole[at..at + data.len()].copy_from_slice(data);
        whole.freeze()
    }
}

impl Volume {
    /// Takes an operation.
    pub(super) fn submit(&mut self, core: &mut Core, io: u64, op: VolumeOp) {
        if let Err(error) = self.check(core, &op) {
            return self.answer(core, io, Err(error));
        }
        assert!(!self.ios.contains_key(&io), "number of an operation is in use");
        let since = core.now;
        self.fill.note_client(since);
        let change = |fua| Io { kind: IoKind::Change, left: 1, error: None, fua, needs_flush: false, since };
        let changes =
            matches!(op, VolumeOp::Write { .. } | VolumeOp::Discard { .. } | VolumeOp::WriteZeroes { .. });
        // While something else is under way a flush for all of it is cheaper than one for each.
        let flushes_next = changes && self.habit.changed() && self.ios.is_empty();
        let through = self.write_through || flushes_next;
        match op {
            VolumeOp::Read { offset, len } => self.submit_read(core, io, offset, len),
            VolumeOp::Write { offset, data, fua } => {
                self.ios.insert(io, change(fua || through));
                self.queue_data(io, offset, &data, false);
            }
            VolumeOp::Flush => {
                self.habit.flushed();
                if self.flusher.tells_of_loss() {
                    return self.answer(core, io, Err(VolumeError::Io));
                }
                self.ios.insert(io, Io { kind: IoKind::Flush, ..change(false) });
                self.flusher.wait(io);
                return self.again = true;
            }
            VolumeOp::Discard { offset, len, fua } => {
                self.ios.insert(io, change(fua || through));
                self.queue_discard(io, offset, len);
            }
            VolumeOp::WriteZeroes { offset, len, fua, no_hole, .. } => {
                self.ios.insert(io, change(fua || through));
                self.queue_zeroes(io, offset, len, no_hole);
            }
            VolumeOp::Snapshot { tag, attributes, created_unix_ms } => {
                let (vdi, guard) = (self.vdi, Guard::Held(self.generation));
                let item = SnapshotItem { vdi, guard, tag, attributes, created_unix_ms };
                self.ios.insert(io, Io { kind: IoKind::Check, ..change(false) });
                self.stills.push_back(Still::new(core.now, Some(io), StillFor::Snapshot(Box::new(item))));
                return self.again = true;
            }
            VolumeOp::Diff { offset, len, since } => {
                self.ios.insert(io, Io { kind: IoKind::Check, ..change(false) });
                return self.begin_diff(core, io, (offset, len), since);
            }
            VolumeOp::Check { map, index } => {
                self.ios.insert(io, Io { kind: IoKind::Check, ..change(false) });
                self.add_query(io, (map, index), Purpose::Look);
                return self.again = true;
            }
            VolumeOp::AcceptLoss { index, force } => {
                self.ios.insert(io, change(true));
                self.add_query(io, (false, index), Purpose::GiveUp { force });
                return self.again = true;
            }
            VolumeOp::BlockStatus { offset, len, req_one } => {
                self.ios.insert(io, Io { kind: IoKind::Status { offset, len, req_one }, ..change(false) });
                return self.again = true;
            }
        }
        // The operation itself counted as one part while it was cut.
        self.part_done(core, io, Ok(()), false);
        self.again = true;
    }

    fn check(&self, core: &Core, op: &VolumeOp) -> Result<(), VolumeError> {
        match self.phase {
            Phase::Serving => {}
            Phase::Failed => return Err(VolumeError::Lost),
            _ => return Err(VolumeError::ShuttingDown),
        }
        let (offset, len, changes, most) = match *op {
            VolumeOp::Read { offset, len } => (offset, u64::from(len), false, core.config.request_bytes),
            VolumeOp::Write { offset, ref data, .. } => {
                (offset, data.len() as u64, true, core.config.request_bytes)
            }
            VolumeOp::Flush | VolumeOp::Check { .. } => return Ok(()),
            VolumeOp::Snapshot { .. } => {
                return if self.mode == OpenMode::Read { Err(VolumeError::NotPermitted) } else { Ok(()) };
            }
            VolumeOp::AcceptLoss { index, .. } => (
                u64::from(index) * u64::from(self.geometry.object_size()),
                u64::from(SECTOR_SIZE),
                true,
                u64::MAX,
            ),
            VolumeOp::Discard { offset, len, .. } | VolumeOp::WriteZeroes { offset, len, .. } => {
                (offset, len, true, core.config.range_bytes)
            }
            VolumeOp::BlockStatus { offset, len, .. } | VolumeOp::Diff { offset, len, .. } => {
                (offset, len, false, u64::MAX)
            }
        };
        if changes && self.mode == OpenMode::Read {
            return Err(VolumeError::NotPermitted);
        }
        let sector = u64::from(SECTOR_SIZE);
        if !offset.is_multiple_of(sector) || !len.is_multiple_of(sector) || len == 0 || len > most {
            return Err(VolumeError::Invalid);
        }
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(if changes { VolumeError::NoSpace } else { VolumeError::Invalid });
        }
        match op {
            VolumeOp::WriteZeroes { no_hole: true, fast_zero: true, .. } => Err(VolumeError::NotSupported),
            _ => Ok(()),
        }
    }

    /// Cuts a range at object boundaries: object, and range within it.
    pub(super) fn cut(&self, offset: u64, len: u64) -> impl Iterator<Item = (u32, u32, u32)> + use<> {
        let geometry = self.geometry;
        let size = u64::from(geometry.object_size());
        let (first, end) = (offset / size, offset + len);
        (first..end.div_ceil(size)).map(move |index| {
            let start = offset.max(index * size) - index * size;
            let stop = end.min((index + 1) * size) - index * size;
            (index as u32, start as u32, stop as u32)
        })
    }

    fn submit_read(&mut self, core: &mut Core, io: u64, offset: u64, len: u32) {
        let mut parts = Vec::new();
        for (index, start, end) in self.cut(offset, u64::from(len)) {
            let owner = ReadOwner::Client { io, part: parts.len(), start, end };
            parts.push(Vec::new());
            let piece = ReadPiece::new(owner, Target::Data(index), (start, end), self.sequence);
            self.add_read(piece);
        }
        let left = parts.len() + 1;
        let kind = IoKind::Read { parts };
        let io_record = Io { kind, left, error: None, fua: false, needs_flush: false, since: core.now };
        self.ios.insert(io, io_record);
    }

    fn queue_piece(&mut self, io: u64, place: (u32, u32, u32), action: Action, only_existing: bool) {
        let (index, start, end) = place;
        let id = self.next_piece;
        self.next_piece += 1;
        if let Some(record) = self.ios.get_mut(&io) {
            record.left += 1;
        }
        self.queue.push_back(Piece { id, io, index, start, end, action, only_existing, edges: Vec::new() });
    }

    fn queue_data(&mut self, io: u64, offset: u64, data: &Bytes, only_existing: bool) {
        let mut at = 0;
        for place in self.cut(offset, data.len() as u64) {
            let len = (place.2 - place.1) as usize;
            self.queue_piece(io, place, Action::Data(data.slice(at..at + len)), only_existing);
            at += len;
        }
    }

    /// Whole objects go, whole blocks of others become zeros, the rest stays: it is a hint.
    fn queue_discard(&mut self, io: u64, offset: u64, len: u64) {
        for (index, start, end) in self.cut(offset, len) {
            let (first, last) = self.inner_blocks(index, start, end);
            if first == 0 && last >= self.object_end(index) {
                self.queue_piece(io, (index, 0, self.geometry.object_size()), Action::Discard, true);
            } else if first < last {
                self.queue_piece(io, (index, first, last), Action::Zero, true);
            }
        }
    }

    fn queue_zeroes(&mut self, io: u64, offset: u64, len: u64, no_hole: bool) {
        let size = self.geometry.object_size() as usize;
        let zeros = Bytes::from(vec![0; if no_hole { size } else { BLOCK_SIZE as usize }]);
        for (index, start, end) in self.cut(offset, len) {
            let (first, last) = self.inner_blocks(index, start, end);
            if no_hole || first >= last {
                // Without whole blocks the range is shorter than two blocks.
                let data = Bytes::from(vec![0; (end - start) as usize]);
                let data = if no_hole { zeros.slice(..(end - start) as usize) } else { data };
                self.queue_piece(io, (index, start, end), Action::Data(data), !no_hole);
                continue;
            }
            if start < first {
                let data = zeros.slice(..(first - start) as usize);
                self.queue_piece(io, (index, start, first), Action::Data(data), true);
            }
            self.queue_piece(io, (index, first, last), Action::Zero, true);
            if last < end {
                let data = zeros.slice(..(end - last) as usize);
                self.queue_piece(io, (index, last, end), Action::Data(data), true);
            }
        }
    }

    /// Whole blocks within a range; the last block of the volume is whole for this purpose.
    fn inner_blocks(&self, index: u32, start: u32, end: u32) -> (u32, u32) {
        let first = start.next_multiple_of(BLOCK_SIZE);
        let at_end = end >= self.object_end(index);
        let last = if at_end { end.next_multiple_of(BLOCK_SIZE) } else { end / BLOCK_SIZE * BLOCK_SIZE };
        (first, last)
    }

    /// Where the volume's part of an object ends.
    fn object_end(&self, index: u32) -> u32 {
        let size = u64::from(self.geometry.object_size());
        self.size.saturating_sub(u64::from(index) * size).min(size) as u32
    }

    /// A part of an operation is done.
    pub(super) fn part_done(
        &mut self,
        core: &mut Core,
        io: u64,
        result: Result<(), VolumeError>,
        needs_flush: bool,
    ) {
        let Some(record) = self.ios.get_mut(&io) else { return };
        record.left -= 1;
        record.error = record.error.or(result.err());
        record.needs_flush |= needs_flush;
        if record.left > 0 {
            return;
        }
        if record.error.is_none() && record.fua && record.needs_flush {
            record.left = 1;
            record.needs_flush = false;
            self.flusher.wait(io);
            self.again = true;
            return;
        }
        let Some(record) = self.ios.remove(&io) else { return };
        match record.kind {
            IoKind::Read { .. } => core.took(true, record.since),
            IoKind::Change if !record.fua => core.took(false, record.since),
            IoKind::Change | IoKind::Check | IoKind::Flush | IoKind::Status { .. } => {}
        }
        let result = match (record.error, record.kind) {
            (Some(error), _) => Err(error),
            (None, IoKind::Read { parts }) => Ok(VolumeReply::Read(parts.into_iter().flatten().collect())),
            (None, _) => Ok(VolumeReply::Done),
        };
        self.again = true;
        self.answer(core, io, result);
    }

    /// Answers status operations whose map blocks are there, and loads those that are not.
    pub(super) fn answer_statuses(&mut self, core: &mut Core) {
        let asked: Vec<(u64, u64, u64, bool)> = self
            .ios
            .iter()
            .filter_map(|(io, record)| match record.kind {
                IoKind::Status { offset, len, req_one } => Some((*io, offset, len, req_one)),
                _ => None,
            })
            .collect();
        for (io, offset, len, req_one) in asked {
            if let Some(result) = self.status(core, offset, len, req_one) {
                self.ios.remove(&io);
                self.again = true;
                self.answer(core, io, result.map(VolumeReply::BlockStatus));
            }
        }
    }

    fn status(
        &mut self,
        core: &Core,
        offset: u64,
        len: u64,
        req_one: bool,
    ) -> Option<Result<Vec<BlockExtent>, VolumeError>> {
        use super::read::Location;
        let size = u64::from(self.geometry.object_size());
        let len = len.min(STATUS_OBJECTS * size);
        let mut extents: Vec<BlockExtent> = Vec::new();
        for (index, start, end) in self.cut(offset, len) {
            let hole = match self.locate(core, index) {
                Location::Loading => return None,
                Location::Unreadable | Location::Unknown => return Some(Err(VolumeError::Io)),
                Location::Absent => true,
                Location::At(_) => false,
            };
            let part = u64::from(end - start);
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.len += part,
                Some(_) if req_one => break,
                _ => extents.push(BlockExtent { len: part, hole, zero: hole }),
            }
        }
        Some(Ok(extents))
    }

    fn patience(core: &Core) -> Option<Duration> {
        match core.view().state.settings().when_unavailable {
            WhenUnavailable::Wait => None,
            WhenUnavailable::ErrorAfter { ms } => Some(Duration::from_millis(ms)),
        }
    }

    /// When the oldest operation has waited as long as the settings allow.
    pub(super) fn expiry(&self, core: &Core) -> Option<Time> {
        let patience = Self::patience(core)?;
        self.ios.values().map(|record| record.since + patience).min()
    }

    /// Fails operations that have waited as long as the settings allow. Writes that have a version go on: copies
    /// must be equal in the end.
    pub(super) fn expire(&mut self, core: &mut Core) {
        let Some(patience) = Self::patience(core) else { return };
        let late = self.ios.iter().filter(|(_, record)| record.since + patience <= core.now);
        let late: Vec<u64> = late.map(|(io, _)| *io).collect();
        for io in late {
            self.ios.remove(&io);
            self.queue.retain(|piece| piece.io != io);
            self.drop_reads(core, io);
            self.flusher.forget(io);
            let failed =
                self.objects.values_mut().flat_map(|writes| writes.disown(io, VolumeError::Io)).collect();
            self.set_aside(core, failed);
            self.answer(core, io, Err(VolumeError::Io));
        }
    }
}
