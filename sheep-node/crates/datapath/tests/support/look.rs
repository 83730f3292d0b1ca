//! Looking at the simulated cluster, and cutting it up.

use super::{CLUSTER, HAND, Net, Node};
use core::fmt::Write;
use core::time::Duration;
use sheep_datapath::{Finding, Progress, Replica, ScrubOrder, ScrubStatus, Shard, View};
use sheep_types::{Epoch, NodeId, ObjectId};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Net {
    /// Runs until every running storage node has recovered in the present epoch, or panics.
    pub(crate) fn settle(&mut self) {
        for _ in 0..2000 {
            self.run_for(Duration::from_millis(10));
            let epoch = self.log.state.epoch();
            let done = self.nodes.values().filter(|node| node.stores).all(|node| {
                let up = self.log.state.is_up(node.me);
                !up || node.shard.as_ref().and_then(Shard::replica).is_none_or(|replica| {
                    let progress = replica.progress();
                    progress.epoch == epoch && progress.complete
                })
            });
            if done {
                return;
            }
        }
        panic!("recovery does not end: {:?}", self.progress());
    }

    pub(crate) fn progress(&self) -> Vec<(NodeId, Option<Progress>)> {
        let progress = |node: &Node| node.shard.as_ref().and_then(Shard::replica).map(Replica::progress);
        self.nodes.iter().map(|(id, node)| (*id, progress(node))).collect()
    }

    /// What every replica thinks of objects that some replica cannot bring up to date.
    pub(crate) fn explain(&self) -> String {
        let mut text = String::new();
        let replicas =
            || self.nodes.values().filter_map(|node| Some((node.me, node.shard.as_ref()?.replica()?)));
        let objects: BTreeSet<ObjectId> = replicas().flat_map(|(_, replica)| replica.unrecovered()).collect();
        for object in objects {
            writeln!(text, "{object}").unwrap();
            for epoch in (self.log.state.oldest_epoch().0..=self.log.state.epoch().0).rev().map(Epoch) {
                let kinds: Vec<String> = replicas()
                    .filter_map(|(me, replica)| {
                        let standing = replica.standing_at(object, epoch)?;
                        let view = self.view_of(me.node);
                        let set = view.in_set_at(epoch, object, me.node);
                        let up = view.up_at(epoch, me.node).map(|member| member.incarnation.0);
                        Some(format!("{:?} set {set} up {up:?}: {:?}", me.node, standing.kind))
                    })
                    .collect();
                writeln!(text, "  {epoch}: {kinds:?}").unwrap();
            }
            for (me, replica) in replicas() {
                writeln!(
                    text,
                    "  {me:?} {:?} {:?}",
                    replica.store().header(object),
                    replica.store().header(ObjectId(u64::MAX))
                )
                .unwrap();
            }
        }
        text
    }

    /// Damages the last durable block of a node's disk: the newest data, where little was written.
    pub(crate) fn rot_last(&mut self, node: u64) {
        let disk = &mut self.nodes.get_mut(&NodeId(node)).unwrap().disk;
        let last = *disk.durable_blocks(sheep_store::FileId::BLOCKS).last().unwrap();
        assert!(disk.rot(sheep_store::FileId::BLOCKS, last, 77));
    }

    /// Damages every durable block of objects on a node's disk, or the `n`th only.
    pub(crate) fn rot(&mut self, node: u64, n: Option<usize>) {
        let disk = &mut self.nodes.get_mut(&NodeId(node)).unwrap().disk;
        let blocks = disk.durable_blocks(sheep_store::FileId::BLOCKS);
        for (_, block) in blocks.into_iter().enumerate().filter(|(i, _)| n.is_none_or(|n| n == *i)) {
            assert!(disk.rot(sheep_store::FileId::BLOCKS, block, 1234));
        }
    }

    /// Runs a pass of scrubbing on a node and gives what it counted.
    pub(crate) fn scrub(&mut self, node: u64) -> ScrubStatus {
        let passes = self.replica(node).scrub_status().passes;
        let now = self.now;
        let shard = self.nodes.get_mut(&NodeId(node)).and_then(|node| node.shard.as_mut());
        shard.expect("runs").order_scrub(now, ScrubOrder::Start);
        self.drain(NodeId(node));
        for _ in 0..10_000 {
            self.run_for(Duration::from_millis(10));
            if self.replica(node).scrub_status().passes > passes {
                break;
            }
        }
        // What was found is being repaired.
        self.run_for(Duration::from_secs(3));
        self.replica(node).scrub_status()
    }

    pub(crate) fn findings(&mut self, node: u64) -> Vec<Finding> {
        let shard = self.nodes.get_mut(&NodeId(node)).and_then(|node| node.shard.as_mut());
        shard.expect("runs").take_findings()
    }

    pub(crate) fn replica(&self, node: u64) -> &Replica {
        self.nodes[&NodeId(node)].shard.as_ref().and_then(Shard::replica).expect("runs and stores")
    }

    /// The object's present set, as node numbers.
    pub(crate) fn set(&self, object: ObjectId) -> Vec<u64> {
        let view = View::advance(
            None,
            self.log.member(1),
            CLUSTER,
            self.log.state.applied(),
            Arc::clone(&self.log.snapshot),
        );
        view.set(object).into_iter().map(|node| node.0).collect()
    }

    /// Cuts a node off from everybody and from the log.
    pub(crate) fn isolate(&mut self, node: u64) {
        self.outside.insert(node);
        let others: Vec<u64> = self.nodes.keys().map(|other| other.0).chain([HAND]).collect();
        for other in others.into_iter().filter(|other| *other != node) {
            self.cut.insert((node, other));
            self.cut.insert((other, node));
        }
    }

    /// Ends what [`Net::isolate`] did.
    pub(crate) fn rejoin(&mut self, node: u64) {
        self.outside.remove(&node);
        self.cut.retain(|(from, to)| *from != node && *to != node);
    }

    /// A node's disk can't read the blocks that hold one of these tags, or can again.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn set_unreadable(&mut self, node: u64, tags: &[u64], unreadable: bool) {
        let file = sheep_store::FileId::BLOCKS;
        let disk = &mut self.nodes.get_mut(&NodeId(node)).unwrap().disk;
        let wanted: Vec<bytes::Bytes> = tags.iter().map(|tag| super::block(*tag).0).collect();
        for place in disk.durable_blocks(file) {
            if disk.durable(file, place).is_some_and(|found| wanted.contains(&found)) {
                disk.set_unreadable(file, place..place + 1, unreadable);
            }
        }
    }

    /// Damages the blocks on a node's disk that hold one of these tags; how many there were.
    pub(crate) fn rot_tags(&mut self, node: u64, tags: &[u64]) -> usize {
        let file = sheep_store::FileId::BLOCKS;
        let disk = &mut self.nodes.get_mut(&NodeId(node)).unwrap().disk;
        let wanted: Vec<bytes::Bytes> = tags.iter().map(|tag| super::block(*tag).0).collect();
        let holds = |place: &u64| disk.durable(file, *place).is_some_and(|found| wanted.contains(&found));
        let places: Vec<u64> = disk.durable_blocks(file).into_iter().filter(holds).collect();
        places.iter().for_each(|place| assert!(disk.rot(file, *place, 1234)));
        places.len()
    }
}
