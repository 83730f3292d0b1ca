//! Rot: contents on the disks of one node change by themselves, while everything else goes wrong too. In the end a
//! scrub of all nodes must leave every copy readable and equal.

use crate::disks::SimDisk;
use crate::world::{Event, World};
use sheep_datapath::{ScrubOrder, ScrubStatus, Shard};
use sheep_store::{FileId, StoreError};
use std::collections::BTreeSet;

/// Blocks that rot at once.
const BLOCKS: usize = 3;
const MS: u64 = 1_000_000;

/// What a block of a store's own is, as far as its bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Superblock,
    Log,
    Checkpoint,
    /// A page, or data that is not all of one write.
    Other,
}

impl World {
    /// Some contents rot, always on the same node: redundancy cannot bear more.
    pub(crate) fn rot(&mut self) {
        if !self.options.rot.any() || self.options.faults.is_empty() {
            return;
        }
        // Scrubs run all the time, whatever else goes on.
        self.begin_scrub();
        if !self.is_whole() {
            return;
        }
        let number = (self.options.seed % self.nodes.len() as u64) as usize;
        if self.options.rot.data || self.options.rot.unflushed {
            self.rot_data(number);
        }
        if self.options.rot.records && self.rng.chance(500_000) {
            self.rot_records(number);
        }
    }

    fn rot_data(&mut self, number: usize) {
        // What only this disk has is not flushed: two losses at once are not promised to be borne.
        let others = self.nodes.iter().filter(|node| node.index != number);
        let elsewhere: BTreeSet<u64> =
            others.flat_map(|node| &node.disks).flat_map(contents).map(|(_, tag)| tag).collect();
        let disks = self.nodes[number].disks.iter().enumerate();
        let found =
            disks.flat_map(|(disk, found)| contents(found).into_iter().map(move |block| (disk, block)));
        let any = self.options.rot.unflushed;
        let blocks: Vec<(usize, u64)> = found
            .filter(|(_, (_, tag))| any || elsewhere.contains(tag))
            .map(|(disk, (block, _))| (disk, block))
            .collect();
        for _ in 0..BLOCKS {
            let Some((disk, block)) = self.rng.pick(&blocks).copied() else { return };
            let bit = self.rng.index(8 * 4096);
            self.nodes[number].disks[disk].disk.rot(FileId::BLOCKS, block, bit);
            self.counts.rotted += 1;
        }
        self.trace.say(self.now, &format!("{BLOCKS} blocks rot at node {number}"));
    }

    /// A node is killed, and what its stores have written about their data rots before it starts again. All others have
    /// everything at this moment, so even a store that cannot be used any more loses nothing.
    fn rot_records(&mut self, number: usize) {
        let there = |disk: &SimDisk| !disk.gone && !disk.pulled && disk.slot.is_some();
        let disks = &self.nodes[number].disks;
        let there: Vec<usize> = (0..disks.len()).filter(|disk| there(&disks[*disk])).collect();
        let Some(disk) = self.rng.pick(&there).copied() else { return };
        self.crash(number);
        let kinds = [Kind::Superblock, Kind::Log, Kind::Checkpoint, Kind::Other, Kind::Other];
        let Some(kind) = self.rng.pick(&kinds).copied() else { return };
        let found = &mut self.nodes[number].disks[disk];
        found.look();
        found.rotten = true;
        let blocks = blocks_of(found, kind);
        for _ in 0..BLOCKS {
            let Some(block) = self.rng.pick(&blocks).copied() else { break };
            // Where something is written in any of them, and anywhere.
            let bits = if self.rng.chance(500_000) { 8 * 64 } else { 8 * 4096 };
            let bit = self.rng.index(bits);
            self.nodes[number].disks[disk].disk.rot(FileId::BLOCKS, block, bit);
            self.counts.records_rotted += 1;
        }
        self.trace.say(self.now, &format!("{kind:?} blocks of disk {disk} of node {number} rot"));
        let after = self.rng.range(50, 3_000) * MS;
        self.schedule(after, Event::Start(number));
    }

    /// Whether it is no wonder that this disk's store cannot be used: then somebody replaces the disk by an empty one.
    pub(crate) fn is_rotten(&mut self, node: usize, slot: u8, error: &StoreError) -> bool {
        let corrupt = matches!(
            error,
            StoreError::SuperblockCorrupt | StoreError::LogCorrupt | StoreError::CheckpointCorrupt
        );
        let found = self.nodes[node].disks.iter().position(|disk| disk.slot == Some(slot) && disk.rotten);
        let Some(disk) = found.filter(|_| corrupt) else { return false };
        self.counts.stores_refused += 1;
        let after = self.rng.range(100, 4_000) * MS;
        self.schedule(after, Event::DiskReplaced { node, disk });
        true
    }

    /// The only store of a node cannot be used: the process has ended.
    pub(crate) fn store_failed(&mut self, node: usize) {
        let replica = self.nodes[node].replica();
        let error = replica.and_then(|replica| replica.store_failure()).cloned();
        let slot = self.nodes[node].disks.iter().filter(|disk| disk.rotten).find_map(|disk| disk.slot);
        let (Some(error), Some(slot)) = (error, slot) else {
            return self.violate(format!("node {node}: the store failed without a fault"));
        };
        self.trace.say(self.now, &format!("the store of node {node} is of no use: {error}"));
        if !self.is_rotten(node, slot, &error) {
            return self.violate(format!("node {node}: rot made the store fail with {error:?}"));
        }
        self.crash(node);
    }

    /// Somebody gives a damaged disk up, and puts an empty one in its place.
    pub(crate) fn disk_replaced(&mut self, node: usize, disk: usize) {
        if self.nodes[node].disks[disk].gone {
            return;
        }
        if self.nodes[node].paused_until > self.now {
            let wait = self.nodes[node].paused_until - self.now;
            return self.schedule(wait, Event::DiskReplaced { node, disk });
        }
        self.trace.say(self.now, &format!("disk {disk} of node {node} is replaced"));
        let old = self.nodes[node].disks[disk].id;
        self.nodes[node].disks[disk].gone = true;
        let (id, new) = (self.rng.any(), self.nodes[node].disks.len());
        self.nodes[node].disks.push(SimDisk::new(id));
        self.plug(node, new);
        self.schedule(MS, Event::Start(node));
        self.schedule(1000 * MS, Event::DiskGivenUp { node, id: old });
    }

    /// Orders a pass at every node.
    pub(crate) fn begin_scrub(&mut self) {
        for number in 0..self.nodes.len() {
            let at = self.nodes[number].clock(self.now);
            self.with_shard(number, |shard| shard.order_scrub(at, ScrubOrder::Start));
        }
    }

    /// What all nodes' scrubs say.
    pub(crate) fn scrubs(&self) -> Vec<ScrubStatus> {
        let shards = self.nodes.iter().filter_map(|node| node.running.as_ref()?.shard.as_ref());
        shards.filter_map(Shard::replica).map(|replica| replica.scrub_status()).collect()
    }
}

/// The tag that a whole block shows, if it is one.
fn tag_of(bytes: &[u8]) -> Option<u64> {
    let tag = u64::from_le_bytes(*bytes.first_chunk()?);
    bytes.chunks(8).all(|chunk| chunk == tag.to_le_bytes()).then_some(tag)
}

/// Durable blocks with contents, and the numbers that clients have filled them with.
fn contents(disk: &SimDisk) -> Vec<(u64, u64)> {
    let disk = &disk.disk;
    let blocks = disk.durable_blocks(FileId::BLOCKS).into_iter();
    let tag = |block| tag_of(&disk.durable(FileId::BLOCKS, block)?).filter(|tag| *tag != 0);
    blocks.filter_map(|block| Some((block, tag(block)?))).collect()
}

/// Durable blocks of a kind.
fn blocks_of(disk: &SimDisk, kind: Kind) -> Vec<u64> {
    let disk = &disk.disk;
    let is = |block: &u64| {
        let Some(bytes) = disk.durable(FileId::BLOCKS, *block) else { return false };
        let found = match bytes.get(..4) {
            _ if *block == 0 || *block == 8 => Kind::Superblock,
            Some(b"ShBt") => Kind::Log,
            Some(b"ShCk") => Kind::Checkpoint,
            _ => Kind::Other,
        };
        found == kind && tag_of(&bytes).is_none()
    };
    disk.durable_blocks(FileId::BLOCKS).into_iter().filter(is).collect()
}
