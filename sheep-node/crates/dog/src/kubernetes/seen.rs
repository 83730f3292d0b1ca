//! Everything that is looked at, and whose it is.

use super::inside::{self, Inside};
use super::kubectl::{Kubectl, Problem};
use super::objects::{KubeNode, Pod, Wish, Workload};
use serde_json::Value;
use std::collections::BTreeSet;
use std::thread;

/// Kinds of objects as kubectl takes them.
const WISHES: &str = "sheepdogclusters.sheepdog.io";
/// By which objects of the product are found.
const OURS: &str = "app.kubernetes.io/name in (sheepdog,sheepdog-operator)";
const STORAGE: &str = "app.kubernetes.io/name=sheepdog,app.kubernetes.io/component=storage";

/// What Kubernetes says, and the cluster.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The namespace that the user has given.
    pub(super) namespace: Option<String>,
    /// SheepdogClusters.
    pub(super) wishes: Result<Vec<Wish>, Problem>,
    /// Pods of the product.
    pub(super) pods: Result<Vec<Pod>, Problem>,
    /// What makes these pods.
    pub(super) workloads: Result<Vec<Workload>, Problem>,
    /// Nodes of Kubernetes.
    pub(super) nodes: Result<Vec<KubeNode>, Problem>,
    /// What the cluster says of itself.
    pub(super) inside: Result<Inside, Problem>,
}

fn all<T>(items: Result<Vec<Value>, Problem>, read: fn(&Value) -> T) -> Result<Vec<T>, Problem> {
    Ok(items?.iter().map(read).collect())
}

impl Seen {
    /// Looks at everything.
    pub(super) fn look(kubectl: &Kubectl) -> Self {
        let (wishes, pods, workloads, nodes) = thread::scope(|scope| {
            let pods = scope.spawn(|| kubectl.list(&["pods", "--selector", OURS]));
            let workloads = scope.spawn(|| kubectl.list(&["daemonsets,deployments", "--selector", OURS]));
            let nodes = scope.spawn(|| nodes(kubectl));
            let wishes = kubectl.list(&[WISHES]);
            let lost = || Problem::Other("a question was not finished".into());
            (
                wishes,
                pods.join().unwrap_or_else(|_| Err(lost())),
                workloads.join().unwrap_or_else(|_| Err(lost())),
                nodes.join().unwrap_or_else(|_| Err(lost())),
            )
        });
        let mut seen = Self {
            namespace: kubectl.namespace().map(str::to_owned),
            wishes: all(wishes, Wish::read),
            pods: all(pods, Pod::read),
            workloads: all(workloads, Workload::read),
            nodes,
            inside: Err(Problem::Other("it was not asked".into())),
        };
        if let (Ok(pods), Ok(nodes)) = (&mut seen.pods, &seen.nodes) {
            blame_nodes(pods, nodes);
        }
        seen.inside = match seen.namespaces().len() {
            0 | 1 => inside::ask(kubectl, &inside::to_ask(seen.pods())),
            _ => Err(Problem::Other("there are several".into())),
        };
        seen
    }

    /// Pods of the product, if they may be seen.
    pub(super) fn pods(&self) -> &[Pod] {
        self.pods.as_deref().unwrap_or_default()
    }

    /// Where clusters are.
    pub(super) fn namespaces(&self) -> BTreeSet<&str> {
        let wishes = self.wishes.iter().flatten().map(|wish| wish.namespace.as_str());
        let storage = self.pods().iter().filter(|pod| pod.component == "storage");
        wishes.chain(storage.map(|pod| pod.namespace.as_str())).collect()
    }

    /// The cluster's wish, if there is one.
    pub(super) fn wish(&self) -> Option<&Wish> {
        self.wishes.iter().flatten().next()
    }
}

/// A pod does not know that its node is gone: it only becomes not ready, for no reason.
pub(super) fn blame_nodes(pods: &mut [Pod], nodes: &[KubeNode]) {
    for pod in pods.iter_mut().filter(|pod| !pod.ready) {
        if nodes.iter().any(|node| node.name == pod.node && !node.ready) {
            pod.trouble = Some("its node is not ready".into());
        }
    }
}

/// Nodes of Kubernetes.
pub(super) fn nodes(kubectl: &Kubectl) -> Result<Vec<KubeNode>, Problem> {
    all(kubectl.list_in(None, &["nodes"]), KubeNode::read)
}

/// All pods that may be seen: any may use a volume.
pub(super) fn all_pods(kubectl: &Kubectl) -> Result<Vec<Pod>, Problem> {
    all(kubectl.list_in(None, &["pods"]), Pod::read)
}

/// SheepdogClusters, wherever they are.
pub(super) fn all_wishes(kubectl: &Kubectl) -> Result<Vec<Wish>, Problem> {
    all(kubectl.list_in(None, &[WISHES]), Wish::read)
}

/// Storage pods of the one cluster there is.
///
/// # Errors
/// There is none, or more than one, or nobody may know.
pub(super) fn storage_pods(kubectl: &Kubectl) -> Result<Vec<Pod>, Problem> {
    let mut pods = match all(kubectl.list(&["pods", "--selector", STORAGE]), Pod::read) {
        Err(Problem::Forbidden(words)) if kubectl.namespace().is_none() => {
            return Err(Problem::Forbidden(format!("{words}; say with -n where Sheepdog is")));
        }
        pods => pods?,
    };
    pods.retain(|pod| pod.component == "storage");
    let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
    match namespaces.len() {
        1 => Ok(pods),
        0 => Err(Problem::Other("there is no storage pod; `kubectl sheepdog status` says why".into())),
        _ => {
            let all: Vec<&str> = namespaces.into_iter().collect();
            Err(Problem::Other(format!(
                "there is more than one Sheepdog: say with -n which, of {}",
                all.join(", ")
            )))
        }
    }
}
