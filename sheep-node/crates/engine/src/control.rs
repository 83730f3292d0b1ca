//! The control engine: what comes in, what goes out, and the loop between ring and log.

use crate::maintain::Housekeeping;
use crate::proposals::Proposals;
use crate::watch::DiskWatch;
use crate::{ControlConfig, convert};
use bytes::{BufMut, Bytes, BytesMut};

use sheep_log::{Log, LogError, PersistId, ProposeError, Recovered};
use sheep_state::{ClusterState, Command, Outcome, Refusal, Role};
use sheep_totem::{Destination, Output as RingOutput, Ring, RingState, SubmitError};
use sheep_types::{ClusterId, LogIndex, Member, NodeId, Time};
use std::collections::VecDeque;
use std::sync::Arc;
use thiserror::Error;

/// First byte of a datagram that belongs to the ring.
const RING_MESSAGE: u8 = 1;
/// First byte of a datagram of the log (fetches).
const LOG_MESSAGE: u8 = 2;

/// Number of a write to the log file; [`Control::handle_durable`] names it.
pub type FileId = PersistId;

/// The applied state, as of an index.
#[derive(Clone, Debug)]
pub struct Published {
    /// Last applied entry.
    pub index: LogIndex,
    /// The state; never changes again.
    pub state: Arc<ClusterState>,
}

/// Why a control engine could not be made.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The ring's settings.
    #[error("ring settings: {0}")]
    Ring(#[from] sheep_totem::ConfigError),
    /// The log's settings.
    #[error("log settings: {0}")]
    Log(#[from] sheep_log::ConfigError),
}

/// An effect. Effects are carried out in order.
#[derive(Debug)]
pub enum ControlOutput {
    /// Send a datagram; it may be lost. To be authenticated and encrypted at the edge.
    Send {
        /// To whom.
        to: Destination,
        /// The bytes.
        packet: Bytes,
    },
    /// Append to the log file and make it durable; then [`Control::handle_durable`].
    Append {
        /// Its number.
        id: FileId,
        /// The bytes.
        records: Bytes,
    },
    /// Replace the log file atomically and durably; then [`Control::handle_durable`].
    Replace {
        /// Its number.
        id: FileId,
        /// The new contents.
        contents: Bytes,
    },
    /// The applied state changed.
    Publish(Published),
    /// Gateways of this node may serve until then. [`Time::ZERO`] ends the lease.
    Lease(Time),
    /// A command has its answer.
    Answered {
        /// Given to [`Control::propose`].
        token: u64,
        /// What came of it.
        result: Result<Outcome, Refusal>,
    },
    /// A command was carried out or refused, but its answer is not known (it is inside a snapshot that this
    /// node took over). Look at the state.
    AnswerLost {
        /// Given to [`Control::propose`].
        token: u64,
    },
    /// Test the data path of a node and call [`Control::handle_tested`].
    TestPeer {
        /// Index of the report.
        report: LogIndex,
        /// Who was reported.
        peer: Member,
    },
    /// Something an operator wants to read in the log, with the ring or term concerned.
    Note(String),
    /// The node cannot go on.
    Fatal(LogError),
}

/// Ring, log and replicated state of one node.
pub struct Control {
    pub(crate) config: ControlConfig,
    pub(crate) me: Member,
    pub(crate) ring: Ring,
    pub(crate) log: Log,
    pub(crate) state: Arc<ClusterState>,
    pub(crate) published: LogIndex,
    pub(crate) proposals: Proposals,
    pub(crate) housekeeping: Housekeeping,
    pub(crate) watch: DiskWatch,
    pub(crate) outputs: VecDeque<ControlOutput>,
    /// Messages of the log that the ring's queue had no room for.
    unsent: VecDeque<Bytes>,
    /// The ring's number that waits for the log file.
    number: Option<(PersistId, u64)>,
    /// A write that shows that the disk works, after the others went on without this node.
    pub(crate) test_write: Option<PersistId>,
    pub(crate) primary: bool,
    snapshot_wanted: bool,
    stopped: bool,
}

impl Control {
    /// An engine on the recovered log file of this node. `seed` feeds the ring's timers.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn new(
        config: ControlConfig,
        me: Member,
        recovered: Recovered,
        seed: u64,
        now: Time,
    ) -> Result<Self, ControlError> {
        config.log.validate()?;
        let mut ring =
            Ring::new(config.ring.clone(), me, recovered.cluster(), recovered.number(), seed, now)?;
        // When links break, the side with the voters goes on.
        ring.set_weight(if config.profile.role == Role::Gateway { 0 } else { 1 });
        let log = Log::open(config.log.clone(), me, recovered, now);
        let housekeeping = Housekeeping::new(now);
        let mut control = Self {
            watch: DiskWatch::new(config.ring.token_loss),
            config,
            me,
            ring,
            log,
            state: Arc::new(ClusterState::new()),
            published: LogIndex(0),
            proposals: Proposals::default(),
            housekeeping,
            outputs: VecDeque::new(),
            unsent: VecDeque::new(),
            number: None,
            test_write: None,
            primary: false,
            snapshot_wanted: false,
            stopped: false,
        };
        // Until the applied state shows this very run up, nothing may be served.
        control.log.set_lease_allowed(false);
        control.break_state();
        control.drain(now);
        Ok(control)
    }

    /// For tests of the checkers: a new or restored state leaves out the rule that is asked for.
    pub(crate) fn break_state(&mut self) {
        #[cfg(feature = "mutants")]
        Arc::make_mut(&mut self.state).set_mutant(self.config.state_mutant);
    }

    /// A datagram, authenticated. Anything may be in it.
    pub fn handle_packet(&mut self, now: Time, from: NodeId, packet: &[u8]) {
        match packet.split_first() {
            Some((&RING_MESSAGE, rest)) => self.ring.handle_packet(now, rest),
            Some((&LOG_MESSAGE, rest)) => self.log.handle_message(now, from, rest),
            Some(_) | None => {}
        }
        self.drain(now);
    }

    /// Everything up to this write of the log file is durable.
    pub fn handle_durable(&mut self, now: Time, id: FileId) {
        if let Some((_, number)) = self.number.take_if(|(waiting, _)| *waiting <= id) {
            self.ring.handle_number_durable(now, number);
        }
        if self.watch.durable(id) {
            self.outputs.push_back(ControlOutput::Note("disk of the log answers again".into()));
            self.ring.rejoin(now);
        }
        if self.test_write.take_if(|test| *test <= id).is_some() {
            self.ring.rejoin(now);
        }
        self.log.handle_durable(now, id);
        self.drain(now);
    }

    /// Time has come: see [`Self::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Time) {
        if self.ring.poll_timeout().is_some_and(|at| at <= now) {
            self.ring.handle_timeout(now);
        }
        if self.log.poll_timeout().is_some_and(|at| at <= now) {
            self.log.handle_timeout(now);
        }
        self.drain(now);
        if self.housekeeping.due(now) {
            self.maintain(now);
            self.drain(now);
        }
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        [self.ring.poll_timeout(), self.log.poll_timeout(), Some(self.housekeeping.next())]
            .into_iter()
            .flatten()
            .min()
    }

    /// Orders a command; [`ControlOutput::Answered`] or [`ControlOutput::AnswerLost`] follows with the token,
    /// as late as it takes.
    ///
    /// # Errors
    /// Too many wait already, or the command is too large.
    pub fn propose(&mut self, now: Time, token: u64, command: &Command) -> Result<(), ProposeError> {
        let seq = self.log.propose(now, command.encode().into())?;
        if let Command::SetDisks { disks } = command {
            // Should the node have to say anew that it is up, it says how its disks are by then.
            self.config.profile.disks.clone_from(disks);
        }
        self.proposals.wait(seq, token);
        self.drain(now);
        Ok(())
    }

    /// The data path of a reported node was tested.
    pub fn handle_tested(&mut self, now: Time, report: LogIndex, reachable: bool) {
        self.order(now, &Command::ReportResult { report, reachable });
        self.drain(now);
    }

    /// The process ends: tells the others, so that they go on at once. Nothing is ordered here afterwards.
    pub fn depart(&mut self, now: Time) {
        self.ring.depart(now);
        self.drain(now);
    }

    /// What the node tells about itself has changed (an address, its capacity).
    pub fn set_profile(&mut self, now: Time, profile: crate::NodeProfile) {
        self.config.profile = profile;
        self.housekeeping.announce_again();
        self.maintain(now);
        self.drain(now);
    }

    /// Next effect.
    pub fn poll_output(&mut self) -> Option<ControlOutput> {
        self.outputs.pop_front()
    }

    /// This node in this run.
    pub fn me(&self) -> Member {
        self.me
    }

    /// The applied state.
    pub fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// The log, for looking.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The ring, for looking.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The cluster this node belongs to; zero if it waits for one.
    pub fn cluster(&self) -> ClusterId {
        self.log.cluster()
    }

    /// Whether this node is in the primary component and the component may act.
    pub fn is_primary(&self) -> bool {
        self.log.is_installed() && self.ring.state() == RingState::Operational
    }

    /// Commands that wait for their answer.
    pub fn waiting(&self) -> usize {
        self.proposals.len()
    }

    /// Housekeeping: orders a command whose answer nobody waits for. A full queue only delays it.
    pub(crate) fn order(&mut self, now: Time, command: &Command) {
        let _ = self.log.propose(now, command.encode().into());
    }

    /// Carries effects between ring and log until both are quiet.
    pub(crate) fn drain(&mut self, now: Time) {
        loop {
            let mut quiet = true;
            while let Some(output) = self.ring.poll_output() {
                quiet = false;
                self.ring_output(now, output);
            }
            while let Some(output) = self.log.poll_output() {
                quiet = false;
                self.log_output(now, output);
            }
            self.submit_unsent(now);
            // Terms of entries that were fetched. (Not `Log::number`, which has what the ring wrote ahead.)
            self.ring.observe_number(self.log.last().term.number);
            if quiet {
                break;
            }
        }
        self.write_snapshot(now);
        self.publish();
    }

    /// The log may refuse it, if it has gone elsewhere meanwhile; then the next state will do.
    fn write_snapshot(&mut self, now: Time) {
        if self.snapshot_wanted {
            let snapshot = self.state.encode_snapshot().into();
            self.snapshot_wanted = !self.log.snapshot_written(now, self.state.applied(), snapshot);
            while let Some(output) = self.log.poll_output() {
                self.log_output(now, output);
            }
        }
    }

    fn ring_output(&mut self, now: Time, output: RingOutput) {
        match output {
            RingOutput::Send { to, packet } => self.send(to, RING_MESSAGE, &packet),
            RingOutput::PersistNumber(number) => {
                let id = self.log.persist_number(number);
                self.number = Some((id, number));
            }
            RingOutput::Configuration(configuration) => {
                self.unsent.clear();
                self.watch.new_configuration();
                self.log.handle_configuration(now, convert::configuration(configuration));
            }
            RingOutput::Deliver(delivery) => self.log.handle_delivery(now, convert::delivery(delivery)),
            RingOutput::Safe { .. } => {}
            RingOutput::Token(token) => {
                self.watch_members(now, &token);
                self.log.handle_token(now, convert::token(&token));
            }
        }
    }

    fn log_output(&mut self, now: Time, output: sheep_log::Output) {
        use sheep_log::Output;
        match output {
            Output::Multicast(payload) => self.unsent.push_back(payload),
            Output::Send { to, message } => self.send(Destination::Node(to), LOG_MESSAGE, &message),
            Output::Persist { id, records } => {
                self.watch.persist(now, id);
                self.outputs.push_back(ControlOutput::Append { id, records });
            }
            Output::Rewrite { id, contents } => {
                self.watch.persist(now, id);
                self.outputs.push_back(ControlOutput::Replace { id, contents });
            }
            Output::NewTerm { term, primary } => {
                let members = self.ring.configuration().map_or(0, |c| c.members.len());
                let what = if primary { "primary component" } else { "ring formed" };
                self.outputs
                    .push_back(ControlOutput::Note(format!("{what}: term {term}, {members} members")));
            }
            Output::Commit(entries) => self.apply(now, &entries),
            Output::Restore { snapshot, at } => self.restore(&snapshot, at),
            Output::LeaseRenewed(deadline) => self.renewed(deadline),
            Output::Note(note) => self.ring.set_note(convert::note_to_ring(note)),
            Output::Primary(primary) => {
                self.primary = primary;
                self.ring.set_primary(primary);
                if !primary {
                    self.outputs.push_back(ControlOutput::Note("not in the primary component".into()));
                }
            }
            // A node that does not vote can wait for those that do.
            Output::FormAgain if !self.log.voters().contains(&self.me.node) => {}
            Output::FormAgain => {
                // To leave and come back is to form again.
                self.ring.leave(now);
                self.ring.rejoin(now);
            }
            Output::SnapshotWanted => self.snapshot_wanted = true,
            Output::Fatal(error) => {
                if !core::mem::replace(&mut self.stopped, true) {
                    self.ring.leave(now);
                    self.outputs.push_back(ControlOutput::Fatal(error));
                }
            }
        }
    }

    fn submit_unsent(&mut self, now: Time) {
        while let Some(payload) = self.unsent.pop_front() {
            match self.ring.submit(now, payload.clone()) {
                Ok(()) => {}
                Err(SubmitError::QueueFull) => {
                    self.unsent.push_front(payload);
                    break;
                }
                // The log keeps below the ring's limit; a larger one can never be sent.
                Err(SubmitError::TooLarge(_)) => {}
            }
        }
    }

    fn send(&mut self, to: Destination, channel: u8, message: &[u8]) {
        let mut packet = BytesMut::with_capacity(message.len() + 1);
        packet.put_u8(channel);
        packet.put_slice(message);
        self.outputs.push_back(ControlOutput::Send { to, packet: packet.freeze() });
    }
}
