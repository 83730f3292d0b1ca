//! What goes into a ring and what comes out of it.

use crate::limits::MAX_PAYLOAD;
use bytes::Bytes;
use sheep_types::{ConfigId, Member, NodeId, Place, Term, Time};
use thiserror::Error;

/// State of the membership protocol (Amir et al. 1995, figure 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingState {
    /// The token rotates, messages are ordered.
    Operational,
    /// Nodes find out who hears whom.
    Gather,
    /// The commit token goes round a membership that was agreed on.
    Commit,
    /// Members exchange the messages of their last configurations.
    Recovery,
    /// This node left and is silent until [`crate::Ring::rejoin`].
    Left,
}

/// Whether messages are ordered in a configuration, or only those of the one before are finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigurationKind {
    /// Messages are ordered in it.
    Regular,
    /// The members of the last regular configuration that move together to the next one.
    Transitional,
}

/// A configuration as extended virtual synchrony delivers it, at a place in the order of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Its identifier, never reused. A transitional configuration has that of the regular one it leads to.
    pub id: ConfigId,
    /// Regular or transitional.
    pub kind: ConfigurationKind,
    /// Members, sorted by node id.
    pub members: Vec<Member>,
    /// The regular configuration this node comes from; `None` for its first one.
    pub previous: Option<ConfigId>,
}

impl Configuration {
    /// Place of a node in the list of members.
    pub fn index_of(&self, node: NodeId) -> Option<usize> {
        self.members.binary_search_by_key(&node, |m| m.node).ok()
    }

    /// Whether this very run of a node is a member.
    pub fn contains(&self, member: Member) -> bool {
        self.index_of(member.node).is_some_and(|i| self.members.get(i) == Some(&member))
    }
}

/// A message in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The regular configuration in which it was sent.
    pub config: ConfigId,
    /// 1, 2, 3 and so on without gaps in the regular configuration. Zero if `transitional`.
    pub position: u64,
    /// Who submitted it.
    pub sender: Member,
    /// Its bytes, as submitted.
    pub payload: Bytes,
    /// Delivered in the transitional configuration, maybe behind a hole: others may not have it there.
    pub transitional: bool,
}

/// What one member tells all others on every visit of the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Rotation in which its owner last wrote it; filled in by the ring. Zero: not yet in this configuration.
    pub written_rotation: u64,
    /// Highest term promised.
    pub term: Term,
    /// Up to where its log is durable.
    pub durable: Place,
    /// Up to where it knows the log to be committed.
    pub commit: Place,
    /// Whether it has promised the present term.
    pub promised: bool,
    /// For the layer above.
    pub flags: u32,
}

impl Note {
    /// Whether the owner changed anything; the rotation does not count.
    pub(crate) fn differs(&self, other: &Self) -> bool {
        Self { written_rotation: 0, ..*self } != Self { written_rotation: 0, ..*other }
    }
}

/// A visit of the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSeen {
    /// The regular configuration.
    pub config: ConfigId,
    /// Number of the rotation, from 1.
    pub rotation: u64,
    /// Time taken before this node first sent the token of the previous rotation. Every member has handled
    /// the token since then. `None` on the first visit.
    pub passed_previous: Option<Time>,
    /// All members with what they last wrote, in the order of the configuration.
    pub notes: Vec<(Member, Note)>,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// One node.
    Node(NodeId),
    /// All of [`crate::Ring::members`] but this node.
    Members,
    /// Members, seeds, anybody known: joins and probes.
    Everyone,
}

/// An effect, in the order in which effects must happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a packet. It may be lost.
    Send {
        /// To whom.
        to: Destination,
        /// The bytes, to be authenticated and encrypted at the edge.
        packet: Bytes,
    },
    /// Make this number durable, then call [`crate::Ring::handle_number_durable`]. At most one is under way.
    PersistNumber(u64),
    /// The configuration changes here.
    Configuration(Configuration),
    /// A message in agreed order.
    Deliver(Delivery),
    /// All members have received everything up to here.
    Safe {
        /// The regular configuration.
        config: ConfigId,
        /// Last position of which that is known.
        position: u64,
    },
    /// The token visited.
    Token(TokenSeen),
}

/// Why a payload was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// Too many payloads wait already; try again after some were delivered.
    #[error("queue is full")]
    QueueFull,
    /// The payload is larger than [`MAX_PAYLOAD`].
    #[error("payload of {0} bytes is larger than {MAX_PAYLOAD}")]
    TooLarge(usize),
}
