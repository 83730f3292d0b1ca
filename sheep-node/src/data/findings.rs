//! What the replica finds out about its copies, for people.

use super::DataThread;
use sheep_datapath::{Finding, Replica, Shard, View};
use sheep_types::{ObjectId, ObjectKind, VdiId};
use std::collections::BTreeMap;
use tracing::{error, info, warn};

/// Lost objects that are looked at each time.
const COUNTED: usize = 1 << 16;

/// Which part of which volume an object is.
pub(super) fn place(view: Option<&View>, object: ObjectId) -> String {
    let name = view.and_then(|view| view.vdi_of(object.vid())).map(|vdi| format!("VDI {}", vdi.name));
    let name = name.unwrap_or_else(|| format!("vid {}", object.vid().0));
    match object.kind() {
        Some(ObjectKind::Data) => {
            let size = view.map_or(0, |view| u64::from(view.state.geometry().object_size()));
            let first = u64::from(object.index()) * size;
            format!(
                "object {} of {name} (bytes {first} to {})",
                object.index(),
                (first + size).saturating_sub(1)
            )
        }
        _ => format!("map object {} of {name}", object.index()),
    }
}

fn log(view: Option<&View>, finding: &Finding) {
    let at = |object: &ObjectId| place(view, *object);
    match finding {
        Finding::Damaged(object) => {
            warn!("the copy of {} is damaged here: a block fails its checksum or can't be read", at(object));
        }
        Finding::Mismatch(object) => {
            error!("the copy of {} here is not what most copies of its version are", at(object));
        }
        Finding::Behind(object) => error!("the copy of {} here lacks writes that were answered", at(object)),
        Finding::Repaired(object) => info!("the copy of {} is made good from another node", at(object)),
        Finding::Unrepairable(object) => {
            error!("the copy of {} is damaged here, and no node has a better one now", at(object));
        }
        Finding::Unresolved(object, nodes) => {
            let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            error!(
                "the copies of {} differ on nodes {}, and nothing says which is right; they are left as they are",
                at(object),
                nodes.join(", ")
            );
        }
        Finding::BlocksLost(object, ranges) => {
            let size = view.map_or(0, |view| u64::from(view.state.geometry().object_size()));
            let base = match object.kind() {
                Some(ObjectKind::Data) => u64::from(object.index()) * size,
                _ => 0,
            };
            let end = |at: &u32, len: &u32| base + u64::from(*at) + u64::from(*len).saturating_sub(1);
            let ranges: Vec<String> = ranges
                .iter()
                .map(|(at, len)| format!("{} to {}", base + u64::from(*at), end(at, len)))
                .collect();
            error!(
                "no node has bytes {} of {}: reading them is an I/O error until they are written",
                ranges.join(", "),
                at(object)
            );
        }
        Finding::Lost(object) => error!("{} is lost: no copy of it can be trusted", at(object)),
    }
}

impl DataThread {
    /// Logs what was found since the last time.
    pub(super) fn log_findings(&mut self) {
        let Some(shard) = &mut self.shard else { return };
        for finding in shard.take_findings() {
            log(self.view.as_deref(), &finding);
        }
    }
}

/// How many objects of which volume are lost, as far as this node knows.
pub(super) fn lost(shard: &Shard, view: Option<&View>) -> BTreeMap<VdiId, u64> {
    let mut lost = BTreeMap::new();
    for object in shard.replica().into_iter().flat_map(Replica::lost_objects).take(COUNTED) {
        if let Some(vdi) = view.and_then(|view| view.vdi_of(object.vid())) {
            *lost.entry(vdi.id).or_default() += 1;
        }
    }
    lost
}
