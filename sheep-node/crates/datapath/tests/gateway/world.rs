//! Storage nodes, gateways, a network and an order, in one thread and driven step by step.

mod events;

use crate::replica::{Copy, Handled, Replica};
use sheep_datapath::{
    Gateway, GatewayConfig, GatewayOutput, OpenMode, View, VolumeError, VolumeOp, VolumeReply,
};
use sheep_state::{
    Addresses, ClusterState, Command, CreateVdi, DiskRecord, DiskState, EntryKind, Genesis, NodeState,
    NodeUp, Outcome, Refusal, Role, Settings,
};
use sheep_types::{
    ClusterId, CommandSeq, ConfigId, Geometry, Incarnation, LogIndex, Member, NodeId, ObjectId, Time, VdiId,
    Vid,
};
use sheep_wire::{Header, Message, Packet, Reply, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const BLOCK: usize = 4096;
pub(crate) const OBJECT: u64 = 64 << 10;
const CLUSTER: ClusterId = ClusterId(77);

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A small generator of numbers; the same seed gives the same run.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What travels or waits.
#[derive(Debug)]
enum Event {
    Packet(Packet, u32),
    View(NodeId, Arc<View>),
    Proposal(Member, u64, Command),
}

/// Rules of the network: percent of packets lost and doubled, and the longest delay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Net {
    pub(crate) lose: u64,
    pub(crate) double: u64,
    pub(crate) delay_us: u64,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) random: Random,
    pub(crate) net: Net,
    pub(crate) state: ClusterState,
    pub(crate) replicas: BTreeMap<NodeId, Replica>,
    pub(crate) down: BTreeSet<NodeId>,
    pub(crate) gateways: BTreeMap<NodeId, (Member, Gateway)>,
    /// Requests of this kind to this node are swallowed.
    pub(crate) deaf: BTreeSet<(NodeId, &'static str)>,
    /// What gateways said, but for packets and proposals.
    pub(crate) said: Vec<(NodeId, GatewayOutput)>,
    /// Longest delay of views, microseconds.
    pub(crate) view_delay_us: u64,
    /// Renew leases by themselves.
    pub(crate) leases: bool,
    /// Replies to reads of data objects wait here, if they are to wait.
    pub(crate) held_back: Option<Vec<Packet>>,
    data_reads: BTreeSet<u64>,
    /// Percent of proposals that get no answer, and of these, that are carried out all the same.
    pub(crate) silent: (u64, u64),
    /// Proposals of gateways so far.
    pub(crate) proposals: u64,
    sequences: BTreeMap<Member, u64>,
    events: BTreeMap<(Time, u64), Event>,
    order: u64,
    views: BTreeMap<NodeId, Arc<View>>,
    term: u64,
    next_io: u64,
}

impl World {
    /// Storage nodes 1 to `storage`, gateway nodes 100 and 101, one VDI of `size` bytes.
    pub(crate) fn new(storage: u64, settings: Settings, seed: u64) -> Self {
        let mut world = Self {
            now: Time::ZERO + Duration::from_secs(100),
            random: Random::new(seed),
            net: Net { lose: 0, double: 0, delay_us: 200 },
            state: ClusterState::new(),
            replicas: BTreeMap::new(),
            down: BTreeSet::new(),
            gateways: BTreeMap::new(),
            deaf: BTreeSet::new(),
            said: Vec::new(),
            view_delay_us: 0,
            leases: true,
            held_back: None,
            data_reads: BTreeSet::new(),
            silent: (0, 0),
            proposals: 0,
            sequences: BTreeMap::new(),
            events: BTreeMap::new(),
            order: 0,
            views: BTreeMap::new(),
            term: 0,
            next_io: 1,
        };
        let geometry = Geometry::with_object_size(OBJECT as u32).unwrap();
        let voters = vec![NodeId(1)];
        world.entry(EntryKind::Genesis(Genesis { cluster: CLUSTER, geometry, settings, voters }));
        for node in 1..=storage {
            let me = Member { node: NodeId(node), incarnation: Incarnation(1) };
            world.replicas.insert(NodeId(node), Replica::new(me));
            world.order_now(me, Command::NodeUp(node_up(Role::Storage))).unwrap();
        }
        for node in [100, 101] {
            let me = Member { node: NodeId(node), incarnation: Incarnation(1) };
            world.order_now(me, Command::NodeUp(node_up(Role::Gateway))).unwrap();
            world.start_gateway(me);
        }
        world.say_recovered();
        world
    }

    /// All storage nodes that are up say that they have recovered.
    fn say_recovered(&mut self) {
        let all = self.replicas.values().map(|replica| replica.me);
        let up: Vec<Member> = all.filter(|me| !self.down.contains(&me.node)).collect();
        let epoch = self.state.epoch();
        for me in up {
            self.order_now(me, Command::Recovered { epoch }).unwrap();
        }
        self.publish();
    }

    pub(crate) fn start_gateway(&mut self, me: Member) {
        self.start_gateway_with(me, GatewayConfig::default());
    }

    pub(crate) fn start_gateway_with(&mut self, me: Member, config: GatewayConfig) {
        let gateway = Gateway::new(config, me, CLUSTER, self.now);
        self.gateways.insert(me.node, (me, gateway));
        self.publish();
    }

    pub(crate) fn create(&mut self, size: u64) -> VdiId {
        let create = CreateVdi {
            name: "disk".to_owned(),
            size,
            copies: None,
            min_copies: None,
            cache: Default::default(),
            attributes: BTreeMap::new(),
            created_unix_ms: 1,
        };
        let me = Member { node: NodeId(100), incarnation: Incarnation(1) };
        let Ok(Outcome::Created { vdi, .. }) = self.order_now(me, Command::CreateVdi(create)) else {
            panic!("not created")
        };
        self.publish();
        vdi
    }

    fn entry(&mut self, entry: EntryKind) -> Option<Result<Outcome, Refusal>> {
        let index = LogIndex(self.state.applied().0 + 1);
        self.state.apply(index, &entry).answer.map(|answer| answer.result)
    }

    /// Orders a command and applies it; views are not published by this.
    pub(crate) fn order_now(&mut self, origin: Member, command: Command) -> Result<Outcome, Refusal> {
        let seq = self.sequences.entry(origin).or_insert(0);
        *seq += 1;
        let seq = CommandSeq(*seq);
        self.entry(EntryKind::Command { origin, seq, command }).unwrap()
    }

    /// The present state becomes the view of all nodes, sooner or later.
    pub(crate) fn publish(&mut self) {
        let nodes: Vec<Member> = self
            .replicas
            .values()
            .map(|replica| replica.me)
            .chain(self.gateways.values().map(|(member, _)| *member))
            .filter(|member| !self.down.contains(&member.node))
            .collect();
        let state = Arc::new(self.state.clone());
        for me in nodes {
            let previous = self.views.get(&me.node).filter(|view| view.me == me).cloned();
            let index = state.applied();
            let view = View::advance(previous.as_deref(), me, CLUSTER, index, Arc::clone(&state));
            let view = Arc::new(view);
            self.views.insert(me.node, Arc::clone(&view));
            let delay = self.random.below(self.view_delay_us + 1);
            self.push(delay, Event::View(me.node, view));
        }
    }

    fn push(&mut self, delay_us: u64, event: Event) {
        self.order += 1;
        self.events.insert((self.now + Duration::from_micros(delay_us), self.order), event);
    }

    /// A configuration without the nodes that are down.
    pub(crate) fn reconfigure(&mut self) {
        self.term += 1;
        let term = ConfigId { number: self.term, representative: NodeId(1) };
        let storage = self.replicas.values().map(|replica| replica.me);
        let gateways = self.gateways.values().map(|(member, _)| *member);
        let members = storage.chain(gateways).filter(|member| !self.down.contains(&member.node)).collect();
        self.entry(EntryKind::Install { term, members });
        self.publish();
    }

    /// A storage node loses power. What it had not flushed is gone.
    pub(crate) fn crash(&mut self, node: u64) {
        self.down.insert(NodeId(node));
        let replica = self.replicas.get_mut(&NodeId(node)).unwrap();
        replica.restart(Incarnation(replica.me.incarnation.0 + 1));
        self.reconfigure();
    }

    /// A storage node is cut off; it keeps what it has in memory.
    pub(crate) fn cut(&mut self, node: u64) {
        self.down.insert(NodeId(node));
        self.reconfigure();
    }

    /// It is back, in the same run.
    pub(crate) fn rejoin(&mut self, node: u64) {
        self.down.remove(&NodeId(node));
        let me = self.replicas[&NodeId(node)].me;
        let NodeState::Down { since, .. } = self.state.node(me.node).unwrap().state else {
            panic!("not down")
        };
        let up = NodeUp { seen_down_since: Some(since), ..node_up(Role::Storage) };
        self.order_now(me, Command::NodeUp(up)).unwrap();
        self.publish();
    }

    /// A node that is down is given up.
    pub(crate) fn out(&mut self, node: u64) {
        let me = self.gateways.values().next().unwrap().0;
        let record = self.state.node(NodeId(node)).unwrap();
        let (node, incarnation) = (record.node, record.incarnation);
        let NodeState::Down { since, .. } = record.state else { panic!("not down") };
        let out = Command::ProposeOut { node, incarnation, down_since: since, by_operator: true };
        self.order_now(me, out).unwrap();
        self.publish();
    }

    /// It comes back; its copies are not current before [`World::recover`].
    pub(crate) fn start(&mut self, node: u64) {
        self.down.remove(&NodeId(node));
        let me = self.replicas[&NodeId(node)].me;
        self.order_now(me, Command::NodeUp(node_up(Role::Storage))).unwrap();
        self.publish();
    }

    /// A gateway dies with all it has in memory.
    pub(crate) fn kill_gateway(&mut self, node: u64) {
        self.gateways.remove(&NodeId(node));
        self.reconfigure();
    }

    /// It starts again, as another run.
    pub(crate) fn restart_gateway(&mut self, node: u64, dead: Member) {
        let me = Member { incarnation: Incarnation(dead.incarnation.0 + 1), ..dead };
        assert_eq!(me.node, NodeId(node));
        self.start_gateway(me);
        self.order_now(me, Command::NodeUp(node_up(Role::Gateway))).unwrap();
        self.publish();
    }

    /// What recovery does, at once: every up member of every set gets a durable, current copy. A live copy wins,
    /// else the highest of the restarted ones.
    pub(crate) fn recover(&mut self) {
        let view = View::advance(
            None,
            Member { node: NodeId(1), incarnation: Incarnation(0) },
            CLUSTER,
            self.state.applied(),
            Arc::new(self.state.clone()),
        );
        // Nobody recovers in an epoch that it has not heard of.
        for (node, replica) in &mut self.replicas {
            if let Some(view) = self.views.get(node).filter(|view| view.me == replica.me)
                && replica.view.as_ref().is_none_or(|known| known.index < view.index)
            {
                replica.set_view(Arc::clone(view));
            }
        }
        for (node, replica) in &mut self.replicas {
            replica.recovered = !self.down.contains(node);
        }
        let up = |node: &NodeId| !self.down.contains(node);
        let objects: BTreeSet<ObjectId> = self
            .replicas
            .iter()
            .filter(|(node, _)| up(node))
            .flat_map(|(_, replica)| replica.memory.keys().copied())
            .collect();
        for object in objects {
            let copies = self.replicas.iter().filter(|(node, _)| up(node));
            let copies = copies
                .filter_map(|(_, replica)| Some((replica.is_current(object), replica.memory.get(&object)?)));
            let best: Option<(bool, Copy)> = copies
                .max_by_key(|(current, copy)| (*current, copy.version))
                .map(|(c, copy)| (c, copy.clone()));
            let Some((_, best)) = best else { continue };
            for member in view.up_set(object) {
                let replica = self.replicas.get_mut(&member.node).unwrap();
                if replica.me == member && !replica.is_current(object) {
                    replica.memory.insert(object, best.clone());
                    replica.disk.insert(object, best.clone());
                    replica.current.insert(object, true);
                }
            }
        }
        self.say_recovered();
    }

    /// Runs until there is nothing to do, or this time has passed.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        self.renew();
        loop {
            self.collect();
            let event = self.events.first_key_value().map(|(key, _)| *key);
            let timer = self.gateways.values().filter_map(|(_, gateway)| gateway.poll_timeout()).min();
            let next = [event.map(|key| key.0), timer].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            self.renew();
            if event.is_some_and(|key| key.0 <= next) {
                let (_, event) = self.events.pop_first().unwrap();
                self.handle(event);
            } else {
                let now = self.now;
                for (_, gateway) in self.gateways.values_mut() {
                    if gateway.poll_timeout().is_some_and(|time| time <= now) {
                        gateway.handle_timeout(now);
                        let again = gateway.poll_timeout();
                        assert!(again.is_none_or(|time| time > now), "timers make progress");
                    }
                }
            }
        }
        self.now = until;
        self.renew();
        self.collect();
    }
}

fn kind(request: &Request) -> &'static str {
    match request {
        Request::Write(_) => "write",
        Request::Read { .. } => "read",
        Request::Flush { .. } => "flush",
        Request::Remove { .. } => "remove",
        Request::ClearPending { .. } => "clear",
        _ => "other",
    }
}

fn node_up(role: Role) -> NodeUp {
    NodeUp {
        role,
        name: "host".to_owned(),
        zone: String::new(),
        weight: 100,
        addresses: Addresses { data: vec!["10.0.0.1:7000".parse().unwrap()], ..Addresses::default() },
        shards: 1,
        capacity: 1 << 40,
        disks: vec![DiskRecord { id: 1, incarnation: Incarnation(1), state: DiskState::Up, weight: 1 }],
        seen_down_since: None,
    }
}
