//! Service `Node`: devices and mounts on one node.

mod filesystem;
mod stage;
mod targets;

use crate::busy::Busy;
use crate::controller::to_its_end;
use crate::v1;
use crate::v1::node_service_capability::rpc::Type;
use crate::{Backend, Device, Devices, Error, Handle, Kind, host};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// What is implemented: nothing else is advertised.
const CAPABILITIES: [Type; 4] =
    [Type::StageUnstageVolume, Type::GetVolumeStats, Type::ExpandVolume, Type::SingleNodeMultiWriter];

/// How long it may take to find out which cluster this is; it is found out once.
const ASKING: Duration = Duration::from_secs(2);

/// The service. Clones are the same service.
#[derive(Clone)]
pub struct Node {
    backend: Arc<dyn Backend>,
    devices: Arc<dyn Devices>,
    busy: Busy,
    max_volumes: u32,
}

impl Node {
    /// For the node that the backend asks; `max_volumes` is how many devices it can have (0: nobody knows).
    pub fn new(backend: Arc<dyn Backend>, devices: Arc<dyn Devices>, max_volumes: u32) -> Self {
        Self { backend, devices, busy: Busy::default(), max_volumes }
    }

    /// Takes away devices that are over and that nobody sees: whoever asked for them may never ask for their end.
    ///
    /// # Errors
    /// The devices cannot be asked, or one stays.
    pub async fn clear(&self) -> Result<(), Error> {
        for device in self.devices.over().await? {
            let Ok(_claim) = self.busy.claim([key(&device.volume)]) else { continue };
            // Until it was claimed another one may have been made.
            if !self.devices.over().await?.contains(&device) {
                continue;
            }
            // A pod that sees a device must not come to see the next one that gets its number.
            let shown = match host::number_of(&device) {
                Ok(_) => targets::elsewhere(&device, &[]).await?,
                Err(_) => None,
            };
            if shown.is_none() {
                self.devices.detach(&device.volume).await?;
                tracing::info!("the device of volume {} was over, and is taken away", device.volume);
            }
        }
        Ok(())
    }

    /// The volume of this cluster that a text means.
    async fn handle(&self, text: &str) -> Result<Handle, Error> {
        if text.is_empty() {
            return Err(Error::missing("id of a volume"));
        }
        let cluster = self.backend.cluster().await?;
        let id = Handle::parse(text, Kind::Volume, &cluster)?;
        Ok(Handle { cluster, id })
    }

    /// Whether a volume is of another cluster than the one that is served on this node now. If that cannot be said at once, it is not.
    async fn is_foreign(&self, volume: &Handle) -> bool {
        let cluster = tokio::time::timeout(ASKING, self.backend.cluster()).await;
        matches!(cluster, Ok(Ok(cluster)) if volume.is_foreign(&cluster))
    }

    /// The device of a volume that has to be here.
    async fn device(&self, volume: &Handle) -> Result<Device, Error> {
        let device = self.devices.find(volume).await?;
        device.ok_or_else(|| Error::NotFound(format!("volume {volume} has no device on this node")))
    }
}

/// What is called so when it is claimed.
fn key(volume: &Handle) -> String {
    format!("volume {volume}")
}

#[tonic::async_trait]
impl v1::node_server::Node for Node {
    async fn node_stage_volume(
        &self,
        request: Request<v1::NodeStageVolumeRequest>,
    ) -> Result<Response<v1::NodeStageVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.stage(request).await }).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<v1::NodeUnstageVolumeRequest>,
    ) -> Result<Response<v1::NodeUnstageVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.unstage(request).await }).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<v1::NodePublishVolumeRequest>,
    ) -> Result<Response<v1::NodePublishVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.publish(request).await }).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<v1::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<v1::NodeUnpublishVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.unpublish(request).await }).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<v1::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<v1::NodeGetVolumeStatsResponse>, Status> {
        Ok(Response::new(self.stats(request.into_inner()).await?))
    }

    async fn node_expand_volume(
        &self,
        request: Request<v1::NodeExpandVolumeRequest>,
    ) -> Result<Response<v1::NodeExpandVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.expand(request).await }).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<v1::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<v1::NodeGetCapabilitiesResponse>, Status> {
        use crate::v1::node_service_capability::{Rpc, Type as What};
        let one =
            |kind: Type| v1::NodeServiceCapability { r#type: Some(What::Rpc(Rpc { r#type: kind.into() })) };
        let capabilities = CAPABILITIES.into_iter().map(one).collect();
        Ok(Response::new(v1::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<v1::NodeGetInfoRequest>,
    ) -> Result<Response<v1::NodeGetInfoResponse>, Status> {
        Ok(Response::new(v1::NodeGetInfoResponse {
            node_id: self.backend.node().await?,
            max_volumes_per_node: self.max_volumes.into(),
            accessible_topology: None,
        }))
    }
}
