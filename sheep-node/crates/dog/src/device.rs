//! `dog device`: volumes as block devices of this machine, which `sheep-device` makes. What kind of device that is, it knows.

use crate::cli::{DeviceArgs, DeviceCommand, Format};
use crate::connect::{Connection, Server};
use crate::output;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sheep_api::Size;
use sheep_api::v1::{
    AttachRequest, ClusterInfoRequest, DetachRequest, ListVdisRequest, NodeInfoRequest, Vdi,
};
use std::path::Path;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

pub(crate) async fn run(server: &Server, format: Format, args: DeviceArgs) -> Result<()> {
    let socket = &args.devices;
    match args.command {
        DeviceCommand::List => {
            let devices = call(socket, &json!({ "call": "list" })).await?;
            match format {
                Format::Json => output::json(&devices)?,
                Format::Table => output::line(&table(&devices))?,
            }
            Ok(())
        }
        DeviceCommand::Attach { vdi, read_only } => {
            let connection = server.connect().await?;
            let attached = attach(&connection, socket, &vdi, read_only).await?;
            match format {
                Format::Json => output::json(&attached)?,
                Format::Table => output::line(attached["path"].as_str().unwrap_or("-"))?,
            }
            Ok(())
        }
        DeviceCommand::Detach { vdi, force } => {
            let connection = server.connect().await?;
            let (vdi, cluster, node) = meant(&connection, &vdi).await?;
            let request = json!({ "call": "detach", "cluster": cluster, "volume": vdi.id, "force": force });
            call(socket, &request).await?;
            let request = DetachRequest { id: vdi.id, node, ..DetachRequest::default() };
            connection.vdis().detach(request).await?;
            super::node::done(format, &format!("{} has no device here", vdi.name))
        }
    }
}

/// A volume, its cluster, and the node that is asked.
async fn meant(connection: &Connection, name: &str) -> Result<(Vdi, String, String)> {
    let request = ListVdisRequest { name: name.to_owned(), ..ListVdisRequest::default() };
    let vdi = connection.vdis().list(request).await?.into_inner().vdis.into_iter().next();
    let cluster = connection.cluster().info(ClusterInfoRequest {}).await?.into_inner().cluster_id;
    let node = connection.nodes().info(NodeInfoRequest {}).await?.into_inner().node;
    let node = node.context("the node does not say who it is")?.id;
    Ok((vdi.with_context(|| format!("no VDI {name:?}"))?, cluster, node))
}

/// Gives a volume to the node that is asked, which is that of this machine, and has a device made of it.
async fn attach(connection: &Connection, socket: &Path, name: &str, read_only: bool) -> Result<Value> {
    let (vdi, cluster, node) = meant(connection, name).await?;
    let had = vdi.attachments.iter().any(|attachment| attachment.node == node);
    let request = AttachRequest { id: vdi.id, node: node.clone(), read_only, ..AttachRequest::default() };
    let attachment = connection.vdis().attach(request).await?.into_inner().index;
    let request = json!({
        "call": "attach",
        "cluster": cluster,
        "volume": vdi.id,
        "attachment": attachment,
        "name": vdi.name,
        "read_only": read_only,
    });
    let made = call(socket, &request).await;
    if made.is_err() && !had {
        // Or nobody else could have it.
        let request = DetachRequest { id: vdi.id, node, ..DetachRequest::default() };
        connection.vdis().detach(request).await?;
    }
    made?.get_mut(0).map(Value::take).context("sheep-device says nothing of the device")
}

/// Asks `sheep-device`; the devices that it tells of.
async fn call(socket: &Path, request: &Value) -> Result<Value> {
    let at = || format!("no sheep-device at {}", socket.display());
    let mut stream = UnixStream::connect(socket).await.with_context(at)?;
    stream.write_all(format!("{request}\n").as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    let mut answer: Value = serde_json::from_str(&line).context("sheep-device broke off")?;
    if let Some(problem) = answer["error"].as_str() {
        bail!("{problem}");
    }
    Ok(answer["devices"].take())
}

fn table(devices: &Value) -> String {
    let heads = ["VDI", "PATH", "KIND", "STATE", "SIZE", "MODE", "ATTACHMENT"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows = devices.as_array().into_iter().flatten().map(|device| {
        vec![
            text(&device["name"]),
            text(&device["path"]),
            text(&device["kind"]),
            text(&device["state"]),
            Size(device["size"].as_u64().unwrap_or(0)).to_string(),
            if device["read_only"] == true { "ro" } else { "rw" }.to_owned(),
            device["attachment"].to_string(),
        ]
    });
    output::table(&heads, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_lines() {
        let one = json!([{
            "cluster": "c", "volume": 7, "attachment": 9, "name": "disk", "size": 1 << 30, "read_only": true,
            "path": "/dev/loop3", "kind": "fuse", "state": "served", "survives": true,
        }]);
        let text = table(&one);
        let line: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["disk", "/dev/loop3", "fuse", "served", "1", "GiB", "ro", "9"]);
        assert_eq!(table(&json!([])).lines().count(), 1);
    }
}
