//! What people are told.

use super::{outcome, step, told};
use crate::reconcile::observed::Observed;
use crate::reconcile::status::{self, Outcome};
use crate::reconcile::testing::{CLUSTER, pod, serving, sheepdog};
use crate::reconcile::validate::validate;

#[test]
fn a_status_says_how_it_is() {
    let observed = serving(&["a", "b", "c"]);
    let status = status::status(&sheepdog(), &outcome(&observed));
    assert_eq!(
        told(&status),
        [
            "Available=True Serving",
            "Degraded=False AllCopies",
            "Recovering=False Done",
            "Progressing=False Done",
            "RingsApplied=True OneRing",
            "CertificatesValid=True Valid",
            "NodesApplied=True AllNodes",
        ]
    );
    assert_eq!((status.health.as_str(), status.nodes.summary.as_str()), ("ok", "3/3"));
    assert_eq!((status.capacity.used.as_str(), status.capacity.total.as_str()), ("1.0Gi", "180Gi"));
    assert_eq!((status.ring_count, status.rings[0].members, status.epoch), (1, 3, 3));
    assert_eq!(status.recovery.summary, "-");
}

#[test]
fn the_time_of_a_condition_is_that_of_its_last_change_and_changes_are_told() {
    let mut observed = serving(&["a", "b", "c"]);
    let mut cluster = sheepdog();
    let first = status::status(&cluster, &outcome(&observed));
    cluster.status = Some(first.clone());
    observed.now = k8s_openapi::jiff::Timestamp::from_second(2_000_000).unwrap();
    let same = status::status(&cluster, &outcome(&observed));
    assert_eq!(same, first, "nothing is written where nothing has changed");
    assert_eq!(status::transitions(&first, &same), []);
    observed.cluster.as_mut().unwrap().info.health = "degraded".into();
    observed.cluster.as_mut().unwrap().info.message = "start c again".into();
    let worse = status::status(&cluster, &outcome(&observed));
    let news = status::transitions(&first, &worse);
    assert_eq!(news.len(), 1);
    assert_eq!((news[0].reason.as_str(), news[0].warning), ("DegradedFewerCopies", true));
    assert_eq!(news[0].note, "start c again");
    let time = |status: &crate::crd::SheepdogClusterStatus, at: usize| {
        status.conditions[at].last_transition_time.clone()
    };
    assert_eq!(time(&worse, 0), time(&first, 0));
    assert_ne!(time(&worse, 1), time(&first, 1));
}

#[test]
fn what_was_known_stays_known_while_nobody_answers() {
    let mut observed = serving(&["a", "b", "c"]);
    let mut cluster = sheepdog();
    cluster.status = Some(status::status(&cluster, &outcome(&observed)));
    observed.cluster = None;
    observed.pods.truncate(1);
    observed.pods[0].answer.as_mut().unwrap().info.message = "Start b and c again.".into();
    let status = status::status(&cluster, &outcome(&observed));
    assert_eq!(status.cluster_id, CLUSTER);
    assert_eq!(status.health, "no quorum");
    assert_eq!(told(&status)[..2], ["Available=False NoQuorum", "Degraded=Unknown Unknown"]);
    assert_eq!(status.conditions[0].message, "Start b and c again.");
}

#[test]
fn several_rings_are_kept_for_later_and_that_is_said() {
    let observed = serving(&["a"]);
    let mut cluster = sheepdog();
    assert!(!validate(&cluster, &observed).unwrap().many_rings);
    cluster.spec.rings.topology_key = Some("topology.kubernetes.io/zone".into());
    assert!(validate(&cluster, &observed).unwrap().many_rings);
    let status = status::status(&cluster, &Outcome { many_rings: true, ..outcome(&observed) });
    assert_eq!(told(&status)[4], "RingsApplied=False OneRingOnly");
}

#[test]
fn data_of_something_else_are_told_beside_a_cluster_that_serves() {
    let mut observed = serving(&["a", "b", "c"]);
    let told = |observed: &Observed| {
        let condition = status::status(&sheepdog(), &outcome(observed)).conditions.pop().unwrap();
        assert_eq!(condition.status, "False");
        (condition.reason, condition.message)
    };
    observed.pods.push(pod("d", "another"));
    let (word, message) = told(&observed);
    assert!(word == "OtherCluster" && message.contains("Node d has data of cluster another"), "{message}");
    observed.pods[3].answer = None;
    observed.pods[3].last_words = "/k is not the key of the cluster that /d belongs to".into();
    let (word, message) = told(&observed);
    assert!(word == "OtherKey" && message.contains("Node d does not start"), "{message}");
}

#[test]
fn lost_objects_are_told_though_all_copies_are_there() {
    let mut observed = serving(&["a", "b", "c"]);
    for pod in &mut observed.pods[1..] {
        pod.answer.as_mut().unwrap().info.damage = vec!["VDI v has lost objects".into()];
    }
    let status = status::status(&sheepdog(), &outcome(&observed));
    assert_eq!(told(&status)[1], "Degraded=True Damaged");
    assert_eq!(status.conditions[1].message, "VDI v has lost objects");
}

/// The nodes would say something that helps nobody.
#[test]
fn a_key_that_is_lost_is_told_before_what_nodes_say() {
    let mut observed = serving(&["a", "b", "c"]);
    observed.secret = None;
    observed.cluster = None;
    observed.pods[0].answer.as_mut().unwrap().info.message = "All copies are where they belong.".into();
    let outcome = Outcome { founding: step(&observed), ..outcome(&observed) };
    let status = status::status(&sheepdog(), &outcome);
    assert_eq!(told(&status)[0], "Available=False NoKey");
    assert!(status.conditions[0].message.contains("make the Secret"));
    assert_eq!(status.health, "unknown");
}
