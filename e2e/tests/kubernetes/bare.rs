//! Kubernetes alone: it tells a broken harness from a broken product.

use sheep_e2e::kubernetes::{BUSYBOX, Daemon, Kubernetes};
use sheep_e2e::{LeakCheck, Scratch, Spec, serial, wait_until};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A pod on each node that answers with its node's name, and one that asks.
fn manifest() -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: web}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: {BUSYBOX}
          command: [sh, -c, 'echo "$NODE" > /tmp/index.html && exec httpd -f -p 80 -h /tmp']
          env: [{{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]
          readinessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{selector: {{app: web}}, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: asks}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: asks, image: "{BUSYBOX}", command: [sleep, "100000"]}}]
"#
    )
}

/// The service is answered by the pods of all nodes; what is ready is known to kube-proxy a little later.
fn wait_answers(kubernetes: &Kubernetes, nodes: &str) {
    let ask =
        "for i in $(seq 60); do timeout 5 wget -q -O - http://web.default.svc.cluster.local; done | sort -u";
    wait_until("answers of all nodes", Duration::from_secs(120), Duration::from_millis(500), || {
        Ok(kubernetes.exec("asks", ask).is_ok_and(|answers| answers == nodes))
    })
    .unwrap();
}

#[test]
fn pods_on_three_nodes_find_each_other_by_name_and_outlive_the_programs_of_their_node() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut kubernetes = Kubernetes::start(3).unwrap();
    let nodes: String = kubernetes.nodes().iter().map(|node| format!("{node}\n")).collect();
    kubernetes.apply(&manifest()).unwrap();
    kubernetes.kubectl(["rollout", "status", "daemonset/web", "--timeout=300s"]).unwrap();
    kubernetes.kubectl(["wait", "--for=condition=Ready", "pod/asks", "--timeout=300s"]).unwrap();
    wait_answers(&kubernetes, &nodes);

    let begun = |kubernetes: &Kubernetes| {
        let pods = kubernetes.get(&["pods", "--selector=app=web"]).unwrap();
        let of = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
        pods["items"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let before = begun(&kubernetes);
    for daemon in [Daemon::Kubelet, Daemon::Containerd, Daemon::Proxy] {
        kubernetes.restart(1, daemon).unwrap();
    }
    wait_answers(&kubernetes, &nodes);
    assert_eq!(begun(&kubernetes), before, "containers were started anew");
    drop(kubernetes);
    check.finish().unwrap();
}

/// Directories of runs of process `pid`: files and control groups.
fn remains(base: &Path, pid: u32) -> Vec<PathBuf> {
    let groups = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let places = groups.chain([PathBuf::from("/sys/fs/cgroup"), base.to_owned()]);
    let inside = places.flat_map(|place| std::fs::read_dir(place).into_iter().flatten().flatten());
    let runs = inside.map(|entry| entry.path());
    let name = format!("sheep-k8s-{pid}-");
    runs.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&name)).collect()
}

#[test]
#[ignore = "make e2e"]
fn nothing_remains_of_a_run_that_is_killed() {
    const READY: &str = "E2E_WHEN_READY";
    if let Some(file) = std::env::var_os(READY) {
        // This is the run.
        let _kubernetes = Kubernetes::start(1).unwrap();
        std::fs::write(file, "").unwrap();
        std::thread::sleep(Duration::from_secs(600));
        panic!("nobody has killed this");
    }
    let _one = serial();
    let check = LeakCheck::start();
    let scratch = Scratch::new("killed").unwrap();
    let (base, ready) = (scratch.path().parent().unwrap(), scratch.path().join("ready"));
    let name = "bare::nothing_remains_of_a_run_that_is_killed";
    let run = Spec::new("run", std::env::current_exe().unwrap()).args(["--exact", name, "--include-ignored"]);
    let mut run = run.env(READY, &ready).log(scratch.path().join("log")).spawn().unwrap();
    wait_until("the run", Duration::from_secs(600), Duration::from_millis(100), || {
        assert!(run.is_running(), "{}", run.log_text());
        Ok(ready.exists())
    })
    .unwrap();
    assert!(remains(base, run.pid()).len() > 1);
    run.kill();
    let gone = || Ok(remains(base, run.pid()).is_empty());
    wait_until("everything to be removed", Duration::from_secs(120), Duration::from_millis(100), gone)
        .unwrap();
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        let said = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        said.contains(&format!("sheep-k8s-{}-", run.pid()))
    });
    assert_eq!(left.map(|process| process.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
    drop(run);
    drop(scratch);
    check.finish().unwrap();
}
