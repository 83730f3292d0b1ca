//! Clients: each writes, reads, flushes and discards on a volume of its own, moves between nodes, and holds
//! every read against its oracle.

mod rival;
mod snapshots;

use crate::node::Node;
use crate::oracle::{Oracle, ReadTicket, Run, Tag};
use crate::world::{Event, World};
use bytes::{BufMut, Bytes, BytesMut};
use sheep_datapath::{
    GatewayOutput, LostReason, OpenError, OpenMode, ReadExtent, VolumeError, VolumeOp, VolumeReply,
};
use sheep_state::Refusal;
use sheep_types::{SECTOR_SIZE, VdiId};
use std::collections::BTreeMap;
use std::ops::Range;

/// An operation under way.
enum Pending {
    /// The last: it must be durable when it is answered.
    Write(Tag, Range<usize>, bool),
    Read(ReadTicket),
    Flush(Vec<Tag>),
    /// Which one, and what it makes durable.
    Snapshot(usize, Vec<Tag>),
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
    /// Name of the volume.
    pub name: String,
    /// The volume, once created.
    pub vdi: Option<VdiId>,
    /// Where it is open.
    pub place: Place,
    /// What it may contain.
    pub oracle: Oracle,
    /// Reads all of the volume now, and does nothing else.
    pub verifying: Option<usize>,
    handle: u64,
    pending: BTreeMap<u64, Pending>,
    opened_before: bool,
    clean: bool,
    /// How often it was opened.
    sessions: u64,
    /// Gateways given up that may still think they serve it.
    rivals: Vec<rival::Rival>,
    mode: OpenMode,
    snapshots: Vec<snapshots::Snapshot>,
    clone: Option<snapshots::Clone>,
}

impl Client {
    /// A client without a volume yet.
    pub fn new(number: usize, size: u64) -> Self {
        Self {
            name: format!("volume{number}"),
            vdi: None,
            place: Place::Away,
            oracle: Oracle::new(size),
            verifying: None,
            handle: 0,
            pending: BTreeMap::new(),
            opened_before: false,
            clean: true,
            sessions: 0,
            rivals: Vec::new(),
            mode: OpenMode::Write,
            snapshots: Vec::new(),
            clone: None,
        }
    }

    /// The node where the volume is open.
    pub fn is_at(&self) -> Option<usize> {
        match self.place {
            Place::Open(node) => Some(node),
            Place::Away | Place::Opening(_) | Place::Closing(_) => None,
        }
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
        if self.step_clone(number) {
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
        if self.clients[number].pending.len() >= self.options.depth {
            return;
        }
        if self.takes_snapshot(number) {
            return self.take_snapshot(number, node);
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
        let total = self.clients[number].oracle.len() as u64;
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
        if self.clients[number].oracle.is_busy(&sectors) {
            return;
        }
        let tag = self.clients[number].oracle.begin_write(sectors.clone(), zeros, false);
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
            sectors = sectors.start / 128 * 128..(sectors.start / 128 + 1) * 128;
        }
        if self.clients[number].oracle.is_busy(&sectors) {
            return;
        }
        let tag = self.clients[number].oracle.begin_write(sectors.clone(), true, true);
        let (offset, len) = bytes_of(&sectors);
        let op = VolumeOp::Discard { offset, len, fua: false };
        self.submit(number, node, Pending::Write(tag, sectors, false), op);
    }

    fn flush(&mut self, number: usize, node: usize) {
        let covered = self.clients[number].oracle.begin_flush();
        self.submit(number, node, Pending::Flush(covered), VolumeOp::Flush);
    }

    fn read(&mut self, number: usize, node: usize, sectors: Range<usize>) {
        let ticket = self.clients[number].oracle.begin_read(sectors.clone());
        let (offset, len) = bytes_of(&sectors);
        let op = VolumeOp::Read { offset, len: len as u32 };
        self.submit(number, node, Pending::Read(ticket), op);
    }

    /// Reads the whole volume piece by piece, several at once.
    fn verify_next(&mut self, number: usize, node: usize) {
        const PIECE: usize = 128;
        while self.clients[number].pending.len() < 8 {
            let Some(from) = self.clients[number].verifying else { return };
            let total = self.clients[number].oracle.len();
            if from >= total {
                return;
            }
            let to = (from + PIECE).min(total);
            self.clients[number].verifying = Some(to);
            self.read(number, node, from..to);
        }
    }

    /// A gateway says something about a volume.
    pub fn volume_output(&mut self, node: usize, output: GatewayOutput) {
        let Some(output) = self.rival_output(node, output) else { return };
        match output {
            GatewayOutput::Opened { handle, .. } => self.opened(node, handle),
            GatewayOutput::OpenFailed { handle, error } => self.open_failed(handle, &error),
            GatewayOutput::Done { handle, io, result } => self.done(node, handle, io, result),
            GatewayOutput::Lost { handle, reason } => {
                self.trace.say(self.now, &format!("node {node} loses a volume: {reason}"));
                if let Some(number) = self.client_of(handle) {
                    // Nothing damages disks here: what was answered, and is not durable, can be sent again.
                    if reason == LostReason::WritesMissing {
                        self.violate(format!("node {node} cannot send what client {number} wrote again"));
                    }
                    self.clients[number].clean = false;
                    self.close(number);
                }
            }
            GatewayOutput::Closed { handle } => {
                if let Some(number) = self.client_of(handle) {
                    self.clients[number].place = Place::Away;
                }
            }
            GatewayOutput::Resized { .. }
            | GatewayOutput::Send(_)
            | GatewayOutput::Propose { .. }
            | GatewayOutput::Report { .. } => {}
        }
    }

    fn client_of(&self, handle: u64) -> Option<usize> {
        let number = (handle % 64) as usize;
        (number < self.clients.len() && self.handle(number) == handle).then_some(number)
    }

    fn opened(&mut self, node: usize, handle: u64) {
        let Some(number) = self.client_of(handle) else { return };
        self.trace.say(self.now, &format!("client {number} has its volume open at node {node}"));
        // Holders that the new gateway's epoch does not have count as gone: of an object that no map names yet
        // nobody else can know. That is a crash of the writer, and loses no more than what was not flushed.
        let view = self.nodes[node].running.as_ref().and_then(|running| running.view.clone());
        let up = |n: &Node| view.as_ref().is_some_and(|view| view.state.is_up(n.member()));
        let runs: Vec<Option<u32>> =
            self.nodes.iter().map(|n| n.running.as_ref().filter(|_| up(n)).map(|_| n.run_number())).collect();
        let (given_up, up_in) = (&self.given_up, &self.up_in);
        let alive = |(index, run): Run| {
            runs[index] == Some(run) && !given_up.contains(&(index, u64::from(run / 1000)))
        };
        let excused = |holders: &[Run], since: u64| {
            up_in.iter().filter(|((_, epoch), _)| epoch.0 >= since).any(|(_, then)| {
                let was_up = |(index, run): &Run| then.contains(&(*index, u64::from(run / 1000)));
                let mut up = holders.iter().filter(|run| was_up(run)).peekable();
                up.peek().is_some() && up.all(|run| !alive(*run))
            })
        };
        let client = &mut self.clients[number];
        client.place = Place::Open(node);
        client.oracle.new_session(alive, excused);
        let taken_over = client.opened_before && !client.clean;
        client.opened_before = true;
        client.sessions += 1;
        client.clean = true;
        if taken_over {
            self.counts.take_overs += 1;
            self.taken_over();
        }
    }

    fn open_failed(&mut self, handle: u64, error: &OpenError) {
        let Some(number) = self.client_of(handle) else { return };
        self.clients[number].place = Place::Away;
        match error {
            OpenError::Refused(Refusal::Locked { .. } | _) | OpenError::LockEnded | OpenError::Closed => {}
            OpenError::NoSuchVdi => {}
            other => self.violate(format!("client {number} cannot open its volume: {other}")),
        }
    }

    fn done(&mut self, node: usize, handle: u64, io: u64, result: Result<VolumeReply, VolumeError>) {
        let Some(number) = self.client_of(handle) else { return };
        let Some(pending) = self.clients[number].pending.remove(&io) else {
            return self.violate(format!("operation {io} of client {number} is answered twice"));
        };
        match result {
            Ok(reply) => self.succeeded(number, node, pending, reply),
            Err(VolumeError::Lost | VolumeError::ShuttingDown) => self.failed(number, pending),
            // The only copies that were up then had rotted.
            Err(VolumeError::Io) if self.options.rot.any() && !self.healed => self.failed(number, pending),
            Err(error) => {
                self.violate(format!("operation of client {number} at node {node} failed: {error}"))
            }
        }
    }

    fn succeeded(&mut self, number: usize, node: usize, pending: Pending, reply: VolumeReply) {
        match (pending, reply) {
            (Pending::Write(tag, sectors, fua), _) => {
                let holders = self.holders(number, node, &sectors);
                if self.options.verbose {
                    let at = self.now as f64 / 1e9;
                    eprintln!(
                        "{at:>12.6} client {number} at {node}: write {tag} to {sectors:?} held by {holders:?}"
                    );
                }
                let view = self.nodes[node].running.as_ref().and_then(|running| running.view.as_ref());
                let epoch = view.map_or(0, |view| view.epoch().0);
                self.clients[number].oracle.end_write(tag, holders, epoch);
                if fua {
                    self.clients[number].oracle.end_flush(&[tag]);
                }
            }
            (Pending::Flush(covered), _) => {
                if self.options.verbose {
                    eprintln!(
                        "{:>12.6} client {number} at {node}: flushed {covered:?}",
                        self.now as f64 / 1e9
                    );
                }
                self.clients[number].oracle.end_flush(&covered);
            }
            (Pending::Read(ticket), VolumeReply::Read(extents)) => {
                self.counts.reads += 1;
                let checked =
                    tags(&extents).and_then(|shown| self.clients[number].oracle.end_read(&ticket, &shown));
                if let Err(problem) = checked {
                    self.violate(format!("client {number} at node {node}: {problem}"));
                }
            }
            (Pending::Snapshot(place, covered), VolumeReply::Ordered(result)) => {
                self.snapshot_ordered(number, (place, covered), &result);
            }
            (Pending::Snapshot(..), _) => self.violate("a snapshot was answered with something else".into()),
            (Pending::Read(_), _) => self.violate("a read was answered without contents".into()),
        }
    }

    fn failed(&mut self, number: usize, pending: Pending) {
        if let Pending::Write(tag, ..) = pending {
            self.clients[number].oracle.fail_write(tag);
        }
    }

    /// The process at a node is gone: clients there have no answers any more.
    pub fn clients_lose(&mut self, node: usize) {
        for number in 0..self.clients.len() {
            for tag in self.clients[number].lose_rivals(node) {
                self.clients[number].oracle.fail_write(tag);
            }
            let here = match self.clients[number].place {
                Place::Opening(at) | Place::Open(at) | Place::Closing(at) => at == node,
                Place::Away => false,
            };
            if here {
                self.clients[number].place = Place::Away;
                self.clients[number].handle += 1;
                self.clients[number].clean = false;
                for pending in core::mem::take(&mut self.clients[number].pending).into_values() {
                    self.failed(number, pending);
                }
                if self.clients[number].verifying.is_some() {
                    self.clients[number].verifying = Some(0);
                }
            }
        }
    }

    /// Runs that hold a write when it is acknowledged: those that every object of the range has in common.
    fn holders(&self, number: usize, node: usize, sectors: &Range<usize>) -> Vec<Run> {
        let view = self.nodes[node].running.as_ref().and_then(|running| running.view.clone());
        let (Some(view), Some(vdi)) = (view, self.clients[number].vdi) else { return Vec::new() };
        let Some(record) = view.state.vdi(vdi) else { return Vec::new() };
        let geometry = view.state.geometry();
        let (offset, len) = bytes_of(sectors);
        let (first, last) = (geometry.locate(offset).0, geometry.locate(offset + len - 1).0);
        let mut common: Option<Vec<Run>> = None;
        for index in first..=last {
            let object = sheep_types::ObjectId::data(record.vid, index);
            let runs: Vec<Run> = view
                .up_set(object)
                .iter()
                .filter_map(|m| {
                    let machine = self.nodes.iter().find(|n| n.id == m.node)?;
                    let same = m.incarnation.0 == machine.incarnation;
                    Some((machine.index, if same { self.holder(machine, &view) } else { u32::MAX }))
                })
                .collect();
            common = Some(match common {
                Some(before) => before.into_iter().filter(|run| runs.contains(run)).collect(),
                None => runs,
            });
        }
        common.unwrap_or_default()
    }
}
