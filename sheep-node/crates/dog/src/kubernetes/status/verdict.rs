//! The sentence on health, and what to do next.

use super::super::inside::Info;
use super::super::json::count;
use super::super::kubectl::Problem;
use super::super::objects::{Pod, Wish};
use super::super::seen::Seen;
use super::absent_pods;
use crate::node::seconds;

/// Above this share of the capacity, in percent, somebody should think of more.
const NEARLY_FULL: u64 = 85;
/// How to install it.
const INSTALL: &str = "`kubectl sheepdog preflight` says whether it can be installed, and \
                       `helm install sheepdog charts/sheepdog --namespace sheepdog --create-namespace` does it.";

/// How it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Verdict {
    /// Whether all is well, if that can be known.
    pub(in super::super) ok: Option<bool>,
    /// One sentence.
    pub(in super::super) sentence: String,
    /// What to do next.
    pub(in super::super) next: String,
}

fn verdict(ok: impl Into<Option<bool>>, sentence: impl Into<String>, next: impl Into<String>) -> Verdict {
    Verdict { ok: ok.into(), sentence: sentence.into(), next: next.into() }
}

/// What is said of all that was seen.
pub(in super::super) fn judge(seen: &Seen) -> Verdict {
    match (&seen.wishes, &seen.pods) {
        (Err(Problem::NotServed), Ok(pods)) if pods.is_empty() => {
            return verdict(false, "Sheepdog is not installed in this Kubernetes.", INSTALL);
        }
        (Err(problem @ Problem::Other(_)), _) => {
            let sentence = format!("Kubernetes cannot be asked: {}", stop(problem));
            return verdict(None, sentence, "see that `kubectl get nodes` works.");
        }
        (_, Err(problem)) => {
            let sentence = format!("The pods of Sheepdog cannot be looked at: {}", stop(problem));
            let next =
                "ask as somebody who may list pods; where only one namespace is allowed, name it with -n.";
            return verdict(None, sentence, next);
        }
        _ => {}
    }
    if seen.namespaces().len() > 1 {
        let all: Vec<&str> = seen.namespaces().into_iter().collect();
        let sentence = format!("There is more than one Sheepdog, in the namespaces {}.", all.join(", "));
        return verdict(None, sentence, "say which with -n.");
    }
    // A node without a cluster asks for one to be made by hand; here the operator does that, and says how far it is.
    if let Ok(inside) = seen.inside.as_ref()
        && inside.info.health != "no cluster"
    {
        return judge_inside(seen, &inside.info, &inside.findings);
    }
    match (seen.wish(), &seen.wishes) {
        (None, Ok(_)) => without_wish(seen),
        (wish, _) => silent(seen, wish),
    }
}

/// With one full stop.
fn stop(text: &impl ToString) -> String {
    let text = text.to_string();
    format!("{}.", text.trim_end_matches('.'))
}

fn of_part<'a>(seen: &'a Seen, component: &'a str) -> impl Iterator<Item = &'a Pod> {
    seen.pods().iter().filter(move |pod| pod.component == component)
}

fn operator_works(seen: &Seen) -> bool {
    of_part(seen, "operator").any(|pod| pod.ready)
}

/// There is no SheepdogCluster, and no storage pod answers.
fn without_wish(seen: &Seen) -> Verdict {
    if of_part(seen, "storage").next().is_some() {
        let sentence = "The SheepdogCluster is gone, and its storage pods end or are left over.";
        let next = "wait until they are gone; then make a SheepdogCluster of the same name, and it has the data again.";
        return verdict(false, sentence, next);
    }
    if operator_works(seen) {
        let next = "make one (docs/kubernetes.md), or install the chart with `cluster.create=true`.";
        return verdict(false, "The operator runs, but there is no SheepdogCluster.", next);
    }
    if of_part(seen, "operator").next().is_some() {
        let next = "see below why its pod is not ready.";
        return verdict(false, "There is no SheepdogCluster, and the operator does not work.", next);
    }
    let place = seen.namespace.as_ref().map_or("this Kubernetes".into(), |name| format!("namespace {name}"));
    let sentence = format!("Sheepdog does not run in {place}: only its definition is installed.");
    let next = format!("{INSTALL} Data that an earlier installation left on the nodes is used again.");
    verdict(false, sentence, next)
}

/// A SheepdogCluster, of which no storage pod says anything.
fn silent(seen: &Seen, wish: Option<&Wish>) -> Verdict {
    let told = wish.and_then(|wish| wish.says("Available", "False"));
    let storage: Vec<&Pod> = of_part(seen, "storage").collect();
    let ready = storage.iter().filter(|pod| pod.ready).count();
    if !operator_works(seen) && ready == 0 {
        let next = match of_part(seen, "operator").next() {
            Some(_) => "see below why the operator's pod is not ready: it makes all others.".to_owned(),
            None => "install the operator again (`helm upgrade --install`), or scale its Deployment up."
                .to_owned(),
        };
        return verdict(false, "The operator does not work, and no storage pod serves.", next);
    }
    if let (Some(told), 0) = (told, ready) {
        return verdict(
            false,
            stop(&told),
            next_for_pods(seen).unwrap_or_else(|| "see what it says.".into()),
        );
    }
    if storage.is_empty() {
        let next = next_for_pods(seen).unwrap_or_else(|| {
            "see that nodes have the labels of spec.storage.nodeSelector, and no taints that are not tolerated.".into()
        });
        return verdict(false, "There is no storage pod.", next);
    }
    if ready == 0 {
        let sentence = format!("None of {} is ready.", count(storage.len(), "storage pod"));
        return verdict(false, sentence, "see below why.");
    }
    let why = seen.inside.as_ref().err().map(stop).unwrap_or_default();
    let namespace = storage.first().map_or("sheepdog", |pod| pod.namespace.as_str());
    let next = format!(
        "see that commands may be run in pods: `kubectl auth can-i create pods/exec --namespace {namespace}`."
    );
    verdict(None, format!("Storage pods are ready, but the cluster cannot be asked: {why}"), next)
}

/// What to do about pods, if it is about pods.
fn next_for_pods(seen: &Seen) -> Option<String> {
    let absent = absent_pods(seen);
    if let Some(workload) = absent.first() {
        return Some(format!(
            "`kubectl describe {} --namespace {} {}` says why it has no pods; the namespace must allow privileged ones.",
            workload.kind, workload.namespace, workload.name
        ));
    }
    seen.pods().iter().any(|pod| !pod.ready).then(|| "see below why pods are not ready.".into())
}

/// The cluster has answered.
fn judge_inside(seen: &Seen, info: &Info, findings: &[String]) -> Verdict {
    let pods = next_for_pods(seen);
    if info.health != "ok" {
        let next = pods.or_else(|| next_for_nodes(seen)).unwrap_or_else(|| next_for_recovery(info));
        return verdict(false, stop(&info.message), next);
    }
    if let Some(first) = findings.first() {
        let next = match findings.len() {
            1 => "`kubectl sheepdog cluster check --copies` looks at all copies.".to_owned(),
            more => format!("see below what else was found ({} more).", more - 1),
        };
        return verdict(false, stop(first), next);
    }
    if !operator_works(seen) {
        let sentence = "Volumes are served and all copies are there, but the operator does not work.";
        let next = pods.unwrap_or_else(|| {
            "install it again (`helm upgrade --install`), or scale its Deployment up.".into()
        });
        return verdict(false, sentence, next);
    }
    let not_ready = seen.pods().iter().filter(|pod| !pod.ready).count();
    let absent: u64 = absent_pods(seen).iter().map(|workload| workload.wanted - workload.made).sum();
    if let Some(next) = pods {
        let number = not_ready + usize::try_from(absent).unwrap_or(usize::MAX);
        let (what, verb) = (count(number, "pod"), if number == 1 { "is" } else { "are" });
        let sentence = format!("All copies are where they belong, but {what} {verb} not ready.");
        return verdict(false, sentence, next);
    }
    let percent = percent(info.used);
    let next = match percent {
        NEARLY_FULL.. => format!("add nodes or larger disks soon: {percent}% of the capacity is used."),
        _ => "nothing to do.".into(),
    };
    verdict(true, stop(&info.message), next)
}

/// What to do about nodes that Kubernetes has lost.
fn next_for_nodes(seen: &Seen) -> Option<String> {
    let lost: Vec<&str> =
        seen.nodes.iter().flatten().filter(|node| !node.ready).map(|node| node.name.as_str()).collect();
    let first = lost.first()?;
    Some(format!(
        "bring {} back; one that is gone for good is given up with `kubectl delete node {first}`.",
        lost.join(", ")
    ))
}

fn next_for_recovery(info: &Info) -> String {
    match info.left {
        _ if info.recovering == 0 => "do what it says.".into(),
        (.., true) => "recovery is paused: set spec.recovery.paused to false, so that it goes on.".into(),
        (_, _, 0, _) => "wait: copies are being made.".into(),
        (_, _, left, _) => format!("wait: copies are being made, for about {} more.", seconds(left)),
    }
}

/// Share of the capacity that is used.
pub(in super::super) fn percent((used, all): (u64, u64)) -> u64 {
    // Rounded up: 100 means that it is full, and 0 that nothing is there.
    u128::from(used).saturating_mul(100).div_ceil(u128::from(all).max(1)).try_into().unwrap_or(u64::MAX)
}
