//! What must never break: the way from `helm install` to a volume that outlives a killed storage node, and back.

use crate::product::{
    claim, delete, number, on_node, pod, read, snapshot, start, uninstall, wait_gone, wait_ready, wait_whole,
    write,
};
use sheep_e2e::kubernetes::Kubernetes;
use sheep_e2e::{LeakCheck, serial};

#[test]
fn a_volume_is_made_mounted_and_restored_and_outlives_a_killed_storage_node() {
    let _one = serial();
    let check = LeakCheck::start();
    let kubernetes = start(3);
    let nodes = kubernetes.nodes();
    let waited = {
        kubernetes
            .apply(&(claim("first", "256Mi", None) + &pod("writer", "first", Some(&nodes[0]))))
            .unwrap();
        wait_ready(&kubernetes, "writer")
    };
    println!("claim bound and mounted in {:.1} s", waited.as_secs_f64());
    let before = write(&kubernetes, "writer", "file", 32);
    snapshot(&kubernetes, "instant", "first");
    let after = write(&kubernetes, "writer", "file", 32);
    kubernetes.apply(&claim("restored", "256Mi", Some(("VolumeSnapshot", "instant")))).unwrap();
    let waited = on_node(&kubernetes, "restored", "restored", &nodes[1]);
    println!("restored from a snapshot and mounted in {:.1} s", waited.as_secs_f64());
    assert_eq!(read(&kubernetes, "restored", "file"), before);

    outlives_a_killed_storage_node(&kubernetes, &nodes[0], &after);
    delete(&kubernetes, &["pod", "restored"]);
    delete(&kubernetes, &["pvc", "first", "restored"]);
    delete(&kubernetes, &["volumesnapshot", "instant"]);
    // Volumes go with their claims, as their class says.
    wait_gone(&kubernetes, &["persistentvolumes"]);
    uninstall(&kubernetes);
    delete(&kubernetes, &["namespace", crate::product::NAMESPACE]);
    drop(kubernetes);
    check.finish().unwrap();
}

/// The storage node on the pod's own machine is killed; what was written before and is written then is found on another one.
fn outlives_a_killed_storage_node(kubernetes: &Kubernetes, node: &str, before: &str) {
    kubernetes.kill(number(kubernetes, node), "sheep /var/lib/sheepdog/storage").unwrap();
    let meanwhile = write(kubernetes, "writer", "meanwhile", 16);
    assert_eq!(read(kubernetes, "writer", "file"), before);
    wait_whole(kubernetes);
    delete(kubernetes, &["pod", "writer"]);
    let other = kubernetes.nodes().into_iter().find(|other| other != node).unwrap();
    on_node(kubernetes, "reader", "first", &other);
    assert_eq!(read(kubernetes, "reader", "file"), before);
    assert_eq!(read(kubernetes, "reader", "meanwhile"), meanwhile);
    delete(kubernetes, &["pod", "reader"]);
}
