//! Rot: contents on the disk of one node change by themselves, while everything else goes wrong too. In the end a
//! scrub of all nodes must leave every copy readable and equal.

use crate::disks::SimDisk;
use crate::world::World;
use sheep_datapath::{ScrubOrder, ScrubStatus, Shard};
use sheep_store::FileId;
use std::collections::BTreeSet;

/// Blocks that rot at once.
const BLOCKS: usize = 3;

impl World {
    /// Some contents rot, always on the same node: redundancy cannot bear more. What a store's own records are on the
    /// disk is left alone; the store's own tests damage that.
    pub(crate) fn rot(&mut self) {
        if !self.options.rot {
            return;
        }
        // Scrubs run all the time, whatever else goes on.
        self.begin_scrub();
        if !self.is_whole() {
            return;
        }
        let number = (self.options.seed % self.nodes.len() as u64) as usize;
        // What only this disk has is not flushed: two losses at once are not promised to be borne.
        let others = self.nodes.iter().filter(|node| node.index != number);
        let elsewhere: BTreeSet<u64> =
            others.flat_map(|node| &node.disks).flat_map(contents).map(|(_, tag)| tag).collect();
        let disks = self.nodes[number].disks.iter().enumerate();
        let found =
            disks.flat_map(|(disk, found)| contents(found).into_iter().map(move |block| (disk, block)));
        let blocks: Vec<(usize, u64)> = found
            .filter(|(_, (_, tag))| elsewhere.contains(tag))
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

/// Durable blocks with contents, and the numbers that clients have filled them with.
fn contents(disk: &SimDisk) -> Vec<(u64, u64)> {
    let disk = &disk.disk;
    let blocks = disk.durable_blocks(FileId::BLOCKS).into_iter();
    blocks
        .filter_map(|block| {
            let bytes = disk.durable(FileId::BLOCKS, block)?;
            let tag = u64::from_le_bytes(*bytes.first_chunk()?);
            let full = tag != 0 && bytes.chunks(8).all(|chunk| chunk == tag.to_le_bytes());
            full.then_some((block, tag))
        })
        .collect()
}
