//! Devices of the process `sheep-device` on this node, which is asked over its Unix socket with a line of JSON each way.

use super::{Device, Devices, Wanted};
use crate::Error;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// How long a call may take: a volume whose last user died is given to the next one after its lease.
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
            return Err(Error::Precondition(problem.to_owned()));
        }
        match answer["devices"].take() {
            Value::Array(devices) => Ok(devices),
            _ => Err(Error::Internal(format!("the devices at {at} say {line:?}"))),
        }
    }

    /// Devices that are served.
    fn served(devices: &[Value]) -> Vec<Device> {
        let device = |value: &Value| {
            let path = value["path"].as_str().filter(|_| value["state"] == "served")?;
            let read_only = value["read_only"] == true;
            Some(Device { volume: value["volume"].as_u64()?, path: path.into(), read_only })
        };
        devices.iter().filter_map(device).collect()
    }
}

#[tonic::async_trait]
impl Devices for RemoteDevices {
    async fn attach(&self, wanted: &Wanted) -> Result<Device, Error> {
        let Wanted { cluster, volume, name, size, read_only } = wanted;
        let request = json!({
            "call": "attach",
            "cluster": cluster,
            "volume": volume,
            "name": name,
            "size": size,
            "read_only": read_only,
        });
        let made = Self::served(&self.call(request).await?).pop();
        made.ok_or_else(|| Error::Internal(format!("volume {name} has no device after it was made")))
    }

    async fn find(&self, volume: u64) -> Result<Option<Device>, Error> {
        Ok(self.list().await?.into_iter().find(|device| device.volume == volume))
    }

    async fn list(&self) -> Result<Vec<Device>, Error> {
        Ok(Self::served(&self.call(json!({ "call": "list" })).await?))
    }

    async fn resize(&self, volume: u64, size: u64) -> Result<(), Error> {
        self.call(json!({ "call": "resize", "volume": volume, "size": size })).await.map(drop)
    }

    async fn detach(&self, volume: u64) -> Result<(), Error> {
        self.call(json!({ "call": "detach", "volume": volume })).await.map(drop)
    }
}
