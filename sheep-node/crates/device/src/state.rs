//! What devices there are, in files: what has to be known to go on with them, or to take them away.

use crate::holder::Holder;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tracing::error;

/// Longest word of a file's name, bytes.
pub(crate) const MAX_WORD: usize = 64;
/// Longest name of a node: what Kubernetes allows.
pub(crate) const MAX_NODE: usize = 253;

/// A volume of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) cluster: String,
    pub(crate) volume: u64,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.cluster, self.volume)
    }
}

/// What a device is; its state file has just this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) volume: u64,
    /// The attachment that it was made for: under another one it writes nothing.
    pub(crate) attachment: u64,
    /// The volume's name, for people.
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    /// The loop device, once there is one.
    pub(crate) path: Option<PathBuf>,
}

impl State {
    pub(crate) fn key(&self) -> Key {
        Key { cluster: self.cluster.clone(), volume: self.volume }
    }

    /// The name of the device's file. The kernel shows it with the loop device, in whatever container and namespace one looks.
    pub(crate) fn mark(&self) -> String {
        let Self { cluster, node, volume, attachment, .. } = self;
        format!("sheep:{cluster}:{}:{volume}:{attachment}", short(node))
    }

    /// The name of the export at the gateway.
    pub(crate) fn export(&self) -> String {
        format!("@{}:{}:{}", self.cluster, self.volume, self.attachment)
    }
}

/// Refuses what cannot be part of names of files and devices, or is longer than `most` letters.
pub(crate) fn check_word(what: &str, word: &str, most: usize) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let fine = (1..=most).contains(&word.len()) && word.bytes().all(plain) && !word.starts_with('.');
    ensure!(
        fine,
        "{what} {word:?} is not made of 1 to {most} letters, digits, dots, underscores and hyphens"
    );
    Ok(())
}

/// The name of a node as it fits into the name of a file beside other things: what is too long ends with a hash of the whole
/// (FNV-1a, which is the same in every version).
fn short(node: &str) -> String {
    if node.len() <= MAX_WORD {
        return node.to_owned();
    }
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let head: String = node.chars().take(MAX_WORD - 17).collect();
    format!("{head}-{hash:016x}")
}

/// Where things are, and who asks.
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    pub(crate) nbd: PathBuf,
    pub(crate) node: String,
    pub(crate) holder: Arc<Holder>,
    /// The kernel gives requests that a worker had read to the next one.
    pub(crate) resend: bool,
}

impl Place {
    fn file(&self, key: &Key) -> PathBuf {
        self.directory.join(format!("{key}.json"))
    }

    /// Where the file system with the device's one file is mounted.
    pub(crate) fn point(&self, key: &Key) -> PathBuf {
        self.directory.join(key.to_string())
    }

    /// What is in all state files. One that cannot be read is kept aside, for people; it must not keep the others from
    /// being served.
    pub(crate) fn states(&self) -> Result<Vec<State>> {
        let entries = std::fs::read_dir(&self.directory).context("the directory of devices")?;
        let mut states = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension() != Some(OsStr::new("json")) {
                continue;
            }
            match read(&path) {
                Ok(state) => states.push(state),
                Err(problem) => {
                    let aside = path.with_extension("unreadable");
                    error!("{} is now {}, its device is lost: {problem:#}", path.display(), aside.display());
                    std::fs::rename(&path, &aside).with_context(|| path.display().to_string())?;
                }
            }
        }
        Ok(states)
    }

    pub(crate) fn save(&self, state: &State) -> Result<()> {
        let path = self.file(&state.key());
        let draft = path.with_extension("new");
        std::fs::write(&draft, serde_json::to_vec(state)?)?;
        std::fs::File::open(&draft)?.sync_all()?;
        std::fs::rename(&draft, &path)?;
        Ok(std::fs::File::open(&self.directory)?.sync_all()?)
    }

    pub(crate) fn forget(&self, key: &Key) {
        let _ = std::fs::remove_file(self.file(key));
    }
}

fn read(path: &Path) -> Result<State> {
    let state: State = serde_json::from_slice(&std::fs::read(path)?)?;
    let named = Some(state.key().to_string());
    ensure!(
        path.file_stem().map(|stem| stem.to_string_lossy().into_owned()) == named,
        "it has another's contents"
    );
    Ok(state)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_devices_apart_and_fit_into_paths() {
        let state = State {
            cluster: "ab".into(),
            node: "node-1.example".into(),
            volume: 7,
            attachment: 99,
            name: "v".into(),
            size: 4096,
            read_only: false,
            path: None,
        };
        assert_eq!(state.mark(), "sheep:ab:node-1.example:7:99");
        assert_eq!((state.export().as_str(), state.key().to_string().as_str()), ("@ab:7:99", "ab-7"));
        check_word("node", &state.node, MAX_NODE).unwrap();
        for word in ["", ".", "..", "a/b", "a:b", "a b", "\u{e4}", &"x".repeat(65)] {
            assert!(check_word("cluster", word, MAX_WORD).is_err(), "{word:?}");
        }
    }

    /// Kubernetes allows longer names of nodes than can stand in the name of a file beside all else.
    #[test]
    fn long_names_of_nodes_are_cut_and_still_differ() {
        let mark = |node: String| {
            check_word("node", &node, MAX_NODE).unwrap();
            let (cluster, name, path) = ("c".repeat(MAX_WORD), "v".to_owned(), None);
            let (volume, attachment) = (u64::MAX, u64::MAX);
            let state = State { cluster, node, volume, attachment, name, size: 4096, read_only: false, path };
            let mark = state.mark();
            assert!(mark.len() <= 255 && mark.split(':').count() == 5, "{mark}");
            mark
        };
        let (one, other) = ("n".repeat(252) + "1", "n".repeat(252) + "2");
        assert_ne!(mark(one.clone()), mark(other));
        assert_eq!(mark(one.clone()), mark(one), "it is found again");
        let whole = "n".repeat(MAX_WORD);
        assert!(mark(whole.clone()).contains(&format!(":{whole}:")));
        assert!(check_word("node", &"n".repeat(254), MAX_NODE).is_err());
    }
}
