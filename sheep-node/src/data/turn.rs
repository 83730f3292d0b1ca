//! One turn of the data thread: what came in, the shard's work, what goes out.

use super::disk::Started;
use super::exports;
use super::volumes::{Action, Opened, Waiter};
use super::waits::Opening;
use super::{DataMessage, DataThread, DiskDriver, IoOwner, TICK, Tested, is_peer};
use crate::clock;
use crate::control::ControlMessage;
use crate::handle::DataStatus;
use crate::inbox::SendError;
use mio::Events;
use sheep_datapath::{
    Gateway, GatewayConfig, GatewayOutput, OpenError, OpenMode, Replica, ReplicaConfig, Shard, ShardOutput,
    View,
};
use sheep_engine::Published;
use sheep_frontend::nbd;
use sheep_state::Command;
use sheep_store::StoreSet;
use sheep_types::{ClusterId, Generation, LogIndex, Member, Time, VdiId};
use sheep_wire::{Header, Message, Packet, Request};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::{error, info, warn};

/// Token of commands whose answer nobody waits for; the gateway's count up from 1.
const UNASKED: u64 = u64::MAX;
/// Request numbers of tests of other nodes.
const TEST_REQUEST: u64 = 1 << 63;
const TEST_TIMEOUT: Duration = Duration::from_secs(1);
/// A store's fullness is told to the cluster when it has changed by this part of its capacity,
const USAGE_STEPS: u64 = 1000;
/// and not more often than this.
const USAGE_INTERVAL: Duration = Duration::from_secs(5);

impl DataThread {
    /// `false`: the thread ends.
    pub(super) fn turn(&mut self, events: &mut Events) -> bool {
        let now = clock::now();
        let until_tick = TICK.saturating_sub(now.since(self.tick));
        let shard = self.shard.as_ref().and_then(Shard::poll_timeout);
        let due = shard.into_iter().chain(self.volumes.next_timeout()).chain(self.unknown_timeout());
        let due = due.min().map(|at| at.since(now));
        let wait = if self.clients.busy() { Duration::ZERO } else { due.unwrap_or(TICK).min(until_tick) };
        if let Err(problem) = self.wait(events, wait)
            && problem.kind() != std::io::ErrorKind::Interrupted
        {
            let _ = self.stop.send(Some(format!("waiting for work: {problem}")));
            return false;
        }
        let now = clock::now();
        self.sockets(now, events);
        self.inbox.begin();
        while let Some(message) = self.inbox.next() {
            self.take(now, message);
        }
        self.disk_results(now);
        self.wants(now);
        self.look_for_unknown(now);
        if let Some(shard) =
            self.shard.as_mut().filter(|shard| shard.poll_timeout().is_some_and(|at| at <= now))
        {
            shard.handle_timeout(now);
        }
        for action in self.volumes.due(now) {
            self.act(now, action);
        }
        self.finish_tests(now);
        self.outputs(now);
        // The others' disks are the longest way, so their part leaves first; what is for our own goes with the next wait.
        self.peers.flush(now);
        self.clients.flush();
        self.tick(now);
        !self.stopped()
    }

    /// Waits for sockets, messages, the disk or the time.
    fn wait(&mut self, events: &mut Events, timeout: Duration) -> std::io::Result<()> {
        match self.disk.as_mut().map(|disk| disk.wait(timeout)).transpose()?.flatten() {
            None => self.poll.poll(events, Some(timeout)),
            Some(true) => self.poll.poll(events, Some(Duration::ZERO)),
            Some(false) => {
                events.clear();
                Ok(())
            }
        }
    }

    fn sockets(&mut self, now: Time, events: &Events) {
        for event in events {
            let token = event.token();
            if self.peers.is_listener(token) {
                self.peers.accept(now);
            } else if self.clients.is_listener(token) {
                self.clients.accept(now, token);
            } else if is_peer(token) {
                let (shard, tests, passed) = (&mut self.shard, &mut self.tests, &mut self.passed);
                self.peers.receive(now, token, event.is_read_closed(), |header, message| {
                    if let Some(test) = tests.remove(&header.request) {
                        passed.push(test);
                    } else if let Some(shard) = shard {
                        shard.handle_packet(now, header, message);
                    }
                });
            } else if token != super::WAKE {
                if event.is_writable() {
                    self.clients.writable(token);
                }
                if event.is_readable() {
                    self.clients.receive(token, event.is_read_closed());
                }
            }
        }
    }

    fn disk_results(&mut self, now: Time) {
        while let Some((id, result)) = self.disk.as_mut().and_then(DiskDriver::next_done) {
            if let Some(shard) = &mut self.shard {
                shard.handle_disk(now, id, result);
            }
        }
    }

    fn take(&mut self, now: Time, message: DataMessage) {
        match message {
            DataMessage::View(published) => self.view(now, published),
            DataMessage::Lease(deadline) => {
                self.lease = deadline;
                if let Some(shard) = &mut self.shard {
                    shard.handle_lease(now, deadline);
                }
            }
            DataMessage::Ordered { token, result } => {
                if let Some(shard) = &mut self.shard {
                    match result {
                        Some(result) => shard.handle_proposed(now, token, result),
                        None => shard.handle_unanswered(now, token),
                    }
                }
            }
            DataMessage::TestPeer { report, peer } => self.test_peer(now, report, peer),
            DataMessage::Scrub(order) => {
                if let Some(shard) = &mut self.shard {
                    shard.order_scrub(now, order);
                }
            }
            DataMessage::Disk(id, result) => {
                if let Some(shard) = &mut self.shard {
                    shard.handle_disk(now, id, result);
                }
            }
            DataMessage::Volume(request) => self.api(now, request),
            DataMessage::Disks(request) => self.disk_request(now, request),
            DataMessage::Stop(done) => {
                self.stopping = Some(done);
                self.close_all(now);
            }
        }
    }

    fn view(&mut self, now: Time, Published { index, state }: Published) {
        let cluster = state.cluster();
        let addresses = state.nodes().filter_map(|node| Some((node.node, *node.addresses.data.first()?)));
        self.peers.set_cluster(cluster, addresses);
        let view = Arc::new(View::advance(self.view.as_deref(), self.me, cluster, index, state));
        self.view = Some(Arc::clone(&view));
        if self.shard.is_none() && cluster != ClusterId(0) {
            self.make_shard(now, cluster);
        }
        if let Some(shard) = &mut self.shard {
            shard.handle_view(now, view);
        }
    }

    /// The node has learned which cluster it is of: its store can be opened, or made.
    fn make_shard(&mut self, now: Time, cluster: ClusterId) {
        let replica = (!self.disks.is_empty()).then(|| {
            let (pool, sockets) = (self.pool.clone(), self.poll.as_raw_fd());
            match DiskDriver::new(self.disk_mode, pool, sockets, &self.disk_done) {
                Ok(disk) => self.disk = Some(disk),
                Err(problem) => error!("cannot start disk threads: {problem}"),
            }
            let mut stores = StoreSet::new();
            for disk in std::mem::take(&mut self.disks) {
                let (config, identity) = self.store_of(cluster, &disk);
                if let Some(slot) = stores.add(config, identity, disk.fresh, disk.weight) {
                    self.attach(slot, disk.path);
                }
            }
            Replica::new(replica_config(), self.me, cluster, stores, now)
        });
        let gateway = Gateway::new(GatewayConfig::default(), self.me, cluster, now);
        let mut shard = Shard::new(self.me, replica, gateway);
        shard.handle_lease(now, self.lease);
        self.shard = Some(shard);
    }

    fn outputs(&mut self, now: Time) {
        while let Some(output) = self.shard.as_mut().and_then(|shard| shard.poll_output(now)) {
            match output {
                ShardOutput::Send(packet) => self.peers.send(now, &packet),
                ShardOutput::Disk(op) => {
                    if let Some(Started::Done(id, result)) = self.disk.as_mut().map(|disk| disk.start(op))
                        && let Some(shard) = &mut self.shard
                    {
                        shard.handle_disk(now, id, result);
                    }
                }
                ShardOutput::Order(command) => {
                    self.tell_control(ControlMessage::Order { token: UNASKED, command });
                }
                ShardOutput::DiskFailed { slot, error } => self.disk_failed(slot, &error),
                ShardOutput::StoreFailed => self.store_failed(),
                ShardOutput::Gateway(output) => self.gateway_output(now, output),
            }
        }
        self.wants(now);
    }

    fn gateway_output(&mut self, now: Time, output: GatewayOutput) {
        match output {
            GatewayOutput::Send(packet) => self.peers.send(now, &packet),
            GatewayOutput::Propose { token, command } => {
                self.tell_control(ControlMessage::Order { token, command })
            }
            GatewayOutput::Opened { handle, size, read_only } => {
                self.opened(handle, Opened { size, read_only })
            }
            GatewayOutput::OpenFailed { handle, error } => self.open_failed(now, handle, &error),
            GatewayOutput::Done { io, result, .. } => match self.ios.remove(&io) {
                Some(IoOwner::Client(token, request)) => self.clients.done(token, request, result),
                Some(IoOwner::Api(waiting)) => waiting.done(result),
                None => {}
            },
            GatewayOutput::Resized { handle, size } => {
                self.volumes.resized(handle, size);
                self.clients.resized(handle, size);
            }
            GatewayOutput::Lost { handle, reason } => {
                warn!("a volume is lost to this node: {reason}");
                self.clients.lost(handle);
                let action = self.volumes.lost(handle);
                self.act(now, action);
            }
            GatewayOutput::Closed { handle } => {
                for action in self.volumes.closed(handle) {
                    self.act(now, action);
                }
            }
            GatewayOutput::Report { suspect } => {
                warn!(node = %suspect.node, "a node does not answer on the data path; reporting it");
                let epoch = self.view.as_ref().map(|view| view.epoch()).unwrap_or_default();
                self.tell_control(ControlMessage::Order {
                    token: UNASKED,
                    command: Command::Report { suspect, epoch },
                });
            }
        }
    }

    /// Asks a reported node for a sign of life on the data path.
    fn test_peer(&mut self, now: Time, report: LogIndex, peer: Member) {
        let Some(view) = &self.view else { return };
        self.last_test += 1;
        // Above everything that gateway and replica use.
        let request = TEST_REQUEST | self.last_test;
        let header = Header {
            request,
            cluster: view.cluster,
            from: self.me,
            to: peer.incarnation,
            shard: 0,
            epoch: view.epoch(),
            relies_on: view.index,
            generation: Generation(0),
        };
        self.tests.insert(request, (report, now));
        let message = Message::Request(Request::Ping);
        self.peers.send(now, &Packet { to: peer.node, header, message });
    }

    /// Says what came of tests that were answered or took too long.
    fn finish_tests(&mut self, now: Time) {
        let late: Vec<u64> =
            self.tests.iter().filter(|(_, (_, at))| now.since(*at) > TEST_TIMEOUT).map(|(n, _)| *n).collect();
        let late = late.into_iter().filter_map(|number| self.tests.remove(&number)).map(|test| (test, false));
        let passed = core::mem::take(&mut self.passed).into_iter().map(|test| (test, true));
        for ((report, _), reachable) in passed.chain(late).collect::<Vec<_>>() {
            self.tell_control(ControlMessage::Tested(Tested { report, reachable }));
        }
    }

    fn tell_control(&self, message: ControlMessage) {
        if self.control.send(message) == Err(SendError::Full) {
            let _ = self.stop.send(Some("the control thread does not keep up".into()));
        }
    }

    fn wants(&mut self, now: Time) {
        while let Some(want) = self.clients.next_want() {
            match want {
                super::clients::Want::List(token) => {
                    let names = match &self.view {
                        Some(view) => Ok(view.state.vdis().iter().map(|vdi| vdi.name.clone()).collect()),
                        None => Err(nbd::OpenError::Denied("this node does not know its cluster yet".into())),
                    };
                    self.clients.listed(token, names);
                }
                super::clients::Want::Open { client, name, info_only } => {
                    self.client_opens(now, client, name, info_only);
                }
                super::clients::Want::Io { client, handle, volume, op } => {
                    self.last_io += 1;
                    self.ios.insert(self.last_io, IoOwner::Client(client, handle));
                    if let Some(shard) = &mut self.shard {
                        shard.gateway().submit(now, volume, self.last_io, op);
                    }
                }
                super::clients::Want::Changes { client, handle, volume, name, range } => {
                    self.client_compares(now, client, handle, volume, &name, &range);
                }
                super::clients::Want::Release(volume) => {
                    let action = self.volumes.release(volume);
                    self.act(now, action);
                }
            }
        }
    }

    /// Opens a volume for somebody, or joins him to those who have it open, unless he wants it alone.
    pub(super) fn open(&mut self, now: Time, vdi: VdiId, read_only: bool, alone: bool, waiter: Waiter) {
        if self.closing {
            return self.refuse(waiter, &OpenError::Closed);
        }
        let (action, known) = self.volumes.want(vdi, read_only, alone, waiter);
        if let Some((waiter, volume, opened)) = known {
            self.tell(waiter, volume, opened);
        }
        self.act(now, action);
    }

    pub(super) fn act(&mut self, now: Time, action: Action) {
        let Some(shard) = &mut self.shard else { return };
        match action {
            // Somebody has waited until it was closed.
            Action::Open { volume, .. } if self.closing => {
                for waiter in self.volumes.failed(volume) {
                    self.refuse(waiter, &OpenError::Closed);
                }
            }
            Action::Open { volume, vdi, read_only } => {
                let mode = if read_only { OpenMode::Read } else { OpenMode::Write };
                shard.gateway().open(now, volume, vdi, mode);
            }
            Action::Flatten { volume, vdi } => shard.gateway().open(now, volume, vdi, OpenMode::Flatten),
            Action::Close(volume) => shard.gateway().close(now, volume),
            Action::Nothing => {}
        }
    }

    fn tell(&mut self, waiter: Waiter, volume: u64, opened: Opened) {
        let taken = match waiter {
            Waiter::Client(token, attachment) if !self.may_use(volume, attachment) => {
                self.clients.opened(token, Err(nbd::OpenError::NotFound));
                false
            }
            Waiter::Client(token, _) => self.clients.opened(token, Ok((Some(volume), opened))),
            Waiter::Api(answer) => super::api::opened(answer, volume, opened),
        };
        if !taken {
            // He went away while he waited, or it is his no more; somebody else may use the volume.
            let action = self.volumes.release(volume);
            self.act(clock::now(), action);
        }
    }

    /// Whether a volume may be used by who wants it under an attachment: that may have ended while he waited. If it ends later
    /// the lock ends with it, and the volume is lost.
    fn may_use(&self, volume: u64, attachment: Option<LogIndex>) -> bool {
        let (Some(attachment), Some(view)) = (attachment, &self.view) else { return attachment.is_none() };
        let vdi = self.volumes.vdi(volume);
        vdi.is_some_and(|vdi| exports::is_attached(view, self.me.node, vdi, attachment))
    }

    fn opened(&mut self, volume: u64, opened: Opened) {
        for waiter in self.volumes.opened(volume, opened) {
            self.tell(waiter, volume, opened);
        }
    }

    fn open_failed(&mut self, now: Time, volume: u64, problem: &OpenError) {
        if let OpenError::Refused(refusal) = problem
            && !self.closing
            && let Some(vdi) = self.volumes.vdi(volume)
            && self.volumes.refused(volume, refusal, self.is_given_back(vdi), now)
        {
            return;
        }
        if self.reopened(now, volume) {
            return;
        }
        info!("cannot open a volume: {problem}");
        for waiter in self.volumes.failed(volume) {
            self.refuse(waiter, problem);
        }
    }

    fn refuse(&mut self, waiter: Waiter, problem: &OpenError) {
        match waiter {
            Waiter::Client(token, attachment) => {
                let denied = match problem {
                    // Whether an attachment has ended is told by who looks for it.
                    OpenError::NoSuchVdi if attachment.is_none() => nbd::OpenError::NotFound,
                    other => nbd::OpenError::Denied(other.to_string()),
                };
                self.clients.opened(token, Err(denied));
            }
            Waiter::Api(answer) => super::api::open_failed(answer, problem),
        }
    }

    fn tick(&mut self, now: Time) {
        if now.since(self.tick) < TICK {
            return;
        }
        self.tick = now;
        self.peers.tick(now);
        self.clients.tick(now);
        let mut status = DataStatus {
            open_vdis: self.volumes.len() as u32,
            failed: self.failed.clone(),
            counters: vec![
                ("data_connections_refused", self.peers.refused),
                ("data_messages_damaged", self.peers.damaged),
                ("data_packets_dropped", self.peers.dropped),
                ("data_connections_encrypted", self.peers.encrypted()),
                ("nbd_clients", self.clients.len() as u64),
            ],
            ..DataStatus::default()
        };
        if let Some(shard) = &self.shard {
            super::api::describe(shard, &mut status);
            status.lost = super::findings::lost(shard, self.view.as_deref());
        }
        self.log_findings();
        self.flatten_unused(now);
        self.describe_flattening(&mut status);
        self.describe_disks(&mut status);
        status.waits = self.look_at_waits(now);
        self.report_usage(now, status.capacity, status.used);
        self.status.send_replace(Arc::new(status));
    }

    /// What volumes that are being opened wait for, in sentences.
    fn look_at_waits(&mut self, now: Time) -> Vec<String> {
        let (Some(view), Some(shard)) = (&self.view, &mut self.shard) else { return Vec::new() };
        let gateway = shard.gateway();
        let one = |(volume, vdi)| Some(Opening { volume, vdi, wait: gateway.waits_for(volume)? });
        let opening = self.volumes.opening().filter_map(one).collect();
        let (all, log) = self.waits.look(now, &view.state, opening);
        log.iter().for_each(|text| warn!("{text}"));
        all
    }

    /// Tells the cluster how full the store is, when that has changed enough to matter.
    fn report_usage(&mut self, now: Time, capacity: u64, used: u64) {
        let step = (capacity / USAGE_STEPS).max(1);
        let (told_at, told) = self.usage.unwrap_or((Time::ZERO, u64::MAX));
        if capacity == 0 || told.abs_diff(used) < step || now.since(told_at) < USAGE_INTERVAL {
            return;
        }
        self.usage = Some((now, used));
        self.tell_control(ControlMessage::Order {
            token: UNASKED,
            command: Command::Usage { capacity, used },
        });
    }

    /// Whether everything is closed after a request to stop.
    fn stopped(&mut self) -> bool {
        if self.stopping.is_none() || self.volumes.len() > 0 && self.failed.is_none() {
            return false;
        }
        if let Some(done) = self.stopping.take() {
            let _ = done.send(());
        }
        true
    }
}

/// The replica is told the time of day once; it counts on from there.
fn replica_config() -> ReplicaConfig {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ReplicaConfig { wall, ..ReplicaConfig::default() }
}
