//! Whether all copies are where they belong, so that one node may go.

use super::observed::{Observed, StoragePod};
use sheep_api::v1::Node;

/// Storage nodes of the cluster.
pub(crate) fn storage_nodes(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|node| node.role == "storage")
}

/// Whether a storage node serves: one that is being drained does.
pub(crate) fn is_up(node: &Node) -> bool {
    matches!(node.state.as_str(), "up" | "leaving")
}

/// Whether a storage pod is on a node that the cluster does without for good: what it had was copied to others, and nobody waits for it.
pub(crate) fn is_given_up(observed: &Observed, pod: &StoragePod) -> bool {
    let Some(view) = &observed.cluster else { return false };
    let mut of_it = storage_nodes(&view.nodes).filter(|node| node.name == pod.node).peekable();
    !pod.ready && pod.answer.is_none() && of_it.peek().is_some() && of_it.all(|node| node.state == "out")
}

/// Why no node may go now; nothing, if one may. A cluster that has fewer nodes than copies can have no more, and is whole.
pub(crate) fn missing(observed: &Observed) -> Option<String> {
    let Some(view) = &observed.cluster else {
        return Some("no storage node says that the cluster serves".into());
    };
    let away: Vec<&str> = storage_nodes(&view.nodes)
        .filter(|node| !is_up(node) && node.state != "out")
        .map(|node| if node.name.is_empty() { node.id.as_str() } else { node.name.as_str() })
        .collect();
    if !away.is_empty() {
        return Some(format!("storage nodes are not up: {}", away.join(", ")));
    }
    if view.info.nodes_recovering > 0 {
        return Some(format!("{} storage nodes bring their copies up to date", view.info.nodes_recovering));
    }
    // One that is being drained takes no copies. A failed disk is told before too few nodes are.
    let takers = storage_nodes(&view.nodes).filter(|node| node.state == "up").count();
    let few = takers < view.info.wanted_copies as usize && view.info.nodes_with_failed_disks == 0;
    match view.info.health.as_str() {
        "ok" => None,
        "degraded" if few => None,
        _ => Some(view.info.message.clone()),
    }
}
