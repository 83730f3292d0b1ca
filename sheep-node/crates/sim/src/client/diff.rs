//! Clients that ask what differs from a snapshot, or from nothing.

use super::{Pending, bytes_of};
use crate::oracle::{Oracle, ReadTicket};
use crate::world::World;
use sheep_datapath::{DiffExtent, VolumeError, VolumeOp};
use sheep_types::{SECTOR_SIZE, VdiId};

/// A comparison under way.
#[derive(Debug)]
pub(super) struct Asked {
    ticket: ReadTicket,
    /// The snapshot; none: a disk full of zeros.
    since: Option<VdiId>,
    /// The node knows it as a snapshot of the same volume.
    own: bool,
}

impl World {
    /// Whether something is to be compared now.
    pub(super) fn compares(&mut self) -> bool {
        self.options.snapshots && self.rng.chance(25_000)
    }

    /// Mostly with a snapshot of the same volume, now and then with any, which may have nothing to do with it.
    pub(super) fn compare(&mut self, number: usize, node: usize) {
        let Some(vdi) = self.clients[number].vdi else { return };
        let prefers_own = self.rng.chance(700_000);
        let volume = self.tree.volume_of(vdi);
        let snapshots = self.tree.alive().filter(|(_, item)| item.is_snapshot());
        let all: Vec<VdiId> = snapshots.map(|(vdi, _)| vdi).collect();
        let same: Vec<VdiId> =
            all.iter().copied().filter(|vdi| self.tree.volume_of(*vdi) == volume).collect();
        let list = if prefers_own && !same.is_empty() { &same } else { &all };
        let picked = self.rng.pick(list).copied();
        let since = picked.filter(|_| self.rng.chance(800_000));
        let view = self.nodes[node].running.as_ref().and_then(|running| running.view.clone());
        let own = since.is_some_and(|since| {
            same.contains(&since) && view.is_some_and(|view| view.state.vdi(since).is_some())
        });
        let sectors = match self.rng.chance(600_000) {
            true => 0..self.oracle(number).len(),
            false => self.some_sectors(number, 600),
        };
        let ticket = self.oracle(number).begin_read(sectors.clone());
        let (offset, len) = bytes_of(&sectors);
        let op = VolumeOp::Diff { offset, len, since };
        self.submit(number, node, Pending::Diff(Asked { ticket, since, own }), op);
    }

    /// Whether this is a comparison that may fail so: its snapshot goes, or is not known to be of the same tree.
    pub(super) fn may_not_compare(&self, pending: &Pending, error: VolumeError) -> bool {
        let Pending::Diff(Asked { since: Some(since), own, .. }) = pending else { return false };
        let goes = self.tree.is_dead(*since) || self.tree.is_going(*since);
        goes || (error == VolumeError::NotRelated && !own)
    }

    /// What is called the same must be the same.
    pub(super) fn compared(&mut self, number: usize, node: usize, asked: &Asked, extents: &[DiffExtent]) {
        self.counts.diffs += 1;
        if self.reads_the_past(number) {
            return;
        }
        let said: Vec<(usize, _)> = extents
            .iter()
            .map(|extent| ((extent.len / u64::from(SECTOR_SIZE)) as usize, extent.difference))
            .collect();
        let old: Option<Oracle> = asked.since.map(|since| self.tree.item(since).oracle.clone());
        match self.oracle(number).end_diff(&asked.ticket, &said, old.as_ref()) {
            Ok(same) => self.counts.same += same as u64,
            Err(problem) => {
                let name = asked.since.map(|since| self.tree.item(since).name.clone());
                self.violate(format!("client {number} at node {node}, compared with {name:?}: {problem}"));
            }
        }
    }
}
