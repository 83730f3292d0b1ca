//! `kubectl sheepdog status`: one screen.

mod verdict;

use super::json::count;
use super::nodes::{self, Machine, machines};
use super::objects::{Pod, Workload};
use super::seen::Seen;
use crate::node::seconds;
use crate::output;
use serde_json::{Value, json};
use sheep_api::Size;
use verdict::percent;
pub(super) use verdict::{Verdict, judge};

/// Width of the bar that shows how full it is.
const BAR: u64 = 20;
/// Most lines of what is wrong: the rest would move the top off the screen.
const LINES: usize = 12;

/// DaemonSets and Deployments that lack pods.
fn absent_pods(seen: &Seen) -> Vec<&Workload> {
    seen.workloads.iter().flatten().filter(|it| it.made < it.wanted).collect()
}

fn all_machines(seen: &Seen) -> Vec<Machine> {
    machines(seen.nodes.as_deref().ok(), seen.pods(), seen.inside.as_ref().ok())
}

/// The screen.
pub(super) fn text(seen: &Seen, verdict: &Verdict) -> String {
    let word = match verdict.ok {
        Some(true) => "OK",
        Some(false) => "NOT OK",
        None => "UNKNOWN",
    };
    let mut parts = vec![format!("{word}. {}\nNext: {}", verdict.sentence, verdict.next)];
    let facts = facts(seen);
    if !facts.is_empty() {
        parts.push(output::pairs(&facts));
    }
    let machines = all_machines(seen);
    if !seen.pods().is_empty() && !machines.is_empty() {
        parts.push(nodes::table(&machines, false));
    }
    parts.extend(pods_part(seen));
    parts.extend(findings_part(seen, verdict));
    parts.join("\n\n")
}

fn facts(seen: &Seen) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let inside = seen.inside.as_ref().ok();
    if let Some(wish) = seen.wish() {
        let version = inside.map(|inside| format!(", version {}", inside.info.version)).unwrap_or_default();
        let leaving = if wish.leaving { ", being deleted" } else { "" };
        facts.push(("Cluster", format!("{}/{}{version}{leaving}", wish.namespace, wish.name)));
    }
    if let Some(inside) = inside {
        let info = &inside.info;
        let (up, all) = info.storage_nodes;
        facts.push(("Storage", format!("{up} of {all} nodes up, epoch {}", info.epoch)));
        let (copies, needed) = info.copies;
        facts.push((
            "Redundancy",
            format!(
                "{} of new volumes, writes need {needed}",
                if copies == 1 { "1 copy".into() } else { format!("{copies} copies") }
            ),
        ));
    }
    if let Some(wish) = seen.wish().filter(|wish| !wish.rings.is_empty()) {
        let rings = wish.rings.iter().map(|(name, members)| format!("{name} with {members} members"));
        facts.push(("Rings", rings.collect::<Vec<_>>().join(", ")));
    }
    if let Some(inside) = inside {
        let info = &inside.info;
        facts.push(("Capacity", capacity(info.used)));
        let snapshots = inside.vdis.iter().filter(|vdi| vdi.snapshot_of.is_some()).count();
        let volumes = inside.vdis.len() - snapshots;
        facts.push(("Volumes", format!("{volumes}, and {}", count(snapshots, "snapshot"))));
        facts.push(("Recovery", recovery(info)));
    }
    if let Some(wish) = seen.wish() {
        let unusual = [
            ("Progressing", "True"),
            ("RingsApplied", "False"),
            ("CertificatesValid", "False"),
            ("NodesApplied", "False"),
        ];
        let told = unusual.into_iter().filter_map(|(kind, status)| wish.says(kind, status));
        facts.extend(told.map(|message| ("Operator", message.to_owned())));
    }
    facts
}

/// How full it is, as `[#####...............]  2.5 GiB of 10 GiB (25%)`.
fn capacity(used: (u64, u64)) -> String {
    let percent = percent(used);
    let full = usize::try_from((percent * BAR).div_ceil(100).min(BAR)).unwrap_or_default();
    let empty = usize::try_from(BAR).unwrap_or_default() - full;
    let bar = format!("[{}{}]", "#".repeat(full), ".".repeat(empty));
    format!("{bar} {} of {} ({percent}%)", Size(used.0), Size(used.1))
}

fn recovery(info: &super::inside::Info) -> String {
    let (objects, bytes, time, paused) = info.left;
    if info.recovering == 0 {
        return "nothing to copy".into();
    }
    let objects = usize::try_from(objects).unwrap_or(usize::MAX);
    let nodes = usize::try_from(info.recovering).unwrap_or(usize::MAX);
    let what = format!("{} on {}", count(objects, "object"), count(nodes, "node"));
    match (paused, time) {
        (true, _) => format!("{what}, about {}: paused", Size(bytes)),
        (false, 0) => format!("{what}: how long it takes is not known yet"),
        (false, _) => format!("{what}, about {} and {} left", Size(bytes), seconds(time)),
    }
}

fn not_ready(seen: &Seen) -> impl Iterator<Item = &Pod> {
    seen.pods().iter().filter(|pod| !pod.ready)
}

fn pods_part(seen: &Seen) -> Option<String> {
    let absent = absent_pods(seen).into_iter().map(|it| {
        let lacks = it.wanted - it.made;
        let verb = if lacks == 1 { "is" } else { "are" };
        let why = format!(
            "{lacks} of {} {verb} not even made",
            count(usize::try_from(it.wanted).unwrap_or(usize::MAX), "pod")
        );
        vec![format!("{} {}", it.kind, it.name), "-".into(), why]
    });
    let pods = not_ready(seen).map(|pod| {
        let why = pod.trouble.clone().unwrap_or_default();
        vec![pod.name.clone(), super::json::dash(&pod.node), why]
    });
    let rows: Vec<Vec<String>> = absent.chain(pods).collect();
    let more = rows.len().saturating_sub(LINES);
    let mut table = output::table(&["NOT READY", "NODE", "WHY"], rows.into_iter().take(LINES));
    if more > 0 {
        table += &format!("\nand {more} more");
    }
    (table.lines().count() > 1).then_some(table)
}

fn findings_part(seen: &Seen, verdict: &Verdict) -> Option<String> {
    let told = |finding: &&String| !verdict.sentence.starts_with(finding.trim_end_matches('.'));
    let findings: Vec<&String> =
        seen.inside.iter().flat_map(|inside| &inside.findings).filter(told).collect();
    let mut lines = vec!["Found by looking at all nodes:".to_owned()];
    lines.extend(findings.iter().take(LINES).map(|finding| format!("  {finding}")));
    if findings.len() > LINES {
        lines.push(format!("  and {} more: `kubectl sheepdog cluster check`", findings.len() - LINES));
    }
    (!findings.is_empty()).then(|| lines.join("\n"))
}

/// The same for programs.
pub(super) fn to_json(seen: &Seen, verdict: &Verdict) -> Value {
    let health = match verdict.ok {
        Some(true) => "ok",
        Some(false) => "not ok",
        None => "unknown",
    };
    let cluster = seen.inside.as_ref().ok().map(|inside| {
        let info = &inside.info;
        let snapshots = inside.vdis.iter().filter(|vdi| vdi.snapshot_of.is_some()).count();
        json!({
            "id": info.id,
            "health": info.health,
            "message": info.message,
            "version": info.version,
            "epoch": info.epoch,
            "storage_nodes_up": info.storage_nodes.0,
            "storage_nodes": info.storage_nodes.1,
            "copies": info.copies.0,
            "min_copies": info.copies.1,
            "used_bytes": info.used.0,
            "capacity_bytes": info.used.1,
            "volumes": inside.vdis.len() - snapshots,
            "snapshots": snapshots,
            "nodes_recovering": info.recovering,
            "objects_to_recover": info.left.0,
            "bytes_to_recover": info.left.1,
            "recovery_time_left_ms": info.left.2,
            "recovery_paused": info.left.3,
            "findings": inside.findings,
        })
    });
    let pods = not_ready(seen).map(|pod| {
        json!({
            "namespace": pod.namespace,
            "name": pod.name,
            "node": pod.node,
            "component": pod.component,
            "why": pod.trouble,
        })
    });
    json!({
        "health": health,
        "sentence": verdict.sentence,
        "next": verdict.next,
        "namespace": seen.namespaces().first(),
        "name": seen.wish().map(|wish| &wish.name),
        "rings": seen.wish().map(|wish| {
            wish.rings.iter().map(|(name, members)| json!({"name": name, "members": members})).collect::<Vec<_>>()
        }),
        "cluster": cluster,
        "cluster_problem": seen.inside.as_ref().err().map(ToString::to_string),
        "nodes": nodes::to_json(&all_machines(seen)),
        "pods_not_ready": pods.collect::<Vec<_>>(),
        "pods_not_made": absent_pods(seen)
            .iter()
            .map(|it| json!({"kind": it.kind, "name": it.name, "wanted": it.wanted, "made": it.made}))
            .collect::<Vec<_>>(),
    })
}
