//! Makes Kubernetes so. Client required.

use super::build::{Object, secret_name};
use super::founding::Founding;
use super::observe::{CLUSTER_ID, FOUNDER_ID, FOUNDER_NODE, KEY};
use super::observed::{Observed, StoragePod};
use super::validate::Valid;
use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, EvictParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};

/// The operator, as the owner of the fields that it applies.
pub(super) const MANAGER: &str = "sheep-operator";
/// Bytes of a cluster's key.
const KEY_BYTES: usize = 32;

/// Applies all of them, whatever becomes of single ones; gives those that failed, and why.
pub(super) async fn objects<'a>(client: &Client, objects: &'a [Object]) -> Vec<(&'a Object, String)> {
    let mut problems = Vec::new();
    for object in objects {
        if let Err(error) = one(client, object).await {
            problems.push((object, format!("{error:#}")));
        }
    }
    problems
}

/// Makes the CSIDriver, if there was none, before anything else: of two installations that come at the same time one is told here
/// that it has to look again.
pub(super) async fn claim(client: &Client, observed: &Observed, objects: &[Object]) -> Result<()> {
    let Some(driver) = objects.iter().find(|object| object.kind() == "CSIDriver") else { return Ok(()) };
    if observed.driver_of.is_some() {
        return Ok(());
    }
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("storage.k8s.io", "v1", driver.kind()));
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match api.create(&params, &serde_json::from_value(driver.0.clone())?).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("CSIDriver {} is not made: {}", driver.name(), said(&error)),
    }
}

/// What a person can use of an error.
pub(super) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

async fn one(client: &Client, object: &Object) -> Result<()> {
    let (group, version) = object.api_version().split_once('/').unwrap_or(("", object.api_version()));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object.kind()));
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    if object.namespace().is_none() && is_somebody_elses(api.get_opt(object.name()).await?.as_ref()) {
        bail!("it was there before, and is left as it is: give it another name, or delete it");
    }
    let params = PatchParams::apply(MANAGER).force();
    match api.patch(object.name(), &params, &Patch::Apply(&object.0)).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("{}", said(&error)),
    }
}

/// What is in no namespace anybody may have made: a StorageClass with our name would go when this is uninstalled.
fn is_somebody_elses(there: Option<&DynamicObject>) -> bool {
    let manager = |there: &DynamicObject| there.labels().get("app.kubernetes.io/managed-by").cloned();
    there.is_some_and(|there| manager(there).as_deref() != Some(MANAGER))
}

/// Ends a pod, so that Kubernetes makes a new one. One that serves is evicted: somebody else may have evicted another one just now, and the
/// disruption budget lets only one go.
pub(super) async fn replace_pod(client: &Client, namespace: &str, pod: &StoragePod) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let this = Preconditions { uid: Some(pod.uid.clone()), ..Preconditions::default() };
    let only_this = DeleteParams::default().preconditions(this);
    let ended = if pod.ready {
        let params = EvictParams { delete_options: Some(only_this), ..EvictParams::default() };
        api.evict(&pod.name, &params).await.map(drop)
    } else {
        api.delete(&pod.name, &only_this).await.map(drop)
    };
    match ended {
        Ok(()) => Ok(()),
        // It is gone, or another one is there in its place.
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        Err(error) => bail!("pod {} cannot be replaced now: {}", pod.name, said(&error)),
    }
}

/// Makes the next step of founding, if it is one in Kubernetes.
pub(super) async fn found(
    client: &Client,
    cluster: &Valid,
    observed: &Observed,
    step: &Founding,
) -> Result<()> {
    match step {
        Founding::MakeKey => make_secret(client, cluster).await,
        Founding::Remember(id) => annotate(client, cluster, observed, json!({CLUSTER_ID: id})).await,
        Founding::Choose(founder) => {
            let annotations = json!({FOUNDER_NODE: founder.node, FOUNDER_ID: founder.id});
            annotate(client, cluster, observed, annotations).await
        }
        Founding::Found(ip) => {
            super::cluster::found(ip, cluster.copies, cluster.min_copies, observed.own.as_ref()).await
        }
        Founding::Done | Founding::Wait { .. } => Ok(()),
    }
}

/// Only if there is none. It has no owner: the data on the nodes are worth nothing without it.
async fn make_secret(client: &Client, cluster: &Valid) -> Result<()> {
    let mut key = [0; KEY_BYTES];
    SystemRandom::new().fill(&mut key).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {
            "name": secret_name(&cluster.name),
            "labels": {
                "app.kubernetes.io/name": "sheepdog",
                "app.kubernetes.io/instance": cluster.name,
                "app.kubernetes.io/managed-by": MANAGER,
            },
        },
        "type": "Opaque",
        "stringData": {KEY: text},
    }))?;
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(()),
        // Somebody was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => bail!("the Secret with the cluster's key is not made: {}", said(&error)),
    }
}

/// Only if the Secret is what the decision was made from: two operators cannot both decide.
async fn annotate(client: &Client, cluster: &Valid, observed: &Observed, annotations: Value) -> Result<()> {
    let Some(seen) = &observed.secret else { return Ok(()) };
    let patch = json!({
        "metadata": {"resourceVersion": seen.resource_version, "annotations": annotations},
    });
    let api: Api<Secret> = Api::namespaced(client.clone(), &cluster.namespace);
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    match api.patch(&secret_name(&cluster.name), &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        // It is looked at again.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => bail!("the Secret with the cluster's key is not changed: {}", said(&error)),
    }
}
