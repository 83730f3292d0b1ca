//! The kubelet learns of the driver: it finds a socket in its directory of plugins, asks there what it is and where the
//! driver is, and says whether it has taken it.

use crate::registration::registration_server::{Registration as Service, RegistrationServer};
use crate::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use crate::serve::listen;
use crate::{DRIVER, Error};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::{error, info};

/// What the kubelet is told, and has said.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The driver's socket, by the path that the kubelet sees.
    endpoint: PathBuf,
    said: Arc<Mutex<Option<Result<(), String>>>>,
    changed: Arc<Notify>,
}

impl Registration {
    /// Of a driver on this socket.
    pub fn new(endpoint: &Path) -> Self {
        Self { endpoint: endpoint.to_owned(), said: Arc::default(), changed: Arc::default() }
    }

    /// What the kubelet has said: nothing yet, that it has taken the driver, or why it has not.
    pub fn said(&self) -> Option<Result<(), String>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the kubelet says something.
    pub async fn heard(&self) -> Result<(), String> {
        loop {
            let changed = self.changed.notified();
            if let Some(said) = self.said() {
                return said;
            }
            changed.await;
        }
    }
}

#[tonic::async_trait]
impl Service for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let said = if status.plugin_registered { Ok(()) } else { Err(status.error) };
        match &said {
            Ok(()) => info!("the kubelet has taken the driver"),
            Err(reason) => error!("the kubelet has not taken the driver: {reason}"),
        }
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        self.changed.notify_waiters();
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Serves the registration of the driver on a socket in the kubelet's directory until `end`.
///
/// # Errors
/// The socket cannot be made, or the server fails.
pub async fn register(
    registration: Registration,
    socket: &Path,
    end: impl Future<Output = ()>,
) -> Result<(), Error> {
    let incoming = UnixListenerStream::new(listen(socket)?);
    let router = Server::builder().add_service(RegistrationServer::new(registration));
    let served = router.serve_with_incoming_shutdown(incoming, end).await;
    let _ = std::fs::remove_file(socket);
    served.map_err(|error| Error::Internal(format!("registration has failed: {error}")))
}
