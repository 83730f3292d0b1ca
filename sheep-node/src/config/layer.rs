//! One source of settings: the configuration file, the environment or the command line.

use super::values::{DiskIo, LogFormat, OrNone, Seed};
use clap::Args;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};
use sheep_api::Size;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Prefix of environment variables: `SHEEP_RING_PORT` is `ring_port` of the file and `--ring-port`.
const ENV_PREFIX: &str = "SHEEP_";

/// What one source says. Field names are the keys of the file; flags are the same with dashes.
#[derive(Args, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Layer {
    /// Directory of this node: identity, key, log, objects and control.sock. Made if missing
    #[arg(value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Make a new cluster with this node as its first
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) new: Option<bool>,
    /// Store nothing and never vote; only serve volumes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) gateway: Option<bool>,
    /// Name of the node, for people [default: the host's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Failure domain (rack, room): copies go to different zones [default: each node its own]
    #[arg(long)]
    pub(crate) zone: Option<String>,
    /// Share of the data relative to other nodes [default: by capacity]
    #[arg(long, value_name = "N")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) weight: Option<u32>,
    /// Address that other nodes reach this one at [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) node_listen: Option<IpAddr>,
    /// UDP port of the ring; 0 chooses one [default: 7000]
    #[arg(long, value_name = "PORT")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) ring_port: Option<u16>,
    /// TCP port of the data path; 0 chooses one [default: 7000]
    #[arg(long, value_name = "PORT")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) data_port: Option<u16>,
    /// Address of the control API (also at DIR/control.sock) [default: 127.0.0.1:7002]
    #[arg(long, value_name = "IP:PORT")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) grpc: Option<SocketAddr>,
    /// Address of metrics and health [default: 127.0.0.1:7003]
    #[arg(long, value_name = "IP:PORT")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) http: Option<SocketAddr>,
    /// Address of NBD over TCP, or "none" [default: 127.0.0.1:10809]
    #[arg(long, value_name = "IP:PORT")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) nbd_tcp: Option<OrNone<SocketAddr>>,
    /// Path of the NBD socket, or "none" [default: none]
    #[arg(long, value_name = "PATH")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) nbd_unix: Option<OrNone<PathBuf>>,
    /// Ring address of another node; may be given several times
    #[arg(long = "seed", value_name = "HOST[:PORT]", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    pub(crate) seeds: Option<Vec<Seed>>,
    /// Directory in which nodes on one machine find each other, or "none" [default: /run/sheep]
    #[arg(long, value_name = "DIR")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) rendezvous: Option<OrNone<PathBuf>>,
    /// File with the cluster's key, to join a cluster on another machine
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// File with the certificate of the cluster's CA; the control API then speaks TLS only
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// File with this node's certificate, of that CA
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// File with the private key of the certificate
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Encrypt data between nodes; needs certificates on all of them
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) encrypt_data: Option<bool>,
    /// Most bytes to store on each disk, like 100G [default: what the file system has]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "scalar", serialize_with = "exact")]
    pub(crate) capacity: Option<Size>,
    /// Directory or block device for objects besides DIR/objects; may be given several times
    #[arg(long = "disk", value_name = "PATH", value_delimiter = ',')]
    #[serde(deserialize_with = "list")]
    pub(crate) disks: Option<Vec<PathBuf>>,
    /// How the store uses its disk: direct (io_uring, around the page cache), cached or threads [default: direct]
    #[arg(long, value_name = "HOW")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) disk_io: Option<DiskIo>,
    /// Time without the ring's token after which members look for each other; the same on all nodes
    /// [default: 1000]
    #[arg(long, value_name = "MS")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) token_loss_ms: Option<u64>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) log_format: Option<LogFormat>,
    /// What to log, like "info" or "warn,sheep_node=debug" [default: RUST_LOG, or info]
    #[arg(long, value_name = "FILTER")]
    pub(crate) log_level: Option<String>,
    /// With --new: copies of each object [default: 3]
    #[arg(long, value_name = "N")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) copies: Option<u8>,
    /// With --new: copies below which writes wait [default: 2, or 1 with one copy]
    #[arg(long, value_name = "N")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) min_copies: Option<u8>,
    /// With --new: size of objects, for tests
    #[arg(long, value_name = "SIZE", hide = true)]
    #[serde(deserialize_with = "scalar", serialize_with = "exact")]
    pub(crate) object_size: Option<Size>,
    /// Data threads [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(deserialize_with = "scalar")]
    pub(crate) shards: Option<u16>,
}

impl Layer {
    /// From the text of a configuration file.
    pub(crate) fn from_toml(text: &str) -> Result<Self, String> {
        let layer: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        // A file is read at each start, and a cluster is made once.
        match layer.new {
            Some(_) => {
                Err("new cannot stand in a configuration file: give --new once, at the first start".into())
            }
            None => Ok(layer),
        }
    }

    /// From environment variables. Others that begin with SHEEP_ are ignored: Kubernetes makes some up.
    pub(crate) fn from_env(env: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let known = toml::Table::try_from(Self::example()).map_err(|error| error.to_string())?;
        let mut table = BTreeMap::new();
        for (variable, value) in env {
            let Some(key) = variable.strip_prefix(ENV_PREFIX).map(str::to_ascii_lowercase) else { continue };
            if known.contains_key(&key) {
                table.insert(key, value);
            }
        }
        let mut whole = Self::default();
        // One by one, so that the error can name the variable.
        for (key, value) in table {
            let one = toml::Table::from_iter([(key.clone(), toml::Value::String(value))]);
            let layer: Self = one.try_into().map_err(|error: toml::de::Error| {
                let why = error.message().to_owned();
                format!("environment variable {ENV_PREFIX}{}: {why}", key.to_ascii_uppercase())
            })?;
            whole = layer.over(whole);
        }
        Ok(whole)
    }

    /// A layer with every field set, to know their names.
    pub(super) fn example() -> Self {
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            dir: Some(PathBuf::new()),
            new: Some(false),
            gateway: Some(false),
            name: Some(String::new()),
            zone: Some(String::new()),
            weight: Some(0),
            node_listen: Some(address.ip()),
            ring_port: Some(0),
            data_port: Some(0),
            grpc: Some(address),
            http: Some(address),
            nbd_tcp: Some(OrNone(None)),
            nbd_unix: Some(OrNone(None)),
            seeds: Some(Vec::new()),
            rendezvous: Some(OrNone(None)),
            key: Some(PathBuf::new()),
            tls_ca: Some(PathBuf::new()),
            tls_certificate: Some(PathBuf::new()),
            tls_key: Some(PathBuf::new()),
            encrypt_data: Some(false),
            capacity: Some(Size(0)),
            disks: Some(Vec::new()),
            disk_io: Some(DiskIo::Direct),
            token_loss_ms: Some(0),
            log_format: Some(LogFormat::Text),
            log_level: Some(String::new()),
            copies: Some(0),
            min_copies: Some(0),
            object_size: Some(Size(0)),
            shards: Some(0),
        }
    }

    /// This layer, and what it does not say from another.
    pub(crate) fn over(self, under: Self) -> Self {
        Self {
            dir: self.dir.or(under.dir),
            new: self.new.or(under.new),
            gateway: self.gateway.or(under.gateway),
            name: self.name.or(under.name),
            zone: self.zone.or(under.zone),
            weight: self.weight.or(under.weight),
            node_listen: self.node_listen.or(under.node_listen),
            ring_port: self.ring_port.or(under.ring_port),
            data_port: self.data_port.or(under.data_port),
            grpc: self.grpc.or(under.grpc),
            http: self.http.or(under.http),
            nbd_tcp: self.nbd_tcp.or(under.nbd_tcp),
            nbd_unix: self.nbd_unix.or(under.nbd_unix),
            seeds: self.seeds.or(under.seeds),
            rendezvous: self.rendezvous.or(under.rendezvous),
            key: self.key.or(under.key),
            tls_ca: self.tls_ca.or(under.tls_ca),
            tls_certificate: self.tls_certificate.or(under.tls_certificate),
            tls_key: self.tls_key.or(under.tls_key),
            encrypt_data: self.encrypt_data.or(under.encrypt_data),
            capacity: self.capacity.or(under.capacity),
            disks: self.disks.or(under.disks),
            disk_io: self.disk_io.or(under.disk_io),
            token_loss_ms: self.token_loss_ms.or(under.token_loss_ms),
            log_format: self.log_format.or(under.log_format),
            log_level: self.log_level.or(under.log_level),
            copies: self.copies.or(under.copies),
            min_copies: self.min_copies.or(under.min_copies),
            object_size: self.object_size.or(under.object_size),
            shards: self.shards.or(under.shards),
        }
    }

    /// Names and values of the fields that are set.
    pub(crate) fn table(&self) -> toml::Table {
        // Plain data with string keys always fits TOML.
        toml::Table::try_from(self).unwrap_or_default()
    }
}

/// A value as the file may have it (a number) or any source (text).
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Bool(bool),
    Integer(i64),
    Text(String),
}

impl Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Text(value) => value.fmt(f),
        }
    }
}

fn parse<T: FromStr<Err: Display>, E: Error>(text: &str) -> Result<T, E> {
    text.trim().parse().map_err(|error| E::custom(format!("{text:?}: {error}")))
}

fn scalar<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    parse(&Scalar::deserialize(from)?.to_string()).map(Some)
}

fn list<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        One(String),
        Many(Vec<String>),
    }
    let many = match List::deserialize(from)? {
        List::One(text) => {
            text.split(',').map(|item| item.trim().to_owned()).filter(|s| !s.is_empty()).collect()
        }
        List::Many(many) => many,
    };
    many.iter().map(|item| parse(item)).collect::<Result<_, _>>().map(Some)
}

fn exact<S: serde::Serializer>(size: &Option<Size>, to: S) -> Result<S::Ok, S::Error> {
    match size {
        Some(size) => to.serialize_str(&format!("{size:#}")),
        None => to.serialize_none(),
    }
}
