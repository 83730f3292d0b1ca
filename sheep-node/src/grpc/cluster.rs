//! Service `Cluster`.

use super::{APPLIED_WAIT, convert, status};
use crate::config::FirstSettings;
use crate::control::ControlMessage;
use crate::handle::{ControlRequest, NodeHandle};
use crate::health::{self, Health};
use crate::identity::random;
use sheep_api::v1::cluster_server::Cluster;
use sheep_api::v1::{
    ChangeSettingsReply, ChangeSettingsRequest, CheckReply, CheckRequest, ClusterInfoReply,
    ClusterInfoRequest, FormatReply, FormatRequest,
};
use sheep_state::{ClusterState, Command, NodeState, Role};
use sheep_types::{ClusterId, MIN_VOLUME_SIZE};
use std::sync::Arc;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

pub(super) struct Service {
    node: NodeHandle,
    first: Option<FirstSettings>,
}

impl Service {
    pub(super) fn new(node: NodeHandle, first: Option<FirstSettings>) -> Self {
        Self { node, first }
    }
}

/// The state's hash. Encodes the whole state, so not on a thread that serves others.
async fn hash(state: &Arc<ClusterState>) -> Result<u64, Status> {
    let state = Arc::clone(state);
    let hash = tokio::task::spawn_blocking(move || state.hash()).await;
    hash.map_err(|_| Status::unavailable("the node is stopping"))
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn info(&self, _: Request<ClusterInfoRequest>) -> Result<Response<ClusterInfoReply>, Status> {
        let (status, data) = (self.node.status(), self.node.data());
        let assessment = health::assess(&status, &data);
        let mut reply = ClusterInfoReply {
            cluster_id: if status.cluster == ClusterId(0) {
                String::new()
            } else {
                status.cluster.to_string()
            },
            primary: status.primary,
            health: assessment.health.to_string(),
            message: assessment.message,
            term_number: status.term.number,
            term_representative: status.term.representative.to_string(),
            commit_index: status.commit.0,
            voters: status.voters.iter().map(ToString::to_string).collect(),
            version: env!("CARGO_PKG_VERSION").into(),
            objects_to_recover: data.recovery_total.saturating_sub(data.recovery_done),
            bytes_to_recover: data.recovery_bytes_left,
            recovery_time_left_ms: convert::millis(data.recovery_time_left.unwrap_or_default()),
            ..ClusterInfoReply::default()
        };
        if let Some(published) = &status.published {
            let state = &published.state;
            fill_in(&mut reply, state);
            reply.damage = health::damage(state, &data);
            reply.state_hash = hash(state).await?;
        }
        Ok(Response::new(reply))
    }

    async fn format(&self, request: Request<FormatRequest>) -> Result<Response<FormatReply>, Status> {
        let Some(first) = &self.first else {
            return Err(Status::failed_precondition(
                "a gateway stores nothing, so it cannot begin a cluster",
            ));
        };
        let request = request.into_inner();
        let mut first = first.clone();
        let settings = &mut first.settings;
        if request.copies > 0 {
            settings.copies = convert::small("copies", request.copies)?;
            settings.min_copies = settings.min_copies.min(settings.copies);
        }
        if request.min_copies > 0 {
            settings.min_copies = convert::small("min_copies", request.min_copies)?;
        }
        settings.validate().map_err(|refusal| status::refused(&refusal))?;
        let id = random().map_err(|error| Status::internal(error.to_string()))?;
        let cluster = ClusterId(u128::from_le_bytes(id).max(1));
        let genesis = first.genesis(cluster, self.node.status().me.node);
        let (answer, wait) = oneshot::channel();
        let message = ControlMessage::Request(ControlRequest::Format { genesis, answer });
        let stopping = || Status::unavailable("the node is stopping");
        self.node.control.send(message).map_err(|error| Status::unavailable(error.to_string()))?;
        let formatted = wait.await.map_err(|_| stopping())?;
        let cluster = formatted.map_err(Status::failed_precondition)?;
        Ok(Response::new(FormatReply { cluster_id: cluster.to_string() }))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckReply>, Status> {
        let at_least = request.into_inner().at_least_index;
        self.node.wait_state(APPLIED_WAIT, |state| state.applied().0 >= at_least).await;
        let (status, data) = (self.node.status(), self.node.data());
        let findings = health::findings(&status, &data);
        let (applied_index, state_hash) = match &status.published {
            Some(published) => (published.index.0, hash(&published.state).await?),
            None => (0, 0),
        };
        Ok(Response::new(CheckReply {
            ok: findings.is_empty() && health::assess(&status, &data).health == Health::Ok,
            findings,
            state_hash,
            applied_index,
            node: status.me.node.to_string(),
            cluster_id: status.cluster.to_string(),
        }))
    }

    async fn change_settings(
        &self,
        request: Request<ChangeSettingsRequest>,
    ) -> Result<Response<ChangeSettingsReply>, Status> {
        let Some(change) = request.into_inner().settings else {
            return Err(Status::invalid_argument("no settings are given"));
        };
        let state = self.node.primary().await?;
        let settings = convert::changed(state.settings(), &change)?;
        self.node.command(Command::ChangeSettings { settings, seen: state.settings_at() }).await?;
        Ok(Response::new(ChangeSettingsReply {}))
    }
}

fn fill_in(reply: &mut ClusterInfoReply, state: &ClusterState) {
    let storage: Vec<_> = state.nodes().filter(|record| record.role == Role::Storage).collect();
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let in_place = || storage.iter().filter(|record| !matches!(record.state, NodeState::Out { .. }));
    reply.epoch = state.epoch().0;
    reply.applied_index = state.applied().0;
    reply.storage_nodes = count(storage.len());
    reply.storage_nodes_up = count(storage.iter().filter(|record| record.state.is_up()).count());
    reply.capacity_bytes = in_place().map(|record| record.capacity).sum();
    reply.used_bytes = in_place().map(|record| record.used).sum();
    reply.vdis = count(state.vdi_count());
    reply.settings = Some(convert::settings(state.settings()));
    reply.min_volume_bytes = MIN_VOLUME_SIZE;
    reply.max_volume_bytes = state.geometry().max_volume_size();
    reply.nodes_recovering = count(state.recovering().count());
    reply.wanted_copies = count(health::wanted_copies(state));
    reply.nodes_with_failed_disks = count(storage.iter().filter(|record| record.has_failed_disk()).count());
}
