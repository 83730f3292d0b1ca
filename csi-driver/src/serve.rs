//! Sockets and what is served on them.

use crate::v1::controller_server::ControllerServer;
use crate::v1::identity_server::IdentityServer;
use crate::v1::node_server::NodeServer;
use crate::{Backend, Controller, Error, Identity, Node};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// What a process serves.
pub struct Services {
    /// The cluster.
    pub backend: Arc<dyn Backend>,
    /// Volumes.
    pub controller: Option<Controller>,
    /// Devices and mounts.
    pub node: Option<Node>,
}

/// A listener on a Unix socket, in the place of what an earlier process left there.
pub(crate) fn listen(socket: &Path) -> Result<UnixListener, Error> {
    let stale = std::fs::symlink_metadata(socket).is_ok_and(|file| file.file_type().is_socket());
    if stale {
        let _ = std::fs::remove_file(socket);
    }
    let listen = || {
        let listener = UnixListener::bind(socket)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        Ok::<_, std::io::Error>(listener)
    };
    listen().map_err(|error| Error::Internal(format!("cannot listen on {}: {error}", socket.display())))
}

/// Serves on a Unix socket until `end`. The socket is there when this is first polled.
///
/// # Errors
/// The socket cannot be made, or the server fails.
pub async fn serve(services: Services, socket: &Path, end: impl Future<Output = ()>) -> Result<(), Error> {
    let incoming = UnixListenerStream::new(listen(socket)?);
    let router = Server::builder()
        .add_service(IdentityServer::new(Identity::new(services.backend)))
        .add_optional_service(services.controller.map(ControllerServer::new))
        .add_optional_service(services.node.map(NodeServer::new));
    let served = router.serve_with_incoming_shutdown(incoming, end).await;
    let _ = std::fs::remove_file(socket);
    served.map_err(|error| Error::Internal(format!("the server on {} has failed: {error}", socket.display())))
}
