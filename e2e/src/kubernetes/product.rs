//! The product in a cluster, as its users get it: `helm install`. And what tests, demonstration and benchmarks do with it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{BUSYBOX, Kubernetes, SHEEPDOG, image_of};
use crate::wait_until;

/// Where it is installed.
pub const NAMESPACE: &str = "sheepdog";
/// How long kubectl waits for something that surely comes; the machine may be busy.
pub const PATIENCE: &str = "--timeout=300s";
/// What each node may store; its disk is the machine's, and others use that too.
const NODE_SIZE: &str = "4Gi";
const MAX_SIZE: &str = "cluster.spec.storage.directory.maxSize";

/// Values that make the chart use the images of this machine, and little of its disk.
///
/// # Errors
/// There is no such image.
pub fn values() -> Result<Vec<String>> {
    let mut values = vec![value("image", SHEEPDOG)?, format!("--set={MAX_SIZE}={NODE_SIZE}")];
    for name in ["provisioner", "attacher", "resizer", "snapshotter"] {
        let image = image_of(&format!("csi-{name}"))?;
        values.push(value(&format!("csi.sidecars.{name}.image"), &image)?);
    }
    Ok(values)
}

fn value(key: &str, image: &str) -> Result<String> {
    let (registry, rest) = image.split_once('/').context("an image without a registry")?;
    let (repository, tag) = rest.split_once(':').context("an image without a tag")?;
    Ok(format!("--set={key}.registry={registry},{key}.repository={repository},{key}.tag={tag}"))
}

fn helm(kubernetes: &Kubernetes, words: &[&str], changes: &[&str]) -> Result<String> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/sheepdog");
    let usual = values()?;
    let usual = usual.iter().map(String::as_str);
    let common = ["sheepdog", "--namespace", NAMESPACE, "--wait", "--timeout=10m"];
    let words = words.iter().chain(&common).copied().chain(usual).chain(changes.iter().copied());
    kubernetes.helm(words.map(AsRef::as_ref).chain([chart.as_os_str()]))
}

/// `helm install`, with changes of the usual values; waits until the cluster says that it is available.
///
/// # Errors
/// Helm says why not, or the cluster does not become available.
pub fn install(kubernetes: &Kubernetes, changes: &[&str]) -> Result<()> {
    helm(kubernetes, &["install", "--create-namespace"], changes)?;
    // The operator makes it, and one that was there before may have to give up its lease first.
    let made = ["wait", "sheepdogcluster/sheepdog", "--for=create", PATIENCE];
    kubernetes.kubectl(["--namespace", NAMESPACE].iter().chain(&made))?;
    wait_cluster(kubernetes, "condition=Available")
}

/// `helm upgrade` of the same chart, with other values.
///
/// # Errors
/// Helm says why not.
pub fn upgrade(kubernetes: &Kubernetes, changes: &[&str]) -> Result<String> {
    helm(kubernetes, &["upgrade"], changes)
}

/// `helm uninstall`, until everything has ended.
///
/// # Errors
/// Helm says why not, or something does not end.
pub fn uninstall(kubernetes: &Kubernetes) -> Result<()> {
    kubernetes.helm(["uninstall", "sheepdog", "--namespace", NAMESPACE, "--wait", "--timeout=5m"])?;
    wait_gone(kubernetes, &["pods", "--namespace", NAMESPACE])
}

/// A claim, made from nothing or from `source` (a claim or a snapshot).
pub fn claim(name: &str, size: &str, source: Option<(&str, &str)>) -> String {
    let source = source.map_or_else(String::new, |(kind, name)| {
        let group = if kind == "VolumeSnapshot" { "apiGroup: snapshot.storage.k8s.io, " } else { "" };
        format!("\n  dataSource: {{{group}kind: {kind}, name: {name}}}")
    });
    format!(
        "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  storageClassName: sheepdog
  accessModes: [ReadWriteOnce]
  resources: {{requests: {{storage: {size}}}}}{source}
---
"
    )
}

/// A pod that does nothing, with a claim at /data; on a node, or on any.
pub fn pod(name: &str, claim: &str, node: Option<&str>) -> String {
    let container = format!(
        "{{name: main, image: {BUSYBOX}, command: [sleep, '1000000'], volumeMounts: [{{name: data, mountPath: /data}}]}}"
    );
    pod_with(name, claim, node, &container)
}

/// A pod with a container that uses the volume `data`, which is a claim; on a node, or on any.
pub fn pod_with(name: &str, claim: &str, node: Option<&str>, container: &str) -> String {
    // Chosen by the scheduler, which else would be passed by and with it what it looks at.
    let node =
        node.map_or_else(String::new, |node| format!("\n  nodeSelector: {{kubernetes.io/hostname: {node}}}"));
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:{node}
  terminationGracePeriodSeconds: 0
  containers: [{container}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
---
"
    )
}

/// Makes a snapshot of a claim, and waits until it can be used.
///
/// # Errors
/// That does not happen.
pub fn snapshot(kubernetes: &Kubernetes, name: &str, claim: &str) -> Result<()> {
    let object = format!(
        "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{name: {name}}}
spec: {{volumeSnapshotClassName: sheepdog, source: {{persistentVolumeClaimName: {claim}}}}}
"
    );
    kubernetes.apply(&object)?;
    let object = format!("volumesnapshot/{name}");
    kubernetes.kubectl(["wait", "--for=jsonpath={.status.readyToUse}=true", &object, PATIENCE]).map(drop)
}

/// Waits until a pod is ready.
///
/// # Errors
/// That does not happen.
pub fn wait_ready(kubernetes: &Kubernetes, pod: &str) -> Result<()> {
    let pod = format!("pod/{pod}");
    kubernetes.kubectl(["wait", "--for=condition=Ready", &pod, PATIENCE]).map(drop)
}

/// Deletes something, and waits until it is gone.
///
/// # Errors
/// It is not there, or does not go.
pub fn delete(kubernetes: &Kubernetes, what: &[&str]) -> Result<()> {
    kubernetes.kubectl(["delete", PATIENCE].iter().chain(what)).map(drop)
}

/// Waits until there are no objects of a kind.
///
/// # Errors
/// There still are.
pub fn wait_gone(kubernetes: &Kubernetes, what: &[&str]) -> Result<()> {
    wait_until(&format!("no {what:?}"), Duration::from_secs(300), Duration::from_millis(200), || {
        Ok(kubernetes.get(what)?["items"].as_array().is_some_and(Vec::is_empty))
    })
    .map(drop)
}

/// Waits until the cluster says something of itself.
///
/// # Errors
/// It does not.
pub fn wait_cluster(kubernetes: &Kubernetes, what: &str) -> Result<()> {
    let words =
        ["--namespace", NAMESPACE, "wait", "sheepdogcluster/sheepdog", "--timeout=600s", "--for", what];
    kubernetes.kubectl(words).map(drop)
}

/// Waits until so many storage nodes are there.
///
/// # Errors
/// They are not.
pub fn wait_up(kubernetes: &Kubernetes, nodes: u8) -> Result<()> {
    wait_cluster(kubernetes, &format!("jsonpath={{.status.nodes.up}}={nodes}"))
}

/// Waits until every object has all its copies again.
///
/// # Errors
/// They do not come.
pub fn wait_whole(kubernetes: &Kubernetes) -> Result<()> {
    wait_cluster(kubernetes, "condition=Degraded=False")?;
    wait_cluster(kubernetes, "condition=Recovering=False")
}

/// The number of a node, as [`Kubernetes`] counts, from its name.
///
/// # Errors
/// There is none of that name.
pub fn number(kubernetes: &Kubernetes, node: &str) -> Result<usize> {
    let at = kubernetes.nodes().iter().position(|name| name == node);
    Ok(1 + at.with_context(|| format!("no node {node}"))?)
}

/// The name of the node that a pod is on; `what` names one pod, or selects it.
///
/// # Errors
/// There is no such pod, or it is on no node yet.
pub fn node_of(kubernetes: &Kubernetes, what: &[&str]) -> Result<String> {
    let found = kubernetes.get(&[&["pods"], what].concat())?;
    let pod = found["items"].as_array().map_or(Some(&found), |pods| pods.first());
    let node = pod.and_then(|pod| pod["spec"]["nodeName"].as_str());
    Ok(node.with_context(|| format!("pod {what:?} is on no node"))?.to_owned())
}
