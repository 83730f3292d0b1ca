//! Volumes of pods: made, mounted, written, read on another node, copied, made larger.

use crate::product::{claim, delete, mebibytes, pod, read, wait_gone, wait_ready, write};
use sheep_e2e::kubernetes::Kubernetes;

/// A claim becomes a volume with a file system; what one node wrote another one reads.
pub(crate) fn are_mounted_wherever_the_pod_is(kubernetes: &Kubernetes) {
    let nodes = kubernetes.nodes();
    kubernetes.apply(&(claim("first", "256Mi", None) + &pod("writer", "first", Some(&nodes[0])))).unwrap();
    let waited = wait_ready(kubernetes, "writer");
    println!("claim bound and mounted in {:.1} s", waited.as_secs_f64());
    let sum = write(kubernetes, "writer", "file", 64);
    delete(kubernetes, &["pod", "writer"]);
    kubernetes.apply(&pod("reader", "first", Some(&nodes[1]))).unwrap();
    wait_ready(kubernetes, "reader");
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
    let snapshot = "
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: instant}
spec: {volumeSnapshotClassName: sheepdog, source: {persistentVolumeClaimName: origin}}
";
    kubernetes.apply(snapshot).unwrap();
    let ready =
        ["wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot/instant", "--timeout=300s"];
    kubernetes.kubectl(ready).unwrap();
    let later = write(kubernetes, "origin", "file", 32);
    let restored = claim("restored", "256Mi", Some(("VolumeSnapshot", "instant")));
    let cloned = claim("cloned", "512Mi", Some(("PersistentVolumeClaim", "origin")));
    kubernetes
        .apply(&(restored + &cloned + &pod("restored", "restored", None) + &pod("cloned", "cloned", None)))
        .unwrap();
    wait_ready(kubernetes, "restored");
    wait_ready(kubernetes, "cloned");
    assert_eq!(read(kubernetes, "restored", "file"), sum);
    assert_eq!(read(kubernetes, "cloned", "file"), later);
    // The clone is larger than its origin, and its file system too.
    assert!(mebibytes(kubernetes, "cloned") > 400);
    write(kubernetes, "cloned", "file", 16);
    assert_eq!(read(kubernetes, "origin", "file"), later);
    delete(kubernetes, &["pod", "origin", "restored", "cloned"]);
    delete(kubernetes, &["pvc", "origin", "restored", "cloned"]);
    delete(kubernetes, &["volumesnapshot", "instant"]);
}

/// A claim that asks for more gets it. A mounted ext4 grows only where the kernel lets the driver do that; else at the next mount.
pub(crate) fn grow(kubernetes: &Kubernetes) {
    let xfs = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: xfs}
provisioner: csi.sheepdog.io
allowVolumeExpansion: true
parameters: {csi.storage.k8s.io/fstype: xfs}
---
";
    let larger = claim("grows", "320Mi", None).replace("storageClassName: sheepdog", "storageClassName: xfs");
    kubernetes.apply(&(xfs.to_owned() + &larger + &pod("grows", "grows", None))).unwrap();
    wait_ready(kubernetes, "grows");
    let sum = write(kubernetes, "grows", "file", 32);
    let before = mebibytes(kubernetes, "grows");
    let patch = r#"{"spec": {"resources": {"requests": {"storage": "640Mi"}}}}"#;
    kubernetes.kubectl(["patch", "pvc", "grows", "--patch", patch]).unwrap();
    let grown = ["wait", "--for=jsonpath={.status.capacity.storage}=640Mi", "pvc/grows", "--timeout=300s"];
    kubernetes.kubectl(grown).unwrap();
    assert!(mebibytes(kubernetes, "grows") > before + 280);
    assert_eq!(read(kubernetes, "grows", "file"), sum);
    delete(kubernetes, &["pod", "grows"]);
    delete(kubernetes, &["pvc", "grows"]);
}
