//! The log of one node. The files below hold one concern each: [`term`] promises, base and start of a term;
//! [`append`] what is put into the log and made durable; [`commit`] confirmations, commit and apply;
//! [`lease`]; [`fetch`] and [`serve`] the two sides of getting what is missing; [`queue`] this node's own
//! commands; [`snapshot`] compaction.

mod append;
mod commit;
mod fetch;
mod lease;
mod queue;
mod serve;
mod snapshot;
mod term;

use crate::api::{LogError, LogStats, Note, Output, PersistId};
use crate::chain::{Chain, Snapshot, VoterList};
use crate::config::LogConfig;
use crate::entry::{Entry, genesis_body};
use crate::mutant::Mutant;
use crate::record::{RecordWriter, Recovered};
use append::InFlight;
use bytes::Bytes;
use core::time::Duration;
use lease::Lease;
use queue::Queue;
use sheep_types::{ClusterId, LogIndex, Member, NodeId, Place, Term, Time};
use std::collections::VecDeque;
use term::{Current, Phase};

/// The global log of one node, as a state machine.
///
/// Methods are of four kinds: `handle_*` take what happened; [`propose`](Self::propose) and the other verbs
/// ask for something; `poll_output` gives what is to be done, to be called until it gives nothing after
/// every call of the first two kinds; the rest look at the state. `poll_timeout` says when
/// [`handle_timeout`](Self::handle_timeout) wants to be called.
#[derive(Debug)]
pub struct Log {
    config: LogConfig,
    me: Member,
    outputs: VecDeque<Output>,
    /// A contradiction was found; nothing is done any more.
    stopped: bool,

    chain: Chain,
    snapshot: Option<Snapshot>,
    /// Highest number the ring asked to keep.
    number: u64,
    /// Highest term promised, durable or not; an entry of a term promises it.
    promised: Term,

    writer: RecordWriter,
    next_persist: PersistId,
    in_flight: VecDeque<InFlight>,
    /// End of the log on disk.
    durable: Place,
    durable_promise: Term,

    commit: Place,
    /// A committed place beyond the end of this log, looked at again when the log has grown.
    commit_ahead: Option<Place>,
    /// What the file says is committed.
    recorded_commit: LogIndex,
    /// Last entry put out by [`Output::Commit`] or [`Output::Restore`].
    applied: Place,
    applied_voters: VoterList,
    /// Bytes of entries applied since the last snapshot was asked for or taken.
    applied_bytes: usize,

    current: Option<Current>,
    queue: Queue,
    lease: Lease,
    note: Note,
    /// Terms in a row in which the base could not be had.
    fetch_failures: u32,
    stats: LogStats,
}

impl Log {
    /// The first contents of the durable file of the first node of a new cluster. `command` goes into the
    /// genesis entry, for the layer above. `number` is the highest that the node's ring kept while it had no cluster
    /// ([`number`](Self::number); 0 for a new node): numbers never go back. The file must be durable before the log is
    /// opened.
    pub fn format(cluster: ClusterId, first_voter: NodeId, number: u64, command: Bytes) -> Bytes {
        let term = Term { number: number + 1, representative: first_voter };
        let body = genesis_body(cluster, first_voter, &command);
        let genesis = Entry::after(&Place::default(), term, body);
        let mut writer = RecordWriter::default();
        writer.number(term.number);
        writer.entry(&genesis);
        // A cluster of one voter: what is durable there is committed.
        writer.commit(genesis.place);
        writer.flush()
    }

    /// Opens the log of `me`. Outputs (the snapshot, what is known to be committed) are ready at once.
    pub fn open(config: LogConfig, me: Member, recovered: Recovered, _now: Time) -> Self {
        let promised = recovered.promised();
        let snapshot = recovered.snapshot;
        let (applied, applied_voters) = match &snapshot {
            Some(s) => (s.at, s.voters.clone()),
            None => (Place::default(), VoterList::default()),
        };
        let mut log = Self {
            lease: Lease::new(config.lease),
            config,
            me,
            outputs: VecDeque::new(),
            stopped: false,
            durable: recovered.chain.last(),
            chain: recovered.chain,
            number: recovered.number,
            promised,
            writer: RecordWriter::new(recovered.len, recovered.len),
            next_persist: PersistId(1),
            in_flight: VecDeque::new(),
            durable_promise: promised,
            commit: recovered.commit,
            commit_ahead: None,
            recorded_commit: recovered.commit.index,
            applied,
            applied_voters,
            applied_bytes: 0,
            current: None,
            queue: Queue::default(),
            note: Note::default(),
            fetch_failures: 0,
            stats: LogStats::default(),
            snapshot,
        };
        if recovered.torn {
            // What is appended must not follow the torn record.
            log.rewrite();
        }
        if let Some(snapshot) = &log.snapshot {
            let restore = Output::Restore { snapshot: snapshot.data.clone(), at: snapshot.at };
            log.outputs.push_back(restore);
        }
        log.apply();
        log.refresh_note();
        log
    }

    /// The next effect. What is to be made durable is collected until everything else was taken, so that
    /// one write covers all that a batch of deliveries appended.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.flush();
        }
        self.outputs.pop_front()
    }

    /// The cluster; zero if the node belongs to none yet.
    pub fn cluster(&self) -> ClusterId {
        self.chain.cluster()
    }

    /// The present regular configuration, primary or not; zero if none.
    pub fn term(&self) -> Term {
        self.current.as_ref().map(|c| c.config.id).unwrap_or_default()
    }

    /// Whether voters enough have promised the present configuration.
    pub fn is_primary(&self) -> bool {
        matches!(self.current, Some(Current { phase: Phase::Started(_), .. }))
    }

    /// Primary, and the term's install entry is committed: the configuration may act.
    pub fn is_installed(&self) -> bool {
        match &self.current {
            Some(Current { config, phase: Phase::Started(started), .. }) => {
                let install = LogIndex(started.base.index.0 + 1);
                self.commit.index >= install
                    && self.chain.place(self.commit.index).is_some_and(|p| p.term == config.id)
            }
            _ => false,
        }
    }

    /// End of the log in memory.
    pub fn last(&self) -> Place {
        self.chain.last()
    }

    /// The place at an index, as far as this log has it in memory. For checks and comparisons.
    pub fn place_at(&self, index: LogIndex) -> Option<Place> {
        self.chain.place(index)
    }

    /// End of the durable log.
    pub fn durable(&self) -> Place {
        self.durable
    }

    /// The highest place that this node knows to be committed and has in its log.
    pub fn commit(&self) -> Place {
        self.commit
    }

    /// The last entry that was put out to be applied.
    pub fn applied(&self) -> LogIndex {
        self.applied.index
    }

    /// The newest voter list in the log, committed or not.
    pub fn voters(&self) -> Vec<NodeId> {
        self.chain.lists().last().map(|v| v.list.clone()).unwrap_or_default()
    }

    /// A change of the voters is in the log and not known to be committed: two lists count.
    pub fn is_voter_change_pending(&self) -> bool {
        self.chain.lists().len() > 1
    }

    /// This node's note for the token.
    pub fn note(&self) -> Note {
        self.note
    }

    /// The highest number of any term promised or held, or kept for the ring: the ring must use larger ones.
    pub fn number(&self) -> u64 {
        self.number.max(self.promised.number).max(self.chain.last().term.number)
    }

    /// The lease's end if it has not passed. Only to be believed when all outputs were taken.
    pub fn lease_deadline(&self, now: Time) -> Option<Time> {
        self.lease.deadline(now)
    }

    /// The lease that the applied settings ask for. It holds for renewals from now on.
    pub fn set_lease(&mut self, lease: Duration) {
        self.lease.set_duration(lease);
    }

    /// Whether the applied state shows this node up in its present run. False ends the lease at once.
    /// True until told otherwise.
    pub fn set_lease_allowed(&mut self, allowed: bool) {
        self.lease.set_allowed(allowed);
    }

    /// Counters and sizes.
    pub fn stats(&self) -> LogStats {
        LogStats {
            entries: self.chain.len() as u64,
            entry_bytes: self.chain.bytes() as u64,
            queued: self.queue.len() as u64,
            ..self.stats
        }
    }

    fn stop(&mut self, error: LogError) {
        if !self.stopped {
            self.stopped = true;
            self.lease.end();
            self.outputs.push_back(Output::Fatal(error));
        }
    }

    #[cfg(feature = "mutants")]
    fn without(&self, rule: Mutant) -> bool {
        self.config.mutant == Some(rule)
    }

    #[cfg(not(feature = "mutants"))]
    #[allow(clippy::unused_self)]
    const fn without(&self, _rule: Mutant) -> bool {
        false
    }
}
