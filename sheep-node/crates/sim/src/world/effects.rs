//! What nodes do: their outputs become datagrams, packets, disk operations and messages between their threads.

use super::*;

impl World {
    pub(super) fn control_output(&mut self, node: usize, output: ControlOutput) {
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
            ControlOutput::AnswerLost { token } if token & OF_WORLD != 0 && token != UNASKED => {
                self.answers_lost.insert(token);
            }
            ControlOutput::AnswerLost { token } if token != UNASKED => {
                self.queue_to_shard(node, ToShard::Unanswered(token));
            }
            ControlOutput::Answered { .. } | ControlOutput::AnswerLost { .. } => {}
            ControlOutput::TestPeer { report, peer } => self.test_peer(node, report, peer),
            ControlOutput::Note(text) => self.trace.say(self.now, &format!("node {node}: {text}")),
            ControlOutput::Fatal(problem) => self.violate(format!("node {node} stops for ever: {problem}")),
        }
    }

    pub(super) fn check_published(&mut self, node: usize, published: &Published) {
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
        self.note_epochs(published);
        if let Err(problem) = committed.and(applied) {
            self.violate(problem);
        }
    }

    fn note_epochs(&mut self, published: &Published) {
        let state = &published.state;
        let of = |epoch| (state.cluster(), epoch);
        let epochs = (state.oldest_epoch().0..=state.epoch().0).map(Epoch);
        for epoch in epochs.filter(|epoch| !self.up_in.contains_key(&of(*epoch))).collect::<Vec<_>>() {
            let Some(members) = state.members_at(epoch) else { continue };
            let up = members.iter().filter(|member| member.is_up());
            let place = |node| self.nodes.iter().position(|machine| machine.id == node);
            let up = up.filter_map(|member| Some((place(member.node)?, member.incarnation.0))).collect();
            self.up_in.insert(of(epoch), up);
        }
    }

    /// A node that knows that it is not up has no lease.
    pub(super) fn check_lease(&mut self, node: usize, lease: Option<Time>) {
        let (now, me) = (self.nodes[node].clock(self.now), self.nodes[node].member());
        let Some(running) = self.nodes[node].running.as_ref() else { return };
        if lease.is_some_and(|deadline| deadline > now) && !running.control.state().is_up(me) {
            self.violate(format!("node {node} has a lease although it knows that it is not up"));
        }
    }

    pub(super) fn send_datagram(&mut self, node: usize, to: Destination, packet: &Bytes) {
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

    pub(super) fn log_write(&mut self, node: usize, run: u64, id: FileId, len: usize) {
        let took = (self.rng.range(30_000, 300_000) + len as u64) * self.nodes[node].slow;
        let machine = &mut self.nodes[node];
        let Some(running) = &mut machine.running else { return };
        let done = running.log_busy_until.max(self.now).max(machine.hung_until) + took;
        running.log_busy_until = done;
        self.schedule(done - self.now, Event::LogDurable { node, run, id });
    }

    pub(super) fn queue_to_shard(&mut self, node: usize, message: ToShard) {
        let delay = self.hop();
        let run = self.nodes[node].incarnation;
        let Some(running) = &mut self.nodes[node].running else { return };
        running.to_shard = (self.now + delay).max(running.to_shard + 1);
        let after = running.to_shard - self.now;
        if let Some(event) = self.hooks.pass(node, Event::ToShard { node, run, message }) {
            self.schedule(after, event);
        }
    }

    pub(super) fn queue_to_control(&mut self, node: usize, message: ToControl) {
        let delay = self.hop();
        let run = self.nodes[node].incarnation;
        let Some(running) = &mut self.nodes[node].running else { return };
        running.to_control = (self.now + delay).max(running.to_control + 1);
        let after = running.to_control - self.now;
        self.schedule(after, Event::ToControl { node, run, message });
    }

    /// Time that a message between two threads of a process takes: now and then one is not scheduled for long.
    pub(super) fn hop(&mut self) -> u64 {
        if self.rng.chance(2_000) { self.rng.range(0, 50_000_000) } else { self.rng.range(1_000, 60_000) }
    }

    pub(super) fn tell_shard(&mut self, node: usize, at: Time, message: ToShard) {
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
            ToShard::Unanswered(token) => {
                self.with_shard(node, |shard| shard.handle_unanswered(at, token));
            }
        }
    }

    pub(super) fn shard_output(&mut self, node: usize, output: ShardOutput) {
        match output {
            ShardOutput::Send(packet) => self.send_packet(node, packet),
            ShardOutput::Disk(op) => self.disk_op(node, op),
            ShardOutput::Order(command) => {
                self.queue_to_control(node, ToControl::Order(UNASKED, Box::new(command)));
            }
            ShardOutput::DiskFailed { slot, error } => self.disk_failed(node, slot, &error),
            ShardOutput::StoreFailed => self.store_failed(node),
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

    pub(super) fn send_packet(&mut self, node: usize, packet: Packet) {
        if self.spied(&packet) {
            return;
        }
        let Some(to) = self.index_of(packet.to) else { return };
        let Some(packet) = self.flip(node, to, packet) else { return };
        if let Some(delay) = self.net.message(node, to, &mut self.rng)
            && let Some(event) = self.hooks.pass(node, Event::Packet { to, packet: Box::new(packet) })
        {
            self.schedule(delay, event);
        }
    }

    pub(super) fn disk_op(&mut self, node: usize, op: DiskOp) {
        let usual = match &op.kind {
            DiskOpKind::Sync { .. } | DiskOpKind::SyncDirectory => self.rng.range(50_000, 500_000),
            DiskOpKind::Read { .. } => self.rng.range(20_000, 120_000),
            _ => self.rng.range(5_000, 60_000),
        };
        let took = usual * self.nodes[node].slow;
        let run = self.nodes[node].incarnation;
        let id = op.id;
        if let Some(disk) = self.nodes[node].disk_at(id.slot()) {
            disk.begin(op);
        }
        self.schedule(took, Event::DiskDone { node, run, id });
    }

    /// The data path of another node answers if the network carries both ways and the node runs.
    pub(super) fn test_peer(&mut self, node: usize, report: LogIndex, peer: Member) {
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
