//! The control thread: the ring's socket, the log's disk and the control engine.
//!
//! Nothing that a disk or the data path does can delay the token here: the log's disk has a thread of its own,
//! and messages from the data thread and from gRPC only queue.

use crate::data::{DataMessage, Tested};
use crate::handle::{ControlRequest, NodeStatus, OrderError};
use crate::inbox::{Inbox, SendError, Sender};
use crate::log_file::{LogDisk, LogWrite, LogWritten};
use crate::ring_socket::RingSocket;
use crate::strangers::{Heard, Strangers};
use crate::whereabouts::ADDRESSES;
use crate::{clock, log_file};
use anyhow::{Context, Result};
use bytes::Bytes;
use mio::{Events, Interest, Poll, Token, Waker};
use sheep_engine::{Control, ControlConfig, ControlOutput, FileId, Published};
use sheep_log::{Log, ProposeError, Recovered};
use sheep_state::{Command, Genesis, Limited, Outcome, Refusal};
use sheep_totem::RingState;
use sheep_types::{ClusterId, Member, Time};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

const RING: Token = Token(0);
const WAKE: Token = Token(1);
/// Datagrams handled before timers and messages get their turn.
const BURST: usize = 64;
/// The status is published this often although nothing was applied.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

/// Messages to the control thread.
pub(crate) enum ControlMessage {
    /// From gRPC.
    Request(ControlRequest),
    /// From the data thread: order a command; the answer goes back with the token.
    Order { token: u64, command: Command },
    /// From the data thread: a reported node was tested.
    Tested(Tested),
    /// From the log's disk.
    Written(LogWritten),
    /// Where joins go besides known nodes.
    Seeds(Vec<SocketAddr>),
    /// Tell the others that this run is over, and end.
    Depart(mpsc::Sender<()>),
}

/// What the thread is made of.
pub(crate) struct ControlSetup {
    pub(crate) me: Member,
    pub(crate) config: ControlConfig,
    pub(crate) log_path: PathBuf,
    pub(crate) recovered: Recovered,
    pub(crate) log_len: u64,
    pub(crate) seed: u64,
    pub(crate) socket: RingSocket,
    pub(crate) data: Sender<DataMessage>,
    pub(crate) status: watch::Sender<Arc<NodeStatus>>,
    /// Told when the process is to stop, with the reason if that is an error.
    pub(crate) stop: mpsc::Sender<Option<String>>,
}

/// Who waits for a command of ours.
enum Asker {
    Api(oneshot::Sender<Result<Outcome, OrderError>>),
    Data(u64),
}

type Reply = Box<dyn FnOnce() + Send>;

/// What comes of making a cluster: its number, or why not.
type Formatted = Result<ClusterId, String>;

/// A cluster that this node is to make.
struct Founding {
    genesis: Genesis,
    answer: oneshot::Sender<Formatted>,
    /// The log that is being written.
    contents: Option<Bytes>,
}

struct ControlThread {
    poll: Poll,
    setup_config: ControlConfig,
    me: Member,
    control: Control,
    socket: RingSocket,
    log: LogDisk,
    founding: Option<Founding>,
    inbox: Inbox<ControlMessage>,
    data: Sender<DataMessage>,
    status: watch::Sender<Arc<NodeStatus>>,
    stop: mpsc::Sender<Option<String>>,
    askers: BTreeMap<u64, Asker>,
    next_token: u64,
    published: Option<Published>,
    status_due: Time,
    fatal: Option<String>,
    seed: u64,
    strangers: Strangers,
    /// Answers to the API, given when the status shows what they are about.
    replies: Vec<Reply>,
}

/// The poll and inbox of a control thread that is to be started: others need the sender first.
pub(crate) struct ControlPort {
    poll: Poll,
    sender: Sender<ControlMessage>,
    inbox: Inbox<ControlMessage>,
}

impl ControlPort {
    pub(crate) fn new() -> Result<Self> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (sender, inbox) = crate::inbox::inbox(waker);
        Ok(Self { poll, sender, inbox })
    }

    pub(crate) fn sender(&self) -> Sender<ControlMessage> {
        self.sender.clone()
    }

    /// Starts the thread.
    pub(crate) fn start(self, setup: ControlSetup) -> Result<JoinHandle<()>> {
        let ControlSetup { me, config, log_path, recovered, log_len, seed, mut socket, data, status, stop } =
            setup;
        self.poll.registry().register(socket.socket(), RING, Interest::READABLE)?;
        let log = log_file::start(log_path, log_len, self.sender)?;
        let control = Control::new(config.clone(), me, recovered, seed, clock::now())?;
        let mut thread = ControlThread {
            poll: self.poll,
            setup_config: config,
            me,
            control,
            socket,
            log,
            founding: None,
            inbox: self.inbox,
            data,
            status,
            stop,
            askers: BTreeMap::new(),
            next_token: 0,
            published: None,
            status_due: Time::ZERO,
            fatal: None,
            seed,
            strangers: Strangers::new(clock::now()),
            replies: Vec::new(),
        };
        Ok(std::thread::Builder::new().name("control".into()).spawn(move || thread.run())?)
    }
}

impl ControlThread {
    fn run(&mut self) {
        match crate::priority::before_normal_threads() {
            Ok(()) => info!("the ring has real-time priority"),
            Err(reason) => {
                info!("the ring has normal priority, a machine under load may look dead: {reason}")
            }
        }
        let mut events = Events::with_capacity(16);
        loop {
            self.carry_out();
            self.publish_status(clock::now());
            self.replies.drain(..).for_each(|reply| reply());
            let wait = self.control.poll_timeout().map_or(STATUS_INTERVAL, |at| at.since(clock::now()));
            if let Err(error) = self.poll.poll(&mut events, Some(wait.min(STATUS_INTERVAL)))
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                let _ = self.stop.send(Some(format!("poll: {error}")));
                return;
            }
            self.receive();
            self.inbox.begin();
            while let Some(message) = self.inbox.next() {
                if self.take(message).is_none() {
                    return;
                }
            }
            let now = clock::now();
            if self.control.poll_timeout().is_some_and(|at| at <= now) {
                self.control.handle_timeout(now);
            }
        }
    }

    /// Edge-triggered: reads until nothing is left, but lets others have a turn.
    fn receive(&mut self) {
        for _ in 0..BURST {
            let (control, now) = (&mut self.control, clock::now());
            let mut addresses = None;
            let received = self.socket.receive(now, |from, packet| match packet.first() {
                Some(&ADDRESSES) => addresses = Some(packet.to_vec()),
                _ => control.handle_packet(now, from.node, packet),
            });
            if received.is_none() {
                return;
            }
            if let Some(packet) = addresses {
                self.socket.take_addresses(&packet);
            }
            self.carry_out();
        }
        // More may be there: the next poll must not sleep.
        let _ = self.poll.registry().reregister(self.socket.socket(), RING, Interest::READABLE);
    }

    /// `None`: stop.
    fn take(&mut self, message: ControlMessage) -> Option<()> {
        let now = clock::now();
        match message {
            ControlMessage::Request(ControlRequest::Propose { command, answer }) => {
                self.order(Asker::Api(answer), &command);
            }
            ControlMessage::Request(ControlRequest::Format { genesis, answer }) => {
                self.format(genesis, answer);
            }
            ControlMessage::Request(ControlRequest::Stop) => {
                let _ = self.stop.send(None);
            }
            ControlMessage::Order { token, command } => self.order(Asker::Data(token), &command),
            ControlMessage::Tested(tested) => {
                self.control.handle_tested(now, tested.report, tested.reachable)
            }
            ControlMessage::Written(Ok(id)) => self.written(id),
            ControlMessage::Written(Err(problem)) => {
                // What is on the disk is unknown now; only a new start may believe it.
                let _ = self.stop.send(Some(format!("cannot write the log: {problem}")));
                return None;
            }
            ControlMessage::Seeds(seeds) => self.socket.set_seeds(seeds),
            ControlMessage::Depart(done) => {
                self.control.depart(now);
                self.carry_out();
                let _ = done.send(());
                return None;
            }
        }
        Some(())
    }

    fn order(&mut self, asker: Asker, command: &Command) {
        self.next_token += 1;
        match self.control.propose(clock::now(), self.next_token, command) {
            Ok(()) => {
                self.askers.insert(self.next_token, asker);
                // A caller that went away must not be remembered for ever.
                self.askers.retain(|_, asker| !matches!(asker, Asker::Api(answer) if answer.is_closed()));
            }
            Err(error) => self.answer(asker, Err(OrderError::NotTaken(error))),
        }
    }

    fn reply<T: Send + 'static>(&mut self, to: oneshot::Sender<T>, answer: T) {
        self.replies.push(Box::new(move || drop(to.send(answer))));
    }

    fn answer(&mut self, asker: Asker, result: Result<Outcome, OrderError>) {
        match asker {
            Asker::Api(answer) => self.reply(answer, result),
            Asker::Data(token) => {
                let message = match result {
                    Ok(outcome) => DataMessage::Ordered { token, result: Some(Ok(outcome)) },
                    Err(OrderError::Refused(refusal)) => {
                        DataMessage::Ordered { token, result: Some(Err(refusal)) }
                    }
                    // That would not get better.
                    Err(OrderError::NotTaken(ProposeError::TooLarge { limit, .. })) => {
                        let limit = limit as u64;
                        let refusal = Refusal::Limit { what: Limited::CommandBytes, limit };
                        DataMessage::Ordered { token, result: Some(Err(refusal)) }
                    }
                    Err(_) => DataMessage::Ordered { token, result: None },
                };
                self.tell_data(message);
            }
        }
    }

    fn tell_data(&self, message: DataMessage) {
        if self.data.send(message) == Err(SendError::Full) {
            // Views and answers must not be lost: without them the data path would serve from old knowledge.
            let _ = self.stop.send(Some("the data thread does not keep up".into()));
        }
    }

    /// Makes this node, which has no cluster, the first of a new one: its log is replaced by that of a new cluster once
    /// nothing else is being written, so that no confirmation of an earlier write is taken for one of the new log's.
    fn format(&mut self, genesis: Genesis, answer: oneshot::Sender<Formatted>) {
        if self.control.cluster() != ClusterId(0) {
            let refusal = format!("this node belongs to cluster {}", self.control.cluster());
            return self.reply(answer, Err(refusal));
        }
        if self.founding.is_some() {
            return self.reply(answer, Err("this node is being made the first of a cluster already".into()));
        }
        self.founding = Some(Founding { genesis, answer, contents: None });
        self.write_genesis();
    }

    /// Goes on with a cluster that is to be made, if nothing is being written.
    fn write_genesis(&mut self) {
        let Some(founding) = self.founding.as_mut().filter(|founding| founding.contents.is_none()) else {
            return;
        };
        if self.log.is_idle() {
            let contents = genesis_file(&founding.genesis, self.me, self.control.log().number());
            founding.contents = Some(contents.clone());
            self.log.write(LogWrite::Replace(FileId::default(), contents));
        }
    }

    /// The log's disk has written something.
    fn written(&mut self, id: FileId) {
        self.log.written(id);
        match self.founding.take_if(|founding| founding.contents.is_some()) {
            Some(founding) => {
                let made = self.begin(&founding);
                self.reply(founding.answer, made);
            }
            None => {
                self.control.handle_durable(clock::now(), id);
                self.write_genesis();
            }
        }
    }

    /// The log is that of a new cluster: goes on from it.
    fn begin(&mut self, founding: &Founding) -> Formatted {
        let contents = founding.contents.clone().unwrap_or_default();
        let recovered = Recovered::decode(contents).map_err(|error| error.to_string())?;
        let control = Control::new(self.setup_config.clone(), self.me, recovered, self.seed, clock::now());
        self.control = control.map_err(|error| error.to_string())?;
        self.log.begin_anew();
        info!(cluster = %founding.genesis.cluster, "made a new cluster");
        Ok(founding.genesis.cluster)
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.control.poll_output() {
            match output {
                ControlOutput::Send { to, packet } => {
                    self.socket.send(to, self.control.ring().members(), &packet);
                }
                ControlOutput::Append { id, records } => self.write(LogWrite::Append(id, records)),
                ControlOutput::Replace { id, contents } => self.write(LogWrite::Replace(id, contents)),
                ControlOutput::Publish(published) => self.publish(published),
                ControlOutput::Lease(deadline) => self.tell_data(DataMessage::Lease(deadline)),
                ControlOutput::Answered { token, result } => self.answered(token, result),
                ControlOutput::AnswerLost { token } => {
                    if let Some(asker) = self.askers.remove(&token) {
                        self.answer(asker, Err(OrderError::AnswerLost));
                    }
                }
                ControlOutput::TestPeer { report, peer } => {
                    warn!(node = %peer.node, "a node reports that its data path does not answer; testing it");
                    self.tell_data(DataMessage::TestPeer { report, peer });
                }
                ControlOutput::Note(text) => info!("{text}"),
                ControlOutput::Fatal(problem) => {
                    error!("{problem}");
                    self.fatal = Some(problem.to_string());
                    let _ = self.stop.send(Some(problem.to_string()));
                }
            }
        }
    }

    /// What a node without cluster still wants to keep is not written behind the beginning of a new log: it will never be
    /// durable, so nothing comes of it.
    fn write(&mut self, write: LogWrite) {
        if self.founding.as_ref().is_none_or(|founding| founding.contents.is_none()) {
            self.log.write(write);
        }
    }

    fn answered(&mut self, token: u64, result: Result<Outcome, Refusal>) {
        if let Some(asker) = self.askers.remove(&token) {
            self.answer(asker, result.map_err(OrderError::Refused));
        }
    }

    fn publish(&mut self, published: Published) {
        for node in published.state.nodes() {
            if let Some(address) = node.addresses.ring.first() {
                self.socket.suggest(node.node, *address);
            }
        }
        self.tell_data(DataMessage::View(published.clone()));
        self.published = Some(published);
        self.status_due = Time::ZERO;
    }

    fn publish_status(&mut self, now: Time) {
        if now < self.status_due {
            return;
        }
        self.status_due = now + STATUS_INTERVAL;
        self.socket.tell_addresses(now);
        let (log, ring) = (self.control.log(), self.control.ring());
        let (log_stats, socket) = (log.stats(), self.socket.stats);
        let heard = Heard {
            bad_key: socket.bad_key,
            stranger: self.socket.stranger,
            foreign: ring.stats().foreign_cluster,
            cluster: self.control.cluster(),
            seeded: self.socket.has_seeds(),
        };
        self.strangers.tell(now, heard);
        let status = NodeStatus {
            me: self.me,
            cluster: self.control.cluster(),
            primary: self.control.is_primary(),
            ring_state: ring_state(ring.state()),
            ring_members: ring.configuration().map(|c| c.members.clone()).unwrap_or_default(),
            term: log.term(),
            commit: log.commit().index,
            voters: log.voters(),
            published: self.published.clone(),
            counters: vec![
                ("log_terms", log_stats.terms),
                ("log_entries_appended", log_stats.appended),
                ("log_entries_committed", log_stats.committed),
                ("log_entries_replaced", log_stats.replaced),
                ("log_commands_sent", log_stats.sent_commands),
                ("log_lease_renewals", log_stats.renewals),
                ("log_fetches", log_stats.fetches),
                ("log_snapshots_taken_over", log_stats.restores),
                ("ring_configurations", ring.stats().configurations),
                ("ring_token_losses", ring.stats().token_losses),
                ("ring_messages_sent", ring.stats().messages_sent),
                ("ring_messages_sent_again", ring.stats().retransmits),
                ("ring_datagrams_sent", socket.sent),
                ("ring_datagrams_received", socket.received),
                ("ring_send_errors", socket.send_errors),
                ("ring_datagrams_wrong_key", socket.bad_key),
                ("ring_datagrams_replayed", socket.replayed),
                ("ring_datagrams_malformed", socket.malformed),
                ("ring_datagrams_other_cluster", heard.foreign),
            ],
            fatal: self.fatal.clone(),
        };
        self.status.send_replace(Arc::new(status));
    }
}

/// The log file of the first node of a new cluster, whose ring has kept `number`.
pub(crate) fn genesis_file(genesis: &Genesis, me: Member, number: u64) -> Bytes {
    Log::format(genesis.cluster, me.node, number, genesis.encode().into())
}

fn ring_state(state: RingState) -> &'static str {
    match state {
        RingState::Operational => "operational",
        RingState::Gather => "gather",
        RingState::Commit => "commit",
        RingState::Recovery => "recovery",
        RingState::Left => "left",
    }
}
