//! The world: virtual time, nodes, network and disks, and the queue of what happens next.

use crate::checks::{Agreement, Counts};
use crate::client::Client;
use crate::net::Net;
use crate::node::Node;
use crate::options::Options;
use crate::rng::Rng8;
use crate::scenario::Hooks;
use crate::trace::Trace;
use bytes::Bytes;
use sheep_datapath::{GatewayOutput, Shard, ShardOutput, View};
use sheep_engine::{Control, ControlOutput, FileId, Published};
use sheep_state::{Command, Genesis, NodeState, Outcome, Refusal, Settings};
use sheep_store::{DiskOp, DiskOpId, DiskOpKind};
use sheep_totem::Destination;
use sheep_types::{ClusterId, Geometry, LogIndex, Member, NodeId, Time};
use sheep_wire::Packet;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

/// Token of commands whose answer nobody waits for.
const UNASKED: u64 = u64::MAX;
/// Tokens of commands of the world itself have this bit.
const OF_WORLD: u64 = 1 << 62;

#[allow(missing_docs)]
/// What can happen. Events of a process carry its incarnation and mean nothing to a later one.
pub enum Event {
    /// A datagram of control arrives.
    Datagram { to: usize, from: NodeId, packet: Bytes },
    /// A message of the data path arrives.
    Packet { to: usize, packet: Box<Packet> },
    /// A timer of control.
    ControlTimer { node: usize, run: u64 },
    /// A timer of the data path.
    ShardTimer { node: usize, run: u64 },
    /// A write of the log is durable.
    LogDurable { node: usize, run: u64, id: FileId },
    /// A disk operation of the store is done.
    DiskDone { node: usize, run: u64, id: DiskOpId },
    /// Control tells the data path.
    ToShard { node: usize, run: u64, message: ToShard },
    /// The data path tells control.
    ToControl { node: usize, run: u64, message: ToControl },
    /// A client acts.
    Client(usize),
    /// A machine starts its node, if it does not run.
    Start(usize),
    /// The network is whole again, unless it was cut anew.
    Heal(u64),
    /// The next fault.
    Nemesis,
}

/// From control to the data path.
pub enum ToShard {
    /// The applied state.
    View(Published),
    /// The lease's end.
    Lease(Time),
    /// A command's answer.
    Proposed(u64, Result<Outcome, Refusal>),
}

/// From the data path to control.
pub enum ToControl {
    /// Order a command.
    Order(u64, Box<Command>),
    /// A reported node was tested.
    Tested(LogIndex, bool),
}

struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Everything there is.
pub struct World {
    /// World time, nanoseconds.
    pub now: u64,
    /// Settings of the run.
    pub options: Options,
    /// Machines.
    pub nodes: Vec<Node>,
    /// Clients.
    pub clients: Vec<Client>,
    /// Network.
    pub net: Net,
    /// Randomness of the world.
    pub rng: Rng8,
    /// What happened.
    pub trace: Trace,
    /// How much happened.
    pub counts: Counts,
    /// Number of times the network was changed; a healing of an earlier state is void.
    pub net_changes: u64,
    agreement: BTreeMap<ClusterId, Agreement>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    /// The first thing that must not be.
    violation: Option<String>,
    /// Runs of nodes that the cluster has given up (taken out) at some time: what only they held in memory may be
    /// gone.
    pub given_up: BTreeSet<(usize, u64)>,
    /// Answers to the world's own commands.
    pub answers: BTreeMap<u64, Result<Outcome, Refusal>>,
    timers: BTreeMap<(usize, bool), u64>,
    /// What a script holds back and catches.
    pub hooks: Hooks,
}

impl World {
    /// A world with one node formatted and all started.
    pub fn new(options: Options) -> Self {
        let mut rng = Rng8::new(options.seed);
        let mut nodes: Vec<Node> = (0..options.nodes).map(|i| Node::new(i, &mut rng, &options)).collect();
        let settings = Settings {
            copies: options.copies,
            min_copies: options.min_copies,
            out_delay_ms: options.out_delay.as_millis() as u64,
            lease_ms: options.token_loss.as_millis() as u64 * 5,
            flush_interval_ms: 500,
            ..Settings::default()
        };
        let geometry = Geometry::with_object_size(64 << 10).expect("64 KiB is a legal size");
        let cluster = ClusterId(u128::from(rng.any()) | 1);
        let genesis = Genesis { cluster, geometry, settings, voters: vec![nodes[0].id] };
        nodes[0].format(&genesis);
        let mut world = Self {
            now: 0,
            trace: Trace::new(options.verbose),
            nodes,
            clients: Vec::new(),
            net: Net::default(),
            rng,
            counts: Counts::default(),
            net_changes: 0,
            agreement: BTreeMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            violation: None,
            given_up: BTreeSet::new(),
            answers: BTreeMap::new(),
            timers: BTreeMap::new(),
            hooks: Hooks::default(),
            options,
        };
        for index in 0..world.nodes.len() {
            let at = world.rng.range(0, 500_000_000);
            world.schedule(at, Event::Start(index));
        }
        world
    }

    /// Lets something happen later.
    pub fn schedule(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + after, order: self.order, event }));
    }

    /// Something that must not be. The first one counts.
    pub fn violate(&mut self, what: String) {
        self.trace.say(self.now, &format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }

    /// Runs until a world time.
    ///
    /// # Errors
    /// The first violation.
    pub fn run_until(&mut self, end: u64) -> Result<(), String> {
        while self.queue.peek().is_some_and(|Reverse(next)| next.at <= end) {
            self.step()?;
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// Lets the next thing happen.
    ///
    /// # Errors
    /// The first violation.
    pub fn step(&mut self) -> Result<(), String> {
        if let Some(Reverse(Scheduled { at, event, .. })) = self.queue.pop() {
            self.now = at;
            self.happen(event);
        }
        match &self.violation {
            Some(violation) => Err(violation.clone()),
            None => Ok(()),
        }
    }

    /// Whether this run of a node is there; if the machine stands still, the event waits.
    fn awake(&mut self, node: usize, run: Option<u64>, event: Event) -> Option<Event> {
        let machine = &self.nodes[node];
        if machine.running.is_none() || run.is_some_and(|run| run != machine.incarnation) {
            return None;
        }
        if machine.paused_until > self.now {
            let wait = machine.paused_until - self.now;
            self.schedule(wait, event);
            return None;
        }
        Some(event)
    }

    fn happen(&mut self, event: Event) {
        let (kind, node, run) = match &event {
            Event::Datagram { to, .. } => (1, *to, None),
            Event::Packet { to, .. } => (2, *to, None),
            Event::ControlTimer { node, run } => (3, *node, Some(*run)),
            Event::ShardTimer { node, run } => (4, *node, Some(*run)),
            Event::LogDurable { node, run, .. } => (5, *node, Some(*run)),
            Event::DiskDone { node, run, .. } => (6, *node, Some(*run)),
            Event::ToShard { node, run, .. } => (7, *node, Some(*run)),
            Event::ToControl { node, run, .. } => (8, *node, Some(*run)),
            Event::Client(client) => return self.client_acts(*client),
            Event::Start(node) => return self.start(*node),
            Event::Heal(change) => {
                if *change == self.net_changes {
                    self.net.heal();
                    self.trace.say(self.now, "network healed");
                }
                return;
            }
            Event::Nemesis => return self.nemesis(),
        };
        let Some(event) = self.awake(node, run, event) else { return };
        self.trace.event(self.now, kind, node, self.order);
        let at = self.nodes[node].clock(self.now);
        match event {
            Event::Datagram { from, packet, .. } => {
                self.with_control(node, |control| control.handle_packet(at, from, &packet));
            }
            Event::Packet { packet, .. } => {
                self.with_shard(node, |shard| shard.handle_packet(at, packet.header, packet.message));
            }
            Event::ControlTimer { .. } => {
                self.timers.remove(&(node, false));
                self.with_control(node, |control| {
                    if control.poll_timeout().is_some_and(|due| due <= at) {
                        control.handle_timeout(at);
                    }
                });
            }
            Event::ShardTimer { .. } => {
                self.timers.remove(&(node, true));
                self.with_shard(node, |shard| {
                    if shard.poll_timeout().is_some_and(|due| due <= at) {
                        shard.handle_timeout(at);
                    }
                });
            }
            Event::LogDurable { id, .. } => {
                self.nodes[node].log.sync(id);
                self.with_control(node, |control| control.handle_durable(at, id));
            }
            Event::DiskDone { id, .. } => {
                if let Some(result) = self.nodes[node].disk.finish(id) {
                    self.with_shard(node, |shard| shard.handle_disk(at, id, result));
                }
            }
            Event::ToShard { message, .. } => self.tell_shard(node, at, message),
            Event::ToControl { message, .. } => self.with_control(node, |control| match message {
                ToControl::Order(token, command) => {
                    let _ = control.propose(at, token, &command);
                }
                ToControl::Tested(report, reachable) => control.handle_tested(at, report, reachable),
            }),
            Event::Client(_) | Event::Start(_) | Event::Heal(_) | Event::Nemesis => {}
        }
    }

    fn start(&mut self, index: usize) {
        if self.nodes[index].running.is_some() {
            return;
        }
        let started = self.nodes[index].start(self.now, &mut self.rng, &self.options);
        if let Err(problem) = started {
            return self.violate(format!("node {index} cannot start: {problem}"));
        }
        let incarnation = self.nodes[index].incarnation;
        self.trace.say(self.now, &format!("node {index} starts, incarnation {incarnation}"));
        self.after_control(index);
    }

    /// Kills a node's process.
    pub fn crash(&mut self, index: usize) {
        if self.nodes[index].running.is_none() {
            return;
        }
        self.trace.say(self.now, &format!("node {index} is killed"));
        self.counts.crashes += 1;
        self.nodes[index].crash(&mut self.rng);
        self.timers.remove(&(index, false));
        self.timers.remove(&(index, true));
        self.clients_lose(index);
    }

    /// Calls the control engine of a node and carries out what comes of it.
    pub fn with_control(&mut self, index: usize, call: impl FnOnce(&mut Control)) {
        if let Some(running) = &mut self.nodes[index].running {
            call(&mut running.control);
            self.after_control(index);
        }
    }

    /// Calls the data path of a node and carries out what comes of it.
    pub fn with_shard(&mut self, index: usize, call: impl FnOnce(&mut Shard)) {
        if let Some(shard) = self.nodes[index].running.as_mut().and_then(|running| running.shard.as_mut()) {
            call(shard);
            self.after_shard(index);
        }
    }

    fn after_control(&mut self, index: usize) {
        while let Some(output) = self.nodes[index].running.as_mut().and_then(|r| r.control.poll_output()) {
            self.control_output(index, output);
        }
        let due = self.nodes[index].running.as_ref().and_then(|r| r.control.poll_timeout());
        self.set_timer(index, false, due);
    }

    fn after_shard(&mut self, index: usize) {
        let at = self.nodes[index].clock(self.now);
        let next = |world: &mut Self| {
            let running = world.nodes[index].running.as_mut()?;
            running.shard.as_mut()?.poll_output(at)
        };
        while let Some(output) = next(self) {
            self.shard_output(index, output);
        }
        let due = self.nodes[index].running.as_ref().and_then(|r| r.shard.as_ref()?.poll_timeout());
        self.set_timer(index, true, due);
    }

    /// One timer event per actor is enough: the earliest.
    fn set_timer(&mut self, node: usize, of_shard: bool, due: Option<Time>) {
        let Some(due) = due else { return };
        let at = self.nodes[node].world_time(due).max(self.now + 1);
        if self.timers.get(&(node, of_shard)).is_some_and(|set| *set <= at) {
            return;
        }
        self.timers.insert((node, of_shard), at);
        let run = self.nodes[node].incarnation;
        let event =
            if of_shard { Event::ShardTimer { node, run } } else { Event::ControlTimer { node, run } };
        self.schedule(at - self.now, event);
    }

    fn index_of(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|machine| machine.id == node)
    }

    fn control_output(&mut self, node: usize, output: ControlOutput) {
        let run = self.nodes[node].incarnation;
        match output {
            ControlOutput::Send { to, packet } => self.send_datagram(node, to, &packet),
            ControlOutput::Append { id, records } => {
                self.nodes[node].log.append(id, &records);
                self.log_write(node, run, id, records.len());
            }
            ControlOutput::Replace { id, contents } => {
                self.nodes[node].log.replace(id, &contents);
                self.log_write(node, run, id, contents.len());
            }
            ControlOutput::Publish(published) => {
                self.check_published(node, &published);
                self.queue_to_shard(node, ToShard::View(published));
            }
            ControlOutput::Lease(deadline) => self.queue_to_shard(node, ToShard::Lease(deadline)),
            ControlOutput::Answered { token, result } if token & OF_WORLD != 0 && token != UNASKED => {
                self.answers.insert(token, result);
            }
            ControlOutput::Answered { token, result } if token != UNASKED => {
                self.queue_to_shard(node, ToShard::Proposed(token, result));
            }
            ControlOutput::Answered { .. } | ControlOutput::AnswerLost { .. } => {}
            ControlOutput::TestPeer { report, peer } => self.test_peer(node, report, peer),
            ControlOutput::Note(text) => self.trace.say(self.now, &format!("node {node}: {text}")),
            ControlOutput::Fatal(problem) => self.violate(format!("node {node} stops for ever: {problem}")),
        }
    }

    fn check_published(&mut self, node: usize, published: &Published) {
        let Some(running) = &self.nodes[node].running else { return };
        let commit = running.control.log().commit();
        let agreement = self.agreement.entry(published.state.cluster()).or_default();
        let committed = agreement.committed(node, commit);
        let applied = agreement.applied(node, published.index, published.state.hash());
        self.counts.epochs = self.counts.epochs.max(published.state.epoch().0);
        for record in published.state.nodes().filter(|record| matches!(record.state, NodeState::Out { .. })) {
            if let Some(index) = self.nodes.iter().position(|machine| machine.id == record.node) {
                self.given_up.insert((index, record.incarnation.0));
            }
        }
        if let Err(problem) = committed.and(applied) {
            self.violate(problem);
        }
    }

    fn send_datagram(&mut self, node: usize, to: Destination, packet: &Bytes) {
        let from = self.nodes[node].id;
        let targets: Vec<usize> = match to {
            Destination::Node(id) => self.index_of(id).into_iter().collect(),
            Destination::Members => {
                let members = self.nodes[node].running.as_ref().map(|r| r.control.ring().members().to_vec());
                let members = members.unwrap_or_default();
                members.iter().filter(|m| m.node != from).filter_map(|m| self.index_of(m.node)).collect()
            }
            Destination::Everyone => (0..self.nodes.len()).filter(|other| *other != node).collect(),
        };
        for target in targets {
            for delay in self.net.datagram(node, target, &mut self.rng) {
                let event = Event::Datagram { to: target, from, packet: packet.clone() };
                if let Some(event) = self.hooks.pass(node, event) {
                    self.schedule(delay, event);
                }
            }
        }
    }

    fn log_write(&mut self, node: usize, run: u64, id: FileId, len: usize) {
        let took = (self.rng.range(30_000, 300_000) + len as u64) * self.nodes[node].slow;
        let machine = &mut self.nodes[node];
        let Some(running) = &mut machine.running else { return };
        let done = running.log_busy_until.max(self.now).max(machine.hung_until) + took;
        running.log_busy_until = done;
        self.schedule(done - self.now, Event::LogDurable { node, run, id });
    }

    fn queue_to_shard(&mut self, node: usize, message: ToShard) {
        let delay = self.hop();
        let run = self.nodes[node].incarnation;
        let Some(running) = &mut self.nodes[node].running else { return };
        running.to_shard = (self.now + delay).max(running.to_shard + 1);
        let after = running.to_shard - self.now;
        if let Some(event) = self.hooks.pass(node, Event::ToShard { node, run, message }) {
            self.schedule(after, event);
        }
    }

    fn queue_to_control(&mut self, node: usize, message: ToControl) {
        let delay = self.hop();
        let run = self.nodes[node].incarnation;
        let Some(running) = &mut self.nodes[node].running else { return };
        running.to_control = (self.now + delay).max(running.to_control + 1);
        let after = running.to_control - self.now;
        self.schedule(after, Event::ToControl { node, run, message });
    }

    /// Time that a message between two threads of a process takes: now and then one is not scheduled for long.
    fn hop(&mut self) -> u64 {
        if self.rng.chance(2_000) { self.rng.range(0, 50_000_000) } else { self.rng.range(1_000, 60_000) }
    }

    fn tell_shard(&mut self, node: usize, at: Time, message: ToShard) {
        match message {
            ToShard::View(published) => {
                let me = self.nodes[node].member();
                let cluster = published.state.cluster();
                let geometry = published.state.geometry();
                let Some(running) = &mut self.nodes[node].running else { return };
                let view =
                    View::advance(running.view.as_deref(), me, cluster, published.index, published.state);
                let view = Arc::new(view);
                if running.view.as_ref().is_some_and(|before| before.epoch() != view.epoch()) {
                    // Progress is counted anew in every epoch.
                    let replica = running.shard.as_ref().and_then(|shard| shard.replica());
                    self.counts.recovered += replica.map_or(0, |replica| replica.progress().objects_done);
                }
                running.view = Some(Arc::clone(&view));
                if running.shard.is_none() && cluster != ClusterId(0) {
                    self.nodes[node].make_shard(self.now, cluster, geometry, &self.options);
                }
                self.with_shard(node, |shard| shard.handle_view(at, view));
            }
            ToShard::Lease(deadline) => {
                if let Some(running) = &mut self.nodes[node].running {
                    running.lease = deadline;
                }
                self.with_shard(node, |shard| shard.handle_lease(at, deadline));
            }
            ToShard::Proposed(token, result) => {
                self.with_shard(node, |shard| shard.handle_proposed(at, token, result));
            }
        }
    }

    fn shard_output(&mut self, node: usize, output: ShardOutput) {
        match output {
            ShardOutput::Send(packet) => self.send_packet(node, packet),
            ShardOutput::Disk(op) => self.disk_op(node, op),
            ShardOutput::Order(command) => {
                self.queue_to_control(node, ToControl::Order(UNASKED, Box::new(command)));
            }
            ShardOutput::StoreFailed => {
                self.violate(format!("node {node}: the store failed without a fault"))
            }
            ShardOutput::Gateway(GatewayOutput::Propose { token, command }) => {
                self.queue_to_control(node, ToControl::Order(token, Box::new(command)));
            }
            ShardOutput::Gateway(GatewayOutput::Report { suspect }) => {
                let view = self.nodes[node].running.as_ref().and_then(|r| r.view.clone());
                let epoch = view.map(|view| view.epoch()).unwrap_or_default();
                let command = Command::Report { suspect, epoch };
                self.queue_to_control(node, ToControl::Order(UNASKED, Box::new(command)));
            }
            ShardOutput::Gateway(GatewayOutput::Send(packet)) => self.send_packet(node, packet),
            ShardOutput::Gateway(output) => {
                if let Some(output) = self.hooks.catch(node, output) {
                    self.volume_output(node, output);
                }
            }
        }
    }

    fn send_packet(&mut self, node: usize, packet: Packet) {
        let Some(to) = self.index_of(packet.to) else { return };
        if let Some(delay) = self.net.message(node, to, &mut self.rng)
            && let Some(event) = self.hooks.pass(node, Event::Packet { to, packet: Box::new(packet) })
        {
            self.schedule(delay, event);
        }
    }

    fn disk_op(&mut self, node: usize, op: DiskOp) {
        let usual = match &op.kind {
            DiskOpKind::Sync { .. } | DiskOpKind::SyncDirectory => self.rng.range(50_000, 500_000),
            DiskOpKind::Read { .. } => self.rng.range(20_000, 120_000),
            _ => self.rng.range(5_000, 60_000),
        };
        let took = usual * self.nodes[node].slow;
        let run = self.nodes[node].incarnation;
        let id = op.id;
        self.nodes[node].disk.begin(op);
        self.schedule(took, Event::DiskDone { node, run, id });
    }

    /// The data path of another node answers if the network carries both ways and the node runs.
    fn test_peer(&mut self, node: usize, report: LogIndex, peer: Member) {
        let reachable = self.index_of(peer.node).is_some_and(|to| {
            let machine = &self.nodes[to];
            let runs = machine.running.is_some()
                && machine.paused_until <= self.now
                && !self.hooks.deaf.contains(&to);
            runs && self.net.carries(node, to) && self.net.carries(to, node)
        });
        self.queue_to_control(node, ToControl::Tested(report, reachable));
    }

    /// Orders a command at a node for the world; gives the token of its answer.
    pub fn order(&mut self, node: usize, command: &Command) -> Option<u64> {
        self.order += 1;
        let token = OF_WORLD | self.order;
        let at = self.nodes[node].clock(self.now);
        let mut taken = false;
        self.with_control(node, |control| taken = control.propose(at, token, command).is_ok());
        taken.then_some(token)
    }
}
