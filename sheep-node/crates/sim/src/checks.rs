//! What must hold between nodes, looked at whenever a node publishes its state.

use sheep_types::{LogIndex, Place};
use std::collections::BTreeMap;

/// Counters of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Client operations answered.
    pub ios: u64,
    /// Reads held against the oracle.
    pub reads: u64,
    /// Faults injected.
    pub faults: u64,
    /// Processes killed.
    pub crashes: u64,
    /// Power cuts of everything.
    pub power_cuts: u64,
    /// Volumes taken over after their gateway was lost.
    pub take_overs: u64,
    /// Epochs.
    pub epochs: u64,
    /// Objects fetched or validated by recovery.
    pub recovered: u64,
    /// Terms that became primary, over all nodes.
    pub terms: u64,
    /// Nodes that came back with empty disks.
    pub lost_disks: u64,
    /// Blocks that rotted.
    pub rotted: u64,
    /// Blocks of records of stores that rotted.
    pub records_rotted: u64,
    /// Stores that refused to start because of that.
    pub stores_refused: u64,
    /// Messages that a flipped bit made unreadable.
    pub frames_flipped: u64,
    /// Messages with a flipped bit in their payload.
    pub payloads_flipped: u64,
    /// Damaged copies that scrubs or reads found, and those made good, since each node's last start.
    pub damaged: u64,
    /// Those made good.
    pub repaired: u64,
    /// Blocks that were lost in the end, on all nodes together.
    pub lost_blocks: u64,
    /// Disks that began to fail under their nodes.
    pub disks_failed: u64,
    /// Disks that were pulled.
    pub disks_taken: u64,
    /// Of these, given up for good.
    pub disks_given_up: u64,
    /// Disks that were added to running nodes.
    pub disks_added: u64,
    /// Disks that were emptied and taken away.
    pub disks_emptied: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Clones made.
    pub clones: u64,
    /// Volumes that got the contents of a snapshot again.
    pub rollbacks: u64,
    /// Volumes and snapshots deleted.
    pub deletions: u64,
    /// Snapshots of several volumes that were ordered.
    pub groups: u64,
    /// Objects that can be reached in the end.
    pub reached: u64,
    /// Copies of objects of what is there that no map names.
    pub orphans: u64,
    /// Volumes that grew.
    pub grown: u64,
    /// Volumes that were made smaller.
    pub shrunk: u64,
    /// Clones that were flat in the end.
    pub flattened: u64,
    /// Comparisons with a snapshot, or with nothing, that were answered.
    pub diffs: u64,
    /// Sectors of which they said that they are the same.
    pub same: u64,
    /// Volumes and snapshots that were read through every node in the end.
    pub inspected: u64,
    /// Objects that moved between disks of a node.
    pub moved: u64,
}

impl Counts {
    /// Adds another run's counters.
    pub fn add(&mut self, other: &Self) {
        self.ios += other.ios;
        self.reads += other.reads;
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.power_cuts += other.power_cuts;
        self.take_overs += other.take_overs;
        self.epochs += other.epochs;
        self.recovered += other.recovered;
        self.terms += other.terms;
        self.lost_disks += other.lost_disks;
        self.rotted += other.rotted;
        self.records_rotted += other.records_rotted;
        self.stores_refused += other.stores_refused;
        self.frames_flipped += other.frames_flipped;
        self.payloads_flipped += other.payloads_flipped;
        self.damaged += other.damaged;
        self.repaired += other.repaired;
        self.lost_blocks += other.lost_blocks;
        self.disks_failed += other.disks_failed;
        self.disks_taken += other.disks_taken;
        self.disks_given_up += other.disks_given_up;
        self.disks_added += other.disks_added;
        self.disks_emptied += other.disks_emptied;
        self.moved += other.moved;
        self.snapshots += other.snapshots;
        self.clones += other.clones;
        self.rollbacks += other.rollbacks;
        self.deletions += other.deletions;
        self.groups += other.groups;
        self.reached += other.reached;
        self.orphans += other.orphans;
        self.grown += other.grown;
        self.shrunk += other.shrunk;
        self.flattened += other.flattened;
        self.diffs += other.diffs;
        self.same += other.same;
        self.inspected += other.inspected;
    }
}

/// Agreement between nodes, over the whole run.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    committed: BTreeMap<LogIndex, Place>,
    states: BTreeMap<LogIndex, u64>,
}

impl Agreement {
    /// A node says that this place is committed.
    ///
    /// # Errors
    /// Another entry was committed there before.
    pub fn committed(&mut self, node: usize, place: Place) -> Result<(), String> {
        if place.index == LogIndex(0) {
            return Ok(());
        }
        let known = *self.committed.entry(place.index).or_insert(place);
        if known == place {
            Ok(())
        } else {
            Err(format!("node {node} committed {place:?}, others {known:?}"))
        }
    }

    /// A node applied everything up to an index and has this state.
    ///
    /// # Errors
    /// Another node has another state at that index.
    pub fn applied(&mut self, node: usize, index: LogIndex, hash: u64) -> Result<(), String> {
        let known = *self.states.entry(index).or_insert(hash);
        if known == hash {
            Ok(())
        } else {
            Err(format!("node {node} has state {hash:x} at entry {index}, others {known:x}"))
        }
    }
}
