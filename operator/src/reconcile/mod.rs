//! One turn of keeping a cluster: look (`observe`), see whether it can work (`validate`), make the objects (`build`) and the
//! decisions (`founding`, `rolling`, `orders`), carry them out (`apply`, `cluster`), tell people (`status`). `observe`, `apply` and
//! `cluster` talk to others; all else are functions of values.

mod apply;
mod build;
mod cluster;
mod founding;
mod observe;
mod observed;
mod orders;
mod redundancy;
mod rolling;
mod status;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod validate;

pub(crate) use status::Transition;

use crate::crd::{SheepdogCluster, SheepdogClusterStatus};
use crate::settings::Settings;
use anyhow::Result;
use build::{Object, TEMPLATE, component};
use founding::Founding;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
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
) -> Result<Turn> {
    let observed = observe::observe(client, sheepdog, anchor).await?;
    let outcome = match validate::validate(sheepdog, &observed) {
        Ok(cluster) => act(client, sheepdog, &cluster, settings, &observed).await,
        Err(refusal) => status::Outcome {
            observed: &observed,
            refusal: Some(refusal),
            founding: Founding::Done,
            rolling: Rolling::Done,
            many_rings: false,
            problems: Vec::new(),
        },
    };
    let after = status::status(sheepdog, &outcome);
    let before = sheepdog.status.clone().unwrap_or_default();
    if after != before {
        write_status(client, sheepdog, &after).await?;
    }
    let calm = outcome.problems.is_empty()
        && matches!(outcome.rolling, Rolling::Done)
        && matches!(outcome.founding, Founding::Done)
        && observed.cluster.is_some();
    Ok(Turn { again: if calm { LATER } else { SOON }, news: status::transitions(&before, &after) })
}

/// Builds, decides, and carries it out. What fails is tried again in the next turn, and keeps nothing else from being done.
async fn act<'a>(
    client: &Client,
    sheepdog: &SheepdogCluster,
    cluster: &Valid,
    settings: &Settings,
    observed: &'a Observed,
) -> status::Outcome<'a> {
    let mut problems = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(problem) = result {
            problems.push(format!("{problem:#}"));
        }
    };
    let founding = founding::next(cluster, observed, age(sheepdog, observed));
    note(apply::found(client, cluster, observed, &founding).await);
    let objects = build::build(cluster, settings, observed);
    let failed = apply::objects(client, &objects).await;
    let storage = objects.iter().find(|object| is_storage(object));
    let rolling = rolling::next(observed, storage.map_or("", template));
    if let Rolling::Replace(pod) = &rolling {
        note(apply::replace_pod(client, &cluster.namespace, pod).await);
    }
    if let Some(view) = &observed.cluster {
        for order in orders::next(cluster, observed) {
            note(cluster::give(&order, &view.server).await);
        }
    }
    problems.extend(failed.iter().map(|(object, why)| format!("{} {}: {why}", object.kind(), object.name())));
    status::Outcome { observed, refusal: None, founding, rolling, many_rings: cluster.many_rings, problems }
}

/// Seconds since the SheepdogCluster was made.
fn age(sheepdog: &SheepdogCluster, observed: &Observed) -> i64 {
    let made = sheepdog.metadata.creation_timestamp.as_ref().map_or(observed.now, |time| time.0);
    observed.now.as_second().saturating_sub(made.as_second())
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
