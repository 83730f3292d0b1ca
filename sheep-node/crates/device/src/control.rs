//! What the worker is asked over its Unix socket: a line of JSON each way.

use crate::device::{Device, Place, State, remove};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::{info, warn};

/// Longest request.
const REQUEST_MAX: u64 = 64 << 10;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "call", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Attach {
        cluster: String,
        volume: u64,
        name: String,
        size: u64,
        read_only: bool,
    },
    Detach {
        volume: u64,
        #[serde(default)]
        force: bool,
    },
    Resize {
        volume: u64,
        size: u64,
    },
    List,
}

/// A device as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Shown {
    cluster: String,
    volume: u64,
    name: String,
    size: u64,
    read_only: bool,
    path: Option<PathBuf>,
    kind: &'static str,
    /// "served"; or "lost": nobody serves it any more, its users get errors, and it has to be detached.
    state: &'static str,
    /// It goes on when the worker dies.
    survives: bool,
}

enum Entry {
    Served(Device),
    /// What a former holder took with it.
    Lost(State),
}

impl Entry {
    fn shown(&self) -> Shown {
        let (state, word, survives) = match self {
            Self::Served(device) => (&device.state, "served", device.survives()),
            Self::Lost(state) => (state, "lost", false),
        };
        let State { cluster, volume, name, size, read_only, path, .. } = state.clone();
        Shown { cluster, volume, name, size, read_only, path, kind: "fuse", state: word, survives }
    }
}

/// All devices of this node.
pub(crate) struct Devices {
    place: Arc<Place>,
    entries: Mutex<BTreeMap<u64, Entry>>,
}

impl Devices {
    /// Goes on with what there is.
    pub(crate) fn take_over(place: Place) -> Result<Self> {
        let mut kept = place.holder.kept()?;
        let place = Arc::new(place);
        let mut entries = BTreeMap::new();
        for state in place.states()? {
            if state.node != place.node {
                warn!("the device of volume {} is of node {}, and left alone", state.name, state.node);
                continue;
            }
            let id = state.volume;
            let nbd = kept.remove(&format!("nbd-{id}"));
            let entry = match (kept.remove(&format!("fuse-{id}")), &state.path) {
                (Some(fuse), Some(_)) => Entry::Served(Device::take_over(&place, state, fuse, nbd)?),
                _ => Entry::Lost(state),
            };
            entries.insert(id, entry);
        }
        Ok(Self { place, entries: Mutex::new(entries) })
    }

    fn call(&self, request: Request) -> Result<Vec<Shown>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match request {
            Request::List => Ok(entries.values().map(Entry::shown).collect()),
            Request::Attach { cluster, volume, name, size, read_only } => {
                match entries.get(&volume) {
                    Some(Entry::Served(device)) if device.state.cluster != cluster => {
                        bail!("volume {volume} of cluster {} has a device here", device.state.cluster)
                    }
                    Some(Entry::Served(device)) if device.state.read_only != read_only => {
                        bail!("volume {name} has a device of another kind here")
                    }
                    Some(entry @ Entry::Served(_)) => return Ok(vec![entry.shown()]),
                    Some(Entry::Lost(state)) => remove(&self.place, state)?,
                    None => {}
                }
                entries.remove(&volume);
                let node = self.place.node.clone();
                let state = State { cluster, node, volume, name, size, read_only, path: None };
                let device = Entry::Served(Device::make(&self.place, state)?);
                let shown = device.shown();
                entries.insert(volume, device);
                Ok(vec![shown])
            }
            Request::Detach { volume, force } => {
                match entries.get_mut(&volume) {
                    Some(Entry::Served(device)) => device.unmake(&self.place, force)?,
                    Some(Entry::Lost(state)) => remove(&self.place, state)?,
                    None => return Ok(Vec::new()),
                }
                entries.remove(&volume);
                info!("the device of volume {volume} is gone");
                Ok(Vec::new())
            }
            Request::Resize { volume, size } => match entries.get_mut(&volume) {
                Some(Entry::Served(device)) => {
                    device.resize(&self.place, size)?;
                    Ok(entries.get(&volume).map(Entry::shown).into_iter().collect())
                }
                _ => bail!("volume {volume} has no device here"),
            },
        }
    }

    fn converse(&self, mut stream: UnixStream) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let mut line = String::new();
            if reader.by_ref().take(REQUEST_MAX).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let answer = serde_json::from_str(&line).context("the request is not understood");
            let answer = match answer.and_then(|request| self.call(request)) {
                Ok(devices) => serde_json::json!({ "devices": devices }),
                Err(problem) => serde_json::json!({ "error": format!("{problem:#}") }),
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
        for stream in listener.incoming() {
            let (devices, stream) = (Arc::clone(&devices), stream?);
            std::thread::spawn(move || {
                if let Err(problem) = devices.converse(stream) {
                    warn!("a client: {problem:#}");
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        let attach = r#"{"call":"attach","cluster":"c","volume":7,"name":"v","size":4096,"read_only":false}"#;
        let Ok(Request::Attach { volume: 7, size: 4096, .. }) = serde_json::from_str(attach) else {
            panic!()
        };
        let detach: Request = serde_json::from_str(r#"{"call":"detach","volume":7}"#).unwrap();
        assert_eq!(detach, Request::Detach { volume: 7, force: false });
        for odd in [
            "",
            "{}",
            r#"{"call":"format"}"#,
            r#"{"call":"detach"}"#,
            r#"{"call":"resize","volume":1,"size":-1}"#,
        ] {
            assert!(serde_json::from_str::<Request>(odd).is_err(), "{odd}");
        }
    }
}
