//! Types of single settings.

use serde::{Serialize, Serializer};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Port of the ring, if a seed does not say.
const RING_PORT: u16 = 7000;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be text or json"),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl Serialize for LogFormat {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// How the store uses its disk. What a machine has not got is left out, with a line in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DiskIo {
    /// io_uring, around the page cache.
    #[default]
    Direct,
    /// io_uring, through the page cache.
    Cached,
    /// Threads, through the page cache.
    Threads,
}

impl FromStr for DiskIo {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "direct" => Ok(Self::Direct),
            "cached" => Ok(Self::Cached),
            "threads" => Ok(Self::Threads),
            _ => Err("must be direct, cached or threads"),
        }
    }
}

impl fmt::Display for DiskIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Cached => "cached",
            Self::Threads => "threads",
        })
    }
}

impl Serialize for DiskIo {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Something that can be switched off with the word "none".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrNone<T>(pub(crate) Option<T>);

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))) }
    }
}

impl Serialize for OrNone<SocketAddr> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(address) => to.collect_str(address),
            None => to.serialize_str("none"),
        }
    }
}

impl Serialize for OrNone<PathBuf> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(path) => to.collect_str(&path.display()),
            None => to.serialize_str("none"),
        }
    }
}

/// Ring address of another node, as given: a name is looked up when it is used, because names move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seed {
    host: String,
    port: u16,
}

impl FromStr for Seed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a seed is HOST or HOST:PORT, an IPv6 address with a port stands in [ ]";
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::new(&address.ip().to_string(), address.port()).ok_or(WRONG);
        }
        if let Ok(ip) = text.parse::<std::net::IpAddr>() {
            return Ok(Self { host: ip.to_string(), port: RING_PORT });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| WRONG)?),
            None => (text, RING_PORT),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if !host.chars().all(is_name) {
            return Err(WRONG);
        }
        Self::new(host, port).ok_or(WRONG)
    }
}

impl Seed {
    fn new(host: &str, port: u16) -> Option<Self> {
        (!host.is_empty() && port != 0).then(|| Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Serialize for Seed {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
