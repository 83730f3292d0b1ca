//! Disks of machines: they fail, are taken away, come back, are added and emptied while their nodes run.

use crate::node::Node;
use crate::world::{Event, World};
use bytes::Bytes;
use sheep_datapath::Replica;
use sheep_state::{DiskRecord, DiskState};
use sheep_store::{
    DiskDone, DiskError, DiskOp, DiskOpId, DiskOpKind, DiskResult, FileId, StoreConfig, StoreError,
    StoreIdentity, VirtualDisk,
};
use sheep_types::{BLOCK_SIZE, Incarnation, ObjectId, Time};
use std::collections::BTreeSet;

/// Capacity of a disk, bytes.
pub const CAPACITY: u64 = 64 << 20;
/// Most disks of a machine.
pub const MOST: usize = 3;

const MS: u64 = 1_000_000;

/// One disk of a machine.
pub struct SimDisk {
    /// Its contents.
    pub disk: VirtualDisk,
    /// Random number of its store.
    pub id: u64,
    /// Whether a store was found on it once.
    formatted: bool,
    /// Where the running node's store has it.
    pub slot: Option<u8>,
    /// It answers every write with an error.
    pub failing: bool,
    /// It is not connected.
    pub pulled: bool,
    /// Given up for ever.
    pub gone: bool,
    /// What its store has written about itself may have rotted.
    pub rotten: bool,
    /// Reads under way: a disk that is pulled leaves them without an answer.
    reads: BTreeSet<DiskOpId>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(id: u64) -> Self {
        let disk = VirtualDisk::new(CAPACITY * 2);
        Self {
            disk,
            id,
            formatted: false,
            slot: None,
            failing: false,
            pulled: false,
            gone: false,
            rotten: false,
            reads: BTreeSet::new(),
        }
    }

    /// Disks differ.
    pub fn weight(&self) -> u32 {
        1 + (self.id % 3) as u32
    }

    /// At a start: whether a store is still to be made. One whose superblock was written and never synced may be there.
    pub fn is_fresh(&mut self) -> bool {
        self.look();
        !self.formatted
    }

    /// Takes note of a store that can be seen to be there, before anything happens to it.
    pub fn look(&mut self) {
        let mut copy = |offset| {
            let id = DiskOpId(u64::MAX);
            let kind = DiskOpKind::Read { file: FileId::BLOCKS, offset, len: BLOCK_SIZE };
            match self.disk.run(DiskOp { id, kind }) {
                Ok(DiskDone::Read(bytes)) => bytes,
                _ => Bytes::new(),
            }
        };
        let found = StoreIdentity::of(&copy(0), &copy(StoreIdentity::SECOND));
        self.formatted |= found.is_ok();
    }

    fn is_well(&self) -> bool {
        !self.failing && !self.pulled && !self.gone
    }

    /// Starts an operation.
    pub fn begin(&mut self, op: DiskOp) {
        if matches!(op.kind, DiskOpKind::Read { .. }) {
            self.reads.insert(op.id);
        }
        self.disk.begin(op);
    }

    /// The result of an operation that has taken its time.
    fn finish(&mut self, id: DiskOpId) -> Option<DiskResult> {
        let reads = self.reads.remove(&id);
        match self.pulled {
            true if reads => None,
            true => Some(Err(DiskError::Io)),
            false => self.disk.finish(id),
        }
    }

    fn set_failing(&mut self, failing: bool) {
        self.failing = failing;
        self.disk.set_fail_writes(failing);
        self.disk.set_fail_syncs(failing);
    }
}

impl Node {
    /// What the node announces: the disks that are there.
    pub fn disk_records(&self) -> Vec<DiskRecord> {
        let there = self.disks.iter().filter(|disk| !disk.pulled && !disk.gone);
        there
            .map(|disk| DiskRecord {
                id: disk.id,
                incarnation: Incarnation(1),
                state: DiskState::Up,
                weight: disk.weight(),
            })
            .collect()
    }

    /// The disk that an operation is for.
    pub fn disk_at(&mut self, slot: u8) -> Option<&mut SimDisk> {
        self.disks.iter_mut().find(|disk| disk.slot == Some(slot))
    }

    /// The result of an operation that has taken its time.
    pub fn finish_disk(&mut self, id: DiskOpId) -> Option<DiskResult> {
        self.disk_at(id.slot())?.finish(id)
    }

    pub(crate) fn replica(&self) -> Option<&Replica> {
        self.running.as_ref()?.shard.as_ref()?.replica()
    }
}

impl World {
    /// A disk of a node stopped working, and its store knows.
    pub(crate) fn disk_failed(&mut self, node: usize, slot: u8, error: &StoreError) {
        self.trace.say(self.now, &format!("node {node} uses the disk in slot {slot} no more: {error}"));
        self.nodes[node].losses += 1;
        let known = self.nodes[node].disk_at(slot).is_none_or(|disk| !disk.is_well());
        if !self.is_rotten(node, slot, error) && !known && *error != StoreError::Closed {
            self.violate(format!("node {node}: the store in slot {slot} failed without a fault: {error}"));
        }
        if let Some(disk) = self.nodes[node].disk_at(slot) {
            disk.slot = None;
        }
    }

    /// A disk that may fail: the node has another one that works, and no trouble with any.
    fn spare_disk(&mut self, node: usize) -> Option<usize> {
        // Contents that rot on one node are as much as redundancy can bear.
        if self.options.rot.any() {
            return None;
        }
        let disks = &self.nodes[node].disks;
        let there: Vec<usize> = (0..disks.len()).filter(|index| !disks[*index].gone).collect();
        if there.len() < 2 || there.iter().any(|index| !disks[*index].is_well()) {
            return None;
        }
        // A disk that is on its way in or out of the node's store is left alone.
        let working = self.nodes[node].replica().map(|r| r.store().disks().filter(|d| d.weight > 0).count());
        if working.is_some_and(|working| working != there.len()) {
            return None;
        }
        self.rng.pick(&there).copied()
    }

    /// A disk begins to fail, and works again some time later.
    pub(crate) fn disk_fails(&mut self, node: usize) {
        let Some(disk) = self.spare_disk(node) else { return };
        self.trace.say(self.now, &format!("disk {disk} of node {node} fails"));
        self.counts.disks_failed += 1;
        self.nodes[node].disks[disk].set_failing(true);
        let after = self.rng.range(300, 12_000) * MS;
        self.schedule(after, Event::DiskBack { node, disk });
    }

    /// A disk is pulled, and put back some time later; now and then it is given up.
    pub(crate) fn disk_taken(&mut self, node: usize) {
        let whole = self.is_whole() && self.options.copies >= 2;
        let Some(disk) = self.spare_disk(node) else { return };
        self.trace.say(self.now, &format!("disk {disk} of node {node} is pulled"));
        self.counts.disks_taken += 1;
        let seed = self.rng.any();
        let pulled = &mut self.nodes[node].disks[disk];
        pulled.pulled = true;
        pulled.disk.crash_seeded(seed);
        let id = pulled.id;
        // Only what redundancy can bear.
        if whole && self.counts.disks_given_up == 0 && self.counts.lost_disks == 0 && self.rng.chance(200_000)
        {
            let running = self.nodes[node].replica().is_some();
            if running {
                self.trace.say(self.now, "and given up");
                self.counts.disks_given_up += 1;
                self.nodes[node].disks[disk].gone = true;
                return self.give_up(node, id);
            }
        }
        let after = self.rng.range(100, 12_000) * MS;
        self.schedule(after, Event::DiskBack { node, disk });
    }

    /// A machine gets one more disk, or one of many is to be emptied and taken away.
    pub(crate) fn disk_added(&mut self, node: usize) {
        if self.nodes[node].replica().is_none() || self.nodes[node].paused_until > self.now {
            return;
        }
        let there = self.nodes[node].disks.iter().filter(|disk| !disk.gone).count();
        if there > 1 && (there >= MOST || self.rng.chance(400_000)) {
            let Some(disk) = self.spare_disk(node) else { return };
            self.trace.say(self.now, &format!("disk {disk} of node {node} is to be emptied"));
            let id = self.nodes[node].disks[disk].id;
            self.with_disks(node, |replica, at| _ = replica.set_disk_weight(at, id, 0));
            return self.schedule(200 * MS, Event::DiskEmptied { node, disk });
        }
        let disk = self.nodes[node].disks.len();
        self.trace.say(self.now, &format!("node {node} gets disk {disk}"));
        self.counts.disks_added += 1;
        let id = self.rng.any();
        self.nodes[node].disks.push(SimDisk::new(id));
        self.plug(node, disk);
    }

    /// A disk that failed or was pulled works again.
    pub(crate) fn disk_back(&mut self, node: usize, disk: usize) {
        if self.nodes[node].paused_until > self.now {
            let wait = self.nodes[node].paused_until - self.now;
            return self.schedule(wait, Event::DiskBack { node, disk });
        }
        let Some(back) = self.nodes[node].disks.get(disk) else { return };
        if back.gone || back.is_well() {
            return;
        }
        self.trace.say(self.now, &format!("disk {disk} of node {node} is back"));
        let (pulled, slot) = (back.pulled, back.slot);
        if let (true, Some(slot)) = (pulled, slot) {
            // The node had not noticed; whoever takes a disk away tells it.
            self.with_disks(node, |replica, at| replica.close_disk(at, slot));
        }
        let seed = self.rng.any();
        let back = &mut self.nodes[node].disks[disk];
        back.pulled = false;
        back.set_failing(false);
        if back.slot.is_none() {
            back.disk.crash_seeded(seed);
            self.plug(node, disk);
        }
    }

    /// Gives a disk to the running node; one that starts later finds it.
    pub(crate) fn plug(&mut self, node: usize, disk: usize) {
        let machine = &self.nodes[node];
        let cluster = machine.running.as_ref().and_then(|r| r.view.as_ref()).map(|view| view.cluster);
        let (Some(cluster), Some(config), true) =
            (cluster, machine.store_config.clone(), machine.replica().is_some())
        else {
            return;
        };
        let (id, weight) = (machine.disks[disk].id, machine.disks[disk].weight());
        let identity = StoreIdentity { cluster, node: machine.id, store: id };
        let fresh = self.nodes[node].disks[disk].is_fresh();
        let at = self.nodes[node].clock(self.now);
        let running = self.nodes[node].running.as_mut();
        let replica = running.and_then(|r| r.shard.as_mut()).and_then(|shard| shard.replica_mut());
        let slot = replica.and_then(|replica| replica.add_disk(at, config, identity, fresh, weight));
        self.nodes[node].disks[disk].slot = slot;
        self.with_shard(node, |_| {});
    }

    /// A disk that was to be emptied: once it is, it is taken away.
    pub(crate) fn disk_emptied(&mut self, node: usize, disk: usize) {
        let id = self.nodes[node].disks[disk].id;
        let Some(replica) = self.nodes[node].replica() else { return };
        let Some(found) = replica.store().disks().find(|found| found.id == id) else { return };
        if found.weight > 0 {
            // The node was started anew, and knows nothing of it.
            return;
        }
        let known = self.nodes[node].running.as_ref().and_then(|r| r.view.as_ref());
        let known = known
            .and_then(|view| view.state.members().get(self.nodes[node].id))
            .is_some_and(|own| own.disks.iter().any(|disk| disk.id == id && disk.weight == 0));
        if !known || replica.objects_on(found.slot) > 0 || self.nodes[node].paused_until > self.now {
            return self.schedule(200 * MS, Event::DiskEmptied { node, disk });
        }
        self.trace.say(self.now, &format!("disk {disk} of node {node} is empty and goes"));
        self.counts.disks_emptied += 1;
        self.nodes[node].disks[disk].gone = true;
        self.give_up(node, id);
    }

    /// Gives a disk up, again and again until the cluster has heard of it.
    pub(crate) fn give_up(&mut self, node: usize, id: u64) {
        if self.nodes[node].paused_until <= self.now {
            self.with_disks(node, |replica, at| _ = replica.give_up_disk(at, id));
        }
        let machine = &self.nodes[node];
        let view = machine.running.as_ref().and_then(|running| running.view.as_ref());
        let record = view.and_then(|view| view.state.node(machine.id));
        if record.is_none_or(|record| record.disks.iter().any(|disk| disk.id == id)) {
            self.schedule(1000 * MS, Event::DiskGivenUp { node, id });
        }
    }

    fn with_disks(&mut self, node: usize, call: impl FnOnce(&mut Replica, Time)) {
        let at = self.nodes[node].clock(self.now);
        self.with_shard(node, |shard| {
            if let Some(replica) = shard.replica_mut() {
                call(replica, at);
            }
        });
    }

    /// The run that holds a write, for the oracle: a node that loses a disk has lost as much as if it had restarted.
    /// Nobody, if the node has lost one that this epoch counts on.
    pub(crate) fn holder(&self, machine: &Node, view: &sheep_datapath::View) -> u32 {
        let working = |disk: &DiskRecord| {
            machine.replica().is_some_and(|r| r.store().working(disk.id) == Some(disk.incarnation))
        };
        let whole = view.state.members().get(machine.id).is_some_and(|own| own.working_disks().all(working));
        if whole { machine.run_number() } else { u32::MAX }
    }

    /// What of its disks a node still misses.
    pub(crate) fn why_not_all_disks(&self, node: &Node) -> Option<String> {
        let view = node.running.as_ref()?.view.as_ref()?;
        let failed = view.state.node(node.id).is_some_and(|record| record.has_failed_disk());
        let index = node.index;
        failed
            .then(|| format!("node {index} misses a disk: {:?}", view.state.node(node.id).map(|n| &n.disks)))
    }
}

/// Objects that a node has on more than one disk, or in no order.
pub fn doubled(node: &Node) -> Option<ObjectId> {
    let replica = node.replica()?;
    let ids: Vec<ObjectId> = replica.store().objects(ObjectId(0)).map(|header| header.id).collect();
    ids.windows(2).find(|pair| pair[0] >= pair[1] && pair[0].vid() != sheep_store::NOTES).map(|pair| pair[0])
}

/// Keeps what the node's stores are made with.
pub fn remember(node: &mut Node, config: &StoreConfig) {
    node.store_config = Some(config.clone());
}
