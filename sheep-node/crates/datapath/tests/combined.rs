//! Gateways, replicas and recovery together: random work on one VDI under crashes, loss of power, partitions,
//! take-overs and new nodes, checked against a model of what a disk may answer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what happened, for people")]

mod support;

use bytes::Bytes;
use core::time::Duration;
use sheep_datapath::{GatewayOutput, Mutants, OpenMode, ReadExtent, VolumeError, VolumeOp, VolumeReply};
use sheep_state::Command;
use sheep_types::{NodeId, VdiId};
use std::collections::BTreeMap;
use support::{BLOCK, HAND, Net, Rng};

const BLOCKS: u64 = 256;

/// A write of a block, in order of submission.
#[derive(Clone, Copy, Debug)]
struct Write {
    /// Ascending with submission.
    id: u64,
    tag: u64,
    /// Storage crashes before it was acknowledged; `None` if it was not.
    acked: Option<u64>,
    flushed: bool,
}

/// What a block may hold: the newest write that cannot be lost, or any later one.
#[derive(Clone, Debug)]
struct Block {
    writes: Vec<Write>,
    /// An operation is under way that writes it.
    busy: bool,
    /// The present session has read or written it: what it then held stays.
    known: bool,
}

#[derive(Debug)]
enum Io {
    Read {
        first: u64,
        lows: Vec<u64>,
    },
    Write {
        first: u64,
        count: u64,
    },
    /// The newest write of each block that it covers.
    Flush(Vec<u64>),
}

#[derive(Debug)]
struct Session {
    node: u64,
    handle: u64,
    open: bool,
    closing: bool,
    ios: BTreeMap<u64, Io>,
}

#[derive(Debug, Default)]
struct Counts {
    reads: u64,
    writes: u64,
    flushes: u64,
    sessions: u64,
    crashes: u64,
    blackouts: u64,
    partitions: u64,
    lost: u64,
}

struct World {
    net: Net,
    rng: Rng,
    vdi: VdiId,
    storage: u64,
    blocks: Vec<Block>,
    session: Option<Session>,
    next_handle: u64,
    next_io: u64,
    next_tag: u64,
    crashes: u64,
    /// What happens to a node later, by time in ms.
    plans: BTreeMap<(u64, u64), Plan>,
    counts: Counts,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Plan {
    SayDown,
    Restart,
    Rejoin,
}

impl World {
    fn new(seed: u64, storage: u64, mutants: Mutants) -> Self {
        let mut net =
            Net::with_mutants(seed, storage, 3, 3.min(storage as u8), 2.min(storage as u8), mutants);
        let (vdi, _) = net.vdi("disk", 16);
        net.loss_percent = seed % 3;
        net.slow_views = seed % 2 == 1;
        let zero = Write { id: 0, tag: 0, acked: Some(0), flushed: true };
        let block = Block { writes: vec![zero], busy: false, known: false };
        Self {
            net,
            rng: Rng::new(seed ^ 0xabcdef),
            vdi,
            storage,
            blocks: vec![block; BLOCKS as usize],
            session: None,
            next_handle: 1,
            next_io: 1,
            next_tag: 1,
            crashes: 0,
            plans: BTreeMap::new(),
            counts: Counts::default(),
            seed,
        }
    }

    fn ms(&self) -> u64 {
        self.net.now.as_nanos() / 1_000_000
    }

    fn plan(&mut self, node: u64, after: u64, plan: Plan) {
        let at = self.ms() + after;
        self.plans.insert((at, node * 10 + plan as u64), plan);
    }

    fn is_disturbed(&self, node: u64) -> bool {
        self.plans.keys().any(|(_, key)| key / 10 == node)
    }

    fn carry_out_plans(&mut self) {
        while let Some((&(at, key), &plan)) = self.plans.first_key_value() {
            if at > self.ms() {
                return;
            }
            self.plans.remove(&(at, key));
            let node = key / 10;
            self.say(&format!("{plan:?} {node}"));
            match plan {
                Plan::SayDown => {
                    let mut absent: Vec<u64> = self.net.outside.iter().copied().collect();
                    absent.extend(self.net.nodes.keys().map(|n| n.0).filter(|n| !self.net.is_running(*n)));
                    self.net.install_without(&absent);
                }
                Plan::Restart => self.net.restart(node),
                Plan::Rejoin => {
                    self.net.rejoin(node);
                    if !self.net.log.state.is_up(self.net.log.member(node)) {
                        self.net.come_back(node);
                    }
                    self.net.distribute();
                }
            }
        }
    }

    fn say(&self, what: &str) {
        if self.net.trace.is_some() {
            println!("{:?} == {what}", self.net.now);
        }
    }

    fn crash(&mut self, node: u64) {
        self.say(&format!("crash {node}"));
        if node < HAND {
            self.crashes += 1;
        }
        self.counts.crashes += 1;
        let seed = self.rng.next();
        self.net.crash(node, seed);
        if self.session.as_ref().is_some_and(|session| session.node == node) {
            self.end_session();
        }
        let down = self.rng.below(60);
        if self.rng.chance(70) {
            self.plan(node, down, Plan::SayDown);
        }
        let restart = self.rng.below(400);
        self.plan(node, restart, Plan::Restart);
    }

    fn disturb(&mut self) {
        let nodes: Vec<u64> =
            self.net.nodes.keys().map(|node| node.0).filter(|node| !self.is_disturbed(*node)).collect();
        if nodes.is_empty() {
            return;
        }
        let node = nodes[self.rng.below(nodes.len() as u64) as usize];
        match self.rng.below(22) {
            0..10 => self.crash(node),
            10 if self.storage < 7 => {
                self.storage += 1;
                self.say(&format!("join {}", self.storage));
                self.net.add(self.storage);
            }
            10..20 => {
                self.counts.partitions += 1;
                self.say(&format!("isolate {node}"));
                self.net.isolate(node);
                let down = self.rng.below(60);
                self.plan(node, down, Plan::SayDown);
                let back = down + 1 + self.rng.below(500);
                self.plan(node, back, Plan::Rejoin);
            }
            _ => {
                self.counts.blackouts += 1;
                for node in 1..=self.storage {
                    if self.net.is_running(node) && !self.is_disturbed(node) {
                        self.crash(node);
                    }
                }
            }
        }
    }

    fn end_session(&mut self) {
        self.say("session ends");
        self.session = None;
        for block in &mut self.blocks {
            block.busy = false;
            block.known = false;
        }
    }

    fn open(&mut self) {
        let mut nodes: Vec<u64> = self.net.nodes.keys().map(|node| node.0).collect();
        nodes.retain(|node| self.net.is_running(*node) && !self.net.outside.contains(node));
        if nodes.is_empty() {
            return;
        }
        let node = nodes[self.rng.below(nodes.len() as u64) as usize];
        if let Some(lock) = self.net.log.state.vdi(self.vdi).and_then(|record| record.lock) {
            let command = Command::Revoke { vdi: self.vdi, generation: lock.generation };
            self.net.log.run(HAND, command).unwrap();
            self.net.distribute();
        }
        self.net.publish(node);
        let handle = self.next_handle;
        self.next_handle += 1;
        self.counts.sessions += 1;
        self.say(&format!("open at {node}"));
        self.session = Some(Session { node, handle, open: false, closing: false, ios: BTreeMap::new() });
        let (now, vdi) = (self.net.now, self.vdi);
        self.gateway(node, |gateway| gateway.open(now, handle, vdi, OpenMode::Write));
    }

    fn gateway(&mut self, node: u64, act: impl FnOnce(&mut sheep_datapath::Gateway)) {
        if let Some(shard) = self.net.nodes.get_mut(&NodeId(node)).and_then(|node| node.shard.as_mut()) {
            act(shard.gateway());
        }
        self.net.drain(NodeId(node));
    }

    /// Oldest write of a block that may be seen.
    fn low(&self, block: u64) -> u64 {
        let block = &self.blocks[block as usize];
        let counts = |write: &Write| {
            write.flushed || write.acked.is_some_and(|crashes| block.known || crashes == self.crashes)
        };
        block.writes.iter().rev().find(|write| counts(write)).map_or(0, |write| write.id)
    }

    fn submit(&mut self) {
        let Some(session) = &self.session else { return };
        let (node, handle) = (session.node, session.handle);
        if !session.open || session.closing || session.ios.len() >= 16 {
            return;
        }
        let count = 1 + self.rng.below(6);
        let first = self.rng.below(BLOCKS - count);
        let (offset, len) = (first * BLOCK as u64, (count * BLOCK as u64) as u32);
        let range = first as usize..(first + count) as usize;
        let (op, io) = match self.rng.below(100) {
            0..40 => {
                let lows = (first..first + count).map(|block| self.low(block)).collect();
                (VolumeOp::Read { offset, len }, Io::Read { first, lows })
            }
            40..46 => {
                let covered = (0..BLOCKS).map(|block| self.low(block));
                (VolumeOp::Flush, Io::Flush(covered.collect()))
            }
            kind => {
                if self.blocks[range.clone()].iter().any(|block| block.busy) {
                    return;
                }
                let zeroes = kind < 52;
                let mut data = Vec::new();
                for block in &mut self.blocks[range] {
                    let tag = if zeroes { 0 } else { self.next_tag };
                    block.busy = true;
                    let id = self.next_tag;
                    block.writes.push(Write { id, tag, acked: None, flushed: false });
                    self.next_tag += 1;
                    data.extend_from_slice(&support::block(tag).0);
                }
                let fua = self.rng.chance(5);
                let op = if zeroes {
                    let len = u64::from(len);
                    VolumeOp::WriteZeroes { offset, len, fua, no_hole: false, fast_zero: false }
                } else {
                    VolumeOp::Write { offset, data: Bytes::from(data), fua }
                };
                (op, Io::Write { first, count })
            }
        };
        let number = self.next_io;
        self.next_io += 1;
        if let Some(session) = &mut self.session {
            session.ios.insert(number, io);
        }
        let now = self.net.now;
        self.gateway(node, |gateway| gateway.submit(now, handle, number, op));
    }

    fn listen(&mut self) {
        for (node, output) in core::mem::take(&mut self.net.said) {
            let Some(session) = &mut self.session else { continue };
            if session.node != node.0 {
                continue;
            }
            let mine = session.handle;
            match output {
                GatewayOutput::Opened { handle, .. } if handle == mine => session.open = true,
                GatewayOutput::OpenFailed { handle, error } if handle == mine => {
                    assert!(
                        !matches!(error, sheep_datapath::OpenError::MapLost),
                        "seed {}: {error}",
                        self.seed
                    );
                    self.end_session();
                }
                GatewayOutput::Lost { handle, reason } if handle == mine => {
                    if matches!(reason, sheep_datapath::LostReason::WritesMissing) {
                        self.counts.lost += 1;
                    }
                    let (now, node) = (self.net.now, node.0);
                    self.gateway(node, |gateway| gateway.close(now, mine));
                    self.end_session();
                }
                GatewayOutput::Closed { handle } if handle == mine => self.end_session(),
                GatewayOutput::Done { handle, io, result } if handle == mine => self.done(io, result),
                _ => {}
            }
        }
    }

    fn done(&mut self, io: u64, result: Result<VolumeReply, VolumeError>) {
        let Some(io) = self.session.as_mut().and_then(|session| session.ios.remove(&io)) else { return };
        if let Err(error) = result {
            let over = matches!(error, VolumeError::Lost | VolumeError::ShuttingDown);
            assert!(over, "seed {}: {io:?} failed: {error} at {:?}", self.seed, self.net.now);
            return;
        }
        match (io, result) {
            (Io::Read { first, lows }, Ok(VolumeReply::Read(extents))) => self.check(first, &lows, &extents),
            (Io::Write { first, count }, _) => {
                self.counts.writes += 1;
                for block in &mut self.blocks[first as usize..(first + count) as usize] {
                    block.busy = false;
                    block.known = true;
                    if let Some(write) = block.writes.last_mut() {
                        write.acked = Some(self.crashes);
                    }
                }
            }
            (Io::Flush(covered), _) => {
                self.counts.flushes += 1;
                for (block, covered) in self.blocks.iter_mut().zip(covered) {
                    if let Some(write) = block.writes.iter_mut().find(|write| write.id == covered) {
                        write.flushed = true;
                    }
                }
            }
            (io, result) => panic!("seed {}: {io:?} gave {result:?}", self.seed),
        }
    }

    fn check(&mut self, first: u64, lows: &[u64], extents: &[ReadExtent]) {
        self.counts.reads += 1;
        let mut bytes = Vec::new();
        for extent in extents {
            match extent {
                ReadExtent::Data(data) => bytes.extend_from_slice(data),
                ReadExtent::Hole(len) => bytes.resize(bytes.len() + *len as usize, 0),
            }
        }
        assert_eq!(bytes.len(), lows.len() * BLOCK);
        for ((number, low), found) in (first..).zip(lows).zip(bytes.chunks(BLOCK)) {
            let tag = u64::from_le_bytes(*found.first_chunk().unwrap());
            assert!(
                found.chunks(8).all(|c| c == tag.to_le_bytes()),
                "seed {}: torn block {number}",
                self.seed
            );
            let (seed, now) = (self.seed, self.net.now);
            let block = &mut self.blocks[number as usize];
            let fits = |write: &&Write| write.tag == tag && write.id >= *low;
            let matching = block.writes.iter().filter(fits).count();
            let right = matching > 0;
            assert!(
                right,
                "seed {seed}: block {number} reads {tag}, not from {low} on of {:?}, at {now:?}",
                block.writes
            );
            // What a session has seen it goes on seeing, unless it writes.
            if !block.known && !block.busy && matching == 1 {
                block.writes.retain(|write| write.tag == tag && write.id >= *low);
                block.writes[0].acked = Some(self.crashes);
                block.writes[0].flushed = true;
                block.known = true;
            }
        }
    }

    fn renew_leases(&mut self) {
        let now = self.net.now;
        for node in self.net.nodes.keys().copied().collect::<Vec<_>>() {
            if self.net.outside.contains(&node.0) {
                continue;
            }
            if let Some(shard) = self.net.nodes.get_mut(&node).and_then(|node| node.shard.as_mut()) {
                shard.handle_lease(now, now + Duration::from_millis(200));
            }
            self.net.drain(node);
        }
    }

    fn round(&mut self, faults: bool) {
        self.carry_out_plans();
        self.renew_leases();
        if faults && self.rng.chance(2) {
            self.disturb();
        }
        match &self.session {
            None => self.open(),
            Some(session) if session.open && !session.closing && faults && self.rng.chance(1) => {
                let (node, handle, now) = (session.node, session.handle, self.net.now);
                if self.rng.chance(50) {
                    // Taken away from a living holder.
                    self.end_session();
                } else {
                    self.say("close");
                    if let Some(session) = &mut self.session {
                        session.closing = true;
                    }
                    self.gateway(node, |gateway| gateway.close(now, handle));
                }
            }
            Some(_) => {
                for _ in 0..self.rng.below(4) {
                    self.submit();
                }
            }
        }
        self.net.run_for(Duration::from_millis(2));
        self.listen();
    }

    /// Faults end; everything must work again, and all copies must become equal.
    fn finish(&mut self) {
        self.net.loss_percent = 0;
        for _ in 0..3000 {
            self.round(false);
            let open = |session: &Session| session.open && !session.closing;
            let quiet = self.plans.is_empty() && self.session.as_ref().is_some_and(open);
            if quiet {
                break;
            }
        }
        assert!(self.plans.is_empty());
        for _ in 0..200 {
            self.round(false);
        }
        let open = self.session.as_ref().is_some_and(|session| session.open);
        assert!(open, "seed {}: cannot open: {:?} {:?}", self.seed, self.session, self.net.progress());
        for _ in 0..2000 {
            if self.session.as_ref().is_some_and(|session| session.ios.is_empty()) {
                break;
            }
            self.carry_out_plans();
            self.renew_leases();
            self.net.run_for(Duration::from_millis(2));
            self.listen();
        }
        let left = self.session.as_ref().map(|session| &session.ios);
        assert!(
            left.is_some_and(BTreeMap::is_empty),
            "seed {}: no progress: {}",
            self.seed,
            self.net.explain()
        );
        self.read_all();
    }

    fn read_all(&mut self) {
        let Some((node, handle)) = self.session.as_ref().map(|session| (session.node, session.handle)) else {
            return;
        };
        for first in (0..BLOCKS).step_by(16) {
            let number = self.next_io;
            self.next_io += 1;
            let lows = (first..first + 16).map(|block| self.low(block)).collect();
            if let Some(session) = &mut self.session {
                session.ios.insert(number, Io::Read { first, lows });
            }
            let (now, offset) = (self.net.now, first * BLOCK as u64);
            let op = VolumeOp::Read { offset, len: 16 * BLOCK as u32 };
            self.gateway(node, |gateway| gateway.submit(now, handle, number, op));
            for _ in 0..1000 {
                if self.session.as_ref().is_some_and(|session| session.ios.is_empty()) {
                    break;
                }
                self.renew_leases();
                self.net.run_for(Duration::from_millis(2));
                self.listen();
            }
            let done = self.session.as_ref().is_some_and(|session| session.ios.is_empty());
            assert!(done, "seed {}: {:?} {:?}", self.seed, self.session, self.net.progress());
        }
    }
}

fn run(seed: u64, rounds: u64, mutants: Mutants) -> Counts {
    let mut world = World::new(seed, 3 + seed % 3, mutants);
    for _ in 0..rounds {
        world.round(true);
    }
    world.finish();
    world.counts
}

#[test]
fn a_quiet_cluster_works() {
    let mut world = World::new(1, 3, Mutants::default());
    world.net.loss_percent = 0;
    for _ in 0..300 {
        world.round(false);
    }
    world.finish();
    assert!(world.counts.reads > 100 && world.counts.writes > 100 && world.counts.flushes > 3);
    assert_eq!(world.counts.sessions, 1);
}

#[test]
fn random_faults_lose_nothing() {
    let from = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(8);
    let mut total = Counts::default();
    for seed in from..from + seeds {
        let counts = run(seed, 1000, Mutants::default());
        total.reads += counts.reads;
        total.writes += counts.writes;
        total.flushes += counts.flushes;
        total.sessions += counts.sessions;
        total.crashes += counts.crashes;
        total.blackouts += counts.blackouts;
        total.partitions += counts.partitions;
        total.lost += counts.lost;
    }
    println!("{total:?}");
    assert!(total.reads > 0 && total.writes > 0 && total.sessions > 1 && total.crashes > 0);
}

/// Each rule that is left out must be noticed.
#[cfg(feature = "mutants")]
mod mutants {
    use super::run;
    use sheep_datapath::{Mutant, Mutants};

    fn caught(mutant: Mutant) {
        let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(300);
        std::panic::set_hook(Box::new(|_| {}));
        let by = (0..seeds)
            .find(|seed| std::panic::catch_unwind(|| run(*seed, 1000, Mutants::only(mutant))).is_err());
        println!("{mutant:?} caught by seed {by:?}");
        assert!(by.is_some(), "{mutant:?} is not caught by {seeds} seeds");
    }

    macro_rules! mutants {
        ($($name:ident: $mutant:ident,)*) => {
            $(#[test] fn $name() { caught(Mutant::$mutant); })*
        };
    }

    mutants! {
        flush_old_set: FlushOldSet,
        source_at_older_epoch: SourceAtOlderEpoch,
        higher_version_wins: HigherVersionWins,
        delete_on_absence: DeleteOnAbsence,
        resend_is_behind: ResendIsBehind,
        settle_without_flush: SettleWithoutFlush,
        hot_not_inherited: HotNotInherited,
        each_decides: EachDecides,
        restarted_is_current: RestartedIsCurrent,
        map_before_data: MapBeforeData,
        create_keeps_orphan: CreateKeepsOrphan,
    }
}
