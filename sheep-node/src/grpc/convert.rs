//! State to messages.

use crate::handle::{DataStatus, NodeStatus};
use sheep_api::v1;
use sheep_state::{
    AccessMode, CacheMode, ClusterState, NodeRecord, NodeState, Role, Settings, VdiRecord, WhenUnavailable,
};
use sheep_types::{Generation, Member, NodeId, Vid};
use std::net::SocketAddr;
use tonic::Status;

fn texts(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Storage => "storage",
        Role::Gateway => "gateway",
        Role::Witness => "witness",
    }
}

pub(super) fn node_state(state: NodeState) -> &'static str {
    match state {
        NodeState::Up => "up",
        NodeState::Down { .. } => "down",
        NodeState::Leaving => "leaving",
        NodeState::Out { .. } => "out",
    }
}

/// A node as the cluster knows it.
pub(super) fn node(record: &NodeRecord, status: &NodeStatus) -> v1::Node {
    v1::Node {
        id: record.node.to_string(),
        incarnation: record.incarnation.0,
        role: role(record.role).into(),
        state: node_state(record.state).into(),
        zone: record.zone.clone(),
        weight: record.weight_override.unwrap_or(record.weight),
        addresses: texts(&record.addresses.data),
        grpc_addresses: texts(&record.addresses.grpc),
        http_addresses: texts(&record.addresses.http),
        ring_addresses: texts(&record.addresses.ring),
        voter: status.voters.contains(&record.node),
        capacity_bytes: record.capacity,
        used_bytes: record.used,
        name: record.name.clone(),
        in_ring: status.ring_members.iter().any(|member| member.node == record.node),
        recovered_epoch: record.recovered.0,
    }
}

fn lock(holder: Member, generation: Generation) -> v1::Lock {
    v1::Lock { node: holder.node.to_string(), incarnation: holder.incarnation.0, generation: generation.0 }
}

/// The nearest ancestor of a vid that is not deleted.
fn parent(state: &ClusterState, vid: Vid) -> Option<&VdiRecord> {
    let mut at = state.vid(vid)?.parent;
    while let Some(vid) = at {
        if let Some(record) = state.vdi_of(vid) {
            return Some(record);
        }
        at = state.vid(vid)?.parent;
    }
    None
}

/// A VDI.
pub(super) fn vdi(record: &VdiRecord, state: &ClusterState) -> v1::Vdi {
    let attachments = record.attachments.iter().map(|attachment| v1::Attachment {
        node: attachment.node.to_string(),
        index: attachment.index.0,
        read_only: attachment.mode == AccessMode::Read,
    });
    let lineage = state.lineage_of(record.vid);
    let copies = lineage.map_or(0, |lineage| lineage.copies);
    let origin = state.origin_of(record.vid);
    let source = record.snapshot_of.and_then(|of| state.vdi(of.vdi));
    let name = |record: &VdiRecord| record.name.clone();
    let readers = record.readers.iter().map(|reader| lock(reader.holder, Generation(reader.granted.0)));
    v1::Vdi {
        name: record.name.clone(),
        id: record.id.0,
        vid: record.vid.0,
        size_bytes: record.size,
        copies: copies.into(),
        min_copies: lineage.map_or(0, |lineage| lineage.min_copies.into()),
        created_unix_ms: record.created_unix_ms,
        clean: record.is_clean(),
        lock: record.lock.map(|held| lock(held.holder, held.generation)),
        attributes: record.attributes.clone().into_iter().collect(),
        effective_copies: u32::try_from(state.members().effective_copies(copies)).unwrap_or(u32::MAX),
        readers: readers.collect(),
        attachments: attachments.collect(),
        write_through: record.cache == CacheMode::WriteThrough,
        kind: (if record.is_snapshot() { "snapshot" } else { "volume" }).into(),
        tag: record.tag().unwrap_or_default().into(),
        source: source.map_or_else(String::new, |source| name(source)),
        source_id: record.snapshot_of.map_or(0, |of| of.vdi.0),
        cloned: origin.is_some(),
        origin: origin.and_then(|vid| state.vdi_of(vid)).map_or_else(String::new, |origin| name(origin)),
        parent: parent(state, record.vid).map_or_else(String::new, name),
        flattening: record.flatten,
    }
}

/// All settings.
pub(super) fn settings(settings: &Settings) -> v1::Settings {
    v1::Settings {
        copies: Some(settings.copies.into()),
        min_copies: Some(settings.min_copies.into()),
        out_delay_ms: Some(settings.out_delay_ms),
        lease_ms: Some(settings.lease_ms),
        max_voters: Some(settings.max_voters.into()),
        write_buffer_bytes: Some(settings.write_buffer_bytes),
        automatic_voters: Some(settings.automatic_voters),
        automatic_out: Some(settings.automatic_out),
        pending_limit: Some(settings.pending_limit),
        flush_interval_ms: Some(settings.flush_interval_ms),
        recovery_paused: Some(settings.recovery_paused),
        recovery_bytes_per_second: Some(settings.recovery_bytes_per_second),
        scrub_interval_ms: Some(settings.scrub_interval_ms),
        scrub_bytes_per_second: Some(settings.scrub_bytes_per_second),
        unavailable_error_after_ms: Some(match settings.when_unavailable {
            WhenUnavailable::Wait => 0,
            WhenUnavailable::ErrorAfter { ms } => ms,
        }),
    }
}

/// A time in milliseconds.
pub(super) fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A small number, or the error that it is none.
pub(super) fn small(what: &str, value: u32) -> Result<u8, Status> {
    u8::try_from(value).map_err(|_| Status::invalid_argument(format!("{what} of {value} is too large")))
}

/// A small number, or none for 0.
pub(super) fn optional(what: &str, value: u32) -> Result<Option<u8>, Status> {
    if value == 0 { Ok(None) } else { small(what, value).map(Some) }
}

/// Settings with what a change says put over what is there.
pub(super) fn changed(now: &Settings, change: &v1::Settings) -> Result<Settings, Status> {
    let byte = |what: &str, value: Option<u32>, now: u8| value.map_or(Ok(now), |value| small(what, value));
    Ok(Settings {
        copies: byte("copies", change.copies, now.copies)?,
        min_copies: byte("min_copies", change.min_copies, now.min_copies)?,
        max_voters: byte("max_voters", change.max_voters, now.max_voters)?,
        automatic_voters: change.automatic_voters.unwrap_or(now.automatic_voters),
        automatic_out: change.automatic_out.unwrap_or(now.automatic_out),
        out_delay_ms: change.out_delay_ms.unwrap_or(now.out_delay_ms),
        lease_ms: change.lease_ms.unwrap_or(now.lease_ms),
        pending_limit: change.pending_limit.unwrap_or(now.pending_limit),
        write_buffer_bytes: change.write_buffer_bytes.unwrap_or(now.write_buffer_bytes),
        flush_interval_ms: change.flush_interval_ms.unwrap_or(now.flush_interval_ms),
        recovery_paused: change.recovery_paused.unwrap_or(now.recovery_paused),
        recovery_bytes_per_second: change.recovery_bytes_per_second.unwrap_or(now.recovery_bytes_per_second),
        scrub_interval_ms: change.scrub_interval_ms.unwrap_or(now.scrub_interval_ms),
        scrub_bytes_per_second: change.scrub_bytes_per_second.unwrap_or(now.scrub_bytes_per_second),
        when_unavailable: match change.unavailable_error_after_ms {
            None => now.when_unavailable,
            Some(0) => WhenUnavailable::Wait,
            Some(ms) => WhenUnavailable::ErrorAfter { ms },
        },
    })
}

/// How far scrubbing is.
pub(super) fn scrub(node: NodeId, data: &DataStatus) -> v1::ScrubReply {
    let scrub = &data.scrub;
    v1::ScrubReply {
        node: node.to_string(),
        running: scrub.running,
        paused: scrub.paused,
        objects: scrub.objects,
        objects_total: scrub.objects_total,
        objects_again: scrub.objects_again,
        passes: scrub.passes,
        last_pass_unix_ms: millis(scrub.last_pass.unwrap_or_default()),
        bytes_read: scrub.bytes_ever,
        damaged: scrub.damaged,
        mismatched: scrub.mismatches,
        behind: scrub.behind,
        repaired: scrub.repaired,
        unrepairable: scrub.unrepairable,
        unresolved: scrub.unresolved,
        skipped: scrub.skipped,
        damaged_now: scrub.damaged_now,
        lost: data.lost.values().sum(),
        lost_blocks: scrub.lost_blocks,
    }
}

/// A node's id from its text.
pub(super) fn node_id(text: &str) -> Result<NodeId, Status> {
    let digits = text.len() <= 16 && !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let id = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    id.map(NodeId).ok_or_else(|| Status::invalid_argument(format!("{text:?} is not the id of a node")))
}
