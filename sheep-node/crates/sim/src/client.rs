//! Clients: each writes, reads, flushes and discards on a volume of its own, moves between nodes, and holds
//! every read against its oracle.

mod answers;
mod diff;
mod reader;
mod rival;
mod shrink;
mod snapshots;

use crate::oracle::{Oracle, ReadTicket, Tag};
use crate::world::{Event, World};
use bytes::{BufMut, Bytes, BytesMut};
use sheep_datapath::{OpenMode, ReadExtent, VolumeOp};
use sheep_types::{SECTOR_SIZE, VdiId};
use std::collections::BTreeMap;
use std::ops::Range;

/// An operation under way.
enum Pending {
    /// The last: it must be durable when it is answered.
    Write(Tag, Range<usize>, bool),
    Read(ReadTicket),
    Flush(Vec<Tag>),
    /// What it does to the tree, by number.
    Snapshot(u64),
    /// What differs from a snapshot.
    Diff(diff::Asked),
}

impl Pending {
    /// For people.
    fn told(&self) -> String {
        match self {
            Self::Write(tag, sectors, _) => format!("write {tag} to sectors {sectors:?}"),
            Self::Read(ticket) => format!("read of sectors {:?}", ticket.sectors()),
            Self::Flush(_) => "flush".into(),
            Self::Snapshot(_) => "snapshot".into(),
            Self::Diff(asked) => format!("comparison {asked:?}"),
        }
    }
}

/// Where a client is with its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Away,
    /// Opening it at a node.
    Opening(usize),
    /// Using it at a node.
    Open(usize),
    /// Closing it at a node.
    Closing(usize),
}

/// A client and its volume.
pub struct Client {
    /// The volume, if it has one.
    pub vdi: Option<VdiId>,
    /// Where it is open.
    pub place: Place,
    /// Reads all of the volume now, and does nothing else.
    pub verifying: Option<usize>,
    /// What it opens it for.
    pub mode: OpenMode,
    handle: u64,
    pending: BTreeMap<u64, Pending>,
    opened_before: bool,
    clean: bool,
    /// How often it was opened.
    sessions: u64,
    /// Gateways given up that may still think they serve it.
    rivals: Vec<rival::Rival>,
    /// It lets its volume go, to use another one.
    leaving: bool,
    /// It makes its volume smaller.
    shrink: Option<shrink::Shrink>,
    /// Of one that only reads: how much more.
    reads_left: u64,
    /// The session of the volume in which it began to read.
    reads_in: u64,
}

impl Client {
    /// A client without a volume yet.
    pub fn new(mode: OpenMode) -> Self {
        Self {
            vdi: None,
            place: Place::Away,
            verifying: None,
            mode,
            handle: 0,
            pending: BTreeMap::new(),
            opened_before: false,
            clean: true,
            sessions: 0,
            rivals: Vec::new(),
            leaving: false,
            shrink: None,
            reads_left: 0,
            reads_in: 0,
        }
    }

    /// The node where the volume is open.
    pub fn is_at(&self) -> Option<usize> {
        match self.place {
            Place::Open(node) => Some(node),
            Place::Away | Place::Opening(_) | Place::Closing(_) => None,
        }
    }

    /// Whether nothing is under way, neither with it nor with its volume.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.place, Place::Away | Place::Open(_)) && self.is_idle()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.rivals.is_empty()
    }
}

/// Contents of sectors that show a tag.
fn contents(tag: Tag, sectors: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(sectors * SECTOR_SIZE as usize);
    for _ in 0..sectors * (SECTOR_SIZE as usize / 8) {
        bytes.put_u64_le(tag);
    }
    bytes.freeze()
}

/// The tag that each sector shows.
fn tags(extents: &[ReadExtent]) -> Result<Vec<Tag>, String> {
    let mut shown = Vec::new();
    for extent in extents {
        match extent {
            ReadExtent::Hole(len) => shown.resize(shown.len() + (*len / SECTOR_SIZE) as usize, 0),
            ReadExtent::Data(data) => {
                for sector in data.chunks_exact(SECTOR_SIZE as usize) {
                    let (first, rest) = sector.split_at(8);
                    if !rest.chunks_exact(8).all(|word| word == first) {
                        return Err("a sector shows a mix of writes".into());
                    }
                    shown.push(first.try_into().map_or(0, u64::from_le_bytes));
                }
            }
        }
    }
    Ok(shown)
}

fn bytes_of(sectors: &Range<usize>) -> (u64, u64) {
    let size = u64::from(SECTOR_SIZE);
    (sectors.start as u64 * size, sectors.len() as u64 * size)
}

impl World {
    /// A client's turn.
    pub fn client_acts(&mut self, number: usize) {
        let think = self.options.think.as_nanos() as u64;
        let pause = self.rng.range(think / 4, think * 2);
        self.schedule(pause, Event::Client(number));
        self.use_rivals(number);
        self.orders(number);
        if self.clients[number].mode == OpenMode::Read {
            return self.reader_acts(number);
        }
        if self.changes_volume(number) {
            return;
        }
        match self.clients[number].place {
            // While all is verified the run decides where.
            Place::Away if self.clients[number].verifying.is_some() => {}
            Place::Away => self.open_somewhere(number),
            Place::Open(node) => self.operate(number, node),
            Place::Opening(_) | Place::Closing(_) => {}
        }
    }

    fn open_somewhere(&mut self, number: usize) {
        let Some(vdi) = self.clients[number].vdi else { return };
        let running: Vec<usize> = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].running.as_ref().is_some_and(|r| r.shard.is_some()))
            .filter(|n| !self.clients[number].has_rival(*n))
            .collect();
        let Some(&node) = self.rng.pick(&running) else { return };
        self.open_at(number, node, vdi);
    }

    /// Opens a client's volume at a node.
    pub fn open_at(&mut self, number: usize, node: usize, vdi: VdiId) {
        self.clients[number].handle += 1;
        self.clients[number].place = Place::Opening(node);
        let handle = self.handle(number);
        let at = self.nodes[node].clock(self.now);
        let mode = self.clients[number].mode;
        self.with_shard(node, |shard| shard.gateway().open(at, handle, vdi, mode));
    }

    /// What a client's volume may contain.
    pub(crate) fn oracle(&mut self, number: usize) -> &mut Oracle {
        let vdi = self.clients[number].vdi.expect("only who has a volume uses one");
        &mut self.tree.item(vdi).oracle
    }

    /// Closes a client's volume where it is open.
    pub fn close(&mut self, number: usize) {
        if let Place::Open(node) = self.clients[number].place {
            self.clients[number].place = Place::Closing(node);
            let (handle, at) = (self.handle(number), self.nodes[node].clock(self.now));
            self.with_shard(node, |shard| shard.gateway().close(at, handle));
        }
    }

    /// Handles name the client and its attempt.
    fn handle(&self, number: usize) -> u64 {
        self.clients[number].handle * 64 + number as u64
    }

    fn operate(&mut self, number: usize, node: usize) {
        if self.clients[number].verifying.is_some() {
            return self.verify_next(number, node);
        }
        if self.nodes[node].paused_until > self.now || self.gives_up(number, node) {
            return;
        }
        if self.shrinks(number, node) || self.clients[number].pending.len() >= self.options.depth {
            return;
        }
        if self.takes_snapshot() {
            return self.take_snapshot(number, node);
        }
        if self.compares() {
            return self.compare(number, node);
        }
        let work = self.options.work;
        let zeros = work.writes + work.zeros;
        let discards = zeros + work.discards;
        let flushes = discards + work.flushes;
        match self.rng.range(0, 99) {
            draw if draw < work.writes => self.write(number, node, false),
            draw if draw < zeros => self.write(number, node, true),
            draw if draw < discards => self.discard(number, node),
            draw if draw < flushes => self.flush(number, node),
            draw if draw == flushes => self.close(number),
            _ => {
                let sectors = self.some_sectors(number, 128);
                self.read(number, node, sectors);
            }
        }
    }

    /// A range, often small, often where others are, sometimes over the end of an object.
    fn some_sectors(&mut self, number: usize, most: u64) -> Range<usize> {
        let total = self.oracle(number).len() as u64;
        let aligned = self.rng.chance(600_000);
        let len = if self.rng.chance(700_000) { self.rng.range(1, 16) } else { self.rng.range(1, most) };
        let hot = if self.rng.chance(500_000) { total / 8 } else { total };
        let start = self.rng.range(0, hot - 1);
        let (start, len) = if aligned { (start / 8 * 8, len.next_multiple_of(8)) } else { (start, len) };
        let end = (start + len).min(total);
        start as usize..end as usize
    }

    fn submit(&mut self, number: usize, node: usize, pending: Pending, op: VolumeOp) {
        self.counts.ios += 1;
        let io = self.counts.ios * 64 + number as u64;
        self.clients[number].pending.insert(io, pending);
        let (handle, at) = (self.handle(number), self.nodes[node].clock(self.now));
        self.with_shard(node, |shard| shard.gateway().submit(at, handle, io, op));
    }

    fn write(&mut self, number: usize, node: usize, zeros: bool) {
        let sectors = self.some_sectors(number, 128);
        if self.oracle(number).is_busy(&sectors) {
            return;
        }
        let tag = self.oracle(number).begin_write(sectors.clone(), zeros, false);
        let (offset, len) = bytes_of(&sectors);
        let fua = self.rng.chance(self.options.work.fua);
        let op = if zeros {
            let no_hole = self.rng.chance(300_000);
            VolumeOp::WriteZeroes { offset, len, fua, no_hole, fast_zero: false }
        } else {
            VolumeOp::Write { offset, data: contents(tag, sectors.len()), fua }
        };
        self.submit(number, node, Pending::Write(tag, sectors, fua), op);
    }

    fn discard(&mut self, number: usize, node: usize) {
        // Often whole objects.
        let mut sectors = self.some_sectors(number, 256);
        if self.rng.chance(600_000) {
            let total = self.oracle(number).len();
            sectors = sectors.start / 128 * 128..((sectors.start / 128 + 1) * 128).min(total);
        }
        if self.oracle(number).is_busy(&sectors) {
            return;
        }
        let tag = self.oracle(number).begin_write(sectors.clone(), true, true);
        let (offset, len) = bytes_of(&sectors);
        let op = VolumeOp::Discard { offset, len, fua: false };
        self.submit(number, node, Pending::Write(tag, sectors, false), op);
    }

    fn flush(&mut self, number: usize, node: usize) {
        let covered = self.oracle(number).begin_flush();
        self.submit(number, node, Pending::Flush(covered), VolumeOp::Flush);
    }

    fn read(&mut self, number: usize, node: usize, sectors: Range<usize>) {
        let ticket = self.oracle(number).begin_read(sectors.clone());
        let (offset, len) = bytes_of(&sectors);
        let op = VolumeOp::Read { offset, len: len as u32 };
        self.submit(number, node, Pending::Read(ticket), op);
    }

    /// Reads the whole volume piece by piece, several at once.
    fn verify_next(&mut self, number: usize, node: usize) {
        const PIECE: usize = 128;
        while self.clients[number].pending.len() < 8 {
            let Some(from) = self.clients[number].verifying else { return };
            let total = self.oracle(number).len();
            if from >= total {
                return;
            }
            let to = (from + PIECE).min(total);
            self.clients[number].verifying = Some(to);
            self.read(number, node, from..to);
        }
    }
}
