//! `dog node`.

use crate::cli::{Format, NodeCommand, Weight};
use crate::connect::{Connection, Server, label, pick};
use crate::{output, scrub};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use sheep_api::Size;
use sheep_api::v1::{
    DrainNodeRequest, Node, NodeInfoReply, NodeInfoRequest, RecoveryReply, RecoveryRequest,
    RemoveNodeRequest, ReweightNodeRequest, StopRequest,
};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How often progress is asked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) async fn run(server: &Server, format: Format, command: NodeCommand) -> Result<()> {
    let connection = server.connect().await?;
    match command {
        NodeCommand::List => list(&connection, format).await,
        NodeCommand::Info { node } => info(connection, format, node.as_deref()).await,
        NodeCommand::Kill { node } => kill(&connection, format, &node).await,
        NodeCommand::Recovery { watch } => recovery(&connection, format, watch).await,
        NodeCommand::Scrub { node, scrub } => {
            scrub::run(&connection, format, Some(&node), scrub).await.map(drop)
        }
        NodeCommand::Remove { node, force } => remove(&connection, format, &node, force).await,
        NodeCommand::Md { node, command } => {
            crate::md::run(connection, format, node.as_deref(), command).await
        }
        NodeCommand::Drain { node, undo } => drain(&connection, format, &node, undo).await,
        NodeCommand::Reweight { node, weight } => reweight(&connection, format, &node, weight).await,
    }
}

async fn list(connection: &Connection, format: Format) -> Result<()> {
    let nodes = connection.list().await?;
    match format {
        Format::Json => output::json(&Value::Array(nodes.iter().map(node_json).collect()))?,
        Format::Table => output::line(&node_table(&nodes))?,
    }
    Ok(())
}

fn node_table(nodes: &[Node]) -> String {
    let heads = ["ID", "NAME", "ROLE", "STATE", "VOTER", "ZONE", "WEIGHT", "USED", "CAPACITY", "ADDRESS"];
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let rows = nodes.iter().map(|node| {
        let stores = node.role == "storage";
        let bytes = |bytes| if stores { Size(bytes).to_string() } else { "-".to_owned() };
        vec![
            node.id.clone(),
            dash(&node.name),
            node.role.clone(),
            node.state.clone(),
            (if node.voter { "yes" } else { "-" }).to_owned(),
            dash(&node.zone),
            if stores { node.weight.to_string() } else { "-".to_owned() },
            bytes(node.used_bytes),
            bytes(node.capacity_bytes),
            dash(node.addresses.first().map_or("", String::as_str)),
        ]
    });
    output::table(&heads, rows)
}

fn node_json(node: &Node) -> Value {
    json!({
        "id": node.id,
        "name": node.name,
        "incarnation": node.incarnation,
        "role": node.role,
        "state": node.state,
        "zone": node.zone,
        "weight": node.weight,
        "voter": node.voter,
        "in_ring": node.in_ring,
        "capacity_bytes": node.capacity_bytes,
        "used_bytes": node.used_bytes,
        "recovered_epoch": node.recovered_epoch,
        "addresses": node.addresses,
        "ring_addresses": node.ring_addresses,
        "grpc_addresses": node.grpc_addresses,
        "http_addresses": node.http_addresses,
    })
}

async fn info(connection: Connection, format: Format, node: Option<&str>) -> Result<()> {
    let info = connection.at(node).await?.nodes().info(NodeInfoRequest {}).await?.into_inner();
    match format {
        Format::Json => output::json(&info_json(&info))?,
        Format::Table => output::line(&info_text(&info))?,
    }
    Ok(())
}

fn info_json(info: &NodeInfoReply) -> Value {
    let mut value = info.node.as_ref().map_or_else(|| json!({}), node_json);
    let more = json!({
        "cluster_id": info.cluster_id,
        "version": info.version,
        "uptime_ms": info.uptime_ms,
        "primary": info.primary,
        "health": info.health,
        "ring_state": info.ring_state,
        "ring_members": info.ring_members,
        "capacity_bytes": info.capacity_bytes,
        "used_bytes": info.used_bytes,
        "objects": info.objects,
        "open_vdis": info.open_vdis,
    });
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

fn info_text(info: &NodeInfoReply) -> String {
    let node = info.node.clone().unwrap_or_default();
    output::pairs(&[
        ("Node", label(&node)),
        ("Health", info.health.clone()),
        ("State", if node.state.is_empty() { "not known to the cluster".into() } else { node.state }),
        ("Role", node.role),
        ("Cluster", info.cluster_id.clone()),
        ("Version", info.version.clone()),
        ("Run", format!("number {}, up for {}", node.incarnation, output::duration(info.uptime_ms))),
        ("Ring", format!("{}, {} members", info.ring_state, info.ring_members.len())),
        (
            "Store",
            format!("{} of {} in {} objects", Size(info.used_bytes), Size(info.capacity_bytes), info.objects),
        ),
        ("Open VDIs", info.open_vdis.to_string()),
    ])
}

async fn kill(connection: &Connection, format: Format, word: &str) -> Result<()> {
    let nodes = connection.list().await?;
    let node = pick(&nodes, word)?;
    let other = connection.other(node).await?;
    other.nodes().stop(StopRequest { all_nodes: false }).await?;
    done(format, &format!("node {} is stopping", label(node)))
}

async fn remove(connection: &Connection, format: Format, word: &str, force: bool) -> Result<()> {
    let nodes = connection.list().await?;
    let node = pick(&nodes, word)?;
    connection.nodes().remove(RemoveNodeRequest { node: node.id.clone(), force }).await?;
    done(format, &format!("node {} is removed", label(node)))
}

async fn drain(connection: &Connection, format: Format, word: &str, undo: bool) -> Result<()> {
    let nodes = connection.list().await?;
    let node = pick(&nodes, word)?;
    connection.nodes().drain(DrainNodeRequest { node: node.id.clone(), undo }).await?;
    let text = match undo {
        true => format!("node {} stays", label(node)),
        false => format!("node {} gives its data to others; it serves until it is stopped", label(node)),
    };
    done(format, &text)
}

async fn reweight(connection: &Connection, format: Format, word: &str, weight: Weight) -> Result<()> {
    let nodes = connection.list().await?;
    let node = pick(&nodes, word)?;
    connection.nodes().reweight(ReweightNodeRequest { node: node.id.clone(), weight: weight.0 }).await?;
    let text = match weight.0 {
        Some(weight) => format!("node {} has weight {weight}", label(node)),
        None => format!("node {} has the weight that it announces", label(node)),
    };
    done(format, &text)
}

/// Tells that a command was carried out; programs get an empty object.
pub(crate) fn done(format: Format, text: &str) -> Result<()> {
    match format {
        Format::Json => output::json(&json!({}))?,
        Format::Table => output::line(text)?,
    }
    Ok(())
}

/// Asks every node that stores something what it still has to do.
pub(crate) async fn recoveries(connection: &Connection) -> Result<Vec<(Node, Result<RecoveryReply>)>> {
    connection.ask_storage(|_| true, async |node| node.nodes().recovery(RecoveryRequest {}).await).await
}

fn recovery_json(all: &[(Node, Result<RecoveryReply>)]) -> Value {
    let rows = all.iter().map(|(node, reply)| match reply {
        Ok(reply) => json!({
            "node": node.id,
            "name": node.name,
            "epoch": reply.epoch,
            "objects_total": reply.objects_total,
            "objects_done": reply.objects_done,
            "bytes_done": reply.bytes_done,
            "bytes_left": reply.bytes_left,
            "time_left_ms": reply.time_left_ms,
            "bytes_fetched": reply.bytes_fetched,
            "paused": reply.paused,
            "pace_bytes_per_second": reply.pace,
            "complete": reply.complete,
        }),
        Err(error) => json!({"node": node.id, "name": node.name, "error": output::describe(error)}),
    });
    Value::Array(rows.collect())
}

fn recovery_table(all: &[(Node, Result<RecoveryReply>)]) -> String {
    let rows = all.iter().map(|(node, reply)| match reply {
        Ok(reply) => vec![
            label(node),
            reply.epoch.to_string(),
            format!("{}/{}", reply.objects_done, reply.objects_total),
            Size(reply.bytes_done).to_string(),
            time_left(reply),
            state_of(reply),
        ],
        Err(error) => {
            vec![label(node), "-".into(), "-".into(), "-".into(), "-".into(), output::describe(error)]
        }
    });
    output::table(&["NODE", "EPOCH", "OBJECTS", "COPIED", "LEFT", "STATE"], rows)
}

fn state_of(reply: &RecoveryReply) -> String {
    match reply {
        RecoveryReply { complete: true, .. } => "complete".into(),
        RecoveryReply { paused: true, .. } => "paused".into(),
        RecoveryReply { pace: 0, .. } => "recovering".into(),
        RecoveryReply { pace, .. } => format!("recovering, held to {}/s", Size(*pace)),
    }
}

/// What is thought to be left, for people.
fn time_left(reply: &RecoveryReply) -> String {
    if reply.complete || reply.objects_done == 0 {
        return "-".into();
    }
    format!("{}, {}", Size(reply.bytes_left), seconds(reply.time_left_ms))
}

/// A time that is only an estimate.
pub(crate) fn seconds(ms: u64) -> String {
    match ms.div_ceil(1000) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

pub(crate) async fn recovery(connection: &Connection, format: Format, watch: bool) -> Result<()> {
    let all = if watch { follow(connection).await? } else { recoveries(connection).await? };
    match format {
        Format::Json => output::json(&recovery_json(&all))?,
        Format::Table => output::line(&recovery_table(&all))?,
    }
    if watch && all.iter().any(|(_, reply)| reply.is_err()) {
        bail!("not all nodes can be asked");
    }
    Ok(())
}

async fn follow(connection: &Connection) -> Result<Vec<(Node, Result<RecoveryReply>)>> {
    let terminal = std::io::stderr().is_terminal();
    let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style =
        ProgressStyle::with_template("recovering {bar:40} {pos}/{len} objects, {msg}").context("style")?;
    let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style);
    let mut last = None;
    loop {
        let all = recoveries(connection).await?;
        let replies = || all.iter().filter_map(|(_, reply)| reply.as_ref().ok());
        let sum = |field: fn(&RecoveryReply) -> u64| replies().map(field).fold(0u64, u64::saturating_add);
        let (done, total) = (sum(|reply| reply.objects_done), sum(|reply| reply.objects_total));
        bar.set_length(total);
        bar.set_position(done);
        let left = replies().map(|reply| reply.time_left_ms).max().unwrap_or_default();
        let copied = Size(sum(|reply| reply.bytes_done));
        bar.set_message(format!("{copied} copied, about {} left", seconds(left)));
        if !terminal && last.replace((done, total)) != Some((done, total)) {
            writeln!(std::io::stderr(), "recovering: {done}/{total} objects")?;
        }
        if replies().all(|reply| reply.complete) {
            bar.finish_and_clear();
            return Ok(all);
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, name: &str, role: &str, state: &str) -> Node {
        Node {
            id: id.into(),
            name: name.into(),
            role: role.into(),
            state: state.into(),
            weight: 7,
            voter: role == "storage",
            used_bytes: 3 << 29,
            capacity_bytes: 10 << 30,
            addresses: vec!["10.0.0.1:7000".into()],
            ..Node::default()
        }
    }

    #[test]
    fn the_table_of_nodes() {
        let nodes = [node("00aa", "one", "storage", "up"), node("00bb", "", "gateway", "down")];
        let expected = "\
ID    NAME  ROLE     STATE  VOTER  ZONE  WEIGHT  USED     CAPACITY  ADDRESS
00aa  one   storage  up     yes    -     7       1.5 GiB  10 GiB    10.0.0.1:7000
00bb  -     gateway  down   -      -     -       -        -         10.0.0.1:7000";
        assert_eq!(node_table(&nodes), expected);
    }

    #[test]
    fn the_table_of_recovery_shows_who_does_not_answer() {
        let reply = RecoveryReply {
            epoch: 4,
            objects_total: 10,
            objects_done: 3,
            bytes_done: 4096,
            bytes_left: 8192,
            time_left_ms: 150_000,
            ..RecoveryReply::default()
        };
        let all = [
            (node("00aa", "one", "storage", "up"), Ok(reply)),
            (node("00bb", "", "storage", "up"), Err(anyhow::anyhow!("gone"))),
        ];
        let expected = "\
NODE        EPOCH  OBJECTS  COPIED  LEFT          STATE
one (00aa)  4      3/10     4 KiB   8 KiB, 2 min  recovering
00bb        -      -        -       -             gone";
        assert_eq!(recovery_table(&all), expected);
        assert_eq!(recovery_json(&all)[0]["objects_total"], 10);
        assert_eq!(recovery_json(&all)[0]["time_left_ms"], 150_000);
        assert_eq!(recovery_json(&all)[1]["error"], "gone");
        let shown = [0, 1, 119_000, 120_000, 7_200_000].map(seconds);
        assert_eq!(shown, ["0 s", "1 s", "119 s", "2 min", "2 h"]);
    }

    #[test]
    fn json_of_a_node_has_the_facts() {
        let info = NodeInfoReply {
            node: Some(node("00aa", "one", "storage", "up")),
            objects: 9,
            ..NodeInfoReply::default()
        };
        let value = info_json(&info);
        assert_eq!(
            (&value["id"], &value["state"], &value["objects"]),
            (&json!("00aa"), &json!("up"), &json!(9))
        );
        assert!(info_text(&info).starts_with("Node       one (00aa)\n"));
    }
}
