//! The random work, the faults, and the model of what a disk may answer.

use crate::support::{BLOCK, HAND, Net, Rng};
use bytes::Bytes;
use core::time::Duration;
use sheep_datapath::{Mutants, OpenMode, VolumeOp};
use sheep_state::Command;
use sheep_types::{NodeId, VdiId};
use std::collections::BTreeMap;

const BLOCKS: u64 = 256;

/// A write of a block, in order of submission.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    /// Ascending with submission.
    pub(crate) id: u64,
    pub(crate) tag: u64,
    /// Storage crashes before it was acknowledged; `None` if it was not.
    pub(crate) acked: Option<u64>,
    pub(crate) flushed: bool,
}

/// What a block may hold: the newest write that cannot be lost, or any later one.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) writes: Vec<Write>,
    /// An operation is under way that writes it.
    pub(crate) busy: bool,
    /// The present session has read or written it: what it then held stays.
    pub(crate) known: bool,
}

#[derive(Debug)]
pub(crate) enum Io {
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
pub(crate) struct Session {
    pub(crate) node: u64,
    pub(crate) handle: u64,
    pub(crate) open: bool,
    closing: bool,
    pub(crate) ios: BTreeMap<u64, Io>,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) flushes: u64,
    pub(crate) sessions: u64,
    pub(crate) crashes: u64,
    pub(crate) blackouts: u64,
    pub(crate) partitions: u64,
    pub(crate) lost: u64,
}

pub(crate) struct World {
    pub(crate) net: Net,
    rng: Rng,
    vdi: VdiId,
    storage: u64,
    pub(crate) blocks: Vec<Block>,
    pub(crate) session: Option<Session>,
    next_handle: u64,
    next_io: u64,
    next_tag: u64,
    pub(crate) crashes: u64,
    /// What happens to a node later, by time in ms.
    plans: BTreeMap<(u64, u64), Plan>,
    pub(crate) counts: Counts,
    pub(crate) seed: u64,
}

#[derive(Clone, Copy, Debug)]
enum Plan {
    SayDown,
    Restart,
    Rejoin,
}

impl World {
    pub(crate) fn new(seed: u64, storage: u64, mutants: Mutants) -> Self {
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

    fn crash(&mut self, node: u64, longest: u64) {
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
        let restart = self.rng.below(longest);
        self.plan(node, restart, Plan::Restart);
    }

    fn disturb(&mut self) {
        let nodes: Vec<u64> =
            self.net.nodes.keys().map(|node| node.0).filter(|node| !self.is_disturbed(*node)).collect();
        if nodes.is_empty() {
            return;
        }
        let node = nodes[self.rng.below(nodes.len() as u64) as usize];
        match self.rng.below(28) {
            0..10 => self.crash(node, 400),
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
            22.. => {
                // One feed: the gateway in use and a storage node, back before anybody misses them.
                let gateway = self.session.as_ref().map(|session| session.node);
                for node in [Some(node), gateway].into_iter().flatten() {
                    if self.net.is_running(node) && !self.is_disturbed(node) {
                        self.crash(node, 20);
                    }
                }
            }
            _ => {
                self.counts.blackouts += 1;
                for node in 1..=self.storage {
                    if self.net.is_running(node) && !self.is_disturbed(node) {
                        self.crash(node, 400);
                    }
                }
            }
        }
    }

    pub(crate) fn end_session(&mut self) {
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

    pub(crate) fn gateway(&mut self, node: u64, act: impl FnOnce(&mut sheep_datapath::Gateway)) {
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
        // Some seeds work on few blocks, where everything meets everything.
        let span = [BLOCKS, 64, 16][(self.seed / 2 % 3) as usize];
        let first = self.rng.below(span - count);
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
                    data.extend_from_slice(&crate::support::block(tag).0);
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

    pub(crate) fn round(&mut self, faults: bool) {
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
    pub(crate) fn finish(&mut self) {
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
