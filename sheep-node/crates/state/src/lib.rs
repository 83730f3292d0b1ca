//! The replicated state: settings, voters, nodes, epochs, VDIs, attachments and locks.
//!
//! A deterministic state machine over the committed entries of the global log. [`ClusterState::apply`] takes
//! entries in order and says what changed; the same entries give the same bytes on every node, which
//! [`ClusterState::hash`] compares. Nothing here knows time: what depends on time is proposed by somebody and
//! names what was seen, and does nothing if that no longer holds.

mod apply;
mod balance;
mod command;
mod encoding;
mod epoch;
pub mod limits;
mod lineage;
#[cfg(feature = "mutants")]
mod mutants;
mod nodes;
mod origins;
mod outcome;
mod query;
mod reports;
mod settings;
mod shared_map;
mod snapshot;
mod state;
mod tree;
mod vdi;
mod voters;

pub use command::{CloneVdi, Command, CreateVdi, EntryKind, Genesis, Guard, NodeUp, SnapshotItem, SweptVid};
pub use epoch::{EpochMember, EpochMembers, MemberState};
pub use lineage::{LineageRecord, PastCopies};
#[cfg(feature = "mutants")]
pub use mutants::Mutant;
pub use nodes::{Addresses, DiskRecord, DiskState, DownCause, NodeRecord, NodeState, Role};
pub use outcome::{Answer, Applied, Changes, Limited, Outcome, Refusal, SnapshotMade};
pub use reports::ReportRecord;
pub use settings::{PastLease, Settings, WhenUnavailable};
pub use snapshot::SnapshotError;
pub use state::ClusterState;
pub use vdi::{
    AccessMode, Attachment, CacheMode, EndedLock, Lock, Reader, SNAPSHOT_MARK, SnapshotOf, VdiRecord,
    VidKind, VidRecord,
};
