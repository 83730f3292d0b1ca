//! One turn of keeping a cluster: look (`observe`), see whether it can work (`validate`), make the objects (`build`) and the
//! decisions (`founding`, `certificates`, `leaving`, `rolling`, `orders`, `lost`), carry them out (`apply`, `issue`, `cluster`, `silent`), tell people (`status`).
//! `observe`, `apply`, `issue`, `cluster` and `silent` talk to others; all else are functions of values.

mod apply;
mod build;
mod certificates;
mod cluster;
mod founding;
mod in_use;
mod issue;
mod leaving;
mod lost;
mod observe;
mod observed;
mod orders;
mod redundancy;
mod rolling;
mod silent;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod validate;

pub(crate) use lost::Absences;
pub(crate) use status::Transition;

use crate::crd::{SheepdogCluster, SheepdogClusterStatus};
use crate::settings::Settings;
use anyhow::Result;
use build::{Object, TEMPLATE, component};
use founding::Founding;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use leaving::Leaving;
use observed::Observed;
use rolling::Rolling;
use serde_json::json;
use std::time::Duration;
use validate::Valid;

/// While something is under way.
const SOON: Duration = Duration::from_secs(3);
/// Otherwise: nodes of the cluster tell nobody when they change.
const LATER: Duration = Duration::from_secs(20);

/// What came of a turn.
#[derive(Debug)]
pub(crate) struct Turn {
    /// When to look again.
    pub(crate) again: Duration,
    /// What is worth an event.
    pub(crate) news: Vec<Transition>,
}

/// One turn.
///
/// # Errors
/// Kubernetes does not answer, or not as it should.
pub(crate) async fn reconcile(
    client: &Client,
    sheepdog: &SheepdogCluster,
    settings: &Settings,
    anchor: &str,
    absences: &Absences,
) -> Result<Turn> {
    let observed = observe::observe(client, sheepdog, anchor, &settings.cluster, absences).await?;
    let outcome = match validate::validate(sheepdog, &observed) {
        Ok(cluster) => act(client, sheepdog, &cluster, settings, &observed, (anchor, absences)).await,
        Err(refusal) => refused(client, sheepdog, refusal, &observed).await,
    };
    let after = status::status(sheepdog, &outcome);
    let before = sheepdog.status.clone().unwrap_or_default();
    if after != before {
        write_status(client, sheepdog, &after).await?;
    }
    let calm = outcome.problems.is_empty()
        && matches!(outcome.rolling, Rolling::Done)
        && matches!(outcome.founding, Founding::Done)
        && matches!(outcome.leaving, Leaving::Done | Leaving::Wait(_))
        && outcome.issuing.is_done()
        && outcome.lost.is_empty()
        && !observed.lost_lately
        && observed.cluster.is_some();
    let mut news = status::transitions(&before, &after);
    news.extend(outcome.lost.iter().filter_map(status::loss));
    Ok(Turn { again: if calm { LATER } else { SOON }, news })
}

/// Nothing is changed; but that nodes are lost has nothing to do with what was written wrongly.
async fn refused<'a>(
    client: &Client,
    sheepdog: &SheepdogCluster,
    refusal: String,
    observed: &'a Observed,
) -> status::Outcome<'a> {
    let mut outcome = status::Outcome { refusal: Some(refusal), ..status::Outcome::nothing(observed) };
    if validate::is_another_ones(sheepdog, observed).is_some() {
        return outcome;
    }
    outcome.lost = lost::next(observed, validate::move_pods_after(&sheepdog.spec).unwrap_or_default());
    for loss in &outcome.lost {
        if let Err(problem) = silent::take(client, loss).await {
            outcome.problems.push(format!("{problem:#}"));
        }
    }
    outcome
}

/// Builds, decides, and carries it out. What fails is tried again in the next turn, and keeps nothing else from being done.
async fn act<'a>(
    client: &Client,
    sheepdog: &SheepdogCluster,
    cluster: &Valid,
    settings: &Settings,
    observed: &'a Observed,
    to_look: (&str, &Absences),
) -> status::Outcome<'a> {
    let founding = founding::next(cluster, observed);
    let mut objects = build::build(cluster, settings, observed);
    let mut problems = in_use::hold_back(&mut objects, settings, observed);
    let mut note = |result: Result<()>| {
        if let Err(problem) = result {
            problems.push(format!("{problem:#}"));
        }
    };
    if let Err(problem) = apply::claim(client, observed, &objects).await {
        return status::Outcome {
            founding,
            many_rings: cluster.many_rings,
            problems: vec![format!("{problem:#}")],
            ..status::Outcome::nothing(observed)
        };
    }
    let issuing = certificates::next(&cluster.name, &cluster.namespace, observed);
    note(issue::make(client, cluster, observed, &issuing).await);
    note(apply::found(client, cluster, observed, &founding).await);
    let failed = apply::objects(client, &objects).await;
    let storage = objects.iter().find(|object| is_storage(object));
    let template = storage.map_or("", template);
    let (mut leaving, mut rolling) = decide(cluster, observed, template);
    if takes_a_node_away(&leaving, &rolling) {
        // Much may have happened since it was looked at.
        match again(client, sheepdog, settings, to_look).await {
            Ok((cluster, observed)) => (leaving, rolling) = decide(&cluster, &observed, template),
            Err(problem) => {
                note(Err(problem));
                (leaving, rolling) = (Leaving::Done, Rolling::Wait("it is looked at again".into()));
            }
        }
    }
    if let Rolling::Replace(name) = &rolling
        && let Some(pod) = observed.pods.iter().find(|pod| pod.name == *name)
    {
        note(apply::replace_pod(client, &cluster.namespace, pod).await);
    }
    let lost = lost::next(observed, cluster.move_pods_after);
    for loss in &lost {
        note(silent::take(client, loss).await);
    }
    if let Some(view) = &observed.cluster {
        for order in orders::next(cluster, observed, &leaving) {
            note(cluster::give(&order, &view.server, observed.own.as_ref()).await);
        }
    }
    problems.extend(failed.iter().map(|(object, why)| format!("{} {}: {why}", object.kind(), object.name())));
    status::Outcome {
        observed,
        refusal: None,
        founding,
        issuing,
        leaving,
        rolling,
        many_rings: cluster.many_rings,
        too_small: cluster.too_small.clone(),
        lost,
        problems,
    }
}

/// What is to be done about nodes that are to store nothing more, and which pod is to be replaced: never both at once.
fn decide(cluster: &Valid, observed: &Observed, template: &str) -> (Leaving, Rolling) {
    let leaving = leaving::next(cluster, observed);
    let rolling = match (&leaving, rolling::next(cluster, observed, template)) {
        (Leaving::Drain { name, .. }, Rolling::Replace(pod)) => {
            Rolling::Wait(format!("{pod} is to be replaced, not now: node {name} is to be drained"))
        }
        (_, rolling) => rolling,
    };
    (leaving, rolling)
}

fn takes_a_node_away(leaving: &Leaving, rolling: &Rolling) -> bool {
    matches!(leaving, Leaving::Drain { .. }) || matches!(rolling, Rolling::Replace(_))
}

/// Looks once more.
async fn again(
    client: &Client,
    sheepdog: &SheepdogCluster,
    settings: &Settings,
    (anchor, absences): (&str, &Absences),
) -> Result<(Valid, Observed)> {
    let api: Api<SheepdogCluster> =
        Api::namespaced(client.clone(), &sheepdog.namespace().unwrap_or_default());
    // It may have been edited meanwhile.
    let sheepdog = api.get(&sheepdog.name_any()).await?;
    let observed = observe::observe(client, &sheepdog, anchor, &settings.cluster, absences).await?;
    let cluster = validate::validate(&sheepdog, &observed).map_err(anyhow::Error::msg)?;
    Ok((cluster, observed))
}

/// Whether it is what storage pods are made from.
fn is_storage(object: &Object) -> bool {
    object.kind() == "DaemonSet"
        && object.0["metadata"]["labels"]["app.kubernetes.io/component"] == component::STORAGE
}

/// Hash of the template of pods.
fn template(set: &Object) -> &str {
    set.0["spec"]["template"]["metadata"]["annotations"][TEMPLATE].as_str().unwrap_or_default()
}

async fn write_status(
    client: &Client,
    sheepdog: &SheepdogCluster,
    status: &SheepdogClusterStatus,
) -> Result<()> {
    let api: Api<SheepdogCluster> =
        Api::namespaced(client.clone(), &sheepdog.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": "sheepdog.io/v1alpha1",
        "kind": "SheepdogCluster",
        "status": status,
    });
    let params = PatchParams::apply(apply::MANAGER).force();
    match api.patch_status(&sheepdog.name_any(), &params, &Patch::Apply(&patch)).await {
        Ok(_) => Ok(()),
        // It was deleted meanwhile.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
