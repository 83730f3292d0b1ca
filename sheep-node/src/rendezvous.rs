//! How sheep on one machine find each other: a directory with a file per node.
//!
//! `DIR/<node id>` holds the node's ring address; `DIR/key`, readable by root only, the cluster's key. Loopback
//! has no multicast, so this is what makes `sheep DIR` after `sheep --new DIR` just work.

use crate::identity::{read_key, write_durably};
use crate::seal::ClusterKey;
use anyhow::{Context, Result};
use sheep_types::NodeId;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The directory, and what this node put there.
pub(crate) struct Rendezvous {
    dir: PathBuf,
    own: PathBuf,
}

impl Rendezvous {
    /// Announces this node. A directory that cannot be made is an error only if nothing else finds peers.
    pub(crate) fn join(dir: &Path, node: NodeId, ring: SocketAddr, grpc: SocketAddr) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let own = dir.join(node.to_string());
        write_durably(&own, format!("{ring}\n{grpc}\n").as_bytes(), 0o644)?;
        Ok(Self { dir: dir.to_owned(), own })
    }

    /// Ring addresses of all nodes that announced themselves, this one included.
    pub(crate) fn peers(&self) -> Vec<SocketAddr> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let is_node = |name: &str| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_str().is_some_and(is_node))
            .filter_map(|entry| fs::read_to_string(entry.path()).ok()?.lines().next()?.parse().ok())
            .collect()
    }

    /// The key that a cluster on this machine left here.
    pub(crate) fn key(dir: &Path) -> Result<Option<ClusterKey>> {
        read_key(&dir.join("key"))
    }

    /// Leaves the key for others.
    pub(crate) fn set_key(dir: &Path, key: &ClusterKey) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        write_durably(&dir.join("key"), key.to_text().as_bytes(), 0o600)
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.own);
    }
}
