//! From JSON to text, without kubectl.

use super::describe;
use super::inside::Inside;
use super::kubectl::Problem;
use super::objects::{KubeNode, Pod, Wish, Workload};
use super::preflight::{Findings, Level, Rights, checks, text as preflight_text, worst};
use super::seen::{Seen, blame_nodes};
use super::status::{judge, text};
use super::volumes::{self, Users};
use serde_json::{Value, json};
use std::path::Path;

/// An answer as the tests of the program have it too.
fn file(name: &str) -> Value {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes/healthy").join(format!("{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn items<T>(name: &str, read: fn(&Value) -> T) -> Vec<T> {
    file(name)["items"].as_array().unwrap().iter().map(read).collect()
}

fn inside() -> Inside {
    let [info, members, vdis, check] =
        ["dog-cluster-info", "dog-node-list", "dog-vdi-list", "dog-cluster-check"].map(file);
    Inside::read(&info, &members, &vdis, &check)
}

/// All is well.
fn healthy() -> Seen {
    Seen {
        namespace: None,
        wishes: Ok(items("sheepdogclusters", Wish::read)),
        pods: Ok(items("pods-ours", Pod::read)),
        workloads: Ok(items("workloads", Workload::read)),
        nodes: Ok(items("nodes", KubeNode::read)),
        inside: Ok(inside()),
    }
}

fn silent() -> Seen {
    Seen { inside: Err(Problem::Other("no storage pod runs".into())), ..healthy() }
}

fn users() -> Users {
    let volumes = items("persistentvolumes", super::claims::Volume::read);
    let contents = items("volumesnapshotcontents", super::claims::Content::read);
    Users {
        volumes: volumes.into_iter().flatten().collect(),
        claims: items("persistentvolumeclaims", super::claims::Claim::read),
        pods: items("pods-all", Pod::read),
        contents: contents.into_iter().flatten().collect(),
        missing: Vec::new(),
    }
}

/// What is said when something is otherwise: whether it is well, the sentence and what to do.
#[track_caller]
fn said(seen: &Seen, ok: Option<bool>, sentence: &str, next: &str) {
    let verdict = judge(seen);
    assert!(verdict.sentence.contains(sentence), "{verdict:?}");
    assert!(verdict.next.contains(next), "{verdict:?}");
    assert_eq!(verdict.ok, ok, "{verdict:?}");
    let shown = text(seen, &verdict);
    assert!(shown.lines().nth(1).unwrap().starts_with("Next: "), "{shown}");
}

fn pods(change: impl Fn(&mut Pod)) -> Result<Vec<Pod>, Problem> {
    let mut pods = healthy().pods;
    pods.iter_mut().flatten().for_each(change);
    pods
}

fn without(component: &str) -> Result<Vec<Pod>, Problem> {
    Ok(healthy().pods.unwrap().into_iter().filter(|pod| pod.component != component).collect())
}

fn unready(pod: &mut Pod) {
    pod.ready = false;
    pod.trouble = Some("ImagePullBackOff: no such image".into());
}

#[test]
fn a_cluster_that_is_not_there() {
    let nothing =
        Seen { wishes: Err(Problem::NotServed), pods: Ok(vec![]), workloads: Ok(vec![]), ..silent() };
    said(&nothing, Some(false), "not installed", "helm install");
    let refused = Seen { wishes: Err(Problem::Other("refused.".into())), ..nothing.clone() };
    said(&refused, None, "cannot be asked: refused.", "kubectl get nodes");
    let left = Seen { wishes: Ok(vec![]), ..nothing.clone() };
    said(&left, Some(false), "does not run in this Kubernetes: only its definition", "used again");
    let named = Seen { namespace: Some("other".into()), ..left.clone() };
    said(&named, Some(false), "does not run in namespace other", "helm install");
    let operator =
        Ok(healthy().pods.unwrap().into_iter().filter(|pod| pod.component == "operator").collect());
    let idle = Seen { pods: operator, ..left.clone() };
    said(&idle, Some(false), "no SheepdogCluster", "make one");
    let gone = Seen { wishes: Ok(vec![]), ..silent() };
    said(&gone, Some(false), "SheepdogCluster is gone", "wait");
    let blind = Seen { pods: Err(Problem::Forbidden("User joe cannot".into())), ..silent() };
    said(&blind, None, "User joe cannot.", "-n");
}

#[test]
fn a_cluster_that_does_not_answer() {
    let no_operator = Seen { pods: Ok(vec![]), ..silent() };
    said(&no_operator, Some(false), "operator does not work, and no storage", "helm upgrade");
    let no_storage = Seen { pods: without("storage"), ..silent() };
    said(&no_storage, Some(false), "There is no storage pod.", "nodeSelector");
    let mut told = silent();
    told.pods = without("storage");
    told.wishes.as_mut().unwrap()[0].conditions[0].status = "False".into();
    told.wishes.as_mut().unwrap()[0].conditions[0].message = "Nodes answer with another key.".into();
    said(&told, Some(false), "another key.", "see what it says");
    // What a node without a cluster says is not for somebody who has an operator.
    let mut founding = Inside::default();
    (founding.info.health, founding.info.message) = ("no cluster".into(), "make one here".into());
    told.inside = Ok(founding);
    said(&told, Some(false), "another key.", "see what it says");
    let mut pending = silent();
    pending.pods = pods(|pod| {
        if pod.component == "storage" {
            unready(pod)
        }
    });
    said(&pending, Some(false), "None of 3 storage pods is ready.", "see below why");
    let shown = text(&pending, &judge(&pending));
    assert!(shown.contains("sheepdog-storage-x7k2p  worker-1  ImagePullBackOff: no such image"), "{shown}");
    said(&silent(), None, "cannot be asked: no storage pod runs.", "pods/exec --namespace sheepdog");
    let mut forbidden = healthy();
    forbidden.workloads.as_mut().unwrap()[0].made = 0;
    forbidden.pods = without("storage");
    forbidden.inside = silent().inside;
    said(
        &forbidden,
        Some(false),
        "no storage pod",
        "kubectl describe daemonset --namespace sheepdog sheepdog-storage",
    );
    let shown = text(&forbidden, &judge(&forbidden));
    assert!(shown.contains("3 of 3 pods are not even made"), "{shown}");
}

#[test]
fn a_cluster_that_answers() {
    said(&healthy(), Some(true), "All copies are where they belong.", "nothing to do.");
    // Who may see nothing else than pods learns as much.
    let narrow =
        Seen { wishes: Err(Problem::Forbidden("no".into())), nodes: Err(Problem::NotServed), ..healthy() };
    said(&narrow, Some(true), "All copies", "nothing");
    let mut full = healthy();
    full.inside.as_mut().unwrap().info.used = (90, 100);
    said(&full, Some(true), "All copies", "90% of the capacity");
    let mut lost = healthy();
    lost.inside.as_mut().unwrap().findings = vec!["Object 3 of VDI x is lost.".into(), "And more.".into()];
    said(&lost, Some(false), "Object 3 of VDI x is lost.", "1 more");
    assert!(text(&lost, &judge(&lost)).ends_with("Found by looking at all nodes:\n  And more."));
    let alone = Seen { pods: without("operator"), ..healthy() };
    said(&alone, Some(false), "but the operator does not work", "install it again");
    let mut gateway = healthy();
    gateway.pods = pods(|pod| {
        if pod.name == "sheepdog-gateway-d8m4q" {
            unready(pod)
        }
    });
    said(&gateway, Some(false), "but 1 pod is not ready.", "see below why");
    let mut two = healthy();
    two.wishes.as_mut().unwrap()[0].namespace = "elsewhere".into();
    said(&two, None, "more than one Sheepdog, in the namespaces elsewhere, sheepdog.", "-n");
}

#[test]
fn what_is_next_when_copies_are_missing() {
    let with = |left, paused| {
        let mut seen = healthy();
        let info = &mut seen.inside.as_mut().unwrap().info;
        info.health = "recovering".into();
        info.message = "1 node brings its copies up to date.".into();
        (info.recovering, info.left) = (1, (7, 1 << 20, left, paused));
        seen
    };
    said(&with(150_000, false), Some(false), "up to date.", "for about 2 min more");
    said(&with(0, false), Some(false), "up to date.", "wait: copies are being made.");
    said(&with(0, true), Some(false), "up to date.", "spec.recovery.paused");
    let shown = |seen: &Seen| text(seen, &judge(seen));
    assert!(shown(&with(150_000, false)).contains("7 objects on 1 node, about 1 MiB and 2 min left"));
    assert!(shown(&with(0, true)).contains("about 1 MiB: paused"));
    let mut off = with(0, false);
    off.nodes.as_mut().unwrap()[2].ready = false;
    said(&off, Some(false), "up to date.", "kubectl delete node worker-3");
}

#[test]
fn why_a_pod_is_not_ready() {
    let why =
        |status: Value| Pod::read(&json!({"metadata": {"name": "p"}, "status": status})).trouble.unwrap();
    let pulling = json!({"phase": "Pending", "containerStatuses": [
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling\n image \"x\""}}}]});
    assert_eq!(why(pulling), "ImagePullBackOff: Back-off pulling image \"x\"");
    let crashing = json!({"phase": "Running", "containerStatuses": [
        {"ready": true, "state": {"running": {}}},
        {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
         "lastState": {"terminated": {"exitCode": 1, "message": "one\nsheep: no key\n\n"}}}]});
    assert_eq!(why(crashing), "CrashLoopBackOff: ended with exit code 1: sheep: no key");
    let killed = json!({"phase": "Running", "containerStatuses": [
        {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]});
    assert_eq!(why(killed), "ended because its memory was not enough");
    let waiting = json!({"phase": "Running", "containerStatuses": [
        {"name": "sheep", "ready": false, "state": {"running": {"startedAt": "2026-11-22T18:00:00Z"}}}]});
    assert_eq!(why(waiting), "container sheep runs since 2026-11-22T18:00:00Z, but is not ready");
    let homeless = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."}]});
    assert_eq!(why(homeless), "no node for it: 0/3 nodes are available: 3 Insufficient cpu.");
    let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."});
    assert_eq!(why(evicted), "Evicted: The node was low on memory.");
    let ending = Pod::read(&json!({"metadata": {"deletionTimestamp": "2026-11-22T18:00:00Z"}}));
    assert_eq!(ending.trouble.as_deref(), Some("is ending"));
    assert!(why(json!({"phase": "Running"})).contains("does not say why"));
    let mut pods = vec![Pod { node: "worker-1".into(), ..ending }];
    blame_nodes(&mut pods, &[KubeNode { name: "worker-1".into(), ..KubeNode::default() }]);
    assert_eq!(pods[0].trouble.as_deref(), Some("its node is not ready"));
}

#[test]
fn volumes_that_only_one_side_knows() {
    let (mut inside, mut users) = (inside(), users());
    inside.vdis.retain(|vdi| vdi.id != 3);
    users.volumes[1].handle.cluster = "ffff".into();
    let table = volumes::table(&inside, &users);
    let line = |part: &str| table.lines().find(|line| line.contains(part)).unwrap_or(&table).to_owned();
    assert!(line("default/first").contains("VDI is gone"), "{table}");
    assert!(line("shop/data-db-0").contains("other cluster"), "{table}");
    assert!(line("shop/new").starts_with("shop/new        Pending"), "{table}");
    assert!(!table.contains("default/other"), "a claim of another driver:\n{table}");
    let row = describe::find(&inside, &users, "default/first").unwrap();
    assert!(describe::volume(&row, &inside, &users).contains("\n! The cluster has no such VDI any more"));
    let row = describe::find(&inside, &users, "shop/data-db-0").unwrap();
    assert!(describe::volume(&row, &inside, &users).contains("\n! It is of cluster ffff"));
    users.missing.push("Pods are not shown: User joe cannot".into());
    assert!(volumes::table(&inside, &users).ends_with("\nPods are not shown: User joe cannot"));
}

#[test]
fn a_volume_by_any_of_its_names() {
    let (inside, mut users) = (inside(), users());
    let handle = format!("{}-3", inside.info.id);
    let name = inside.vdis[0].name.clone();
    for word in ["default/first", "first", &handle, &name] {
        assert_eq!(describe::find(&inside, &users, word).unwrap().vdi.unwrap().id, 3, "{word}");
    }
    assert_eq!(describe::find(&inside, &users, "golden-image").unwrap().vdi.unwrap().id, 7);
    assert!(matches!(describe::find(&inside, &users, "second"), Err(Problem::NotFound(_))));
    users.volumes[1].claim = "shop/first".into();
    let several = describe::find(&inside, &users, "first").unwrap_err().to_string();
    assert!(several.contains("default/first, shop/first"), "{several}");
}

#[test]
fn what_holds_a_volume_up_is_told() {
    let (inside, mut users) = (inside(), users());
    let claim = users.claims.iter_mut().find(|claim| claim.name == "default/first").unwrap();
    claim.sizes.0 = "20Gi".into();
    let waiting = Pod {
        namespace: "default".into(),
        name: "second".into(),
        node: "worker-3".into(),
        phase: "Pending".into(),
        claims: vec!["first".into()],
        ..Pod::default()
    };
    users.pods.push(waiting);
    let row = describe::find(&inside, &users, "default/first").unwrap();
    let told = describe::volume(&row, &inside, &users);
    assert!(told.contains("\n! It is to have 20Gi and has 10Gi"), "{told}");
    assert!(told.contains("\n! Pod default/second waits on worker-3 for what worker-1 still has"), "{told}");
}

/// All is as it should be before an installation.
fn ready() -> Findings {
    Findings {
        namespace: "sheepdog".into(),
        client: Some("v1.35.4".into()),
        server: Ok("v1.35.4".into()),
        nodes: healthy().nodes,
        snapshots: Ok(true),
        namespace_object: Ok(file("namespace")),
        wishes: Err(Problem::NotServed),
        driver: Ok(Value::Null),
        rights: Ok(Rights::All),
    }
}

#[track_caller]
fn found(findings: &Findings, level: Level, words: &str) {
    let checks = checks(findings);
    let text = preflight_text(findings, &checks);
    assert!(checks.iter().any(|check| check.level == level && check.words.contains(words)), "{text}");
    assert_eq!(worst(&checks), level, "{text}");
}

fn on_nodes(change: impl Fn(&mut KubeNode)) -> Findings {
    let mut findings = ready();
    findings.nodes.iter_mut().flatten().for_each(change);
    findings
}

#[test]
fn what_a_cluster_must_have() {
    assert_eq!(worst(&checks(&ready())), Level::Ok);
    found(&Findings { server: Ok("v1.32.9".into()), ..ready() }, Level::Problem, "upgrade it to 1.33");
    found(&Findings { client: Some("v1.31.0".into()), ..ready() }, Level::Warning, "v1.31.0; better");
    found(&Findings { server: Err(Problem::Other("refused".into())), ..ready() }, Level::Unknown, "refused");
    found(&Findings { snapshots: Ok(false), ..ready() }, Level::Warning, "external-snapshotter");
    let lacking = Ok(Rights::Lacking(vec!["secrets".into()]));
    found(&Findings { rights: lacking, ..ready() }, Level::Problem, "you may not make secrets");
    found(&Findings { rights: Ok(Rights::Enough), ..ready() }, Level::Warning, "escalate");
    let hidden = Err(Problem::Forbidden("User joe cannot list nodes".into()));
    found(&Findings { nodes: hidden, ..ready() }, Level::Unknown, "User joe");
}

#[test]
fn what_nodes_must_have() {
    found(&on_nodes(|node| node.os = "windows".into()), Level::Problem, "no Linux node");
    found(&on_nodes(|node| node.kernel = "6.8.0-51-generic".into()), Level::Warning, "before 6.9");
    found(&on_nodes(|node| node.kubelet = "v1.32.0".into()), Level::Warning, "v1.32.0 of worker-1, worker-2");
    found(&on_nodes(|node| node.ready = false), Level::Warning, "not ready");
    found(&on_nodes(|node| node.architecture = "s390x".into()), Level::Warning, "neither amd64");
    found(&on_nodes(|node| node.disk = "5Gi".into()), Level::Warning, "5 GiB the first");
    found(&on_nodes(|node| node.disk = String::new()), Level::Problem, "does not know the disk");
    let taint = |node: &mut KubeNode| node.taints = vec!["dedicated=db:NoSchedule".into()];
    found(&on_nodes(taint), Level::Problem, "storage.tolerations");
    // Taints that Kubernetes itself sets keep no DaemonSet away.
    let full = |node: &mut KubeNode| node.taints = vec!["node.kubernetes.io/unschedulable:NoSchedule".into()];
    assert_eq!(worst(&checks(&on_nodes(full))), Level::Ok);
    found(
        &on_nodes(|node| {
            if node.name != "worker-1" {
                taint(node)
            }
        }),
        Level::Warning,
        "there is 1 copy only",
    );
    let mut many = ready();
    many.nodes = (1..=21)
        .map(|n| Ok(KubeNode { name: n.to_string(), ..healthy().nodes.unwrap()[0].clone() }))
        .collect();
    found(&many, Level::Problem, "42 members, and at most 40");
}

#[test]
fn what_must_not_be_there() {
    let other = Findings { wishes: healthy().wishes, namespace: "mine".into(), ..ready() };
    found(&other, Level::Problem, "in namespace sheepdog already");
    found(&Findings { wishes: healthy().wishes, ..ready() }, Level::Warning, "helm upgrade");
    let left = Findings { driver: Ok(file("csidriver")), ..ready() };
    found(&left, Level::Problem, "of sheepdog/sheepdog is there, and no SheepdogCluster");
    found(&left, Level::Problem, "kubectl delete csidriver");
    let mut strict = ready();
    strict.namespace_object.as_mut().unwrap()["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] =
        "baseline".into();
    found(
        &strict,
        Level::Problem,
        "kubectl label namespace sheepdog pod-security.kubernetes.io/enforce=privileged",
    );
    let mut ending = ready();
    ending.namespace_object.as_mut().unwrap()["status"]["phase"] = "Terminating".into();
    found(&ending, Level::Problem, "being deleted");
}
