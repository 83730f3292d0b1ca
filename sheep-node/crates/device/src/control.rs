//! What the worker is asked over its Unix socket: a line of JSON each way.

use crate::device::{Device, release, remove};
use crate::holder::Kept;
use crate::state::{Key, MAX_WORD, Place, State, check_word, lock};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tracing::{error, info, warn};

/// Longest request.
const REQUEST_MAX: u64 = 64 << 10;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "call", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Attach {
        cluster: String,
        volume: u64,
        attachment: u64,
        name: String,
        read_only: bool,
    },
    Detach {
        cluster: String,
        volume: u64,
        #[serde(default)]
        force: bool,
    },
    Resize {
        cluster: String,
        volume: u64,
        size: u64,
    },
    List,
}

/// Why a call cannot be carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another call for the volume is under way: ask again.
    Busy,
    /// The gateway does not serve the volume now: ask again.
    Unavailable(String),
    /// Somebody uses the device.
    InUse(String),
    /// The attachment is over, for good.
    Ended(String),
    /// As it says.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(problem: E) -> Self {
        Self::Failed(problem.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy => f.write_str("another call for the volume is under way"),
            Self::Unavailable(text) | Self::InUse(text) | Self::Ended(text) => f.write_str(text),
            Self::Failed(problem) => write!(f, "{problem:#}"),
        }
    }
}

impl Failure {
    fn word(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Unavailable(_) => "unavailable",
            Self::InUse(_) => "in-use",
            Self::Ended(_) => "ended",
            Self::Failed(_) => "failed",
        }
    }
}

/// A device as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Shown {
    cluster: String,
    volume: u64,
    attachment: u64,
    name: String,
    size: u64,
    read_only: bool,
    path: Option<PathBuf>,
    kind: &'static str,
    /// "served"; "busy": a call is under way; "ended": its attachment is over; "lost": nobody serves it any more. Users of the last two
    /// get errors, and they have to be detached.
    state: &'static str,
    /// It goes on when the worker dies.
    survives: bool,
}

enum Entry {
    /// Somebody works on it.
    Busy(State),
    Served(Device),
    /// What nobody can go on with.
    Lost(State),
}

impl Entry {
    fn shown(&self) -> Shown {
        let (state, word, survives) = match self {
            Self::Busy(state) => (state, "busy", false),
            Self::Served(device) if device.has_ended() => (&device.state, "ended", false),
            Self::Served(device) => (&device.state, "served", device.survives()),
            Self::Lost(state) => (state, "lost", false),
        };
        let State { cluster, volume, attachment, name, size, read_only, path, .. } = state.clone();
        let kind = "fuse";
        Shown { cluster, volume, attachment, name, size, read_only, path, kind, state: word, survives }
    }

    fn state(&self) -> &State {
        match self {
            Self::Busy(state) | Self::Lost(state) => state,
            Self::Served(device) => &device.state,
        }
    }
}

/// All devices of this node.
pub(crate) struct Devices {
    place: Arc<Place>,
    /// Never locked while anything is waited for.
    entries: Mutex<BTreeMap<Key, Entry>>,
}

/// What becomes of an entry that was worked on, and what is answered.
type Worked = (Option<Entry>, Result<(), Failure>);

impl Devices {
    /// Goes on with what there is.
    pub(crate) fn take_over(place: Place, mut kept: Kept) -> Result<Self> {
        let place = Arc::new(place);
        let mut entries = BTreeMap::new();
        for state in place.states()? {
            if state.node != place.node {
                warn!("the device of volume {} is of node {}, and left alone", state.name, state.node);
                continue;
            }
            let key = state.key();
            let entry = match Device::take_over(&place, state.clone(), &mut kept) {
                Some(device) => Entry::Served(device),
                None => {
                    error!("the device of volume {} is lost: its users get errors", state.name);
                    release(&place, &state)?;
                    Entry::Lost(state)
                }
            };
            entries.insert(key, entry);
        }
        for name in kept.keys() {
            warn!("nobody knows what {name} is for");
            place.holder.release(name)?;
        }
        Ok(Self { place, entries: Mutex::new(entries) })
    }

    fn call(&self, request: Request) -> Result<Vec<Shown>, Failure> {
        match request {
            Request::List => Ok(lock(&self.entries).values().map(Entry::shown).collect()),
            Request::Attach { cluster, volume, attachment, name, read_only } => {
                check_word("cluster", &cluster, MAX_WORD)?;
                let node = self.place.node.clone();
                let state = State { cluster, node, volume, attachment, name, size: 0, read_only, path: None };
                self.work(state.key(), Some(&state), |present| self.attach(present, &state))
            }
            Request::Detach { cluster, volume, force } => {
                self.work(Key { cluster, volume }, None, |present| self.detach(present, force))
            }
            Request::Resize { cluster, volume, size } => {
                self.work(Key { cluster, volume }, None, |present| match present {
                    Some(Entry::Served(mut device)) => {
                        let resized = device.resize(&self.place, size);
                        (Some(Entry::Served(device)), resized.map_err(Failure::from))
                    }
                    other => (other, Err(anyhow::anyhow!("volume {volume} has no device here").into())),
                })
            }
        }
    }

    /// Works on what there is of a volume, or on what is to be, while other calls for it are refused.
    fn work(
        &self,
        key: Key,
        wanted: Option<&State>,
        work: impl FnOnce(Option<Entry>) -> Worked,
    ) -> Result<Vec<Shown>, Failure> {
        let present = {
            let mut entries = lock(&self.entries);
            let state = match entries.get(&key) {
                Some(Entry::Busy(_)) => return Err(Failure::Busy),
                Some(entry) => Some(entry.state().clone()),
                None => wanted.cloned(),
            };
            let present = entries.remove(&key);
            entries.extend(state.map(|state| (key.clone(), Entry::Busy(state))));
            present
        };
        let (left, result) = work(present);
        let mut entries = lock(&self.entries);
        entries.remove(&key);
        let shown = left.iter().map(Entry::shown).collect();
        entries.extend(left.map(|entry| (key, entry)));
        result.map(|()| shown)
    }

    fn attach(&self, mut present: Option<Entry>, wanted: &State) -> Worked {
        let newer = present.as_ref().is_some_and(|entry| entry.state().attachment > wanted.attachment);
        if newer {
            let text = format!("volume {} was attached to this node again since", wanted.name);
            return (present, Err(Failure::Ended(text)));
        }
        if let Some(Entry::Served(device)) = &mut present
            && device.state.attachment == wanted.attachment
        {
            let result = if device.has_ended() {
                Err(Failure::Ended(format!("volume {} was taken away from this node", wanted.name)))
            } else if device.state.read_only != wanted.read_only {
                Err(Failure::InUse(format!("volume {} has a device of another kind here", wanted.name)))
            } else {
                device.have_loop(&self.place).map_err(Failure::from)
            };
            return (present, result);
        }
        let mut device = match Device::open(&self.place, wanted.clone()) {
            Ok(device) => device,
            Err(problem) => return (present, Err(problem)),
        };
        // The gateway has opened the volume under another attachment: nothing can be saved of an older one's device.
        let cleared = match present {
            Some(Entry::Served(mut old)) => match old.unmake(&self.place, true) {
                Ok(()) => Ok(()),
                Err(problem) => Err((Entry::Served(old), problem)),
            },
            Some(entry) => {
                let removed = remove(&self.place, entry.state(), true);
                removed.map_err(|problem| (entry, Failure::from(problem)))
            }
            None => Ok(()),
        };
        if let Err((entry, problem)) = cleared {
            if let Err(left) = device.give_up(&self.place) {
                warn!("{left:#}");
            }
            return (Some(entry), Err(problem));
        }
        match device.make(&self.place) {
            Ok(()) => (Some(Entry::Served(device)), Ok(())),
            Err(problem) => (None, Err(problem.into())),
        }
    }

    fn detach(&self, present: Option<Entry>, force: bool) -> Worked {
        match present {
            Some(Entry::Served(mut device)) => match device.unmake(&self.place, force) {
                Ok(()) => {
                    info!("the device of volume {} is gone", device.state.name);
                    (None, Ok(()))
                }
                Err(problem) => (Some(Entry::Served(device)), Err(problem)),
            },
            Some(entry) => match remove(&self.place, entry.state(), true) {
                Ok(()) => (None, Ok(())),
                Err(problem) => (Some(entry), Err(problem.into())),
            },
            None => (None, Ok(())),
        }
    }

    fn converse(&self, mut stream: UnixStream) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut line = String::new();
            if reader.by_ref().take(REQUEST_MAX).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let request = serde_json::from_str(&line).context("the request is not understood");
            let answer = match request.map_err(Failure::from).and_then(|request| self.call(request)) {
                Ok(devices) => serde_json::json!({ "devices": devices }),
                Err(problem) => serde_json::json!({ "error": problem.to_string(), "kind": problem.word() }),
            };
            stream.write_all(format!("{answer}\n").as_bytes())?;
        }
    }

    /// Answers until the process ends.
    pub(crate) fn serve(self) -> Result<()> {
        let path = self.place.directory.join("devices.sock");
        if std::fs::symlink_metadata(&path).is_ok_and(|file| file.file_type().is_socket()) {
            std::fs::remove_file(&path)?;
        }
        let listener =
            UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        info!("sheep-device ready: {}", path.display());
        let devices = Arc::new(self);
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(problem) => {
                    warn!("nobody can be let in: {problem}");
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    continue;
                }
            };
            let devices = Arc::clone(&devices);
            let client = move || {
                if let Err(problem) = devices.converse(stream) {
                    warn!("a client: {problem:#}");
                }
            };
            if let Err(problem) = std::thread::Builder::new().spawn(client) {
                warn!("a client is not answered: {problem}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        let attach =
            r#"{"call":"attach","cluster":"c","volume":7,"attachment":9,"name":"v","read_only":false}"#;
        let Ok(Request::Attach { volume: 7, attachment: 9, .. }) = serde_json::from_str(attach) else {
            panic!()
        };
        let detach: Request = serde_json::from_str(r#"{"call":"detach","cluster":"c","volume":7}"#).unwrap();
        assert_eq!(detach, Request::Detach { cluster: "c".into(), volume: 7, force: false });
        for odd in [
            "",
            "{}",
            r#"{"call":"format"}"#,
            r#"{"call":"detach","volume":7}"#,
            r#"{"call":"attach","cluster":"c","volume":7,"name":"v","read_only":false}"#,
            r#"{"call":"resize","cluster":"c","volume":1,"size":-1}"#,
        ] {
            assert!(serde_json::from_str::<Request>(odd).is_err(), "{odd}");
        }
    }
}
