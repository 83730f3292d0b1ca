//! Service `Controller`: makes volumes and snapshots, and gives volumes to nodes.

mod lists;
mod publish;
mod snapshots;
mod volumes;

pub(crate) use publish::ATTACHMENT;

use crate::busy::Busy;
use crate::v1;
use crate::v1::controller_service_capability::rpc::Type;
use crate::{Backend, Error, Handle, Kind};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// What is implemented: nothing else is advertised.
const CAPABILITIES: [Type; 12] = [
    Type::CreateDeleteVolume,
    Type::PublishUnpublishVolume,
    Type::ListVolumes,
    Type::GetCapacity,
    Type::CreateDeleteSnapshot,
    Type::ListSnapshots,
    Type::CloneVolume,
    Type::PublishReadonly,
    Type::ExpandVolume,
    Type::ListVolumesPublishedNodes,
    Type::SingleNodeMultiWriter,
    Type::GetSnapshot,
];

/// The service. Clones are the same service.
#[derive(Clone)]
pub struct Controller {
    backend: Arc<dyn Backend>,
    busy: Busy,
}

impl Controller {
    /// For a cluster.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, busy: Busy::default() }
    }

    /// The id that a handle means, and the cluster.
    async fn id(&self, handle: &str, kind: Kind) -> Result<(u64, String), Error> {
        if handle.is_empty() {
            return Err(Error::missing(&format!("id of a {kind}")));
        }
        let cluster = self.backend.cluster().await?;
        Ok((Handle::parse(handle, kind, &cluster)?, cluster))
    }
}

/// What is called so when it is claimed.
fn volume_key(id: u64) -> String {
    format!("volume {id}")
}

fn snapshot_key(id: u64) -> String {
    format!("snapshot {id}")
}

/// Carries a call to its end also when the caller has gone away, so that what it claims is not free before.
pub(crate) async fn to_its_end<T: Send + 'static>(
    task: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let done = tokio::spawn(task).await;
    let result = done.map_err(|_| Status::unavailable("the driver is stopping"))?;
    Ok(Response::new(result.map_err(Status::from)?))
}

fn not_served(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not advertised by this driver"))
}

#[tonic::async_trait]
impl v1::controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.create(request).await }).await
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.delete(request).await }).await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<v1::ControllerPublishVolumeRequest>,
    ) -> Result<Response<v1::ControllerPublishVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.publish(request).await }).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<v1::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<v1::ControllerUnpublishVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.unpublish(request).await }).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<v1::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<v1::ValidateVolumeCapabilitiesResponse>, Status> {
        Ok(Response::new(self.validate(request.into_inner()).await?))
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        Ok(Response::new(self.volumes(request.into_inner()).await?))
    }

    async fn get_capacity(
        &self,
        request: Request<v1::GetCapacityRequest>,
    ) -> Result<Response<v1::GetCapacityResponse>, Status> {
        Ok(Response::new(self.capacity(request.into_inner()).await?))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<v1::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<v1::ControllerGetCapabilitiesResponse>, Status> {
        use crate::v1::controller_service_capability::{Rpc, Type as What};
        let one = |kind: Type| v1::ControllerServiceCapability {
            r#type: Some(What::Rpc(Rpc { r#type: kind.into() })),
        };
        let capabilities = CAPABILITIES.into_iter().map(one).collect();
        Ok(Response::new(v1::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::CreateSnapshotResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.take_snapshot(request).await }).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.drop_snapshot(request).await }).await
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        Ok(Response::new(self.snapshots(request.into_inner()).await?))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::GetSnapshotResponse>, Status> {
        Ok(Response::new(self.one_snapshot(request.into_inner()).await?))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<v1::ControllerExpandVolumeRequest>,
    ) -> Result<Response<v1::ControllerExpandVolumeResponse>, Status> {
        let (own, request) = (self.clone(), request.into_inner());
        to_its_end(async move { own.expand(request).await }).await
    }

    async fn controller_get_volume(
        &self,
        _: Request<v1::ControllerGetVolumeRequest>,
    ) -> Result<Response<v1::ControllerGetVolumeResponse>, Status> {
        Err(not_served("ControllerGetVolume"))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<v1::ControllerModifyVolumeRequest>,
    ) -> Result<Response<v1::ControllerModifyVolumeResponse>, Status> {
        Err(not_served("ControllerModifyVolume"))
    }
}
