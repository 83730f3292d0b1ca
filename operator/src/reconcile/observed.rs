//! What there is, as values: the pure parts decide from these and from nothing else.

use super::certificates::Held;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use sheep_api::v1;
use sheep_tls::Certificates;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Everything that the operator looks at.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// When it looked.
    pub(crate) now: Timestamp,
    /// Nodes of Kubernetes.
    pub(crate) nodes: Vec<KubeNode>,
    /// Those of which neither Kubernetes nor the cluster hears.
    pub(crate) silent: Vec<SilentNode>,
    /// The cluster has lost a node a short while ago: Kubernetes will soon say of it what it knows.
    pub(crate) lost_lately: bool,
    /// The cluster's Secret.
    pub(crate) secret: Option<ClusterSecret>,
    /// Certificates.
    pub(crate) certificates: Held,
    /// What the operator shows nodes.
    pub(crate) own: Option<Arc<Certificates>>,
    /// Pods of storage nodes.
    pub(crate) pods: Vec<StoragePod>,
    /// The cluster, as a node sees it that serves.
    pub(crate) cluster: Option<ClusterView>,
    /// Whether Kubernetes serves the API of snapshots.
    pub(crate) snapshots: bool,
    /// Names of the nodes that the DaemonSet of storage pods has pods on, if there is one and it has such a list.
    pub(crate) listed: Option<Vec<String>>,
    /// Names of nodes that the operator has drained, or was about to.
    pub(crate) drained: Vec<String>,
    /// What it says of DaemonSets and Deployments.
    pub(crate) workloads: Vec<Workload>,
    /// Whose the CSIDriver is, if there is one: namespace and name of a SheepdogCluster. Empty: nobody says so.
    pub(crate) driver_of: Option<String>,
    /// Names of nodes that volumes are attached to.
    pub(crate) attached: Vec<String>,
    /// The name that the SheepdogCluster should have, if it has another one.
    pub(crate) misnamed: Option<String>,
    /// An older SheepdogCluster in the same namespace.
    pub(crate) older: Option<String>,
    /// The object without a namespace that owns what is in none.
    pub(crate) anchor: Option<Anchor>,
}

/// A node of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct KubeNode {
    /// Its name.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its taints that keep new pods away: key, value, effect.
    pub(crate) taints: Vec<(String, String, String)>,
    /// Bytes of its disk, as far as Kubernetes knows.
    pub(crate) disk: Option<u64>,
}

/// A node of which neither Kubernetes nor the cluster hears, and what is on it.
#[derive(Clone, Debug)]
pub(crate) struct SilentNode {
    /// Its name.
    pub(crate) name: String,
    /// Since when neither does, as far as is known.
    pub(crate) since: Timestamp,
    /// Version that a change must be based on.
    pub(crate) resource_version: String,
    /// Volumes that it has said to have in use, of any driver.
    pub(crate) in_use: Vec<String>,
    /// Its pods.
    pub(crate) pods: Vec<Pod>,
    /// Persistent volumes of the driver that are attached to it.
    pub(crate) attached: BTreeSet<String>,
    /// Persistent volumes of its pods' claims, by namespace and name of the claim.
    pub(crate) claims: BTreeMap<(String, String), String>,
}

/// The cluster's Secret: its key, and what was decided about its founding. It outlives the SheepdogCluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ClusterSecret {
    /// Whether there is a key in it.
    pub(crate) has_key: bool,
    /// Version that a change must be based on.
    pub(crate) resource_version: String,
    /// Which node makes the cluster.
    pub(crate) founder: Option<Founder>,
    /// The cluster, once it has been seen.
    pub(crate) cluster_id: Option<String>,
}

/// The node that makes the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Founder {
    /// Its name in Kubernetes.
    pub(crate) node: String,
    /// Its id: another directory on the same machine is another node.
    pub(crate) id: String,
}

/// A pod of a storage node.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoragePod {
    /// Its name.
    pub(crate) name: String,
    /// Its uid: another pod may get its name.
    pub(crate) uid: String,
    /// The node of Kubernetes that it runs on.
    pub(crate) node: String,
    /// Its address.
    pub(crate) ip: Option<String>,
    /// Whether it is ready.
    pub(crate) ready: bool,
    /// Whether its container runs.
    pub(crate) running: bool,
    /// Whether it is being deleted.
    pub(crate) leaving: bool,
    /// Hash of the template that it was made from.
    pub(crate) template: String,
    /// The last words of a container that ended.
    pub(crate) last_words: String,
    /// What its node says of itself.
    pub(crate) answer: Option<Answer>,
}

/// What a storage node says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Its id.
    pub(crate) id: String,
    /// How it sees the cluster. The cluster's id is empty if it has none.
    pub(crate) info: v1::ClusterInfoReply,
}

/// The cluster as one node sees it that serves.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterView {
    /// Address of that node.
    pub(crate) server: String,
    /// The whole.
    pub(crate) info: v1::ClusterInfoReply,
    /// Its nodes.
    pub(crate) nodes: Vec<v1::Node>,
    /// Who is in the ring with it.
    pub(crate) ring_members: Vec<String>,
    /// Bytes that all nodes that answer have to fetch.
    pub(crate) bytes_left: u64,
}

/// A DaemonSet or a Deployment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Workload {
    /// Its name.
    pub(crate) name: String,
    /// Whether Kubernetes has looked at its newest version.
    pub(crate) current: bool,
    /// Hash of the template of its pods.
    pub(crate) template: String,
    /// Pods that it should have.
    pub(crate) wanted: i32,
    /// That are ready.
    pub(crate) ready: i32,
    /// Pods made from the newest version, of those that Kubernetes or the operator replaces.
    pub(crate) updated: i32,
    /// Pods of an older version that only a person replaces.
    pub(crate) outdated: i32,
}

/// An object without a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Anchor {
    /// Name of the ClusterRole.
    pub(crate) name: String,
    /// Its uid.
    pub(crate) uid: String,
}

/// The pod whose node serves the cluster `id` and has seen most of it.
pub(crate) fn best_witness<'a>(pods: &'a [StoragePod], id: &str) -> Option<&'a StoragePod> {
    let serves = |pod: &&StoragePod| pod.answer.as_ref().is_some_and(|answer| answer.info.primary);
    pods.iter()
        .filter(|pod| pod.cluster_id() == Some(id))
        .filter(serves)
        .max_by_key(|pod| pod.answer.as_ref().map(|answer| answer.info.applied_index))
}

impl StoragePod {
    /// The cluster that its node belongs to, if it is in one.
    pub(crate) fn cluster_id(&self) -> Option<&str> {
        let id = self.answer.as_ref()?.info.cluster_id.as_str();
        (!id.is_empty()).then_some(id)
    }
}
