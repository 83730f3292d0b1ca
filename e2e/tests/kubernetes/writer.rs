//! A pod that writes all the time, and looks whether what it wrote is there.

use crate::product::{delete, on_node, pod_with};
use sheep_e2e::kubernetes::{BUSYBOX, Kubernetes};
use sheep_e2e::wait_until;
use std::time::Duration;

/// Files that are there at a time: file N is written durably, then file N - FILES is removed.
const FILES: u64 = 256;
/// How long it may stand still; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// File N has N in every line; so each file is known, and no two are equal.
const SCRIPT: &str = r#"
expect() { yes "$1" | head -c 131072; }
fail() { echo "$*" > /tmp/failed; exec sleep 1000000; }
mkdir -p /data/written
i=0
while [ ! -e /tmp/stop ]; do
    i=$((i + 1))
    expect $i | dd of=/data/written/$i bs=131072 iflag=fullblock conv=fsync status=none || fail "writing $i"
    echo $i > /tmp/new
    mv /tmp/new /tmp/acked
    [ $i -le FILES ] || rm /data/written/$((i - FILES)) || fail "removing $((i - FILES))"
    j=$((i - RANDOM % (i < FILES ? i : FILES)))
    expect $j > /tmp/wanted
    # From the volume, not from the page cache.
    dd if=/data/written/$j of=/tmp/found bs=131072 iflag=direct status=none || fail "reading $j"
    cmp -s /tmp/wanted /tmp/found || fail "file $j is not what was written"
done
touch /tmp/stopped
exec sleep 1000000
"#;

fn script(text: &str) -> String {
    text.replace("FILES", &FILES.to_string())
}

/// The manifest of one, with a claim at /data; on a node, or on any.
pub(crate) fn writer(name: &str, claim: &str, node: Option<&str>) -> String {
    pod_with(name, claim, node, &container())
}

/// The container of one, for whoever makes pods.
pub(crate) fn container() -> String {
    let words = serde_json::json!(["sh", "-c", script(SCRIPT)]);
    format!(
        "{{name: main, image: {BUSYBOX}, command: {words}, volumeMounts: [{{name: data, mountPath: /data}}]}}"
    )
}

/// Number of the newest file that it has written durably. Nothing if it cannot be asked now.
pub(crate) fn acked(kubernetes: &Kubernetes, pod: &str) -> Option<u64> {
    kubernetes.exec(pod, "cat /tmp/acked").ok()?.trim().parse().ok()
}

/// Waits until it writes more than it had written, and fails if it has seen an error.
pub(crate) fn wait_goes_on(kubernetes: &Kubernetes, pod: &str) -> Duration {
    let before = acked(kubernetes, pod).unwrap_or(0);
    let every = Duration::from_millis(200);
    wait_until(&format!("{pod} to write on"), PATIENCE, every, || {
        check(kubernetes, pod);
        Ok(acked(kubernetes, pod).is_some_and(|now| now > before + 2))
    })
    .unwrap()
}

/// Fails if it has seen an error.
pub(crate) fn check(kubernetes: &Kubernetes, pod: &str) {
    if let Ok(error) = kubernetes.exec(pod, "cat /tmp/failed 2> /dev/null") {
        let why = kubernetes.kubectl(["logs", pod]).unwrap_or_default();
        panic!("{pod} saw an error: {} {why}", error.trim());
    }
}

/// Ends it, and returns the number of its last file. Its container must be the first one.
pub(crate) fn stop(kubernetes: &Kubernetes, pod: &str) -> u64 {
    kubernetes.exec(pod, "touch /tmp/stop").unwrap();
    wait_until(&format!("{pod} to stop"), PATIENCE, Duration::from_millis(200), || {
        check(kubernetes, pod);
        Ok(kubernetes.exec(pod, "test -e /tmp/stopped").is_ok())
    })
    .unwrap();
    let found = kubernetes.get(&["pod", pod]).unwrap();
    assert_eq!(found["status"]["containerStatuses"][0]["restartCount"], 0, "{pod} was started again");
    acked(kubernetes, pod).unwrap()
}

/// Checks in another pod that the files are there, up to number `last` at least, as they were when `newest` was written.
pub(crate) fn verify(kubernetes: &Kubernetes, pod: &str, last: u64, newest: u64) {
    let first = newest.saturating_sub(FILES).max(1) + 1;
    assert!(first < last, "nothing is left to be checked: {first} to {last}");
    let look = format!(
        "expect() {{ yes $1 | head -c 131072; }}; for i in $(seq {first} {last}); do expect $i | cmp - /data/written/$i || exit 1; done"
    );
    kubernetes.exec(pod, &look).unwrap();
}

/// Ends a writer and its pod, and looks at its files on another node.
pub(crate) fn verify_elsewhere(kubernetes: &Kubernetes, pod: &str, claim: &str, node: &str) {
    let last = stop(kubernetes, pod);
    delete(kubernetes, &["pod", pod]);
    let reader = format!("{pod}-read");
    on_node(kubernetes, &reader, claim, node);
    verify(kubernetes, &reader, last, last);
    delete(kubernetes, &["pod", &reader]);
}
