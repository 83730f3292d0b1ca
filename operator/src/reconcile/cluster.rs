//! The control API of storage nodes. Client required.

use super::observed::{Answer, ClusterView, StoragePod};
use super::orders::Order;
use anyhow::{Context, Result};
use futures::future::join_all;
use sheep_api::MAX_MESSAGE;
use sheep_api::v1::cluster_client::ClusterClient;
use sheep_api::v1::nodes_client::NodesClient;
use sheep_api::v1::{
    ChangeSettingsRequest, ClusterInfoRequest, DrainNodeRequest, FormatRequest, ListNodesRequest,
    NodeInfoRequest, RemoveNodeRequest,
};
use sheep_tls::Certificates;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// How long a node may take to say how it is; one that takes longer is not there.
const LOOK: Duration = Duration::from_secs(5);
/// How long an order may take, which has to be agreed on by all.
const ORDER: Duration = Duration::from_secs(40);

/// What the operator shows nodes.
type Own<'a> = Option<&'a Arc<Certificates>>;

async fn connect(address: &str, timeout: Duration, own: Own<'_>) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(3))
        .timeout(timeout);
    sheep_tls::connect(&endpoint, own.cloned()).await.with_context(|| format!("{address} does not answer"))
}

fn nodes(channel: Channel) -> NodesClient<Channel> {
    NodesClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

/// Address of the control API at an address of a pod.
pub(super) fn control_address(ip: &str) -> String {
    let port = super::build::CONTROL_PORT;
    match ip.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{ip}:{port}"),
    }
}

async fn ask(address: &str, own: Own<'_>) -> Result<Answer> {
    let channel = connect(address, LOOK, own).await?;
    let node = nodes(channel.clone()).info(NodeInfoRequest {}).await?.into_inner();
    let info = cluster(channel).info(ClusterInfoRequest {}).await?.into_inner();
    Ok(Answer { id: node.node.map(|node| node.id).unwrap_or_default(), info })
}

/// Asks the nodes in all pods, all at once.
pub(super) async fn ask_all(pods: &mut [StoragePod], own: Own<'_>) {
    let asked = pods.iter().map(|pod| {
        let address = pod.ip.as_deref().filter(|_| !pod.leaving).map(control_address);
        async move { ask(&address?, own).await.ok().filter(|answer| !answer.id.is_empty()) }
    });
    let answers = join_all(asked).await;
    for (pod, answer) in pods.iter_mut().zip(answers) {
        pod.answer = answer;
    }
}

/// The cluster `id` as the node sees it that has seen most of it; none if no node of it serves, or it is not known which one it is.
pub(super) async fn view(pods: &[StoragePod], id: Option<&str>, own: Own<'_>) -> Option<ClusterView> {
    let best = super::observed::best_witness(pods, id?)?;
    let of_it = pods.iter().filter(|pod| pod.cluster_id() == id).filter_map(|pod| pod.answer.as_ref());
    let bytes_left = of_it.map(|answer| answer.info.bytes_to_recover).sum();
    let server = control_address(best.ip.as_deref()?);
    let info = best.answer.as_ref()?.info.clone();
    let look = async {
        let channel = connect(&server, LOOK, own).await?;
        let list = nodes(channel.clone()).list(ListNodesRequest {}).await?.into_inner().nodes;
        let members = nodes(channel).info(NodeInfoRequest {}).await?.into_inner().ring_members;
        anyhow::Ok((list, members))
    };
    let (nodes, ring_members) = look.await.ok()?;
    Some(ClusterView { server, info, nodes, ring_members, bytes_left })
}

/// Has a node make the cluster. One that has made it already says so, and that is found the next time.
pub(super) async fn found(ip: &str, copies: u32, min_copies: u32, own: Own<'_>) -> Result<()> {
    let address = control_address(ip);
    let channel = connect(&address, ORDER, own).await?;
    match cluster(channel).format(FormatRequest { copies, min_copies }).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::FailedPrecondition => Ok(()),
        Err(status) => Err(status).with_context(|| format!("{address} does not make a cluster")),
    }
}

/// Gives an order. A node that may not be removed yet is no problem, it is asked for again.
pub(super) async fn give(order: &Order, server: &str, own: Own<'_>) -> Result<()> {
    let channel = connect(server, ORDER, own).await?;
    match order {
        Order::ChangeSettings(settings) => {
            let request = ChangeSettingsRequest { settings: Some(*settings) };
            cluster(channel).change_settings(request).await.context("settings are not changed")?;
        }
        Order::Drain { id, name } => {
            let request = DrainNodeRequest { node: id.clone(), undo: false };
            let drained = nodes(channel).drain(request).await;
            drained.with_context(|| format!("node {name} is not drained"))?;
        }
        Order::TakeBack { id, name } => {
            let request = DrainNodeRequest { node: id.clone(), undo: true };
            let taken = nodes(channel).drain(request).await;
            taken.with_context(|| format!("node {name} is not taken back"))?;
        }
        Order::Remove { id, name } => {
            let request = RemoveNodeRequest { node: id.clone(), force: false };
            match nodes(channel).remove(request).await {
                Ok(_) => tracing::info!(
                    "node {name} ({id}) is removed from the cluster: Kubernetes has it no more"
                ),
                Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::NotFound) => {
                    tracing::info!(
                        "node {name} ({id}) is not removed from the cluster yet: {}",
                        status.message()
                    );
                }
                Err(status) => return Err(status).with_context(|| format!("node {name} is not removed")),
            }
        }
    }
    Ok(())
}
