//! Clients that only read: snapshots, and volumes that nobody writes, several of them at once.

use super::Place;
use crate::world::World;

impl World {
    /// The turn of one that only reads.
    pub(super) fn reader_acts(&mut self, number: usize) {
        match self.clients[number].place {
            Place::Away if self.clients[number].verifying.is_some() => {}
            Place::Away if !self.clients[number].is_idle() || self.options.faults.is_empty() => {}
            Place::Away => self.begin_reading(number),
            Place::Open(node) if self.clients[number].verifying.is_some() => self.verify_next(number, node),
            Place::Open(node) => self.read_on(number, node),
            Place::Opening(_) | Place::Closing(_) => {}
        }
    }

    fn begin_reading(&mut self, number: usize) {
        let fits = |item: &crate::tree::Item| item.is_snapshot() || item.is_free();
        let all: Vec<_> = self.tree.alive().filter(|(_, item)| fits(item)).map(|(vdi, _)| vdi).collect();
        let Some(vdi) = self.rng.pick(&all).copied() else { return };
        let node = self.rng.index(self.nodes.len());
        let same = |other: &super::Client| {
            let place = match other.place {
                Place::Opening(at) | Place::Open(at) | Place::Closing(at) => Some(at),
                Place::Away => None,
            };
            other.vdi == Some(vdi) && place == Some(node)
        };
        let shard = self.nodes[node].running.as_ref().is_some_and(|running| running.shard.is_some());
        if !shard || self.clients.iter().any(same) {
            return;
        }
        self.clients[number].reads_left = self.rng.range(1, 80);
        self.clients[number].vdi = Some(vdi);
        self.open_at(number, node, vdi);
    }

    fn read_on(&mut self, number: usize, node: usize) {
        if self.reads_the_past(number) {
            return self.close(number);
        }
        let client = &mut self.clients[number];
        if self.nodes[node].paused_until > self.now || client.pending.len() >= self.options.depth {
            return;
        }
        if client.reads_left == 0 {
            if client.is_idle() {
                self.close(number);
            }
            return;
        }
        client.reads_left -= 1;
        if self.compares() {
            return self.compare(number, node);
        }
        let sectors = self.some_sectors(number, 128);
        self.read(number, node, sectors);
    }
}
