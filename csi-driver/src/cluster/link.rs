//! Which node is asked: the first that serves, and the one that an error names.

use super::convert;
use crate::Error;
use sheep_api::v1;
use sheep_api::v1::cluster_client::ClusterClient;
use sheep_api::v1::nodes_client::NodesClient;
use sheep_api::v1::vdis_client::VdisClient;
use sheep_api::{ASK_NODE, MAX_MESSAGE};
use sheep_tls::Certificates;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A node answers within half a minute, or says that it could not.
const CALL_TIMEOUT: Duration = Duration::from_secs(75);
/// So a connection to a node that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How often each address is asked in a call: behind the name of a service there are several nodes, one for each connection.
const ROUNDS: usize = 3;
/// Before they are asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// Nobody else is asked any more when a call has taken so long: callers have limits of their own, and come again.
const PATIENCE: Duration = Duration::from_secs(20);

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    channel: Channel,
}

impl Node {
    /// A socket is spoken to as it is, what is reached over TCP with the certificates, if there are any.
    fn at(address: &str, certificates: Option<&Arc<Certificates>>) -> Result<Self, Error> {
        let socket = address.starts_with("unix:");
        let uri = if socket { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri);
        let endpoint = endpoint.map_err(|_| Error::Invalid(format!("{address:?} is not an address")))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let channel = if socket {
            endpoint.connect_lazy()
        } else {
            sheep_tls::connect_lazy(&endpoint, certificates.cloned())
        };
        Ok(Self { channel })
    }

    pub(super) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    pub(super) fn nodes(&self) -> NodesClient<Channel> {
        NodesClient::new(self.channel.clone())
    }

    pub(super) fn vdis(&self) -> VdisClient<Channel> {
        VdisClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// Whether another node, or another connection, may have another answer: this one does not serve, or broke off.
fn is_unavailable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
}

/// An address, and the connection to what is behind it.
#[derive(Debug)]
struct Place {
    address: String,
    node: Mutex<Node>,
}

impl Place {
    fn at(address: &str, certificates: Option<&Arc<Certificates>>) -> Result<Self, Error> {
        Ok(Self { address: address.to_owned(), node: Mutex::new(Node::at(address, certificates)?) })
    }

    fn node(&self) -> Node {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next call has a connection of its own, perhaps to another node. Calls that are under way keep theirs.
    fn connect_anew(&self, certificates: Option<&Arc<Certificates>>) {
        if let Ok(node) = Node::at(&self.address, certificates) {
            *self.node.lock().unwrap_or_else(PoisonError::into_inner) = node;
        }
    }
}

/// Nodes that may be asked.
#[derive(Debug)]
pub(super) struct Link {
    nodes: Vec<Place>,
    certificates: Option<Arc<Certificates>>,
    /// The one that served last.
    first: AtomicUsize,
}

impl Link {
    pub(super) fn new(addresses: &[String], certificates: Option<Arc<Certificates>>) -> Result<Self, Error> {
        if addresses.is_empty() {
            return Err(Error::Invalid("no address of a node is given".into()));
        }
        let places = addresses.iter().map(|address| Place::at(address, certificates.as_ref()));
        Ok(Self { nodes: places.collect::<Result<_, _>>()?, certificates, first: AtomicUsize::new(0) })
    }

    /// Asks one node after the other until one serves, each time over another connection; where that says that another node
    /// has to be asked, that one. What is asked may be repeated: who could not be reached may have carried it out.
    pub(super) async fn call<T, F>(&self, ask: impl Fn(Node) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (first, begun) = (self.first.load(Ordering::Relaxed), Instant::now());
        let mut problem = Status::unavailable("no node was asked");
        for step in 0..ROUNDS * self.nodes.len() {
            if step > 0 && begun.elapsed() > PATIENCE {
                break;
            }
            if step > 0 && step % self.nodes.len() == 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let at = (first + step) % self.nodes.len();
            let (place, node) = (&self.nodes[at], self.nodes[at].node());
            match ask(node.clone()).await {
                Ok(reply) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(reply.into_inner());
                }
                Err(status) if is_unavailable(&status) => {
                    place.connect_anew(self.certificates.as_ref());
                    // Whatever becomes of this call, the next one begins elsewhere.
                    self.first.store(at + 1, Ordering::Relaxed);
                    problem = status;
                }
                Err(status) => {
                    self.first.store(at, Ordering::Relaxed);
                    return match self.named(&node, &status).await {
                        Some(other) => of_named(ask(other).await),
                        None => Err(convert::error(&status)),
                    };
                }
            }
        }
        Err(convert::error(&problem))
    }

    /// The node that an error says to ask instead.
    async fn named(&self, node: &Node, status: &Status) -> Option<Node> {
        let id = status.metadata().get(ASK_NODE)?.to_str().ok()?.to_owned();
        let list = node.nodes().list(v1::ListNodesRequest {}).await.ok()?.into_inner().nodes;
        let address = list.into_iter().find(|node| node.id == id)?.grpc_addresses.into_iter().next()?;
        Node::at(&address, self.certificates.as_ref()).ok()
    }
}

/// The answer of a node that another one has named.
fn of_named<T>(answer: Result<Response<T>, Status>) -> Result<T, Error> {
    answer.map(Response::into_inner).map_err(|status| {
        if status.metadata().contains_key(ASK_NODE) {
            // It has changed hands again: the caller asks once more.
            return Error::Busy(status.message().to_owned());
        }
        convert::error(&status)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::service::Routes;

    /// An address behind which each connection is to another node. The first ones do not serve, the last one has no volumes. How
    /// many connections there were.
    async fn service(codes: Vec<Code>) -> (String, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let code = codes[counted.fetch_add(1, Ordering::Relaxed).min(codes.len() - 1)];
                let answer =
                    move || async move { Status::new(code, "as it is").into_http::<axum::body::Body>() };
                let routes = Routes::from(axum::Router::new().fallback(answer));
                let one = tokio_stream::iter([Ok::<_, std::io::Error>(stream)]);
                tokio::spawn(tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(one));
            }
        });
        (address, count)
    }

    async fn answer(link: &Link) -> Error {
        let ask = |node: Node| async move { node.nodes().list(v1::ListNodesRequest {}).await };
        link.call(ask).await.unwrap_err()
    }

    /// A connection to the address of a service stays with the node that it came to.
    #[tokio::test]
    async fn a_node_that_does_not_serve_is_left_for_another_one_at_the_same_address() {
        let (address, count) = service(vec![Code::Unavailable, Code::Unknown, Code::NotFound]).await;
        let link = Link::new(&[address], None).unwrap();
        for _ in 0..2 {
            let found = answer(&link).await;
            assert!(matches!(found, Error::NotFound(_)), "{found:?}");
            assert_eq!(count.load(Ordering::Relaxed), 3, "who serves is kept");
        }
    }

    #[tokio::test]
    async fn it_is_given_up_where_nobody_serves_and_with_what_means_come_again() {
        for code in [Code::Unavailable, Code::Unknown, Code::Cancelled] {
            let (address, count) = service(vec![code]).await;
            let found = answer(&Link::new(&[address], None).unwrap()).await;
            assert!(matches!(found, Error::Unavailable(_)), "{code:?}: {found:?}");
            assert_eq!(count.load(Ordering::Relaxed), ROUNDS, "{code:?}");
        }
    }
}
