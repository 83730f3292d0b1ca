//! What the cluster is to be told: settings that were changed, and nodes that are gone for good.

use super::leaving::Leaving;
use super::observed::{ClusterView, Observed};
use super::validate::Valid;
use sheep_api::v1::{Node, Settings};

/// A call of the control API.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Order {
    /// Only what differs.
    ChangeSettings(Settings),
    /// A node that is to store nothing any more: its data go to others while it runs.
    Drain {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// A node that was drained and is wanted again.
    TakeBack {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// A node that Kubernetes has no more. The cluster refuses as long as it may have the last copy of something.
    Remove {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
}

/// Decides. `leaving`: what is to be done about nodes that are to store nothing more.
pub(crate) fn next(cluster: &Valid, observed: &Observed, leaving: &Leaving) -> Vec<Order> {
    let Some(view) = &observed.cluster else { return Vec::new() };
    let mut orders = Vec::new();
    if let Some(there) = &view.info.settings
        && let Some(change) = change(&cluster.settings, there)
    {
        orders.push(Order::ChangeSettings(change));
    }
    match leaving {
        Leaving::Drain { id, name } => orders.push(Order::Drain { id: id.clone(), name: name.clone() }),
        Leaving::TakeBack { id, name } => orders.push(Order::TakeBack { id: id.clone(), name: name.clone() }),
        Leaving::Done | Leaving::UnderWay(_) | Leaving::Wait(_) => {}
    }
    let gone = view.nodes.iter().filter(|node| gone(node, cluster, view, observed));
    orders.extend(gone.map(|node| Order::Remove { id: node.id.clone(), name: node.name.clone() }));
    orders
}

fn change(wanted: &Settings, there: &Settings) -> Option<Settings> {
    let mut change = Settings::default();
    macro_rules! compare {
        ($($field:ident),*) => { $(
            if wanted.$field.is_some() && wanted.$field != there.$field {
                change.$field = wanted.$field;
            }
        )* };
    }
    compare!(copies, min_copies, out_delay_ms, recovery_paused, recovery_bytes_per_second, scrub_interval_ms);
    (change != Settings::default()).then_some(change)
}

/// Whether a node is gone for good: it does not run, and is not to store anything here again; and all others have what they should.
/// The cluster refuses besides, unless the node was drained or its place is given away.
fn gone(node: &Node, cluster: &Valid, view: &ClusterView, observed: &Observed) -> bool {
    // An empty list of nodes is an error in looking, not an empty Kubernetes.
    if observed.nodes.is_empty() || node.in_ring || view.ring_members.contains(&node.id) {
        return false;
    }
    let known = observed.nodes.iter().any(|known| known.name == node.name);
    match node.role.as_str() {
        "storage" => {
            // Another node runs in its place, or none should.
            let of_its_name = observed.pods.iter().find(|pod| pod.node == node.name);
            let replaced =
                of_its_name.and_then(|pod| pod.answer.as_ref()).is_some_and(|answer| answer.id != node.id);
            let unwanted = of_its_name.is_none() && !cluster.may_store(&node.name);
            let whole = view.info.nodes_recovering == 0;
            whole
                && ["out", "leaving", "down"].contains(&node.state.as_str())
                && (!known || replaced || unwanted)
        }
        // One that was started anew without its directory is another one.
        "gateway" => {
            let successor = |other: &&Node| {
                other.role == "gateway" && other.name == node.name && other.id != node.id && other.in_ring
            };
            !known || view.nodes.iter().any(|other| successor(&other))
        }
        _ => false,
    }
}
