//! Somebody who does to volumes and snapshots what can be done to them, in any order, through any node.

use super::{By, What};
use crate::world::{Event, World};
use sheep_datapath::OpenMode;
use sheep_state::{CacheMode, CloneVdi, Command, CreateVdi, Guard, SnapshotItem};
use sheep_types::VdiId;
use std::collections::BTreeMap;

/// Volumes and snapshots at a time. When there are so many something is deleted.
const MOST: usize = 14;
/// A volume does not grow beyond this.
const LARGEST: u64 = 2 << 20;

impl World {
    /// Does something, and comes again.
    pub(crate) fn operator_acts(&mut self) {
        let after = self.rng.range(50, 700) * 1_000_000;
        self.schedule(after, Event::Operator);
        self.look_into_limbo();
        self.flattens_unused();
        if self.options.faults.is_empty() {
            return;
        }
        self.carries_group_on();
        let alive = self.tree.alive().count();
        let draw = self.rng.range(0, 99);
        match draw {
            _ if alive >= MOST => self.deletes(),
            0..=11 => self.takes_of_closed(),
            12..=19 => self.begins_group(),
            20..=35 => self.clones(),
            36..=49 => self.rolls_back(),
            50..=64 => self.deletes(),
            65..=73 => self.grows(),
            74..=86 => self.sends_on(),
            87..=94 => self.flattens(),
            _ => self.makes(),
        }
    }

    pub(super) fn order_of(&mut self, command: &Command) -> Option<By> {
        let at = self.rng.index(self.nodes.len());
        self.order_at(at, command)
    }

    pub(crate) fn order_at(&mut self, at: usize, command: &Command) -> Option<By> {
        let token = self.order(at, command)?;
        Some(By::Order { token, at, node: self.nodes[at].id, run: self.nodes[at].incarnation })
    }

    pub(super) fn pick_item(&mut self, fits: impl Fn(&super::Item) -> bool) -> Option<VdiId> {
        let all: Vec<VdiId> = self.tree.alive().filter(|(_, item)| fits(item)).map(|(vdi, _)| vdi).collect();
        self.rng.pick(&all).copied()
    }

    /// Whether nothing is being done to a volume that others could mistake for its former contents.
    pub(super) fn is_quiet(&self, vdi: VdiId) -> bool {
        let of = |what: &What| match what {
            What::Snapshots { taken, .. } => taken.iter().any(|taken| taken.volume == vdi),
            What::Rollback { volume, .. } => *volume == vdi,
            What::Delete(_) | What::Make { .. } | What::Grow | What::Shrink | What::Flatten => false,
        };
        !self.tree.limbo.values().any(|limbo| of(&limbo.what))
    }

    /// A volume that nobody writes, and to which nothing is being done.
    fn pick_closed(&mut self) -> Option<VdiId> {
        let all = self.tree.alive().filter(|(vdi, item)| item.is_free() && self.is_quiet(*vdi));
        let all: Vec<VdiId> = all.map(|(vdi, _)| vdi).collect();
        self.rng.pick(&all).copied()
    }

    fn takes_of_closed(&mut self) {
        let Some(vdi) = self.pick_closed() else { return };
        let tag = format!("c{}", self.tree.number());
        let taken = self.tree.taken(vdi, &tag);
        let item = snapshot_item(vdi, Guard::ClosedClean, tag);
        let Some(by) = self.order_of(&Command::Snapshot { items: vec![item] }) else { return };
        self.tree.begin_busy(by, What::Snapshots { taken: vec![taken], closed: true });
    }

    fn clones(&mut self) {
        let Some(snapshot) = self.pick_item(|item| item.is_snapshot()) else { return };
        let name = format!("clone{}", self.tree.number());
        let size = self.tree.item(snapshot).oracle.len() as u64 * 512;
        let larger = self.rng.chance(200_000).then(|| (size + self.rng.range(1, 600) * 512).min(LARGEST));
        let command = Command::CloneVdi(CloneVdi {
            snapshot,
            name: name.clone(),
            size: larger.filter(|larger| *larger >= size),
            copies: None,
            min_copies: None,
            cache: CacheMode::WriteBack,
            attributes: BTreeMap::new(),
            created_unix_ms: 0,
        });
        let Some(by) = self.order_of(&command) else { return };
        self.tree.begin(by, What::Make { name, of: Some(snapshot), size });
    }

    fn makes(&mut self) {
        let name = format!("blank{}", self.tree.number());
        let size = self.rng.range(16, 24) * (64 << 10);
        let command = Command::CreateVdi(CreateVdi {
            name: name.clone(),
            size,
            copies: None,
            min_copies: None,
            cache: CacheMode::WriteBack,
            attributes: BTreeMap::new(),
            created_unix_ms: 0,
        });
        let Some(by) = self.order_of(&command) else { return };
        self.tree.begin(by, What::Make { name, of: None, size });
    }

    fn rolls_back(&mut self) {
        let Some(volume) = self.pick_closed() else { return };
        let Some(snapshot) = self.pick_item(|item| item.of == Some(volume)) else { return };
        let at = self.rng.index(self.nodes.len());
        let view = self.nodes[at].running.as_ref().and_then(|running| running.view.clone());
        let Some(record) = view.as_ref().and_then(|view| view.state.vdi(volume)) else { return };
        let guard = Guard::Closed(record.last_generation);
        let was = self.tree.item(volume).vid;
        let Some(by) = self.order_at(at, &Command::Rollback { vdi: volume, snapshot, guard }) else { return };
        self.tree.begin_busy(by, What::Rollback { volume, snapshot, was });
        // Somebody may be faster: then nothing must happen.
        if self.rng.chance(300_000) {
            self.tree.item(volume).busy = false;
        }
    }

    /// Anything, whether it is in use or not.
    fn deletes(&mut self) {
        let Some(vdi) = self.pick_item(|_| true) else { return };
        let at = self.rng.index(self.nodes.len());
        let Some(token) = self.order_delete(at, vdi) else { return };
        let by = By::Order { token, at, node: self.nodes[at].id, run: self.nodes[at].incarnation };
        self.tree.begin(by, What::Delete(vdi));
    }

    /// Orders that something is deleted, as a node sees it; gives the token of the answer.
    pub(crate) fn order_delete(&mut self, at: usize, vdi: VdiId) -> Option<u64> {
        let view = self.nodes[at].running.as_ref().and_then(|running| running.view.clone())?;
        let record = view.state.vdi(vdi)?;
        let guard =
            if record.is_snapshot() { Guard::ClosedClean } else { Guard::Closed(record.last_generation) };
        self.order(at, &Command::DeleteVdi { vdi, guard })
    }

    /// A volume, by its holder or closed.
    fn grows(&mut self) {
        let Some(vdi) = self.pick_item(|item| !item.is_snapshot() && !item.busy) else { return };
        let user = self.tree.item(vdi).user;
        let holder = user.and_then(|number| self.clients[number].is_at());
        let at = holder.unwrap_or_else(|| self.rng.index(self.nodes.len()));
        let view = self.nodes[at].running.as_ref().and_then(|running| running.view.clone());
        let Some(record) = view.as_ref().and_then(|view| view.state.vdi(vdi)) else { return };
        let guard = record.lock.map_or(Guard::ClosedClean, |lock| Guard::Held(lock.generation));
        let size = (record.size + self.rng.range(1, 400) * 512).min(LARGEST);
        let command = Command::ResizeVdi { vdi, size, guard, shrink: false };
        let Some(by) = self.order_at(at, &command) else { return };
        self.tree.begin(by, What::Grow);
    }

    /// Some client goes on with another volume.
    fn sends_on(&mut self) {
        let writers: Vec<usize> =
            (0..self.clients.len()).filter(|number| self.clients[*number].mode == OpenMode::Write).collect();
        if let Some(number) = self.rng.pick(&writers).copied() {
            self.clients[number].leave();
        }
    }
}

/// A snapshot of a volume in that state.
pub(crate) fn snapshot_item(vdi: VdiId, guard: Guard, tag: String) -> SnapshotItem {
    SnapshotItem { vdi, guard, tag, attributes: BTreeMap::new(), created_unix_ms: 0 }
}
