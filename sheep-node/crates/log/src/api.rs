//! What goes into the log and what comes out of it.

use bytes::Bytes;
use sheep_types::{ClusterId, CommandSeq, ConfigId, LogIndex, Member, NodeId, Place, Term, Time};

/// A configuration of the ordering ring, as its members see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Its identifier: the term, if it becomes primary.
    pub id: ConfigId,
    /// Regular, or transitional: the members of the last regular one that go on together.
    pub regular: bool,
    /// Its members, by node id.
    pub members: Vec<Member>,
}

/// One ordered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Regular configuration in which it was ordered.
    pub config: ConfigId,
    /// Its place in that configuration's order, from 1, without gaps.
    pub position: u64,
    /// Who sent it.
    pub sender: Member,
    /// What [`Output::Multicast`] gave to the ring.
    pub payload: Bytes,
    /// Delivered in a transitional configuration: it may follow a hole, and does not enter the log.
    pub transitional: bool,
}

/// One member's fields on the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Rotation in which the owner wrote it; filled in by the ring.
    pub written_rotation: u64,
    /// The configuration in which it was written; zero before the first visit.
    pub term: Term,
    /// End of the owner's durable log.
    pub durable: Place,
    /// The highest place that the owner knows to be committed.
    pub commit: Place,
    /// The owner has durably promised `term`.
    pub promised: bool,
    /// For the layer above; the log leaves it alone.
    pub flags: u32,
}

/// A visit of the token to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSeen {
    /// The configuration it belongs to.
    pub config: ConfigId,
    /// Its rotation.
    pub rotation: u64,
    /// A time taken before this node sent the token of the previous rotation; none in the first one.
    pub passed_previous: Option<Time>,
    /// The notes of all members, as they stand on the token.
    pub notes: Vec<(Member, Note)>,
}

/// Number of a [`Output::Persist`] or [`Output::Rewrite`]; grows by one with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistId(pub u64);

/// An effect for the engine to carry out. They are to be taken in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Submit this to the ring. If the ring's queue is full, keep it and submit it later, in order.
    Multicast(Bytes),
    /// Send this to another node's [`Log::handle_message`](crate::Log::handle_message); it may be lost.
    Send {
        /// The receiver.
        to: NodeId,
        /// The message; at most 32 KiB.
        message: Bytes,
    },
    /// Append to the durable file; then [`Log::handle_durable`](crate::Log::handle_durable).
    Persist {
        /// Its number.
        id: PersistId,
        /// The bytes.
        records: Bytes,
    },
    /// Replace the durable file atomically; what comes after is appended to the new one. Then
    /// [`Log::handle_durable`](crate::Log::handle_durable).
    Rewrite {
        /// Its number.
        id: PersistId,
        /// The new contents.
        contents: Bytes,
    },
    /// A regular configuration was entered (`primary` false), or it became primary (true).
    NewTerm {
        /// Its identifier.
        term: Term,
        /// Whether voters enough have promised it.
        primary: bool,
    },
    /// Entries that are committed: apply them. In order, without gaps, each index once.
    Commit(Vec<CommittedEntry>),
    /// Replace the applied state by this snapshot; the next [`Output::Commit`] continues after it.
    Restore {
        /// What some node's engine gave to [`Log::snapshot_written`](crate::Log::snapshot_written).
        snapshot: Bytes,
        /// The last entry in it.
        at: Place,
    },
    /// The lease now ends then. Everything that had to be applied before was put out before.
    LeaseRenewed(Time),
    /// This node's note for the token changed.
    Note(Note),
    /// This node's configuration is, or is no longer, the primary component.
    Primary(bool),
    /// The base of the term cannot be had: the ring must form again.
    FormAgain,
    /// Enough was applied since the last snapshot: give one to
    /// [`Log::snapshot_written`](crate::Log::snapshot_written) when convenient.
    SnapshotWanted,
    /// The log stops for ever: going on could lose committed entries.
    Fatal(LogError),
}

/// One committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedEntry {
    /// Its index.
    pub index: LogIndex,
    /// Term in which it was appended.
    pub term: Term,
    /// Hash chain value.
    pub checksum: u64,
    /// What it is.
    pub kind: CommittedKind,
}

impl CommittedEntry {
    /// Where it is.
    pub fn place(&self) -> Place {
        Place { term: self.term, index: self.index, checksum: self.checksum }
    }
}

/// Contents of a committed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommittedKind {
    /// The first entry: makes the cluster.
    Genesis {
        /// Its id.
        cluster: ClusterId,
        /// The only voter.
        first_voter: NodeId,
        /// For the layer above: first settings.
        command: Bytes,
    },
    /// The first entry of a term.
    Install {
        /// The term.
        term: Term,
        /// All members of its configuration.
        members: Vec<Member>,
    },
    /// From here this is the voter list. (A change that came too late to count shows the list that stays.)
    Voters {
        /// The list, by node id.
        list: Vec<NodeId>,
    },
    /// A command.
    Command {
        /// The node and run that proposed it.
        origin: Member,
        /// Its number there: it takes effect only if it is the origin's last + 1.
        seq: CommandSeq,
        /// What was proposed.
        command: Bytes,
    },
    /// Something ordered that this version does not know. It has no effect.
    Unknown,
}

/// Why a proposal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The queue of commands that wait to be committed is full. Try again when some are committed.
    #[error("too many commands wait to be committed")]
    QueueFull,
    /// The command is larger than a ring message can be.
    #[error("the command has {size} bytes; at most {limit} are possible")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Voters can be changed only in a primary component whose install entry is committed.
    #[error("this node is not in an installed primary component")]
    NotPrimary,
    /// The last change of the voters is not known to be committed yet.
    #[error("the last change of the voters is not committed yet")]
    ChangePending,
    /// The list is empty, of even length, too long, not sorted, names a node twice or changes nothing.
    #[error("not a list of voters: it must be odd, sorted, without duplicates, not too long, and new")]
    InvalidVoters,
    /// A new voter's durable log is not near the end of the log.
    #[error("node {0} cannot vote yet: its durable log is too far behind")]
    NotCaughtUp(NodeId),
    /// The log has stopped.
    #[error("the log has stopped")]
    Stopped,
}

/// Why the log stopped for ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The primary's log does not contain what is committed here.
    #[error("committed entry {committed:?} is not in the log of term {term}")]
    CommittedConflict {
        /// What is committed here.
        committed: Place,
        /// The term that contradicts it.
        term: Term,
    },
    /// A member of the configuration belongs to another cluster.
    #[error("node {node} belongs to cluster {theirs}, this node to {ours}")]
    ForeignCluster {
        /// The other node.
        node: NodeId,
        /// Its cluster.
        theirs: ClusterId,
        /// This node's cluster.
        ours: ClusterId,
    },
    /// A log on disk cannot be used as this node's.
    #[error("the recovered log is not consistent: {0}")]
    Inconsistent(&'static str),
}

/// Counters and sizes for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Terms that became primary here.
    pub terms: u64,
    /// Entries appended.
    pub appended: u64,
    /// Entries put out as committed.
    pub committed: u64,
    /// Entries replaced by those of a later term.
    pub replaced: u64,
    /// Commands multicast, again or for the first time.
    pub sent_commands: u64,
    /// Lease renewals.
    pub renewals: u64,
    /// Fetch requests sent.
    pub fetches: u64,
    /// Snapshots taken over from other nodes.
    pub restores: u64,
    /// Times the ring was asked to form again.
    pub form_again: u64,
    /// Messages and notes that were malformed, foreign or contradictory, and dropped.
    pub dropped: u64,
    /// Entries in memory.
    pub entries: u64,
    /// Bytes of entries in memory.
    pub entry_bytes: u64,
    /// Commands of this node that wait to be committed.
    pub queued: u64,
}
