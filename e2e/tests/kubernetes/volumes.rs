//! Volumes of pods: made, mounted, written, read on another node, copied, made larger; in all the ways that a claim can ask for.

use crate::product::{
    claim, delete, enlarge, mebibytes, node_of, on_node, pod, pod_with, read, snapshot, wait_gone,
    wait_ready, write,
};
use crate::writer;
use sheep_e2e::kubernetes::{BUSYBOX, Kubernetes};
use sheep_e2e::wait_until;
use std::time::Duration;

/// A claim becomes a volume with a file system; what one node wrote another one reads.
pub(crate) fn are_mounted_wherever_the_pod_is(kubernetes: &Kubernetes) {
    let nodes = kubernetes.nodes();
    kubernetes.apply(&claim("first", "256Mi", None)).unwrap();
    let waited = on_node(kubernetes, "writer", "first", &nodes[0]);
    println!("claim bound and mounted in {:.1} s", waited.as_secs_f64());
    let sum = write(kubernetes, "writer", "file", 64);
    delete(kubernetes, &["pod", "writer"]);
    on_node(kubernetes, "reader", "first", &nodes[1]);
    assert_eq!(read(kubernetes, "reader", "file"), sum);
    delete(kubernetes, &["pod", "reader"]);
    delete(kubernetes, &["pvc", "first"]);
    // The volume goes with the claim, as its class says.
    wait_gone(kubernetes, &["persistentvolumes"]);
}

/// A snapshot is what the volume was at its instant, and so is what is made of it; a clone is independent.
pub(crate) fn are_copied_by_snapshot_and_clone(kubernetes: &Kubernetes) {
    kubernetes.apply(&(claim("origin", "256Mi", None) + &pod("origin", "origin", None))).unwrap();
    wait_ready(kubernetes, "origin");
    let sum = write(kubernetes, "origin", "file", 32);
    snapshot(kubernetes, "instant", "origin");
    let later = write(kubernetes, "origin", "file", 32);
    let restored = claim("restored", "256Mi", Some(("VolumeSnapshot", "instant")));
    let cloned = claim("cloned", "256Mi", Some(("PersistentVolumeClaim", "origin")));
    kubernetes
        .apply(&(restored + &cloned + &pod("restored", "restored", None) + &pod("cloned", "cloned", None)))
        .unwrap();
    wait_ready(kubernetes, "restored");
    wait_ready(kubernetes, "cloned");
    assert_eq!(read(kubernetes, "restored", "file"), sum);
    assert_eq!(read(kubernetes, "cloned", "file"), later);
    write(kubernetes, "cloned", "file", 16);
    assert_eq!(read(kubernetes, "origin", "file"), later);
    delete(kubernetes, &["pod", "origin", "restored", "cloned"]);
    delete(kubernetes, &["pvc", "origin", "restored", "cloned"]);
    delete(kubernetes, &["volumesnapshot", "instant"]);
}

/// What is made of a snapshot that was taken while somebody wrote has everything that was durable before.
pub(crate) fn are_snapshots_under_writes(kubernetes: &Kubernetes) {
    kubernetes.apply(&(claim("busy", "256Mi", None) + &writer::writer("busy", "busy", None))).unwrap();
    wait_ready(kubernetes, "busy");
    writer::wait_goes_on(kubernetes, "busy");
    let before = writer::acked(kubernetes, "busy").unwrap();
    snapshot(kubernetes, "under-writes", "busy");
    let after = writer::acked(kubernetes, "busy").unwrap();
    let copies = claim("of-busy", "256Mi", Some(("VolumeSnapshot", "under-writes")))
        + &claim("of-copy", "256Mi", Some(("PersistentVolumeClaim", "of-busy")));
    kubernetes.apply(&copies).unwrap();
    for copy in ["of-busy", "of-copy"] {
        kubernetes.apply(&pod(copy, copy, None)).unwrap();
        wait_ready(kubernetes, copy);
        // What was written later may be there, and what was removed until then may be gone.
        writer::verify(kubernetes, copy, before, after);
        let found = kubernetes.exec(copy, "ls /data/written | sort -n | tail -n 1").unwrap();
        let newest: u64 = found.trim().parse().unwrap();
        assert!((before..=after + 1).contains(&newest), "{newest} of {before} to {after}");
    }
    let last = writer::stop(kubernetes, "busy");
    delete(kubernetes, &["pod", "busy", "of-busy", "of-copy"]);
    assert!(last >= after);
    delete(kubernetes, &["pvc", "busy", "of-busy", "of-copy"]);
    delete(kubernetes, &["volumesnapshot", "under-writes"]);
}

const XFS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: xfs}
provisioner: csi.sheepdog.io
allowVolumeExpansion: true
parameters: {csi.storage.k8s.io/fstype: xfs}
---
";

/// A claim that asks for more gets it. With xfs, because an ext4 grows only where the kernel lets the driver do that, and that of a sandbox may not.
pub(crate) fn grow(kubernetes: &Kubernetes) {
    let larger = claim("grows", "320Mi", None).replace("storageClassName: sheepdog", "storageClassName: xfs");
    kubernetes.apply(&(XFS.to_owned() + &larger + &pod("grows", "grows", None))).unwrap();
    wait_ready(kubernetes, "grows");
    let sum = write(kubernetes, "grows", "file", 32);
    let before = mebibytes(kubernetes, "grows");
    enlarge(kubernetes, "grows", "640Mi");
    assert!(mebibytes(kubernetes, "grows") > before + 280);
    assert_eq!(read(kubernetes, "grows", "file"), sum);
    // A copy has the same identity, and is mounted beside its origin all the same. It is larger, and its file system too.
    let copy = claim("twin", "896Mi", Some(("PersistentVolumeClaim", "grows")))
        .replace("storageClassName: sheepdog", "storageClassName: xfs");
    kubernetes.apply(&copy).unwrap();
    on_node(kubernetes, "twin", "twin", &node_of(kubernetes, &["grows"]));
    assert_eq!(read(kubernetes, "twin", "file"), sum);
    assert!(mebibytes(kubernetes, "twin") > before + 500);
    delete(kubernetes, &["pod", "grows", "twin"]);
    delete(kubernetes, &["pvc", "grows", "twin"]);
}

/// A pod with a claim as a block device.
fn block_pod(name: &str, claim: &str, node: &str) -> String {
    let container = format!(
        "{{name: main, image: {BUSYBOX}, command: [sleep, '1000000'], securityContext: {{privileged: true}}, \
         volumeDevices: [{{name: data, devicePath: /dev/volume}}]}}"
    );
    pod_with(name, claim, Some(node), &container)
}

/// A claim can be a block device, which is moved, copied and made larger like a file system.
pub(crate) fn are_block_devices(kubernetes: &Kubernetes) {
    const SUM: &str = "dd if=/dev/volume bs=1M skip=8 count=16 iflag=direct status=none | sha256sum";
    const SIZE: &str = "blockdev --getsize64 /dev/volume";
    let nodes = kubernetes.nodes();
    let block = |text: String| text.replace("accessModes:", "volumeMode: Block\n  accessModes:");
    kubernetes.apply(&(block(claim("disk", "256Mi", None)) + &block_pod("disk", "disk", &nodes[0]))).unwrap();
    wait_ready(kubernetes, "disk");
    let write = "dd if=/dev/urandom of=/dev/volume bs=1M seek=8 count=16 conv=fsync,notrunc iflag=fullblock status=none";
    kubernetes.exec("disk", write).unwrap();
    let sum = kubernetes.exec("disk", SUM).unwrap();
    assert_eq!(kubernetes.exec("disk", SIZE).unwrap().trim(), (256 << 20).to_string());
    enlarge(kubernetes, "disk", "384Mi");
    // The device grows when the node has been told, a moment after the claim.
    wait_until("a larger device", Duration::from_secs(120), Duration::from_millis(500), || {
        Ok(kubernetes.exec("disk", SIZE)?.trim() == (384 << 20).to_string())
    })
    .unwrap();
    assert_eq!(kubernetes.exec("disk", SUM).unwrap(), sum);
    kubernetes.apply(&block(claim("disk-copy", "384Mi", Some(("PersistentVolumeClaim", "disk"))))).unwrap();
    delete(kubernetes, &["pod", "disk"]);
    let moved = block_pod("disk", "disk", &nodes[1]) + &block_pod("disk-copy", "disk-copy", &nodes[2]);
    kubernetes.apply(&moved).unwrap();
    for pod in ["disk", "disk-copy"] {
        wait_ready(kubernetes, pod);
        assert_eq!(kubernetes.exec(pod, SUM).unwrap(), sum, "{pod}");
        assert_eq!(kubernetes.exec(pod, SIZE).unwrap().trim(), (384 << 20).to_string(), "{pod}");
    }
    delete(kubernetes, &["pod", "disk", "disk-copy"]);
    delete(kubernetes, &["pvc", "disk", "disk-copy"]);
}

/// What nobody writes is read on several nodes at the same time.
pub(crate) fn are_read_by_many(kubernetes: &Kubernetes) {
    let nodes = kubernetes.nodes();
    kubernetes.apply(&claim("golden", "256Mi", None)).unwrap();
    on_node(kubernetes, "golden", "golden", &nodes[0]);
    let sum = write(kubernetes, "golden", "file", 16);
    // Nobody replays a journal on what is only read, and with one to be replayed it is refused: the file system is unmounted first,
    // which the end of the pod does not wait for.
    delete(kubernetes, &["pod", "golden"]);
    wait_gone(kubernetes, &["volumeattachments"]);
    snapshot(kubernetes, "golden", "golden");
    let many =
        claim("many", "256Mi", Some(("VolumeSnapshot", "golden"))).replace("ReadWriteOnce", "ReadOnlyMany");
    kubernetes.apply(&many).unwrap();
    for node in &nodes {
        on_node(kubernetes, &format!("many-{node}"), "many", node);
    }
    for node in &nodes {
        let pod = format!("many-{node}");
        assert_eq!(read(kubernetes, &pod, "file"), sum);
        kubernetes.exec(&pod, "touch /data/new").unwrap_err();
    }
    let pods: Vec<String> = nodes.iter().map(|node| format!("many-{node}")).collect();
    delete(kubernetes, &["pod"].into_iter().chain(pods.iter().map(String::as_str)).collect::<Vec<_>>());
    delete(kubernetes, &["pvc", "golden", "many"]);
    delete(kubernetes, &["volumesnapshot", "golden"]);
}

/// A volume for one pod has one, also where two could have it by their node.
pub(crate) fn are_one_pods_alone(kubernetes: &Kubernetes) {
    let node = &kubernetes.nodes()[0];
    let alone = claim("alone", "64Mi", None).replace("ReadWriteOnce", "ReadWriteOncePod");
    kubernetes.apply(&alone).unwrap();
    on_node(kubernetes, "alone", "alone", node);
    kubernetes.apply(&pod("waits", "alone", Some(node))).unwrap();
    let early = kubernetes.kubectl(["wait", "--for=condition=Ready", "pod/waits", "--timeout=10s"]);
    assert!(early.is_err(), "two pods have a volume that is for one");
    delete(kubernetes, &["pod", "alone"]);
    wait_ready(kubernetes, "waits");
    delete(kubernetes, &["pod", "waits"]);
    delete(kubernetes, &["pvc", "alone"]);
}

/// Pods of a StatefulSet, each with a volume of its own.
pub(crate) fn stateful(name: &str, replicas: u8, container: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {name}}}
spec:
  serviceName: {name}
  replicas: {replicas}
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{container}]
  volumeClaimTemplates:
    - metadata: {{name: data}}
      spec:
        storageClassName: sheepdog
        accessModes: [ReadWriteOnce]
        resources: {{requests: {{storage: 256Mi}}}}
---
"
    )
}

/// Each pod of a StatefulSet keeps its own volume, also when its node is drained.
pub(crate) fn follow_their_pods_when_a_node_is_drained(kubernetes: &Kubernetes) {
    let container = format!(
        "{{name: main, image: {BUSYBOX}, command: [sleep, '1000000'], volumeMounts: [{{name: data, mountPath: /data}}]}}"
    );
    kubernetes.apply(&stateful("set", 2, &container)).unwrap();
    let rolled_out = ["rollout", "status", "statefulset/set", "--timeout=300s"];
    kubernetes.kubectl(rolled_out).unwrap();
    let sums = ["set-0", "set-1"].map(|pod| write(kubernetes, pod, "file", 8));
    assert_ne!(sums[0], sums[1]);
    let node = node_of(kubernetes, &["set-0"]);
    let drain = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"];
    kubernetes.kubectl(["drain", &node].iter().chain(&drain)).unwrap();
    kubernetes.kubectl(rolled_out).unwrap();
    assert_ne!(node_of(kubernetes, &["set-0"]), node);
    assert_eq!(["set-0", "set-1"].map(|pod| read(kubernetes, pod, "file")), sums);
    // Nothing of it is left there, and the node can be used again.
    kubernetes.kubectl(["uncordon", &node]).unwrap();
    delete(kubernetes, &["pod", "set-0"]);
    kubernetes.kubectl(rolled_out).unwrap();
    assert_eq!(read(kubernetes, "set-0", "file"), sums[0]);
    delete(kubernetes, &["statefulset", "set"]);
    delete(kubernetes, &["pvc", "data-set-0", "data-set-1"]);
    wait_gone(kubernetes, &["persistentvolumes"]);
    wait_gone(kubernetes, &["volumeattachments"]);
}
