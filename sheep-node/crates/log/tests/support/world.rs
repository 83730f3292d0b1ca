//! All nodes, the rings between them, and the checks after every step.

use super::node::{SimNode, Write};
use super::state::{State, Truth};
use bytes::Bytes;
use sheep_log::{Configuration, Delivery, Log, LogConfig, Note, Output, Recovered, TokenSeen};
use sheep_types::{ClusterId, CommandSeq, ConfigId, Member, NodeId, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use super::faults::run_random;

/// One configuration of the ring, with everything that was ordered in it.
#[derive(Debug)]
pub struct Ring {
    pub id: ConfigId,
    pub members: Vec<Member>,
    /// Those that have not moved on.
    pub active: BTreeSet<NodeId>,
    order: Vec<(Member, Bytes)>,
    received: BTreeMap<NodeId, BTreeSet<usize>>,
    delivered: BTreeMap<NodeId, usize>,
    notes: BTreeMap<NodeId, Note>,
    passed: BTreeMap<NodeId, Time>,
    holder: usize,
    rotation: u64,
}

pub struct World {
    pub now: Time,
    pub config: LogConfig,
    pub nodes: BTreeMap<u64, SimNode>,
    pub rings: Vec<Ring>,
    pub net: Vec<(NodeId, NodeId, Bytes)>,
    pub truth: Truth,
    pub violation: Option<String>,
    /// What happened, so that a run that tests nothing is noticed.
    pub terms: u64,
    pub restores: u64,
    pub renewals: u64,
    /// Datagrams stay where they are.
    pub hold_net: bool,
    /// Print what happens (SHEEP_LOG_TRACE is set).
    pub trace: bool,
}

impl World {
    /// A cluster of one: node 1.
    pub fn new(config: LogConfig) -> Self {
        let mut first = SimNode::new(1);
        first.file = Log::format(ClusterId(77), NodeId(1), 0, Bytes::from_static(b"settings")).to_vec();
        Self {
            now: Time::from_nanos(1_000_000_000),
            config,
            nodes: BTreeMap::from([(1, first)]),
            rings: Vec::new(),
            net: Vec::new(),
            truth: Truth::default(),
            violation: None,
            terms: 0,
            restores: 0,
            renewals: 0,
            hold_net: false,
            trace: std::env::var_os("SHEEP_LOG_TRACE").is_some(),
        }
    }

    pub fn node(&mut self, id: u64) -> &mut SimNode {
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn log(&self, id: u64) -> &Log {
        self.nodes[&id].log.as_ref().unwrap()
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:?} {}", self.now, what());
        }
    }

    pub fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub fn live(&self) -> Vec<u64> {
        self.nodes.values().filter(|n| n.log.is_some()).map(|n| n.id.0).collect()
    }

    pub fn start(&mut self, id: u64) {
        let (config, now) = (self.config.clone(), self.now);
        let node = self.nodes.entry(id).or_insert_with(|| SimNode::new(id));
        let started = node.start(&config, now);
        let last = node.log.as_ref().map(|log| (log.last(), log.commit()));
        self.say(|| format!("node {id} starts with {last:?}"));
        if let Err(e) = started {
            self.fail(format!("node {id} cannot start: {e}"));
        } else {
            self.drain(id);
        }
    }

    pub fn crash(&mut self, id: u64, whole: usize, torn: usize) {
        self.say(|| format!("node {id} crashes, {whole} writes and {torn} bytes are on disk"));
        if let Some(ring) = self.node(id).ring {
            self.rings[ring].active.remove(&NodeId(id));
        }
        self.node(id).crash(whole, torn);
    }

    /// Calls the log of a node and carries out its outputs.
    pub fn call(&mut self, id: u64, f: impl FnOnce(&mut Log, Time)) {
        let now = self.now;
        if let Some(log) = &mut self.node(id).log {
            f(log, now);
        }
        self.drain(id);
    }

    fn drain(&mut self, id: u64) {
        // What follows in a run that has failed means nothing.
        while self.violation.is_none() {
            let node = self.nodes.get_mut(&id).unwrap();
            let Some(output) = node.log.as_mut().and_then(Log::poll_output) else { break };
            if let Err(e) = self.carry_out(id, output) {
                self.fail(format!("node {id}: {e}"));
            }
        }
        let node = &self.nodes[&id];
        if let Some(log) = &node.log {
            let last = log.last();
            if let Err(e) = self.truth.check_place(last) {
                self.fail(format!("node {id}: {e}"));
            }
        }
    }

    fn carry_out(&mut self, id: u64, output: Output) -> Result<(), String> {
        let (now, config_lease) = (self.now, self.config.lease);
        self.say(|| format!("node {id}: {}", describe(&output)));
        let node = self.nodes.get_mut(&id).unwrap();
        match output {
            Output::Multicast(payload) => {
                if payload[0] == 1 {
                    let durable = Recovered::decode(node.file.clone().into()).map_err(|e| e.to_string())?;
                    let term = node.log.as_ref().unwrap().term();
                    if durable.promised() < term {
                        return Err(format!("promise of {term:?} sent before it is durable"));
                    }
                }
                node.submit.push_back(payload);
            }
            Output::Send { to, message } => {
                assert!(message.len() <= 32 << 10);
                self.net.push((NodeId(id), to, message));
            }
            Output::Persist { id, records } => node.writes.push_back(Write::Append(id, records)),
            Output::Rewrite { id, contents } => node.writes.push_back(Write::Replace(id, contents)),
            Output::NewTerm { primary, .. } => self.terms += u64::from(primary),
            Output::Note(note) => node.note = note,
            Output::Primary(_) => {}
            Output::Commit(entries) => {
                for entry in entries {
                    node.state.apply(&entry);
                    self.truth.check_commit(now, &entry, &node.state)?;
                }
                node.update_up();
            }
            Output::Restore { snapshot, at } => {
                let state = State::decode(&snapshot);
                if state.index != at.index.0 {
                    return Err(format!("snapshot of {} restored at {at:?}", state.index));
                }
                self.restores += 1;
                self.truth.check_digest(&state)?;
                let last = state.lasts.get(&node.member()).copied().unwrap_or(0);
                node.state = state;
                node.log.as_mut().unwrap().restored(CommandSeq(last));
                node.update_up();
            }
            Output::LeaseRenewed(deadline) => {
                self.renewals += 1;
                let applied = sheep_types::LogIndex(node.state.index);
                self.truth.check_lease(node.id, applied, deadline, config_lease)?;
            }
            Output::FormAgain => node.form_again = true,
            Output::SnapshotWanted => {
                let (index, state) = (sheep_types::LogIndex(node.state.index), node.state.encode());
                node.log.as_mut().unwrap().snapshot_written(now, index, state.into());
            }
            Output::Fatal(error) => return Err(error.to_string()),
        }
        Ok(())
    }

    /// The nodes move on together into a new configuration; whoever is not named stays where it is.
    pub fn form(&mut self, ids: &[u64]) {
        let group: BTreeSet<NodeId> = ids.iter().map(|id| NodeId(*id)).collect();
        let old: BTreeSet<usize> = ids.iter().filter_map(|id| self.nodes[id].ring).collect();
        for ring in old {
            self.leave(ring, &group);
        }
        let number = |id: &u64| self.nodes[id].number.max(self.log(*id).number());
        let number = ids.iter().map(number).max().unwrap() + 1;
        let id = ConfigId { number, representative: *group.first().unwrap() };
        let members: Vec<Member> = group.iter().map(|n| self.nodes[&n.0].member()).collect();
        self.rings.push(Ring {
            id,
            members: members.clone(),
            active: group.clone(),
            order: Vec::new(),
            received: group.iter().map(|n| (*n, BTreeSet::new())).collect(),
            delivered: group.iter().map(|n| (*n, 0)).collect(),
            notes: BTreeMap::new(),
            passed: BTreeMap::new(),
            holder: 0,
            rotation: 1,
        });
        let ring = self.rings.len() - 1;
        self.say(|| format!("{id:?} = {ids:?}"));
        for node in group {
            let n = self.node(node.0);
            (n.number, n.ring, n.form_again) = (number, Some(ring), false);
            let configuration = Configuration { id, regular: true, members: members.clone() };
            self.call(node.0, |log, now| log.handle_configuration(now, configuration));
        }
    }

    /// The recovery of the ring: those that move on together first deliver the same.
    fn leave(&mut self, ring: usize, group: &BTreeSet<NodeId>) {
        let together: Vec<NodeId> = self.rings[ring].active.intersection(group).copied().collect();
        let union: BTreeSet<usize> =
            together.iter().flat_map(|n| self.rings[ring].received[n].iter().copied()).collect();
        let id = self.rings[ring].id;
        for node in &together {
            self.rings[ring].received.insert(*node, union.clone());
            self.deliver(ring, *node);
            let members = self.rings[ring].members.iter().filter(|m| together.contains(&m.node));
            let configuration = Configuration { id, regular: false, members: members.copied().collect() };
            self.call(node.0, |log, now| log.handle_configuration(now, configuration));
            let from = self.rings[ring].delivered[node];
            for at in union.range(from..) {
                self.hand_over(ring, *node, *at, true);
            }
            self.rings[ring].active.remove(node);
        }
    }

    /// Delivers what was received without a hole.
    fn deliver(&mut self, ring: usize, node: NodeId) {
        loop {
            let r = &mut self.rings[ring];
            let next = r.delivered[&node];
            if !r.received[&node].contains(&next) {
                break;
            }
            r.delivered.insert(node, next + 1);
            self.hand_over(ring, node, next, false);
        }
    }

    fn hand_over(&mut self, ring: usize, node: NodeId, at: usize, transitional: bool) {
        let r = &self.rings[ring];
        let (sender, payload) = r.order[at].clone();
        let delivery = Delivery { config: r.id, position: at as u64 + 1, sender, payload, transitional };
        self.call(node.0, |log, now| log.handle_delivery(now, delivery));
    }

    /// A member gets a message of the order.
    pub fn receive(&mut self, ring: usize, node: NodeId, at: usize) {
        if at < self.rings[ring].order.len() && self.rings[ring].active.contains(&node) {
            self.rings[ring].received.get_mut(&node).unwrap().insert(at);
            self.deliver(ring, node);
        }
    }

    pub fn holder(&self, ring: usize) -> NodeId {
        self.rings[ring].members[self.rings[ring].holder].node
    }

    pub fn ordered(&self, ring: usize) -> usize {
        self.rings[ring].order.len()
    }

    pub fn missing(&self, ring: usize, node: NodeId) -> Vec<usize> {
        let r = &self.rings[ring];
        (0..r.order.len()).filter(|at| !r.received[&node].contains(at)).collect()
    }

    /// The token visits its next holder; false if that one has moved on. At most `limit` messages are sent.
    pub fn visit(&mut self, ring: usize, limit: usize) -> bool {
        let r = &self.rings[ring];
        let member = r.members[r.holder];
        if !r.active.contains(&member.node) {
            return false;
        }
        let notes = r.members.iter().map(|m| (*m, r.notes.get(&m.node).copied().unwrap_or_default()));
        let token = TokenSeen {
            config: r.id,
            rotation: r.rotation,
            passed_previous: r.passed.get(&member.node).copied(),
            notes: notes.collect(),
        };
        self.call(member.node.0, |log, now| log.handle_token(now, token));
        for _ in 0..limit {
            let Some(payload) = self.node(member.node.0).submit.pop_front() else { break };
            self.rings[ring].order.push((member, payload));
            let at = self.rings[ring].order.len() - 1;
            self.receive(ring, member.node, at);
        }
        let note = self.nodes[&member.node.0].note;
        let now = self.now;
        let r = &mut self.rings[ring];
        r.notes.insert(member.node, Note { written_rotation: r.rotation, ..note });
        r.passed.insert(member.node, now);
        r.holder = (r.holder + 1) % r.members.len();
        r.rotation += u64::from(r.holder == 0);
        true
    }

    pub fn complete_write(&mut self, id: u64) {
        if let Some(done) = self.node(id).complete_write() {
            self.call(id, |log, now| log.handle_durable(now, done));
        }
    }

    pub fn deliver_datagram(&mut self, at: usize) {
        let (from, to, message) = self.net.swap_remove(at);
        if self.nodes.get(&to.0).is_some_and(|n| n.log.is_some()) {
            self.call(to.0, |log, now| log.handle_message(now, from, &message));
        }
    }

    pub fn tick(&mut self, id: u64) {
        if self.nodes[&id].log.as_ref().and_then(Log::poll_timeout).is_some_and(|t| t <= self.now) {
            self.call(id, |log, now| log.handle_timeout(now));
        }
    }

    pub fn propose(&mut self, id: u64, text: &str) {
        let command = Bytes::copy_from_slice(text.as_bytes());
        let now = self.now;
        let node = self.node(id);
        if node.log.as_mut().is_some_and(|log| log.propose(now, command).is_ok()) {
            node.proposed += 1;
        }
        self.drain(id);
    }

    /// A settled cluster in which nodes 1 to `voters` vote and the rest up to `nodes` follow.
    pub fn cluster(config: LogConfig, nodes: u64, voters: u64) -> Self {
        let mut world = Self::new(config);
        let all: Vec<u64> = (1..=nodes).collect();
        all.iter().for_each(|id| world.start(*id));
        world.form(&all);
        world.settle();
        if voters > 1 {
            world.voters(1, 1..=voters).unwrap();
            world.settle();
        }
        assert_eq!(world.violation, None);
        world
    }

    pub fn voters(
        &mut self,
        by: u64,
        list: impl IntoIterator<Item = u64>,
    ) -> Result<(), sheep_log::ProposeError> {
        let list = list.into_iter().map(NodeId).collect();
        let mut result = Ok(());
        self.call(by, |log, now| result = log.propose_voters(now, list));
        result
    }

    /// Forms a configuration in which the promise of one node is durable and does not get through.
    pub fn start_mute(&mut self, mute: u64, members: &[u64]) {
        self.node(mute).mute = true;
        self.form(members);
        self.settle();
    }

    /// The configuration a node is in.
    pub fn ring_of(&self, id: u64) -> usize {
        self.nodes[&id].ring.unwrap()
    }

    pub fn restart(&mut self, id: u64) {
        self.crash(id, 0, 0);
        self.start(id);
    }

    /// Nothing that was written gets to these disks until further notice.
    pub fn slow(&mut self, ids: &[u64], slow: bool) {
        ids.iter().for_each(|id| self.node(*id).slow_disk = slow);
    }

    /// Indexes at which a command with this text is in the committed log.
    pub fn effects(&self, id: u64, proposer: u64) -> u64 {
        self.nodes[&id].state.lasts.iter().filter(|(m, _)| m.node.0 == proposer).map(|(_, n)| n).sum()
    }

    pub fn verdict(&mut self) -> Result<(), String> {
        self.check_places();
        self.violation.take().map_or(Ok(()), Err)
    }

    /// Everything that is under way arrives, for some rotations of every ring.
    pub fn settle(&mut self) {
        for _ in 0..12 {
            self.now = self.now + Duration::from_millis(60);
            let live = self.live();
            for ring in 0..self.rings.len() {
                for _ in 0..self.rings[ring].active.len() {
                    let mute = self.nodes[&self.holder(ring).0].mute;
                    self.visit(ring, if mute { 0 } else { 64 });
                    for node in self.rings[ring].active.clone() {
                        self.missing(ring, node).into_iter().for_each(|at| self.receive(ring, node, at));
                    }
                }
            }
            for id in live {
                while !self.nodes[&id].slow_disk && !self.nodes[&id].writes.is_empty() {
                    self.complete_write(id);
                }
                self.tick(id);
            }
            while !self.hold_net && !self.net.is_empty() {
                self.deliver_datagram(0);
            }
        }
        self.check_places();
    }

    /// Whole logs, not only their ends.
    pub fn check_places(&mut self) {
        for node in self.nodes.values() {
            let Some(log) = &node.log else { continue };
            let mut index = log.last().index;
            while let Some(place) = log.place_at(index) {
                let committed = self.truth.committed.get(&index.0).copied();
                let lost = index <= log.commit().index && committed.is_some_and(|c| c != place);
                if let Err(e) = self.truth.check_place(place) {
                    self.violation.get_or_insert(e);
                } else if lost {
                    self.violation.get_or_insert(format!("{:?} lost {committed:?}", node.id));
                }
                let Some(before) = index.0.checked_sub(1) else { break };
                index = sheep_types::LogIndex(before);
            }
        }
    }
}

fn describe(output: &Output) -> String {
    match output {
        Output::Persist { id, records } => format!("persist {} ({} bytes)", id.0, records.len()),
        Output::Rewrite { id, .. } => format!("rewrite {}", id.0),
        Output::Send { to, .. } => format!("send to {to:?}"),
        Output::Restore { at, .. } => format!("restore {at:?}"),
        Output::Multicast(payload) => format!("multicast kind {}", payload[0]),
        Output::Commit(entries) => entries.iter().map(|e| format!("commit {e:?}; ")).collect(),
        other => format!("{other:?}"),
    }
}

impl SimNode {
    /// As the engine does: no lease for a run that the applied state does not show up.
    fn update_up(&mut self) {
        let up = self.state.up.contains(&self.member());
        if let Some(log) = &mut self.log {
            log.set_lease_allowed(up);
        }
    }
}
