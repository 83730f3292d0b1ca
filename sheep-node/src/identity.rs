//! A node's directory: who it is, and that nobody else uses it.
//!
//! ```text
//! DIR/FORMAT      "sheepdog 1"
//! DIR/identity    node id and incarnation, checksummed; rewritten before each start
//! DIR/key         the cluster's key, readable by root only
//! DIR/lock        held while a process uses the directory
//! DIR/log/log     the global log and the node's promises; log/log.spare: space for what will replace it
//! DIR/objects/    the object store
//! DIR/disks       where the object stores are, and their numbers
//! ```

use crate::log_file;
use crate::seal::ClusterKey;
use anyhow::{Context, Result, bail, ensure};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{FlockOperation, flock};
use sheep_types::{Incarnation, Member, NodeId};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FORMAT: &str = "sheepdog 1";
const LOG_FILE: &str = "log/log";
/// Bytes that any of the small files may have.
const SMALL: u64 = 4096;

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
        let identity = || write_durably(&path.join("identity"), identity_text(me).as_bytes(), 0o600);
        if identity().is_err() {
            // Maybe the filesystem is full. The node must start all the same, if only to have something deleted.
            log_file::give_up_spare(&path.join(LOG_FILE));
            identity()?;
        }
        if fresh {
            // Last: a directory without it is not a node yet.
            write_durably(&path.join("FORMAT"), format!("{FORMAT}\n").as_bytes(), 0o644)?;
        }
        Ok(Self { path: path.to_owned(), me, fresh, _lock: lock })
    }

    fn check_format(path: &Path) -> Result<bool> {
        match read_small(&path.join("FORMAT")) {
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
                    let ours = ["lock", "identity", "log", "objects", "disks", "key", "lost+found"];
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
        self.path.join(LOG_FILE)
    }

    /// Directory of the object store.
    pub(crate) fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// List of disks.
    pub(crate) fn disks(&self) -> PathBuf {
        self.path.join("disks")
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
    match read_small(path) {
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
    let text = read_small(&file).with_context(|| format!("cannot read {}", file.display()))?;
    match parse_identity(&text).and_then(|last| Some((last.node, last.incarnation.0.checked_add(1)?))) {
        Some((node, incarnation)) => Ok(Member { node, incarnation: Incarnation(incarnation) }),
        None => bail!("{} is damaged", file.display()),
    }
}

/// What [`identity_text`] has written, and nothing else.
fn parse_identity(text: &str) -> Option<Member> {
    let mut words = text.split_whitespace();
    let node = NodeId(u64::from_str_radix(words.next()?, 16).ok()?);
    let member = Member { node, incarnation: Incarnation(words.next()?.parse().ok()?) };
    (identity_text(member) == text).then_some(member)
}

/// Reads a file of a few lines. What is longer is cut off, and will not make sense to the caller.
pub(crate) fn read_small(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(SMALL).read_to_string(&mut text)?;
    Ok(text)
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
    use proptest::prelude::*;

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

    proptest! {
        #[test]
        fn identities_come_back_and_damage_is_seen(
            node in 1u64.., incarnation in any::<u64>(), at in any::<usize>(), byte in any::<u8>(),
        ) {
            let member = Member { node: NodeId(node), incarnation: Incarnation(incarnation) };
            let text = identity_text(member);
            prop_assert_eq!(parse_identity(&text), Some(member));
            let mut damaged = text.clone().into_bytes();
            let at = at % damaged.len();
            damaged[at] = byte;
            if let Ok(damaged) = String::from_utf8(damaged) {
                prop_assert!(damaged == text || parse_identity(&damaged).is_none(), "{damaged:?}");
            }
        }

        /// Whatever is in the small files of a directory: an error, or a node; never a panic.
        #[test]
        fn any_directory_is_refused_or_opened(
            format in garbage(), identity in garbage(), key in garbage(), known in any::<bool>(), ours in any::<bool>(),
        ) {
            let temp = Temp::new("fuzz");
            fs::write(temp.0.join("FORMAT"), if known { FORMAT.as_bytes() } else { &format }).unwrap();
            let last = Member { node: NodeId(7), incarnation: Incarnation(u64::MAX - u64::from(identity.len() as u8 % 3)) };
            let text = identity_text(last);
            fs::write(temp.0.join("identity"), if ours { text.as_bytes() } else { &identity }).unwrap();
            fs::write(temp.0.join("key"), &key).unwrap();
            if let Ok(dir) = NodeDir::open(&temp.0) {
                prop_assert!(dir.me.node == last.node && dir.me.incarnation > last.incarnation);
                let _ = dir.key();
            }
        }
    }

    fn garbage() -> impl Strategy<Value = Vec<u8>> {
        let lines = "[0-9a-f ]{0,70}\n?".prop_map(String::into_bytes);
        prop_oneof![prop::collection::vec(any::<u8>(), 0..200), lines, Just(vec![b'0'; 1 << 20])]
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
