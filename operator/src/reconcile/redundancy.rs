//! Whether all copies are where they belong, so that one node may go.

use super::observed::Observed;
use sheep_api::v1::Node;

/// Storage nodes of the cluster.
pub(crate) fn storage_nodes(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|node| node.role == "storage")
}

/// Why no node may go now; nothing, if one may. A cluster that has fewer nodes than copies can have no more, and is whole.
pub(crate) fn missing(observed: &Observed) -> Option<String> {
    let Some(view) = &observed.cluster else {
        return Some("no storage node says that the cluster serves".into());
    };
    let away: Vec<&str> = storage_nodes(&view.nodes)
        .filter(|node| node.state != "up")
        .map(|node| if node.name.is_empty() { node.id.as_str() } else { node.name.as_str() })
        .collect();
    if !away.is_empty() {
        return Some(format!("storage nodes are not up: {}", away.join(", ")));
    }
    if view.info.nodes_recovering > 0 {
        return Some(format!("{} storage nodes bring their copies up to date", view.info.nodes_recovering));
    }
    let copies = view.info.settings.as_ref().and_then(|settings| settings.copies).unwrap_or_default();
    let few = storage_nodes(&view.nodes).count() < copies as usize;
    match view.info.health.as_str() {
        "ok" => None,
        "degraded" if few => None,
        _ => Some(view.info.message.clone()),
    }
}

/// Whether the storage node on the node `name` of Kubernetes runs and has data that may not be elsewhere.
pub(crate) fn needed(observed: &Observed, name: &str) -> bool {
    let Some(pod) = observed.pods.iter().find(|pod| pod.node == name) else { return false };
    let (Some(answer), Some(view)) = (&pod.answer, &observed.cluster) else {
        // Nobody can say that it is not.
        return pod.cluster_id().is_some() || pod.answer.is_none();
    };
    let Some(record) = view.nodes.iter().find(|node| node.id == answer.id) else { return false };
    let whole = storage_nodes(&view.nodes)
        .filter(|other| other.id != record.id && other.state == "up")
        .all(|other| other.recovered_epoch >= view.info.epoch);
    record.state != "leaving" || !whole
}
