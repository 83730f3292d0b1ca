//! Random operations and faults, checked against the oracle.

use crate::oracle::{Oracle, SECTOR};
use crate::world::{Net, Random, World, ms};
use bytes::Bytes;
use sheep_datapath::{GatewayOutput, ReadExtent, VolumeError, VolumeOp, VolumeReply};
use sheep_state::Settings;
use sheep_types::{NodeId, Time, VdiId};
use std::collections::BTreeMap;
use std::time::Duration;

const SIZE: u64 = 1 << 20;

#[derive(Debug)]
enum Open {
    Write { first: u64, count: u64, tag: u32, fua: bool },
    Read { first: u64, count: u64 },
    Flush,
}

struct Run {
    world: World,
    vdi: VdiId,
    oracle: Oracle,
    random: Random,
    node: u64,
    handle: u64,
    open: BTreeMap<u64, (Time, Open)>,
    next_tag: u32,
    seen: usize,
    done: [u64; 3],
}

impl Run {
    fn new(seed: u64) -> Self {
        let settings = Settings { write_buffer_bytes: 4 << 20, pending_limit: 8, ..Settings::default() };
        let mut world = World::new(4, settings, seed);
        let vdi = world.create(SIZE);
        world.view_delay_us = 3_000;
        let handle = world.open(100, vdi);
        world.net = Net { lose: 2, double: 3, delay_us: 2_000 };
        world.silent = (20, 50);
        let random = Random::new(seed + 1000);
        let (oracle, open) = (Oracle::default(), BTreeMap::new());
        Self { world, vdi, oracle, random, node: 100, handle, open, next_tag: 1, seen: 0, done: [0; 3] }
    }

    fn submit(&mut self) {
        let sectors = SIZE / SECTOR;
        let aligned = self.random.chance(60);
        let unit = if aligned { 8 } else { 1 };
        // Few places, so that operations meet.
        let first = self.random.below(sectors / 16 / unit) * unit + self.random.below(4) * (sectors / 4);
        let count = ((1 + self.random.below(20)) * unit).min(sectors - first);
        let now = self.world.now;
        let (op, open) = match self.random.below(100) {
            0..45 => {
                let tag = self.next_tag;
                self.next_tag += 1;
                let mut data = Vec::new();
                for _ in 0..count * SECTOR / 4 {
                    data.extend_from_slice(&tag.to_le_bytes());
                }
                let fua = self.random.chance(10);
                self.oracle.begin(first, count, tag, now);
                let op = VolumeOp::Write { offset: first * SECTOR, data: Bytes::from(data), fua };
                (op, Open::Write { first, count, tag, fua })
            }
            45..50 => {
                // Zeros are the tag 0 again: such a write is told apart by nothing, so it is checked by its own
                // tests; here it only stirs ranges that are written over at once.
                (VolumeOp::Flush, Open::Flush)
            }
            _ => {
                let op = VolumeOp::Read { offset: first * SECTOR, len: (count * SECTOR) as u32 };
                (op, Open::Read { first, count })
            }
        };
        let io = self.world.submit(self.node, self.handle, op);
        self.open.insert(io, (now, open));
    }

    /// Looks at what was answered.
    fn collect(&mut self) {
        let said: Vec<_> = self.world.said[self.seen..].to_vec();
        let lost = said.iter().find(|said| matches!(said, (_, GatewayOutput::Lost { .. })));
        assert!(
            lost.is_none(),
            "{lost:?} at {:?}, lock {:?}",
            self.world.now,
            self.world.state.vdi(self.vdi)
        );
        self.seen = self.world.said.len();
        for (_, output) in said {
            if let GatewayOutput::Done { io, result, .. } = output {
                self.check(io, result);
            }
        }
    }

    fn check(&mut self, io: u64, result: Result<VolumeReply, VolumeError>) {
        let Some((began, open)) = self.open.remove(&io) else { return };
        let now = self.world.now;
        match (open, result) {
            (Open::Write { first, count, tag, fua }, Ok(_)) => {
                self.done[0] += 1;
                self.oracle.end(first, count, tag, now, fua);
            }
            (Open::Flush, Ok(_)) => {
                self.done[1] += 1;
                self.oracle.flushed(began);
            }
            (Open::Read { first, count }, Ok(VolumeReply::Read(extents))) => {
                self.done[2] += 1;
                let mut sector = first;
                for extent in extents {
                    match extent {
                        ReadExtent::Hole(len) => {
                            for _ in 0..u64::from(len) / SECTOR {
                                self.oracle.check(sector, 0, began, now);
                                sector += 1;
                            }
                        }
                        ReadExtent::Data(data) => {
                            for bytes in data.chunks(SECTOR as usize) {
                                let tag = u32::from_le_bytes(bytes[..4].try_into().unwrap());
                                let torn = bytes.chunks(4).any(|word| word != tag.to_le_bytes());
                                assert!(!torn, "sector {sector} is torn");
                                self.oracle.check(sector, tag, began, now);
                                sector += 1;
                            }
                        }
                    }
                }
                assert_eq!(sector, first + count);
            }
            (open, result) => panic!("{open:?}: {result:?}"),
        }
    }

    fn wait(&mut self, what: &str, mut until: impl FnMut(&Self) -> bool) {
        for _ in 0..4000 {
            if until(self) {
                return;
            }
            self.world.run(ms(10));
            self.collect();
        }
        panic!("{what} never happened; open: {:?}", self.open)
    }

    /// Some storage nodes restart, one after another or all at once, and recovery does its work some time later.
    fn storage_fault(&mut self) {
        let count = if self.random.chance(25) { 4 } else { 1 };
        let first = 1 + self.random.below(4);
        let nodes: Vec<u64> = (0..count).map(|other| (first + other - 1) % 4 + 1).collect();
        if count == 4 {
            self.oracle.replicas_lost();
        }
        for node in &nodes {
            self.world.crash(*node);
        }
        let pause = self.random.below(300);
        self.world.run(ms(pause));
        self.collect();
        if count == 1 {
            self.world.recover();
        }
        for node in &nodes {
            self.world.start(*node);
        }
        let pause = self.random.below(100);
        self.world.run(ms(pause));
        self.world.recover();
        self.collect();
    }

    /// The gateway dies, and another node takes over; sometimes all power is lost with it.
    fn gateway_fault(&mut self) {
        let dead = self.world.gateways[&NodeId(self.node)].0;
        self.collect();
        self.world.kill_gateway(self.node);
        self.open.clear();
        self.oracle.gateway_lost();
        if self.random.chance(40) {
            self.oracle.replicas_lost();
            self.oracle.gateway_lost();
            for node in 1..=4 {
                self.world.crash(node);
            }
            for node in 1..=4 {
                self.world.start(node);
            }
            self.world.recover();
        }
        self.node = if self.node == 100 { 101 } else { 100 };
        let (node, vdi) = (self.node, self.vdi);
        // It may have been started just now, and knows of no volume yet.
        self.world.run(ms(5));
        self.handle = self.world.begin_open(node, vdi, sheep_datapath::OpenMode::Write);
        let handle = self.handle;
        self.wait("take-over", |run| run.world.opened(node, handle));
        // The dead one starts again, as another run.
        self.world.restart_gateway(dead.node.0, dead);
    }

    fn run(mut self, rounds: u64) -> [u64; 3] {
        for _ in 0..rounds {
            for _ in 0..1 + self.random.below(30) {
                self.submit();
                let pause = self.random.below(3_000);
                self.world.run(Duration::from_micros(pause));
                self.collect();
            }
            match self.random.below(10) {
                0..4 => self.storage_fault(),
                4 => self.gateway_fault(),
                _ => {}
            }
        }
        self.wait("an answer to everything", |run| run.open.is_empty());
        self.done
    }
}

#[test]
fn clients_read_what_a_disk_could_give_them() {
    let mut done = [0; 3];
    let seeds = std::env::var("GATEWAY_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    for seed in 0..seeds {
        println!("seed {seed}");
        let one = Run::new(seed).run(40);
        done.iter_mut().zip(one).for_each(|(all, one)| *all += one);
    }
    assert!(done.iter().all(|count| *count > 300), "{done:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (one, two) = (Run::new(77).run(10), Run::new(77).run(10));
    assert_eq!(one, two);
}
