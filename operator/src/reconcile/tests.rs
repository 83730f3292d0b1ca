//! Decisions, from what was observed.

use super::founding::{self, Founding};
use super::leaving::Leaving;
use super::observed::{ClusterSecret, Founder, Observed, Workload, best_witness};
use super::orders::{self, Order};
use super::redundancy;
use super::rolling::{self, Rolling};
use super::status::{self, Outcome};
use super::testing::{CLUSTER, empty, member, pod, serving, sheepdog, valid};
use super::validate::{quantity, validate};

mod told;

fn step(observed: &Observed) -> Founding {
    founding::next(&valid(observed), observed)
}

fn roll(observed: &Observed) -> Rolling {
    rolling::next(&valid(observed), observed, "new")
}

fn given(observed: &Observed) -> Vec<Order> {
    orders::next(&valid(observed), observed, &Leaving::Done)
}

fn reason(step: Founding) -> (&'static str, String) {
    match step {
        Founding::Wait { reason, message } => (reason, message),
        other => panic!("{other:?}"),
    }
}

fn secret() -> ClusterSecret {
    ClusterSecret { has_key: true, resource_version: "1".into(), ..ClusterSecret::default() }
}

#[test]
fn a_cluster_is_made_once_step_by_step() {
    let mut observed = empty(&["a", "b"]);
    assert_eq!(step(&observed), Founding::MakeKey);
    observed.secret = Some(secret());
    assert_eq!(reason(step(&observed)).0, "Starting");
    observed.pods = vec![pod("b", ""), pod("a", "")];
    let founder = Founder { node: "a".into(), id: "a-id".into() };
    assert_eq!(step(&observed), Founding::Choose(founder.clone()));
    observed.secret.as_mut().unwrap().founder = Some(founder);
    assert_eq!(step(&observed), Founding::Found("10.0.0.1".into()));
    // The operator died after its order: the node has a cluster, which is found.
    observed.pods[1] = pod("a", CLUSTER);
    assert_eq!(step(&observed), Founding::Remember(CLUSTER.into()));
    observed.secret.as_mut().unwrap().cluster_id = Some(CLUSTER.into());
    assert_eq!(step(&observed), Founding::Done);
}

#[test]
fn nobody_else_makes_a_cluster_when_the_chosen_node_is_away() {
    let mut observed = empty(&["a", "b"]);
    observed.secret = Some(secret());
    observed.secret.as_mut().unwrap().founder = Some(Founder { node: "a".into(), id: "a-id".into() });
    observed.pods = vec![pod("b", "")];
    assert_eq!(reason(step(&observed)).0, "FounderAway");
    // The same machine with another directory is another node.
    let mut other = pod("a", "");
    other.answer.as_mut().unwrap().id = "another".into();
    observed.pods.push(other);
    assert_eq!(reason(step(&observed)).0, "FounderAway");
}

#[test]
fn what_was_made_is_never_made_again() {
    let mut observed = serving(&["a", "b"]);
    observed.pods = vec![pod("c", "")];
    let (word, message) = reason(step(&observed));
    assert_eq!(word, "NoData");
    assert!(message.contains(CLUSTER), "{message}");
}

#[test]
fn data_of_an_earlier_installation_are_adopted() {
    let mut observed = empty(&["a", "b"]);
    observed.secret = Some(secret());
    observed.pods = vec![pod("a", ""), pod("b", CLUSTER)];
    assert_eq!(step(&observed), Founding::Remember(CLUSTER.into()));
    observed.pods[0] = pod("a", "another");
    assert_eq!(reason(step(&observed)).0, "SeveralClusters");
}

#[test]
fn a_node_with_another_key_keeps_a_cluster_from_being_made() {
    let mut observed = empty(&["a", "b"]);
    observed.secret = Some(secret());
    let mut refused = pod("a", "");
    refused.answer = None;
    refused.last_words = "/etc/sheepdog/key/key is not the key of the cluster that /d belongs to".into();
    observed.pods = vec![refused, pod("b", "")];
    let (word, message) = reason(step(&observed));
    assert_eq!(word, "OtherKey");
    assert!(message.contains("node a") && message.contains("Secret sheepdog-key"), "{message}");
    // Its directory was emptied.
    observed.pods[0].answer = pod("a", "").answer;
    assert!(matches!(step(&observed), Founding::Choose(_)));
}

/// They might have data of a cluster, and a second one would hide them.
#[test]
fn no_cluster_is_made_without_nodes_that_do_not_answer_unless_somebody_says_so() {
    let mut observed = empty(&["a", "b", "c"]);
    observed.secret = Some(secret());
    observed.pods = vec![pod("b", ""), pod("c", "")];
    let (word, message) = reason(step(&observed));
    assert_eq!(word, "Starting");
    assert!(message.contains("sheepdogcluster sheepdog sheepdog.io/found-without=a`"), "{message}");
    let mut sheepdog = sheepdog();
    sheepdog.metadata.annotations = Some([("sheepdog.io/found-without".into(), "x, a".into())].into());
    let without = |observed: &Observed| founding::next(&validate(&sheepdog, observed).unwrap(), observed);
    assert_eq!(without(&observed), Founding::Choose(Founder { node: "b".into(), id: "b-id".into() }));
    // For those that it names, and for no others.
    observed.pods.pop();
    assert_eq!(reason(without(&observed)).0, "Starting");
    observed.nodes.clear();
    assert_eq!(reason(step(&observed)).0, "NoNodes");
}

/// Nobody makes a key anew that nodes with data do not have.
#[test]
fn a_secret_that_is_lost_is_not_made_anew_beside_a_cluster() {
    let mut observed = serving(&["a", "b"]);
    observed.secret = None;
    let (word, message) = reason(step(&observed));
    assert_eq!(word, "NoKey");
    assert!(message.contains("Secret sheepdog-key is lost") && message.contains("node a"), "{message}");
}

/// Of two clusters the one that the Secret remembers is looked at.
#[test]
fn only_nodes_of_the_cluster_say_how_it_is() {
    let mut pods = vec![pod("a", "other"), pod("b", CLUSTER), pod("c", CLUSTER), pod("d", "")];
    for (pod, applied) in pods.iter_mut().zip([90, 10, 20, 0]) {
        let info = &mut pod.answer.as_mut().unwrap().info;
        (info.primary, info.applied_index) = (true, applied);
    }
    let witness = |id: &str| best_witness(&pods, id).map(|pod| pod.node.as_str());
    assert_eq!((witness(CLUSTER), witness("nobody")), (Some("c"), None));
}

#[test]
fn a_node_is_replaced_only_while_all_copies_are_there() {
    let mut observed = serving(&["a", "b", "c"]);
    assert_eq!(roll(&observed), Rolling::Done);
    observed.pods[1].template = "old".into();
    observed.pods[2].template = "old".into();
    let unknown = observed.clone();
    let known = Workload { current: true, template: "new".into(), ..Workload::default() };
    observed.workloads = vec![known];
    assert_eq!(roll(&observed), Rolling::Replace("pod-b".into()));
    let waits = |observed: &Observed| match roll(observed) {
        Rolling::Wait(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(waits(&unknown).contains("does not know by what"), "it would come back as it was");
    let mut unseen = observed.clone();
    unseen.workloads[0].current = false;
    assert!(waits(&unseen).contains("does not know by what"));
    let mut recovering = observed.clone();
    recovering.cluster.as_mut().unwrap().info.nodes_recovering = 1;
    assert!(waits(&recovering).contains("1 storage nodes bring"));
    let mut down = observed.clone();
    down.cluster.as_mut().unwrap().nodes[0].state = "down".into();
    assert!(waits(&down).contains("not up: a"));
    let mut leaving = observed.clone();
    leaving.pods[0].leaving = true;
    assert!(waits(&leaving).contains("pod-a is ending"));
    let mut starting = observed.clone();
    starting.pods[0].ready = false;
    assert!(waits(&starting).contains("pod-a is not ready"));
    let mut disk = observed.clone();
    disk.cluster.as_mut().unwrap().info.health = "degraded".into();
    disk.cluster.as_mut().unwrap().info.message = "A disk has failed on c".into();
    assert!(waits(&disk).contains("A disk has failed on c"));
    // One that is slow to answer, but ready, has something to lose.
    let mut slow = observed.clone();
    slow.pods[2].answer = None;
    slow.cluster = None;
    assert!(waits(&slow).contains("no storage node says"));
    // Nobody would notice that the cluster does without that node already.
    let mut absent = observed.clone();
    absent.pods.remove(0);
    assert!(waits(&absent).contains("node a has no storage pod"));
    // A new pod would not come.
    let mut tainted = observed;
    let taint = || vec![("disk".to_owned(), String::new(), "NoSchedule".to_owned())];
    tainted.nodes[1].taints = taint();
    assert_eq!(roll(&tainted), Rolling::Replace("pod-c".into()));
    tainted.nodes[2].taints = taint();
    assert!(waits(&tainted).contains("a taint of node b"));
}

#[test]
fn a_pod_that_serves_nobody_is_replaced_at_once() {
    let mut observed = serving(&["a", "b", "c"]);
    observed.workloads = vec![Workload { current: true, template: "new".into(), ..Workload::default() }];
    observed.pods[2].template = "old".into();
    let replaced = Rolling::Replace("pod-c".into());
    let gone = |observed: &mut Observed, at: usize| {
        observed.pods[at].ready = false;
        observed.pods[at].answer = None;
    };
    gone(&mut observed, 2);
    // It may only be slow, and serve what others ask it for.
    assert!(matches!(roll(&observed), Rolling::Wait(_)));
    let mut ended = observed.clone();
    ended.pods[2].running = false;
    assert_eq!(roll(&ended), replaced);
    observed.cluster.as_mut().unwrap().nodes[2].state = "down".into();
    assert_eq!(roll(&observed), replaced, "the cluster does without it");
    // After a loss of power all of them start, which takes its time.
    gone(&mut observed, 1);
    assert!(matches!(roll(&observed), Rolling::Wait(_)));
}

#[test]
fn fewer_nodes_than_copies_are_whole() {
    let mut observed = serving(&["a"]);
    let info = &mut observed.cluster.as_mut().unwrap().info;
    info.health = "degraded".into();
    info.message = "1 of 3 copies".into();
    info.wanted_copies = 3;
    assert_eq!(redundancy::missing(&observed), None);
    // A disk that failed is mended by waiting, or by a person.
    let mut disk = observed.clone();
    disk.cluster.as_mut().unwrap().info.nodes_with_failed_disks = 1;
    assert_eq!(redundancy::missing(&disk).as_deref(), Some("1 of 3 copies"));
    let nodes = &mut observed.cluster.as_mut().unwrap().nodes;
    nodes.extend(["b", "c"].map(|name| member(name, "storage", "up")));
    assert_eq!(redundancy::missing(&observed).as_deref(), Some("1 of 3 copies"));
    // What new volumes get says nothing of those that there are.
    observed.cluster.as_mut().unwrap().info.wanted_copies = 4;
    assert_eq!(redundancy::missing(&observed), None);
}

/// What it had was copied to others: nobody waits for a node that is out.
#[test]
fn a_node_that_is_out_stops_nothing() {
    let mut observed = serving(&["a", "b", "c", "d"]);
    observed.workloads = vec![Workload { current: true, template: "new".into(), ..Workload::default() }];
    for pod in &mut observed.pods {
        pod.template = "old".into();
    }
    let view = observed.cluster.as_mut().unwrap();
    view.nodes[0].state = "out".into();
    let dead = &mut observed.pods[0];
    (dead.ready, dead.leaving, dead.answer) = (false, true, None);
    assert_eq!(redundancy::missing(&observed), None);
    assert_eq!(roll(&observed), Rolling::Replace("pod-b".into()));
    // Down it may have what is nowhere else.
    observed.cluster.as_mut().unwrap().nodes[0].state = "down".into();
    assert!(matches!(roll(&observed), Rolling::Wait(_)));
}

#[test]
fn settings_that_differ_are_changed_and_no_others() {
    let mut observed = serving(&["a", "b", "c"]);
    assert_eq!(given(&observed), []);
    let there = observed.cluster.as_mut().unwrap().info.settings.as_mut().unwrap();
    there.out_delay_ms = Some(1);
    there.lease_ms = Some(77);
    match &given(&observed)[..] {
        [Order::ChangeSettings(change)] => {
            assert_eq!(change.out_delay_ms, Some(600_000));
            assert_eq!((change.copies, change.lease_ms), (None, None));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_is_removed_when_kubernetes_has_it_no_more_and_its_place_is_given_away() {
    let removed = |observed: &Observed| -> Vec<String> {
        let of = |order| match order {
            Order::Remove { id, .. } => Some(id),
            _ => None,
        };
        given(observed).into_iter().filter_map(of).collect()
    };
    let mut observed = serving(&["a", "b", "c"]);
    observed.nodes.retain(|node| node.name != "c");
    assert_eq!(removed(&observed), [""; 0], "it still runs");
    let view = observed.cluster.as_mut().unwrap();
    view.ring_members.retain(|id| id != "c-id");
    view.nodes[2] = member("c", "storage", "out");
    view.info.nodes_recovering = 1;
    assert_eq!(removed(&observed), [""; 0], "what it had is being copied");
    observed.cluster.as_mut().unwrap().info.nodes_recovering = 0;
    assert_eq!(removed(&observed), ["c-id"]);
    // Kubernetes knows it: it may come back.
    observed.nodes = serving(&["a", "b", "c"]).nodes;
    observed.pods.retain(|pod| pod.node != "c");
    assert_eq!(removed(&observed), [""; 0]);
    // Another one runs in its place, with an empty directory.
    let mut other = pod("c", CLUSTER);
    other.answer.as_mut().unwrap().id = "c2-id".into();
    observed.pods.push(other);
    assert_eq!(removed(&observed), ["c-id"]);
    // Gateways have nothing to lose.
    let mut gateways = serving(&["a"]);
    gateways.cluster.as_mut().unwrap().nodes.push(member("gone", "gateway", "down"));
    let mut down = member("a", "gateway", "down");
    down.id = "a1-id".into();
    gateways.cluster.as_mut().unwrap().nodes.push(down);
    assert_eq!(removed(&gateways), ["gone-id"]);
    // Its directory was lost, and another one runs in its place.
    let mut successor = member("a", "gateway", "up");
    successor.id = "a2-id".into();
    gateways.cluster.as_mut().unwrap().nodes.push(successor);
    assert_eq!(removed(&gateways), ["gone-id", "a1-id"]);
    let cluster = valid(&gateways);
    gateways.nodes.clear();
    let orders = orders::next(&cluster, &gateways, &Leaving::Done);
    assert_eq!(orders, [], "a Kubernetes without nodes is one that was not seen");
}

#[test]
fn empty_directories_of_all_nodes_are_told_as_such() {
    let mut observed = serving(&["a", "b"]);
    observed.cluster = None;
    observed.pods = vec![pod("a", ""), pod("b", "")];
    let (reason, message) = reason(step(&observed));
    assert_eq!(reason, "NoData");
    assert!(message.contains("kubectl -n storage delete secret sheepdog-key"), "{message}");
    observed.pods[1].answer = None;
    assert_eq!(self::reason(step(&observed)).0, "NoAnswer");
}

fn outcome(observed: &Observed) -> Outcome<'_> {
    Outcome::nothing(observed)
}

fn told(status: &crate::crd::SheepdogClusterStatus) -> Vec<String> {
    let of = |it: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
        format!("{}={} {}", it.type_, it.status, it.reason)
    };
    status.conditions.iter().map(of).collect()
}

#[test]
fn what_cannot_work_is_refused_in_a_sentence() {
    let mut observed = serving(&["a"]);
    let mut cluster = sheepdog();
    cluster.spec.storage.directory.max_size = "1Mi".into();
    assert!(validate(&cluster, &observed).unwrap_err().contains("64Mi"));
    cluster.spec.storage.directory.max_size = "much".into();
    assert!(validate(&cluster, &observed).unwrap_err().contains("no size"));
    cluster.metadata.name = Some("a".repeat(41));
    assert!(validate(&cluster, &observed).unwrap_err().contains("longer than 40"));
    let mut misnamed = observed.clone();
    misnamed.misnamed = Some("first".into());
    assert!(validate(&cluster, &misnamed).unwrap_err().contains("SheepdogCluster called first"));
    observed.driver_of = Some("storage/whatever".into());
    assert!(validate(&cluster, &observed).unwrap_err().contains("longer than 40"), "it is its own");
    observed.driver_of = Some("elsewhere/sheepdog".into());
    let why = validate(&cluster, &observed).unwrap_err();
    assert!(why.contains("belongs to SheepdogCluster elsewhere/sheepdog"), "{why}");
    observed.older = Some("first".into());
    assert!(validate(&cluster, &observed).unwrap_err().contains("older SheepdogCluster first"));
    observed.cluster = None;
    let refused = Outcome { refusal: Some("because".into()), ..outcome(&observed) };
    let status = status::status(&cluster, &refused);
    assert_eq!(told(&status)[3], "Progressing=False Refused");
    assert!(status.conditions[3].message.contains("because"));
}

/// One bad disk keeps no other node from working.
#[test]
fn a_node_whose_disk_is_too_small_is_left_out_and_that_is_said() {
    let mut observed = empty(&["a", "b", "c"]);
    for disk in [Some(0), None] {
        observed.nodes[1].disk = disk;
        let cluster = valid(&observed);
        let expected = (vec!["a".into(), "c".into()], vec!["b".into()]);
        assert_eq!((cluster.storage_nodes, cluster.too_small), expected);
    }
    let outcome = Outcome { too_small: vec!["b".into()], ..outcome(&observed) };
    let condition = status::status(&sheepdog(), &outcome).conditions.pop().unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", "TooSmall"));
    assert!(
        condition.message.contains("in which no node can work, or it says nothing of them: b."),
        "{}",
        condition.message
    );
    // One that has data stays where it is, and is not drained.
    let mut observed = serving(&["a", "b", "c"]);
    observed.nodes[1].disk = Some(0);
    let cluster = valid(&observed);
    assert_eq!((cluster.kept, cluster.leaving), (vec!["b".to_owned()], Vec::new()));
}

#[test]
fn nodes_with_taints_and_without_labels_store_nothing() {
    let mut observed = empty(&["a", "b", "c"]);
    observed.nodes[1].taints = vec![("node-role".into(), String::new(), "NoSchedule".into())];
    observed.nodes[2].labels.clear();
    let mut cluster = sheepdog();
    assert_eq!(validate(&cluster, &observed).unwrap().storage_nodes, ["a"]);
    cluster.spec.storage.tolerations =
        serde_json::from_str(r#"[{"key": "node-role", "operator": "Exists", "effect": "NoSchedule"}]"#)
            .unwrap();
    assert_eq!(validate(&cluster, &observed).unwrap().storage_nodes, ["a", "b"]);
    cluster.spec.storage.tolerations =
        serde_json::from_str(r#"[{"key": "node-role", "value": "x"}]"#).unwrap();
    assert_eq!(validate(&cluster, &observed).unwrap().storage_nodes, ["a"]);
}

#[test]
fn sizes_are_read_and_written() {
    assert_eq!(quantity("100"), Some(100));
    assert_eq!(quantity("61255492Ki"), Some(61_255_492 << 10));
    assert_eq!(quantity("1.5Gi"), Some(3 << 29));
    assert_eq!(quantity("2G"), Some(2_000_000_000));
    for wrong in ["", "Gi", "1.Gi", "-1", "1e3", "20E99", "99999999999Pi", "1.5.5Gi"] {
        assert_eq!(quantity(wrong), None, "{wrong}");
    }
    assert_eq!(status::human(0), "0");
    assert_eq!(status::human(1023), "1023");
    assert_eq!(status::human(1 << 20), "1.0Mi");
    assert_eq!(status::human(1_234_567_890), "1.1Gi");
    assert_eq!(status::human(u64::MAX), "15Ei", "rounded down");
}
