//! Storage nodes, how they find each other, and how others find them.

use super::object::{Object, namespaced, selector};
use super::pod::{
    Pods, add, certificate, certified, container, daemon_set as pods_everywhere, field, host_directory,
    member_probes, member_rights, merge, mount, on_delete,
};
use super::{CONTROL_PORT, HTTP_PORT, NODE_PORT, Plan, component, secret_name};
use crate::reconcile::{leaving, redundancy};
use serde_json::{Map, Value, json};
use sheep_tls::Role;

/// Names of nodes, divided by commas, that the operator drains. It is written before a node is drained, so that a node that a person has
/// drained is never taken for one of them.
pub(crate) const DRAINED: &str = "sheepdog.io/drained";

/// The node's directory, in its container.
const DIRECTORY: &str = "/var/lib/sheepdog/storage";

/// Name that leads to all storage nodes, ready or not.
pub(super) fn seeds(plan: Plan<'_>) -> String {
    format!("{}.{}.svc:{NODE_PORT}", plan.name(component::STORAGE), plan.cluster.namespace)
}

/// Address of the control API of any storage node that serves.
pub(super) fn control_address(plan: Plan<'_>) -> String {
    format!("{}.{}.svc:{CONTROL_PORT}", plan.name("control"), plan.cluster.namespace)
}

/// One configuration file per node of Kubernetes, whether it stores data or not: a pod may come up faster than its node is seen to
/// be one that does.
pub(super) fn node_configuration(plan: Plan<'_>) -> Object {
    let file = |node: &super::super::validate::NodeConfig| {
        let mut file = toml_line("zone", &node.zone);
        if let Some(capacity) = node.capacity {
            file += &format!("capacity = {capacity}\n");
        }
        file
    };
    let data: Map<String, Value> = plan
        .cluster
        .nodes
        .iter()
        .map(|(name, node)| (format!("{name}.toml"), Value::from(file(node))))
        .collect();
    let name = plan.name("nodes");
    namespaced(plan, "v1", "ConfigMap", &name, component::STORAGE, json!({"data": data}))
}

/// Values of labels need no escapes, and nothing else comes here.
fn toml_line(key: &str, value: &str) -> String {
    format!("{key} = \"{value}\"\n")
}

/// A name for all storage nodes, by which they find each other. Those that are not ready are meant too: they become so by
/// finding others.
pub(super) fn peers(plan: Plan<'_>) -> Object {
    let spec = json!({
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": selector(plan, component::STORAGE),
        "ports": [
            {"name": "ring", "port": NODE_PORT, "protocol": "UDP"},
            {"name": "data", "port": NODE_PORT, "protocol": "TCP"},
        ],
    });
    let name = plan.name(component::STORAGE);
    namespaced(plan, "v1", "Service", &name, component::STORAGE, json!({"spec": spec}))
}

/// The control API of whichever node is ready.
pub(super) fn control(plan: Plan<'_>) -> Object {
    let spec = json!({
        "selector": selector(plan, component::STORAGE),
        "ports": [
            {"name": "control", "port": CONTROL_PORT, "protocol": "TCP"},
            {"name": "metrics", "port": HTTP_PORT, "protocol": "TCP"},
        ],
    });
    let name = plan.name("control");
    namespaced(plan, "v1", "Service", &name, component::STORAGE, json!({"spec": spec}))
}

/// One storage pod may be evicted while all copies are where they belong, and none while they are not. (A number of pods that must
/// stay: Kubernetes knows no other kind for DaemonSets.)
pub(super) fn disruption_budget(plan: Plan<'_>) -> Object {
    let pods = plan.observed.pods.iter().filter(|pod| !redundancy::is_given_up(plan.observed, pod)).count();
    let stay = match redundancy::missing(plan.observed) {
        None => pods.saturating_sub(1),
        Some(_) => pods,
    };
    let spec = json!({
        "minAvailable": stay,
        "selector": {"matchLabels": selector(plan, component::STORAGE)},
    });
    let name = plan.name(component::STORAGE);
    namespaced(plan, "policy/v1", "PodDisruptionBudget", &name, component::STORAGE, json!({"spec": spec}))
}

pub(super) fn daemon_set(plan: Plan<'_>) -> Object {
    let asked = &plan.settings.storage;
    let mut rest = json!({
        "args": [
            DIRECTORY,
            "--config", "/etc/sheepdog/nodes/$(NODE_NAME).toml",
            "--key", "/etc/sheepdog/key/key",
            "--name", "$(NODE_NAME)",
            "--node-listen", "$(POD_IP)",
            "--ring-port", NODE_PORT.to_string(),
            "--data-port", NODE_PORT.to_string(),
            "--grpc", format!("$(POD_IP):{CONTROL_PORT}"),
            "--http", format!("$(POD_IP):{HTTP_PORT}"),
            "--nbd-tcp", "none",
            "--rendezvous", "none",
            "--seed", seeds(plan),
        ],
        "env": [field("NODE_NAME", "spec.nodeName"), field("POD_IP", "status.podIP")],
        "ports": [
            {"name": "ring", "containerPort": NODE_PORT, "protocol": "UDP"},
            {"name": "data", "containerPort": NODE_PORT, "protocol": "TCP"},
            {"name": "control", "containerPort": CONTROL_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": HTTP_PORT, "protocol": "TCP"},
        ],
        "securityContext": member_rights(),
        "volumeMounts": [
            mount("directory", DIRECTORY),
            {"name": "nodes", "mountPath": "/etc/sheepdog/nodes", "readOnly": true},
            {"name": "key", "mountPath": "/etc/sheepdog/key", "readOnly": true},
        ],
    });
    if plan.cluster.encrypt_data {
        add(&mut rest, "args", json!(["--encrypt-data"]));
    }
    certified(&mut rest);
    merge(&mut rest, member_probes(HTTP_PORT));
    let spec = json!({
        "hostNetwork": plan.cluster.host_network,
        "dnsPolicy": if plan.cluster.host_network { "ClusterFirstWithHostNet" } else { "ClusterFirst" },
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 30,
        "tolerations": plan.cluster.tolerations,
        "containers": [container(plan, "sheep", "sheep", asked, rest)],
        "volumes": [
            host_directory("directory", &format!("{}/storage", plan.cluster.directory)),
            {"name": "nodes", "configMap": {"name": plan.name("nodes")}},
            {"name": "key", "secret": {"secretName": secret_name(&plan.cluster.name), "defaultMode": 0o400}},
            certificate(plan, Role::Node, 0o400),
        ],
    });
    let pods = Pods {
        component: component::STORAGE,
        asked,
        priority: "system-node-critical",
        account: &plan.settings.service_account,
        spec,
    };
    let mut set = pods_everywhere(plan, on_delete(), pods);
    // Not a part of the hash: pods that may stay where they are need not be replaced.
    set.0["spec"]["template"]["spec"]["affinity"] = affinity(plan);
    set.0["metadata"]["annotations"][DRAINED] =
        leaving::drained(plan.cluster, plan.observed).join(",").into();
    set
}

/// The nodes that store data, and those that may not stop yet, by their names: if labels said which, Kubernetes would end a pod as soon
/// as its node lost one, before anybody could save what it has.
fn affinity(plan: Plan<'_>) -> Value {
    let cluster = plan.cluster;
    let mut names: Vec<&String> = cluster.storage_nodes.iter().chain(&cluster.kept).collect();
    names.sort_unstable();
    let term = |name: &&String| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
    let mut terms: Vec<Value> = names.iter().map(term).collect();
    if terms.is_empty() {
        // There must be one. No node has a label and has it not.
        let os = |operator: &str| json!({"key": "kubernetes.io/os", "operator": operator});
        terms.push(json!({"matchExpressions": [os("Exists"), os("DoesNotExist")]}));
    }
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}})
}
