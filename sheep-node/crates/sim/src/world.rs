//! The world: virtual time, nodes, network and disks, and the queue of what happens next.

mod effects;

use crate::checks::{Agreement, Counts};
use crate::client::Client;
use crate::net::Net;
use crate::node::Node;
use crate::options::Options;
use crate::rng::Rng8;
use crate::scenario::Hooks;
use crate::trace::Trace;
use crate::tree::Tree;
use bytes::Bytes;
use sheep_datapath::{GatewayOutput, Shard, ShardOutput, View};
use sheep_engine::{Control, ControlOutput, FileId, Published};
use sheep_state::{Command, Genesis, NodeState, Outcome, Refusal, Settings};
use sheep_store::{DiskOp, DiskOpId, DiskOpKind};
use sheep_totem::Destination;
use sheep_types::{ClusterId, Epoch, Geometry, LogIndex, Member, NodeId, Time};
use sheep_wire::{Packet, Reply};
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
    /// The operator of the tree acts.
    Operator,
    /// A machine starts its node, if it does not run.
    Start(usize),
    /// The network is whole again, unless it was cut anew.
    Heal(u64),
    /// The next fault.
    Nemesis,
    /// Power goes everywhere.
    PowerCut,
    /// A disk that failed or was pulled works again.
    DiskBack { node: usize, disk: usize },
    /// A disk is to be taken away once it is empty.
    DiskEmptied { node: usize, disk: usize },
    /// A disk whose contents rotted is replaced by an empty one.
    DiskReplaced { node: usize, disk: usize },
    /// A disk was given up; it may have to be said again.
    DiskGivenUp { node: usize, id: u64 },
}

/// From control to the data path.
pub enum ToShard {
    /// The applied state.
    View(Published),
    /// The lease's end.
    Lease(Time),
    /// A command's answer.
    Proposed(u64, Result<Outcome, Refusal>),
    /// A command will have no answer.
    Unanswered(u64),
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
    /// What all volumes and snapshots contain.
    pub tree: Tree,
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
    /// Runs of nodes that were up in each epoch there ever was, also in those that the cluster has forgotten.
    pub up_in: BTreeMap<(ClusterId, Epoch), BTreeSet<(usize, u64)>>,
    /// Answers to the world's own commands.
    pub answers: BTreeMap<u64, Result<Outcome, Refusal>>,
    /// Commands of the world's own that took effect or not; nobody knows any more.
    pub(crate) answers_lost: BTreeSet<u64>,
    timers: BTreeMap<(usize, bool), u64>,
    /// Connections, by who called whom, that have ended, and when they are made again.
    pub(crate) broken: BTreeMap<(usize, usize), u64>,
    /// Whatever rotted has been made good: no read may fail any more.
    pub(crate) healed: bool,
    /// What a script holds back and catches.
    pub hooks: Hooks,
    /// The last answer to a question of the world's own.
    pub(crate) spy: Option<Reply>,
    /// Volumes that were opened for nobody, by handle.
    pub(crate) background: std::collections::BTreeMap<u64, sheep_types::VdiId>,
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
            flush_interval_ms: options.flush_interval.as_millis() as u64,
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
            tree: Tree::default(),
            net: Net::default(),
            rng,
            counts: Counts::default(),
            net_changes: 0,
            agreement: BTreeMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            violation: None,
            given_up: BTreeSet::new(),
            up_in: BTreeMap::new(),
            answers: BTreeMap::new(),
            answers_lost: BTreeSet::new(),
            timers: BTreeMap::new(),
            broken: BTreeMap::new(),
            healed: false,
            hooks: Hooks::default(),
            spy: None,
            background: Default::default(),
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
            Event::Operator => return self.operator_acts(),
            Event::Start(node) => return self.start(*node),
            Event::Heal(change) => {
                if *change == self.net_changes {
                    self.net.heal();
                    self.trace.say(self.now, "network healed");
                }
                return;
            }
            Event::Nemesis => return self.nemesis(),
            Event::PowerCut => return self.aimed_power_cut(),
            Event::DiskBack { node, disk } => return self.disk_back(*node, *disk),
            Event::DiskReplaced { node, disk } => return self.disk_replaced(*node, *disk),
            Event::DiskGivenUp { node, id } => return self.give_up(*node, *id),
            Event::DiskEmptied { node, disk } => return self.disk_emptied(*node, *disk),
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
                if let Some(result) = self.nodes[node].finish_disk(id) {
                    self.with_shard(node, |shard| shard.handle_disk(at, id, result));
                }
            }
            Event::ToShard { message, .. } => self.tell_shard(node, at, message),
            Event::ToControl { message, .. } => {
                let mut refused = None;
                self.with_control(node, |control| match message {
                    ToControl::Order(token, command) => {
                        refused = control.propose(at, token, &command).err().map(|_| token);
                    }
                    ToControl::Tested(report, reachable) => control.handle_tested(at, report, reachable),
                });
                if let Some(token) = refused.filter(|token| *token != UNASKED) {
                    self.queue_to_shard(node, ToShard::Unanswered(token));
                }
            }
            Event::Client(_)
            | Event::Operator
            | Event::Start(_)
            | Event::Heal(_)
            | Event::Nemesis
            | Event::PowerCut
            | Event::DiskBack { .. }
            | Event::DiskEmptied { .. }
            | Event::DiskReplaced { .. }
            | Event::DiskGivenUp { .. } => {}
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
        let mut lease = None;
        while let Some(output) = self.nodes[index].running.as_mut().and_then(|r| r.control.poll_output()) {
            if let ControlOutput::Lease(deadline) = &output {
                lease = Some(*deadline);
            }
            self.control_output(index, output);
        }
        self.check_lease(index, lease);
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
}
