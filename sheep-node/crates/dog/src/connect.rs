//! Which node to talk to, and how to reach others through it.

use crate::output::describe;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use sheep_api::v1::cluster_client::ClusterClient;
use sheep_api::v1::nodes_client::NodesClient;
use sheep_api::v1::vdis_client::VdisClient;
use sheep_api::v1::{ListNodesRequest, Node, NodeInfoRequest};
use sheep_api::{ASK_NODE, MAX_MESSAGE};
use sheep_tls::{Certificates, Files, Role};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

const DEFAULT: &str = "127.0.0.1:7002";
/// Where nodes of this machine announce themselves.
const RENDEZVOUS: &str = "/run/sheep";
/// Names that directory, if it is another one; the same variable as for `sheep`.
const RENDEZVOUS_VARIABLE: &str = "SHEEP_RENDEZVOUS";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A node of this machine that is tried answers within this time, or is taken for dead.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Which node to ask, and as whom.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Target {
    /// Node to ask: its directory, unix:PATH or HOST:PORT [default: 127.0.0.1:7002, or a node of this machine]
    #[arg(short, long, global = true, env = "DOG_SERVER", value_name = "SERVER")]
    pub(crate) server: Option<String>,
    /// Certificate of the cluster's CA, for nodes that speak TLS
    #[arg(long, global = true, env = "SHEEP_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Certificate to show them, of that CA
    #[arg(long, global = true, env = "SHEEP_TLS_CERTIFICATE", value_name = "FILE")]
    tls_certificate: Option<PathBuf>,
    /// Private key of the certificate
    #[arg(long, global = true, env = "SHEEP_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
}

impl Target {
    fn files(&self) -> Result<Option<Files>> {
        Ok(Files::all_or_none(
            self.tls_ca.as_deref(),
            self.tls_certificate.as_deref(),
            self.tls_key.as_deref(),
            "--tls-ca, --tls-certificate and --tls-key",
        )?)
    }
}

/// Addresses of the node to ask, in the order in which to try them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    addresses: Vec<String>,
    certificates: Option<Files>,
}

/// One node's services.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    channel: Channel,
    /// For connections to other nodes.
    certificates: Option<Files>,
}

impl Server {
    /// What the user says, or the default address and after it nodes of this machine.
    pub(crate) fn find(target: &Target) -> Result<Self> {
        let addresses = match &target.server {
            Some(text) => vec![address(text)],
            None => {
                let directory = std::env::var_os(RENDEZVOUS_VARIABLE).unwrap_or_else(|| RENDEZVOUS.into());
                [DEFAULT.to_owned()].into_iter().chain(announced(Path::new(&directory))).collect()
            }
        };
        Ok(Self { addresses, certificates: target.files()? })
    }

    /// Connects to the first that answers. What announced itself may be dead, or its port somebody else's by now.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        if let [address] = &self.addresses[..] {
            return Connection::to(address, self.certificates.as_ref()).await;
        }
        let mut tried = String::new();
        for address in &self.addresses {
            match tokio::time::timeout(TRIAL_TIMEOUT, self.tried(address)).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(problem)) => tried += &format!("\n  {address}: {}", describe(&problem)),
                Err(_) => tried += &format!("\n  {address}: no answer within {} s", TRIAL_TIMEOUT.as_secs()),
            }
        }
        bail!("no node of this machine answers; say with -s which to ask. Tried:{tried}")
    }

    /// Connects to one address if a node answers there.
    async fn tried(&self, address: &str) -> Result<Connection> {
        let connection = Connection::to(address, self.certificates.as_ref()).await?;
        connection.nodes().info(NodeInfoRequest::default()).await?;
        Ok(connection)
    }
}

/// The address meant by what the user says.
fn address(text: &str) -> String {
    if text.starts_with("unix:") {
        return text.to_owned();
    }
    // A name with a port is never taken for a path by accident: paths are given with a slash, or exist.
    let path = Path::new(text);
    if text.contains('/') || path.is_dir() {
        let socket =
            if path.is_dir() || !path.exists() { path.join("control.sock") } else { path.to_path_buf() };
        return format!("unix:{}", socket.display());
    }
    if text.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
        return format!("[{text}]:7002");
    }
    if text.contains(':') { text.to_owned() } else { format!("{text}:7002") }
}

/// Control addresses of nodes that announced themselves on this machine: the second line of their files.
fn announced(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let text = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path()).ok();
    let address = |text: String| text.lines().nth(1).filter(|line| line.contains(':')).map(str::to_owned);
    let mut found: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_name() != "key")
        .filter_map(|entry| address(text(entry)?))
        .collect();
    found.sort();
    found
}

impl Connection {
    /// Connects to one address: to a socket as it is, over TCP with the certificates, if there are any.
    async fn to(address: &str, certificates: Option<&Files>) -> Result<Self> {
        let socket = address.starts_with("unix:");
        let uri = if socket { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(uri).with_context(|| format!("{address} is not an address"))?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
        let channel = if socket {
            endpoint.connect().await
        } else {
            let opened = certificates.map(|files| Certificates::open(files.clone(), Role::Client));
            sheep_tls::connect(&endpoint, opened.transpose()?.map(Arc::new)).await
        };
        let channel = channel.with_context(|| format!("cannot reach a node at {address}"))?;
        Ok(Self { channel, certificates: certificates.cloned() })
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    pub(crate) fn nodes(&self) -> NodesClient<Channel> {
        NodesClient::new(self.channel.clone())
    }

    pub(crate) fn vdis(&self) -> VdisClient<Channel> {
        VdisClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// All nodes of the cluster.
    pub(crate) async fn list(&self) -> Result<Vec<Node>> {
        Ok(self.nodes().list(ListNodesRequest {}).await?.into_inner().nodes)
    }

    /// A connection to another node of the cluster.
    pub(crate) async fn other(&self, node: &Node) -> Result<Self> {
        let mut problem = anyhow!("node {} has told no control address", label(node));
        for address in &node.grpc_addresses {
            match Self::to(address, self.certificates.as_ref()).await {
                Ok(connection) => return Ok(connection),
                Err(error) => problem = error,
            }
        }
        Err(problem)
    }

    /// Connections to all nodes that run; those that cannot be reached are given with the reason.
    pub(crate) async fn all(&self) -> Result<Vec<(Node, Result<Self>)>> {
        let mut all = Vec::new();
        for node in self.list().await? {
            if node.state == "up" || node.state == "leaving" {
                let connection = self.other(&node).await;
                all.push((node, connection));
            }
        }
        Ok(all)
    }

    /// The node that a word means; without one, the one that is connected.
    pub(crate) async fn at(self, node: Option<&str>) -> Result<Self> {
        match node {
            Some(word) => self.other(pick(&self.list().await?, word)?).await,
            None => Ok(self),
        }
    }

    /// Asks every storage node that runs, of those that are wanted.
    pub(crate) async fn ask_storage<T>(
        &self,
        wanted: impl Fn(&Node) -> bool,
        ask: impl AsyncFn(Self) -> Result<Response<T>, Status>,
    ) -> Result<Vec<(Node, Result<T>)>> {
        let mut replies = Vec::new();
        for (node, other) in self.all().await? {
            if node.role == "storage" && wanted(&node) {
                let reply = match other {
                    Ok(other) => ask(other).await.map(Response::into_inner).map_err(Into::into),
                    Err(error) => Err(error),
                };
                replies.push((node, reply));
            }
        }
        Ok(replies)
    }

    /// Asks the connected node, and where it says that another one is to be asked, that one.
    pub(crate) async fn or_holder<T>(
        &self,
        ask: impl AsyncFn(&Self) -> Result<Response<T>, Status>,
    ) -> Result<T> {
        let result = match ask(self).await {
            Err(error) => match self.ask_instead(&error).await {
                Some(holder) => ask(&holder).await,
                None => Err(error),
            },
            done => done,
        };
        Ok(result?.into_inner())
    }

    /// The node that an error says to ask instead, if it is another one.
    async fn ask_instead(&self, error: &Status) -> Option<Self> {
        let id = error.metadata().get(ASK_NODE)?.to_str().ok()?.to_owned();
        let node = self.list().await.ok()?.into_iter().find(|node| node.id == id)?;
        self.other(&node).await.ok()
    }
}

/// A node as people call it.
pub(crate) fn label(node: &Node) -> String {
    if node.name.is_empty() { node.id.clone() } else { format!("{} ({})", node.name, node.id) }
}

/// The node that a word means: its id, the beginning of one, or its name.
pub(crate) fn pick<'a>(nodes: &'a [Node], word: &str) -> Result<&'a Node> {
    if let Some(node) = nodes.iter().find(|node| node.id == word) {
        return Ok(node);
    }
    let named: Vec<&Node> = nodes.iter().filter(|node| node.name == word).collect();
    let found = if named.is_empty() {
        nodes.iter().filter(|node| !word.is_empty() && node.id.starts_with(word)).collect()
    } else {
        named
    };
    match found[..] {
        [node] => Ok(node),
        [] => bail!("no node {word:?}; `dog node list` shows all"),
        _ => bail!(
            "{word:?} may be any of {}; write more of its id",
            found.iter().map(|n| label(n)).collect::<Vec<_>>().join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_sockets_and_addresses() {
        let dir = std::env::temp_dir().join(format!("dog-connect-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let name = dir.display().to_string();
        std::fs::write(dir.join("s"), "").unwrap();
        for (given, meant) in [
            (name.as_str(), format!("unix:{name}/control.sock")),
            (&format!("{name}/s"), format!("unix:{name}/s")),
            ("/does/not/exist", "unix:/does/not/exist/control.sock".into()),
            ("unix:/x", "unix:/x".into()),
            ("host", "host:7002".into()),
            ("host:1", "host:1".into()),
            ("::1", "[::1]:7002".into()),
            ("[::1]:5", "[::1]:5".into()),
        ] {
            let target = Target { server: Some(given.to_owned()), ..Target::default() };
            assert_eq!(Server::find(&target).unwrap().addresses, [meant], "{given}");
        }
        std::fs::write(dir.join("00000000000000aa"), "127.0.0.1:7000\n127.0.0.2:7002\n").unwrap();
        std::fs::write(dir.join("key"), "secret\nnot:this\n").unwrap();
        assert_eq!(announced(&dir), ["127.0.0.2:7002"]);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(announced(&dir), Vec::<String>::new());
    }

    #[test]
    fn certificates_are_given_whole_or_not_at_all() {
        let mut target = Target { tls_ca: Some("/ca".into()), ..Target::default() };
        assert!(Server::find(&target).unwrap_err().to_string().contains("all three of --tls-ca"));
        (target.tls_certificate, target.tls_key) = (Some("/c".into()), Some("/k".into()));
        assert!(Server::find(&target).unwrap().certificates.is_some());
    }

    #[test]
    fn nodes_by_id_beginning_or_name() {
        let node = |id: &str, name: &str| Node { id: id.into(), name: name.into(), ..Node::default() };
        let nodes = [node("aa01", "x"), node("aa02", "y"), node("bb03", "y"), node("cc", "aa02")];
        assert_eq!(pick(&nodes, "aa01").unwrap().id, "aa01");
        assert_eq!(pick(&nodes, "aa02").unwrap().id, "aa02", "an id goes before a name");
        assert_eq!(pick(&nodes, "b").unwrap().id, "bb03");
        assert_eq!(pick(&nodes, "x").unwrap().id, "aa01");
        assert!(pick(&nodes, "y").unwrap_err().to_string().contains("aa02"));
        assert!(pick(&nodes, "aa").is_err() && pick(&nodes, "zz").is_err() && pick(&nodes, "").is_err());
    }
}
