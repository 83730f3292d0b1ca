//! `dog node md`: the disks of a node.

use crate::cli::{Format, MdCommand};
use crate::connect::Connection;
use crate::output;
use anyhow::Result;
use serde_json::{Value, json};
use sheep_api::Size;
use sheep_api::v1::{Disk, DisksReply, DisksRequest, PlugDiskRequest, UnplugDiskRequest};

pub(crate) async fn run(
    connection: Connection,
    format: Format,
    node: Option<&str>,
    command: MdCommand,
) -> Result<()> {
    let connection = connection.at(node).await?;
    match command {
        MdCommand::List => {
            let reply = connection.nodes().disks(DisksRequest {}).await?.into_inner();
            match format {
                Format::Json => output::json(&to_json(&reply))?,
                Format::Table => output::line(&table(&reply))?,
            }
            Ok(())
        }
        MdCommand::Plug { path } => {
            let path = std::path::absolute(&path)?.display().to_string();
            let reply =
                connection.nodes().plug_disk(PlugDiskRequest { path: path.clone() }).await?.into_inner();
            super::node::done(format, &format!("{path} is plugged in as disk {}", reply.id))
        }
        MdCommand::Unplug { disk, force } => {
            connection.nodes().unplug_disk(UnplugDiskRequest { disk: disk.clone(), force }).await?;
            let text = match force {
                true => format!("{disk} is given up; what it had is made anew from other nodes"),
                false => format!("{disk} is being emptied, and taken away then: see `dog node md list`"),
            };
            super::node::done(format, &text)
        }
    }
}

fn table(reply: &DisksReply) -> String {
    let heads = ["ID", "STATE", "WEIGHT", "USED", "CAPACITY", "OBJECTS", "PATH", "TROUBLE"];
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let rows = reply.disks.iter().map(|disk| {
        vec![
            disk.id.clone(),
            disk.state.clone(),
            disk.weight.to_string(),
            Size(disk.used_bytes).to_string(),
            Size(disk.capacity_bytes).to_string(),
            disk.objects.to_string(),
            dash(&disk.path),
            dash(&disk.error),
        ]
    });
    let mut text = output::table(&heads, rows);
    if reply.moving {
        text += &format!("\nobjects are moved between disks; {} so far", reply.objects_moved);
    }
    text
}

fn to_json(reply: &DisksReply) -> Value {
    let disk = |disk: &Disk| {
        json!({
            "id": disk.id,
            "path": disk.path,
            "state": disk.state,
            "weight": disk.weight,
            "capacity_bytes": disk.capacity_bytes,
            "used_bytes": disk.used_bytes,
            "objects": disk.objects,
            "error": disk.error,
        })
    };
    json!({
        "disks": reply.disks.iter().map(disk).collect::<Vec<_>>(),
        "objects_moved": reply.objects_moved,
        "moving": reply.moving,
    })
}
