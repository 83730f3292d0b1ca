//! `dog vdi`.

use crate::cli::{Create, Format, LockCommand, VdiCommand};
use crate::connect::{Connection, Server, label};
use crate::node::done;
use crate::{backup, changes, image, output, ranges, snapshots, transfer, tree};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sheep_api::Size;
use sheep_api::v1::{
    CreateVdiRequest, DeleteVdiRequest, ListVdisRequest, Node, ResizeVdiRequest, RevokeRequest, Vdi,
};

pub(crate) async fn run(server: &Server, format: Format, command: VdiCommand) -> Result<()> {
    let connection = server.connect().await?;
    match command {
        VdiCommand::Create(request) => create(&connection, format, request).await,
        VdiCommand::List => show_list(&connection, format).await,
        VdiCommand::Tree => tree::show(&list(&connection, "").await?, format),
        VdiCommand::Snapshot { names, tag, attributes } => {
            snapshots::take(&connection, format, names, tag, attributes).await
        }
        VdiCommand::Clone(request) => snapshots::clone(&connection, format, request).await,
        VdiCommand::Rollback { name, tag } => snapshots::rollback(&connection, format, name, tag).await,
        VdiCommand::Flatten(command) => changes::flatten(&connection, format, command).await,
        VdiCommand::AlterCopy(command) => changes::alter_copy(&connection, format, command).await,
        VdiCommand::Info { name } => info(&connection, format, &name).await,
        VdiCommand::Delete { name } => {
            connection.vdis().delete(DeleteVdiRequest { name: name.clone(), id: 0 }).await?;
            done(format, &format!("VDI {name} is deleted"))
        }
        VdiCommand::Resize { name, size, shrink } => resize(&connection, format, name, size, shrink).await,
        VdiCommand::Read { name, offset, length, file } => {
            transfer::read(&connection, &name, offset.0, length.map(|length| length.0), file.as_deref()).await
        }
        VdiCommand::Write { name, offset, length, file } => {
            let length = length.map(|length| length.0);
            transfer::write(&connection, format, &name, offset.0, length, file.as_deref()).await
        }
        VdiCommand::Diff { name, since } => ranges::show(&connection, format, &name, since.as_deref()).await,
        VdiCommand::Backup { name, since, file, resume } => {
            let job = backup::Job { name, since, file, resume };
            backup::run(&connection, format, job).await
        }
        VdiCommand::Restore(restore) => backup::restore(&connection, format, restore).await,
        VdiCommand::Import { file, name, format: kind, size, copies } => {
            let wanted = image::Import { file, name, kind, size: size.map(|size| size.0), copies };
            image::import(&connection, format, wanted).await
        }
        VdiCommand::Export { name, file, format: kind } => {
            image::export(&connection, format, &name, &file, kind).await
        }
        // They have exit codes of their own.
        VdiCommand::Check { .. } | VdiCommand::AcceptLoss(_) => Ok(()),
        VdiCommand::Lock(LockCommand::List) => locks(&connection, format).await,
        VdiCommand::Lock(LockCommand::Revoke { name, generation }) => {
            let request = RevokeRequest { name: name.clone(), generation: generation.unwrap_or(0) };
            let revoked = connection.vdis().revoke(request).await?.into_inner().revoked;
            done(format, &format!("{revoked} locks of VDI {name} are ended"))
        }
    }
}

async fn create(connection: &Connection, format: Format, create: Create) -> Result<()> {
    let request = CreateVdiRequest {
        name: create.name,
        size_bytes: create.size.0,
        copies: create.copies.unwrap_or(0),
        min_copies: create.min_copies.unwrap_or(0),
        attributes: create.attributes.into_iter().collect(),
        write_through: create.write_through,
    };
    let vdi = connection.vdis().create(request).await?.into_inner().vdi.context("the answer has no VDI")?;
    match format {
        Format::Json => output::json(&vdi_json(&vdi))?,
        Format::Table => {
            output::line(&format!("VDI {} of {} is made, {}", vdi.name, Size(vdi.size_bytes), copies(&vdi)))?;
        }
    }
    Ok(())
}

/// "3 copies", or what there is of them.
pub(crate) fn copies(vdi: &Vdi) -> String {
    if vdi.effective_copies < vdi.copies {
        format!("{} of {} copies", vdi.effective_copies, vdi.copies)
    } else {
        format!("{} copies", vdi.copies)
    }
}

pub(crate) async fn list(connection: &Connection, name: &str) -> Result<Vec<Vdi>> {
    let request = ListVdisRequest { name: name.into(), ..ListVdisRequest::default() };
    let mut vdis = connection.vdis().list(request).await?.into_inner().vdis;
    vdis.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(vdis)
}

async fn show_list(connection: &Connection, format: Format) -> Result<()> {
    let vdis = list(connection, "").await?;
    match format {
        Format::Json => output::json(&Value::Array(vdis.iter().map(vdi_json).collect()))?,
        Format::Table => {
            let nodes = connection.list().await?;
            output::line(&vdi_table(&vdis, &nodes))?;
        }
    }
    Ok(())
}

pub(crate) fn vdi_json(vdi: &Vdi) -> Value {
    let lock = |lock: &sheep_api::v1::Lock| json!({"node": lock.node, "incarnation": lock.incarnation, "generation": lock.generation});
    // In the order of their keys, so that the same VDI always prints the same text.
    let attributes: std::collections::BTreeMap<_, _> = vdi.attributes.iter().collect();
    json!({
        "name": vdi.name,
        "id": vdi.id,
        "vid": vdi.vid,
        "kind": vdi.kind,
        "tag": vdi.tag,
        "source": vdi.source,
        "source_id": vdi.source_id,
        "cloned": vdi.cloned,
        "origin": vdi.origin,
        "parent": vdi.parent,
        "flattening": vdi.flattening,
        "size_bytes": vdi.size_bytes,
        "copies": vdi.copies,
        "min_copies": vdi.min_copies,
        "effective_copies": vdi.effective_copies,
        "created_unix_ms": vdi.created_unix_ms,
        "clean": vdi.clean,
        "write_through": vdi.write_through,
        "lock": vdi.lock.as_ref().map(lock),
        "readers": vdi.readers.iter().map(lock).collect::<Vec<_>>(),
        "attachments": vdi.attachments.iter().map(|attachment| json!({
            "node": attachment.node,
            "index": attachment.index,
            "read_only": attachment.read_only,
        })).collect::<Vec<_>>(),
        "attributes": attributes,
    })
}

fn who(id: &str, nodes: &[Node]) -> String {
    nodes.iter().find(|node| node.id == id).map_or_else(|| id.to_owned(), label)
}

fn holder(vdi: &Vdi, nodes: &[Node]) -> String {
    match (&vdi.lock, vdi.readers.len()) {
        (Some(lock), _) => who(&lock.node, nodes),
        (None, 0) => "-".into(),
        (None, readers) => format!("{readers} readers"),
    }
}

fn vdi_table(vdis: &[Vdi], nodes: &[Node]) -> String {
    let rows = vdis.iter().map(|vdi| {
        let copies = if vdi.effective_copies < vdi.copies {
            format!("{}/{}", vdi.effective_copies, vdi.copies)
        } else {
            vdi.copies.to_string()
        };
        vec![
            vdi.name.clone(),
            vdi.kind.clone(),
            Size(vdi.size_bytes).to_string(),
            copies,
            output::moment(vdi.created_unix_ms),
            holder(vdi, nodes),
            snapshots::source(vdi).unwrap_or_else(|| "-".into()),
        ]
    });
    output::table(&["NAME", "KIND", "SIZE", "COPIES", "CREATED", "OPEN AT", "SOURCE"], rows)
}

async fn info(connection: &Connection, format: Format, name: &str) -> Result<()> {
    let vdi = list(connection, name).await?.pop().context("the answer has no VDI")?;
    match format {
        Format::Json => output::json(&vdi_json(&vdi))?,
        Format::Table => output::line(&vdi_text(&vdi, &connection.list().await?))?,
    }
    Ok(())
}

fn vdi_text(vdi: &Vdi, nodes: &[Node]) -> String {
    let mut facts = vec![
        ("VDI", vdi.name.clone()),
        ("Kind", vdi.kind.clone()),
        ("Size", format!("{} ({} bytes)", Size(vdi.size_bytes), vdi.size_bytes)),
        ("Redundancy", format!("{}, writes need {}", copies(vdi), vdi.min_copies)),
        ("Created", output::moment(vdi.created_unix_ms)),
        ("Writes", (if vdi.write_through { "durable at once" } else { "durable at flush" }).to_owned()),
        ("Open at", holder(vdi, nodes)),
        ("Closed", (if vdi.clean { "cleanly" } else { "no, or not cleanly" }).to_owned()),
        ("Id", format!("{}, vid {}", vdi.id, vdi.vid)),
    ];
    if vdi.kind == "snapshot" {
        facts.retain(|(name, _)| !["Writes", "Closed"].contains(name));
    }
    facts.extend(snapshots::facts(vdi));
    let attachments: Vec<String> =
        vdi.attachments.iter().map(|attachment| who(&attachment.node, nodes)).collect();
    if !attachments.is_empty() {
        facts.push(("Attached to", attachments.join(", ")));
    }
    let mut attributes: Vec<String> =
        vdi.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    attributes.sort();
    if !attributes.is_empty() {
        facts.push(("Attributes", attributes.join(", ")));
    }
    output::pairs(&facts)
}

/// An open VDI grows by word of its holder, so the call is repeated there.
async fn resize(
    connection: &Connection,
    format: Format,
    name: String,
    size: Size,
    shrink: bool,
) -> Result<()> {
    let request = ResizeVdiRequest { name: name.clone(), size_bytes: size.0, allow_shrink: shrink, id: 0 };
    let reply = connection.or_holder(async |node| node.vdis().resize(request.clone()).await).await?;
    let vdi = reply.vdi.context("the answer has no VDI")?;
    match format {
        Format::Json => output::json(&vdi_json(&vdi))?,
        Format::Table => output::line(&format!("VDI {name} has {} now", Size(vdi.size_bytes)))?,
    }
    Ok(())
}

struct LockRow {
    vdi: String,
    kind: &'static str,
    lock: sheep_api::v1::Lock,
}

fn lock_rows(vdis: Vec<Vdi>) -> Vec<LockRow> {
    let rows = vdis.into_iter().flat_map(|vdi| {
        let writer = vdi.lock.into_iter().map(|lock| ("write", lock));
        let readers = vdi.readers.into_iter().map(|lock| ("read", lock));
        let name = vdi.name;
        writer
            .chain(readers)
            .map(move |(kind, lock)| LockRow { vdi: name.clone(), kind, lock })
            .collect::<Vec<_>>()
    });
    rows.collect()
}

fn lock_table(rows: &[LockRow], nodes: &[Node]) -> String {
    let rows = rows.iter().map(|row| {
        vec![
            row.vdi.clone(),
            row.kind.to_owned(),
            who(&row.lock.node, nodes),
            row.lock.incarnation.to_string(),
            row.lock.generation.to_string(),
        ]
    });
    output::table(&["VDI", "KIND", "NODE", "RUN", "GENERATION"], rows)
}

async fn locks(connection: &Connection, format: Format) -> Result<()> {
    let rows = lock_rows(list(connection, "").await?);
    match format {
        Format::Json => {
            let row = |row: &LockRow| {
                json!({
                    "vdi": row.vdi,
                    "kind": row.kind,
                    "node": row.lock.node,
                    "incarnation": row.lock.incarnation,
                    "generation": row.lock.generation,
                })
            };
            output::json(&Value::Array(rows.iter().map(row).collect()))?;
        }
        Format::Table => output::line(&lock_table(&rows, &connection.list().await?))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheep_api::v1::Lock;

    fn vdi() -> Vdi {
        Vdi {
            name: "disk".into(),
            kind: "volume".into(),
            size_bytes: 10 << 30,
            copies: 3,
            effective_copies: 2,
            min_copies: 2,
            created_unix_ms: 1_795_370_700_000,
            lock: Some(Lock { node: "00aa".into(), incarnation: 2, generation: 17 }),
            attributes: [("os".to_owned(), "linux".to_owned())].into(),
            ..Vdi::default()
        }
    }

    fn nodes() -> Vec<Node> {
        vec![Node { id: "00aa".into(), name: "one".into(), ..Node::default() }]
    }

    #[test]
    fn the_table_of_vdis() {
        let free = Vdi { name: "a".into(), lock: None, effective_copies: 3, ..vdi() };
        let shared = Vdi { readers: vec![Lock::default(); 2], name: "b".into(), ..free.clone() };
        let taken = Vdi {
            name: "disk@monday".into(),
            kind: "snapshot".into(),
            source: "disk".into(),
            ..free.clone()
        };
        let copy = Vdi { name: "copy".into(), cloned: true, origin: "disk@monday".into(), ..free.clone() };
        let expected = "\
NAME         KIND      SIZE    COPIES  CREATED               OPEN AT     SOURCE
disk         volume    10 GiB  2/3     2026-11-22 18:05:00Z  one (00aa)  -
disk@monday  snapshot  10 GiB  3       2026-11-22 18:05:00Z  -           disk
a            volume    10 GiB  3       2026-11-22 18:05:00Z  -           -
b            volume    10 GiB  3       2026-11-22 18:05:00Z  2 readers   -
copy         volume    10 GiB  3       2026-11-22 18:05:00Z  -           disk@monday";
        assert_eq!(vdi_table(&[vdi(), taken, free, shared, copy], &nodes()), expected);
    }

    #[test]
    fn the_table_of_locks() {
        let reader = Lock { node: "00bb".into(), incarnation: 1, generation: 20 };
        let shared = Vdi { name: "b".into(), lock: None, readers: vec![reader], ..vdi() };
        let expected = "\
VDI   KIND   NODE        RUN  GENERATION
disk  write  one (00aa)  2    17
b     read   00bb        1    20";
        assert_eq!(lock_table(&lock_rows(vec![vdi(), shared]), &nodes()), expected);
    }

    #[test]
    fn one_vdi() {
        let text = vdi_text(&vdi(), &nodes());
        assert!(text.contains("Redundancy  2 of 3 copies, writes need 2\n"), "{text}");
        assert!(text.ends_with("Attributes  os=linux"), "{text}");
        let value = vdi_json(&vdi());
        assert_eq!((&value["lock"]["generation"], &value["size_bytes"]), (&json!(17), &json!(10u64 << 30)));
        assert_eq!(vdi_json(&Vdi::default())["lock"], Value::Null);
    }
}
