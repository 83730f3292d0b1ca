//! Pieces of what tests observe.

use super::observed::{Anchor, Answer, ClusterSecret, ClusterView, KubeNode, Observed, StoragePod};
use super::validate::{Valid, validate};
use crate::crd::{SheepdogCluster, SheepdogClusterSpec};
use crate::settings::Settings;
use k8s_openapi::jiff::Timestamp;
use sheep_api::v1;

pub(super) const CLUSTER: &str = "00000000000000000000000000000c1a";

pub(super) fn sheepdog() -> SheepdogCluster {
    let mut sheepdog = SheepdogCluster::new("sheepdog", SheepdogClusterSpec::default());
    sheepdog.metadata.namespace = Some("storage".into());
    sheepdog.metadata.uid = Some("u-1".into());
    sheepdog.metadata.generation = Some(1);
    sheepdog
}

pub(super) fn settings() -> Settings {
    Settings::parse(
        r#"{
            "image": "example/sheepdog:1", "serviceAccount": "nodes", "csiServiceAccount": "csi",
            "csi": {"kubeletDir": "/var/lib/kubelet", "sidecars": {
                "provisioner": {"image": "example/provisioner:1"}, "attacher": {"image": "example/attacher:1"},
                "resizer": {"image": "example/resizer:1"}, "snapshotter": {"image": "example/snapshotter:1"}
            }}
        }"#,
    )
    .unwrap()
}

pub(super) fn kube_node(name: &str) -> KubeNode {
    KubeNode {
        name: name.into(),
        labels: [("kubernetes.io/os".to_owned(), "linux".to_owned())].into(),
        taints: Vec::new(),
        disk: Some(100 << 30),
    }
}

/// A pod on the node `node`, whose own node has the id `node-id`.
pub(super) fn pod(node: &str, cluster: &str) -> StoragePod {
    let info = v1::ClusterInfoReply { cluster_id: cluster.into(), ..Default::default() };
    StoragePod {
        name: format!("pod-{node}"),
        uid: format!("uid-{node}"),
        node: node.into(),
        ip: Some(format!("10.0.0.{}", node.len())),
        ready: !cluster.is_empty(),
        running: true,
        leaving: false,
        template: "new".into(),
        last_words: String::new(),
        answer: Some(Answer { id: format!("{node}-id"), info }),
    }
}

pub(super) fn member(name: &str, role: &str, state: &str) -> v1::Node {
    v1::Node {
        id: format!("{name}-id"),
        name: name.into(),
        role: role.into(),
        state: state.into(),
        in_ring: state == "up",
        ..Default::default()
    }
}

/// Nothing but nodes of Kubernetes.
pub(super) fn empty(nodes: &[&str]) -> Observed {
    Observed {
        now: Timestamp::from_second(1_000_000).unwrap(),
        nodes: nodes.iter().map(|name| kube_node(name)).collect(),
        silent: Vec::new(),
        lost_lately: false,
        secret: None,
        certificates: Default::default(),
        own: None,
        pods: Vec::new(),
        cluster: None,
        snapshots: false,
        listed: None,
        drained: Vec::new(),
        workloads: Vec::new(),
        driver_of: None,
        attached: Vec::new(),
        misnamed: None,
        older: None,
        anchor: Some(Anchor { name: "role".into(), uid: "u-2".into() }),
    }
}

/// A cluster that is as it should be.
pub(super) fn serving(nodes: &[&str]) -> Observed {
    let mut observed = empty(nodes);
    observed.secret = Some(ClusterSecret {
        has_key: true,
        resource_version: "7".into(),
        founder: None,
        cluster_id: Some(CLUSTER.into()),
    });
    observed.pods = nodes.iter().map(|node| pod(node, CLUSTER)).collect();
    let valid = valid(&observed);
    let info = v1::ClusterInfoReply {
        cluster_id: CLUSTER.into(),
        primary: true,
        health: "ok".into(),
        message: "All copies are where they belong.".into(),
        settings: Some(valid.settings),
        capacity_bytes: 180 << 30,
        used_bytes: 1 << 30,
        epoch: 3,
        ..Default::default()
    };
    let up = |node: &&str| v1::Node { recovered_epoch: info.epoch, ..member(node, "storage", "up") };
    observed.listed = Some(nodes.iter().map(|node| (*node).to_owned()).collect());
    observed.cluster = Some(ClusterView {
        server: "10.0.0.1:7002".into(),
        nodes: nodes.iter().map(up).collect(),
        info,
        ring_members: nodes.iter().map(|node| format!("{node}-id")).collect(),
        bytes_left: 0,
    });
    observed
}

pub(super) fn valid(observed: &Observed) -> Valid {
    validate(&sheepdog(), observed).unwrap()
}
