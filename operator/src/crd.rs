//! `SheepdogCluster`: what a person wants of a cluster, and what the operator has seen of it.

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything of one cluster of storage nodes.
#[derive(Clone, Debug, Default, PartialEq, CustomResource, JsonSchema, Deserialize, Serialize)]
#[kube(
    group = "sheepdog.io",
    version = "v1alpha1",
    kind = "SheepdogCluster",
    plural = "sheepdogclusters",
    shortname = "sdc",
    namespaced,
    derive = "Default",
    derive = "PartialEq",
    doc = "A Sheepdog cluster: block volumes, kept in several copies on the nodes of this Kubernetes.",
    status = "SheepdogClusterStatus",
    printcolumn(
        name = "READY",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Available")].status"#
    ),
    printcolumn(name = "HEALTH", type_ = "string", json_path = ".status.health"),
    printcolumn(name = "NODES", type_ = "string", json_path = ".status.nodes.summary"),
    printcolumn(name = "RINGS", type_ = "integer", json_path = ".status.ringCount"),
    printcolumn(name = "USED", type_ = "string", json_path = ".status.capacity.used"),
    printcolumn(name = "CAPACITY", type_ = "string", json_path = ".status.capacity.total"),
    printcolumn(name = "RECOVERY", type_ = "string", json_path = ".status.recovery.summary"),
    printcolumn(name = "VERSION", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "EPOCH", type_ = "integer", json_path = ".status.epoch", priority = 1),
    printcolumn(
        name = "MESSAGE",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Available")].message"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.deletionPolicy) || self.deletionPolicy != 'Destroy'", "message": "deletionPolicy Destroy is not supported by this version: delete the data on the nodes by hand when the cluster is gone", "fieldPath": ".deletionPolicy"}]))]
pub struct SheepdogClusterSpec {
    /// How many copies of the data there are, unless a volume says something else.
    #[serde(default)]
    pub redundancy: Redundancy,
    /// Which nodes agree on an order with each other directly.
    #[serde(default)]
    pub rings: Rings,
    /// What fails together.
    #[serde(default)]
    pub topology: Topology,
    /// Which nodes store data, and where.
    #[serde(default)]
    pub storage: Storage,
    /// How nodes reach each other.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.provider == oldSelf.provider", "message": "network.provider cannot be changed: all nodes would have to move to other addresses at the same time"}]))]
    pub network: Network,
    /// What happens when copies are missing, and how data is checked.
    #[serde(default)]
    pub recovery: Recovery,
    /// What happens to pods of a node that is lost.
    #[serde(default)]
    pub node_failure: NodeFailure,
    /// What becomes of the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Copies of each object of a volume.
#[derive(Clone, Debug, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.minCopies) || self.minCopies <= self.copies", "message": "minCopies must not be larger than copies: writes would wait for ever", "fieldPath": ".minCopies"}]))]
pub struct Redundancy {
    /// Copies of a new volume that names no number. With fewer nodes there are as many copies as nodes.
    #[schemars(range(min = 1, max = 16), extend("format" = "int32"))]
    pub copies: u32,
    /// Copies below which writes wait; without it 2, or 1 of 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16), extend("format" = "int32"))]
    pub min_copies: Option<u32>,
}

impl Redundancy {
    /// Copies below which writes wait.
    pub(crate) fn min_copies(&self) -> u32 {
        self.min_copies.unwrap_or(self.copies.min(2))
    }
}

impl Default for Redundancy {
    fn default() -> Self {
        Self { copies: 3, min_copies: None }
    }
}

/// Layout of the rings on which nodes agree. One ring with all nodes, if nothing is said.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.named) || size(self.named) == 0 || (!has(self.topologyKey) && !has(self.maxNodesPerRing))", "message": "give named rings, or topologyKey and maxNodesPerRing from which rings are made, not both"}]))]
pub struct Rings {
    /// Nodes with the same value of this label are in one ring.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 317))]
    pub topology_key: Option<String>,
    /// Larger rings are split.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 3, max = 1000), extend("format" = "int32"))]
    pub max_nodes_per_ring: Option<u32>,
    /// Rings by name, each with the nodes that are in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub named: Vec<NamedRing>,
}

/// One ring.
#[derive(Clone, Debug, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedRing {
    /// Its name.
    #[schemars(length(min = 1, max = 63), pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Labels that its nodes have.
    #[serde(default)]
    pub node_selector: BTreeMap<String, String>,
    /// How its members talk to each other.
    #[serde(default)]
    pub transport: Transport,
    /// UDP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 65535), extend("format" = "int32"))]
    pub port: Option<u32>,
}

/// How members of a ring talk to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Deserialize, Serialize)]
pub enum Transport {
    /// To each one by itself.
    #[default]
    Unicast,
    /// To all at once; the network has to carry multicast.
    Multicast,
}

/// Failure domains.
#[derive(Clone, Debug, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Topology {
    /// Nodes with the same value of this label fail together: copies go to different values as long as there are enough. A
    /// node without the label is one by itself. `kubernetes.io/hostname`: each node is.
    #[schemars(length(min = 1, max = 317))]
    pub failure_domain_key: String,
}

impl Default for Topology {
    fn default() -> Self {
        Self { failure_domain_key: "topology.kubernetes.io/zone".into() }
    }
}

/// Nodes that store data.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Storage {
    /// Labels of nodes that store data; `kubernetes.io/os: linux` is always added.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that do not keep data away from a node.
    pub tolerations: Vec<Toleration>,
    /// Where data is, on each node.
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.path == oldSelf.path", "message": "storage.directory.path cannot be changed: the data would stay where it is, and nodes would come up empty", "fieldPath": ".path"}]))]
    pub directory: Directory,
    /// What is different on single nodes.
    #[schemars(length(max = 1000), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub nodes: Vec<NodeStorage>,
}

/// A directory of a node.
#[derive(Clone, Debug, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Directory {
    /// Made if it is not there.
    #[schemars(length(min = 2, max = 64), pattern(r"^/[-A-Za-z0-9._/]*[-A-Za-z0-9._]$"))]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "!self.contains('..')", "message": "storage.directory.path must not contain '..'"}]))]
    pub path: String,
    /// Most bytes that are stored there: a quantity like `200Gi`, or a share of what Kubernetes says the node's disk has in all, like
    /// `60%`: of its capacity, whatever else is on it.
    #[schemars(
        length(max = 32),
        pattern(r"^([1-9][0-9]?%|100%|[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?)$")
    )]
    pub max_size: String,
}

impl Default for Directory {
    fn default() -> Self {
        Self { path: "/var/lib/sheepdog".into(), max_size: "60%".into() }
    }
}

/// What is different on one node.
#[derive(Clone, Debug, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStorage {
    /// Name of the node in Kubernetes.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Instead of `storage.directory.maxSize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 32),
        pattern(r"^([1-9][0-9]?%|100%|[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?)$")
    )]
    pub max_size: Option<String>,
    /// Its failure domain, instead of what its labels say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), pattern(r"^[-A-Za-z0-9._]*$"))]
    pub failure_domain: Option<String>,
}

/// Where pods of the cluster are in the network.
#[derive(Clone, Debug, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Network {
    /// The pod network; or the nodes' own, where that is much faster. In the latter network policies mean nothing.
    pub provider: NetworkProvider,
    /// Whether data between nodes is encrypted (TLS with the cluster's own certificates). It costs processor time: the more data,
    /// the more. A change replaces storage pods one by one. The control API is always encrypted.
    pub encrypt_data: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self { provider: NetworkProvider::default(), encrypt_data: true }
    }
}

/// Which network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Deserialize, Serialize)]
pub enum NetworkProvider {
    /// That of pods.
    #[default]
    Pod,
    /// That of nodes.
    Host,
}

/// Recovery and scrubbing.
#[derive(Clone, Debug, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Recovery {
    /// How long a node may be away until its copies are made anew on others.
    #[schemars(length(max = 16), pattern(r"^[1-9][0-9]*(s|m|h|d)$"))]
    pub delay: String,
    /// Most bytes per second that each node moves, like `100Mi`; without it as much as clients do not notice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern(r"^[1-9][0-9]*(Ki|Mi|Gi|k|M|G)?$"))]
    pub bandwidth_per_node: Option<String>,
    /// Nothing is moved but what somebody reads or writes. Missing copies stay missing.
    pub paused: bool,
    /// How often each node reads everything that it has and compares checksums; `0s`: never.
    #[schemars(length(max = 16), pattern(r"^[0-9]+(s|m|h|d)$"))]
    pub scrub_interval: String,
}

impl Default for Recovery {
    fn default() -> Self {
        Self { delay: "10m".into(), bandwidth_per_node: None, paused: false, scrub_interval: "7d".into() }
    }
}

/// What happens to pods of a node that is lost.
#[derive(Clone, Debug, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeFailure {
    /// How long Kubernetes must have heard nothing of a node that the cluster has lost too, until its pods with volumes of this
    /// cluster, and of nobody else, are deleted, so that they start elsewhere. What the node still writes to these volumes is refused; what
    /// else its pods do, if they still run, is not. `0s`: never.
    #[schemars(length(max = 16), pattern(r"^[0-9]+(s|m|h|d)$"))]
    pub move_pods_after: String,
}

impl Default for NodeFailure {
    fn default() -> Self {
        Self { move_pods_after: "10s".into() }
    }
}

/// What becomes of the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Deserialize, Serialize)]
pub enum DeletionPolicy {
    /// It stays on the nodes, and its key in its Secret: a cluster of the same name adopts both.
    #[default]
    Retain,
    /// It is deleted.
    Destroy,
}

/// What the operator has seen.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SheepdogClusterStatus {
    /// Generation of the spec that this is about.
    pub observed_generation: i64,
    /// Available, Degraded, Recovering, Progressing, RingsApplied, CertificatesValid and NodesApplied, each with what to do next.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// In one word: ok, degraded, recovering, no quorum, no cluster, failed, unknown.
    pub health: String,
    /// Id of the cluster, which its data carries.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster_id: String,
    /// Version of the nodes that answer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// How often the list of storage nodes has changed.
    pub epoch: i64,
    /// Storage nodes.
    pub nodes: NodesStatus,
    /// How many rings there are.
    pub ring_count: i64,
    /// The rings.
    pub rings: Vec<RingStatus>,
    /// Bytes.
    pub capacity: CapacityStatus,
    /// Copies that are being made.
    pub recovery: RecoveryStatus,
}

/// Storage nodes.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodesStatus {
    /// That the cluster knows.
    pub total: i64,
    /// That are up.
    pub up: i64,
    /// Both, for people.
    pub summary: String,
}

/// One ring.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingStatus {
    /// Its name.
    pub name: String,
    /// Nodes that are in it now, gateways too.
    pub members: i64,
    /// The member that its configuration is called after.
    pub representative: String,
    /// Its configuration.
    pub configuration: String,
}

/// Bytes, rounded, so that it changes seldom.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CapacityStatus {
    /// Of all storage nodes.
    pub total: String,
    /// Of these in use, all copies counted.
    pub used: String,
}

/// Copies that are being made.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RecoveryStatus {
    /// Storage nodes that lack copies they should have.
    pub nodes: i64,
    /// What they are thought to fetch yet, rounded.
    pub left: String,
    /// In one word: `-`, or what is left.
    pub summary: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::CustomResourceExt;
    use serde_json::Value;

    fn schema(path: &str) -> Value {
        let definition = serde_json::to_value(SheepdogCluster::crd()).unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        schema.pointer(path).cloned().unwrap_or_else(|| panic!("no {path} in {schema:#}"))
    }

    /// Kubernetes checks these rules against defaults too: an empty specification must pass, and so must be whole.
    #[test]
    fn an_empty_specification_is_the_usual_cluster() {
        let empty: SheepdogClusterSpec = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, SheepdogClusterSpec::default());
        assert_eq!(schema("/properties/redundancy/properties/copies/default"), 3);
        assert_eq!(
            [1, 2, 3, 4].map(|copies| Redundancy { copies, min_copies: None }.min_copies()),
            [1, 2, 2, 2]
        );
        assert_eq!(
            schema("/properties/storage/properties/directory/properties/path/default"),
            "/var/lib/sheepdog"
        );
    }

    #[test]
    fn rules_stand_where_kubernetes_looks_for_them() {
        for (path, words) in [
            ("", "deletionPolicy Destroy"),
            ("/properties/redundancy", "writes would wait for ever"),
            ("/properties/rings", "not both"),
            ("/properties/network", "network.provider cannot be changed"),
            ("/properties/storage/properties/directory", "storage.directory.path cannot be changed"),
            ("/properties/storage/properties/directory/properties/path", "must not contain"),
        ] {
            let rules = schema(&format!("{path}/x-kubernetes-validations"));
            let told = rules[0]["message"].as_str().unwrap();
            assert!(told.contains(words), "{told}");
        }
    }
}
