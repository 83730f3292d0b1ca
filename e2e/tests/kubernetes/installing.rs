//! The product comes, is changed, goes and comes back.

use crate::product::{
    self, NAMESPACE, claim, delete, on_node, read, uninstall, wait_cluster, wait_gone, wait_ready, wait_up,
    wait_whole, write,
};
use crate::writer;
use sheep_e2e::kubernetes::Kubernetes;
use sheep_e2e::wait_until;
use std::time::Duration;

/// `helm test` succeeds, as often as somebody likes.
pub(crate) fn tests_itself(kubernetes: &Kubernetes) {
    for _ in 0..2 {
        let words = ["test", "sheepdog", "--namespace", NAMESPACE, "--timeout", "5m"];
        let said = kubernetes.helm(words).unwrap();
        assert_eq!(said.matches("Phase:          Succeeded").count(), 3, "{said}");
    }
    wait_gone(kubernetes, &["persistentvolumes"]);
}

/// What cannot work is refused, with a sentence that says why.
pub(crate) fn refuses_what_cannot_work(kubernetes: &Kubernetes) {
    for (spec, sentence) in [
        (r#"{"deletionPolicy": "Destroy"}"#, "deletionPolicy Destroy is not supported by this version"),
        (r#"{"redundancy": {"copies": 2, "minCopies": 3}}"#, "minCopies must not be larger than copies"),
        (r#"{"network": {"provider": "Host"}}"#, "network.provider cannot be changed"),
        (r#"{"storage": {"directory": {"path": "/elsewhere"}}}"#, "storage.directory.path cannot be changed"),
        (r#"{"storage": {"directory": {"maxSize": "much"}}}"#, "spec.storage.directory.maxSize"),
        (r#"{"recovery": {"delay": "soon"}}"#, "spec.recovery.delay"),
    ] {
        let patch = format!(r#"{{"spec": {spec}}}"#);
        let words =
            ["--namespace", NAMESPACE, "patch", "sheepdogcluster", "sheepdog", "--type=merge", "--patch"];
        let refused = kubernetes.kubectl(words.iter().chain(&[patch.as_str()])).unwrap_err();
        assert!(format!("{refused:#}").contains(sentence), "{spec}: {refused:#}");
    }
    let refused = product::upgrade(kubernetes, &["--set=imgae.tag=1"]).unwrap_err();
    assert!(format!("{refused:#}").contains("imgae"), "{refused:#}");
}

/// All parts are replaced while a pod writes; it sees no error, and the devices are left alone.
pub(crate) fn is_changed_under_a_pod(kubernetes: &Kubernetes) {
    kubernetes.apply(&(claim("kept", "256Mi", None) + &writer::writer("busy", "kept", None))).unwrap();
    wait_ready(kubernetes, "busy");
    writer::wait_goes_on(kubernetes, "busy");
    let before = parts(kubernetes);
    let parts_changed = ["operator", "storage", "gateway", "csi.controller", "csi.node"];
    let changes: Vec<String> =
        parts_changed.iter().map(|part| format!("--set={part}.resources.requests.cpu=11m")).collect();
    product::upgrade(kubernetes, &changes.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    // Nothing is left of what was there before, but owners of devices.
    let patience = Duration::from_secs(600);
    wait_until("all parts to be replaced", patience, Duration::from_secs(1), || {
        writer::check(kubernetes, "busy");
        Ok(parts(kubernetes).iter().all(|part| part.contains("-device-") || !before.contains(part)))
    })
    .unwrap();
    wait_cluster(kubernetes, "condition=Progressing=False");
    assert!(
        parts(kubernetes).iter().filter(|part| before.contains(part)).count() == kubernetes.nodes().len()
    );
    wait_whole(kubernetes);
    writer::wait_goes_on(kubernetes, "busy");
    writer::verify_elsewhere(kubernetes, "busy", "kept", &kubernetes.nodes()[1]);
}

/// Names of the product's pods.
fn parts(kubernetes: &Kubernetes) -> Vec<String> {
    let found = kubernetes.get(&["pods", "--namespace", NAMESPACE]).unwrap();
    let names =
        found["items"].as_array().unwrap().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap());
    names.map(str::to_owned).collect()
}

/// What was stored is there again after `helm uninstall` and `install`.
pub(crate) fn leaves_its_data_and_finds_it_again(kubernetes: &Kubernetes) {
    let nodes = kubernetes.nodes();
    on_node(kubernetes, "before", "kept", &nodes[0]);
    let sum = write(kubernetes, "before", "file", 32);
    delete(kubernetes, &["pod", "before"]);
    let id = cluster_id(kubernetes);
    uninstall(kubernetes);
    kubernetes.get(&["secret", "--namespace", NAMESPACE, "sheepdog-key"]).unwrap();
    product::install(kubernetes, &[]);
    assert_eq!(cluster_id(kubernetes), id);
    wait_up(kubernetes, 3);
    on_node(kubernetes, "after", "kept", &nodes[1]);
    assert_eq!(read(kubernetes, "after", "file"), sum);
    delete(kubernetes, &["pod", "after"]);
    delete(kubernetes, &["pvc", "kept"]);
    wait_gone(kubernetes, &["persistentvolumes"]);
}

fn cluster_id(kubernetes: &Kubernetes) -> String {
    let found = kubernetes.get(&["sheepdogcluster", "sheepdog", "--namespace", NAMESPACE]).unwrap();
    found["status"]["clusterId"].as_str().unwrap().to_owned()
}

/// Who deletes the namespace with all that is in it waits for nothing.
pub(crate) fn goes_with_its_namespace(kubernetes: &Kubernetes) {
    delete(kubernetes, &["namespace", NAMESPACE]);
}

/// One node is a cluster, and becomes one of three when there are more.
pub(crate) fn begins_with_one_node(kubernetes: &mut Kubernetes) {
    let nodes = kubernetes.nodes();
    kubernetes.kubectl(["label", "node", &nodes[0], "stores=yes"]).unwrap();
    product::install(kubernetes, &["--set=cluster.spec.storage.nodeSelector.stores=yes"]);
    wait_up(kubernetes, 1);
    kubernetes.apply(&claim("first", "256Mi", None)).unwrap();
    on_node(kubernetes, "first", "first", &nodes[1]);
    let sum = write(kubernetes, "first", "file", 32);
    for node in &nodes[1..] {
        kubernetes.kubectl(["label", "node", node, "stores=yes"]).unwrap();
    }
    wait_up(kubernetes, 3);
    wait_whole(kubernetes);
    let added = write(kubernetes, "first", "added", 8);
    // The first one is not needed any more.
    kubernetes.cut_power(1).unwrap();
    wait_up(kubernetes, 2);
    write(kubernetes, "first", "more", 8);
    delete(kubernetes, &["pod", "first"]);
    // From the copies of the two others, and from nobody's page cache.
    on_node(kubernetes, "second", "first", &nodes[2]);
    assert_eq!(read(kubernetes, "second", "file"), sum);
    assert_eq!(read(kubernetes, "second", "added"), added);
    delete(kubernetes, &["pod", "second"]);
    delete(kubernetes, &["pvc", "first"]);
}
