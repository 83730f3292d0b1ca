//! What people are told of the cluster.

use super::certificates::Issuing;
use super::founding::{Founding, of_another_key};
use super::leaving::Leaving;
use super::lost::Loss;
use super::observed::{ClusterView, Observed};
use super::redundancy::storage_nodes;
use super::rolling::Rolling;
use crate::crd::{
    CapacityStatus, NodesStatus, RecoveryStatus, RingStatus, SheepdogCluster, SheepdogClusterStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// What came of a turn.
#[derive(Clone, Debug)]
pub(crate) struct Outcome<'a> {
    /// What was found.
    pub(crate) observed: &'a Observed,
    /// Why the specification cannot be carried out.
    pub(crate) refusal: Option<String>,
    /// How far the cluster is made.
    pub(crate) founding: Founding,
    /// What becomes of certificates.
    pub(crate) issuing: Issuing,
    /// What becomes of nodes that are to store nothing more.
    pub(crate) leaving: Leaving,
    /// How far a change of storage pods is.
    pub(crate) rolling: Rolling,
    /// More than one ring is wished for.
    pub(crate) many_rings: bool,
    /// Nodes that store nothing because their disks are too small.
    pub(crate) too_small: Vec<String>,
    /// What was taken from nodes that are lost.
    pub(crate) lost: Vec<Loss>,
    /// What failed in this turn.
    pub(crate) problems: Vec<String>,
}

impl<'a> Outcome<'a> {
    /// Nothing was done, and nothing had to be.
    pub(crate) fn nothing(observed: &'a Observed) -> Self {
        Self {
            observed,
            refusal: None,
            founding: Founding::Done,
            issuing: Issuing::default(),
            leaving: Leaving::Done,
            rolling: Rolling::Done,
            many_rings: false,
            too_small: Vec::new(),
            lost: Vec::new(),
            problems: Vec::new(),
        }
    }
}

/// Reason for which not all nodes are as they should be, and nobody has to do anything.
const DRAINING: &str = "Draining";
/// Sentences in one condition.
const MOST_FINDINGS: usize = 5;
/// Reason for which certificates are good, and will not be for ever.
const CA_ENDS: &str = "CaEnds";

struct Truth {
    kind: &'static str,
    status: Option<bool>,
    reason: &'static str,
    message: String,
}

fn truth(
    kind: &'static str,
    status: impl Into<Option<bool>>,
    reason: &'static str,
    message: impl Into<String>,
) -> Truth {
    Truth { kind, status: status.into(), reason, message: message.into() }
}

/// The new status.
pub(crate) fn status(cluster: &SheepdogCluster, outcome: &Outcome<'_>) -> SheepdogClusterStatus {
    let before = cluster.status.clone().unwrap_or_default();
    let generation = cluster.metadata.generation.unwrap_or_default();
    let truths = [
        available(outcome),
        degraded(outcome),
        recovering(outcome),
        progressing(outcome),
        rings_applied(outcome),
        certificates_valid(outcome),
        nodes_applied(cluster, outcome),
    ];
    let conditions = truths
        .into_iter()
        .map(|truth| condition(truth, &before.conditions, generation, outcome.observed.now))
        .collect();
    let mut status = match &outcome.observed.cluster {
        Some(view) => seen(view),
        // What was known of it stays; only that it serves is not known.
        None => SheepdogClusterStatus { health: unseen(outcome).into(), ..before },
    };
    status.observed_generation = generation;
    status.conditions = conditions;
    status
}

fn unseen(outcome: &Outcome<'_>) -> &'static str {
    let pods = &outcome.observed.pods;
    let in_a_cluster = pods.iter().any(|pod| pod.cluster_id().is_some());
    match &outcome.founding {
        Founding::Wait { reason: "NoKey" | "SeveralClusters" | "OtherKey", .. } => "unknown",
        _ if in_a_cluster => "no quorum",
        Founding::Done => "unknown",
        Founding::Wait { reason: "NoAnswer", .. } => "unknown",
        _ => "no cluster",
    }
}

fn seen(view: &ClusterView) -> SheepdogClusterStatus {
    let total = storage_nodes(&view.nodes).count();
    let up = storage_nodes(&view.nodes).filter(|node| node.state == "up").count();
    let recovering = i64::from(view.info.nodes_recovering);
    let left = human(view.bytes_left);
    let summary = match recovering {
        0 => "-".into(),
        _ if view.bytes_left == 0 => "checking".into(),
        _ => left.clone(),
    };
    SheepdogClusterStatus {
        health: view.info.health.clone(),
        cluster_id: view.info.cluster_id.clone(),
        version: view.info.version.clone(),
        epoch: number(view.info.epoch),
        nodes: NodesStatus { total: count(total), up: count(up), summary: format!("{up}/{total}") },
        ring_count: 1,
        rings: vec![RingStatus {
            name: "default".into(),
            members: count(view.ring_members.len()),
            representative: view.info.term_representative.clone(),
            configuration: format!("{}.{}", view.info.term_number, view.info.term_representative),
        }],
        capacity: CapacityStatus {
            total: human(view.info.capacity_bytes),
            used: human(view.info.used_bytes),
        },
        recovery: RecoveryStatus { nodes: recovering, left, summary },
        ..SheepdogClusterStatus::default()
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Two digits or three: exact numbers would change, and be written, all the time.
pub(super) fn human(bytes: u64) -> String {
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < units.len() {
        tenths /= 1024;
        unit += 1;
    }
    match (unit, tenths) {
        (0, _) => bytes.to_string(),
        (_, 0..100) => format!("{}.{}{}", tenths / 10, tenths % 10, units[unit]),
        _ => format!("{}{}", tenths / 10, units[unit]),
    }
}

fn available(outcome: &Outcome<'_>) -> Truth {
    const KIND: &str = "Available";
    if let Some(view) = &outcome.observed.cluster {
        let nodes = storage_nodes(&view.nodes).filter(|node| node.state == "up").count();
        let message = match nodes {
            1 => "The cluster serves volumes, from 1 storage node.".to_owned(),
            _ => format!("The cluster serves volumes, from {nodes} storage nodes."),
        };
        return truth(KIND, true, "Serving", message);
    }
    if let Some(refusal) = &outcome.refusal {
        return truth(KIND, false, "Refused", refusal.clone());
    }
    let of_a_node = outcome.observed.pods.iter().filter(|pod| pod.cluster_id().is_some());
    let message =
        of_a_node.filter_map(|pod| pod.answer.as_ref()).map(|answer| answer.info.message.clone()).next();
    match (&outcome.founding, message) {
        // No node can mend this.
        (Founding::Wait { reason: reason @ ("NoKey" | "SeveralClusters" | "OtherKey"), message }, _) => {
            truth(KIND, false, reason, message.clone())
        }
        (_, Some(message)) if !message.is_empty() => truth(KIND, false, "NoQuorum", message),
        (Founding::Wait { reason, message }, _) => truth(KIND, false, reason, message.clone()),
        (Founding::Done, _) => truth(
            KIND,
            false,
            "NoAnswer",
            "No storage node serves: look at the pods of storage nodes and their logs.",
        ),
        _ => truth(KIND, false, "Founding", "The cluster is being made."),
    }
}

fn degraded(outcome: &Outcome<'_>) -> Truth {
    const KIND: &str = "Degraded";
    match &outcome.observed.cluster {
        None => truth(KIND, None, "Unknown", "No storage node says that the cluster serves."),
        // Each node knows of what it keeps itself.
        Some(_) if !damage(outcome.observed).is_empty() => {
            truth(KIND, true, "Damaged", damage(outcome.observed).join(" "))
        }
        Some(view) if view.info.health == "ok" => truth(KIND, false, "AllCopies", view.info.message.clone()),
        Some(view) if view.info.health == "recovering" => {
            truth(KIND, false, "Recovering", view.info.message.clone())
        }
        Some(view) => truth(KIND, true, "FewerCopies", view.info.message.clone()),
    }
}

/// The same of several nodes is told once, and the first few findings are enough to begin with.
fn damage(observed: &Observed) -> Vec<String> {
    let answers = observed.pods.iter().filter_map(|pod| pod.answer.as_ref());
    let mut found: Vec<String> = answers.flat_map(|answer| answer.info.damage.iter().cloned()).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(MOST_FINDINGS);
    found
}

fn recovering(outcome: &Outcome<'_>) -> Truth {
    const KIND: &str = "Recovering";
    match &outcome.observed.cluster {
        None => truth(KIND, None, "Unknown", "No storage node says that the cluster serves."),
        Some(view) if view.info.nodes_recovering == 0 => {
            truth(KIND, false, "Done", "No node lacks copies that it should have.")
        }
        Some(view) => {
            let paused = view.info.settings.as_ref().and_then(|settings| settings.recovery_paused);
            let nodes = view.info.nodes_recovering;
            match paused {
                Some(true) => truth(
                    KIND,
                    true,
                    "Paused",
                    format!(
                        "{nodes} storage nodes lack copies, and recovery is paused: set spec.recovery.paused to false."
                    ),
                ),
                _ => truth(
                    KIND,
                    true,
                    "Copying",
                    format!("{nodes} storage nodes bring their copies up to date. Nothing to do."),
                ),
            }
        }
    }
}

fn progressing(outcome: &Outcome<'_>) -> Truth {
    const KIND: &str = "Progressing";
    if let Some(refusal) = &outcome.refusal {
        return truth(KIND, false, "Refused", format!("Nothing is changed: {refusal}"));
    }
    if !outcome.problems.is_empty() {
        return truth(KIND, true, "Trying", format!("It is tried again: {}", outcome.problems.join("; ")));
    }
    match &outcome.rolling {
        Rolling::Done => {}
        Rolling::Wait(why) => return truth(KIND, true, "RollingWaits", why.clone()),
        Rolling::Replace(pod) => {
            return truth(
                KIND,
                true,
                "Rolling",
                format!("Storage pod {pod} is replaced by one of the new version."),
            );
        }
    }
    let late: Vec<&str> = outcome
        .observed
        .workloads
        .iter()
        .filter(|workload| !workload.current || workload.ready.min(workload.updated) < workload.wanted)
        .map(|workload| workload.name.as_str())
        .collect();
    if !late.is_empty() {
        return truth(KIND, true, "PodsNotReady", format!("Waiting for pods of {}.", late.join(", ")));
    }
    if let Some(old) = outcome.observed.workloads.iter().find(|workload| workload.outdated > 0) {
        let message = format!(
            "{} pods of {} are of an older version and are not replaced by themselves: delete one when no pod on its node uses a volume.",
            old.outdated, old.name
        );
        return truth(KIND, false, "OldPods", message);
    }
    truth(KIND, false, "Done", "Everything is as it should be.")
}

fn rings_applied(outcome: &Outcome<'_>) -> Truth {
    const KIND: &str = "RingsApplied";
    if outcome.many_rings {
        return truth(
            KIND,
            false,
            "OneRingOnly",
            "This version puts all nodes into one ring. What spec.rings says is kept, and takes effect in a version that has several.",
        );
    }
    truth(KIND, true, "OneRing", "All nodes are in one ring.")
}

/// Whether what nodes and clients show each other is good, and will be.
fn certificates_valid(outcome: &Outcome<'_>) -> Truth {
    const KIND: &str = "CertificatesValid";
    if outcome.refusal.is_some() {
        return truth(KIND, None, "Refused", "Certificates stay as they are.");
    }
    match (&outcome.issuing.trouble, &outcome.issuing.warning) {
        (Some((reason, message)), _) => truth(KIND, false, reason, message.clone()),
        (None, Some(message)) => truth(KIND, true, CA_ENDS, message.clone()),
        (None, None) if !outcome.issuing.is_done() => {
            truth(KIND, None, "Issuing", "Certificates are being made.")
        }
        (None, None) => truth(KIND, true, "Valid", "Certificates are renewed by themselves in time."),
    }
}

/// Whether those nodes store data that `spec.storage` says.
fn nodes_applied(cluster: &SheepdogCluster, outcome: &Outcome<'_>) -> Truth {
    const KIND: &str = "NodesApplied";
    if outcome.refusal.is_some() {
        return truth(KIND, None, "Refused", "Storage pods stay where they are.");
    }
    if let Some((reason, message)) = strangers(cluster, outcome.observed) {
        return truth(KIND, false, reason, message);
    }
    match &outcome.leaving {
        Leaving::Done => {}
        Leaving::Drain { name, .. } => {
            let message = format!("Node {name} is to store nothing more: it is drained.");
            return truth(KIND, false, DRAINING, message);
        }
        Leaving::TakeBack { name, .. } => {
            let message = format!("Node {name} is to store data again: it is taken back.");
            return truth(KIND, false, "TakenBack", message);
        }
        Leaving::UnderWay(message) => return truth(KIND, false, DRAINING, message.clone()),
        Leaving::Wait(message) => return truth(KIND, false, "NotDrained", message.clone()),
    }
    if !outcome.too_small.is_empty() {
        let message = format!(
            "Left out, because storage.directory.maxSize is less than 64Mi of what Kubernetes says of their disks, in which no node can \
             work, or it says nothing of them: {}. Give them a maxSize in storage.nodes.",
            outcome.too_small.join(", ")
        );
        return truth(KIND, false, "TooSmall", message);
    }
    truth(KIND, true, "AllNodes", "Data are stored on the nodes that spec.storage says.")
}

/// Nodes that have data of something else, while there is a cluster.
fn strangers(cluster: &SheepdogCluster, observed: &Observed) -> Option<(&'static str, String)> {
    let ours = observed.secret.as_ref()?.cluster_id.as_deref()?;
    let directory = cluster.spec.storage.directory.path.trim_end_matches('/');
    if let Some(pod) = of_another_key(observed).next() {
        let message = format!(
            "Node {} does not start: it has data of a cluster with another key than this one's. If nobody needs them, empty \
             {directory}/storage on that node.",
            pod.node
        );
        return Some(("OtherKey", message));
    }
    let other = observed.pods.iter().find(|pod| pod.cluster_id().is_some_and(|id| id != ours))?;
    let message = format!(
        "Node {} has data of cluster {}, and this is cluster {ours}: if nobody needs them, empty {directory}/storage on that node.",
        other.node,
        other.cluster_id().unwrap_or_default()
    );
    Some(("OtherCluster", message))
}

/// The time of a condition is that of its last change.
fn condition(truth: Truth, before: &[Condition], generation: i64, now: Timestamp) -> Condition {
    let status = match truth.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let since = before
        .iter()
        .find(|old| old.type_ == truth.kind && old.status == status)
        .map_or_else(|| Time(now), |old| old.last_transition_time.clone());
    Condition {
        type_: truth.kind.into(),
        status: status.into(),
        reason: truth.reason.into(),
        message: truth.message,
        last_transition_time: since,
        observed_generation: Some(generation),
    }
}

/// An event: something that a person may want to know happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    /// Whether it is bad news.
    pub(crate) warning: bool,
    /// In one word.
    pub(crate) reason: String,
    /// In a sentence.
    pub(crate) note: String,
}

/// What has changed between two states.
pub(crate) fn transitions(before: &SheepdogClusterStatus, after: &SheepdogClusterStatus) -> Vec<Transition> {
    let changed = |new: &&Condition| {
        let old = before.conditions.iter().find(|old| old.type_ == new.type_);
        match old {
            Some(old) => (&old.status, &old.reason) != (&new.status, &new.reason),
            // At first everything is new; what is as usual is not told.
            None => is_bad(new),
        }
    };
    after
        .conditions
        .iter()
        .filter(changed)
        .map(|new| Transition {
            warning: is_bad(new),
            reason: format!("{}{}", new.type_, new.reason),
            note: new.message.clone(),
        })
        .collect()
}

/// Pods that were taken from a node.
pub(crate) fn loss(loss: &Loss) -> Option<Transition> {
    let pods: Vec<String> = loss.pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    let note = format!("Node {} is lost. Its pods go elsewhere: {}.", loss.node, pods.join(", "));
    (!pods.is_empty()).then(|| Transition { warning: true, reason: "NodeLost".into(), note })
}

fn is_bad(condition: &Condition) -> bool {
    match (condition.type_.as_str(), condition.status.as_str()) {
        ("Available" | "RingsApplied", status) => status == "False",
        ("CertificatesValid", status) => status == "False" || condition.reason == CA_ENDS,
        // That is as it was wished for.
        ("NodesApplied", status) => status == "False" && condition.reason != DRAINING,
        ("Degraded", status) => status == "True",
        _ => false,
    }
}
