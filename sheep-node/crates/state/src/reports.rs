//! Reports of nodes whose ring traffic works but whose data path does not.

use serde::{Deserialize, Serialize};
use sheep_types::{Epoch, LogIndex, Member, NodeId};
use std::collections::BTreeSet;

/// A report. Decided ones are remembered until the next term: they tell a node that cannot reach many from the
/// many it cannot reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRecord {
    /// Index of the entry.
    pub index: LogIndex,
    /// Who got no answer.
    pub reporter: Member,
    /// From whom.
    pub suspect: Member,
    /// The epoch then.
    pub epoch: Epoch,
    /// Nodes that have not said yet whether they reach the suspect.
    pub awaited: BTreeSet<NodeId>,
    /// Not decided.
    pub open: bool,
}
