//! `dog vdi snapshot`, `clone` and `rollback`, and how snapshots and clones are described.

use crate::cli::{Cli, CloneVdi, Format};
use crate::connect::Connection;
use crate::output;
use crate::vdi::{copies, vdi_json};
use anyhow::{Context, Result};
use clap::CommandFactory;
use clap::error::ErrorKind;
use sheep_api::Size;
use sheep_api::v1::{CloneVdiRequest, RollbackVdiRequest, SnapshotGroupRequest, SnapshotVdiRequest, Vdi};

/// What is said of something that is deleted.
const DELETED: &str = "(deleted)";

fn or_deleted(name: &str) -> String {
    if name.is_empty() { DELETED.to_owned() } else { name.to_owned() }
}

/// What a snapshot was taken of, or a clone cloned from.
pub(crate) fn source(vdi: &Vdi) -> Option<String> {
    match vdi.kind.as_str() {
        "snapshot" => Some(or_deleted(&vdi.source)),
        _ if vdi.flattening => Some(format!("{}, being flattened", or_deleted(&vdi.origin))),
        _ => vdi.cloned.then(|| or_deleted(&vdi.origin)),
    }
}

/// The same, in full.
pub(crate) fn facts(vdi: &Vdi) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if vdi.kind == "snapshot" {
        facts.push(("Taken of", format!("{} (id {})", or_deleted(&vdi.source), vdi.source_id)));
    }
    if vdi.cloned {
        facts.push(("Cloned from", source(vdi).unwrap_or_default()));
    }
    if !vdi.parent.is_empty() && vdi.parent != vdi.origin {
        facts.push(("Goes on from", vdi.parent.clone()));
    }
    facts
}

fn tell(format: Format, vdi: &Vdi, sentence: &str) -> Result<()> {
    match format {
        Format::Json => output::json(&vdi_json(vdi))?,
        Format::Table => output::line(sentence)?,
    }
    Ok(())
}

/// The node that has the volume open takes the snapshot; those of a group any node takes.
pub(crate) async fn take(
    connection: &Connection,
    format: Format,
    names: Vec<String>,
    tag: Option<String>,
    attributes: Vec<(String, String)>,
) -> Result<()> {
    let attributes = attributes.into_iter().collect();
    let (name, tag) = match (tag, names.as_slice()) {
        (Some(tag), _) => {
            let request = SnapshotGroupRequest { names, tag, attributes };
            return tell_group(
                format,
                &connection.vdis().snapshot_group(request).await?.into_inner().snapshots,
            );
        }
        (None, [name, tag]) => (name.clone(), tag.clone()),
        (None, _) => Cli::command()
            .error(
                ErrorKind::WrongNumberOfValues,
                "say NAME TAG, or the names of several volumes and --tag TAG",
            )
            .exit(),
    };
    let request = SnapshotVdiRequest { name, tag, attributes, id: 0 };
    let reply = connection.or_holder(async |node| node.vdis().snapshot(request.clone()).await).await?;
    let snapshot = reply.snapshot.context("the answer has no snapshot")?;
    tell(format, &snapshot, &format!("snapshot {} is taken", snapshot.name))
}

fn tell_group(format: Format, snapshots: &[Vdi]) -> Result<()> {
    match format {
        Format::Json => output::json(&snapshots.iter().map(vdi_json).collect::<Vec<_>>().into())?,
        Format::Table => {
            let names: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
            output::line(&format!("snapshots {} are taken, of one instant", names.join(", ")))?;
        }
    }
    Ok(())
}

pub(crate) async fn clone(connection: &Connection, format: Format, clone: CloneVdi) -> Result<()> {
    let source = clone.source;
    let request = CloneVdiRequest {
        source: source.clone(),
        name: clone.name,
        size_bytes: clone.size.map_or(0, |size| size.0),
        copies: clone.copies.unwrap_or(0),
        min_copies: clone.min_copies.unwrap_or(0),
        attributes: clone.attributes.into_iter().collect(),
        write_through: None,
        source_id: 0,
    };
    let reply = connection.or_holder(async |node| node.vdis().clone_vdi(request.clone()).await).await?;
    let vdi = reply.vdi.context("the answer has no VDI")?;
    let (name, size) = (&vdi.name, Size(vdi.size_bytes));
    tell(format, &vdi, &format!("VDI {name} of {size} is made of {source}, {}", copies(&vdi)))
}

pub(crate) async fn rollback(
    connection: &Connection,
    format: Format,
    name: String,
    tag: String,
) -> Result<()> {
    let request = RollbackVdiRequest { name, tag };
    let reply = connection.vdis().rollback(request.clone()).await?.into_inner();
    let vdi = reply.vdi.context("the answer has no VDI")?;
    let RollbackVdiRequest { name, tag } = request;
    tell(format, &vdi, &format!("VDI {name} is as in {name}@{tag} again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_things_come_from() {
        let volume = Vdi { kind: "volume".into(), ..Vdi::default() };
        assert_eq!((source(&volume), facts(&volume)), (None, Vec::new()));
        let clone = Vdi { cloned: true, origin: "a@x".into(), parent: "a@x".into(), ..volume.clone() };
        assert_eq!(source(&clone).unwrap(), "a@x");
        assert_eq!(facts(&clone), [("Cloned from", "a@x".to_owned())]);
        let filled = Vdi { flattening: true, ..clone.clone() };
        assert_eq!(source(&filled).unwrap(), "a@x, being flattened");
        let orphan = Vdi { origin: String::new(), parent: "b@y".into(), ..clone };
        assert_eq!(source(&orphan).unwrap(), "(deleted)");
        assert_eq!(facts(&orphan)[1], ("Goes on from", "b@y".to_owned()));
        let taken = Vdi { kind: "snapshot".into(), source_id: 7, ..Vdi::default() };
        assert_eq!(facts(&taken), [("Taken of", "(deleted) (id 7)".to_owned())]);
    }
}
