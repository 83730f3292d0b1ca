//! The network.

use super::{Checker, Random};
use bytes::Bytes;
use sheep_totem::{Destination, Output, Ring, RingConfig, RingState};
use sheep_types::{ClusterId, ConfigId, Incarnation, Member, NodeId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub const CLUSTER: ClusterId = ClusterId(77);

enum Event {
    Packet { from: Member, to: u64, packet: Bytes },
    Durable { to: Member, number: u64 },
}

pub struct Node {
    pub ring: Ring,
    pub me: Member,
    pub alive: bool,
    pub paused: bool,
    /// The disk that holds the number does not answer.
    pub disk_hangs: bool,
    /// What it was asked to write meanwhile.
    pub hung: Option<u64>,
    pub durable: u64,
    pub packets_sent: u64,
}

pub struct Net {
    pub now: Time,
    pub random: Random,
    pub nodes: BTreeMap<u64, Node>,
    pub checker: Checker,
    pub config: RingConfig,
    /// (from, to) that does not work.
    pub cut: BTreeSet<(u64, u64)>,
    pub loss: u64,
    pub duplicates: u64,
    /// Microseconds.
    pub delay: (u64, u64),
    /// How long a number takes to become durable, microseconds.
    pub disk: (u64, u64),
    pub written: u64,
    /// Keeps all packets in `recorded`.
    pub record: bool,
    pub recorded: Vec<Bytes>,
    /// Switches the checkers off: for packets that no authenticated member would send.
    pub unchecked: bool,
    /// This node gets no messages of the order, only the rest.
    pub drop_multicasts_to: Option<u64>,
    /// Prints configurations as they come.
    pub trace: bool,
    /// Whether the layer above calls a configuration with most of the nodes primary.
    pub tells_primary: bool,
    /// Number of nodes that count for that.
    pub total: usize,
    /// Only these count, if given.
    pub voters: Option<BTreeSet<u64>>,
    events: BTreeMap<(Time, u64), Event>,
    serial: u64,
}

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Net {
    pub fn new(seed: u64, nodes: u64) -> Self {
        let mut net = Self::empty(seed);
        net.total = nodes as usize;
        (1..=nodes).for_each(|n| net.start(n, CLUSTER));
        net
    }

    pub fn empty(seed: u64) -> Self {
        Self {
            now: Time::from_nanos(1_000_000_000),
            random: Random(seed),
            nodes: BTreeMap::new(),
            checker: Checker::default(),
            config: RingConfig::default(),
            cut: BTreeSet::new(),
            loss: 0,
            duplicates: 0,
            delay: (100, 400),
            disk: (50, 5000),
            written: 0,
            record: false,
            recorded: Vec::new(),
            unchecked: false,
            drop_multicasts_to: None,
            trace: std::env::var_os("TRACE").is_some(),
            tells_primary: false,
            total: 0,
            voters: None,
            events: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Starts a node, or starts it again in a new run with what it made durable.
    pub fn start(&mut self, n: u64, cluster: ClusterId) {
        let (incarnation, durable) =
            self.nodes.get(&n).map_or((1, 0), |old| (old.me.incarnation.0 + 1, old.durable));
        let me = Member { node: NodeId(n), incarnation: Incarnation(incarnation) };
        let seed = self.random.next();
        let ring = Ring::new(self.config.clone(), me, cluster, durable, seed, self.now).unwrap();
        let node = Node {
            ring,
            me,
            alive: true,
            paused: false,
            disk_hangs: false,
            hung: None,
            durable,
            packets_sent: 0,
        };
        self.nodes.insert(n, node);
        self.drain(n);
    }

    pub fn crash(&mut self, n: u64) {
        let node = self.nodes.get_mut(&n).unwrap();
        node.alive = false;
        self.checker.crashed(node.me);
    }

    /// A node ends in order.
    pub fn depart(&mut self, n: u64) {
        self.with(n, |ring, now| ring.depart(now));
        self.crash(n);
    }

    /// The disk of a node answers again.
    pub fn heal_disk(&mut self, n: u64) {
        let node = self.nodes.get_mut(&n).unwrap();
        node.disk_hangs = false;
        let to = node.me;
        if let Some(number) = node.hung.take() {
            self.post(ms(1), Event::Durable { to, number });
        }
    }

    pub fn ring(&mut self, n: u64) -> &mut Ring {
        &mut self.nodes.get_mut(&n).unwrap().ring
    }

    /// Calls into one ring and performs what comes out.
    pub fn with<T>(&mut self, n: u64, call: impl FnOnce(&mut Ring, Time) -> T) -> T {
        let now = self.now;
        let before = self.ring(n).state();
        let result = call(self.ring(n), now);
        let after = self.ring(n).state();
        if self.trace && before != after {
            println!("{now:?} n{n} {before:?} to {after:?}");
        }
        self.drain(n);
        result
    }

    pub fn cut_both(&mut self, a: u64, b: u64) {
        self.cut.extend([(a, b), (b, a)]);
    }

    /// Each list can talk within itself only.
    pub fn partition(&mut self, sides: &[&[u64]]) {
        let side = |n: u64| sides.iter().position(|s| s.contains(&n));
        let all: Vec<u64> = self.nodes.keys().copied().collect();
        self.cut.clear();
        for a in &all {
            for b in all.iter().filter(|b| side(*a) != side(**b)) {
                self.cut.insert((*a, *b));
            }
        }
    }

    pub fn submit(&mut self, n: u64) -> bool {
        let node = self.nodes.get_mut(&n).unwrap();
        if !node.alive || node.paused {
            return false;
        }
        self.written += 1;
        let payload = Bytes::copy_from_slice(&self.written.to_le_bytes());
        let taken = node.ring.submit(self.now, payload.clone()).is_ok();
        if taken {
            self.checker.submitted(node.me, payload);
        }
        self.drain(n);
        taken
    }

    fn post(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + delay, self.serial), event);
    }

    pub fn drain(&mut self, n: u64) {
        while let Some(output) = self.nodes.get_mut(&n).unwrap().ring.poll_output() {
            let node = self.nodes.get_mut(&n).unwrap();
            let me = node.me;
            if self.trace && matches!(output, Output::Configuration(_)) {
                println!("{:?} {:?} {output:?}", self.now, me.node);
            }
            if !self.unchecked {
                self.checker.output(self.now, me, node.durable, &output);
            }
            match output {
                Output::Send { to, packet } => {
                    node.packets_sent += 1;
                    self.route(me, to, packet);
                }
                Output::PersistNumber(number) if node.disk_hangs => node.hung = Some(number),
                Output::PersistNumber(number) => {
                    let delay = Duration::from_micros(self.random.range(self.disk.0, self.disk.1));
                    self.post(delay, Event::Durable { to: me, number });
                }
                Output::Configuration(c) if self.tells_primary => {
                    let all = self.voters.as_ref().map_or(self.total, BTreeSet::len);
                    let counts = |m: &&Member| self.voters.as_ref().is_none_or(|v| v.contains(&m.node.0));
                    let there = c.members.iter().filter(counts).count();
                    let regular = c.kind == sheep_totem::ConfigurationKind::Regular;
                    self.nodes.get_mut(&n).unwrap().ring.set_primary(regular && there * 2 > all);
                }
                _ => {}
            }
        }
    }

    fn route(&mut self, from: Member, to: Destination, packet: Bytes) {
        assert!(packet.len() <= self.config.max_datagram, "packet of {} bytes", packet.len());
        if self.record {
            self.recorded.push(packet.clone());
        }
        let all: Vec<u64> = self.nodes.keys().copied().filter(|n| *n != from.node.0).collect();
        let members: Vec<u64> = self.nodes[&from.node.0]
            .ring
            .members()
            .iter()
            .map(|m| m.node.0)
            .filter(|n| *n != from.node.0)
            .collect();
        let receivers = match to {
            Destination::Node(node) => vec![node.0],
            Destination::Members => members,
            Destination::Everyone => all,
        };
        for to in receivers {
            // The sixth byte of a packet is its kind.
            let muted = self.drop_multicasts_to == Some(to) && packet[5] == 1;
            if muted || self.cut.contains(&(from.node.0, to)) || self.random.chance(self.loss) {
                continue;
            }
            for _ in 0..1 + u64::from(self.random.chance(self.duplicates)) {
                let delay = Duration::from_micros(self.random.range(self.delay.0, self.delay.1));
                self.post(delay, Event::Packet { from, to, packet: packet.clone() });
            }
        }
    }

    /// Does the next thing, if it is before `end`. Returns whether there was one.
    pub fn step(&mut self, end: Time) -> bool {
        let active = self.nodes.iter().filter(|(_, node)| node.alive && !node.paused);
        let timer =
            active.filter_map(|(n, node)| node.ring.poll_timeout().map(|at| (at.max(self.now), *n))).min();
        let event = self.events.keys().next().copied();
        match (timer, event) {
            (Some((at, n)), next) if next.is_none_or(|(t, _)| at < t) => {
                if at > end {
                    return false;
                }
                self.now = at;
                self.with(n, |ring, now| ring.handle_timeout(now));
            }
            (_, Some(key)) => {
                if key.0 > end {
                    return false;
                }
                self.now = key.0;
                let event = self.events.remove(&key).unwrap();
                self.perform(event);
            }
            _ => return false,
        }
        true
    }

    fn perform(&mut self, event: Event) {
        match event {
            Event::Packet { from, to, packet } => match self.nodes.get(&to) {
                // What comes while a node is stopped waits in its socket.
                Some(node) if node.alive && node.paused => {
                    self.post(ms(50), Event::Packet { from, to, packet });
                }
                Some(node) if node.alive => self.with(to, |ring, now| ring.handle_packet(now, &packet)),
                _ => {}
            },
            Event::Durable { to, number } => {
                let Some(node) = self.nodes.get_mut(&to.node.0).filter(|node| node.me == to && node.alive)
                else {
                    return;
                };
                if node.paused {
                    self.post(ms(50), Event::Durable { to, number });
                    return;
                }
                node.durable = node.durable.max(number);
                self.with(to.node.0, |ring, now| ring.handle_number_durable(now, number));
            }
        }
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0u64;
        while self.step(end) {
            steps += 1;
            assert!(steps < 20_000_000, "does not come to an end at {:?}", self.now);
        }
        self.now = self.now.max(end);
    }

    /// Runs until `done`, at most for `limit`. Returns how long it took.
    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Net) -> bool) -> Option<Duration> {
        let start = self.now;
        while !done(self) {
            if !self.step(start + limit) {
                return None;
            }
        }
        Some(self.now.since(start))
    }

    /// The configuration that exactly these nodes run.
    pub fn together(&self, members: &[u64]) -> Option<ConfigId> {
        let expected: Vec<Member> = members.iter().map(|n| self.nodes[n].me).collect();
        let id = |n: &u64| {
            let ring = &self.nodes[n].ring;
            let config = ring.configuration().filter(|c| c.members == expected);
            config.filter(|_| ring.state() == RingState::Operational).map(|c| c.id)
        };
        let first = id(members.first()?)?;
        members.iter().all(|n| id(n) == Some(first)).then_some(first)
    }

    /// Runs until all but one node are together.
    pub fn settle_alive_without(&mut self, n: u64) {
        let rest: Vec<u64> = self.alive().into_iter().filter(|m| *m != n).collect();
        self.settle(&rest, ms(10_000));
    }

    pub fn alive(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.alive).map(|(n, _)| *n).collect()
    }

    /// Waits until these nodes form one ring; fails the test if they do not.
    pub fn settle(&mut self, members: &[u64], limit: Duration) -> Duration {
        let members = members.to_vec();
        match self.run_until(limit, |net| net.together(&members).is_some()) {
            Some(time) => time,
            None => panic!("no ring of {members:?} within {limit:?}:\n{}", self.describe()),
        }
    }

    pub fn describe(&self) -> String {
        let line = |(n, node): (&u64, &Node)| {
            let ring = &node.ring;
            let members = |c: &sheep_totem::Configuration| format!("{:?} {:?}", c.id, c.members);
            format!(
                "{n}: alive {} paused {} {:?} {} primary {} {:?}\n",
                node.alive,
                node.paused,
                ring.state(),
                ring.configuration().map(members).unwrap_or_default(),
                ring.is_primary(),
                ring.stats()
            )
        };
        self.nodes.iter().map(line).collect()
    }
}
