//! What the kubelet asks whether the process is alive. That the cluster does not serve is no reason to start it anew, so nobody
//! else is asked.

use crate::Error;
use axum::Router;
use axum::routing::get;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Answers `GET /livez` until `end`.
///
/// # Errors
/// The address cannot be listened on, or the server fails.
pub async fn liveness(
    address: SocketAddr,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    let trouble = |problem| Error::Internal(format!("cannot answer on http://{address}: {problem}"));
    let listener = TcpListener::bind(address).await.map_err(trouble)?;
    let router = Router::new().route("/livez", get(async || "alive\n"));
    axum::serve(listener, router).with_graceful_shutdown(end).await.map_err(trouble)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn it_answers_until_the_end() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let server = tokio::spawn(liveness(free, async { ended.await.unwrap_or_default() }));
        let mut stream = loop {
            match TcpStream::connect(free).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("alive\n"), "{text}");
        end.send(()).unwrap();
        server.await.unwrap().unwrap();
    }
}
