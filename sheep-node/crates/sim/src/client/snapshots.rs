//! Clients that take snapshots of the volumes that they have open, and go from one volume to another.

use super::{Client, Pending, Place};
use crate::tree::{By, What};
use crate::world::World;
use sheep_datapath::VolumeOp;
use sheep_state::{Outcome, Refusal};
use std::collections::BTreeMap;

impl Client {
    /// Lets the volume go as soon as it can.
    pub(crate) fn leave(&mut self) {
        self.leaving |= self.vdi.is_some() && self.verifying.is_none();
    }
}

impl World {
    /// Whether a snapshot is to be taken now.
    pub(super) fn takes_snapshot(&mut self) -> bool {
        let wanted = self.options.snapshots && !self.options.faults.is_empty();
        wanted && self.rng.chance(8_000)
    }

    pub(super) fn take_snapshot(&mut self, number: usize, node: usize) {
        let Some(vdi) = self.clients[number].vdi else { return };
        let tag = format!("s{}", self.counts.ios);
        let taken = self.tree.taken(vdi, &tag);
        let limbo = self.tree.begin(By::Gateway(vdi), What::Snapshots { taken: vec![taken], closed: false });
        let op = VolumeOp::Snapshot { tag, attributes: BTreeMap::new(), created_unix_ms: 0 };
        self.submit(number, node, Pending::Snapshot(limbo), op);
    }

    /// What the order said to a snapshot.
    pub(super) fn snapshot_ordered(&mut self, number: usize, limbo: u64, result: &Result<Outcome, Refusal>) {
        if let Err(refusal) = result {
            let vdi = self.clients[number].vdi;
            if vdi.is_none_or(|vdi| !self.tree.is_dead(vdi)) {
                self.violate(format!("a snapshot of client {number} was refused: {refusal}"));
            }
        } else {
            self.counts.snapshots += 1;
        }
        self.tree.answered(limbo, result);
    }

    /// Lets a volume go, or takes another one. True while the client must not open any.
    pub(super) fn changes_volume(&mut self, number: usize) -> bool {
        let client = &self.clients[number];
        if client.verifying.is_some() {
            return false;
        }
        let at_rest = client.place == Place::Away && client.is_idle();
        let dead = client.vdi.is_some_and(|vdi| self.tree.is_dead(vdi));
        let leaves = client.leaving || dead;
        if let Some(vdi) = client.vdi {
            if leaves && at_rest {
                self.tree.item(vdi).user = None;
                self.clients[number].vdi = None;
                self.clients[number].leaving = false;
            } else if leaves {
                self.close(number);
                // One that is dead may have been given up while it was open: its gateway still says so.
                return true;
            }
        }
        if self.clients[number].vdi.is_some() {
            return false;
        }
        let free: Vec<_> = self.tree.alive().filter(|(_, item)| item.is_free()).map(|(vdi, _)| vdi).collect();
        let Some(vdi) = self.rng.pick(&free).copied() else { return true };
        self.tree.item(vdi).user = Some(number);
        let client = &mut self.clients[number];
        client.vdi = Some(vdi);
        (client.opened_before, client.clean) = (false, true);
        false
    }
}
