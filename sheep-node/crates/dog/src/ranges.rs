//! Ranges of a volume that are allocated or differ from a snapshot; `dog vdi diff`.

use crate::cli::Format;
use crate::connect::Connection;
use crate::output;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheep_api::Size;
use sheep_api::v1::{AllocatedRequest, DiffRequest, Range, RangesReply, Vdi};
use tonic::Streaming;

/// Ranges as they come from the node.
pub(crate) struct Ranges {
    stream: Streaming<RangesReply>,
    /// What is looked at.
    pub(crate) vdi: Vdi,
    /// What it is compared with.
    pub(crate) since: Option<Vdi>,
    /// Everything before this was told.
    pub(crate) done: u64,
}

impl Ranges {
    /// From `offset` on. `since`: a tag, or a snapshot's name; without, what is allocated.
    pub(crate) async fn ask(
        connection: &Connection,
        name: &str,
        since: Option<&str>,
        offset: u64,
        contents: bool,
    ) -> Result<Self> {
        let name = name.to_owned();
        let stream = match since {
            Some(since) => {
                let since = since.to_owned();
                let request = DiffRequest { name, since, starting_offset: offset, max_results: 0, contents };
                connection.vdis().diff(request).await?
            }
            None => {
                let request =
                    AllocatedRequest { name, starting_offset: offset, max_results: 0, contents, id: 0 };
                connection.vdis().allocated(request).await?
            }
        };
        let mut stream = stream.into_inner();
        let first = stream.message().await?.context("the node says nothing")?;
        let vdi = first.vdi.context("the answer has no VDI")?;
        Ok(Self { stream, vdi, since: first.since, done: first.done })
    }

    /// The next ranges; `None` when all were told.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Range>>> {
        match self.stream.message().await? {
            Some(message) => {
                self.done = message.done;
                Ok(Some(message.ranges))
            }
            None => {
                ensure!(self.done == self.vdi.size_bytes, "the node stopped telling at {}", self.done);
                Ok(None)
            }
        }
    }

    /// All that are left: first byte, length, zeros; neighbours of a kind as one.
    pub(crate) async fn all(mut self) -> Result<Vec<(u64, u64, bool)>> {
        let mut all: Vec<(u64, u64, bool)> = Vec::new();
        while let Some(ranges) = self.next().await? {
            for Range { offset, length, zero, .. } in ranges {
                match all.last_mut() {
                    Some((at, len, kind)) if *at + *len == offset && *kind == zero => *len += length,
                    _ => all.push((offset, length, zero)),
                }
            }
        }
        Ok(all)
    }
}

pub(crate) async fn show(
    connection: &Connection,
    format: Format,
    name: &str,
    since: Option<&str>,
) -> Result<()> {
    let ranges = Ranges::ask(connection, name, since, 0, false).await?;
    let (vdi, base) = (ranges.vdi.clone(), ranges.since.clone());
    let all = ranges.all().await?;
    let bytes: u64 = all.iter().map(|(_, length, _)| length).sum();
    if format == Format::Json {
        let shown: Vec<_> = all
            .iter()
            .map(|(offset, length, zero)| json!({"offset": offset, "length": length, "zero": zero}))
            .collect();
        return Ok(output::json(&json!({
            "name": vdi.name,
            "size": vdi.size_bytes,
            "since": base.map(|base| base.name),
            "bytes": bytes,
            "ranges": shown,
        }))?);
    }
    let rows = all.iter().map(|(offset, length, zero)| {
        let kind = if *zero { "zeros" } else { "data" };
        vec![offset.to_string(), length.to_string(), kind.to_owned()]
    });
    if !all.is_empty() {
        output::line(&output::table(&["OFFSET", "LENGTH", "NOW"], rows))?;
    }
    let what = match base {
        Some(base) => format!("of {} differ from {}", Size(vdi.size_bytes), base.name),
        None => format!("of {} are allocated", Size(vdi.size_bytes)),
    };
    Ok(output::line(&format!("{} {what}, in {} ranges", Size(bytes), all.len()))?)
}
