//! Lists of VDIs, whole or by pages.

use super::convert;
use super::find::same;
use super::vdis::Service;
use sheep_api::v1::{ListVdisReply, ListVdisRequest};
use sheep_state::VdiRecord;
use sheep_types::VdiId;
use std::sync::Arc;
use tonic::Status;

/// Whether a request wants this VDI.
fn wanted(record: &VdiRecord, request: &ListVdisRequest) -> bool {
    let kind = if record.is_snapshot() { "snapshot" } else { "volume" };
    (request.kind.is_empty() || request.kind == kind)
        && (request.source_id == 0 || record.snapshot_of.is_some_and(|of| of.vdi.0 == request.source_id))
        && (request.tag.is_empty() || record.tag() == Some(request.tag.as_str()))
}

impl Service {
    /// One VDI, or those that a request wants.
    pub(super) async fn list_vdis(&self, request: ListVdisRequest) -> Result<ListVdisReply, Status> {
        if !["", "volume", "snapshot"].contains(&request.kind.as_str()) {
            let message = format!("{:?} is no kind of VDI: volume or snapshot", request.kind);
            return Err(Status::invalid_argument(message));
        }
        if request.id != 0 || !request.name.is_empty() {
            let name = self.named(request.name, request.id).await?;
            let (state, record) = self.find(&name).await?;
            same(&record, request.id)?;
            return Ok(ListVdisReply { vdis: vec![convert::vdi(&record, &state)], more: false });
        }
        let state = self.node.primary().await?;
        // In the order of their ids.
        let all = state.vdis();
        let first = all.partition_point(|record| record.id <= VdiId(request.after));
        let mut rest = all[first..].iter().filter(|record| wanted(record, &request));
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let page: Vec<&&Arc<VdiRecord>> = rest.by_ref().take(limit).collect();
        let vdis = page.into_iter().map(|record| convert::vdi(record, &state)).collect();
        Ok(ListVdisReply { vdis, more: rest.next().is_some() })
    }
}
