//! The control API's server. Calls read what the node publishes, order commands through the control thread, and
//! reach contents through the data thread.

mod attachments;
mod changes;
mod check;
mod cluster;
mod contents;
mod convert;
mod disks;
mod find;
mod groups;
mod listing;
mod nodes;
mod ranges;
mod snapshots;
mod status;
#[cfg(test)]
mod tests;
mod vdis;
mod volume;

use crate::config::FirstSettings;
use crate::handle::{NodeHandle, NodeStatus};
use crate::health;
use anyhow::{Context, Result};
use sheep_api::MAX_MESSAGE;
use sheep_api::v1::cluster_server::ClusterServer;
use sheep_api::v1::nodes_server::NodesServer;
use sheep_api::v1::vdis_server::VdisServer;
use sheep_state::{ClusterState, Command, Outcome};
use sheep_tls::Certificates;
use sheep_types::ClusterId;
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;
use tracing::error;

/// Calls of one connection that are served at once.
const CALLS_PER_CONNECTION: usize = 64;
/// How long a call waits for this node to be in the primary component before it is refused. Longer than a
/// change of the ring takes.
const PRIMARY_WAIT: Duration = Duration::from_secs(10);
/// How long a name is looked for: another node may have just made it.
const NAME_WAIT: Duration = Duration::from_millis(250);
/// How long an answer waits until this node shows what the call has done.
const APPLIED_WAIT: Duration = Duration::from_secs(5);

/// Serves the control API on a TCP listener (with certificates: in TLS only) and on a Unix socket until the runtime ends. The
/// socket is there when this returns; the future does the rest. `first` are the settings for `Cluster.Format`, `None` on a gateway.
pub(crate) fn serve(
    node: NodeHandle,
    first: Option<FirstSettings>,
    (tcp, certificates): (TcpListener, Option<Arc<Certificates>>),
    socket: PathBuf,
) -> impl Future<Output = ()> + Send + 'static {
    let unix = bind(&socket);
    async move {
        let routes = routes(&node, first);
        let (one, other) = tokio::join!(serve_tcp(routes.clone(), tcp, certificates), async {
            serve_unix(routes, unix?).await
        });
        for problem in [one, other].into_iter().filter_map(Result::err) {
            error!("the control API has ended: {problem:#}");
        }
    }
}

/// Replaces the socket that a former run left behind: the directory's lock says that it is gone.
fn bind(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let open = || {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(listener)
    };
    open().with_context(|| format!("cannot listen on {}", path.display()))
}

fn routes(node: &NodeHandle, first: Option<FirstSettings>) -> Routes {
    let cluster = ClusterServer::new(cluster::Service::new(node.clone(), first));
    let nodes = NodesServer::new(nodes::Service::new(node.clone()));
    let vdis = VdisServer::new(vdis::Service::new(node.clone()));
    Routes::new(cluster.max_decoding_message_size(MAX_MESSAGE))
        .add_service(nodes.max_decoding_message_size(MAX_MESSAGE))
        .add_service(vdis.max_decoding_message_size(MAX_MESSAGE))
}

fn server() -> Server {
    Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
}

async fn serve_tcp(routes: Routes, tcp: TcpListener, certificates: Option<Arc<Certificates>>) -> Result<()> {
    tcp.set_nonblocking(true)?;
    let tcp = tokio::net::TcpListener::from_std(tcp)?;
    if let Some(certificates) = certificates {
        let incoming = sheep_tls::incoming(tcp, certificates);
        return Ok(server().add_routes(routes).serve_with_incoming(incoming).await?);
    }
    let incoming = TcpListenerStream::new(tcp);
    Ok(server().add_routes(routes).serve_with_incoming(incoming).await?)
}

async fn serve_unix(routes: Routes, unix: UnixListener) -> Result<()> {
    let incoming = UnixListenerStream::new(tokio::net::UnixListener::from_std(unix)?);
    Ok(server().add_routes(routes).serve_with_incoming(incoming).await?)
}

/// What all services need of the node.
impl NodeHandle {
    /// The applied state, as far as there is one; may be old on a node that is not in the primary component.
    fn state(&self) -> Option<Arc<ClusterState>> {
        self.status().published.as_ref().map(|published| Arc::clone(&published.state))
    }

    /// Waits until the node's status is so; `None` if that takes too long.
    async fn wait_status(
        &self,
        limit: Duration,
        so: impl FnMut(&Arc<NodeStatus>) -> bool,
    ) -> Option<Arc<NodeStatus>> {
        let mut watch = self.status.clone();
        let status = tokio::time::timeout(limit, watch.wait_for(so)).await.ok()?.ok()?;
        Some(Arc::clone(&status))
    }

    /// Waits until the applied state is so. `false`: that takes too long.
    async fn wait_state(&self, limit: Duration, mut so: impl FnMut(&ClusterState) -> bool) -> bool {
        let so = |status: &Arc<NodeStatus>| {
            status.published.as_ref().is_some_and(|published| so(&published.state))
        };
        self.wait_status(limit, so).await.is_some()
    }

    /// The state of a node that may act. Nothing is ordered otherwise.
    async fn primary(&self) -> Result<Arc<ClusterState>, Status> {
        let may_act = |status: &Arc<NodeStatus>| {
            status.cluster == ClusterId(0)
                || status.fatal.is_some()
                || (status.primary && status.published.is_some())
        };
        self.wait_status(PRIMARY_WAIT, may_act).await;
        let status = self.status();
        match (health::trouble(&status, &self.data()), &status.published) {
            (None, Some(published)) => Ok(Arc::clone(&published.state)),
            (Some(trouble), _) => Err(Status::unavailable(trouble.message)),
            (None, None) => Err(Status::unavailable("this node knows nothing of its cluster yet")),
        }
    }

    /// Orders a command for a call.
    async fn command(&self, command: Command) -> Result<Outcome, Status> {
        self.order(command).await.map_err(|error| status::not_ordered(&error))
    }
}
