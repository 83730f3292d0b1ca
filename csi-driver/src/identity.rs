//! Service `Identity`: who the driver is.

use crate::v1::plugin_capability::service::Type as ServiceType;
use crate::v1::plugin_capability::volume_expansion::Type as ExpansionType;
use crate::v1::plugin_capability::{Service, Type, VolumeExpansion};
use crate::{Backend, DRIVER, v1};
use std::collections::HashMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// What a process of the driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Volumes: one in the cluster.
    Controller,
    /// Devices and mounts: one on each node.
    Node,
}

/// The service.
pub struct Identity {
    backend: Arc<dyn Backend>,
}

impl Identity {
    /// For a cluster.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }
}

#[tonic::async_trait]
impl v1::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        _: Request<v1::GetPluginInfoRequest>,
    ) -> Result<Response<v1::GetPluginInfoResponse>, Status> {
        Ok(Response::new(v1::GetPluginInfoResponse {
            name: DRIVER.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<v1::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<v1::GetPluginCapabilitiesResponse>, Status> {
        // Volumes can be reached from everywhere, so there is no topology.
        let all = [
            Type::Service(Service { r#type: ServiceType::ControllerService.into() }),
            Type::VolumeExpansion(VolumeExpansion { r#type: ExpansionType::Online.into() }),
        ];
        let capabilities = all.map(|one| v1::PluginCapability { r#type: Some(one) }).into();
        Ok(Response::new(v1::GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Ready when the cluster serves. That it does not is no fault of this process, and no reason to start it anew.
    async fn probe(&self, _: Request<v1::ProbeRequest>) -> Result<Response<v1::ProbeResponse>, Status> {
        let ready = self.backend.serves().await.is_ok();
        Ok(Response::new(v1::ProbeResponse { ready: Some(ready) }))
    }
}
