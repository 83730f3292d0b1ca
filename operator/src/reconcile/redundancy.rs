//! Whether all copies are where they belong, so that one node may go.

use super::observed::Observed;
use sheep_api::v1::Node;

/// Storage nodes of the cluster.
pub(crate) fn storage_nodes(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|node| node.role == "storage")
}

/// Whether a storage node serves: one that is being drained does.
pub(crate) fn is_up(node: &Node) -> bool {
    matches!(node.state.as_str(), "up" | "leaving")
}

/// Why no node may go now; nothing, if one may. A cluster that has fewer nodes than copies can have no more, and is whole.
pub(crate) fn missing(observed: &Observed) -> Option<String> {
    let Some(view) = &observed.cluster else {
        return Some("no storage node says that the cluster serves".into());
    };
    let away: Vec<&str> = storage_nodes(&view.nodes)
        .filter(|node| !is_up(node))
        .map(|node| if node.name.is_empty() { node.id.as_str() } else { node.name.as_str() })
        .collect();
    if !away.is_empty() {
        return Some(format!("storage nodes are not up: {}", away.join(", ")));
    }
    if view.info.nodes_recovering > 0 {
        return Some(format!("{} storage nodes bring their copies up to date", view.info.nodes_recovering));
    }
    let copies = view.info.settings.as_ref().and_then(|settings| settings.copies).unwrap_or_default();
    // One that is being drained takes no copies.
    let few = storage_nodes(&view.nodes).filter(|node| node.state == "up").count() < copies as usize;
    match view.info.health.as_str() {
        "ok" => None,
        "degraded" if few => None,
        _ => Some(view.info.message.clone()),
    }
}
