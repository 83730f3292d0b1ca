//! Runs turns: when something changes in Kubernetes, and from time to time.

use crate::crd::SheepdogCluster;
use crate::reconcile::{self, Absences, Transition};
use crate::settings::Settings;
use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{Controller, WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tracing::{info, warn};

/// After a turn that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// A turn takes at most this long.
const LONGEST: Duration = Duration::from_secs(120);

/// What every turn needs.
pub struct Context {
    /// Kubernetes.
    pub client: Client,
    /// Namespace of the cluster.
    pub namespace: String,
    /// What the installation says.
    pub settings: Settings,
    /// ClusterRole that owns what is in no namespace.
    pub anchor: String,
    /// This process.
    pub me: String,
}

/// A turn that failed.
#[derive(Debug)]
struct Failed(anyhow::Error);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Failed {}

struct Worker {
    context: Context,
    absences: Absences,
    recorder: Recorder,
}

/// Keeps the clusters of the namespace, for ever.
pub async fn run(context: Context) {
    let client = context.client.clone();
    let reporter = Reporter { controller: "sheep-operator".into(), instance: Some(context.me.clone()) };
    let clusters: Api<SheepdogCluster> = Api::namespaced(client.clone(), &context.namespace);
    let daemon_sets: Api<DaemonSet> = Api::namespaced(client.clone(), &context.namespace);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &context.namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &context.namespace);
    let worker = Arc::new(Worker {
        recorder: Recorder::new(client.clone(), reporter),
        absences: Absences::default(),
        context,
    });
    let storage = watcher::Config::default()
        .labels("app.kubernetes.io/name=sheepdog,app.kubernetes.io/component=storage");
    let of_pod = |pod: Pod| {
        let cluster = pod.labels().get("app.kubernetes.io/instance").cloned()?;
        Some(ObjectRef::new(&cluster).within(&pod.namespace()?))
    };
    Controller::new(clusters, watcher::Config::default())
        .owns(daemon_sets, watcher::Config::default())
        .owns(deployments, watcher::Config::default())
        .watches(pods, storage, of_pod)
        .reconcile_all_on(new_nodes(client))
        .with_config(
            kube::runtime::controller::Config::default().debounce(Duration::from_secs(1)).concurrency(1),
        )
        .run(turn, failed, worker)
        .for_each(|result| async move {
            if let Err(problem) = result {
                warn!("{problem}");
            }
        })
        .await;
}

/// When a node comes, or its labels change. What else may happen to one is seen in the next turn.
fn new_nodes(client: Client) -> impl futures::Stream<Item = ()> + Send + 'static {
    watcher(Api::<PartialObjectMeta<Node>>::all(client), watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .predicate_filter(predicates::labels, Default::default())
        .filter_map(|node| async { node.ok().map(drop) })
}

async fn turn(sheepdog: Arc<SheepdogCluster>, worker: Arc<Worker>) -> Result<Action, Failed> {
    if sheepdog.metadata.deletion_timestamp.is_some() {
        // Its objects go with it, its data stay.
        return Ok(Action::await_change());
    }
    let context = &worker.context;
    let turn = reconcile::reconcile(
        &context.client,
        &sheepdog,
        &context.settings,
        &context.anchor,
        &worker.absences,
    );
    // A call to an API server that is gone may never return.
    let turn =
        timeout(LONGEST, turn).await.map_err(|_| Failed(anyhow::anyhow!("Kubernetes does not answer")))?;
    let turn = turn.map_err(Failed)?;
    for news in turn.news {
        tell(&worker.recorder, &sheepdog, news).await;
    }
    Ok(Action::requeue(turn.again))
}

async fn tell(recorder: &Recorder, sheepdog: &SheepdogCluster, news: Transition) {
    info!("{}: {}", news.reason, news.note);
    let event = Event {
        type_: if news.warning { EventType::Warning } else { EventType::Normal },
        reason: news.reason,
        note: Some(news.note),
        action: "Reconcile".into(),
        secondary: None,
    };
    if let Err(problem) = recorder.publish(&event, &sheepdog.object_ref(&())).await {
        warn!("an event is not told: {problem}");
    }
}

fn failed(_: Arc<SheepdogCluster>, _: &Failed, _: Arc<Worker>) -> Action {
    Action::requeue(AGAIN)
}
