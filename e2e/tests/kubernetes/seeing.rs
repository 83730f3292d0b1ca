//! What people see: `kubectl sheepdog`.

use crate::product::{claim, delete, on_node, snapshot, wait_gone};
use sheep_e2e::kubernetes::Kubernetes;

/// All of it, with a volume in use and a snapshot of it.
pub(crate) fn says_how_it_is_and_what_uses_it(kubernetes: &Kubernetes) {
    let nodes = kubernetes.nodes();
    kubernetes.apply(&claim("seen", "256Mi", None)).unwrap();
    on_node(kubernetes, "user", "seen", &nodes[0]);
    snapshot(kubernetes, "instant", "seen");
    let says = |words: &[&str], expected: &[&str]| {
        let said = kubernetes.sheepdog(words).unwrap();
        println!("kubectl sheepdog {}:\n{said}", words.join(" "));
        for word in expected {
            assert!(said.contains(word), "{word:?} is not in what {words:?} says:\n{said}");
        }
    };
    let all: Vec<&str> = nodes.iter().map(String::as_str).collect();
    says(&["status"], &["OK"]);
    says(&["get", "volumes"], &["default/seen", " user "]);
    says(&["get", "snapshots"], &["default/instant"]);
    says(&["get", "nodes"], &all);
    says(&["get", "disks"], &all);
    says(&["describe", "volume", "default/seen"], &["default/user", &nodes[0]]);
    says(&["describe", "node", &nodes[0]], &[&nodes[0], "default/seen"]);
    says(&["preflight"], &[]);
    says(&["cluster", "check"], &[]);
    delete(kubernetes, &["volumesnapshot", "instant"]);
    delete(kubernetes, &["pod", "user"]);
    delete(kubernetes, &["pvc", "seen"]);
    wait_gone(kubernetes, &["persistentvolumes"]);
}
