//! How sheep on one machine find each other: a directory with a file per node.
//!
//! `DIR/<node id>` holds the node's ring address; `DIR/key`, readable by root only, the cluster's key. Loopback
//! has no multicast, so this is what makes `sheep DIR` after `sheep --new DIR` just work.

use crate::identity::{read_key, read_small, write_durably};
use crate::seal::ClusterKey;
use anyhow::{Context, Result};
use sheep_types::NodeId;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Nodes of one machine that are looked at; a directory full of anything else must not fill the memory.
const NODES: usize = 1024;

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
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
            .filter_map(|entry| read_small(&entry.path()).ok()?.lines().next()?.parse().ok())
            .take(NODES)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever lies in the directory, the nodes that announced themselves are found.
        #[test]
        fn garbage_beside_the_nodes_is_passed_over(
            files in prop::collection::vec(("[0-9a-f]{16}", prop::collection::vec(any::<u8>(), 0..60)), 0..5),
            names in prop::collection::vec("[a-z.]{1,20}", 0..3),
            cut in 0usize..30,
        ) {
            let dir = std::env::temp_dir().join(format!("sheep-rendezvous-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            let (ring, grpc) = ("127.0.0.1:7000".parse().unwrap(), "127.0.0.1:7002".parse().unwrap());
            let whole = format!("{ring}\n{grpc}\n");
            for (name, contents) in &files {
                fs::write(dir.join(name), contents).unwrap();
            }
            for name in names.iter().filter(|name| !name.starts_with('.')) {
                fs::create_dir_all(dir.join(name)).unwrap();
            }
            // Cut off within the line of an address, as after a power cut of a file system that allows that.
            fs::write(dir.join("00000000000000ff"), whole.get(..cut).unwrap_or(&whole)).unwrap();
            let rendezvous = Rendezvous::join(&dir, NodeId(1), ring, grpc).unwrap();
            let peers = rendezvous.peers();
            prop_assert!(peers.contains(&ring) && peers.len() <= files.len() + 2);
            let _ = Rendezvous::key(&dir);
            drop(rendezvous);
            fs::remove_dir_all(&dir).unwrap();
        }
    }
}
