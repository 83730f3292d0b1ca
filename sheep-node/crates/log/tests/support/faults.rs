//! Random runs: what happens next comes from a seed.

use super::world::World;
use sheep_log::LogConfig;
use sheep_types::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.below(from.len())).copied()
    }
}

/// One run of a random cluster. Err says which property broke.
pub fn run_random(seed: u64, config: &LogConfig, steps: usize) -> Result<World, String> {
    let mut random = Random::new(seed);
    let mut config = config.clone();
    config.lease = Duration::from_millis(200);
    // Small limits in some runs, so that buffers overflow and snapshots are taken.
    if random.one_in(2) {
        (config.snapshot_bytes, config.keep_bytes, config.buffer_messages) = (600, 200, 4);
        config.fetch_bytes = 1 << 10;
    }
    let mut world = World::new(config);
    let nodes = 3 + random.below(3) as u64;
    (1..=nodes).for_each(|id| world.start(id));
    let all: Vec<u64> = (1..=nodes).collect();
    world.form(&all);
    world.settle();
    // Lists of three, so that a change of one of them matters.
    let first: Vec<NodeId> = (1..=3).map(NodeId).collect();
    world.call(1, |log, now| {
        let _ = log.propose_voters(now, first);
    });
    world.settle();
    check(&mut world)?;
    let calm = random.pick(&[12, 40, 120]).unwrap_or(40);
    let mut run = Run { random, world, next_id: nodes, calm, paused: BTreeMap::new() };
    for step in 0..steps {
        run.step(step);
        if step % 64 == 0 {
            run.world.check_places();
        }
        check(&mut run.world).map_err(|e| format!("step {step}: {e}"))?;
    }
    let mut world = run.world;
    finish(&mut world)?;
    Ok(world)
}

fn check(world: &mut World) -> Result<(), String> {
    world.violation.take().map_or(Ok(()), Err)
}

/// Faults end; everything must come together.
fn finish(world: &mut World) -> Result<(), String> {
    for id in world.nodes.keys().copied().collect::<Vec<_>>() {
        world.node(id).slow_disk = false;
        world.node(id).mute = false;
        if world.nodes[&id].log.is_none() {
            world.start(id);
        }
    }
    let all = world.live();
    for _ in 0..3 {
        world.form(&all);
        (0..4).for_each(|_| world.settle());
        check(world)?;
    }
    let highest = world.truth.committed.keys().last().copied().unwrap_or(0);
    for id in all {
        let node = &world.nodes[&id];
        let log = node.log.as_ref().unwrap();
        if !log.is_installed() || log.applied().0 < highest || log.last() != log.commit() {
            let (last, commit) = (log.last(), log.commit());
            return Err(format!("no progress: node {id} at {last:?}, commit {commit:?} of {highest}"));
        }
        let effective = node.state.lasts.get(&node.member()).copied().unwrap_or(0);
        if effective != node.proposed || log.stats().queued != 0 {
            return Err(format!("node {id} proposed {} commands, {effective} took effect", node.proposed));
        }
        if log.lease_deadline(world.now).is_none() {
            return Err(format!("no progress: node {id} has no lease"));
        }
    }
    Ok(())
}

struct Run {
    random: Random,
    world: World,
    next_id: u64,
    /// One step in this many is a fault.
    calm: usize,
    /// Nodes that are stopped, and until which step.
    paused: BTreeMap<u64, usize>,
}

impl Run {
    fn step(&mut self, step: usize) {
        let world = &mut self.world;
        let random = &mut self.random;
        world.now = world.now + Duration::from_micros(random.next() % 3_000);
        let live = world.live();
        let Some(id) = random.pick(&live) else { return self.fault(step) };
        if random.one_in(self.calm) {
            return self.fault(step);
        }
        self.paused.retain(|_, until| *until > step);
        if self.paused.contains_key(&id) {
            return;
        }
        match random.below(100) {
            0..40 => {
                if let Some(ring) = world.nodes[&id].ring {
                    let missing = world.missing(ring, NodeId(id));
                    // Mostly the oldest; sometimes one after a hole.
                    let at = if random.one_in(4) { random.pick(&missing) } else { missing.first().copied() };
                    if let Some(at) = at {
                        world.receive(ring, NodeId(id), at);
                    }
                }
            }
            40..66 => {
                if let Some(ring) = world.nodes[&id].ring {
                    let mute = world.nodes[&world.holder(ring).0].mute;
                    let limit = if mute { 0 } else { random.below(4) };
                    if !self.paused.contains_key(&world.holder(ring).0) {
                        world.visit(ring, limit);
                    }
                }
            }
            66..80 if !world.nodes[&id].slow_disk => world.complete_write(id),
            66..80 => {}
            80..88 => self.datagram(),
            88..91 => world.tick(id),
            91 if random.one_in(4) => {
                let who = random.pick(&live).unwrap_or(id);
                world.propose(id, &format!("exclude {who}"));
            }
            91..97 => world.propose(id, &format!("command {step} of {id}")),
            97..99 => self.voters(id),
            _ => {}
        }
    }

    fn datagram(&mut self) {
        let count = self.world.net.len();
        if count == 0 {
            return;
        }
        let at = self.random.below(count);
        match self.random.below(10) {
            0 => drop(self.world.net.swap_remove(at)),
            1 => {
                let again = self.world.net[at].clone();
                self.world.net.push(again);
                self.world.deliver_datagram(at);
            }
            _ => self.world.deliver_datagram(at),
        }
    }

    fn voters(&mut self, id: u64) {
        let known: Vec<u64> = self.world.nodes.keys().copied().collect();
        let size = if self.random.one_in(4) { 5 } else { 3 };
        let mut list: Vec<NodeId> = Vec::new();
        for _ in 0..20 {
            let node = NodeId(self.random.pick(&known).unwrap());
            if list.len() < size && !list.contains(&node) {
                list.push(node);
            }
        }
        list.sort_unstable();
        self.world.call(id, |log, now| {
            let _ = log.propose_voters(now, list);
        });
    }

    fn fault(&mut self, step: usize) {
        let live: Vec<u64> = self.world.live().into_iter().filter(|n| !self.paused.contains_key(n)).collect();
        let down: Vec<u64> = self.world.nodes.values().filter(|n| n.log.is_none()).map(|n| n.id.0).collect();
        match self.random.below(14) {
            13 => {
                if let Some(id) = self.random.pick(&live) {
                    let node = self.world.node(id);
                    node.mute = !node.mute;
                }
            }
            12 => {
                if let Some(id) = self.random.pick(&live) {
                    self.paused.insert(id, step + self.random.below(500));
                }
            }
            0..2 => {
                if let Some(id) = self.random.pick(&live) {
                    let (whole, torn) = (self.random.below(3), self.random.below(200));
                    self.world.crash(id, whole, torn);
                }
            }
            2..5 => {
                if let Some(id) = self.random.pick(&down) {
                    self.world.start(id);
                }
            }
            5 if self.next_id < 7 => {
                self.next_id += 1;
                self.world.start(self.next_id);
            }
            6 => {
                if let Some(id) = self.random.pick(&live) {
                    let node = self.world.node(id);
                    node.slow_disk = !node.slow_disk;
                }
            }
            7 => {
                // Power fails everywhere.
                self.paused.clear();
                for id in self.world.live() {
                    let (whole, torn) = (self.random.below(3), self.random.below(200));
                    self.world.crash(id, whole, torn);
                    self.world.start(id);
                }
            }
            8 => {
                if !live.is_empty() {
                    self.world.form(&live);
                }
            }
            9 => {
                let pause = Duration::from_millis(self.random.below(400) as u64);
                self.world.now = self.world.now + pause;
            }
            _ => {
                let group: Vec<u64> = live.into_iter().filter(|_| !self.random.one_in(3)).collect();
                if !group.is_empty() {
                    self.world.form(&group);
                }
            }
        }
    }
}
