//! A change of storage pods, one node after the other, each only while the cluster can do without it.

use super::observed::Observed;
use super::redundancy;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rolling {
    /// All pods are as they should be.
    Done,
    /// Some are not, and none may be replaced now.
    Wait(String),
    /// This pod is to be deleted; Kubernetes makes a new one.
    Replace(String),
}

/// Decides. `template`: hash of the template that pods should be made from.
pub(crate) fn next(observed: &Observed, template: &str) -> Rolling {
    let mut outdated: Vec<_> = observed.pods.iter().filter(|pod| pod.template != template).collect();
    outdated.sort_by(|one, other| one.name.cmp(&other.name));
    if outdated.is_empty() {
        return Rolling::Done;
    }
    let left = outdated.len();
    // Otherwise a pod that is deleted comes back as it was.
    if !observed.workloads.iter().any(|workload| workload.current && workload.template == template) {
        return Rolling::Wait(format!(
            "{left} storage pods are to be replaced; Kubernetes does not know by what yet"
        ));
    }
    if let Some(pod) = observed.pods.iter().find(|pod| pod.leaving) {
        return Rolling::Wait(format!("{left} storage pods are to be replaced; {} is ending", pod.name));
    }
    // What serves nobody can be replaced at any time, and a version that does not start could never be left otherwise.
    let founded = observed.secret.as_ref().is_some_and(|secret| secret.cluster_id.is_some());
    let idle = |pod: &super::observed::StoragePod| {
        !pod.ready && (pod.answer.is_none() || !founded && pod.cluster_id().is_none())
    };
    if let Some(pod) = outdated.iter().find(|pod| idle(pod)) {
        return Rolling::Replace(pod.name.clone());
    }
    if let Some(pod) = observed.pods.iter().find(|pod| !pod.ready) {
        return Rolling::Wait(format!("{left} storage pods are to be replaced; {} is not ready", pod.name));
    }
    if let Some(why) = redundancy::missing(observed) {
        return Rolling::Wait(format!("{left} storage pods are to be replaced, not now: {why}"));
    }
    match outdated.first() {
        Some(pod) => Rolling::Replace(pod.name.clone()),
        None => Rolling::Done,
    }
}
