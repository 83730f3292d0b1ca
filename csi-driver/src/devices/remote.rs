//! Devices of the process `sheep-device` on this node, which is asked over its Unix socket with a line of JSON each way.

use super::{Device, Devices, Wanted};
use crate::{Error, Handle};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// How long a call may take; sheep-device gives up a little earlier.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The devices of this node.
#[derive(Debug)]
pub struct RemoteDevices {
    socket: PathBuf,
}

impl RemoteDevices {
    /// Behind this socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    async fn exchange(&self, request: &Value) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(format!("{request}\n").as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        Ok(line)
    }

    /// Asks, and gives the devices that are told.
    async fn call(&self, request: Value) -> Result<Vec<Value>, Error> {
        let at = self.socket.display();
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.exchange(&request)).await;
        let answer = answer.map_err(|_| Error::Late(format!("the devices at {at} do not answer")))?;
        let line = answer
            .map_err(|error| Error::Unavailable(format!("the devices at {at} cannot be asked: {error}")))?;
        let mut answer: Value = serde_json::from_str(&line)
            .map_err(|_| Error::Unavailable(format!("the devices at {at} broke off")))?;
        if let Some(problem) = answer["error"].as_str() {
            return Err(failure(answer["kind"].as_str(), problem.to_owned()));
        }
        match answer["devices"].take() {
            Value::Array(devices) => Ok(devices),
            _ => Err(Error::Internal(format!("the devices at {at} say {line:?}"))),
        }
    }

    /// Devices in one of these states. One that was never made to its end has no path.
    fn shown(devices: &[Value], states: &[&str]) -> Vec<Device> {
        let device = |value: &Value| {
            let path = value["path"].as_str().unwrap_or_default();
            value["state"].as_str().filter(|state| states.contains(state))?;
            let read_only = value["read_only"] == true;
            let cluster = value["cluster"].as_str()?.to_owned();
            let volume = Handle { cluster, id: value["volume"].as_u64()? };
            Some(Device { volume, path: path.into(), size: value["size"].as_u64()?, read_only })
        };
        devices.iter().filter_map(device).collect()
    }

    fn served(devices: &[Value]) -> Vec<Device> {
        let mut served = Self::shown(devices, &["served"]);
        served.retain(|device| !device.path.as_os_str().is_empty());
        served
    }
}

/// What an error of the devices means: whether it makes sense to ask again is for callers to know.
fn failure(kind: Option<&str>, problem: String) -> Error {
    match kind {
        Some("busy") => Error::Busy(problem),
        Some("unavailable") => Error::Unavailable(problem),
        Some("in-use" | "ended") => Error::Precondition(problem),
        _ => Error::Internal(problem),
    }
}

#[tonic::async_trait]
impl Devices for RemoteDevices {
    async fn attach(&self, wanted: &Wanted) -> Result<Device, Error> {
        let Wanted { volume, attachment, name, read_only, .. } = wanted;
        let request = json!({
            "call": "attach",
            "cluster": volume.cluster,
            "volume": volume.id,
            "attachment": attachment,
            "name": name,
            "read_only": read_only,
        });
        let made = Self::served(&self.call(request).await?).pop();
        made.ok_or_else(|| Error::Internal(format!("volume {name} has no device after it was made")))
    }

    async fn find(&self, volume: &Handle) -> Result<Option<Device>, Error> {
        Ok(self.list().await?.into_iter().find(|device| device.volume == *volume))
    }

    async fn list(&self) -> Result<Vec<Device>, Error> {
        Ok(Self::served(&self.call(json!({ "call": "list" })).await?))
    }

    async fn over(&self) -> Result<Vec<Device>, Error> {
        Ok(Self::shown(&self.call(json!({ "call": "list" })).await?, &["ended", "lost"]))
    }

    async fn resize(&self, volume: &Handle, size: u64) -> Result<(), Error> {
        let Handle { cluster, id } = volume;
        let request = json!({ "call": "resize", "cluster": cluster, "volume": id, "size": size });
        self.call(request).await.map(drop)
    }

    async fn detach(&self, volume: &Handle) -> Result<(), Error> {
        let Handle { cluster, id } = volume;
        self.call(json!({ "call": "detach", "cluster": cluster, "volume": id })).await.map(drop)
    }

    async fn end(&self, volume: &Handle) -> Result<(), Error> {
        let Handle { cluster, id } = volume;
        let request = json!({ "call": "detach", "cluster": cluster, "volume": id, "force": true });
        self.call(request).await.map(drop)
    }
}
