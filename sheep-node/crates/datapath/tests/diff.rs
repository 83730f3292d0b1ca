//! Which blocks of a volume differ from its snapshots, with real replicas and stores, while nodes lose power and disks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what happened, for people")]

mod support;

use bytes::Bytes;
use core::time::Duration;
use sheep_datapath::{Difference, GatewayOutput, OpenMode, VolumeError, VolumeOp, VolumeReply};
use sheep_state::Outcome;
use sheep_types::{NodeId, VdiId};
use support::{BLOCK, Net};

const GATEWAY: NodeId = NodeId(101);
const OBJECTS: usize = 20;
const PER_OBJECT: usize = 16;
const BLOCKS: usize = OBJECTS * PER_OBJECT;

/// A volume that is open at a gateway without a store, and what every block of it and its snapshots holds.
struct World {
    net: Net,
    io: u64,
    now: Vec<u8>,
    shots: Vec<(VdiId, Vec<u8>)>,
    /// Blocks called different, and of these, such that are not.
    told: usize,
    needless: usize,
}

type Answer = Result<VolumeReply, VolumeError>;

impl World {
    fn new(seed: u64) -> Self {
        let mut net = Net::new(seed, 4, 1, 3, 1);
        let (vdi, _) = net.vdi("a", OBJECTS as u64);
        net.run_for(Duration::from_millis(50));
        let mut world = Self { net, io: 0, now: vec![0; BLOCKS], shots: Vec::new(), told: 0, needless: 0 };
        world.open(vdi);
        world
    }

    fn open(&mut self, vdi: VdiId) {
        let now = self.net.now;
        let shard = self.net.nodes.get_mut(&GATEWAY).unwrap().shard.as_mut().unwrap();
        shard.handle_lease(now, now + Duration::from_secs(100_000));
        shard.gateway().open(now, 1, vdi, OpenMode::Write);
        self.net.drain(GATEWAY);
        self.net.run_for(Duration::from_secs(2));
        assert!(self.net.said.iter().any(|(_, said)| matches!(said, GatewayOutput::Opened { .. })));
    }

    fn run(&mut self, op: VolumeOp) -> Answer {
        self.io += 1;
        let (now, io) = (self.net.now, self.io);
        let shard = self.net.nodes.get_mut(&GATEWAY).unwrap().shard.as_mut().unwrap();
        shard.gateway().submit(now, 1, io, op);
        self.net.drain(GATEWAY);
        for _ in 0..3000 {
            let said = self.net.said.iter();
            let done = said.rev().find_map(|(_, said)| match said {
                GatewayOutput::Done { io: done, result, .. } if *done == io => Some(result.clone()),
                _ => None,
            });
            if let Some(done) = done {
                return done;
            }
            self.net.run_for(Duration::from_millis(5));
        }
        panic!("not answered");
    }

    fn below(&mut self, bound: usize) -> usize {
        self.net.rng.below(bound as u64) as usize
    }

    fn change(&mut self) {
        let (start, tag) = (self.below(BLOCKS), 1 + self.below(4) as u8);
        let long = if self.below(5) == 0 { 2 * PER_OBJECT } else { 3 };
        let len = (1 + self.below(long)).min(BLOCKS - start);
        let (offset, bytes) = ((start * BLOCK) as u64, (len * BLOCK) as u64);
        let zeroes = self.below(5) == 0;
        let op = match zeroes {
            true => {
                VolumeOp::WriteZeroes { offset, len: bytes, fua: false, no_hole: false, fast_zero: false }
            }
            false => VolumeOp::Write { offset, data: Bytes::from(vec![tag; len * BLOCK]), fua: false },
        };
        assert_eq!(self.run(op), Ok(VolumeReply::Done));
        self.now[start..start + len].fill(if zeroes { 0 } else { tag });
    }

    fn snapshot(&mut self) {
        let tag = format!("t{}", self.shots.len());
        let op = VolumeOp::Snapshot { tag, attributes: Default::default(), created_unix_ms: 1 };
        let Ok(VolumeReply::Ordered(result)) = self.run(op) else { panic!("no snapshot") };
        let Ok(Outcome::Snapshots(made)) = *result else { panic!("{result:?}") };
        self.shots.push((made[0].vdi, self.now.clone()));
    }

    /// The volume in comparison with one of its snapshots, or with nothing.
    fn compare(&mut self) {
        let which = self.below(self.shots.len() + 1);
        let since = self.shots.get(which).map(|(vdi, _)| *vdi);
        let before = self.shots.get(which).map_or_else(|| vec![0; BLOCKS], |(_, before)| before.clone());
        let mut at = 0;
        while at < BLOCKS {
            let (offset, len) = ((at * BLOCK) as u64, ((BLOCKS - at) * BLOCK) as u64);
            let Ok(VolumeReply::Diff(extents)) = self.run(VolumeOp::Diff { offset, len, since }) else {
                panic!("no answer")
            };
            for extent in extents {
                let end = at + extent.len as usize / BLOCK;
                for block in at..end {
                    let (now, before) = (self.now[block], before[block]);
                    match extent.difference {
                        Difference::Same => assert_eq!(now, before, "block {block} since {since:?}"),
                        Difference::Zero => assert_eq!(now, 0, "block {block} since {since:?}"),
                        Difference::Data => {}
                    }
                    self.told += usize::from(extent.difference != Difference::Same);
                    self.needless += usize::from(extent.difference != Difference::Same && now == before);
                }
                at = end;
            }
        }
    }

    /// A node is lost, with its disk or without, and comes back after some changes.
    fn accident(&mut self) {
        let node = 1 + self.below(4) as u64;
        let seed = self.net.rng.next();
        self.net.crash(node, seed);
        self.net.install_without(&[node]);
        for _ in 0..self.below(5) {
            self.change();
            self.compare();
        }
        if self.below(2) == 0 {
            self.net.replace_disk(node);
        }
        self.net.restart(node);
        self.change();
        self.compare();
        self.net.run_for(Duration::from_secs(3));
    }
}

#[test]
fn whatever_happens_what_differs_is_told() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(4);
    let (mut told, mut needless) = (0, 0);
    for seed in 1..=seeds {
        let mut world = World::new(seed);
        for _ in 0..60 {
            match world.below(12) {
                0 | 1 => world.snapshot(),
                2 => world.accident(),
                3..=5 => world.compare(),
                _ => world.change(),
            }
        }
        told += world.told;
        needless += world.needless;
    }
    println!("{told} blocks different, {needless} of them needlessly");
    // Where nobody can be asked for a moment, whole objects are.
    assert!(told > 1000 && needless < told / 5, "{needless} of {told}");
}
