//! One node's part of one ring.

mod admission;
mod commit;
mod gather;
mod numbers;
mod operational;
mod peers;
mod probe;
mod recovery;
mod token;

use crate::codec::{self, Header, Packet, RingSize, Row};
use crate::config::{ConfigError, RingConfig};
use crate::limits::{MAX_MEMBERS, MAX_PAYLOAD, MAX_PEERS};
use crate::mutant::Mutant;
use crate::order::Order;
use crate::stats::Stats;
use crate::types::{Configuration, Destination, Note, Output, RingState, SubmitError};
use admission::Admission;
use bytes::Bytes;
use commit::Commit;
use gather::Gather;
use numbers::Numbers;
use peers::{Known, Peers};
use recovery::Recovery;
use sheep_types::{ClusterId, ConfigId, Incarnation, Member, NodeId, Time};
use std::collections::{BTreeMap, VecDeque};
use token::Run;

/// Nobody answers a notice of departure, so it is sent so often. If all are lost, the others miss the node.
const NOTICES: usize = 3;

/// What the membership protocol is doing, with what only that state needs.
#[derive(Debug)]
enum Phase {
    Operational,
    Gather(Gather),
    Commit(Commit),
    Recovery(Recovery),
    Left,
}

/// A node that this one has failed.
#[derive(Clone, Copy, Debug)]
struct Accusation {
    incarnation: Incarnation,
    /// Void when the node has come back more often than this.
    rejoins: u32,
    /// Void after this; `None`: only by rejoining.
    until: Option<Time>,
}

/// One node's part of one ring: see the crate's documentation for the order of calls.
#[derive(Debug)]
pub struct Ring {
    config: RingConfig,
    me: Member,
    cluster: ClusterId,
    weight: u16,
    random: u64,
    stats: Stats,
    out: VecDeque<Output>,
    numbers: Numbers,
    peers: Peers,
    admission: Admission,
    accused: BTreeMap<NodeId, Accusation>,
    phase: Phase,
    /// The last regular configuration; its messages are kept until the next one is installed.
    order: Option<Order>,
    /// The token of the configuration that runs: in Operational and Recovery.
    run: Option<Run>,
    queue: VecDeque<Bytes>,
    note: Note,
    note_changed: bool,
    primary: bool,
    /// What the last regular configuration counts for.
    ring_size: RingSize,
    /// Number of this node's last join.
    join: u64,
    rejoins: u32,
    probe_at: Time,
    /// Other members have failed this node.
    accused_by_others: bool,
    /// This run is over.
    departed: bool,
}

impl Ring {
    /// A ring in state Gather. `durable_number` is the last number this node made durable (zero for a new
    /// store), `seed` feeds the jitter of timers.
    pub fn new(
        config: RingConfig,
        me: Member,
        cluster: ClusterId,
        durable_number: u64,
        seed: u64,
        now: Time,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        if me.node == NodeId(0) {
            return Err(ConfigError::NoNodeId);
        }
        let durable_number = if config.mutants.is(Mutant::NumberForgotten) { 0 } else { durable_number };
        let mut ring = Self {
            config,
            me,
            cluster,
            weight: 1,
            random: seed ^ me.node.0 ^ me.incarnation.0.rotate_left(32),
            stats: Stats::default(),
            out: VecDeque::new(),
            numbers: Numbers::new(durable_number),
            peers: Peers::default(),
            admission: Admission::default(),
            accused: BTreeMap::new(),
            phase: Phase::Left,
            order: None,
            run: None,
            queue: VecDeque::new(),
            note: Note::default(),
            note_changed: false,
            primary: false,
            ring_size: RingSize::default(),
            join: 0,
            rejoins: 0,
            probe_at: now,
            accused_by_others: false,
            departed: false,
        };
        ring.gather(now, &[]);
        Ok(ring)
    }

    /// Takes a packet that was authenticated. It may still be old, foreign or garbage: then it is counted
    /// and dropped.
    pub fn handle_packet(&mut self, now: Time, packet: &[u8]) {
        if matches!(self.phase, Phase::Left) {
            self.stats.refused += 1;
            return;
        }
        // What waited in a socket while this node was stopped must not pass for news.
        self.check_token_loss(now);
        let Ok(header) = codec::decode_header(packet) else {
            self.stats.malformed += 1;
            return;
        };
        if !self.screen(header) {
            return;
        }
        let Ok((_, packet)) = codec::decode(packet) else {
            self.stats.malformed += 1;
            return;
        };
        let keep = keep_members(&self.order, &self.phase);
        match self.peers.hear(header.sender, now, keep) {
            Known::Current => {}
            Known::Restarted => self.handle_restart(now, header.sender),
            Known::Old => {
                self.stats.old_incarnation += 1;
                return;
            }
            Known::Full => {
                self.stats.peers_dropped += 1;
                return;
            }
        }
        match packet {
            Packet::Multicast(message) => self.on_multicast(header.sender, message),
            Packet::Token(token) => self.on_token(now, header.sender, token),
            Packet::Join(join) => self.on_join(now, header.sender, join),
            Packet::Commit(token) => self.on_commit_token(now, header.sender, token),
            Packet::Probe(probe) => self.on_probe(now, header.sender, &probe),
            Packet::Wanted(wanted) => self.on_wanted(now, header.sender, wanted),
            Packet::Leaving => self.on_leaving(now, header.sender),
        }
    }

    /// Whether a packet is worth decoding.
    fn screen(&mut self, header: Header) -> bool {
        let none = ClusterId::default();
        if header.cluster != self.cluster && header.cluster != none && self.cluster != none {
            self.stats.foreign_cluster += 1;
            return false;
        }
        if header.sender.node == self.me.node {
            self.stats.own_id += 1;
            return false;
        }
        true
    }

    /// A new run of a node shows that the old one is gone: nobody waits for it.
    fn handle_restart(&mut self, now: Time, sender: Member) {
        let gone = |m: &Member| m.node == sender.node && m.incarnation < sender.incarnation;
        if let Phase::Gather(gather) = &mut self.phase {
            gather.forget(sender.node);
        } else if self.members().iter().any(gone) {
            self.gather(now, &[sender]);
        }
    }

    /// Does what is due. Calling it early or late is harmless.
    pub fn handle_timeout(&mut self, now: Time) {
        self.check_token_loss(now);
        match &self.phase {
            Phase::Left => {}
            Phase::Gather(_) => self.gather_timeout(now),
            Phase::Commit(_) => self.commit_timeout(now),
            Phase::Operational | Phase::Recovery(_) => self.token_timeout(now),
        }
        if matches!(self.phase, Phase::Operational) && self.probe_at <= now {
            self.probe_everyone(now);
        }
    }

    /// When to call [`Self::handle_timeout`] next, unless something else happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        match &self.phase {
            Phase::Left => None,
            Phase::Gather(gather) => Some(gather.wake_at()),
            Phase::Commit(commit) => Some(commit.wake_at()),
            Phase::Recovery(_) => self.run.as_ref().map(Run::wake_at),
            Phase::Operational => {
                let run = self.run.as_ref().map(Run::wake_at);
                Some(run.map_or(self.probe_at, |at| at.min(self.probe_at)))
            }
        }
    }

    /// The next effect. Drain this after every call: the queue grows with what the calls cause.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// A number asked for by [`Output::PersistNumber`] is durable.
    pub fn handle_number_durable(&mut self, now: Time, number: u64) {
        self.numbers.written(number, &mut self.out);
        self.commit_number_durable(now);
    }

    /// The layer above saw a term (in a log entry, from a peer): configurations get larger numbers.
    pub fn observe_number(&mut self, number: u64) {
        self.numbers.take(number, &mut self.out);
    }

    /// Queues a payload, to be ordered in this or the next configuration. What is not ordered when a
    /// configuration ends goes into the next one; what was ordered but not delivered may be lost, and its
    /// sender sees that from the deliveries.
    pub fn submit(&mut self, now: Time, payload: Bytes) -> Result<(), SubmitError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(SubmitError::TooLarge(payload.len()));
        }
        if self.queue.len() >= self.config.queue_limit {
            return Err(SubmitError::QueueFull);
        }
        self.queue.push_back(payload);
        self.want_token(now);
        Ok(())
    }

    /// What all members are told at each visit of the token, until replaced. A change makes an idle ring
    /// rotate at once.
    pub fn set_note(&mut self, note: Note) {
        if note.differs(&self.note) {
            self.note_changed = true;
        }
        self.note = note;
        if self.note_changed {
            self.hurry_token();
        }
    }

    /// Whether the present configuration is the primary component. Each new configuration starts as not.
    pub fn set_primary(&mut self, primary: bool) {
        self.primary = primary && matches!(self.phase, Phase::Operational);
    }

    /// The cluster this node belongs to from now on.
    pub fn set_cluster(&mut self, cluster: ClusterId) {
        self.cluster = cluster;
    }

    /// What this node counts for when two sides compete: 1 for a voter (the default), 0 for a node that
    /// never votes. Told to others with the next join.
    pub fn set_weight(&mut self, weight: u16) {
        self.weight = weight;
    }

    /// Falls silent, so that the others go on without this node: its disk hangs.
    pub fn leave(&mut self, _now: Time) {
        self.run = None;
        self.primary = false;
        self.phase = Phase::Left;
    }

    /// Leaves for good, and says so, so that the others need not miss this node first: its process ends in order.
    /// Only a new run comes back.
    pub fn depart(&mut self, now: Time) {
        if !core::mem::replace(&mut self.departed, true) {
            for _ in 0..NOTICES {
                self.send(Destination::Everyone, &Packet::Leaving);
            }
        }
        self.leave(now);
    }

    /// This node is well again, after a successful test write: ends [`Self::leave`], and the exclusion by
    /// others that saw it stand still.
    pub fn rejoin(&mut self, now: Time) {
        if self.departed {
            return;
        }
        self.rejoins = self.rejoins.saturating_add(1);
        self.accused_by_others = false;
        if matches!(self.phase, Phase::Left) {
            self.gather(now, &[]);
        }
        self.probe_at = now;
    }

    /// Fails a member that does not do its part (its durable value stands still). It comes back only in a
    /// new run or by [`Self::rejoin`] there.
    pub fn exclude(&mut self, now: Time, node: NodeId) {
        self.accuse(now, node, None);
    }

    fn accuse(&mut self, now: Time, node: NodeId, until: Option<Time>) {
        let member = self.members().iter().find(|m| m.node == node).copied();
        let known = self.peers.get(node).map(|p| Member { node, incarnation: p.incarnation });
        let Some(Member { incarnation, .. }) = member.or(known).filter(|m| m.node != self.me.node) else {
            return;
        };
        if self.accused.len() >= MAX_PEERS {
            self.accused.pop_first();
        }
        let rejoins = self.peers.get(node).map_or(0, |p| p.rejoins);
        self.accused.insert(node, Accusation { incarnation, rejoins, until });
        if member.is_some() && !matches!(self.phase, Phase::Gather(_) | Phase::Left) {
            self.gather(now, &[]);
        }
    }

    /// Whether this node holds a member failed, given how often that one came back.
    fn accuses(&self, member: Member, rejoins: u32, now: Time) -> bool {
        self.accused.get(&member.node).is_some_and(|a| {
            a.incarnation == member.incarnation
                && rejoins <= a.rejoins
                && a.until.is_none_or(|until| now < until)
        })
    }

    /// Whom this node holds failed until they rejoin.
    fn holds_failed(&self) -> impl Iterator<Item = Member> {
        let lasting = self.accused.iter().filter(|(_, accusation)| accusation.until.is_none());
        let members = lasting.map(|(node, a)| Member { node: *node, incarnation: a.incarnation });
        members.filter(|m| self.peers.get(m.node).is_some_and(|p| self.accuses(*m, p.rejoins, Time::ZERO)))
    }

    /// State of the membership protocol.
    pub fn state(&self) -> RingState {
        match self.phase {
            Phase::Operational => RingState::Operational,
            Phase::Gather(_) => RingState::Gather,
            Phase::Commit(_) => RingState::Commit,
            Phase::Recovery(_) => RingState::Recovery,
            Phase::Left => RingState::Left,
        }
    }

    /// The last regular configuration installed; it runs only in state Operational.
    pub fn configuration(&self) -> Option<&Configuration> {
        self.order.as_ref().map(|order| &order.config)
    }

    /// Members of the ring that is being formed or runs: the receivers of [`Destination::Members`].
    pub fn members(&self) -> &[Member] {
        match &self.phase {
            Phase::Commit(commit) => commit.members(),
            Phase::Recovery(recovery) => &recovery.order.config.members,
            _ => self.order.as_ref().map_or(&[], |order| &order.config.members),
        }
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// This node in this run.
    pub fn me(&self) -> Member {
        self.me
    }

    /// Timers and sizes.
    pub fn ring_config(&self) -> &RingConfig {
        &self.config
    }

    /// Highest configuration number seen anywhere.
    pub fn highest_number(&self) -> u64 {
        self.numbers.highest()
    }

    /// Whether the layer above called the present configuration primary.
    pub fn is_primary(&self) -> bool {
        self.primary
    }

    /// Whether others have failed this node: it must show that its disk works, then [`Self::rejoin`].
    pub fn is_excluded(&self) -> bool {
        self.accused_by_others
    }

    /// Payloads that wait to be ordered.
    pub fn queue_len(&self) -> usize {
        self.queue.len()
    }

    fn previous(&self) -> ConfigId {
        self.order.as_ref().map_or(ConfigId::default(), |order| order.config.id)
    }

    /// Configurations that this node takes part in have larger numbers.
    fn taken_number(&self) -> u64 {
        let mutants = self.config.mutants;
        if mutants.is(Mutant::NumberTakenAgain) {
            return 0;
        }
        let binds = mutants.is(Mutant::ForeignNumberBinds);
        if binds { self.numbers.highest() } else { self.numbers.taken() }
    }

    fn send(&mut self, to: Destination, packet: &Packet) -> Bytes {
        let header = Header { cluster: self.cluster, sender: self.me };
        let bytes = codec::encode(header, packet);
        self.out.push_back(Output::Send { to, packet: bytes.clone() });
        bytes
    }

    /// A time from three quarters to five quarters of `interval` after `now`, so that nodes do not march
    /// in step.
    fn jittered(&mut self, now: Time, interval: core::time::Duration) -> Time {
        // SplitMix64: good enough for timers, and the same everywhere.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let part = u32::try_from((z ^ (z >> 31)) % 512).unwrap_or(0);
        now + interval * (768 + part) / 1024
    }

    /// What this node says of itself, but for the sets.
    fn own_row(&self, number: u64) -> Row {
        Row {
            member: self.me,
            version: self.join,
            number,
            rejoins: self.rejoins,
            weight: self.weight,
            ready: false,
            committing: false,
            primary: self.primary,
            previous: self.previous(),
            heard: Vec::new(),
            accused: Vec::new(),
            chosen: Vec::new(),
        }
    }
}

/// Nodes that must not be forgotten: members of the configuration that is left, and of the one coming.
fn keep_members<'a>(order: &'a Option<Order>, phase: &'a Phase) -> impl Fn(NodeId) -> bool + 'a {
    move |node| {
        let coming = match phase {
            Phase::Commit(commit) => commit.members(),
            Phase::Recovery(recovery) => &recovery.order.config.members,
            _ => &[],
        };
        let last = order.as_ref().is_some_and(|o| o.config.index_of(node).is_some());
        last || coming.iter().any(|m| m.node == node)
    }
}

const _: () = assert!(MAX_MEMBERS < MAX_PEERS && MAX_MEMBERS <= crate::limits::MAX_KNOWN);
