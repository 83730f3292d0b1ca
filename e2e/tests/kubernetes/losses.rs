//! A node that is gone, with its disk, its gateway and its pods.

use crate::product::{claim, delete, pod, read, wait_ready, wait_up, wait_whole, write};
use sheep_e2e::kubernetes::Kubernetes;

/// A pod goes on reading and writing when another node is lost; when its own node is lost, a pod elsewhere finds what it wrote.
pub(crate) fn of_a_node_lose_no_data(kubernetes: &mut Kubernetes) {
    let nodes = kubernetes.nodes();
    kubernetes.apply(&(claim("kept", "256Mi", None) + &pod("first", "kept", Some(&nodes[2])))).unwrap();
    wait_ready(kubernetes, "first");
    let before = write(kubernetes, "first", "before", 32);

    kubernetes.cut_power(2).unwrap();
    wait_up(kubernetes, 2);
    let meanwhile = write(kubernetes, "first", "meanwhile", 32);
    assert_eq!(read(kubernetes, "first", "before"), before);
    kubernetes.boot(2).unwrap();
    wait_up(kubernetes, 3);
    wait_whole(kubernetes);

    kubernetes.cut_power(3).unwrap();
    wait_up(kubernetes, 2);
    // What an administrator says who knows that the node is off.
    let off = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";
    kubernetes.kubectl(["taint", "node", &nodes[2], off]).unwrap();
    delete(kubernetes, &["pod", "first", "--ignore-not-found", "--force", "--grace-period=0"]);
    kubernetes.apply(&pod("second", "kept", Some(&nodes[1]))).unwrap();
    let waited = wait_ready(kubernetes, "second");
    println!("mounted elsewhere {:.1} s after its node was lost", waited.as_secs_f64());
    assert_eq!(read(kubernetes, "second", "before"), before);
    assert_eq!(read(kubernetes, "second", "meanwhile"), meanwhile);
    delete(kubernetes, &["pod", "second"]);
    delete(kubernetes, &["pvc", "kept"]);
}
