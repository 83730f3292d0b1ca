//! How the cluster and this node are, in one word and one sentence for a person.

use crate::handle::{DataStatus, NodeStatus};
use sheep_state::{ClusterState, DownCause, NodeState};
use sheep_types::{ClusterId, NodeId};
use std::fmt;

/// So many remembered epochs are worth a word.
const MANY_EPOCHS: u64 = 100;

/// One word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// All copies are where they belong.
    Ok,
    /// Fewer copies than wanted.
    Degraded,
    /// Nodes are bringing their copies up to date.
    Recovering,
    /// This node may not act.
    NoQuorum,
    /// This node waits for a cluster.
    NoCluster,
    /// This node has stopped working.
    Failed,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Recovering => "recovering",
            Self::NoQuorum => "no quorum",
            Self::NoCluster => "no cluster",
            Self::Failed => "failed",
        })
    }
}

/// One word, and what is wrong and what to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assessment {
    pub(crate) health: Health,
    pub(crate) message: String,
}

fn assessment(health: Health, message: impl Into<String>) -> Assessment {
    Assessment { health, message: message.into() }
}

/// Why this node cannot do its part, if it cannot: failed, without cluster, or not in the primary component.
pub(crate) fn trouble(status: &NodeStatus, data: &DataStatus) -> Option<Assessment> {
    if let Some(why) = status.fatal.as_ref().or(data.failed.as_ref()) {
        let message =
            format!("This node has failed: {why}. Look into its log, repair the cause and start it again.");
        return Some(assessment(Health::Failed, message));
    }
    if status.cluster == ClusterId(0) {
        return Some(assessment(
            Health::NoCluster,
            "This node belongs to no cluster: make one here with `dog cluster format`, or start it with --key and \
             --seed of a cluster that exists.",
        ));
    }
    if !status.primary {
        return Some(assessment(Health::NoQuorum, no_quorum(status)));
    }
    if status.published.is_none() {
        let message = "This node is still catching up with the cluster's log; wait a few seconds.";
        return Some(assessment(Health::NoQuorum, message));
    }
    None
}

fn no_quorum(status: &NodeStatus) -> String {
    let (present, missing): (Vec<NodeId>, Vec<NodeId>) =
        status.voters.iter().partition(|voter| status.ring_members.iter().any(|m| m.node == **voter));
    if present.len() * 2 > status.voters.len() || status.voters.is_empty() {
        return format!(
            "The nodes are finding each other (ring state {}); volumes wait meanwhile. If this lasts, look at the \
             network between them.",
            status.ring_state
        );
    }
    let state = status.published.as_ref().map(|published| &*published.state);
    let names: Vec<String> = missing.into_iter().map(|node| name(state, node)).collect();
    format!(
        "This node reaches only {} of {} voters and may not act; volumes wait. Start {} again, or repair the network \
         to there.",
        present.len(),
        status.voters.len(),
        names.join(" and ")
    )
}

/// A node as people call it.
pub(crate) fn name(state: Option<&ClusterState>, node: NodeId) -> String {
    match state.and_then(|state| state.node(node)) {
        Some(record) if !record.name.is_empty() => format!("{} ({node})", record.name),
        Some(_) | None => node.to_string(),
    }
}

/// Most copies that any volume or snapshot wants; without any, what new ones would get. Looks at all.
pub(crate) fn wanted_copies(state: &ClusterState) -> usize {
    let most = state.lineages().iter().map(|lineage| lineage.copies).max();
    usize::from(most.unwrap_or(state.settings().copies))
}

/// The whole picture. Looks at all volumes: not for every second.
pub(crate) fn assess(status: &NodeStatus, data: &DataStatus) -> Assessment {
    if let Some(trouble) = trouble(status, data) {
        return trouble;
    }
    let mut assessment = assess_copies(status, data);
    if assessment.health != Health::Ok {
        data.waits.iter().for_each(|wait| assessment.message += &format!(" {wait}"));
    }
    assessment
}

fn assess_copies(status: &NodeStatus, data: &DataStatus) -> Assessment {
    let Some(state) = status.published.as_ref().map(|published| &*published.state) else {
        return assessment(
            Health::NoQuorum,
            "This node knows nothing of its cluster yet; wait a few seconds.",
        );
    };
    let (up, all) =
        (state.storage_nodes().filter(|record| record.state.is_up()).count(), state.storage_nodes().count());
    let down: Vec<String> = state
        .storage_nodes()
        .filter(|record| matches!(record.state, NodeState::Down { .. }))
        .map(|record| name(Some(state), record.node))
        .collect();
    let (wanted, placed) = (wanted_copies(state), state.members().placed());
    if !down.is_empty() {
        let then = match state.settings().automatic_out {
            true => format!(
                "After {} s its data is copied to other nodes, as far as there are enough.",
                state.settings().out_delay_ms / 1000
            ),
            false => "Its data is not copied to other nodes, because automatic_out is off.".into(),
        };
        let message = format!(
            "{up} of {all} storage nodes are up, some volumes have fewer copies than wanted: start {} again. {then}",
            down.join(" and ")
        );
        return assessment(Health::Degraded, message);
    }
    let without_disk: Vec<String> = state
        .storage_nodes()
        .filter(|record| record.has_failed_disk())
        .map(|record| name(Some(state), record.node))
        .collect();
    if !without_disk.is_empty() {
        let message = format!(
            "A disk has failed on {}: `dog node md list` shows which. Replace it and `dog node md plug` it, or give \
             it up with `dog node md unplug --force`.",
            without_disk.join(" and ")
        );
        return assessment(Health::Degraded, message);
    }
    if placed < wanted {
        let nodes = if placed == 1 { "node takes" } else { "nodes take" };
        let message = format!(
            "{placed} of {wanted} copies: only {placed} storage {nodes} data. Start more (`sheep DIR`); they are used \
             by themselves."
        );
        return assessment(Health::Degraded, message);
    }
    let late = state.recovering().count();
    if late > 0 {
        let left = data.recovery_total.saturating_sub(data.recovery_done);
        let what = match state.settings().recovery_paused {
            true => "Recovery is paused: `dog cluster recovery resume` lets it go on.",
            false => "Nothing to do; `dog node recovery` shows how far they are.",
        };
        let message = format!(
            "{late} of {up} storage nodes bring their copies up to date ({left} objects left on this one). {what}"
        );
        return assessment(Health::Recovering, message);
    }
    assessment(Health::Ok, "All copies are where they belong.")
}

fn why(cause: DownCause) -> &'static str {
    match cause {
        DownCause::Left => "it is not in the ring",
        DownCause::Restarted => "its last run is over, and it is not back yet",
        DownCause::Reported => "its data path does not answer",
    }
}

/// What is lost or damaged, as far as this node has found out.
pub(crate) fn damage(state: &ClusterState, data: &DataStatus) -> Vec<String> {
    let mut findings = Vec::new();
    // Other nodes say the same of other objects: without a number it is told once.
    for vdi in data.lost.keys().take(20) {
        let name = state.vdi(*vdi).map_or_else(|| vdi.to_string(), |vdi| vdi.name.clone());
        findings.push(format!(
            "VDI {name} has lost objects: no copy of them can be trusted, and reading them is an I/O error. \
             `dog vdi check {name}` lists them, `dog vdi accept-loss {name}` makes them zeros."
        ));
    }
    if data.scrub.damaged_now > 0 {
        findings.push(format!(
            "{} copies on this node are damaged and not made good yet; its log names them.",
            data.scrub.damaged_now
        ));
    }
    if data.scrub.lost_blocks > 0 {
        findings.push(format!(
            "{} blocks of {} objects on this node are lost: no copy had them, and reading them is an I/O error until \
             they are written. The node's log and `dog vdi check` say where.",
            data.scrub.lost_blocks, data.scrub.lost_objects
        ));
    }
    if data.scrub.unresolved > 0 {
        findings.push(format!(
            "{} objects have copies that differ, and nothing says which is right; the node's log names them.",
            data.scrub.unresolved
        ));
    }
    findings
}

/// What is wrong with copies, as far as this node has found out.
fn copies(state: &ClusterState, data: &DataStatus) -> Vec<String> {
    let mut findings = damage(state, data);
    if state.epoch().0.saturating_sub(state.oldest_epoch().0) > MANY_EPOCHS {
        findings.push(format!(
            "Epochs since {} are remembered, because not all storage nodes have recovered since.",
            state.oldest_epoch()
        ));
    }
    findings
}

/// Everything that this node sees wrong, as sentences. Looks at all volumes.
pub(crate) fn findings(status: &NodeStatus, data: &DataStatus) -> Vec<String> {
    let whole = assess(status, data);
    let mut findings = Vec::new();
    if whole.health != Health::Ok {
        findings.push(whole.message);
    }
    let Some(state) = status.published.as_ref().map(|published| &*published.state) else { return findings };
    for record in state.nodes() {
        let who = name(Some(state), record.node);
        match record.state {
            NodeState::Down { cause, .. } => findings.push(format!("Node {who} is down: {}.", why(cause))),
            NodeState::Out { .. } => {
                findings.push(format!("Node {who} is out: its data was given to others."))
            }
            NodeState::Up | NodeState::Leaving => {}
        }
    }
    findings.extend(copies(state, data));
    let members = state.members();
    let up = members.iter().filter(|member| member.is_up() && member.is_placed()).count();
    let copies = |vid| state.lineage_of(vid).map_or(0, |lineage| lineage.copies);
    let short: Vec<_> = state.vdis().into_iter().filter(|vdi| usize::from(copies(vdi.vid)) > up).collect();
    // A list that nobody reads to its end helps nobody.
    for vdi in short.iter().take(20) {
        findings.push(format!("VDI {} has at most {up} of {} copies.", vdi.name, copies(vdi.vid)));
    }
    if short.len() > 20 {
        findings.push(format!("{} more VDIs have too few copies.", short.len() - 20));
    }
    findings
}
