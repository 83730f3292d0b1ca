//! The side that is called, for the control API.

use crate::{Certificates, sentence};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::warn;

/// A handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once.
const HANDSHAKES: usize = 64;
/// How long one that was refused may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// After the system had no room for another connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections of those who have shown a certificate of the CA.
pub fn incoming(
    listener: TcpListener,
    certificates: Arc<Certificates>,
) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (sender, receiver) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        // One that is slow must not keep others waiting.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (sender, certificates) = (sender.clone(), Arc::clone(&certificates));
            tokio::spawn(async move {
                if let Some(stream) = handshake(stream, &certificates).await {
                    let _ = sender.send(Ok(stream)).await;
                }
                drop(place);
            });
        }
    });
    ReceiverStream::new(receiver)
}

async fn handshake(stream: TcpStream, certificates: &Certificates) -> Option<TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().map_or_else(|_| "somebody".to_owned(), |address| address.to_string());
    let acceptor = TlsAcceptor::from(certificates.current().control());
    let accept = acceptor.accept(stream).into_fallible();
    let (error, mut stream) = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(refused)) => refused,
        Err(_) => return None,
    };
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        warn!("refused a control connection: {peer} {}", sentence(error));
    }
    // What was sent and not read when a connection is closed takes back what the other side was told.
    let farewell = async {
        let _ = stream.shutdown().await;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    None
}
