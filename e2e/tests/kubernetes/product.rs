//! The product in a cluster, as its users get it: `helm install`. And what the tests do with it.

use sheep_e2e::kubernetes::{BUSYBOX, Kubernetes, SHEEPDOG, image_of};
use sheep_e2e::wait_until;
use std::path::Path;
use std::time::{Duration, Instant};

pub(crate) const NAMESPACE: &str = "sheepdog";
/// How long kubectl waits for something that surely comes; the machine may be busy.
const PATIENCE: &str = "--timeout=300s";

/// Values that make the chart use the images of this machine.
fn images() -> Vec<String> {
    let mut values = vec![value("image", SHEEPDOG)];
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
    let kubernetes = Kubernetes::start(nodes).unwrap();
    kubernetes.add_snapshots().unwrap();
    install(&kubernetes);
    kubernetes
}

/// `helm install`, and waits until the cluster says that it is available.
pub(crate) fn install(kubernetes: &Kubernetes) {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("charts/sheepdog");
    let begin = Instant::now();
    let words =
        ["install", "sheepdog", "--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout=10m"];
    let values = images();
    let words = words.into_iter().chain(values.iter().map(String::as_str));
    kubernetes.helm(words.map(AsRef::as_ref).chain([chart.as_os_str()])).unwrap();
    // The operator makes it, and one that was there before may have to give up its lease first.
    let made = ["wait", "sheepdogcluster/sheepdog", "--for=create", PATIENCE];
    kubernetes.kubectl(["--namespace", NAMESPACE].iter().chain(&made)).unwrap();
    let available = ["wait", "sheepdogcluster/sheepdog", "--for=condition=Available", "--timeout=600s"];
    kubernetes.kubectl(["--namespace", NAMESPACE].iter().chain(&available)).unwrap();
    println!("installed in {:.0} s", begin.elapsed().as_secs_f64());
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
    let node = node.map_or_else(String::new, |node| format!("\n  nodeName: {node}"));
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:{node}
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: {BUSYBOX}
      command: [sleep, '1000000']
      volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: {claim}}}}}]
---
"
    )
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
        "dd if=/dev/urandom of=/data/{file} bs=1M count={megabytes} 2>/dev/null && sync && sha256sum < /data/{file}"
    );
    kubernetes.exec(pod, &script).unwrap()
}

/// The checksum of a file in a pod, from the disk.
pub(crate) fn read(kubernetes: &Kubernetes, pod: &str, file: &str) -> String {
    kubernetes.exec(pod, &format!("sha256sum < /data/{file}")).unwrap()
}

/// Mebibytes that the file system at /data of a pod has.
pub(crate) fn mebibytes(kubernetes: &Kubernetes, pod: &str) -> u64 {
    let said = kubernetes.exec(pod, "df -m /data | tail -n 1").unwrap();
    said.split_whitespace().nth(1).unwrap().parse().unwrap()
}
