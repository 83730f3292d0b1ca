//! The side that calls, for the control API.

use crate::identity::node_name;
use crate::{Certificates, sentence};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::service_fn;

/// The first byte of a TLS alert, which no answer of HTTP/2 begins with: it begins with the length of its settings.
const ALERT: u8 = 21;
/// Said by programs that are given certificates by these options.
const NO_CERTIFICATES: &str = "this node speaks TLS only, and no certificates are given: give --tls-ca, --tls-certificate and --tls-key";

/// Connects to a control API over TCP: with TLS if there are certificates, else without.
///
/// # Errors
/// The node is not reached, or either side refuses the other's certificate.
pub async fn connect(endpoint: &Endpoint, certificates: Option<Arc<Certificates>>) -> Result<Channel, Error> {
    endpoint.connect_with_connector(service_fn(move |uri| dial(uri, certificates.clone()))).await
}

/// The same when it is first used, and again whenever the connection broke.
pub fn connect_lazy(endpoint: &Endpoint, certificates: Option<Arc<Certificates>>) -> Channel {
    endpoint.connect_with_connector_lazy(service_fn(move |uri| dial(uri, certificates.clone())))
}

pub(crate) async fn dial(uri: Uri, certificates: Option<Arc<Certificates>>) -> io::Result<TokioIo<Stream>> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    tcp.set_nodelay(true)?;
    let Some(certificates) = certificates else { return Ok(TokioIo::new(Stream::Plain(tcp, true))) };
    let connector = TlsConnector::from(certificates.current().client());
    let stream = connector.connect(node_name(), tcp).await.map_err(told)?;
    Ok(TokioIo::new(Stream::Tls(Box::new(stream))))
}

/// An error of TLS as a sentence. That of a certificate which the server refuses comes with the first answer.
fn told(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => io::Error::new(error.kind(), format!("the node {}", sentence(inner))),
        None => error,
    }
}

/// A connection to a node.
pub(crate) enum Stream {
    /// And whether nothing was read yet.
    Plain(TcpStream, bool),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, first) => {
                let before = buf.filled().len();
                let done = Pin::new(stream).poll_read(cx, buf);
                if let Some(&ALERT) = buf.filled().get(before).filter(|_| std::mem::take(first)) {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, NO_CERTIFICATES)));
                }
                done
            }
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf).map_err(told),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf).map_err(told),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx).map_err(told),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx).map_err(told),
        }
    }
}
