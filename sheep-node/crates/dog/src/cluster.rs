//! `dog cluster`.

use crate::check;
use crate::cli::{ClusterCommand, Format, RecoveryOrder, Settings};
use crate::connect::{Connection, Server, label};
use crate::node::{done, recoveries, recovery, seconds};
use crate::output;
use crate::scrub;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use sheep_api::Size;
use sheep_api::v1::{
    self, ChangeSettingsRequest, ClusterInfoReply, ClusterInfoRequest, FormatRequest, StopRequest,
};
use std::process::ExitCode;

pub(crate) async fn run(server: &Server, format: Format, command: ClusterCommand) -> Result<ExitCode> {
    let connection = server.connect().await?;
    match command {
        ClusterCommand::Info => info(&connection, format).await?,
        ClusterCommand::Check { copies } => return check::run(&connection, format, copies).await,
        ClusterCommand::Format { copies, min_copies } => {
            let request = FormatRequest { copies: copies.unwrap_or(0), min_copies: min_copies.unwrap_or(0) };
            let id = connection.cluster().format(request).await?.into_inner().cluster_id;
            match format {
                Format::Json => output::json(&json!({"cluster_id": id}))?,
                Format::Table => output::line(&format!("cluster {id} is made"))?,
            }
        }
        ClusterCommand::Scrub(command) => return scrub::run(&connection, format, None, command).await,
        ClusterCommand::Shutdown => shutdown(&connection, format).await?,
        ClusterCommand::Settings(settings) => change(&connection, format, request(&settings)).await?,
        ClusterCommand::Recovery { order: None } => recovery(&connection, format, false).await?,
        ClusterCommand::Recovery { order: Some(order) } => {
            let paused = Some(order == RecoveryOrder::Pause);
            let settings = v1::Settings { recovery_paused: paused, ..v1::Settings::default() };
            change_to(&connection, settings).await?;
            let told = if paused == Some(true) {
                "recovery pauses; what clients wait for is still recovered"
            } else {
                "recovery goes on"
            };
            done(format, told)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// State of the cluster as the asked node sees it; what is left to copy is asked of all nodes.
async fn info(connection: &Connection, format: Format) -> Result<()> {
    let mut info = connection.cluster().info(ClusterInfoRequest {}).await?.into_inner();
    if info.nodes_recovering > 0 {
        let all = recoveries(connection).await?;
        let left = |reply: &v1::RecoveryReply| reply.objects_total.saturating_sub(reply.objects_done);
        let replies = || all.iter().filter_map(|(_, reply)| reply.as_ref().ok());
        info.objects_to_recover = replies().map(left).sum();
        info.bytes_to_recover = replies().map(|reply| reply.bytes_left).sum();
        // They work at the same time.
        info.recovery_time_left_ms = replies().map(|reply| reply.time_left_ms).max().unwrap_or_default();
    }
    match format {
        Format::Json => output::json(&info_json(&info))?,
        Format::Table => output::line(&info_text(&info))?,
    }
    Ok(())
}

fn info_json(info: &ClusterInfoReply) -> Value {
    json!({
        "cluster_id": info.cluster_id,
        "health": info.health,
        "message": info.message,
        "primary": info.primary,
        "epoch": info.epoch,
        "term_number": info.term_number,
        "term_representative": info.term_representative,
        "applied_index": info.applied_index,
        "commit_index": info.commit_index,
        "voters": info.voters,
        "storage_nodes": info.storage_nodes,
        "storage_nodes_up": info.storage_nodes_up,
        "nodes_recovering": info.nodes_recovering,
        "objects_to_recover": info.objects_to_recover,
        "bytes_to_recover": info.bytes_to_recover,
        "recovery_time_left_ms": info.recovery_time_left_ms,
        "capacity_bytes": info.capacity_bytes,
        "used_bytes": info.used_bytes,
        "vdis": info.vdis,
        // As digits: JSON numbers lose some of them in many programs.
        "state_hash": format!("{:016x}", info.state_hash),
        "settings": info.settings.as_ref().map(settings_json),
        "version": info.version,
    })
}

fn to_recover(info: &ClusterInfoReply) -> String {
    let what = format!("{} objects on {} nodes", info.objects_to_recover, info.nodes_recovering);
    if info.recovery_time_left_ms == 0 {
        return what;
    }
    let left = seconds(info.recovery_time_left_ms);
    format!("{what}, about {} and {left} left", Size(info.bytes_to_recover))
}

fn info_text(info: &ClusterInfoReply) -> String {
    let settings = info.settings.unwrap_or_default();
    let copies = format!("{} copies, writes need {}", settings.copies(), settings.min_copies());
    output::pairs(&[
        ("Cluster", if info.cluster_id.is_empty() { "none".into() } else { info.cluster_id.clone() }),
        ("Health", info.health.clone()),
        ("", info.message.clone()),
        ("Storage nodes", format!("{} of {} up", info.storage_nodes_up, info.storage_nodes)),
        ("Voters", info.voters.len().to_string()),
        ("Epoch", info.epoch.to_string()),
        ("To recover", to_recover(info)),
        ("Used", format!("{} of {}", Size(info.used_bytes), Size(info.capacity_bytes))),
        ("VDIs", info.vdis.to_string()),
        ("Redundancy", copies),
        (
            "Log",
            format!(
                "entry {} applied, {} committed, term {}",
                info.applied_index, info.commit_index, info.term_number
            ),
        ),
        ("Version", info.version.clone()),
    ])
}

fn settings_json(settings: &v1::Settings) -> Value {
    json!({
        "copies": settings.copies,
        "min_copies": settings.min_copies,
        "max_voters": settings.max_voters,
        "automatic_voters": settings.automatic_voters,
        "automatic_out": settings.automatic_out,
        "out_delay_ms": settings.out_delay_ms,
        "lease_ms": settings.lease_ms,
        "pending_limit": settings.pending_limit,
        "write_buffer_bytes": settings.write_buffer_bytes,
        "flush_interval_ms": settings.flush_interval_ms,
        "recovery_paused": settings.recovery_paused,
        "recovery_bytes_per_second": settings.recovery_bytes_per_second,
        "scrub_interval_ms": settings.scrub_interval_ms,
        "scrub_bytes_per_second": settings.scrub_bytes_per_second,
        "unavailable_error_after_ms": settings.unavailable_error_after_ms,
    })
}

fn settings_text(settings: &v1::Settings) -> String {
    let Value::Object(fields) = settings_json(settings) else { return String::new() };
    let facts: Vec<(&str, String)> =
        fields.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect();
    output::pairs(&facts)
}

fn request(settings: &Settings) -> Option<v1::Settings> {
    let request = v1::Settings {
        copies: settings.copies,
        min_copies: settings.min_copies,
        max_voters: settings.max_voters,
        automatic_voters: settings.automatic_voters,
        automatic_out: settings.automatic_out,
        out_delay_ms: settings.out_delay_ms,
        lease_ms: settings.lease_ms,
        pending_limit: settings.pending_limit,
        write_buffer_bytes: settings.write_buffer.map(|size| size.0),
        flush_interval_ms: settings.flush_interval_ms,
        recovery_paused: None,
        recovery_bytes_per_second: settings.recovery_rate.map(|size| size.0),
        scrub_interval_ms: settings.scrub_interval_ms,
        scrub_bytes_per_second: settings.scrub_rate.map(|size| size.0),
        unavailable_error_after_ms: settings.unavailable_error_after_ms,
    };
    (request != v1::Settings::default()).then_some(request)
}

async fn change_to(connection: &Connection, settings: v1::Settings) -> Result<()> {
    connection.cluster().change_settings(ChangeSettingsRequest { settings: Some(settings) }).await?;
    Ok(())
}

async fn change(connection: &Connection, format: Format, settings: Option<v1::Settings>) -> Result<()> {
    if let Some(settings) = settings {
        change_to(connection, settings).await?;
    }
    let info = connection.cluster().info(ClusterInfoRequest {}).await?.into_inner();
    let Some(settings) = info.settings else { bail!("{}", info.message) };
    match format {
        Format::Json => output::json(&settings_json(&settings))?,
        Format::Table => output::line(&settings_text(&settings))?,
    }
    Ok(())
}

/// Stops every node. The asked one comes last: through it the others are known.
async fn shutdown(connection: &Connection, format: Format) -> Result<()> {
    let own = connection.nodes().info(v1::NodeInfoRequest {}).await?.into_inner().node.unwrap_or_default();
    let mut stopped = 1;
    let mut problems = Vec::new();
    for (node, other) in connection.all().await? {
        if node.id == own.id {
            continue;
        }
        let result = match other {
            Ok(other) => {
                other.nodes().stop(StopRequest { all_nodes: true }).await.map(drop).map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => stopped += 1,
            Err(error) => problems.push(format!("{}: {}", label(&node), output::describe(&error))),
        }
    }
    connection.nodes().stop(StopRequest { all_nodes: true }).await?;
    if !problems.is_empty() {
        bail!("{stopped} nodes are stopping, but not {}", problems.join("; "));
    }
    done(format, &format!("{stopped} {} stopping", if stopped == 1 { "node is" } else { "nodes are" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_says_health_first() {
        let info = ClusterInfoReply {
            cluster_id: "c1".into(),
            health: "degraded".into(),
            message: "1 of 3 copies.".into(),
            storage_nodes: 1,
            storage_nodes_up: 1,
            objects_to_recover: 4,
            state_hash: 0xabc,
            settings: Some(v1::Settings { copies: Some(3), min_copies: Some(2), ..v1::Settings::default() }),
            ..ClusterInfoReply::default()
        };
        let text = info_text(&info);
        assert!(
            text.starts_with("Cluster        c1\nHealth         degraded\n               1 of 3 copies.\n"),
            "{text}"
        );
        assert!(text.contains("Redundancy     3 copies, writes need 2\n"), "{text}");
        let value = info_json(&info);
        assert!(text.contains("To recover     4 objects on 0 nodes\n"), "{text}");
        let going = ClusterInfoReply {
            nodes_recovering: 2,
            bytes_to_recover: 1 << 20,
            recovery_time_left_ms: 1500,
            ..info.clone()
        };
        let text = info_text(&going);
        assert!(text.contains("4 objects on 2 nodes, about 1 MiB and 2 s left\n"), "{text}");
        assert_eq!(value["objects_to_recover"], 4);
        assert_eq!(value["state_hash"], "0000000000000abc");
        assert_eq!(value["settings"]["copies"], 3);
    }

    #[test]
    fn only_what_is_given_is_changed() {
        assert_eq!(request(&Settings::default()), None);
        let given = Settings { write_buffer: Some(Size(8 << 20)), ..Settings::default() };
        let change = request(&given).unwrap();
        assert_eq!((change.write_buffer_bytes, change.copies), (Some(8 << 20), None));
    }
}
