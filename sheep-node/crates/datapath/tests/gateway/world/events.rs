//! What happens between gateways and replicas: packets, timers, leases.

use super::*;

impl World {
    pub(super) fn renew(&mut self) {
        let deadline = self.now + Duration::from_secs(5);
        let now = self.now;
        for (_, gateway) in self.gateways.values_mut().filter(|_| self.leases) {
            gateway.handle_lease(now, deadline);
        }
    }

    pub(super) fn collect(&mut self) {
        let nodes: Vec<NodeId> = self.gateways.keys().copied().collect();
        for node in nodes {
            while let Some(output) =
                self.gateways.get_mut(&node).and_then(|(_, gateway)| gateway.poll_output())
            {
                match output {
                    GatewayOutput::Send(packet) => self.send(packet),
                    GatewayOutput::Propose { token, command } => {
                        let me = self.gateways[&node].0;
                        self.push(500, Event::Proposal(me, token, command));
                    }
                    output => self.said.push((node, output)),
                }
            }
        }
    }

    /// What was held back goes on its way.
    pub(crate) fn let_go(&mut self) {
        for packet in self.held_back.take().into_iter().flatten() {
            self.push(0, Event::Packet(packet, 0));
        }
    }

    pub(super) fn send(&mut self, packet: Packet) {
        if let Message::Request(Request::Read { object, .. }) = packet.message
            && object.kind() == Some(sheep_types::ObjectKind::Data)
        {
            self.data_reads.insert(packet.header.request);
        }
        if self.random.chance(self.net.double) {
            let delay = self.random.below(self.net.delay_us * 20 + 1);
            self.push(delay, Event::Packet(packet.clone(), 0));
        }
        if !self.random.chance(self.net.lose) {
            let delay = self.random.below(self.net.delay_us + 1);
            self.push(delay, Event::Packet(packet, 0));
        }
    }

    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::View(node, view) => {
                if let Some(replica) = self.replicas.get_mut(&node)
                    && replica.me == view.me
                    && replica.view.as_ref().is_none_or(|known| known.index < view.index)
                {
                    replica.set_view(Arc::clone(&view));
                }
                let now = self.now;
                if let Some((me, gateway)) = self.gateways.get_mut(&node)
                    && *me == view.me
                {
                    gateway.handle_view(now, view);
                }
            }
            Event::Proposal(me, token, command) => {
                if self.gateways.get(&me.node).is_some_and(|(member, _)| *member == me) {
                    self.propose(me, token, command);
                }
            }
            Event::Packet(packet, tries) => self.deliver(packet, tries),
        }
    }

    /// A gateway's proposal is carried out and answered, or not.
    fn propose(&mut self, me: Member, token: u64, command: Command) {
        self.proposals += 1;
        let (silent, done) = self.silent;
        let silent = silent > 0 && self.random.chance(silent);
        let result = (!silent || self.random.chance(done)).then(|| self.order_now(me, command));
        self.publish();
        let now = self.now;
        let Some((_, gateway)) = self.gateways.get_mut(&me.node) else { return };
        match result.filter(|_| !silent) {
            Some(result) => gateway.handle_proposed(now, token, result),
            None => gateway.handle_unanswered(now, token),
        }
    }

    pub(super) fn deliver(&mut self, packet: Packet, tries: u32) {
        match packet.message {
            Message::Reply(_)
                if self.held_back.is_some() && self.data_reads.contains(&packet.header.request) =>
            {
                self.held_back.iter_mut().for_each(|held| held.push(packet.clone()));
            }
            Message::Reply(reply) => {
                let now = self.now;
                if let Some((_, gateway)) = self.gateways.get_mut(&packet.to) {
                    gateway.handle_reply(now, packet.header, reply);
                }
            }
            Message::Request(ref request) => {
                if self.down.contains(&packet.to) || self.deaf.contains(&(packet.to, kind(request))) {
                    return;
                }
                let handled = match request {
                    Request::Equalize { object, source, version, .. } => {
                        Some(self.equalize(&packet.header, packet.to, *object, *source, *version))
                    }
                    _ => {
                        let replica = self.replicas.get_mut(&packet.to).unwrap();
                        match replica.handle(&packet.header, request, tries < 4) {
                            Handled::Reply(reply) => Some(reply),
                            Handled::Later => None,
                            Handled::Unanswered => return,
                        }
                    }
                };
                match handled {
                    Some(reply) => self.reply(&packet, reply),
                    None if tries < 200 => self.push(5_000, Event::Packet(packet, tries + 1)),
                    None => {}
                }
            }
        }
    }

    pub(super) fn reply(&mut self, packet: &Packet, reply: Reply) {
        let replica = &self.replicas[&packet.to];
        let epoch = replica.view.as_ref().map_or(packet.header.epoch, |view| view.epoch());
        let header = Header { from: replica.me, to: packet.header.from.incarnation, epoch, ..packet.header };
        self.send(Packet { to: packet.header.from.node, header, message: Message::Reply(reply) });
    }

    pub(super) fn equalize(
        &mut self,
        header: &Header,
        to: NodeId,
        object: ObjectId,
        source: Member,
        version: sheep_types::Version,
    ) -> Reply {
        use sheep_wire::Refusal as Refused;
        let replica = &self.replicas[&to];
        let Some(view) = &replica.view else { return Reply::Refused(Refused::Busy) };
        if header.to != replica.me.incarnation {
            return Reply::Refused(Refused::WrongIncarnation);
        }
        if header.epoch != view.epoch() || view.generation(object.vid()) != Some(header.generation) {
            return Reply::Refused(Refused::StaleGeneration);
        }
        let copy = self.replicas[&source.node].memory.get(&object).cloned();
        let Some(copy) =
            copy.filter(|copy| copy.version == version && self.replicas[&source.node].me == source)
        else {
            return Reply::Refused(Refused::OtherVersion);
        };
        let replica = self.replicas.get_mut(&to).unwrap();
        *replica.requests.entry("equalize").or_default() += 1;
        replica.memory.insert(object, copy.clone());
        replica.disk.insert(object, copy);
        replica.current.remove(&object);
        Reply::Done
    }

    // Conveniences for tests.

    pub(crate) fn gateway(&mut self, node: u64) -> &mut Gateway {
        &mut self.gateways.get_mut(&NodeId(node)).unwrap().1
    }

    /// Opens for writing and waits until it is open.
    pub(crate) fn open(&mut self, node: u64, vdi: VdiId) -> u64 {
        let handle = self.begin_open(node, vdi, OpenMode::Write);
        for _ in 0..200 {
            if self.opened(node, handle) {
                return handle;
            }
            self.run(ms(50));
        }
        panic!("not opened: {:?}", self.said)
    }

    pub(crate) fn begin_open(&mut self, node: u64, vdi: VdiId, mode: OpenMode) -> u64 {
        self.run(ms(1));
        self.next_io += 1;
        let (now, handle) = (self.now, self.next_io);
        self.gateway(node).open(now, handle, vdi, mode);
        handle
    }

    pub(crate) fn opened(&self, node: u64, handle: u64) -> bool {
        self.said.iter().any(|said| {
            matches!(said, (at, GatewayOutput::Opened { handle: opened, .. }) if *at == NodeId(node) && *opened == handle)
        })
    }

    /// Submits an operation.
    pub(crate) fn submit(&mut self, node: u64, handle: u64, op: VolumeOp) -> u64 {
        self.next_io += 1;
        let (now, io) = (self.now, self.next_io);
        self.gateway(node).submit(now, handle, io, op);
        self.collect();
        io
    }

    /// The answer to an operation, if there is one.
    pub(crate) fn answer(&self, io: u64) -> Option<Result<VolumeReply, VolumeError>> {
        let mut found = self.said.iter().filter_map(|(_, said)| match said {
            GatewayOutput::Done { io: done, result, .. } if *done == io => Some(result.clone()),
            _ => None,
        });
        let answer = found.next();
        assert!(found.next().is_none(), "answered once");
        answer
    }

    /// Submits an operation and waits for its answer.
    pub(crate) fn act(&mut self, node: u64, handle: u64, op: VolumeOp) -> Result<VolumeReply, VolumeError> {
        let io = self.submit(node, handle, op.clone());
        for _ in 0..2000 {
            self.run(ms(5));
            if let Some(answer) = self.answer(io) {
                return answer;
            }
        }
        let op = format!("{op:?}").chars().take(80).collect::<String>();
        panic!("no answer to {op}: {:#?}", self.gateways[&NodeId(node)].1.describe())
    }

    pub(crate) fn vid(&self, vdi: VdiId) -> Vid {
        self.state.vdi(vdi).unwrap().vid
    }
}
