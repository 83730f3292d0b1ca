//! Which VDI a request means, and who uses it.

use super::vdis::Service;
use super::{APPLIED_WAIT, NAME_WAIT, status};
use crate::health;
use sheep_state::{ClusterState, Command, SNAPSHOT_MARK, VdiRecord};
use sheep_types::{Member, VdiId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// How long a VDI that is in use is waited for: its user may just be leaving.
const IN_USE_WAIT: Duration = Duration::from_secs(1);
/// The same of one that is open only to be flattened, and closed when somebody else wants it.
const GIVEN_BACK_WAIT: Duration = Duration::from_secs(20);

/// Whether this run of a node writes or reads the VDI.
pub(super) fn in_use_by(state: &ClusterState, vdi: VdiId, me: Member) -> bool {
    state.vdi(vdi).is_some_and(|record| {
        record.lock.is_some_and(|lock| lock.holder == me) || record.readers.iter().any(|r| r.holder == me)
    })
}

fn is_free(state: &ClusterState, vdi: VdiId) -> bool {
    state.vdi(vdi).is_none_or(|record| record.lock.is_none() && record.readers.is_empty())
}

impl Service {
    /// The name that a request means which gives a name or an id.
    pub(super) async fn named(&self, name: String, id: u64) -> Result<String, Status> {
        if id == 0 {
            return Ok(name);
        }
        let mut state = self.node.primary().await?;
        if state.vdi(VdiId(id)).is_none() {
            // Another node may have made it, and this one not seen that yet. What it orders now comes behind.
            state = self.up_to_date(VdiId(id)).await?;
        }
        let found = state.vdi(VdiId(id)).map(|record| record.name.clone());
        found.ok_or_else(|| Status::not_found(format!("no VDI with id {id}")))
    }

    /// A state that has everything that any node has answered before; NOT_FOUND if there is no such VDI in it.
    pub(super) async fn up_to_date(&self, vdi: VdiId) -> Result<Arc<ClusterState>, Status> {
        let nothing = Command::ChangeAttributes { vdi, expected: BTreeMap::new(), changes: BTreeMap::new() };
        self.node.command(nothing).await?;
        self.node.wait_state(APPLIED_WAIT, |state| state.vdi(vdi).is_some()).await;
        self.node.primary().await
    }

    /// The VDI of this name, on a node that may act.
    pub(super) async fn find(&self, name: &str) -> Result<(Arc<ClusterState>, Arc<VdiRecord>), Status> {
        let mut state = self.node.primary().await?;
        if state.vdi_by_name(name).is_none() {
            self.node.wait_state(NAME_WAIT, |state| state.vdi_by_name(name).is_some()).await;
            state = self.node.state().unwrap_or(state);
        }
        match state.vdi_by_name(name) {
            Some(record) => Ok((Arc::clone(&state), Arc::clone(record))),
            None => Err(Status::not_found(format!("no VDI {name:?}"))),
        }
    }

    /// The VDI, once nobody has it open; the error says who has.
    pub(super) async fn find_free(&self, name: &str) -> Result<Arc<VdiRecord>, Status> {
        let (_, record) = self.find(name).await?;
        let background = record.lock.is_some_and(|lock| lock.background);
        if background {
            self.node.command(Command::Yield { vdi: record.id }).await?;
        }
        let patience = if background { GIVEN_BACK_WAIT } else { IN_USE_WAIT };
        self.node.wait_state(patience, |state| is_free(state, record.id)).await;
        let (state, record) = self.find(name).await?;
        match record.lock {
            Some(lock) => Err(in_use(&state, &record, lock.holder)),
            None if record.readers.is_empty() => Ok(record),
            None => {
                let message = format!("VDI {name} is being read by {} nodes", record.readers.len());
                Err(Status::failed_precondition(message))
            }
        }
    }

    /// No other node has the VDI open; the error says which has.
    pub(super) fn not_elsewhere(&self, state: &ClusterState, record: &VdiRecord) -> Result<(), Status> {
        let me = self.node.status().me;
        let other = record.lock.filter(|lock| lock.holder != me);
        other.map_or(Ok(()), |lock| Err(in_use(state, record, lock.holder)))
    }

    /// A volume that has to be opened is opened by a node that it is attached to; the error names one.
    pub(super) fn not_attached_elsewhere(
        &self,
        state: &ClusterState,
        record: &VdiRecord,
    ) -> Result<(), Status> {
        let me = self.node.status().me.node;
        if record.attachments.iter().any(|attachment| attachment.node == me) {
            return Ok(());
        }
        let Some(attachment) = record.attachments.first() else { return Ok(()) };
        let (name, who) = (&record.name, health::name(Some(state), attachment.node));
        let message = format!("VDI {name} is attached to node {who}, which alone can open it now");
        Err(status::ask(attachment.node, message))
    }
}

/// The name meant a VDI with the id that was asked for, if one was; it may have been given to another one since.
pub(super) fn same(record: &VdiRecord, id: u64) -> Result<(), Status> {
    if id == 0 || record.id.0 == id {
        return Ok(());
    }
    Err(Status::not_found(format!("no VDI with id {id}")))
}

/// The VDI is open at another node, or at this one.
pub(super) fn in_use(state: &ClusterState, record: &VdiRecord, holder: Member) -> Status {
    let who = health::name(Some(state), holder.node);
    let message = format!(
        "VDI {} is in use by node {who}; close it there first (a lock whose node is gone is ended by `dog vdi lock \
         revoke {}`)",
        record.name, record.name
    );
    status::ask(holder.node, message)
}

/// The snapshot with this tag of the volume that is named, or that the named snapshot was taken of.
pub(super) fn snapshot_name(name: &str, tag: &str) -> String {
    let volume = name.split(SNAPSHOT_MARK).next().unwrap_or(name);
    if tag.contains(SNAPSHOT_MARK) { tag.to_owned() } else { format!("{volume}{SNAPSHOT_MARK}{tag}") }
}

/// Snapshots stay as they are.
pub(super) fn writable(record: &VdiRecord) -> Result<(), Status> {
    if !record.is_snapshot() {
        return Ok(());
    }
    let message = format!(
        "{} is a snapshot, which cannot be changed; `dog vdi clone` makes a volume of it",
        record.name
    );
    Err(Status::failed_precondition(message))
}
