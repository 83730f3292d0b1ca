//! Counts what 4 KiB writes cost on real files, for the store and for a journal with data in place.
//!
//! `format_experiment DIR DEVICE`: DIR is on a filesystem of its own on DEVICE (a loop device will do: its counters
//! then count nothing else; with a name that is none only what the store asks for is counted). The shape is that of a large store scaled down: the log is 1/1024 of the capacity, the
//! checksum cache holds one page for eight objects, and every block has been overwritten at random before counting.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use bytes::Bytes;
use sheep_store::*;
use sheep_types::{BLOCK_SIZE, Birth, Epoch, Generation, Geometry, ObjectId, Version, Vid};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const BLOCK: usize = BLOCK_SIZE as usize;
const CAPACITY: u64 = 1 << 30;
/// Blocks of the volume: three quarters of the capacity.
const BLOCKS: u64 = CAPACITY / 4096 * 3 / 4;
const LOG_BYTES: u64 = CAPACITY / 1024;

/// What is compared: 4 KiB writes to numbered blocks of one volume.
trait Format {
    fn write(&mut self, block: u64, payload: Bytes);
    fn flush(&mut self);
    /// (writes, bytes, syncs) handed to the system so far.
    fn counts(&self) -> (u64, u64, u64);
}

#[derive(Default)]
struct Counts {
    reads: u64,
    writes: u64,
    bytes: u64,
    syncs: u64,
}

// ---- The store.

struct Cow {
    store: Store,
    file: File,
    token: u64,
    sequence: u64,
    counts: Counts,
}

impl Cow {
    fn new(dir: &Path) -> Self {
        Self::open(open(&dir.join("blocks")), true)
    }

    fn open(file: File, format: bool) -> Self {
        let mut config = StoreConfig::new(Geometry::default(), CAPACITY);
        config.log_bytes = LOG_BYTES;
        // As many as a store of a terabyte would have.
        config.page_cache = (BLOCKS / 1024 / 8) as usize;
        config.map_cache = config.map_cache * BLOCKS / (1 << 28);
        let store = Store::open(config, StoreIdentity::default(), format);
        let mut cow = Self { store, file, token: 0, sequence: 0, counts: Counts::default() };
        cow.pump();
        cow
    }

    fn pump(&mut self) {
        while let Some(op) = self.store.poll_disk() {
            let result = match op.kind {
                DiskOpKind::Open { .. } => Ok(DiskDone::Opened),
                DiskOpKind::Read { offset, len, .. } => {
                    self.counts.reads += 1;
                    let mut bytes = vec![0; len as usize];
                    let mut at = 0;
                    while at < bytes.len() {
                        match self.file.read_at(&mut bytes[at..], offset + at as u64).unwrap() {
                            0 => break,
                            n => at += n,
                        }
                    }
                    Ok(DiskDone::Read(bytes.into()))
                }
                DiskOpKind::Write { offset, data, .. } => {
                    let all = data.concat();
                    self.file.write_all_at(&all, offset).unwrap();
                    self.counts.writes += 1;
                    self.counts.bytes += all.len() as u64;
                    Ok(DiskDone::Done)
                }
                DiskOpKind::Sync { .. } => {
                    self.file.sync_data().unwrap();
                    self.counts.syncs += 1;
                    Ok(DiskDone::Done)
                }
                _ => Ok(DiskDone::Done),
            };
            self.store.handle_disk(op.id, result);
        }
        while let Some(event) = self.store.poll_event() {
            assert!(!matches!(event, Event::Failed(_) | Event::Done { result: Err(_), .. }), "{event:?}");
        }
    }

    fn submit(&mut self, op: Op) {
        self.token += 1;
        self.store.submit(self.token, op);
    }
}

impl Format for Cow {
    fn write(&mut self, block: u64, payload: Bytes) {
        self.sequence += 1;
        let id = ObjectId::data(Vid(1), (block / 1024) as u32);
        let version = Version { generation: Generation(1), sequence: self.sequence };
        let header = Header { id, birth: Birth(1), version, validated: Epoch(1), pending: false };
        let crcs = payload.chunks(BLOCK).map(crc32c::crc32c).collect();
        let (create, offset) = (self.store.header(id).is_none(), (block % 1024) as u32 * BLOCK_SIZE);
        self.submit(Op::Write { header, create, offset, body: Body::Data { payload, crcs } });
        // Without waiting for the disk, so that what adjoins is joined; but not without bound.
        if self.token.is_multiple_of(32) {
            self.pump();
        }
    }

    fn flush(&mut self) {
        self.submit(Op::Flush);
        self.pump();
    }

    fn counts(&self) -> (u64, u64, u64) {
        (self.counts.writes, self.counts.bytes, self.counts.syncs)
    }
}

// ---- A journal, with data in place.

/// Only what costs: batches with data in a ring; when it is half full, data and checksums go to their places.
struct Journal {
    file: File,
    journal_blocks: u64,
    at: u64,
    used: u64,
    batch: Vec<(u64, Bytes)>,
    dirty: BTreeMap<u64, Bytes>,
    counts: Counts,
}

impl Journal {
    fn new(dir: &Path, journal_bytes: u64) -> Self {
        let file = open(&dir.join("in-place"));
        let (batch, dirty, counts) = (Vec::new(), BTreeMap::new(), Counts::default());
        Self { file, journal_blocks: journal_bytes / 4096, at: 0, used: 0, batch, dirty, counts }
    }

    fn put(&mut self, bytes: &[u8], block: u64) {
        self.file.write_all_at(bytes, block * 4096).unwrap();
        self.counts.writes += 1;
        self.counts.bytes += bytes.len() as u64;
    }

    fn sync(&mut self) {
        self.file.sync_data().unwrap();
        self.counts.syncs += 1;
    }

    fn commit(&mut self, sync: bool) {
        if self.batch.is_empty() {
            return;
        }
        // One block of header for up to 100 records, then the data.
        let mut bytes = vec![7; BLOCK * self.batch.len().div_ceil(100)];
        for (block, payload) in std::mem::take(&mut self.batch) {
            bytes.extend_from_slice(&payload);
            self.dirty.insert(block, payload);
        }
        let blocks = (bytes.len() / BLOCK) as u64;
        if self.at + blocks > self.journal_blocks {
            self.at = 0;
        }
        self.put(&bytes, self.at);
        self.at += blocks;
        self.used += blocks;
        if sync {
            self.sync();
        }
        if self.used > self.journal_blocks / 2 {
            self.apply();
        }
    }

    fn apply(&mut self) {
        self.sync();
        let dirty = std::mem::take(&mut self.dirty);
        let objects: std::collections::BTreeSet<u64> = dirty.keys().map(|block| block / 1024).collect();
        for (block, payload) in dirty {
            self.put(&payload, self.journal_blocks + BLOCKS / 1024 + block);
        }
        // The checksums of an object are a block, written in place: 512-byte sectors are its atoms.
        for object in objects {
            self.put(&[9; BLOCK], self.journal_blocks + object);
        }
        self.sync();
        self.used = 0;
    }
}

impl Format for Journal {
    fn write(&mut self, block: u64, payload: Bytes) {
        for (i, part) in payload.chunks(BLOCK).enumerate() {
            self.batch.push((block + i as u64, payload.slice_ref(part)));
        }
        if self.batch.len() >= 100 {
            self.commit(false);
        }
    }

    fn flush(&mut self) {
        self.commit(true);
    }

    fn counts(&self) -> (u64, u64, u64) {
        (self.counts.writes, self.counts.bytes, self.counts.syncs)
    }
}

// ---- Counting.

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

/// Writes finished and bytes written by the device.
fn device(name: &str) -> (u64, u64) {
    let Ok(stat) = std::fs::read_to_string(format!("/sys/block/{name}/stat")) else { return (0, 0) };
    let fields: Vec<u64> = stat.split_whitespace().map(|f| f.parse().unwrap()).collect();
    (fields[4], fields[6] * 512)
}

struct Random(u64);

impl Random {
    fn block(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % BLOCKS
    }
}

fn payload(seed: u64, blocks: usize) -> Bytes {
    (0..blocks * BLOCK / 8).flat_map(|i| (seed ^ i as u64).to_le_bytes()).collect::<Vec<u8>>().into()
}

/// One row: `count` writes of `blocks` blocks, a flush after every `per_flush` of them (0: only at the end).
fn measure(format: &mut dyn Format, disk: &str, name: &str, (count, blocks, per_flush): (u64, usize, u64)) {
    let mut random = Random(count + per_flush);
    let (before, device_before) = (format.counts(), device(disk));
    let start = std::time::Instant::now();
    for i in 1..=count {
        let block = if blocks == 1 { random.block() } else { i * blocks as u64 % BLOCKS / 1024 * 1024 };
        format.write(block, payload(i, blocks));
        if per_flush > 0 && i.is_multiple_of(per_flush) {
            format.flush();
        }
    }
    format.flush();
    let seconds = start.elapsed().as_secs_f64();
    let (after, device_after) = (format.counts(), device(disk));
    let unit = (count * blocks as u64) as f64;
    let per = |now: u64, then: u64| (now - then) as f64 / unit;
    println!(
        "| {name} | {:.2} | {:.3} | {:.2} | {:.3} | {:.3} | {:.0} |",
        per(after.1, before.1) / 4096.0,
        per(after.0, before.0),
        per(device_after.1, device_before.1) / 4096.0,
        per(device_after.0, device_before.0),
        per(after.2, before.2),
        count as f64 / seconds,
    );
}

fn run(format: &mut dyn Format, disk: &str, title: &str) {
    println!("\n{title}\n");
    println!("| per 4 KiB | bytes/4096 | writes | device bytes/4096 | device writes | syncs | requests/s |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    measure(format, disk, "4 MiB sequential, first time", (BLOCKS / 1024, 1024, 0));
    // Every block is overwritten at random about twice before the rest is counted.
    measure(format, disk, "4 KiB random, not flushed", (BLOCKS * 2, 1, 0));
    measure(format, disk, "4 KiB random, not flushed, again", (BLOCKS, 1, 0));
    measure(format, disk, "4 KiB random, QD32, flushed", (65_536, 1, 32));
    measure(format, disk, "4 KiB random, QD1, flushed", (4096, 1, 1));
    measure(format, disk, "4 MiB sequential, over scattered data", (BLOCKS / 1024, 1024, 0));
}

/// Blocks of a large request: 1 MiB.
const LARGE: u64 = 256;

fn read_all(cow: &mut Cow, name: &str) {
    let before = cow.counts.reads;
    for start in (0..BLOCKS).step_by(LARGE as usize) {
        let object = ObjectId::data(Vid(1), (start / 1024) as u32);
        let offset = (start % 1024) as u32 * BLOCK_SIZE;
        cow.submit(Op::Read { object, offset, len: LARGE as u32 * BLOCK_SIZE });
        cow.pump();
    }
    let per_mib = (cow.counts.reads - before) as f64 / (BLOCKS / LARGE) as f64;
    println!("| 1 MiB reads, {name} | {per_mib:.1} | |");
}

fn memory(cow: &Cow) -> String {
    let per_tib = cow.store.index_bytes() as f64 / (BLOCKS * 4096) as f64 * (1u64 << 40) as f64;
    format!("{:.3} GB of index per TiB of data", per_tib / 1e9)
}

/// Opens the store again, and says what that took.
fn start_up(dir: &Path, cow: Cow) -> Cow {
    let running = memory(&cow);
    drop(cow);
    let file = OpenOptions::new().read(true).write(true).open(dir.join("blocks")).unwrap();
    let start = std::time::Instant::now();
    let cow = Cow::open(file, false);
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    let (objects, reads) = (cow.store.usage().objects, cow.counts.reads);
    println!(
        "| start-up of {objects} objects: {reads} reads, {ms:.0} ms, {}; before: {running} | | |",
        memory(&cow)
    );
    cow
}

/// Large requests after every block was overwritten at random about twice: disk operations per MiB.
fn large(dir: &Path) {
    println!(
        "\nLarge requests after random overwriting\n\n| | disk operations per MiB | blocks written per block |\n|---|---:|---:|"
    );
    let mut cow = Cow::new(dir);
    let mut random = Random(7);
    for start in (0..BLOCKS).step_by(1024) {
        cow.write(start, payload(start, 1024));
    }
    cow.flush();
    read_all(&mut cow, "written in order");
    cow = start_up(dir, cow);
    for i in 0..2 * BLOCKS {
        cow.write(random.block(), payload(i, 1));
        if i.is_multiple_of(32) {
            cow.flush();
        }
    }
    cow.flush();
    read_all(&mut cow, "overwritten at random");
    cow = start_up(dir, cow);
    // All of it once, in the order of a generator with this period.
    let requests = BLOCKS / LARGE;
    for part in 0..8 {
        let before = cow.counts();
        let part = part * requests / 8..(part + 1) * requests / 8;
        let count = part.end - part.start;
        for i in part.clone() {
            cow.write(i * 365 % requests * LARGE, payload(i, LARGE as usize));
            cow.flush();
        }
        let after = cow.counts();
        let (ops, blocks) = (after.0 - before.0, (after.1 - before.1) / 4096);
        let (per_mib, per_block) = (ops as f64 / count as f64, blocks as f64 / (count * LARGE) as f64);
        println!(
            "| 1 MiB writes, flushed, {} to {} MiB | {per_mib:.1} | {per_block:.2} |",
            part.start, part.end
        );
    }
    read_all(&mut cow, "overwritten by 1 MiB");
    drop(cow);
    std::fs::remove_file(dir.join("blocks")).unwrap();
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("directory"));
    let disk = args.next().expect("name of the block device");
    println!("capacity {} MiB, volume {} MiB, log {} KiB", CAPACITY >> 20, BLOCKS >> 8, LOG_BYTES >> 10);
    large(&dir);
    let mut cow = Cow::new(&dir);
    run(&mut cow, &disk, "Copy-on-write with a metadata log (this store)");
    println!("\n{:?} {:?}", cow.store.usage(), cow.store.stats());
    drop(cow);
    std::fs::remove_file(dir.join("blocks")).unwrap();
    if std::env::args().any(|arg| arg == "--store-only") {
        return;
    }
    run(&mut Journal::new(&dir, LOG_BYTES), &disk, "Journal and in place, journal of the same size");
    std::fs::remove_file(dir.join("in-place")).unwrap();
    run(
        &mut Journal::new(&dir, CAPACITY / 16),
        &disk,
        "Journal and in place, journal of 1/16 of the capacity",
    );
    std::fs::remove_file(dir.join("in-place")).unwrap();
}
