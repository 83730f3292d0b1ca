//! A node's directory: who it is, and that nobody else uses it.
//!
//! ```text
//! DIR/FORMAT      "sheepdog 1"
//! DIR/identity    node id and incarnation, checksummed; rewritten before each start
//! DIR/key         the cluster's key, readable by root only
//! DIR/lock        held while a process uses the directory
//! DIR/log/log     the global log and the node's promises
//! DIR/objects/    the object store
//! ```

use crate::seal::ClusterKey;
use anyhow::{Context, Result, bail, ensure};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{FlockOperation, flock};
use sheep_types::{Incarnation, Member, NodeId};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FORMAT: &str = "sheepdog 1";

/// The directory of a running node; the lock is held as long as this lives.
#[derive(Debug)]
pub(crate) struct NodeDir {
    path: PathBuf,
    /// This node in this run.
    pub(crate) me: Member,
    /// The directory was made by this start.
    pub(crate) fresh: bool,
    _lock: File,
}

impl NodeDir {
    /// Opens or makes the directory and begins a new incarnation, durably.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make directory {}", path.display()))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("{} is in use by another sheep process", path.display());
        }
        let fresh = Self::check_format(path)?;
        for sub in ["log", "objects"] {
            fs::create_dir_all(path.join(sub))?;
        }
        let me = if fresh {
            Member { node: random_node()?, incarnation: Incarnation(1) }
        } else {
            next_run(path)?
        };
        write_durably(&path.join("identity"), identity_text(me).as_bytes(), 0o600)?;
        if fresh {
            // Last: a directory without it is not a node yet.
            write_durably(&path.join("FORMAT"), format!("{FORMAT}\n").as_bytes(), 0o644)?;
        }
        Ok(Self { path: path.to_owned(), me, fresh, _lock: lock })
    }

    fn check_format(path: &Path) -> Result<bool> {
        match fs::read_to_string(path.join("FORMAT")) {
            Ok(text) if text.trim() == FORMAT => Ok(false),
            Ok(text) => bail!(
                "{} has format {:?}, which this program does not know (it knows {FORMAT:?}): it was written by a \
                 newer release, or is not a Sheepdog directory",
                path.display(),
                text.trim()
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // `lock` is ours; the rest of what we make may be there from a start that was cut short.
                for entry in fs::read_dir(path)? {
                    let name = entry?.file_name();
                    let ours = ["lock", "identity", "log", "objects", "key", "lost+found"];
                    ensure!(
                        ours.iter().any(|known| name == *known) || name.to_string_lossy().ends_with(".new"),
                        "{} is not empty and not a Sheepdog directory (it has {name:?})",
                        path.display()
                    );
                }
                Ok(true)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}/FORMAT", path.display())),
        }
    }

    /// The cluster's key, if this node has one.
    pub(crate) fn key(&self) -> Result<Option<ClusterKey>> {
        read_key(&self.path.join("key"))
    }

    /// Keeps the cluster's key.
    pub(crate) fn set_key(&self, key: &ClusterKey) -> Result<()> {
        write_durably(&self.path.join("key"), key.to_text().as_bytes(), 0o600)
    }

    /// File of the global log.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.path.join("log/log")
    }

    /// Directory of the object store.
    pub(crate) fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// Socket of the control API.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(bytes)
}

fn random_node() -> Result<NodeId> {
    // Zero names nobody.
    Ok(NodeId(u64::from_le_bytes(random()?).max(1)))
}

/// Reads a key file; `None` if there is none.
pub(crate) fn read_key(path: &Path) -> Result<Option<ClusterKey>> {
    match fs::read_to_string(path) {
        Ok(text) => match ClusterKey::parse(&text) {
            Some(key) => Ok(Some(key)),
            None => bail!("{} is not a key file (64 hexadecimal digits)", path.display()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn identity_text(me: Member) -> String {
    let line = format!("{:016x} {}", me.node.0, me.incarnation.0);
    format!("{line} {:08x}\n", crc32c::crc32c(line.as_bytes()))
}

fn next_run(path: &Path) -> Result<Member> {
    let file = path.join("identity");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let parsed = match words[..] {
        [node, incarnation, crc] => u64::from_str_radix(node, 16)
            .ok()
            .zip(incarnation.parse::<u64>().ok())
            .filter(|_| format!("{:08x}", crc32c::crc32c(format!("{node} {incarnation}").as_bytes())) == crc),
        _ => None,
    };
    let Some((node, incarnation)) = parsed else { bail!("{} is damaged", file.display()) };
    Ok(Member { node: NodeId(node), incarnation: Incarnation(incarnation + 1) })
}

/// Replaces a file so that after a power cut it is the old one or the new one.
pub(crate) fn write_durably(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Temp(PathBuf);

    impl Temp {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sheep-identity-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Temp {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn each_start_is_a_new_run_of_the_same_node() {
        let temp = Temp::new("runs");
        let first = NodeDir::open(&temp.0).unwrap();
        assert!(first.fresh);
        let member = first.me;
        assert!(NodeDir::open(&temp.0).unwrap_err().to_string().contains("in use"));
        drop(first);
        let second = NodeDir::open(&temp.0).unwrap();
        assert!(!second.fresh);
        assert_eq!(second.me, Member { node: member.node, incarnation: Incarnation(2) });
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let temp = Temp::new("foreign");
        fs::write(temp.0.join("thesis.tex"), "x").unwrap();
        assert!(NodeDir::open(&temp.0).unwrap_err().to_string().contains("not empty"));
        fs::remove_file(temp.0.join("thesis.tex")).unwrap();
        fs::write(temp.0.join("FORMAT"), "sheepdog 99\n").unwrap();
        assert!(NodeDir::open(&temp.0).unwrap_err().to_string().contains("newer release"));
    }

    #[test]
    fn a_damaged_identity_is_an_error() {
        let temp = Temp::new("damage");
        drop(NodeDir::open(&temp.0).unwrap());
        let text = fs::read_to_string(temp.0.join("identity")).unwrap();
        fs::write(temp.0.join("identity"), text.replacen(' ', " 9", 1)).unwrap();
        assert!(NodeDir::open(&temp.0).unwrap_err().to_string().contains("damaged"));
    }
}
