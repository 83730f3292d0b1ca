//! A simulated cluster of shards: virtual disks, a network that delays, reorders and loses, a log of one, views
//! that reach nodes at different times, crashes and partitions. Everything follows from the seed.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "traces, when asked for")]

pub(crate) mod log;
mod look;
mod util;
pub(crate) mod volume;

use core::time::Duration;
use log::Log;
use sheep_datapath::{
    Gateway, GatewayConfig, GatewayOutput, Mutants, Replica, ReplicaConfig, Shard, ShardOutput, View,
};
use sheep_store::{DiskOpId, DiskOpKind, DiskResult, Store, StoreConfig, StoreIdentity, VirtualDisk};
use sheep_types::{ClusterId, Epoch, Generation, Geometry, LogIndex, Member, NodeId, Time, VdiId, Vid};
use sheep_wire::{Header, Message, Packet, Reply, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
pub(crate) use util::{BLOCK, Rng, block};

pub(crate) const CLUSTER: ClusterId = ClusterId(77);
/// The node that tests send requests from by hand; a gateway in the state.
pub(crate) const HAND: u64 = 100;

pub(crate) fn geometry() -> Geometry {
    Geometry::with_object_size(64 << 10).unwrap()
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) me: Member,
    pub(crate) shard: Option<Shard>,
    disk: VirtualDisk,
    view: Option<Arc<View>>,
    /// Index of the newest entry that is on its way to the node.
    sent: LogIndex,
    /// Identity of the disk; another one when it is replaced.
    disk_id: u64,
    formatted: bool,
    pub(crate) stores: bool,
}

#[derive(Debug)]
enum Event {
    Packet(Packet),
    Disk(NodeId, u64, DiskOpId),
    View(NodeId, u64, Arc<View>),
    Proposed(Member, u64, Result<sheep_state::Outcome, sheep_state::Refusal>),
    Order(Member, Option<u64>, sheep_state::Command),
}

#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    pub(crate) log: Log,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    events: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    /// Pairs (from, to) that lose everything.
    pub(crate) cut: BTreeSet<(u64, u64)>,
    /// Nodes that neither get views nor may order anything.
    pub(crate) outside: BTreeSet<u64>,
    /// Nodes whose disks do not come to the end of a sync.
    pub(crate) stuck: BTreeSet<u64>,
    /// Packets that a test holds back.
    pub(crate) hold: Option<fn(&Packet) -> bool>,
    pub(crate) held: Vec<Packet>,
    /// Views go to nodes by [`Net::publish`] only.
    pub(crate) manual: bool,
    /// Replies to the hand.
    pub(crate) replies: BTreeMap<u64, (Header, Reply)>,
    next_request: u64,
    /// What gateways said, in order.
    pub(crate) said: Vec<(NodeId, GatewayOutput)>,
    pub(crate) loss_percent: u64,
    /// Now and then a view takes long to reach a node.
    pub(crate) slow_views: bool,
    pub(crate) mutants: Mutants,
    pub(crate) steps: u64,
    /// Packets sent from node to node, requests and replies.
    pub(crate) sent: u64,
    /// Print what happens, packets about this object too.
    pub(crate) trace: Option<String>,
}

impl Net {
    /// Storage nodes 1 to `storage`, running and up, gateway nodes from 101 on, and the hand.
    pub(crate) fn new(seed: u64, storage: u64, gateways: u64, copies: u8, min_copies: u8) -> Self {
        Self::with_mutants(seed, storage, gateways, copies, min_copies, Mutants::default())
    }

    pub(crate) fn with_mutants(
        seed: u64,
        storage: u64,
        gateways: u64,
        copies: u8,
        min_copies: u8,
        mutants: Mutants,
    ) -> Self {
        let mut net = Self {
            now: Time::from_nanos(1_000_000_000),
            rng: Rng::new(seed),
            log: Log::new(geometry(), copies, min_copies),
            nodes: BTreeMap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            cut: BTreeSet::new(),
            outside: BTreeSet::new(),
            stuck: BTreeSet::new(),
            hold: None,
            held: Vec::new(),
            manual: false,
            replies: BTreeMap::new(),
            next_request: 0,
            said: Vec::new(),
            loss_percent: 0,
            slow_views: false,
            mutants,
            steps: 0,
            sent: 0,
            trace: std::env::var("TRACE").ok(),
        };
        net.log.join(HAND, false);
        for node in (1..=storage).chain(101..101 + gateways) {
            net.add(node);
        }
        net.settle();
        net
    }

    /// A new node starts and joins.
    pub(crate) fn add(&mut self, node: u64) {
        let stores = node < HAND;
        self.nodes.insert(
            NodeId(node),
            Node {
                me: self.log.member(node),
                shard: None,
                disk: VirtualDisk::new(1 << 30),
                view: None,
                sent: LogIndex(0),
                disk_id: node,
                formatted: false,
                stores,
            },
        );
        self.boot(node);
        self.log.join(node, stores);
        self.distribute();
    }

    fn boot(&mut self, node: u64) {
        let (now, mutants) = (self.now, self.mutants);
        let me = self.log.member(node);
        let state = self.nodes.get_mut(&NodeId(node)).unwrap();
        state.me = me;
        state.view = None;
        state.sent = LogIndex(0);
        let replica = state.stores.then(|| {
            let config = StoreConfig::small(geometry(), 256 << 20);
            let identity = StoreIdentity { cluster: CLUSTER, node: NodeId(node), store: state.disk_id };
            let store = Store::open(config, identity, !state.formatted);
            state.formatted = true;
            let config = ReplicaConfig {
                mutants,
                ask_timeout: Duration::from_millis(200),
                move_timeout: Duration::from_millis(500),
                shared_fetch_bytes: 16 << 10, // Objects are a 64th of real ones.
                ..ReplicaConfig::default()
            };
            Replica::new(config, me, CLUSTER, store, now)
        });
        let config = GatewayConfig { mutants, ..GatewayConfig::default() };
        state.shard = Some(Shard::new(me, replica, Gateway::new(config, me, CLUSTER, now)));
        self.drain(NodeId(node));
    }

    /// The node loses power. `seed` says what of its unsynced writes survives (0: nothing).
    pub(crate) fn crash(&mut self, node: u64, seed: u64) {
        let node = self.nodes.get_mut(&NodeId(node)).unwrap();
        node.shard = None;
        node.disk.crash_seeded(seed);
    }

    /// A crashed node gets an empty disk.
    pub(crate) fn replace_disk(&mut self, node: u64) {
        let state = self.nodes.get_mut(&NodeId(node)).unwrap();
        state.disk = VirtualDisk::new(1 << 30);
        state.disk_id += 1000;
        state.formatted = false;
        self.log.disks.insert(node, state.disk_id);
    }

    /// A crashed node starts again and says so in the log.
    pub(crate) fn restart(&mut self, node: u64) {
        self.log.new_incarnation(node);
        self.boot(node);
        self.log.announce(node);
        self.distribute();
    }

    pub(crate) fn is_running(&self, node: u64) -> bool {
        self.nodes[&NodeId(node)].shard.is_some()
    }

    /// The log says that these nodes are down (or gateways gone) and all others are where they are.
    pub(crate) fn install_without(&mut self, absent: &[u64]) {
        self.log.install_without(absent);
        self.distribute();
    }

    /// A node that was taken for down is up again in the same run.
    pub(crate) fn come_back(&mut self, node: u64) {
        self.log.announce(node);
        self.distribute();
    }

    pub(crate) fn vdi(&mut self, name: &str, objects: u64) -> (VdiId, Vid) {
        let made = self.log.create(name, objects * u64::from(geometry().object_size()));
        self.distribute();
        made
    }

    fn push(&mut self, at: Time, event: Event) {
        self.events.insert((at, self.next_event), event);
        self.next_event += 1;
    }

    fn view_of(&self, node: NodeId) -> Arc<View> {
        let state = &self.nodes[&node];
        let index = self.log.state.applied();
        let snapshot = Arc::clone(&self.log.snapshot);
        Arc::new(View::advance(state.view.as_deref(), state.me, CLUSTER, index, snapshot))
    }

    /// Gives the present state to a node at once.
    pub(crate) fn publish(&mut self, node: u64) {
        let view = self.view_of(NodeId(node));
        self.take_view(NodeId(node), view);
        self.drain(NodeId(node));
    }

    fn take_view(&mut self, node: NodeId, view: Arc<View>) {
        let now = self.now;
        let Some(state) = self.nodes.get_mut(&node) else { return };
        if state.view.as_ref().is_some_and(|known| known.index >= view.index) {
            return;
        }
        state.view = Some(Arc::clone(&view));
        if let Some(shard) = &mut state.shard {
            shard.handle_view(now, view);
        }
    }

    /// Sends the present state to all nodes that can hear of it.
    pub(crate) fn distribute(&mut self) {
        if self.manual {
            return;
        }
        let applied = self.log.state.applied();
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            let state = self.nodes.get_mut(&node).unwrap();
            if state.shard.is_none() || state.sent == applied || self.outside.contains(&node.0) {
                continue;
            }
            state.sent = applied;
            let incarnation = state.me.incarnation.0;
            let slow = self.slow_views && self.rng.chance(10);
            let at = self.now + self.rng.micros(100, if slow { 100_000 } else { 3000 });
            let view = self.view_of(node);
            self.push(at, Event::View(node, incarnation, view));
        }
    }

    /// Sends a request from the hand and returns its number.
    pub(crate) fn ask(&mut self, to: u64, generation: Generation, request: Request) -> u64 {
        let epoch = self.log.state.epoch();
        self.ask_in(to, epoch, generation, request)
    }

    pub(crate) fn ask_in(&mut self, to: u64, epoch: Epoch, generation: Generation, request: Request) -> u64 {
        self.next_request += 2;
        let header = Header {
            request: self.next_request,
            cluster: CLUSTER,
            from: self.log.member(HAND),
            to: self.log.member(to).incarnation,
            shard: 0,
            epoch,
            relies_on: LogIndex(generation.0),
            generation,
        };
        let packet = Packet { to: NodeId(to), header, message: Message::Request(request) };
        self.send(packet);
        self.next_request
    }

    /// Sends a request from the hand and runs until it is answered.
    pub(crate) fn call(&mut self, to: u64, generation: Generation, request: Request) -> Reply {
        let number = self.ask(to, generation, request);
        self.answer(number)
    }

    /// Runs until a request of the hand is answered.
    pub(crate) fn answer(&mut self, number: u64) -> Reply {
        for _ in 0..1_000_000 {
            if let Some((_, reply)) = self.replies.remove(&number) {
                return reply;
            }
            self.step();
        }
        panic!("request {number} is not answered");
    }

    fn send(&mut self, packet: Packet) {
        if let Some(trace) = &self.trace {
            let text = format!("{:?}", packet.message);
            if trace.split('|').any(|part| text.contains(part)) {
                let text: String = text.chars().take(400).collect();
                println!(
                    "{:?} {:?} -> {:?} e{} #{} {text}",
                    self.now, packet.header.from, packet.to, packet.header.epoch, packet.header.request
                );
            }
        }
        self.sent += u64::from(packet.to.0 != HAND && packet.header.from.node.0 != HAND);
        if self.hold.is_some_and(|hold| hold(&packet)) {
            self.held.push(packet);
            return;
        }
        let pair = (packet.header.from.node.0, packet.to.0);
        if self.cut.contains(&pair) || self.rng.chance(self.loss_percent) {
            return;
        }
        let at = self.now + self.rng.micros(20, 400);
        self.push(at, Event::Packet(packet));
    }

    /// Lets go what was held back.
    pub(crate) fn release(&mut self) {
        self.hold = None;
        for packet in core::mem::take(&mut self.held) {
            self.send(packet);
        }
    }

    /// Takes the effects of a node.
    pub(crate) fn drain(&mut self, node: NodeId) {
        let now = self.now;
        loop {
            let Some(state) = self.nodes.get_mut(&node) else { return };
            let me = state.me;
            let Some(output) = state.shard.as_mut().and_then(|shard| shard.poll_output(now)) else { return };
            match output {
                ShardOutput::Send(packet) => self.send(packet),
                ShardOutput::Disk(op) => {
                    let (id, sync) = (op.id, matches!(op.kind, DiskOpKind::Sync { .. }));
                    state.disk.begin(op);
                    let hangs = sync && self.stuck.contains(&node.0);
                    let long = if hangs { Duration::from_secs(3600) } else { Duration::ZERO };
                    let at = now + long + self.rng.micros(10, 300);
                    self.push(at, Event::Disk(node, me.incarnation.0, id));
                }
                ShardOutput::Order(command) => {
                    let at = now + self.rng.micros(300, 3000);
                    self.push(at, Event::Order(me, None, command));
                }
                ShardOutput::Gateway(GatewayOutput::Propose { token, command }) => {
                    let at = now + self.rng.micros(300, 3000);
                    self.push(at, Event::Order(me, Some(token), command));
                }
                ShardOutput::Gateway(output) => self.said.push((node, output)),
                ShardOutput::DiskFailed { slot, error } => panic!("disk {slot} of {node:?} failed: {error}"),
                ShardOutput::StoreFailed => panic!("store of {node:?} failed"),
            }
        }
    }

    fn deliver(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Packet(packet) if packet.to.0 == HAND => {
                if let Message::Reply(reply) = packet.message {
                    self.replies.insert(packet.header.request, (packet.header, reply));
                }
            }
            Event::Packet(packet) => {
                if let Some(shard) = self.nodes.get_mut(&packet.to).and_then(|node| node.shard.as_mut()) {
                    shard.handle_packet(now, packet.header, packet.message);
                }
                self.drain(packet.to);
            }
            Event::Disk(node, incarnation, id) => {
                let state = self.nodes.get_mut(&node).unwrap();
                if state.me.incarnation.0 != incarnation {
                    return;
                }
                let result: Option<DiskResult> = state.disk.finish(id);
                if let (Some(shard), Some(result)) = (&mut state.shard, result) {
                    shard.handle_disk(now, id, result);
                }
                self.drain(node);
            }
            Event::View(node, incarnation, view) => {
                if self.nodes[&node].me.incarnation.0 == incarnation && !self.outside.contains(&node.0) {
                    self.take_view(node, view);
                    self.drain(node);
                }
            }
            Event::Proposed(member, token, result) => {
                let node = self.nodes.get_mut(&member.node).unwrap();
                if node.me == member && !self.outside.contains(&member.node.0) {
                    if let Some(shard) = &mut node.shard {
                        shard.handle_proposed(now, token, result);
                    }
                    self.drain(member.node);
                }
            }
            Event::Order(member, token, command) => self.order(member, token, command),
        }
    }

    fn order(&mut self, member: Member, token: Option<u64>, command: sheep_state::Command) {
        if self.outside.contains(&member.node.0) {
            // It is ordered when the node is back, if it still runs.
            let at = self.now + Duration::from_millis(5);
            if self.nodes[&member.node].me == member {
                self.push(at, Event::Order(member, token, command));
            }
            return;
        }
        let result = self.log.run_as(member, command);
        self.distribute();
        if let (Some(token), Some(result)) = (token, result) {
            // The proposer's own view goes first.
            let view = self.view_of(member.node);
            self.take_view(member.node, view);
            self.push(self.now, Event::Proposed(member, token, result));
            self.drain(member.node);
        }
    }

    /// The next event, or a timeout.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        let timeout = self
            .nodes
            .iter()
            .filter_map(|(node, state)| Some((state.shard.as_ref()?.poll_timeout()?, *node)))
            .min();
        let event = self.events.first_key_value().map(|(key, _)| *key);
        match (timeout, event) {
            (Some((at, node)), event) if event.is_none_or(|(time, _)| at <= time) => {
                self.now = self.now.max(at);
                let now = self.now;
                if let Some(shard) = self.nodes.get_mut(&node).and_then(|node| node.shard.as_mut()) {
                    shard.handle_timeout(now);
                }
                self.drain(node);
            }
            (_, Some(key)) => {
                self.now = self.now.max(key.0);
                if let Some(event) = self.events.remove(&key) {
                    self.deliver(event);
                }
            }
            _ => self.now = self.now + Duration::from_millis(1),
        }
    }

    /// Runs for a while.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let next = self.events.first_key_value().map(|(key, _)| key.0);
            let timeouts = self.nodes.values().filter_map(|node| node.shard.as_ref()?.poll_timeout()).min();
            if next.into_iter().chain(timeouts).min().is_none_or(|next| next > end) {
                self.now = end;
                return;
            }
            self.step();
        }
    }
}
