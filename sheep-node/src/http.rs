//! Metrics and health over HTTP.

use crate::handle::NodeHandle;
use crate::health;
use crate::metrics::Metrics;
use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::net::TcpListener;
use std::sync::Arc;
use tracing::error;

struct Pages {
    node: NodeHandle,
    metrics: Metrics,
}

/// Serves `/metrics`, `/livez` and `/readyz` until the runtime ends.
pub(crate) async fn serve(node: NodeHandle, listener: TcpListener) {
    if let Err(problem) = run(node, listener).await {
        error!("metrics and health have ended: {problem:#}");
    }
}

async fn run(node: NodeHandle, listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let pages = Arc::new(Pages { metrics: Metrics::new(node.clone()), node });
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(pages);
    Ok(axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await?)
}

async fn metrics(State(pages): State<Arc<Pages>>) -> Response {
    match pages.metrics.encode() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The process answers, and has not given up: restarting it would not help otherwise.
async fn livez(State(pages): State<Arc<Pages>>) -> Response {
    match &pages.node.status().fatal {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// The node can do its part.
async fn readyz(State(pages): State<Arc<Pages>>) -> Response {
    match health::trouble(&pages.node.status(), &pages.node.data()) {
        None => "ok\n".into_response(),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", trouble.message)).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeNode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer)
    }

    #[tokio::test]
    async fn pages_over_loopback() {
        let fake = FakeNode::start();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(fake.handle.clone(), listener));
        assert_eq!(get(address, "/livez").await.0, 200);
        assert_eq!(get(address, "/readyz").await.0, 200);
        assert_eq!(get(address, "/nothing").await.0, 404);
        let (code, text) = get(address, "/metrics").await;
        assert_eq!(code, 200);
        assert!(text.contains("application/openmetrics-text"), "{text}");
        assert!(text.contains("sheepdog_primary 1") && text.trim_end().ends_with("# EOF"), "{text}");

        fake.set_status(|status| status.primary = false);
        let (code, text) = get(address, "/readyz").await;
        assert_eq!(code, 503);
        assert!(text.contains("volumes wait"), "{text}");
        assert_eq!(get(address, "/livez").await.0, 200, "a minority is no reason to restart");
        fake.set_status(|status| status.fatal = Some("the log lies".into()));
        assert_eq!(get(address, "/livez").await.0, 503);
        server.abort();
    }
}
