//! `dog cluster scrub` and `dog node scrub`.

use crate::cli::{Format, Scrub, ScrubAction};
use crate::connect::{Connection, label, pick};
use crate::output;
use anyhow::Result;
use serde_json::{Value, json};
use sheep_api::Size;
use sheep_api::v1::{Node, ScrubOrder, ScrubReply, ScrubRequest};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often progress is asked for.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long repairs may take after the end of a pass.
const REPAIRS: Duration = Duration::from_secs(10);

type Replies = Vec<(Node, Result<ScrubReply>)>;

async fn ask(connection: &Connection, node: Option<&str>, order: ScrubOrder) -> Result<Replies> {
    let one = match node {
        Some(word) => Some(pick(&connection.list().await?, word)?.id.clone()),
        None => None,
    };
    let wanted = |node: &Node| one.as_ref().is_none_or(|id| *id == node.id);
    let request = ScrubRequest { order: order.into() };
    connection.ask_storage(wanted, async |node| node.nodes().scrub(request).await).await
}

fn running(replies: &Replies) -> bool {
    replies.iter().any(|(_, reply)| reply.as_ref().is_ok_and(|reply| reply.running && !reply.paused))
}

fn damaged(replies: &Replies) -> bool {
    replies.iter().any(|(_, reply)| reply.as_ref().is_ok_and(|reply| reply.damaged_now > 0))
}

/// Whether everything is as it should be, as far as scrubbing knows.
fn good(replies: &Replies) -> bool {
    replies.iter().all(|(_, reply)| {
        reply
            .as_ref()
            .is_ok_and(|reply| reply.damaged_now + reply.unresolved + reply.lost + reply.lost_blocks == 0)
    })
}

pub(crate) async fn run(
    connection: &Connection,
    format: Format,
    node: Option<&str>,
    scrub: Scrub,
) -> Result<ExitCode> {
    let order = match scrub.action {
        ScrubAction::Status => ScrubOrder::Status,
        ScrubAction::Start => ScrubOrder::Start,
        ScrubAction::Pause => ScrubOrder::Pause,
        ScrubAction::Resume => ScrubOrder::Resume,
    };
    let mut replies = ask(connection, node, order).await?;
    let mut ended = None;
    while scrub.wait && (running(&replies) || damaged(&replies)) {
        if running(&replies) {
            ended = None;
        } else if ended.get_or_insert_with(Instant::now).elapsed() > REPAIRS {
            break;
        }
        tokio::time::sleep(INTERVAL).await;
        replies = ask(connection, node, ScrubOrder::Status).await?;
    }
    match format {
        Format::Json => output::json(&Value::Array(replies.iter().map(json).collect()))?,
        Format::Table => output::line(&table(&replies))?,
    }
    Ok(if good(&replies) || !scrub.wait { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn state(reply: &ScrubReply) -> &'static str {
    match (reply.running, reply.paused) {
        (_, true) => "paused",
        (true, false) => "running",
        (false, false) => "idle",
    }
}

fn table(replies: &Replies) -> String {
    let heads = [
        "NODE",
        "STATE",
        "OBJECTS",
        "READ",
        "LAST PASS",
        "DAMAGED",
        "DIFFERENT",
        "REPAIRED",
        "NOT REPAIRED",
        "LOST",
        "LOST BLOCKS",
    ];
    let rows = replies.iter().map(|(node, reply)| match reply {
        Ok(reply) => vec![
            label(node),
            state(reply).to_owned(),
            format!("{}/{}", reply.objects, reply.objects_total),
            Size(reply.bytes_read).to_string(),
            if reply.last_pass_unix_ms == 0 { "-".into() } else { output::moment(reply.last_pass_unix_ms) },
            reply.damaged.to_string(),
            (reply.mismatched + reply.behind).to_string(),
            reply.repaired.to_string(),
            (reply.damaged_now + reply.unresolved).to_string(),
            reply.lost.to_string(),
            reply.lost_blocks.to_string(),
        ],
        Err(error) => vec![label(node), output::describe(error)],
    });
    output::table(&heads, rows)
}

fn json((node, reply): &(Node, Result<ScrubReply>)) -> Value {
    match reply {
        Ok(reply) => json!({
            "node": node.id,
            "name": node.name,
            "state": state(reply),
            "objects": reply.objects,
            "objects_total": reply.objects_total,
            "objects_again": reply.objects_again,
            "passes": reply.passes,
            "last_pass_unix_ms": reply.last_pass_unix_ms,
            "bytes_read": reply.bytes_read,
            "damaged": reply.damaged,
            "mismatched": reply.mismatched,
            "behind": reply.behind,
            "repaired": reply.repaired,
            "unrepairable": reply.unrepairable,
            "unresolved": reply.unresolved,
            "skipped": reply.skipped,
            "damaged_now": reply.damaged_now,
            "lost": reply.lost,
            "lost_blocks": reply.lost_blocks,
        }),
        Err(error) => json!({"node": node.id, "name": node.name, "error": output::describe(error)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_is_left() {
        let node = |id: &str| Node { id: id.into(), ..Node::default() };
        let fine = ScrubReply {
            objects: 7,
            objects_total: 7,
            bytes_read: 8192,
            last_pass_unix_ms: 1_790_000_000_000,
            damaged: 2,
            repaired: 2,
            ..ScrubReply::default()
        };
        let busy = ScrubReply { running: true, unresolved: 1, behind: 1, ..ScrubReply::default() };
        let replies = vec![(node("aa"), Ok(fine)), (node("bb"), Ok(busy))];
        let text = table(&replies);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            words[1],
            ["aa", "idle", "7/7", "8", "KiB", "2026-09-21", "14:13:20Z", "2", "0", "2", "0", "0", "0"]
        );
        assert_eq!(words[2], ["bb", "running", "0/0", "0", "B", "-", "0", "1", "0", "1", "0", "0"]);
        assert!(running(&replies) && !good(&replies));
        assert!(good(&vec![replies.into_iter().next().unwrap()]));
    }
}
