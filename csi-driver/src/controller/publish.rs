//! Volumes are given to nodes and taken away. That is the fence: what a node still writes to a volume that was taken away
//! from it is refused where the data are.

use super::{Controller, volume_key};
use crate::capability::Usage;
use crate::v1;
use crate::{Error, Handle, Kind, Volume};
use std::collections::HashMap;

/// In the context of a published volume: its attachment.
pub(crate) const ATTACHMENT: &str = "attachment";

/// Why a volume cannot be given to this node, from who has it now.
fn conflict(volume: &Volume, node: &str, read_only: bool) -> Option<Error> {
    let has = |own: bool| volume.attachments.iter().find(|attachment| (attachment.node == node) == own);
    if let Some(own) = has(true).filter(|own| own.read_only != read_only) {
        let how = if own.read_only { "read-only" } else { "for writing" };
        return Some(Error::exists(format!("volume {} is published to node {node} {how}", volume.name)));
    }
    let other = has(false).filter(|other| !(other.read_only && read_only))?;
    let (name, by) = (&volume.name, &other.node);
    Some(Error::Precondition(format!(
        "volume {name} is published to node {by}; it has to be unpublished there first"
    )))
}

impl Controller {
    pub(super) async fn publish(
        &self,
        request: v1::ControllerPublishVolumeRequest,
    ) -> Result<v1::ControllerPublishVolumeResponse, Error> {
        if request.volume_id.is_empty() {
            return Err(Error::missing("id of a volume"));
        }
        if request.node_id.is_empty() {
            return Err(Error::missing("id of a node"));
        }
        let usage = Usage::parse(request.volume_capability.as_ref())?;
        let read_only = usage.read_only || request.readonly;
        let (id, _) = self.id(&request.volume_id, Kind::Volume).await?;
        let _claim = self.busy.claim([volume_key(id)])?;
        let volume = self.backend.volume(id).await?;
        if let Some(error) = conflict(&volume, &request.node_id, read_only) {
            return Err(error);
        }
        let attachment = match self.backend.attach(id, &request.node_id, read_only).await {
            Ok(attachment) => attachment,
            // Somebody else was faster than this look at it.
            Err(error @ Error::Precondition(_)) => {
                let volume = self.backend.volume(id).await?;
                return Err(conflict(&volume, &request.node_id, read_only).unwrap_or(error));
            }
            Err(error) => return Err(error),
        };
        let publish_context = HashMap::from([(ATTACHMENT.to_owned(), attachment.index.to_string())]);
        Ok(v1::ControllerPublishVolumeResponse { publish_context })
    }

    pub(super) async fn unpublish(
        &self,
        request: v1::ControllerUnpublishVolumeRequest,
    ) -> Result<v1::ControllerUnpublishVolumeResponse, Error> {
        let done = v1::ControllerUnpublishVolumeResponse {};
        // Nothing of another cluster is published by this one; that it cannot be taken back would keep its pod for ever.
        if let Some(handle) = Handle::read(&request.volume_id)
            && handle.is_foreign(&self.backend.cluster().await?)
        {
            return Ok(done);
        }
        let id = match self.id(&request.volume_id, Kind::Volume).await {
            Ok((id, _)) => id,
            // What does not exist is not published.
            Err(Error::NotFound(_)) => return Ok(done),
            Err(error) => return Err(error),
        };
        let _claim = self.busy.claim([volume_key(id)])?;
        let nodes = if request.node_id.is_empty() {
            // From all nodes.
            match self.backend.volume(id).await {
                Ok(volume) => volume.attachments.into_iter().map(|attachment| attachment.node).collect(),
                Err(Error::NotFound(_)) => Vec::new(),
                Err(error) => return Err(error),
            }
        } else {
            vec![request.node_id]
        };
        for node in nodes {
            match self.backend.detach(id, &node).await {
                Ok(()) | Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    pub(super) async fn validate(
        &self,
        request: v1::ValidateVolumeCapabilitiesRequest,
    ) -> Result<v1::ValidateVolumeCapabilitiesResponse, Error> {
        if request.volume_id.is_empty() {
            return Err(Error::missing("id of a volume"));
        }
        if request.volume_capabilities.is_empty() {
            return Err(Error::missing("volume capabilities"));
        }
        let (id, _) = self.id(&request.volume_id, Kind::Volume).await?;
        self.backend.volume(id).await?;
        if let Err(error) = Usage::parse_all(&request.volume_capabilities) {
            let message = error.to_string();
            return Ok(v1::ValidateVolumeCapabilitiesResponse { confirmed: None, message });
        }
        let confirmed = v1::validate_volume_capabilities_response::Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: HashMap::new(),
        };
        Ok(v1::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, Memory};
    use std::sync::Arc;

    /// After a new installation there may be pods whose volumes were of the old one.
    #[tokio::test]
    async fn what_is_of_another_cluster_is_not_published_and_nothing_keeps_its_pod() {
        let backend = Arc::new(Memory::new(&["n1"]));
        let controller = Controller::new(backend.clone());
        let unpublish = |cluster: String| {
            let volume_id = Handle { cluster, id: 7 }.to_string();
            controller.unpublish(v1::ControllerUnpublishVolumeRequest {
                volume_id,
                node_id: "n1".into(),
                ..Default::default()
            })
        };
        let ours = backend.cluster().await.unwrap();
        assert!(unpublish(ours.replace('c', "d")).await.is_ok());
        assert!(unpublish(ours).await.is_ok(), "it does not exist");
        // Which cluster this is, is not known: it may be ours.
        backend.set_trouble(Some("starting"));
        let waits = unpublish("c".repeat(32)).await.unwrap_err();
        assert!(matches!(waits, Error::Unavailable(_)), "{waits:?}");
    }
}
