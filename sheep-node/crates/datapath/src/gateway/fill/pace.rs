//! How fast a volume is flattened, and how far it is.

use super::super::shared::Core;
use super::super::volume::Volume;
use super::Stage;
use sheep_types::{NodeId, ObjectId, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// Objects filled at once while no client does anything; else one.
const JOBS: usize = 2;
/// A client that has done something in this time is there.
const LATELY: Duration = Duration::from_millis(500);
/// Longest pause for the sake of clients.
const LONGEST_REST: Duration = Duration::from_secs(1);
/// Bytes written and not durable, at most; and a part of the volume's buffer.
const UNFLUSHED: u64 = 16 << 20;
/// Wait before anything is written again where a member had no room.
pub(super) const NO_ROOM_PAUSE: Duration = Duration::from_secs(10);
/// Wait before something is tried again that passes by itself.
pub(super) const NOT_NOW: Duration = Duration::from_millis(100);
/// Wait for a cycle of the flusher before another one is asked for.
pub(super) const CYCLE_PAUSE: Duration = Duration::from_millis(50);
/// Percent of a node's space that are left for clients.
const SPARED: u64 = 5;

/// A node says so often how full it is, if that has changed.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// Others fill too: what this gateway has written since a node last said how full it is counts so many times.
const OTHERS: u64 = 4;

/// What fills of all volumes have written to each node since it last said how full it is.
#[derive(Debug, Default)]
pub(in super::super) struct Filled(BTreeMap<NodeId, Since>);

#[derive(Debug)]
struct Since {
    used: u64,
    at: Time,
    bytes: u64,
}

impl Filled {
    /// So much is written to a node, which has last said that it has `used` bytes.
    pub(super) fn add(&mut self, now: Time, node: NodeId, used: u64, bytes: u64) {
        let since = self.0.entry(node).or_insert(Since { used, at: now, bytes: 0 });
        if since.used != used || now.since(since.at) >= SAID_EVERY {
            *since = Since { used, at: now, bytes: 0 };
        }
        since.bytes += bytes;
    }

    /// Bytes that a node may have by now.
    fn assumed(&self, now: Time, node: NodeId, used: u64) -> u64 {
        let lately = |since: &&Since| since.used == used && now.since(since.at) < SAID_EVERY;
        let since = self.0.get(&node).filter(lately);
        used.saturating_add(since.map_or(0, |since| since.bytes.saturating_mul(OTHERS)))
    }
}

/// What the flattening of a volume does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillState {
    /// It goes on.
    Running,
    /// A node has too little space.
    NoRoom,
    /// Only what cannot be read is left; it is tried again now and then.
    Unreadable,
}

/// How far the flattening of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillProgress {
    /// Objects of the volume that were looked at, and filled.
    pub done: u64,
    /// All.
    pub total: u64,
    /// Objects that cannot be filled now: nobody can read them.
    pub left: u64,
    /// Bytes that were written.
    pub bytes: u64,
    /// What it does.
    pub state: FillState,
}

impl Volume {
    /// Whether clients use the volume.
    fn has_clients(&self, core: &Core) -> bool {
        !self.ios.is_empty() || self.fill.client_at.is_some_and(|at| core.now.since(at) < LATELY)
    }

    pub(super) fn jobs_at_once(&self, core: &Core) -> usize {
        if self.has_clients(core) { 1 } else { JOBS }
    }

    /// After a range was read and written, since then: clients come first.
    pub(super) fn rest(&mut self, core: &Core, since: Time) {
        if self.has_clients(core) {
            let parts = 1 + self.ios.len().min(8) as u32;
            let rest = core.now.since(since).saturating_mul(parts).min(LONGEST_REST);
            self.fill.pause(core.now + rest);
        }
    }

    /// Whether something more may be written to an object; what is in the way otherwise goes, or time passes.
    pub(super) fn has_room_to_fill(&mut self, core: &Core, index: u32) -> bool {
        let view = core.view();
        let settings = view.state.settings();
        let unflushed: u64 = self.fill.unflushed.iter().map(|(_, weight)| weight).sum();
        let much = unflushed >= UNFLUSHED.min(settings.write_buffer_bytes / 4);
        let many = self.pending.len() * 2 >= settings.pending_limit as usize;
        // The other half of what all volumes together may keep is their clients'.
        let crowded = core.retained >= core.config.buffer_bytes / 2;
        if much || many || crowded {
            self.flusher.wanted |= self.flusher.dirty_since.is_some() && !self.has_only_failed_writes();
            if crowded {
                // What ends that may be another volume's flush.
                self.fill.pause(core.now + NOT_NOW);
            }
            return false;
        }
        let object = ObjectId::data(self.vid, index);
        let refused = self.objects.get(&object).is_some_and(|writes| writes.refused().is_some());
        let full = |node| {
            let record = view.state.node(node).filter(|node| node.capacity > 0);
            record.is_some_and(|record| {
                let spared = record.capacity / 100 * SPARED;
                core.filled.assumed(core.now, record.node, record.used) >= record.capacity - spared
            })
        };
        self.fill.no_room =
            refused || self.placed(core, object).members.iter().any(|member| full(member.node));
        if self.fill.no_room {
            self.fill.pause(core.now + NO_ROOM_PAUSE);
        } else if !self.may_write(core, object) {
            self.fill.pause(core.now + NOT_NOW);
        } else {
            return true;
        }
        false
    }

    /// So many bytes of an object are written.
    pub(super) fn note_filled(&mut self, core: &mut Core, object: ObjectId, bytes: u64) {
        let view = core.view();
        for member in &self.placed(core, object).members {
            if let Some(record) = view.state.node(member.node) {
                core.filled.add(core.now, member.node, record.used, bytes);
            }
        }
    }

    /// How far it is, if it is wanted.
    pub(in super::super) fn fill_progress(&self) -> Option<FillProgress> {
        let fill = &self.fill;
        let total = self.size.div_ceil(u64::from(self.geometry.object_size()));
        let filling = fill.jobs.len() as u64;
        let done = if fill.again { total } else { fill.next.min(total).saturating_sub(filling) };
        let waits = fill.stage == Stage::Looking && fill.next == 0 && fill.not_before.is_some();
        let state = match fill.no_room {
            true => FillState::NoRoom,
            false if waits && !fill.left.is_empty() => FillState::Unreadable,
            false => FillState::Running,
        };
        let left = fill.left.len() as u64;
        fill.wanted.then_some(FillProgress { done, total, left, bytes: fill.bytes, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_counts_until_the_node_has_said_so() {
        let (mut filled, at, node) = (Filled::default(), Time::from_nanos(5), NodeId(1));
        assert_eq!(filled.assumed(at, node, 100), 100);
        filled.add(at, node, 100, 10);
        filled.add(at, node, 100, 10);
        assert_eq!(filled.assumed(at, node, 100), 100 + OTHERS * 20);
        assert_eq!(filled.assumed(at, NodeId(2), 100), 100);
        // It has said how full it is, or would have.
        assert_eq!(filled.assumed(at, node, 115), 115);
        assert_eq!(filled.assumed(at + SAID_EVERY, node, 100), 100);
        filled.add(at + SAID_EVERY, node, 100, 10);
        assert_eq!(filled.assumed(at + SAID_EVERY, node, 100), 100 + OTHERS * 10);
    }
}
