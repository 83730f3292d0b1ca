//! What the kubelet asks whether the process is alive, and whether it can serve. That the cluster does not serve is no reason to start
//! it anew, so for the first question nobody else is asked.

use crate::{Backend, Error, Registration};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long the cluster may take to say that it serves: less than the kubelet waits for.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the kubelet has taken the driver, if it has to, and the cluster serves; and if not, why.
async fn ready(backend: Arc<dyn Backend>, registration: Option<Registration>) -> (StatusCode, String) {
    let missing = match registration.map(|registration| registration.said()) {
        None | Some(Some(Ok(()))) => None,
        Some(None) => {
            Some("the kubelet has not asked yet: is its directory of plugins the right one?".into())
        }
        Some(Some(Err(reason))) => Some(format!("the kubelet has not taken the driver: {reason}")),
    };
    if let Some(missing) = missing {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n"));
    }
    match tokio::time::timeout(PATIENCE, backend.serves()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready\n".into()),
        Ok(Err(problem)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the cluster does not answer\n".into()),
    }
}

/// Answers `GET /livez` (the process is alive) and `GET /readyz` (the kubelet has taken the driver, and the cluster serves)
/// until `end`.
///
/// # Errors
/// The address cannot be listened on, or the server fails.
pub async fn liveness(
    address: SocketAddr,
    backend: Arc<dyn Backend>,
    registration: Option<Registration>,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    let trouble = |problem| Error::Internal(format!("cannot answer on http://{address}: {problem}"));
    let listener = TcpListener::bind(address).await.map_err(trouble)?;
    let ready = move || ready(backend, registration);
    let router = Router::new().route("/livez", get(async || "alive\n")).route("/readyz", get(ready));
    axum::serve(listener, router).with_graceful_shutdown(end).await.map_err(trouble)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use crate::registration::RegistrationStatus;
    use crate::registration::registration_server::Registration as _;
    use std::path::Path;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tonic::Request;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn it_answers_until_the_end_and_is_ready_while_the_cluster_serves() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let cluster = Arc::new(Memory::new(&["n1"]));
        let registration = Registration::new(Path::new("/csi/csi.sock"));
        let server = tokio::spawn(liveness(free, cluster.clone(), Some(registration.clone()), async {
            ended.await.unwrap_or_default();
        }));
        let say = async |plugin_registered: bool| {
            let status = RegistrationStatus { plugin_registered, error: "what is it".into() };
            registration.notify_registration_status(Request::new(status)).await.unwrap();
        };
        for reason in ["has not asked", "what is it"] {
            let waits = get(free, "/readyz").await;
            assert!(waits.starts_with("HTTP/1.1 503") && waits.contains(reason), "{waits}");
            say(false).await;
        }
        say(true).await;
        let ready = get(free, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        cluster.set_trouble(Some("two of three nodes are away"));
        let waits = get(free, "/readyz").await;
        assert!(
            waits.starts_with("HTTP/1.1 503") && waits.contains("two of three nodes are away"),
            "{waits}"
        );
        let alive = get(free, "/livez").await;
        assert!(alive.starts_with("HTTP/1.1 200") && alive.ends_with("alive\n"), "{alive}");
        end.send(()).unwrap();
        server.await.unwrap().unwrap();
    }
}
