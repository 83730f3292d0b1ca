//! A change of storage pods, one node after the other, each only while the cluster can do without it.

use super::observed::{Observed, StoragePod};
use super::redundancy::{self, is_up, storage_nodes};
use super::validate::Valid;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rolling {
    /// All pods are as they should be.
    Done,
    /// Some are not, and none may be replaced now.
    Wait(String),
    /// This pod is to be deleted; Kubernetes makes a new one.
    Replace(String),
}

/// Decides. `template`: hash of the template that pods should be made from.
pub(crate) fn next(cluster: &Valid, observed: &Observed, template: &str) -> Rolling {
    // One on a node that is gone can neither end nor start.
    let pods: Vec<&StoragePod> =
        observed.pods.iter().filter(|pod| !redundancy::is_given_up(observed, pod)).collect();
    let mut outdated: Vec<&StoragePod> =
        pods.iter().copied().filter(|pod| pod.template != template).collect();
    outdated.sort_by(|one, other| one.name.cmp(&other.name));
    if outdated.is_empty() {
        return Rolling::Done;
    }
    let left = outdated.len();
    let wait = |why: String| Rolling::Wait(format!("{left} storage pods are to be replaced, not now: {why}"));
    // Otherwise a pod that is deleted comes back as it was.
    if !observed.workloads.iter().any(|workload| workload.current && workload.template == template) {
        return wait("Kubernetes does not know by what yet".into());
    }
    if let Some(pod) = pods.iter().find(|pod| pod.leaving) {
        return wait(format!("{} is ending", pod.name));
    }
    // What serves nobody can be replaced at any time, and a version that does not start could never be left otherwise.
    if let Some(pod) = outdated.iter().find(|pod| idle(observed, pod)) {
        return Rolling::Replace(pod.name.clone());
    }
    let has_pod = |name: &&String| observed.pods.iter().any(|pod| pod.node == **name);
    let there = |name: &&String| observed.nodes.iter().any(|node| node.name == **name);
    let places = cluster.storage_nodes.iter().chain(&cluster.kept);
    if let Some(node) = places.filter(there).find(|name| !has_pod(name)) {
        return wait(format!("node {node} has no storage pod"));
    }
    if let Some(pod) = pods.iter().find(|pod| !pod.ready) {
        return wait(format!("{} is not ready", pod.name));
    }
    if let Some(why) = redundancy::missing(observed) {
        return wait(why);
    }
    match outdated.iter().find(|pod| !cluster.tainted.contains(&pod.node)) {
        Some(pod) => Rolling::Replace(pod.name.clone()),
        None => wait(format!("a taint of node {} would keep the new pod away", outdated[0].node)),
    }
}

/// Whether a pod serves nobody: it does not run, there is no cluster yet, or it is the only one that is not ready, nobody can ask it,
/// and the cluster does without it.
fn idle(observed: &Observed, pod: &StoragePod) -> bool {
    let founded = observed.secret.as_ref().is_some_and(|secret| secret.cluster_id.is_some());
    if pod.ready || pod.answer.is_some() {
        return !pod.ready && !founded && pod.cluster_id().is_none();
    }
    let others_are_ready = observed.pods.iter().all(|other| other.ready || other.name == pod.name);
    let done_without = observed.cluster.as_ref().is_some_and(|view| {
        storage_nodes(&view.nodes).filter(|node| node.name == pod.node).all(|node| !is_up(node))
    });
    !pod.running || !founded || (others_are_ready && done_without)
}
