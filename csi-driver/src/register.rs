//! The kubelet learns of the driver: it finds a socket in its directory of plugins, asks there what it is and where the
//! driver is, and says whether it has taken it.

use crate::registration::registration_server::{Registration as Service, RegistrationServer};
use crate::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use crate::serve::listen;
use crate::{DRIVER, Error};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
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

    /// Waits until the kubelet says that it does not take the driver.
    async fn refused(&self) {
        loop {
            let changed = self.changed.notified();
            if matches!(self.said(), Some(Err(_))) {
                return;
            }
            changed.await;
        }
    }

    /// Begins anew.
    fn forget(&self) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = None;
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

/// The kubelet asks the driver what node it is on before it takes it, and a gateway that has just been started cannot tell yet.
const PAUSE: Duration = Duration::from_secs(1);

/// Serves the registration of the driver on a socket in the kubelet's directory until `end`. The kubelet asks a socket once. If it
/// does not take the driver then, the socket is made anew, and that it sees.
///
/// # Errors
/// The socket cannot be made, or the server fails.
pub async fn register(
    registration: Registration,
    socket: &Path,
    end: impl Future<Output = ()>,
) -> Result<(), Error> {
    tokio::pin!(end);
    let mut ended = false;
    while !ended {
        let incoming = UnixListenerStream::new(listen(socket)?);
        let router = Server::builder().add_service(RegistrationServer::new(registration.clone()));
        let over = async {
            tokio::select! {
                () = &mut end => ended = true,
                () = registration.refused() => {}
            }
        };
        let served = router.serve_with_incoming_shutdown(incoming, over).await;
        let _ = std::fs::remove_file(socket);
        served.map_err(|error| Error::Internal(format!("registration has failed: {error}")))?;
        if !ended {
            tokio::select! {
                () = &mut end => ended = true,
                () = tokio::time::sleep(PAUSE) => registration.forget(),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registration::registration_client::RegistrationClient;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn a_socket_is_made_anew_after_a_refusal() {
        let path = std::env::temp_dir().join(format!("sheep-csi-{}@reg.sock", std::process::id()));
        let registration = Registration::new(Path::new("/csi/csi.sock"));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn({
            let (registration, path) = (registration.clone(), path.clone());
            async move { register(registration, &path, async { stopped.await.unwrap_or_default() }).await }
        });
        let made = || std::fs::metadata(&path).map(|file| file.ctime_nsec());
        let wait = async |other: i64| {
            while made().map_or(true, |now| now == other) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            made().unwrap()
        };
        let first = wait(-1).await;
        let say = async |plugin_registered: bool| {
            let mut kubelet = RegistrationClient::connect(format!("unix:{}", path.display())).await.unwrap();
            let status = RegistrationStatus { plugin_registered, error: "not yet".into() };
            kubelet.notify_registration_status(status).await.unwrap();
        };
        say(false).await;
        wait(first).await;
        assert_eq!(registration.said(), None);
        say(true).await;
        assert_eq!(registration.heard().await, Ok(()));
        let _ = stop.send(());
        server.await.unwrap().unwrap();
        assert!(!path.exists());
    }
}
