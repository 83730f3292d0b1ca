//! What is on the disks, held against what can be reached: the maps of everything that is there are read, and every object
//! that nobody reaches must be gone, and every other one be on all its members.

use crate::world::World;
use bytes::{Buf, Bytes};
use sheep_datapath::View;
use sheep_state::{ClusterState, Command};
use sheep_types::{BLOCK_SIZE, Generation, LogIndex, Member, NodeId, ObjectId, Vid};
use sheep_wire::{ExtentState, Header, Message, Packet, ReadData, Reply, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Who reads maps: no node of the cluster.
const SPY: NodeId = NodeId(u64::MAX);
/// In an entry of a map: absent blocks of the object are those of its base.
const PARTIAL: u32 = 1 << 31;
const SECOND: u64 = 1_000_000_000;
/// Entries of a block of a map; no volume here needs more.
const ENTRIES: u32 = BLOCK_SIZE / 4;
/// A sweep that met a node that was away waits some time.
const LIMIT: u64 = 300 * SECOND;

/// Entries of the first block of a map; none: the block is its origin's.
type Map = Option<Vec<u32>>;

/// A walk through everything that can be reached.
struct Walk<'a> {
    state: &'a ClusterState,
    maps: &'a BTreeMap<Vid, Map>,
    reached: BTreeSet<ObjectId>,
}

impl Walk<'_> {
    /// What a vid has at an index.
    fn go(&mut self, vid: Vid, index: u32) {
        let mut next = Some(vid);
        while let Some(vid) = next {
            let Some(record) = self.state.vid(vid) else { return };
            let entries = record.maps.get(&0).and_then(|owner| self.maps.get(owner)?.as_ref());
            next = match entries {
                None => self.state.origin_of(vid),
                Some(entries) => {
                    let entry = entries.get(index as usize).copied().unwrap_or_default();
                    let owner = Vid(entry & !PARTIAL);
                    if entry != 0 {
                        self.reached.insert(ObjectId::data(owner, index));
                    }
                    (entry & PARTIAL != 0).then(|| self.state.base_of(owner)).flatten()
                }
            };
        }
    }
}

impl World {
    /// Takes an answer that is for the spy.
    pub(crate) fn spied(&mut self, packet: &Packet) -> bool {
        let spied = packet.to == SPY;
        if let (true, Message::Reply(reply)) = (spied, &packet.message) {
            self.spy = Some(reply.clone());
        }
        spied
    }

    /// Reads the first block of a map object from one of its members.
    fn spy_map(&mut self, view: &View, object: ObjectId) -> Result<Map, String> {
        let (members, birth) = (view.up_set(object), view.vid(object.vid()).map(|record| record.birth));
        let (Some(birth), Some(to)) = (birth, members.first().copied()) else {
            return Err(format!("nobody has map {object}"));
        };
        let request = Request::Read { object, birth, offset: 0, len: BLOCK_SIZE };
        let Some(node) = self.nodes.iter().position(|node| node.id == to.node) else {
            return Err(format!("no node {}", to.node));
        };
        for _ in 0..100 {
            let header = header(view, to);
            let now = self.nodes[node].clock(self.now);
            self.spy = None;
            let asked = request.clone();
            self.with_shard(node, |shard| shard.handle_packet(now, header, Message::Request(asked)));
            let end = self.now + SECOND / 10;
            while self.spy.is_none() && self.now < end {
                self.step()?;
            }
            if let Some(Reply::Read(data)) = self.spy.take() {
                return Ok(entries(&data));
            }
        }
        Err(format!("map {object} cannot be read"))
    }

    fn view_of_first(&self) -> Result<Arc<View>, String> {
        let running = self.nodes.first().and_then(|node| node.running.as_ref());
        running.and_then(|running| running.view.clone()).ok_or_else(|| "node 0 has no view".to_owned())
    }

    /// Waits until no sweep is due, anywhere.
    fn wait_for_sweeps(&mut self) -> Result<(), String> {
        let end = self.now + LIMIT;
        loop {
            let due = self.view_of_first()?.state.sweeps_due();
            if due.is_empty() {
                return Ok(());
            }
            if self.now >= end {
                return Err(format!("sweeps are still due after {} s: {due:?}", LIMIT / SECOND));
            }
            self.run_until(self.now + SECOND / 5)?;
        }
    }

    /// Nodes that never come back are forgotten: sweeps wait for those that may.
    fn remove_lost_nodes(&mut self) -> Result<(), String> {
        let here = |node: NodeId| self.nodes.iter().any(|machine| machine.id == node);
        let view = self.view_of_first()?;
        let gone: Vec<NodeId> =
            view.state.nodes().map(|node| node.node).filter(|node| !here(*node)).collect();
        for node in gone {
            self.order(0, &Command::NodeRemove { node, force: true });
        }
        self.run_until(self.now + 5 * SECOND)
    }

    /// All that can be reached is there, and nothing else of what is deleted.
    pub(crate) fn check_space(&mut self) -> Result<(), String> {
        self.remove_lost_nodes()?;
        self.wait_for_sweeps()?;
        // Everybody hears of the end of the last one.
        self.run_until(self.now + 2 * SECOND)?;
        let view = self.view_of_first()?;
        let state = Arc::clone(&view.state);
        let mut maps = BTreeMap::new();
        let owners: BTreeSet<Vid> =
            state.vids().iter().filter_map(|record| record.maps.get(&0).copied()).collect();
        for owner in owners {
            maps.insert(owner, self.spy_map(&view, ObjectId::map(owner, 0))?);
        }
        self.check_flat(&state, &maps)?;
        let mut walk = Walk { state: &state, maps: &maps, reached: BTreeSet::new() };
        for record in state.vids().iter().filter(|record| record.is_alive()) {
            // Beyond the end of a volume that was made smaller there may be objects of zeros, discarded while a node was away.
            (0..ENTRIES).for_each(|index| walk.go(record.vid, index));
        }
        let mut reached = walk.reached;
        reached.extend(maps.keys().map(|owner| ObjectId::map(*owner, 0)));
        self.compare_space(&view, &reached)
    }

    fn compare_space(&mut self, view: &View, reached: &BTreeSet<ObjectId>) -> Result<(), String> {
        let mut orphans = 0;
        for node in &self.nodes {
            let shard = node.running.as_ref().and_then(|running| running.shard.as_ref());
            let Some(replica) = shard.and_then(|shard| shard.replica()) else { continue };
            let objects = replica.store().objects(ObjectId(0)).map(|header| header.id);
            let here: BTreeSet<ObjectId> =
                objects.filter(|object| object.vid() != sheep_store::NOTES).collect();
            for object in here.difference(reached) {
                match view.vid(object.vid()) {
                    None => return Err(format!("node {} has {object} of a forgotten vid", node.index)),
                    Some(record) if !record.is_alive() => {
                        return Err(format!(
                            "node {} has {object}, which is dead and not reached",
                            node.index
                        ));
                    }
                    // Its creation was not answered, or its removal not finished: it goes with its vid.
                    Some(_) => orphans += 1,
                }
            }
            let missing = reached.difference(&here).find(|object| view.set(**object).contains(&node.id));
            if let Some(missing) = missing {
                return Err(format!("node {} does not have {missing}, which is reached", node.index));
            }
        }
        self.counts.orphans += orphans;
        self.counts.reached += reached.len() as u64;
        Ok(())
    }

    /// After everything was deleted nothing is left, on any node.
    pub(crate) fn check_empty(&mut self) -> Result<(), String> {
        self.wait_for_sweeps()?;
        self.run_until(self.now + 2 * SECOND)?;
        let view = self.view_of_first()?;
        let left: Vec<Vid> = view.state.vids().iter().map(|record| record.vid).collect();
        if !left.is_empty() {
            return Err(format!("everything is deleted, but these vids are known: {left:?}"));
        }
        self.compare_space(&view, &BTreeSet::new())
    }
}

fn header(view: &View, to: Member) -> Header {
    Header {
        request: 0,
        cluster: view.cluster,
        from: Member { node: SPY, ..to },
        to: to.incarnation,
        shard: 0,
        epoch: view.epoch(),
        relies_on: LogIndex(0),
        generation: Generation(0),
    }
}

fn entries(data: &ReadData) -> Map {
    match data.extents.first().map(|extent| extent.state) {
        Some(ExtentState::Data) => {
            let mut bytes: Bytes = data.data.first().cloned().unwrap_or_default();
            Some(std::iter::from_fn(|| (bytes.len() >= 4).then(|| bytes.get_u32_le())).collect())
        }
        Some(ExtentState::Zero) => Some(Vec::new()),
        _ => None,
    }
}
