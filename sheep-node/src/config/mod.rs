//! Settings of one node: a TOML file, over it the environment, over it the command line; checked as a whole.
//!
//! Settings of the cluster (copies, lease, ...) live in the replicated state and are changed by
//! `dog cluster settings`; here are only their first values, for `--new`.

mod layer;
#[cfg(test)]
mod tests;
mod validate;
mod values;

pub(crate) use layer::Layer;
pub(crate) use validate::MIN_CAPACITY;
pub(crate) use values::{DiskIo, LogFormat, OrNone, Seed};

use sheep_state::{Genesis, Settings};
use sheep_tls::{Files, TlsError};
use sheep_types::{ClusterId, Geometry, NodeId};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A lease is this many token-loss timeouts: longer than a change of the ring takes.
const LEASE_PER_TOKEN_LOSS: u32 = 5;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// Nobody said anything.
    Default,
    /// The configuration file.
    File,
    /// A variable `SHEEP_...`.
    Environment,
    /// The command line.
    Flag,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "command line",
        }
    }
}

/// Settings of a node, valid together.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Directory of the node.
    pub(crate) dir: PathBuf,
    /// Make a new cluster.
    pub(crate) new: bool,
    /// Store nothing, only serve volumes.
    pub(crate) gateway: bool,
    /// Name of the node, for people.
    pub(crate) name: String,
    /// Failure domain; empty: the node is one of its own.
    pub(crate) zone: String,
    /// Share of the data; `None`: by capacity.
    pub(crate) weight: Option<u32>,
    /// Address that other nodes reach this one at; never unspecified.
    pub(crate) node_listen: IpAddr,
    /// UDP port of the ring; 0: any.
    pub(crate) ring_port: u16,
    /// TCP port of the data path; 0: any.
    pub(crate) data_port: u16,
    /// Control API.
    pub(crate) grpc: SocketAddr,
    /// Metrics and health.
    pub(crate) http: SocketAddr,
    /// NBD over TCP.
    pub(crate) nbd_tcp: Option<SocketAddr>,
    /// NBD socket.
    pub(crate) nbd_unix: Option<PathBuf>,
    /// Ring addresses of other nodes.
    pub(crate) seeds: Vec<Seed>,
    /// Where nodes of this machine find each other.
    pub(crate) rendezvous: Option<PathBuf>,
    /// File with the cluster's key.
    pub(crate) key: Option<PathBuf>,
    /// Certificate of the cluster's CA.
    pub(crate) tls_ca: Option<PathBuf>,
    /// This node's certificate.
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Its private key.
    pub(crate) tls_key: Option<PathBuf>,
    /// Whether data between nodes must be encrypted.
    pub(crate) encrypt_data: bool,
    /// Most bytes to store on each disk; `None`: what the file system has.
    pub(crate) capacity: Option<u64>,
    /// Disks besides the node's own directory.
    pub(crate) disks: Vec<PathBuf>,
    /// How the store uses its disk.
    pub(crate) disk_io: DiskIo,
    /// The ring's token-loss timeout; its other timers and the lease follow from it.
    pub(crate) token_loss: Duration,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Filter for log lines; `None`: RUST_LOG, or "info".
    pub(crate) log_level: Option<String>,
    /// First settings of a cluster that this node makes.
    pub(crate) first: FirstSettings,
    /// Data threads.
    pub(crate) shards: u16,
    sources: BTreeMap<String, Source>,
    effective: Layer,
}

/// First settings of a cluster that this node makes, by `--new` or `dog cluster format`.
#[derive(Clone, Debug)]
pub(crate) struct FirstSettings {
    /// Sizes of objects.
    pub(crate) geometry: Geometry,
    /// All other settings.
    pub(crate) settings: Settings,
}

impl FirstSettings {
    /// The first entry of a cluster with this node as its only voter.
    pub(crate) fn genesis(&self, cluster: ClusterId, first: NodeId) -> Genesis {
        Genesis { cluster, geometry: self.geometry, settings: self.settings.clone(), voters: vec![first] }
    }
}

impl Config {
    /// Puts the sources together and checks the result.
    ///
    /// # Errors
    /// Everything that is wrong, one sentence per line.
    pub(crate) fn build(flags: Layer, env: Layer, file: Layer) -> Result<Self, String> {
        let mut sources = BTreeMap::new();
        for (layer, source) in [(&file, Source::File), (&env, Source::Environment), (&flags, Source::Flag)] {
            sources.extend(layer.table().into_iter().map(|(key, _)| (key, source)));
        }
        let given = flags.over(env).over(file);
        let mut problems = Vec::new();
        let first = first_settings(&given, &mut problems);
        let effective = given.clone().over(defaults(&given, &first.settings));
        let config = Self::from_layer(effective, given.log_level, first, sources);
        problems.extend(validate::problems(&config));
        if problems.is_empty() { Ok(config) } else { Err(problems.join("\n")) }
    }

    fn from_layer(
        layer: Layer,
        log_level: Option<String>,
        first: FirstSettings,
        sources: BTreeMap<String, Source>,
    ) -> Self {
        let effective = layer.clone();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            dir: layer.dir.unwrap_or_default(),
            new: layer.new.unwrap_or_default(),
            gateway: layer.gateway.unwrap_or_default(),
            name: layer.name.unwrap_or_default(),
            zone: layer.zone.unwrap_or_default(),
            weight: layer.weight,
            node_listen: layer.node_listen.unwrap_or(any.ip()),
            ring_port: layer.ring_port.unwrap_or_default(),
            data_port: layer.data_port.unwrap_or_default(),
            grpc: layer.grpc.unwrap_or(any),
            http: layer.http.unwrap_or(any),
            nbd_tcp: layer.nbd_tcp.and_then(|it| it.0),
            nbd_unix: layer.nbd_unix.and_then(|it| it.0),
            seeds: layer.seeds.unwrap_or_default(),
            rendezvous: layer.rendezvous.and_then(|it| it.0),
            key: layer.key,
            tls_ca: layer.tls_ca,
            tls_certificate: layer.tls_certificate,
            tls_key: layer.tls_key,
            encrypt_data: layer.encrypt_data.unwrap_or_default(),
            capacity: layer.capacity.map(|size| size.0),
            token_loss: Duration::from_millis(layer.token_loss_ms.unwrap_or_default()),
            disks: layer.disks.unwrap_or_default(),
            disk_io: layer.disk_io.unwrap_or_default(),
            log_format: layer.log_format.unwrap_or_default(),
            log_level,
            first,
            shards: layer.shards.unwrap_or_default(),
            sources,
            effective,
        }
    }

    /// Where the value of a key of the file comes from.
    pub(crate) fn source(&self, key: &str) -> Source {
        self.sources.get(key).copied().unwrap_or(Source::Default)
    }

    /// Whether another port may be taken if the one of this setting is in use: only if nobody asked for it, so
    /// that several nodes with default settings run on one machine.
    pub(crate) fn may_move(&self, key: &str) -> bool {
        self.source(key) == Source::Default
    }

    /// Data path address.
    pub(crate) fn data_address(&self) -> SocketAddr {
        (self.node_listen, self.data_port).into()
    }

    /// Where the certificates are, if there are any.
    ///
    /// # Errors
    /// Some of the three are missing.
    pub(crate) fn certificates(&self) -> Result<Option<Files>, TlsError> {
        Files::all_or_none(
            self.tls_ca.as_deref(),
            self.tls_certificate.as_deref(),
            self.tls_key.as_deref(),
            "tls_ca, tls_certificate and tls_key",
        )
    }

    /// The settings as a configuration file, with the source of each value.
    pub(crate) fn to_toml(&self) -> String {
        let set = self.effective.table();
        let mut text = String::new();
        for key in Layer::example().table().keys() {
            // A tool for one start, not for a file.
            let comment = if key == "new" { "# " } else { "" };
            // Writing to a String cannot fail.
            let _ = match set.get(key) {
                Some(value) => writeln!(text, "{comment}{key} = {value} # {}", self.source(key).name()),
                None => writeln!(text, "# {key} is not set"),
            };
        }
        text
    }
}

/// Settings for a new cluster, as far as they are given; what cannot work becomes a problem.
fn first_settings(given: &Layer, problems: &mut Vec<String>) -> FirstSettings {
    let standard = Settings::default();
    let copies = given.copies.unwrap_or(standard.copies);
    let min_copies = given.min_copies.unwrap_or(standard.min_copies.min(copies));
    let token_loss = given.token_loss_ms.unwrap_or(1_000);
    let lease_ms = token_loss.saturating_mul(u64::from(LEASE_PER_TOKEN_LOSS));
    let settings = Settings { copies, min_copies, lease_ms, ..standard };
    let geometry = match given.object_size.map(|size| u32::try_from(size.0)) {
        None => Ok(Geometry::default()),
        Some(Ok(size)) => Geometry::with_object_size(size).map_err(|error| error.to_string()),
        Some(Err(_)) => Err("object_size must be a power of two from 64 KiB to 4 MiB".to_owned()),
    };
    let geometry = geometry.unwrap_or_else(|problem| {
        problems.push(problem);
        Geometry::default()
    });
    FirstSettings { geometry, settings }
}

fn defaults(given: &Layer, first: &Settings) -> Layer {
    let local = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    Layer {
        new: Some(false),
        gateway: Some(false),
        name: given.name.is_none().then(host),
        zone: Some(String::new()),
        node_listen: Some(Ipv4Addr::LOCALHOST.into()),
        ring_port: Some(7000),
        data_port: Some(7000),
        grpc: local(7002),
        http: local(7003),
        nbd_tcp: Some(OrNone(local(10809))),
        nbd_unix: Some(OrNone(None)),
        seeds: Some(Vec::new()),
        rendezvous: Some(OrNone(Some("/run/sheep".into()))),
        encrypt_data: Some(false),
        disks: Some(Vec::new()),
        disk_io: Some(DiskIo::Direct),
        token_loss_ms: Some(1_000),
        log_format: Some(LogFormat::Text),
        copies: Some(first.copies),
        min_copies: Some(first.min_copies),
        shards: Some(1),
        ..Layer::default()
    }
}
