//! Looks at nodes of Kubernetes that say nothing, and takes from lost ones what is to go elsewhere. Client required.

use super::build::DRIVER;
use super::lost::{Loss, Stranded, claim};
use super::observed::SilentNode;
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::collections::BTreeMap;

/// Since when a node says nothing.
pub(super) fn since(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    (ready.status == "Unknown").then(|| ready.last_transition_time.as_ref().map(|time| time.0))?
}

/// What is on silent nodes that the cluster has lost too. Usually there are none, and nothing is asked.
pub(super) async fn look(
    client: &Client,
    nodes: &[Node],
    absent: &BTreeMap<String, Timestamp>,
) -> Result<Vec<SilentNode>> {
    let mut found = Vec::new();
    for node in nodes {
        if let (Some(since), Some(absent)) = (since(node), absent.get(&node.name_any())) {
            found.push(one(client, node, since.max(*absent)).await?);
        }
    }
    Ok(found)
}

async fn one(client: &Client, node: &Node, since: Timestamp) -> Result<SilentNode> {
    let name = node.name_any();
    let on_it = ListParams::default().fields(&format!("spec.nodeName={name}"));
    let pods = Api::<Pod>::all(client.clone()).list(&on_it).await?.items;
    let attachments = Api::<VolumeAttachment>::all(client.clone()).list(&ListParams::default()).await?;
    let attached = attachments
        .items
        .into_iter()
        .filter(|one| one.spec.attacher == DRIVER && one.spec.node_name == name)
        .filter_map(|one| one.spec.source.persistent_volume_name)
        .collect();
    let mut claims = BTreeMap::new();
    for pod in &pods {
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for wanted in volumes.iter().filter_map(|volume| claim(pod, volume)) {
            let bound = api.get_opt(&wanted).await?.and_then(|claim| claim.spec?.volume_name);
            claims.extend(bound.map(|volume| ((namespace.clone(), wanted), volume)));
        }
    }
    let in_use = node.status.as_ref().and_then(|status| status.volumes_in_use.clone()).unwrap_or_default();
    let resource_version = node.resource_version().unwrap_or_default();
    Ok(SilentNode { name, since, resource_version, in_use, pods, attached, claims })
}

/// Deletes the pods, and says for the node that it uses the driver's volumes no more: until then Kubernetes would wait six minutes, and
/// only then take them away, which is the fence.
pub(super) async fn take(client: &Client, loss: &Loss) -> Result<()> {
    for pod in &loss.pods {
        delete(client, pod).await?;
    }
    let Some(in_use) = &loss.in_use else { return Ok(()) };
    let patch = json!({
        "metadata": {"resourceVersion": loss.resource_version},
        "status": {"volumesInUse": in_use},
    });
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.patch_status(&loss.node, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        // It has changed, or is gone: it is looked at again.
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("volumes of node {} are not taken from it", loss.node))
        }
    }
}

async fn delete(client: &Client, pod: &Stranded) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    // That very pod: another one of its name may have started elsewhere.
    let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
    let params =
        DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }.grace_period(0);
    match api.delete(&pod.name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("pod {} of a lost node is not deleted", pod.name)),
    }
}
