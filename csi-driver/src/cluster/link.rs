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
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A node answers within half a minute, or says that it could not.
const CALL_TIMEOUT: Duration = Duration::from_secs(75);
/// So a connection to a node that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

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

/// Nodes that may be asked.
#[derive(Debug)]
pub(super) struct Link {
    nodes: Vec<Node>,
    certificates: Option<Arc<Certificates>>,
    /// The one that served last.
    first: AtomicUsize,
}

impl Link {
    pub(super) fn new(addresses: &[String], certificates: Option<Arc<Certificates>>) -> Result<Self, Error> {
        if addresses.is_empty() {
            return Err(Error::Invalid("no address of a node is given".into()));
        }
        let nodes = addresses.iter().map(|address| Node::at(address, certificates.as_ref()));
        Ok(Self { nodes: nodes.collect::<Result<_, _>>()?, certificates, first: AtomicUsize::new(0) })
    }

    /// Asks one node after the other until one serves; where that says that another node has to be asked, that one. What is
    /// asked may be repeated: who could not be reached may have carried it out.
    pub(super) async fn call<T, F>(&self, ask: impl Fn(Node) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let first = self.first.load(Ordering::Relaxed);
        let mut problem = Status::unavailable("no node was asked");
        for step in 0..self.nodes.len() {
            let at = (first + step) % self.nodes.len();
            let node = &self.nodes[at];
            match ask(node.clone()).await {
                Ok(reply) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(reply.into_inner());
                }
                Err(status) if status.code() == Code::Unavailable => problem = status,
                Err(status) => {
                    self.first.store(at, Ordering::Relaxed);
                    return match self.named(node, &status).await {
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
