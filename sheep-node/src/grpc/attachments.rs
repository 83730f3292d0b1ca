//! Attachments, and attributes that change together.

use super::find::same;
use super::vdis::Service;
use super::volume::Volume;
use super::{APPLIED_WAIT, convert};
use sheep_api::v1::{
    AttachReply, AttachRequest, Attribute, ChangeAttributesReply, ChangeAttributesRequest, DetachReply,
    DetachRequest,
};
use sheep_state::{AccessMode, ClusterState, Command, Outcome, VdiRecord};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Status;

impl Service {
    /// The VDI that a request means by name or id.
    async fn meant(&self, name: String, id: u64) -> Result<Arc<VdiRecord>, Status> {
        let name = self.named(name, id).await?;
        let (_, record) = self.find(&name).await?;
        same(&record, id)?;
        Ok(record)
    }

    /// Gives a VDI to a node.
    pub(super) async fn attach_vdi(&self, request: AttachRequest) -> Result<AttachReply, Status> {
        let node = convert::node_id(&request.node)?;
        let record = self.meant(request.name, request.id).await?;
        let vdi = record.id;
        if request.read_only {
            self.settle_for_readers(&record).await?;
        }
        let mode = if request.read_only { AccessMode::Read } else { AccessMode::Write };
        let attach = Command::Attach { vdi, node, mode, share: request.share };
        let Outcome::Attached { attachment } = self.node.command(attach).await? else {
            return Err(Status::internal("the VDI was attached, but the attachment not named"));
        };
        let shown = |state: &ClusterState| {
            let record = state.vdi(vdi);
            record.is_none_or(|record| record.attachments.iter().any(|present| present.index == attachment))
        };
        self.node.wait_state(APPLIED_WAIT, shown).await;
        Ok(AttachReply { vdi: Some(self.shown(vdi)?), index: attachment.0 })
    }

    /// Readers write nothing, so what a writer that died has left unequal is settled before there are any: nobody can open the
    /// volume for writing while it is attached to them.
    async fn settle_for_readers(&self, record: &VdiRecord) -> Result<(), Status> {
        let is_unused = record.lock.is_none() && record.readers.is_empty() && record.attachments.is_empty();
        if is_unused && !record.is_clean() && !record.is_snapshot() {
            Volume::open_alone(&self.node, record).await?.close().await;
        }
        Ok(())
    }

    /// Takes a VDI away from a node.
    pub(super) async fn detach_vdi(&self, request: DetachRequest) -> Result<DetachReply, Status> {
        let node = convert::node_id(&request.node)?;
        let vdi = self.meant(request.name, request.id).await?.id;
        // Another node may have attached it, and this one not seen that yet.
        let state = self.up_to_date(vdi).await?;
        let present = state.vdi(vdi).and_then(|record| {
            let own = record.attachments.iter().find(|attachment| attachment.node == node);
            own.map(|attachment| attachment.index)
        });
        if let Some(attachment) = present {
            self.node.command(Command::Detach { vdi, attachment }).await?;
            let gone = |state: &ClusterState| {
                state
                    .vdi(vdi)
                    .is_none_or(|record| record.attachments.iter().all(|present| present.index != attachment))
            };
            self.node.wait_state(APPLIED_WAIT, gone).await;
        }
        Ok(DetachReply { vdi: Some(self.shown(vdi)?) })
    }

    /// Changes attributes together, if others are as expected.
    pub(super) async fn attributes(
        &self,
        request: ChangeAttributesRequest,
    ) -> Result<ChangeAttributesReply, Status> {
        let vdi = self.meant(request.name, request.id).await?.id;
        let (expected, changes) = (map(request.expected)?, map(request.changes)?);
        let command = Command::ChangeAttributes { vdi, expected, changes: changes.clone() };
        self.node.command(command).await?;
        let shown = |state: &ClusterState| {
            state.vdi(vdi).is_none_or(|record| {
                changes.iter().all(|(key, value)| record.attributes.get(key) == value.as_ref())
            })
        };
        self.node.wait_state(APPLIED_WAIT, shown).await;
        Ok(ChangeAttributesReply { vdi: Some(self.shown(vdi)?) })
    }
}

fn map(list: Vec<Attribute>) -> Result<BTreeMap<String, Option<String>>, Status> {
    let count = list.len();
    let map: BTreeMap<_, _> = list.into_iter().map(|attribute| (attribute.key, attribute.value)).collect();
    if map.len() < count {
        return Err(Status::invalid_argument("an attribute is named twice"));
    }
    Ok(map)
}
