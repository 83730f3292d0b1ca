//! The product in a cluster, as its users get it: `helm install`. And what the tests do with it.

use anyhow::Result;
use sheep_e2e::kubernetes::{BUSYBOX, Kubernetes, SHEEPDOG, image_of};
use sheep_e2e::wait_until;
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const NAMESPACE: &str = "sheepdog";
/// What each node may store; its disk is the machine's, and others use that too.
const NODE_SIZE: &str = "4Gi";
const MAX_SIZE: &str = "cluster.spec.storage.directory.maxSize";
/// How long kubectl waits for something that surely comes; the machine may be busy.
const PATIENCE: &str = "--timeout=300s";

/// Values that make the chart use the images of this machine, and little of its disk.
fn values() -> Vec<String> {
    let mut values = vec![value("image", SHEEPDOG), format!("--set={MAX_SIZE}={NODE_SIZE}")];
    for name in ["provisioner", "attacher", "resizer", "snapshotter"] {
        let image = image_of(&format!("csi-{name}")).unwrap();
        values.push(value(&format!("csi.sidecars.{name}.image"), &image));
    }
    values
}

fn value(key: &str, image: &str) -> String {
    let (registry, rest) = image.split_once('/').unwrap();
    let (repository, tag) = rest.split_once(':').unwrap();
    format!("--set={key}.registry={registry},{key}.repository={repository},{key}.tag={tag}")
}

/// A cluster of so many nodes with the product in it, which is ready to make volumes.
pub(crate) fn start(nodes: u8) -> Kubernetes {
    let kubernetes = empty(nodes);
    install(&kubernetes, &[]);
    kubernetes
}

/// A cluster of so many nodes that snapshots can be made in, without the product.
pub(crate) fn empty(nodes: u8) -> Kubernetes {
    let kubernetes = Kubernetes::start(nodes).unwrap();
    kubernetes.add_snapshots().unwrap();
    kubernetes
}

fn helm(kubernetes: &Kubernetes, words: &[&str], changes: &[&str]) -> Result<String> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("charts/sheepdog");
    let usual = values();
    let usual = usual.iter().map(String::as_str);
    let common = ["sheepdog", "--namespace", NAMESPACE, "--wait", "--timeout=10m"];
    let words = words.iter().chain(&common).copied().chain(usual).chain(changes.iter().copied());
    kubernetes.helm(words.map(AsRef::as_ref).chain([chart.as_os_str()]))
}

/// `helm install`, and waits until the cluster says that it is available.
pub(crate) fn install(kubernetes: &Kubernetes, changes: &[&str]) {
    let begin = Instant::now();
    helm(kubernetes, &["install", "--create-namespace"], changes).unwrap();
    // The operator makes it, and one that was there before may have to give up its lease first.
    let made = ["wait", "sheepdogcluster/sheepdog", "--for=create", PATIENCE];
    kubernetes.kubectl(["--namespace", NAMESPACE].iter().chain(&made)).unwrap();
    wait_cluster(kubernetes, "condition=Available");
    println!("installed in {:.0} s", begin.elapsed().as_secs_f64());
}

/// `helm upgrade` of the same chart, with other values.
pub(crate) fn upgrade(kubernetes: &Kubernetes, changes: &[&str]) -> Result<String> {
    helm(kubernetes, &["upgrade"], changes)
}

/// A claim, made from nothing or from `source` (a claim or a snapshot).
pub(crate) fn claim(name: &str, size: &str, source: Option<(&str, &str)>) -> String {
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
pub(crate) fn pod(name: &str, claim: &str, node: Option<&str>) -> String {
    let container = format!(
        "{{name: main, image: {BUSYBOX}, command: [sleep, '1000000'], volumeMounts: [{{name: data, mountPath: /data}}]}}"
    );
    pod_with(name, claim, node, &container)
}

/// A pod with a container that uses the volume `data`, which is a claim; on a node, or on any.
pub(crate) fn pod_with(name: &str, claim: &str, node: Option<&str>, container: &str) -> String {
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

/// A pod that does nothing, ready on a node.
pub(crate) fn on_node(kubernetes: &Kubernetes, name: &str, claim: &str, node: &str) -> Duration {
    kubernetes.apply(&pod(name, claim, Some(node))).unwrap();
    wait_ready(kubernetes, name)
}

/// Waits until a pod is ready.
pub(crate) fn wait_ready(kubernetes: &Kubernetes, pod: &str) -> Duration {
    let begin = Instant::now();
    let pod = format!("pod/{pod}");
    kubernetes.kubectl(["wait", "--for=condition=Ready", &pod, PATIENCE]).unwrap();
    begin.elapsed()
}

/// Deletes something, and waits until it is gone.
pub(crate) fn delete(kubernetes: &Kubernetes, what: &[&str]) {
    kubernetes.kubectl(["delete", PATIENCE].iter().chain(what)).unwrap();
}

/// Waits until there are no objects of a kind.
pub(crate) fn wait_gone(kubernetes: &Kubernetes, what: &[&str]) {
    wait_until(&format!("no {what:?}"), Duration::from_secs(300), Duration::from_millis(200), || {
        Ok(kubernetes.get(what)?["items"].as_array().is_some_and(Vec::is_empty))
    })
    .unwrap();
}

/// Fills a file in a pod with bytes that do not repeat, and returns their checksum.
pub(crate) fn write(kubernetes: &Kubernetes, pod: &str, file: &str, megabytes: u32) -> String {
    let script = format!(
        "dd if=/dev/urandom of=/data/{file} bs=1M count={megabytes} conv=fsync status=none && sha256sum < /data/{file}"
    );
    kubernetes.exec(pod, &script).unwrap()
}

/// The checksum of a file in a pod.
pub(crate) fn read(kubernetes: &Kubernetes, pod: &str, file: &str) -> String {
    kubernetes.exec(pod, &format!("sha256sum < /data/{file}")).unwrap()
}

/// Mebibytes that the file system at /data of a pod has.
pub(crate) fn mebibytes(kubernetes: &Kubernetes, pod: &str) -> u64 {
    let said = kubernetes.exec(pod, "df -m /data | tail -n 1").unwrap();
    said.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A snapshot of a claim, when it can be used.
pub(crate) fn snapshot(kubernetes: &Kubernetes, name: &str, claim: &str) {
    let object = format!(
        "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {{name: {name}}}
spec: {{volumeSnapshotClassName: sheepdog, source: {{persistentVolumeClaimName: {claim}}}}}
"
    );
    kubernetes.apply(&object).unwrap();
    let object = format!("volumesnapshot/{name}");
    kubernetes.kubectl(["wait", "--for=jsonpath={.status.readyToUse}=true", &object, PATIENCE]).unwrap();
}

/// Changes what a claim asks for, and waits until it has it.
pub(crate) fn enlarge(kubernetes: &Kubernetes, claim: &str, size: &str) {
    let patch = format!(r#"{{"spec": {{"resources": {{"requests": {{"storage": "{size}"}}}}}}}}"#);
    kubernetes.kubectl(["patch", "pvc", claim, "--patch", &patch]).unwrap();
    let grown = format!("--for=jsonpath={{.status.capacity.storage}}={size}");
    kubernetes.kubectl(["wait", &grown, &format!("pvc/{claim}"), PATIENCE]).unwrap();
}

/// Waits until the cluster says something of itself.
pub(crate) fn wait_cluster(kubernetes: &Kubernetes, what: &str) {
    let words =
        ["--namespace", NAMESPACE, "wait", "sheepdogcluster/sheepdog", "--timeout=600s", "--for", what];
    kubernetes.kubectl(words).unwrap();
}

/// Waits until so many storage nodes are there.
pub(crate) fn wait_up(kubernetes: &Kubernetes, nodes: u8) {
    wait_cluster(kubernetes, &format!("jsonpath={{.status.nodes.up}}={nodes}"));
}

/// Waits until every object has all its copies again.
pub(crate) fn wait_whole(kubernetes: &Kubernetes) {
    wait_cluster(kubernetes, "condition=Degraded=False");
    wait_cluster(kubernetes, "condition=Recovering=False");
}

/// `helm uninstall`; all that runs ends, and the namespace goes.
pub(crate) fn uninstall(kubernetes: &Kubernetes) {
    let begin = Instant::now();
    kubernetes.helm(["uninstall", "sheepdog", "--namespace", NAMESPACE, "--wait", "--timeout=5m"]).unwrap();
    wait_gone(kubernetes, &["pods", "--namespace", NAMESPACE]);
    println!("uninstalled in {:.0} s", begin.elapsed().as_secs_f64());
}

/// The number of a node, as the tests of nodes count, from its name.
pub(crate) fn number(kubernetes: &Kubernetes, node: &str) -> usize {
    1 + kubernetes.nodes().iter().position(|name| name == node).unwrap()
}

/// The name of the node that a pod is on; `what` names one pod, or selects it.
pub(crate) fn node_of(kubernetes: &Kubernetes, what: &[&str]) -> String {
    let found = kubernetes.get(&[&["pods"], what].concat()).unwrap();
    let pod = found["items"].as_array().map_or(&found, |pods| &pods[0]);
    pod["spec"]["nodeName"].as_str().unwrap().to_owned()
}
