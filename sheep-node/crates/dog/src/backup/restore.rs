//! A backup becomes a volume.
//!
//! Records are written in order, some at a time, each lot durable before the next one begins. One that broke off is written
//! again from the start: nothing says whether somebody else has written to the volume meanwhile; what he wrote elsewhere is
//! seen. At the end a snapshot is taken that says by its attribute what it is a restore of: differences go only onto a volume
//! that has not changed since such a snapshot of their base.

use super::format::{Body, Header, Reader, Record};
use super::volume_of;
use crate::cli::{Format, Restore};
use crate::connect::Connection;
use crate::output;
use crate::progress::bar;
use crate::ranges::{Known, Ranges};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use sheep_api::Size;
use sheep_api::v1::{
    Attribute, ChangeAttributesRequest, ClusterInfoRequest, CreateVdiRequest, ResizeVdiRequest,
    SnapshotVdiRequest, Vdi, WriteVdiRequest,
};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::time::Duration;

/// Attribute of snapshots: what they are a restore of.
const RESTORED: &str = "backup";
/// Attribute of volumes: what their first restore was to make them.
const RESTORING: &str = "restoring";
/// Bytes that are written before they are made durable.
const LOT_BYTES: u64 = 32 << 20;
/// Records, likewise.
const LOT_RECORDS: usize = 4096;
/// How often a volume is looked at that seems to have what a restore did not write, before that is believed, and the pauses.
const LOOKS: usize = 5;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// What a snapshot is called in attributes.
fn mark(cluster: &str, snapshot: u64) -> String {
    format!("{cluster}/{snapshot}")
}

/// What there is of the volume and its snapshots.
struct Target {
    volume: Option<Vdi>,
    snapshots: Vec<Vdi>,
    cluster: String,
}

impl Target {
    async fn look(connection: &Connection, name: &str) -> Result<Self> {
        let cluster = connection.cluster().info(ClusterInfoRequest {}).await?.into_inner().cluster_id;
        let all = crate::vdi::list(connection, "").await?;
        let volume = all.iter().find(|vdi| vdi.name == name).cloned();
        ensure!(
            volume.as_ref().is_none_or(|vdi| vdi.kind != "snapshot"),
            "{name} is a snapshot, which stays as it is"
        );
        let id = volume.as_ref().map(|vdi| vdi.id);
        let of_it = |vdi: &Vdi| vdi.kind == "snapshot" && Some(vdi.source_id) == id;
        let snapshots = all.into_iter().filter(of_it).collect();
        Ok(Self { volume, snapshots, cluster })
    }

    /// The snapshot of it that has the contents of what was backed up: restored, or the very one.
    fn snapshot(&self, cluster: &str, snapshot: u64) -> Option<&Vdi> {
        let wanted = mark(cluster, snapshot);
        let is = |vdi: &&Vdi| {
            vdi.attributes.get(RESTORED) == Some(&wanted) || cluster == self.cluster && vdi.id == snapshot
        };
        self.snapshots.iter().find(is)
    }
}

/// Restores a backup.
pub(crate) async fn run(connection: &Connection, format: Format, restore: Restore) -> Result<()> {
    let Some(path) = &restore.file else {
        let reader = Reader::new(BufReader::new(io::stdin()))?;
        return apply(connection, format, &restore, reader, None).await;
    };
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    // Nothing is touched before everything is known to be good.
    let mut reader = Reader::new(BufReader::new(&file)).with_context(|| shown.to_string())?;
    let mut known = Known::default();
    while let Some(record) = reader.next().with_context(|| shown.to_string())? {
        if restore.resume {
            known.add(record.offset, record.len())?;
        }
    }
    file.seek(SeekFrom::Start(0))?;
    let reader = Reader::new(BufReader::new(file))?;
    apply(connection, format, &restore, reader, restore.resume.then_some(known)).await
}

/// `known`: all that the backup has, for one that goes on.
async fn apply<R: Read>(
    connection: &Connection,
    format: Format,
    restore: &Restore,
    mut reader: Reader<R>,
    known: Option<Known>,
) -> Result<()> {
    let header = reader.header.clone();
    let name = &restore.name;
    let target = Target::look(connection, name).await?;
    if let Some(there) = target.snapshot(&header.cluster, header.snapshot) {
        // It may have broken off at the very end.
        if target.volume.as_ref().is_some_and(|volume| volume.attributes.contains_key(RESTORING)) {
            end_restoring(connection, name).await?;
        }
        bail!("{name} has this already: {} is {}", there.name, header.name);
    }
    let tag = header.name.split('@').nth(1).unwrap_or("restored").to_owned();
    let taken = format!("{name}@{tag}");
    ensure!(
        target.snapshots.iter().all(|vdi| vdi.name != taken),
        "{taken} is there already, and something else"
    );
    match header.base {
        None => prepare_new(connection, restore, &header, &target, known.as_ref()).await?,
        Some(base) => prepare_old(connection, restore, &header, base, &target, known.as_ref()).await?,
    }
    let bytes = write_all(connection, name, &mut reader).await?;
    let attributes = [(RESTORED.to_owned(), mark(&header.cluster, header.snapshot))].into();
    let request = SnapshotVdiRequest { name: name.clone(), tag, attributes, id: 0 };
    let snapshot = connection.vdis().snapshot(request).await?.into_inner().snapshot;
    let snapshot = snapshot.context("the answer has no snapshot")?;
    if header.base.is_none() {
        end_restoring(connection, name).await?;
    }
    match format {
        Format::Json => output::json(
            &json!({"name": name, "snapshot": snapshot.name, "of": header.name, "bytes": bytes}),
        )?,
        Format::Table => output::line(&format!(
            "{} is restored to {name}, and is {} there: {} written",
            header.name,
            snapshot.name,
            Size(bytes)
        ))?,
    }
    Ok(())
}

/// From here on it is a volume like any other, which no restore goes on with.
async fn end_restoring(connection: &Connection, name: &str) -> Result<()> {
    let removed = Attribute { key: RESTORING.to_owned(), value: None };
    let name = name.to_owned();
    let request = ChangeAttributesRequest { name, changes: vec![removed], ..Default::default() };
    connection.vdis().change_attributes(request).await?;
    Ok(())
}

/// Whether what a volume has, or what differs from a snapshot of it, is nothing but what is known. What is being written, for
/// a command that broke off just now perhaps, is told as if all around it were there: it is looked at again.
async fn has_only(connection: &Connection, name: &str, since: Option<&str>, known: &Known) -> Result<bool> {
    for _ in 0..LOOKS {
        if Ranges::ask(connection, name, since, 0, false).await?.are_all(known).await? {
            return Ok(true);
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    Ranges::ask(connection, name, since, 0, false).await?.are_all(known).await
}

/// A volume for a full backup.
async fn prepare_new(
    connection: &Connection,
    restore: &Restore,
    header: &Header,
    target: &Target,
    known: Option<&Known>,
) -> Result<()> {
    let (name, wanted) = (&restore.name, mark(&header.cluster, header.snapshot));
    let Some(volume) = &target.volume else {
        let request = CreateVdiRequest {
            name: name.clone(),
            size_bytes: header.size,
            copies: restore.copies.unwrap_or(0),
            attributes: [(RESTORING.to_owned(), wanted)].into(),
            ..Default::default()
        };
        connection.vdis().create(request).await?;
        return Ok(());
    };
    let ours = volume.attributes.get(RESTORING) == Some(&wanted) && target.snapshots.is_empty();
    ensure!(ours, "there is a volume {name}: a full backup makes a new one (of {})", volume_of(&header.name));
    ensure!(
        restore.resume,
        "restoring {name} was begun before: --resume goes on with it, or delete it first"
    );
    let Some(known) = known else { bail!("--resume needs the whole backup before it begins: say --file") };
    let foreign = "somebody else has changed it; delete it first";
    ensure!(volume.size_bytes == header.size, "{name} has another size than {}: {foreign}", header.name);
    let is_ours = has_only(connection, name, None, known).await?;
    ensure!(is_ours, "{name} has what {} has not: {foreign}", header.name);
    Ok(())
}

/// The volume for differences: it must be as it was in the snapshot that they are against.
async fn prepare_old(
    connection: &Connection,
    restore: &Restore,
    header: &Header,
    base: u64,
    target: &Target,
    known: Option<&Known>,
) -> Result<()> {
    let name = &restore.name;
    let Some(volume) = &target.volume else {
        bail!("this is only what differs from {}: restore a backup of that first", header.base_name);
    };
    let Some(base) = target.snapshot(&header.cluster, base) else {
        bail!(
            "{name} has no snapshot that is {} (snapshot {base} of cluster {}), which these differences are against",
            header.base_name,
            header.cluster
        );
    };
    let since = Some(base.name.as_str());
    let back = format!("`dog vdi rollback {name} {}` makes it so again", base.tag);
    match known {
        Some(known) => ensure!(
            has_only(connection, name, since, known).await?,
            "{name} was changed by something else since {}; {back}",
            base.name
        ),
        None => ensure!(
            has_only(connection, name, since, &Known::default()).await?,
            "{name} is not as it was in {} any more; {back}",
            base.name
        ),
    }
    if volume.size_bytes != header.size {
        let allow_shrink = header.size < volume.size_bytes;
        ensure!(volume.size_bytes == base.size_bytes, "{name} has another size than {}; {back}", base.name);
        let request = ResizeVdiRequest { name: name.clone(), size_bytes: header.size, allow_shrink, id: 0 };
        connection.vdis().resize(request).await?;
    }
    Ok(())
}

/// Records that are made durable together; empty at the end.
fn lot<R: Read>(reader: &mut Reader<R>) -> Result<Vec<Record>> {
    let (mut records, mut bytes) = (Vec::new(), 0);
    while bytes < LOT_BYTES && records.len() < LOT_RECORDS {
        let Some(record) = reader.next()? else { break };
        if let Body::Data(data) = &record.body {
            bytes += data.len() as u64;
        }
        records.push(record);
    }
    Ok(records)
}

async fn write_all<R: Read>(connection: &Connection, name: &str, reader: &mut Reader<R>) -> Result<u64> {
    let bar = bar(Some(reader.header.size))?;
    let mut bytes = 0;
    while !reader.ended {
        let records = lot(reader).with_context(|| format!("{name} is not restored"))?;
        let Some(end) = records.last().map(Record::end) else { continue };
        let expected: u64 = records.iter().map(Record::len).sum();
        let first = records.first().map_or(0, |record| record.offset);
        let messages: Vec<WriteVdiRequest> = records
            .into_iter()
            .map(|record| {
                let seek = Some(record.offset);
                let (data, zeroes) = match record.body {
                    Body::Data(data) => (data, 0),
                    Body::Zeros(len) => (Vec::new(), len),
                };
                WriteVdiRequest { name: name.to_owned(), offset: first, data, seek, zeroes }
            })
            .collect();
        let written = connection.vdis().write(tokio_stream::iter(messages)).await;
        let written = written.with_context(|| {
            format!("{name} is not restored; the same command with --resume goes on with it")
        })?;
        ensure!(written.into_inner().bytes == expected, "not everything was written");
        bytes += expected;
        bar.set_position(end);
    }
    bar.finish_and_clear();
    Ok(bytes)
}
