//! What the tests do with the product, and what they do in pods.

use anyhow::Result;
use sheep_e2e::kubernetes::{Kubernetes, product};
use std::time::{Duration, Instant};

pub(crate) use product::{NAMESPACE, claim, pod, pod_with, upgrade};

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

/// How long it took.
fn timed(work: impl FnOnce() -> Result<()>) -> Duration {
    let begin = Instant::now();
    work().unwrap();
    begin.elapsed()
}

/// `helm install`, and waits until the cluster says that it is available.
pub(crate) fn install(kubernetes: &Kubernetes, changes: &[&str]) {
    println!("installed in {:.0} s", timed(|| product::install(kubernetes, changes)).as_secs_f64());
}

/// `helm uninstall`; all that runs ends, and the namespace goes.
pub(crate) fn uninstall(kubernetes: &Kubernetes) {
    println!("uninstalled in {:.0} s", timed(|| product::uninstall(kubernetes)).as_secs_f64());
}

/// A pod that does nothing, ready on a node.
pub(crate) fn on_node(kubernetes: &Kubernetes, name: &str, claim: &str, node: &str) -> Duration {
    kubernetes.apply(&pod(name, claim, Some(node))).unwrap();
    wait_ready(kubernetes, name)
}

/// Waits until a pod is ready.
pub(crate) fn wait_ready(kubernetes: &Kubernetes, pod: &str) -> Duration {
    timed(|| product::wait_ready(kubernetes, pod))
}

/// Deletes something, and waits until it is gone.
pub(crate) fn delete(kubernetes: &Kubernetes, what: &[&str]) {
    product::delete(kubernetes, what).unwrap();
}

/// Waits until there are no objects of a kind.
pub(crate) fn wait_gone(kubernetes: &Kubernetes, what: &[&str]) {
    product::wait_gone(kubernetes, what).unwrap();
}

/// A snapshot of a claim, when it can be used.
pub(crate) fn snapshot(kubernetes: &Kubernetes, name: &str, claim: &str) {
    product::snapshot(kubernetes, name, claim).unwrap();
}

/// Waits until the cluster says something of itself.
pub(crate) fn wait_cluster(kubernetes: &Kubernetes, what: &str) {
    product::wait_cluster(kubernetes, what).unwrap();
}

/// Waits until so many storage nodes are there.
pub(crate) fn wait_up(kubernetes: &Kubernetes, nodes: u8) {
    product::wait_up(kubernetes, nodes).unwrap();
}

/// Waits until every object has all its copies again.
pub(crate) fn wait_whole(kubernetes: &Kubernetes) {
    product::wait_whole(kubernetes).unwrap();
}

/// The number of a node, as the tests of nodes count, from its name.
pub(crate) fn number(kubernetes: &Kubernetes, node: &str) -> usize {
    product::number(kubernetes, node).unwrap()
}

/// The name of the node that a pod is on; `what` names one pod, or selects it.
pub(crate) fn node_of(kubernetes: &Kubernetes, what: &[&str]) -> String {
    product::node_of(kubernetes, what).unwrap()
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

/// Changes what a claim asks for, and waits until it has it.
pub(crate) fn enlarge(kubernetes: &Kubernetes, claim: &str, size: &str) {
    let patch = format!(r#"{{"spec": {{"resources": {{"requests": {{"storage": "{size}"}}}}}}}}"#);
    kubernetes.kubectl(["patch", "pvc", claim, "--patch", &patch]).unwrap();
    let grown = format!("--for=jsonpath={{.status.capacity.storage}}={size}");
    kubernetes.kubectl(["wait", &grown, &format!("pvc/{claim}"), product::PATIENCE]).unwrap();
}
