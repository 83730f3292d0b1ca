//! Service `Nodes`.

use super::{convert, disks};
use crate::control::ControlMessage;
use crate::data::DataMessage;
use crate::handle::{ControlRequest, NodeHandle, VolumeRequest};
use crate::health;
use sheep_api::v1;
use sheep_api::v1::nodes_server::Nodes;
use sheep_api::v1::{
    DisksReply, DisksRequest, DrainNodeReply, DrainNodeRequest, ListNodesReply, ListNodesRequest,
    NodeInfoReply, NodeInfoRequest, PlugDiskReply, PlugDiskRequest, RecoveryReply, RecoveryRequest,
    RemoveNodeReply, RemoveNodeRequest, ReweightNodeReply, ReweightNodeRequest, ScrubReply, ScrubRequest,
    StopReply, StopRequest, UnplugDiskReply, UnplugDiskRequest,
};
use sheep_datapath::ScrubOrder;
use sheep_state::{ClusterState, Command};
use std::time::Duration;
use tonic::{Request, Response, Status};
use tracing::info;

/// Time for the answer to reach the caller before the node stops.
const STOP_DELAY: Duration = Duration::from_millis(50);
/// How long the data thread may take to publish what it does.
const PUBLISHED_WAIT: Duration = Duration::from_secs(2);
/// How long open volumes of other nodes are waited for when all nodes stop,
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// and how long a node stays then, so that the others see it too.
const LINGER: Duration = Duration::from_millis(300);

pub(super) struct Service {
    node: NodeHandle,
}

impl Service {
    pub(super) fn new(node: NodeHandle) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl Nodes for Service {
    async fn list(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesReply>, Status> {
        let status = self.node.status();
        let Some(published) = &status.published else {
            return Ok(Response::new(ListNodesReply::default()));
        };
        let state = &published.state;
        let nodes = state.nodes().map(|record| convert::node(record, &status)).collect();
        Ok(Response::new(ListNodesReply { nodes, epoch: state.epoch().0 }))
    }

    async fn info(&self, _: Request<NodeInfoRequest>) -> Result<Response<NodeInfoReply>, Status> {
        let (status, data) = (self.node.status(), self.node.data());
        let me = status.me;
        let record = status.published.as_ref().and_then(|published| published.state.node(me.node));
        let mut node = record.map(|record| convert::node(record, &status)).unwrap_or_default();
        node.id = me.node.to_string();
        node.incarnation = me.incarnation.0;
        let trouble = health::trouble(&status, &data);
        Ok(Response::new(NodeInfoReply {
            node: Some(node),
            cluster_id: status.cluster.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_ms: u64::try_from(self.node.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ring_state: status.ring_state.into(),
            ring_members: status.ring_members.iter().map(|member| member.node.to_string()).collect(),
            capacity_bytes: data.capacity,
            used_bytes: data.used,
            objects: data.objects,
            open_vdis: data.open_vdis,
            primary: status.primary,
            health: trouble.map_or_else(|| "ok".into(), |trouble| trouble.message),
        }))
    }

    async fn recovery(&self, _: Request<RecoveryRequest>) -> Result<Response<RecoveryReply>, Status> {
        let (status, data) = (self.node.status(), self.node.data());
        let node = status.me.node;
        // The state knows it of this node too, and says so of nodes without a store.
        let known = status.published.as_ref().map(|published| &published.state);
        let stores = known.and_then(|state| state.members().get(node).map(|_| state.epoch()));
        Ok(Response::new(RecoveryReply {
            node: node.to_string(),
            epoch: data.recovery_epoch,
            objects_total: data.recovery_total,
            objects_done: data.recovery_done,
            bytes_done: data.recovery_bytes,
            bytes_left: data.recovery_bytes_left,
            time_left_ms: convert::millis(data.recovery_time_left.unwrap_or_default()),
            bytes_fetched: data.recovery_bytes_ever,
            paused: known.is_some_and(|state| state.settings().recovery_paused),
            pace: data.recovery_pace.unwrap_or_default(),
            complete: stores.is_none_or(|epoch| data.recovered && data.recovery_epoch >= epoch.0),
        }))
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<ScrubReply>, Status> {
        let order = match request.into_inner().order() {
            v1::ScrubOrder::Status => None,
            v1::ScrubOrder::Start => Some(ScrubOrder::Start),
            v1::ScrubOrder::Pause => Some(ScrubOrder::Pause),
            v1::ScrubOrder::Resume => Some(ScrubOrder::Resume),
        };
        if let Some(order) = order {
            let mut data = self.node.data.clone();
            data.mark_unchanged();
            let stopping = |_| Status::unavailable("the node is stopping");
            self.node.volumes.send(DataMessage::Scrub(order)).map_err(stopping)?;
            // The second one is surely of after the order.
            for _ in 0..2 {
                let _ = tokio::time::timeout(PUBLISHED_WAIT, data.changed()).await;
            }
        }
        let node = self.node.status().me.node;
        Ok(Response::new(convert::scrub(node, &self.node.data())))
    }

    async fn disks(&self, _: Request<DisksRequest>) -> Result<Response<DisksReply>, Status> {
        Ok(Response::new(disks::list(&self.node)))
    }

    async fn plug_disk(&self, request: Request<PlugDiskRequest>) -> Result<Response<PlugDiskReply>, Status> {
        let id = disks::plug(&self.node, request.into_inner().path).await?;
        Ok(Response::new(PlugDiskReply { id }))
    }

    async fn unplug_disk(
        &self,
        request: Request<UnplugDiskRequest>,
    ) -> Result<Response<UnplugDiskReply>, Status> {
        let UnplugDiskRequest { disk, force } = request.into_inner();
        disks::unplug(&self.node, disk, force).await?;
        Ok(Response::new(UnplugDiskReply {}))
    }

    async fn remove(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeReply>, Status> {
        let request = request.into_inner();
        let node = convert::node_id(&request.node)?;
        let state = self.node.primary().await?;
        let who = health::name(Some(&state), node);
        let Some(record) = state.node(node) else {
            return Err(Status::not_found(format!("no node {node}")));
        };
        // It would announce itself again and be back.
        if record.state.is_up() {
            let message = format!("node {who} is running; stop it first with `dog node kill {node}`");
            return Err(Status::failed_precondition(message));
        }
        self.node.command(Command::NodeRemove { node, force: request.force }).await?;
        Ok(Response::new(RemoveNodeReply {}))
    }

    async fn drain(&self, request: Request<DrainNodeRequest>) -> Result<Response<DrainNodeReply>, Status> {
        let request = request.into_inner();
        let node = convert::node_id(&request.node)?;
        self.node.command(Command::NodeLeaving { node, leaving: !request.undo }).await?;
        Ok(Response::new(DrainNodeReply {}))
    }

    async fn reweight(
        &self,
        request: Request<ReweightNodeRequest>,
    ) -> Result<Response<ReweightNodeReply>, Status> {
        let request = request.into_inner();
        let node = convert::node_id(&request.node)?;
        self.node.command(Command::SetWeight { node, weight: request.weight }).await?;
        Ok(Response::new(ReweightNodeReply {}))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopReply>, Status> {
        info!("stopping, asked by the control API");
        let (node, all_nodes) = (self.node.clone(), request.into_inner().all_nodes);
        let control = self.node.control.clone();
        tokio::spawn(async move {
            if all_nodes {
                // It does not listen only if it is stopping already.
                let _ = node.volumes.send(DataMessage::Volume(VolumeRequest::CloseAll));
                let none_open = |state: &ClusterState| state.vdis().iter().all(|vdi| vdi.lock.is_none());
                node.wait_state(CLOSE_TIMEOUT, none_open).await;
                tokio::time::sleep(LINGER).await;
            }
            tokio::time::sleep(STOP_DELAY).await;
            // If it does not listen it is stopping already.
            let _ = control.send(ControlMessage::Request(ControlRequest::Stop));
        });
        Ok(Response::new(StopReply {}))
    }
}
