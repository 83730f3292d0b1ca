//! Nodes that store data come and go.

use crate::product::{
    self, NAMESPACE, claim, delete, wait_cluster, wait_gone, wait_ready, wait_up, wait_whole,
};
use crate::writer;
use sheep_e2e::kubernetes::Kubernetes;
use sheep_e2e::wait_until;
use std::path::Path;
use std::time::Duration;

const SELECTOR: &str = "--set=cluster.spec.storage.nodeSelector.stores=yes";
const DELAY: &str = "--set=cluster.spec.recovery.delay=15s";

/// A node loses its label, gets it back, is wanted again in the middle of being drained, dies for good, and comes back; a pod writes on.
pub(crate) fn under_a_pod(kubernetes: &mut Kubernetes) {
    let nodes = kubernetes.nodes();
    for node in &nodes {
        label(kubernetes, node, "stores=yes");
    }
    product::install(kubernetes, &[SELECTOR, DELAY]);
    wait_up(kubernetes, 4);
    kubernetes
        .apply(&(claim("kept", "256Mi", None) + &writer::writer("busy", "kept", Some(&nodes[0]))))
        .unwrap();
    wait_ready(kubernetes, "busy");
    writer::wait_goes_on(kubernetes, "busy");
    a_second_installation_does_nothing(kubernetes);

    label(kubernetes, &nodes[3], "stores-");
    wait_known(kubernetes, 3);
    assert!(!stores(kubernetes, &nodes[3]), "its pod ends when it has been drained");
    wait_applied_and_whole(kubernetes);
    writer::wait_goes_on(kubernetes, "busy");

    label(kubernetes, &nodes[3], "stores=yes");
    wait_up(kubernetes, 4);
    wait_applied_and_whole(kubernetes);

    label(kubernetes, &nodes[2], "stores-");
    wait_cluster(kubernetes, "condition=NodesApplied=False");
    label(kubernetes, &nodes[2], "stores=yes");
    wait_applied_and_whole(kubernetes);
    wait_up(kubernetes, 4);
    writer::wait_goes_on(kubernetes, "busy");

    kubernetes.cut_power(4).unwrap();
    wait_up(kubernetes, 3);
    delete(kubernetes, &["node", &nodes[3]]);
    wait_known(kubernetes, 3);
    wait_applied_and_whole(kubernetes);
    writer::wait_goes_on(kubernetes, "busy");

    // What its disk has is of no use any more, and in nobody's way.
    kubernetes.boot(4).unwrap();
    kubernetes.wait_ready().unwrap();
    label(kubernetes, &nodes[3], "stores=yes");
    wait_up(kubernetes, 4);
    wait_applied_and_whole(kubernetes);
    writer::wait_goes_on(kubernetes, "busy");
    writer::verify_elsewhere(kubernetes, "busy", "kept", &nodes[3]);
    delete(kubernetes, &["pvc", "kept"]);
    wait_gone(kubernetes, &["persistentvolumes"]);
}

fn label(kubernetes: &Kubernetes, node: &str, label: &str) {
    kubernetes.kubectl(["label", "node", node, label]).unwrap();
}

/// Waits until the cluster knows so many storage nodes, and has forgotten the others.
fn wait_known(kubernetes: &Kubernetes, nodes: u8) {
    wait_cluster(kubernetes, &format!("jsonpath={{.status.nodes.total}}={nodes}"));
}

fn wait_applied_and_whole(kubernetes: &Kubernetes) {
    wait_cluster(kubernetes, "condition=NodesApplied");
    wait_whole(kubernetes);
}

/// Whether there is a storage pod on a node.
fn stores(kubernetes: &Kubernetes, node: &str) -> bool {
    let found = kubernetes
        .get(&["pods", "--namespace", NAMESPACE, "--selector=app.kubernetes.io/component=storage"])
        .unwrap();
    found["items"].as_array().unwrap().iter().any(|pod| pod["spec"]["nodeName"] == node)
}

/// In another namespace: it says why, changes nothing, and can be removed without harm to the first.
fn a_second_installation_does_nothing(kubernetes: &Kubernetes) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("charts/sheepdog");
    let words =
        ["install", "second", "--namespace", "second", "--create-namespace", "--set=crds.install=false"];
    let usual = sheep_e2e::kubernetes::product::values().unwrap();
    let words = words.iter().copied().chain(usual.iter().map(String::as_str));
    kubernetes.helm(words.map(AsRef::as_ref).chain([chart.as_os_str()])).unwrap();
    let condition = || kubernetes.get(&["sheepdogcluster", "sheepdog", "--namespace", "second"]);
    wait_until(
        "the second to say why it does nothing",
        Duration::from_secs(120),
        Duration::from_secs(1),
        || {
            let said = condition().unwrap_or_default()["status"]["conditions"].to_string();
            Ok(said.contains("a Kubernetes can have one Sheepdog only"))
        },
    )
    .unwrap();
    kubernetes.helm(["uninstall", "second", "--namespace", "second", "--wait"]).unwrap();
    delete(kubernetes, &["namespace", "second"]);
    wait_cluster(kubernetes, "condition=Available");
    kubernetes.get(&["storageclass", "sheepdog"]).unwrap();
    writer::wait_goes_on(kubernetes, "busy");
}
