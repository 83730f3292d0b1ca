//! `dog vdi flatten` and `dog vdi alter-copy`: changes that go on for a while, and are followed.

use crate::cli::Format;
use crate::connect::Connection;
use crate::output;
use crate::vdi::{copies, vdi_json};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use sheep_api::Size;
use sheep_api::v1::{AlterCopiesRequest, FlattenVdiReply, FlattenVdiRequest, ListNodesRequest};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How often it is looked how far it is.
const INTERVAL: Duration = Duration::from_millis(500);
/// Without a terminal it is said every so many looks.
const SAID_EVERY: u32 = 60;

#[derive(Args, Debug)]
pub(crate) struct Flatten {
    /// Name of the clone
    pub(crate) name: String,
    /// Call it off; what is done stays
    #[arg(long)]
    pub(crate) cancel: bool,
    /// Do not wait until it is done
    #[arg(short, long, conflicts_with = "cancel")]
    pub(crate) detach: bool,
}

#[derive(Args, Debug)]
pub(crate) struct AlterCopy {
    /// Name of the volume, or of one of its snapshots
    pub(crate) name: String,
    /// Copies
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) copies: u32,
    /// Copies below which writes wait [default: as before]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) min_copies: Option<u32>,
    /// Do not wait until all copies are there
    #[arg(short, long)]
    pub(crate) detach: bool,
}

/// Says on standard error how far something is: in one line on a terminal, else now and then.
struct Teller {
    looks: u32,
    terminal: bool,
}

impl Teller {
    fn new() -> Self {
        Self { looks: 0, terminal: std::io::stderr().is_terminal() }
    }

    fn tell(&mut self, text: &str) {
        let mut to = std::io::stderr();
        let _ = match self.terminal {
            true => write!(to, "\r{text:<70}"),
            false if self.looks.is_multiple_of(SAID_EVERY) => writeln!(to, "{text}"),
            false => Ok(()),
        };
        self.looks += 1;
    }

    fn end(&self) {
        if self.terminal && self.looks > 0 {
            let _ = write!(std::io::stderr(), "\r{:<70}\r", "");
        }
    }
}

fn describe(reply: &FlattenVdiReply) -> String {
    let far = format!("{} of {} objects, {} written", reply.done, reply.total, Size(reply.bytes));
    match reply.state.as_str() {
        "running" => far,
        "waiting" => "waits until nobody has used the volume for some seconds".to_owned(),
        "no room" => format!("{far}; waits, because a node has too little space"),
        "unreadable" => format!("{far}; {} objects cannot be read now", reply.unreadable),
        other => other.to_owned(),
    }
}

fn flatten_json(reply: &FlattenVdiReply) -> Value {
    json!({
        "state": reply.state,
        "done": reply.done,
        "total": reply.total,
        "unreadable": reply.unreadable,
        "bytes": reply.bytes,
        "vdi": reply.vdi.as_ref().map(vdi_json),
    })
}

pub(crate) async fn flatten(connection: &Connection, format: Format, command: Flatten) -> Result<()> {
    let name = command.name;
    let request = FlattenVdiRequest { name: name.clone(), wanted: Some(!command.cancel) };
    let mut reply = connection.vdis().flatten(request).await?.into_inner();
    let look = FlattenVdiRequest { name: name.clone(), wanted: None };
    let mut teller = Teller::new();
    while !command.cancel && !command.detach && !matches!(reply.state.as_str(), "flat" | "off" | "unreadable")
    {
        teller.tell(&describe(&reply));
        tokio::time::sleep(INTERVAL).await;
        // It may be just changing hands.
        if let Ok(now) = connection.or_holder(async |node| node.vdis().flatten(look.clone()).await).await {
            reply = now;
        } else {
            reply = connection.vdis().flatten(look.clone()).await.map_or(reply, |now| now.into_inner());
        }
    }
    teller.end();
    if format == Format::Json {
        output::json(&flatten_json(&reply))?;
    }
    let text = match reply.state.as_str() {
        "flat" => format!("VDI {name} needs no other for its contents"),
        "off" if command.cancel => format!("VDI {name} is not flattened any more"),
        "off" => bail!("flattening of VDI {name} was called off"),
        "unreadable" => bail!(
            "{} objects that VDI {name} reads from its origin cannot be read now; all others are its own, and these are \
             tried again now and then",
            reply.unreadable
        ),
        _ => format!("VDI {name} is being flattened: {}", describe(&reply)),
    };
    if format == Format::Table {
        output::line(&text)?;
    }
    Ok(())
}

/// Nodes that run and do not yet hold what they must, and all that run.
async fn recovering(connection: &Connection) -> Result<(usize, usize)> {
    let reply = connection.nodes().list(ListNodesRequest::default()).await?.into_inner();
    let up: Vec<_> = reply.nodes.iter().filter(|node| node.role == "storage" && node.state == "up").collect();
    Ok((up.iter().filter(|node| node.recovered_epoch < reply.epoch).count(), up.len()))
}

/// Waits until all nodes hold what they must.
async fn wait_recovered(connection: &Connection) -> Result<()> {
    let mut teller = Teller::new();
    loop {
        // A node that has just heard of it may still seem to be ready.
        tokio::time::sleep(INTERVAL).await;
        let (missing, all) = recovering(connection).await?;
        if missing == 0 {
            teller.end();
            return Ok(());
        }
        teller.tell(&format!("{} of {all} nodes hold what they must", all - missing));
    }
}

pub(crate) async fn alter_copy(connection: &Connection, format: Format, command: AlterCopy) -> Result<()> {
    let name = command.name;
    let request = AlterCopiesRequest {
        name: name.clone(),
        copies: command.copies,
        min_copies: command.min_copies.unwrap_or(0),
    };
    let reply = connection.vdis().alter_copies(request).await?.into_inner();
    let vdi = reply.vdi.context("the answer has no VDI")?;
    if !command.detach {
        wait_recovered(connection).await?;
    }
    match format {
        Format::Json => output::json(&vdi_json(&vdi))?,
        Format::Table => output::line(&format!("VDI {name} and its snapshots have {}", copies(&vdi)))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is() {
        let mut reply =
            FlattenVdiReply { state: "running".into(), done: 3, total: 9, bytes: 4096, ..Default::default() };
        assert_eq!(describe(&reply), "3 of 9 objects, 4 KiB written");
        reply.state = "unreadable".into();
        reply.unreadable = 2;
        assert_eq!(describe(&reply), "3 of 9 objects, 4 KiB written; 2 objects cannot be read now");
        reply.state = "waiting".into();
        assert!(describe(&reply).starts_with("waits"));
    }
}
