//! What pods have in common.

use super::Plan;
use super::object::{Object, labels, namespaced, selector};
use crate::reconcile::certificates::secret_of;
use crate::settings::Component;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use sheep_tls::Role;

/// Annotation of a pod with the hash of the template that it was made from.
pub(crate) const TEMPLATE: &str = "sheepdog.io/template";

/// Where the CSI driver says how it is. Its pods have a network of their own.
pub(super) const CSI_HTTP_PORT: u16 = 9808;

/// User of pods that need no rights on their node.
const NOBODY: u32 = 65532;

/// What is particular about the pods of a part.
pub(super) struct Pods<'a> {
    /// The part.
    pub(super) component: &'static str,
    /// What was asked for.
    pub(super) asked: &'a Component,
    /// Priority, if none was asked for.
    pub(super) priority: &'static str,
    /// Account.
    pub(super) account: &'a str,
    /// Everything else of their specification.
    pub(super) spec: Value,
}

/// The template of pods, with its own hash, by which pods of older templates are known.
pub(super) fn template(plan: Plan<'_>, pods: Pods<'_>) -> Value {
    let mut spec = json!({
        "serviceAccountName": pods.account,
        "enableServiceLinks": false,
        "priorityClassName": match pods.asked.priority_class_name.as_str() {
            "" => pods.priority,
            asked => asked,
        },
    });
    merge(&mut spec, pods.spec);
    for (key, asked) in [
        ("imagePullSecrets", json!(plan.settings.image_pull_secrets)),
        ("tolerations", json!(pods.asked.tolerations)),
        ("nodeSelector", json!(pods.asked.node_selector)),
    ] {
        add(&mut spec, key, asked);
    }
    let mut all_labels = labels(plan, pods.component);
    all_labels.extend(pods.asked.labels.clone());
    all_labels.extend(selector(plan, pods.component));
    let mut annotations = plan.settings.annotations.clone();
    annotations.extend(pods.asked.annotations.clone());
    let mut template = json!({
        "metadata": {"labels": all_labels, "annotations": annotations},
        "spec": spec,
    });
    let hash = hash(&template);
    template["metadata"]["annotations"][TEMPLATE] = hash.into();
    template
}

fn hash(template: &Value) -> String {
    // Maps of serde_json are sorted: the same template has the same text.
    let digest = digest(&SHA256, template.to_string().as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Lists grow, maps are extended, and what is asked for wins.
pub(super) fn add(spec: &mut Value, key: &str, asked: Value) {
    match (&mut spec[key], asked) {
        (Value::Array(list), Value::Array(more)) => list.extend(more),
        (Value::Object(map), Value::Object(more)) => map.extend(more),
        (there, asked) => {
            let empty = asked.as_array().is_some_and(Vec::is_empty)
                || asked.as_object().is_some_and(serde_json::Map::is_empty);
            if !empty {
                *there = asked;
            } else if there.is_null()
                && let Some(map) = spec.as_object_mut()
            {
                map.remove(key);
            }
        }
    }
}

/// Adds the fields of one object to another.
pub(super) fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// A DaemonSet.
pub(super) fn daemon_set(plan: Plan<'_>, strategy: Value, pods: Pods<'_>) -> Object {
    let component = pods.component;
    let spec = json!({
        "selector": {"matchLabels": selector(plan, component)},
        "updateStrategy": strategy,
        "template": template(plan, pods),
    });
    namespaced(plan, "apps/v1", "DaemonSet", &plan.name(component), component, json!({"spec": spec}))
}

/// One after another, each when the one before is ready.
pub(super) fn rolling() -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}})
}

/// Only when somebody deletes a pod: the operator, when it does no harm.
pub(super) fn on_delete() -> Value {
    json!({"type": "OnDelete"})
}

/// A container of our programs.
pub(super) fn container(plan: Plan<'_>, name: &str, program: &str, asked: &Component, rest: Value) -> Value {
    let mut container = json!({
        "name": name,
        "image": plan.settings.image,
        "imagePullPolicy": plan.settings.image_pull_policy,
        "command": [program],
        "resources": asked.resources,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    });
    merge(&mut container, rest);
    container
}

/// A variable with a field of the pod.
pub(super) fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

/// Volume: a directory of the node, made if it is not there.
pub(super) fn host_directory(name: &str, path: &str) -> Value {
    json!({"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}})
}

/// Where a volume is in a container.
pub(super) fn mount(name: &str, path: &str) -> Value {
    json!({"name": name, "mountPath": path})
}

/// The same, with mounts that come and go beneath it.
pub(super) fn mount_with(name: &str, path: &str, propagation: &str) -> Value {
    json!({"name": name, "mountPath": path, "mountPropagation": propagation})
}

/// Where a pod sees its certificate.
const CERTIFICATES: &str = "/etc/sheepdog/tls";

/// Has a program show a certificate: variables, for itself and for `dog` in its container. The files are read again when they are
/// renewed, so nothing here says which certificate it is.
pub(super) fn certified(container: &mut Value) {
    let files =
        [("SHEEP_TLS_CA", "ca.crt"), ("SHEEP_TLS_CERTIFICATE", "tls.crt"), ("SHEEP_TLS_KEY", "tls.key")];
    let variables =
        files.map(|(name, file)| json!({"name": name, "value": format!("{CERTIFICATES}/{file}")}));
    add(container, "env", json!(variables));
    add(container, "volumeMounts", json!([{"name": "tls", "mountPath": CERTIFICATES, "readOnly": true}]));
}

/// Volume: the certificate of a role, its key and the CA's certificate.
pub(super) fn certificate(plan: Plan<'_>, role: Role, mode: u32) -> Value {
    json!({"name": "tls", "secret": {"secretName": secret_of(&plan.cluster.name, role), "defaultMode": mode}})
}

/// Rights of `sheep`: root, because its directories belong to root; io_uring, which the usual filter forbids; and a thread that
/// runs before others. Nothing else.
pub(super) fn member_rights() -> Value {
    json!({
        "runAsUser": 0,
        "runAsGroup": 0,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["SYS_NICE"]},
        "seccompProfile": {"type": "Unconfined"},
    })
}

/// Rights of what works for a node: all.
pub(super) fn node_rights() -> Value {
    json!({"privileged": true, "runAsUser": 0, "runAsGroup": 0, "readOnlyRootFilesystem": true})
}

/// Rights of what only talks to others: none.
pub(super) fn no_rights() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// The same of its pod.
pub(super) fn no_pod_rights() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": NOBODY,
        "runAsGroup": NOBODY,
        "fsGroup": NOBODY,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

/// Pods of what has to run on every node, whatever the node is tainted with.
pub(super) fn everywhere() -> Value {
    json!([{"operator": "Exists"}])
}

fn probe(path: &str, port: u16, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    })
}

/// Probes of a member. Only a process that has given up is started again; one that waits for others is not helped by that.
pub(super) fn member_probes(port: u16) -> Value {
    json!({
        "startupProbe": probe("/livez", port, 2, 150),
        "livenessProbe": probe("/livez", port, 10, 12),
        "readinessProbe": probe("/readyz", port, 2, 3),
    })
}

/// Probes of the CSI driver. That the cluster does not serve is no reason to start it again: only its pod is not ready then.
pub(super) fn csi_probes() -> Value {
    json!({
        "livenessProbe": probe("/livez", CSI_HTTP_PORT, 10, 12),
        "readinessProbe": probe("/readyz", CSI_HTTP_PORT, 5, 3),
    })
}
