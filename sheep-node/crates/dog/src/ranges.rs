//! Ranges of a volume that are allocated or differ from a snapshot; `dog vdi diff`.

use crate::cli::Format;
use crate::connect::Connection;
use crate::output;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use sheep_api::Size;
use sheep_api::v1::{AllocatedRequest, DiffRequest, Range, RangesReply, Vdi};
use tonic::Streaming;

/// Ranges that are kept in memory at once.
const MOST: usize = 1 << 23;

/// Ranges in order, neighbours as one.
#[derive(Debug, Default)]
pub(crate) struct Known(Vec<(u64, u64)>);

impl Known {
    /// One behind all others.
    pub(crate) fn add(&mut self, offset: u64, length: u64) -> Result<()> {
        match self.0.last_mut() {
            Some((_, end)) if *end == offset => *end += length,
            _ => self.0.push((offset, offset + length)),
        }
        ensure!(self.0.len() <= MOST, "there are too many ranges");
        Ok(())
    }

    /// Whether all of a range is in them.
    fn cover(&self, offset: u64, length: u64) -> bool {
        let before = self.0.partition_point(|(from, _)| *from <= offset);
        let last = before.checked_sub(1).and_then(|last| self.0.get(last));
        last.zip(offset.checked_add(length)).is_some_and(|((_, end), wanted)| wanted <= *end)
    }
}

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
                let mut at = self.done;
                for range in &message.ranges {
                    let end =
                        range.offset.checked_add(range.length).filter(|end| *end <= self.vdi.size_bytes);
                    at =
                        end.filter(|_| range.offset >= at).context("the node tells ranges that cannot be")?;
                }
                self.done = message.done;
                Ok(Some(message.ranges))
            }
            None => {
                ensure!(self.done == self.vdi.size_bytes, "the node stopped telling at {}", self.done);
                Ok(None)
            }
        }
    }

    /// Whether all that are left are in these.
    pub(crate) async fn are_all(mut self, known: &Known) -> Result<bool> {
        while let Some(ranges) = self.next().await? {
            if !ranges.iter().all(|range| known.cover(range.offset, range.length)) {
                return Ok(false);
            }
        }
        Ok(true)
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
                ensure!(all.len() <= MOST, "there are too many ranges to show at once");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_covers_its_parts() {
        let mut known = Known::default();
        assert!(!known.cover(0, 1));
        for (offset, length) in [(4096, 4096), (8192, 512), (1 << 20, 4096)] {
            known.add(offset, length).unwrap();
        }
        assert_eq!(known.0.len(), 2);
        for (offset, length) in [(4096, 4608), (8000, 500), (1 << 20, 1)] {
            assert!(known.cover(offset, length), "{offset} {length}");
        }
        for (offset, length) in
            [(4095, 2), (4096, 4609), (8704, 1), ((1 << 20) + 1, 4096), (0, 1), (4096, u64::MAX)]
        {
            assert!(!known.cover(offset, length), "{offset} {length}");
        }
    }
}
