//! Drives a store over a virtual disk and compares it with a simple model.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

pub mod crash;
pub mod cuts;
pub mod script;

use bytes::Bytes;
use sheep_store::*;
use sheep_types::{
    BLOCK_SIZE, Birth, ClusterId, Epoch, Generation, Geometry, NodeId, ObjectId, Version, Vid,
};
use std::collections::{BTreeMap, VecDeque};

pub const BLOCK: usize = BLOCK_SIZE as usize;
/// Blocks of the small objects used here.
pub const BLOCKS: u32 = 16;
pub const CAPACITY: u64 = 16 << 20;

/// A small generator, so that a seed says everything.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

pub fn identity() -> StoreIdentity {
    StoreIdentity { cluster: ClusterId(77), node: NodeId(5), store: 0x1234_5678 }
}

pub fn geometry() -> Geometry {
    Geometry::with_object_size(BLOCKS * BLOCK_SIZE).unwrap()
}

pub fn config() -> StoreConfig {
    // A log so small that it wraps and is checkpointed again and again, and room for the map of one object.
    StoreConfig {
        map_cache: 100,
        log_bytes: 32 * BLOCK as u64,
        batch_bytes: 1024,
        ..StoreConfig::small(geometry(), CAPACITY)
    }
}

pub fn object(n: u32) -> ObjectId {
    ObjectId::data(Vid(3), n)
}

pub fn header(n: u32, sequence: u64) -> Header {
    let version = Version { generation: Generation(9), sequence };
    Header {
        id: object(n),
        birth: Birth(4),
        version,
        validated: Epoch(sequence % 7),
        pending: sequence % 2 == 1,
    }
}

pub fn payload(tags: &[u64]) -> Bytes {
    tags.iter().flat_map(|tag| tag.to_le_bytes().repeat(BLOCK / 8)).collect::<Vec<u8>>().into()
}

pub fn data(tags: &[u64]) -> Body {
    let payload = payload(tags);
    let crcs = payload.chunks(BLOCK).map(crc32c::crc32c).collect();
    Body::Data { payload, crcs }
}

/// Blocks that are lost, with the checksums of these contents.
pub fn lost(tags: &[u64]) -> Body {
    let Body::Data { crcs, .. } = data(tags) else { panic!() };
    Body::Lost { crcs }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    Absent,
    Zero,
    Data(u64),
    /// With the checksum that it should have.
    Lost(u32),
}

/// What a store should hold.
pub type Model = BTreeMap<ObjectId, (Header, Vec<Cell>)>;

pub fn apply(model: &mut Model, op: &Op) {
    let empty = || vec![Cell::Absent; BLOCKS as usize];
    let put = |cells: &mut [Cell], offset: u32, body: &Body| {
        let first = offset as usize / BLOCK;
        for i in 0..body.len() / BLOCK {
            cells[first + i] = match body {
                Body::Zero { .. } => Cell::Zero,
                Body::Lost { crcs } => Cell::Lost(crcs[i]),
                Body::Data { payload, .. } => {
                    Cell::Data(u64::from_le_bytes(payload[i * BLOCK..i * BLOCK + 8].try_into().unwrap()))
                }
            };
        }
    };
    match op {
        Op::Write { header, create, offset, body } => {
            if *create {
                model.insert(header.id, (*header, empty()));
            }
            if let Some((h, cells)) = model.get_mut(&header.id) {
                *h = *header;
                put(cells, *offset, body);
            }
        }
        Op::SetHeader { header } => {
            if let Some((h, _)) = model.get_mut(&header.id) {
                *h = *header;
            }
        }
        Op::Replace { header, pieces } => {
            let mut cells = empty();
            pieces.iter().for_each(|p| put(&mut cells, p.offset, &p.body));
            model.insert(header.id, (*header, cells));
        }
        Op::Patch { header, pieces } => {
            if let Some((h, cells)) = model.get_mut(&header.id) {
                *h = *header;
                pieces.iter().for_each(|p| put(cells, p.offset, &p.body));
            }
        }
        Op::CloneBlocks { from, header } => {
            if let Some((_, cells)) = model.get(from).cloned() {
                model.insert(header.id, (*header, cells));
            }
        }
        Op::Delete { object } => drop(model.remove(object)),
        _ => {}
    }
}

/// A random change of one of a few objects.
pub fn random_op(rng: &mut Rng, objects: u32, sequence: u64) -> Op {
    let n = rng.below(u64::from(objects)) as u32;
    let head = header(n, sequence);
    let start = rng.below(u64::from(BLOCKS)) as u32;
    let len = 1 + rng.below(u64::from((BLOCKS - start).min(5))) as u32;
    let tags: Vec<u64> = (0..len).map(|i| (sequence << 8) | u64::from(i)).collect();
    let offset = start * BLOCK_SIZE;
    match rng.below(24) {
        22 | 23 => {
            let piece = Piece { offset, body: lost(&tags) };
            Op::Patch { header: head, pieces: vec![piece] }
        }
        20 | 21 => Op::Patch { header: head, pieces: random_pieces(rng, sequence) },
        0..=9 => Op::Write { header: head, create: false, offset, body: data(&tags) },
        10..=12 => Op::Write { header: head, create: true, offset, body: data(&tags) },
        13 => Op::Write {
            header: head,
            create: rng.one_in(3),
            offset,
            body: Body::Zero { len: len * BLOCK_SIZE },
        },
        14 => Op::SetHeader { header: head },
        15 => {
            let zero = Piece { offset: 0, body: Body::Zero { len: BLOCK_SIZE } };
            let body = data(&tags);
            let pieces = if start == 0 { vec![] } else { vec![zero, Piece { offset, body }] };
            Op::Replace { header: head, pieces }
        }
        16 | 17 => Op::CloneBlocks { from: object(rng.below(u64::from(objects)) as u32), header: head },
        18 => Op::Delete { object: object(n) },
        _ => {
            let tags: Vec<u64> = (0..u64::from(BLOCKS)).map(|i| (sequence << 8) | i).collect();
            Op::Write { header: head, create: true, offset: 0, body: data(&tags) }
        }
    }
}

/// Some ranges of an object, in order, with and without gaps.
fn random_pieces(rng: &mut Rng, sequence: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = rng.below(4) as u32;
    while at < BLOCKS {
        let len = 1 + rng.below(u64::from((BLOCKS - at).min(3))) as u32;
        let tags: Vec<u64> = (at..at + len).map(|i| (sequence << 8) | 0x80 | u64::from(i)).collect();
        let body = if rng.one_in(3) { Body::Zero { len: len * BLOCK_SIZE } } else { data(&tags) };
        pieces.push(Piece { offset: at * BLOCK_SIZE, body });
        at += len + rng.below(6) as u32;
    }
    pieces
}

/// A store on a disk, with the operations that are under way on it.
pub struct Bench {
    pub store: Store,
    pub disk: VirtualDisk,
    pub under_way: VecDeque<DiskOpId>,
    pub events: Vec<Event>,
    next_token: u64,
}

impl Bench {
    pub fn open(disk: VirtualDisk, config: StoreConfig, format_new: bool) -> Self {
        let store = Store::open(config, identity(), format_new);
        let mut bench = Self { store, disk, under_way: VecDeque::new(), events: vec![], next_token: 1 };
        bench.collect();
        bench
    }

    /// A new store, ready.
    pub fn new(config: StoreConfig) -> Self {
        let mut bench = Self::open(VirtualDisk::new(CAPACITY), config, true);
        bench.settle();
        assert_eq!(std::mem::take(&mut bench.events), [Event::Ready]);
        bench
    }

    /// Stops the store without warning and opens it again after a power cut.
    pub fn reopen(mut self, config: StoreConfig, seed: u64) -> Self {
        self.disk.crash_seeded(seed);
        let mut bench = Self::open(self.disk, config, false);
        bench.settle();
        assert_eq!(bench.events.remove(0), Event::Ready);
        bench
    }

    /// Takes the events over.
    pub fn collect(&mut self) {
        while let Some(event) = self.store.poll_event() {
            self.events.push(event);
        }
    }

    /// Takes new disk operations over.
    pub fn begin_all(&mut self) {
        while let Some(op) = self.store.poll_disk() {
            self.under_way.push_back(op.id);
            self.disk.begin(op);
        }
    }

    /// Begins the next operation; `false` if there is none.
    pub fn begin_one(&mut self) -> bool {
        let Some(op) = self.store.poll_disk() else { return false };
        self.under_way.push_back(op.id);
        self.disk.begin(op);
        true
    }

    /// Finishes one of the operations under way; `false` if there is none.
    pub fn finish_one(&mut self, which: usize) -> bool {
        if self.under_way.is_empty() {
            return false;
        }
        let id = self.under_way.remove(which % self.under_way.len()).unwrap();
        let result = self.disk.finish(id).unwrap();
        self.store.handle_disk(id, result);
        self.collect();
        true
    }

    /// Until nothing moves.
    pub fn settle(&mut self) {
        loop {
            self.begin_all();
            if !self.finish_one(0) {
                return;
            }
        }
    }

    pub fn submit(&mut self, op: Op) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.store.submit(token, op);
        self.collect();
        token
    }

    /// Result of an operation, if it is there; takes it.
    pub fn result(&mut self, token: u64) -> Option<Result<Outcome, StoreError>> {
        let is_it = |e: &Event| matches!(e, Event::Done { token: t, .. } if *t == token);
        let i = self.events.iter().position(is_it)?;
        match self.events.remove(i) {
            Event::Done { result, .. } => Some(result),
            _ => None,
        }
    }

    /// Does one thing to the end.
    pub fn run(&mut self, op: Op) -> Result<Outcome, StoreError> {
        let token = self.submit(op);
        self.settle();
        self.result(token).expect("no answer")
    }

    /// Does one thing that must work.
    pub fn ok(&mut self, op: Op) {
        assert_eq!(self.run(op), Ok(Outcome::Done));
    }

    pub fn flush(&mut self) {
        self.ok(Op::Flush);
    }

    pub fn read(&mut self, n: u32, first: u32, blocks: u32) -> Result<Vec<Cell>, StoreError> {
        let op = Op::Read { object: object(n), offset: first * BLOCK_SIZE, len: blocks * BLOCK_SIZE };
        match self.run(op)? {
            Outcome::Read(result) => Ok(cells(&result, first * BLOCK_SIZE)),
            other => panic!("{other:?}"),
        }
    }

    /// All blocks of an object with lost ones; `None` if others are bad.
    pub fn salvage(&mut self, n: u32) -> Option<Vec<Cell>> {
        let op = Op::Salvage { object: object(n), offset: 0, len: BLOCKS * BLOCK_SIZE };
        let Ok(Outcome::Read(result)) = self.run(op) else { return None };
        let damaged = result.extents.iter().any(|extent| extent.state == BlockState::Damaged);
        let lost = result.extents.iter().any(|extent| extent.state == BlockState::Lost);
        (lost && !damaged).then(|| cells(&result, 0))
    }

    /// Everything the store holds.
    pub fn contents(&mut self) -> Result<Model, StoreError> {
        let headers: Vec<Header> = self.store.objects(ObjectId(0)).copied().collect();
        let mut model = Model::new();
        for h in headers {
            let cells = match self.read(h.id.index(), 0, BLOCKS) {
                Err(bad @ StoreError::Corrupt { .. }) => self.salvage(h.id.index()).ok_or(bad)?,
                found => found?,
            };
            model.insert(h.id, (h, cells));
        }
        Ok(model)
    }
}

/// Cells of a read result, which is checked on the way.
pub fn cells(result: &ReadResult, mut at: u32) -> Vec<Cell> {
    let mut out = Vec::new();
    let (mut data, mut crcs) = (result.data.iter(), result.crcs.iter());
    for extent in &result.extents {
        assert_eq!(extent.offset, at, "gap between extents");
        at += extent.len;
        match extent.state {
            BlockState::Absent => out.extend(vec![Cell::Absent; extent.len as usize / BLOCK]),
            BlockState::Zero => out.extend(vec![Cell::Zero; extent.len as usize / BLOCK]),
            BlockState::Lost => {
                let blocks = extent.len as usize / BLOCK;
                out.extend(crcs.by_ref().take(blocks).map(|crc| Cell::Lost(*crc)));
            }
            BlockState::Damaged => panic!("damaged"),
            BlockState::Data => {
                let bytes = data.next().expect("data for each extent");
                assert_eq!(bytes.len(), extent.len as usize);
                for block in bytes.chunks(BLOCK) {
                    assert_eq!(crc32c::crc32c(block), *crcs.next().unwrap());
                    let tag = u64::from_le_bytes(block[..8].try_into().unwrap());
                    assert!(block.chunks(8).all(|c| c == tag.to_le_bytes()), "mixed block");
                    out.push(Cell::Data(tag));
                }
            }
        }
    }
    assert!(data.next().is_none() && crcs.next().is_none());
    out
}
