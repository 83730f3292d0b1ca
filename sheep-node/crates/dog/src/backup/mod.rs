//! `dog vdi backup` and `dog vdi restore`.

mod format;
mod restore;

pub(crate) use restore::run as restore;

use crate::cli::Format;
use crate::connect::Connection;
use crate::output;
use crate::progress::bar;
use crate::ranges::Ranges;
use anyhow::{Context, Result, bail, ensure};
use format::{Body, Header, Reader, Record, State, Writer};
use serde_json::json;
use sheep_api::Size;
use sheep_api::v1::{ClusterInfoRequest, Range};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What is to be backed up, and where to.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) since: Option<String>,
    pub(crate) file: Option<PathBuf>,
    pub(crate) resume: bool,
}

/// Writes a backup.
pub(crate) async fn run(connection: &Connection, format: Format, job: Job) -> Result<()> {
    let cluster = connection.cluster().info(ClusterInfoRequest {}).await?.into_inner().cluster_id;
    let found = crate::vdi::list(connection, &job.name).await?;
    let vdi = found.first().context("the answer has no VDI")?;
    ensure!(
        vdi.kind == "snapshot",
        "{} may change while it is read: take a snapshot with `dog vdi snapshot`, and back that up",
        job.name
    );
    let base = match &job.since {
        None => None,
        Some(tag) => {
            let name =
                if tag.contains('@') { tag.clone() } else { format!("{}@{tag}", volume_of(&vdi.name)) };
            let base = crate::vdi::list(connection, &name).await?;
            let base = base.into_iter().next().context("the answer has no VDI")?;
            ensure!(
                base.source_id == vdi.source_id && base.id != vdi.id,
                "{} is not another snapshot of the volume that {} was taken of",
                base.name,
                vdi.name
            );
            Some(base)
        }
    };
    let header = Header {
        cluster,
        volume: vdi.source_id,
        snapshot: vdi.id,
        base: base.as_ref().map(|base| base.id),
        size: vdi.size_bytes,
        created_unix_ms: vdi.created_unix_ms,
        name: vdi.name.clone(),
        base_name: base.map(|base| base.name).unwrap_or_default(),
    };
    let length = match &job.file {
        None => {
            let stdout = io::stdout();
            ensure!(
                !stdout.is_terminal(),
                "a backup is not for the screen: redirect the output, or use --file"
            );
            let ranges = ask(connection, &job, &header, 0).await?;
            let writer = Writer::new(BufWriter::new(stdout), &header)?;
            fill(ranges, &header, writer).await?.1
        }
        Some(path) => to_file(connection, &job, &header, path).await?,
    };
    // Standard output may be the backup.
    let text = match format {
        Format::Json => json!({"name": header.name, "since": header.base_name, "bytes": length}).to_string(),
        Format::Table => format!("{} is backed up: {} written", header.name, Size(length)),
    };
    if job.file.is_some() {
        output::line(&text)?
    } else {
        writeln!(io::stderr(), "{text}")?
    }
    Ok(())
}

/// The volume's part of a snapshot's name.
fn volume_of(snapshot: &str) -> &str {
    snapshot.split('@').next().unwrap_or(snapshot)
}

async fn to_file(connection: &Connection, job: &Job, header: &Header, path: &Path) -> Result<u64> {
    let shown = path.display();
    let (writer, ranges) = if job.resume {
        let Some((mut file, state)) = unfinished(path, header)? else {
            bail!("{shown} is finished: there is nothing to go on with");
        };
        let ranges = ask(connection, job, header, state.at).await?;
        // What comes behind the last good record is written anew.
        file.set_len(state.length)?;
        file.seek(SeekFrom::End(0))?;
        (Writer::resume(BufWriter::new(file), state), ranges)
    } else {
        let file = File::create_new(path).with_context(|| format!("cannot make {shown}"))?;
        let ranges =
            ask(connection, job, header, 0).await.inspect_err(|_| drop(std::fs::remove_file(path)))?;
        (Writer::new(BufWriter::new(file), header)?, ranges)
    };
    let (to, length) = fill(ranges, header, writer).await.with_context(|| {
        format!("{shown} is not finished; the same command with --resume goes on with it")
    })?;
    let file = to.into_inner().map_err(|error| error.into_error())?;
    file.sync_all().with_context(|| format!("cannot write {shown}"))?;
    Ok(length)
}

/// A backup that was begun, and what is known up to its last good record; `None` if it is finished.
fn unfinished(path: &Path, header: &Header) -> Result<Option<(File, State)>> {
    let shown = path.display();
    let mut options = File::options();
    let file = options.read(true).write(true).open(path).with_context(|| format!("cannot open {shown}"))?;
    let mut reader =
        Reader::new(BufReader::new(&file)).with_context(|| format!("cannot go on with {shown}"))?;
    ensure!(
        reader.header == *header,
        "{shown} is a backup of something else: of {} (snapshot {} of cluster {})",
        reader.header.name,
        reader.header.snapshot,
        reader.header.cluster
    );
    loop {
        match reader.next() {
            Ok(Some(_)) => {}
            // What cannot be read now may be good.
            Err(error) if error.is::<io::Error>() => {
                return Err(error.context(format!("cannot read {shown}")));
            }
            Ok(None) | Err(_) if reader.ended => return Ok(None),
            Ok(None) | Err(_) => break,
        }
    }
    let state = reader.state;
    Ok(Some((file, state)))
}

/// What there is to be written from `offset` on.
async fn ask(connection: &Connection, job: &Job, header: &Header, offset: u64) -> Result<Ranges> {
    let since = (!header.base_name.is_empty()).then_some(header.base_name.as_str());
    let ranges = Ranges::ask(connection, &job.name, since, offset, true).await?;
    let same = ranges.vdi.id == header.snapshot && ranges.since.as_ref().map(|base| base.id) == header.base;
    ensure!(same, "there is another snapshot of this name by now");
    Ok(ranges)
}

/// Writes it.
async fn fill<W: Write>(mut ranges: Ranges, header: &Header, mut writer: Writer<W>) -> Result<(W, u64)> {
    let bar = bar(Some(header.size))?;
    while let Some(some) = ranges.next().await? {
        for range in some {
            // A full backup begins with zeros.
            if range.zero && header.base.is_none() {
                continue;
            }
            writer.put(&record(range)?).context("cannot write the backup")?;
        }
        bar.set_position(ranges.done);
    }
    bar.finish_and_clear();
    writer.finish().context("cannot write the backup")
}

fn record(range: Range) -> Result<Record> {
    let Range { offset, length, zero, data } = range;
    ensure!(zero || data.len() as u64 == length, "contents of another length came");
    Ok(Record { offset, body: if zero { Body::Zeros(length) } else { Body::Data(data) } })
}
