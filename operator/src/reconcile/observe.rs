//! Looks at Kubernetes and at the cluster. Client required.

use super::build::{DRAINED, DRIVER, OWNER, TEMPLATE, component, secret_name};
use super::certificates::Held;
use super::lost::Absences;
use super::observed::{Anchor, ClusterSecret, Founder, KubeNode, Observed, SilentNode, StoragePod, Workload};
use super::silent;
use super::validate::quantity;
use super::{cluster, issue};
use crate::crd::SheepdogCluster;
use anyhow::Result;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, Pod, PodTemplateSpec, Secret};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use std::collections::BTreeMap;
use tracing::warn;

/// Annotations of the Secret.
pub(super) const FOUNDER_NODE: &str = "sheepdog.io/founder-node";
/// See [`FOUNDER_NODE`].
pub(super) const FOUNDER_ID: &str = "sheepdog.io/founder-id";
/// See [`FOUNDER_NODE`].
pub(super) const CLUSTER_ID: &str = "sheepdog.io/cluster-id";
/// Name of the key in the Secret.
pub(super) const KEY: &str = "key";
/// Most objects that are asked for at once.
const PAGE: u32 = 500;
/// Seconds for which a node that the cluster has lost is looked after closely. Kubernetes takes 50 to notice it.
const LATELY: i64 = 300;

/// Looks. `anchor`: ClusterRole that owns what is in no namespace; `keeps`: name that the SheepdogCluster should have, if not any.
pub(super) async fn observe(
    client: &Client,
    sheepdog: &SheepdogCluster,
    anchor: &str,
    keeps: &str,
    absences: &Absences,
) -> Result<Observed> {
    let namespace = sheepdog.namespace().unwrap_or_default();
    let name = sheepdog.name_any();
    let of_cluster = ListParams::default()
        .labels(&format!("app.kubernetes.io/name=sheepdog,app.kubernetes.io/instance={name}"));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let misnamed = (!keeps.is_empty() && keeps != name).then(|| keeps.to_owned());
    let secret = match misnamed {
        // It would be forbidden.
        Some(_) => None,
        None => secrets.get_opt(&secret_name(&name)).await?.as_ref().map(secret),
    };
    let certificates = match misnamed {
        Some(_) => Held::default(),
        None => issue::look(client, &namespace, &name).await?,
    };
    let own = certificates.own();
    let mut pods = storage_pods(client, &namespace, &name).await?;
    cluster::ask_all(&mut pods, own.as_ref()).await;
    let mine = secret.as_ref().and_then(|secret| secret.cluster_id.as_deref());
    let view = cluster::view(&pods, mine, own.as_ref()).await;
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), &namespace);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    let sets = daemon_sets.list(&of_cluster).await?.items;
    let storage = sets.iter().find(|set| is_storage(set));
    let mut workloads: Vec<Workload> = sets.iter().map(daemon_set).collect();
    workloads.extend(deployments.list(&of_cluster).await?.items.iter().map(deployment));
    let (nodes, now) = (nodes(client).await?, Timestamp::now());
    let names: Vec<String> = nodes.iter().map(ResourceExt::name_any).collect();
    let absent = absences.note(view.as_ref(), names.iter().map(String::as_str), now);
    Ok(Observed {
        now,
        silent: silent_nodes(client, &nodes, &absent).await,
        lost_lately: absent.values().any(|since| now.as_second() - since.as_second() < LATELY),
        nodes: nodes.iter().map(node).collect(),
        secret,
        certificates,
        own,
        pods,
        cluster: view,
        snapshots: serves_snapshots(client).await?,
        listed: storage.and_then(listed),
        drained: storage.map(drained).unwrap_or_default(),
        workloads,
        driver_of: driver_of(client).await?,
        attached: attached(client).await?,
        misnamed,
        older: older(client, sheepdog, &namespace).await?,
        anchor: owner(client, anchor).await?,
    })
}

/// Who may not look has nothing else kept from him.
async fn silent_nodes(
    client: &Client,
    nodes: &[Node],
    absent: &BTreeMap<String, Timestamp>,
) -> Vec<SilentNode> {
    silent::look(client, nodes, absent).await.unwrap_or_else(|problem| {
        warn!("what is on lost nodes cannot be seen: {problem:#}");
        Vec::new()
    })
}

async fn nodes(client: &Client) -> Result<Vec<Node>> {
    let api: Api<Node> = Api::all(client.clone());
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        found.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn node(node: &Node) -> KubeNode {
    let status = node.status.clone().unwrap_or_default();
    let spec = node.spec.clone().unwrap_or_default();
    let disk =
        status.capacity.unwrap_or_default().get("ephemeral-storage").and_then(|size| quantity(&size.0));
    let taints =
        spec.taints.unwrap_or_default().into_iter().filter(|taint| taint.effect != "PreferNoSchedule");
    KubeNode {
        name: node.name_any(),
        labels: node.labels().clone(),
        // DaemonSets tolerate what says how a node is; only what somebody decided keeps their pods away.
        taints: taints
            .filter(|taint| !taint.key.starts_with("node.kubernetes.io/"))
            .map(|taint| (taint.key, taint.value.unwrap_or_default(), taint.effect))
            .collect(),
        disk,
    }
}

async fn storage_pods(client: &Client, namespace: &str, cluster: &str) -> Result<Vec<StoragePod>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let labels = format!(
        "app.kubernetes.io/name=sheepdog,app.kubernetes.io/instance={cluster},app.kubernetes.io/component={}",
        component::STORAGE
    );
    Ok(api.list(&ListParams::default().labels(&labels)).await?.items.iter().map(storage_pod).collect())
}

fn storage_pod(pod: &Pod) -> StoragePod {
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let words = containers.iter().flat_map(|container| {
        let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref()?.terminated.as_ref()?.message.clone()
        };
        [ended(&container.state), ended(&container.last_state)]
    });
    StoragePod {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        ip: status.pod_ip,
        ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        leaving: pod.metadata.deletion_timestamp.is_some(),
        template: pod.annotations().get(TEMPLATE).cloned().unwrap_or_default(),
        running: !containers.is_empty()
            && containers.iter().all(|it| it.state.as_ref().is_some_and(|state| state.running.is_some())),
        last_words: words.flatten().collect::<Vec<_>>().join("\n"),
        answer: None,
    }
}

fn secret(secret: &Secret) -> ClusterSecret {
    let of = |key: &str| secret.annotations().get(key).filter(|value| !value.is_empty()).cloned();
    let founder = of(FOUNDER_NODE).zip(of(FOUNDER_ID)).map(|(node, id)| Founder { node, id });
    ClusterSecret {
        has_key: secret.data.as_ref().is_some_and(|data| data.contains_key(KEY)),
        resource_version: secret.resource_version().unwrap_or_default(),
        founder,
        cluster_id: of(CLUSTER_ID),
    }
}

fn is_storage(set: &DaemonSet) -> bool {
    set.labels().get("app.kubernetes.io/component").is_some_and(|part| part == component::STORAGE)
}

/// The nodes that a DaemonSet names; nothing if it chooses its nodes by their labels.
fn listed(set: &DaemonSet) -> Option<Vec<String>> {
    let pod = set.spec.as_ref()?.template.spec.as_ref()?;
    let nodes = pod.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &nodes.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let by_label = terms.iter().flat_map(|term| term.match_expressions.iter().flatten());
    if by_label.into_iter().any(|it| it.operator == "In") {
        return None;
    }
    let names = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    Some(names.filter_map(|it| it.values.as_ref()?.first().cloned()).collect())
}

fn drained(set: &DaemonSet) -> Vec<String> {
    let names = set.annotations().get(DRAINED).map_or("", String::as_str);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn daemon_set(set: &DaemonSet) -> Workload {
    let status = set.status.clone().unwrap_or_default();
    let wanted = status.desired_number_scheduled;
    let updated = status.updated_number_scheduled.unwrap_or_default();
    let on_delete = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.as_ref()?.type_.as_deref())
        .is_some_and(|strategy| strategy == "OnDelete");
    Workload {
        // Storage pods are told of by those who replace them.
        updated: if on_delete { wanted } else { updated },
        outdated: if on_delete && !is_storage(set) { wanted - updated } else { 0 },
        name: set.name_any(),
        current: status.observed_generation >= set.metadata.generation,
        template: set.spec.as_ref().map(|spec| template(&spec.template)).unwrap_or_default(),
        wanted: status.desired_number_scheduled,
        ready: status.number_ready,
    }
}

fn template(pods: &PodTemplateSpec) -> String {
    let annotations = pods.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref());
    annotations.and_then(|annotations| annotations.get(TEMPLATE)).cloned().unwrap_or_default()
}

fn deployment(deployment: &Deployment) -> Workload {
    let status = deployment.status.clone().unwrap_or_default();
    Workload {
        name: deployment.name_any(),
        current: status.observed_generation >= deployment.metadata.generation,
        template: deployment.spec.as_ref().map(|spec| template(&spec.template)).unwrap_or_default(),
        wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        ready: status.ready_replicas.unwrap_or_default(),
        updated: status.updated_replicas.unwrap_or_default(),
        outdated: 0,
    }
}

async fn driver_of(client: &Client) -> Result<Option<String>> {
    let api: Api<CSIDriver> = Api::all(client.clone());
    let found = api.get_opt(DRIVER).await?;
    Ok(found.map(|driver| driver.annotations().get(OWNER).cloned().unwrap_or_default()))
}

/// Nodes that volumes of the driver are, or are to be, attached to.
async fn attached(client: &Client) -> Result<Vec<String>> {
    let api: Api<VolumeAttachment> = Api::all(client.clone());
    let mut nodes = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await?;
        let ours = page.items.into_iter().filter(|it| it.spec.attacher == DRIVER);
        nodes.extend(ours.map(|attachment| attachment.spec.node_name));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    nodes.sort_unstable();
    nodes.dedup();
    Ok(nodes)
}

/// Whether VolumeSnapshots can be had: their definitions are installed, or not, by whoever runs Kubernetes.
async fn serves_snapshots(client: &Client) -> Result<bool> {
    let groups = client.list_api_groups().await?;
    let wanted = "snapshot.storage.k8s.io/v1";
    Ok(groups.groups.iter().any(|group| group.versions.iter().any(|version| version.group_version == wanted)))
}

/// An older SheepdogCluster beside this one. Of two that are equally old the first by name counts.
async fn older(client: &Client, sheepdog: &SheepdogCluster, namespace: &str) -> Result<Option<String>> {
    let api: Api<SheepdogCluster> = Api::namespaced(client.clone(), namespace);
    let age =
        |of: &SheepdogCluster| (of.metadata.creation_timestamp.clone().map(|time| time.0), of.name_any());
    let mine = age(sheepdog);
    let others = api.list(&ListParams::default()).await?;
    Ok(others.items.iter().map(age).filter(|other| *other < mine).min().map(|(_, name)| name))
}

async fn owner(client: &Client, anchor: &str) -> Result<Option<Anchor>> {
    if anchor.is_empty() {
        return Ok(None);
    }
    let api: Api<ClusterRole> = Api::all(client.clone());
    let found = api.get_opt(anchor).await?;
    Ok(found.map(|role| Anchor { name: role.name_any(), uid: role.uid().unwrap_or_default() }))
}
