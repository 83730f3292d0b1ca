//! The reference of the whole tree: what every volume and every snapshot contains, and what is being done to it.
//!
//! A command that was ordered is in *limbo* until it is known what came of it: by its answer, or, if nobody can give
//! that any more, by a state that is surely from after it.

mod flat;
mod group;
mod limbo;
mod operator;
mod space;
mod whole;

pub(crate) use limbo::{By, Limbo, Taken, What};

use crate::oracle::Oracle;
use sheep_types::{VdiId, Vid};
use std::collections::BTreeMap;

/// A volume or a snapshot. It stays when it is deleted: others go on from what it was.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) name: String,
    /// Its vid, as far as is known.
    vid: Vid,
    /// Of a snapshot: the volume.
    of: Option<VdiId>,
    /// What it may contain.
    pub(crate) oracle: Oracle,
    /// What that goes on from.
    base: Option<VdiId>,
    /// It was deleted.
    pub(crate) dead: bool,
    /// Something is being done to it while it must stay closed.
    busy: bool,
    /// The client that writes it.
    pub(crate) user: Option<usize>,
}

impl Item {
    pub(crate) fn is_snapshot(&self) -> bool {
        self.of.is_some()
    }

    /// Whether a client may take it.
    pub(crate) fn is_free(&self) -> bool {
        !self.dead && !self.busy && self.user.is_none() && !self.is_snapshot()
    }
}

/// All there ever was.
#[derive(Debug, Default)]
pub struct Tree {
    items: BTreeMap<VdiId, Item>,
    limbo: BTreeMap<u64, Limbo>,
    next: u64,
    lines: u64,
    /// Snapshots of several volumes that are to be taken.
    group: Option<group::Group>,
}

impl Tree {
    /// What is known to have been made.
    pub(crate) fn item(&mut self, vdi: VdiId) -> &mut Item {
        self.items.get_mut(&vdi).expect("nobody uses what was not made")
    }

    /// Its size as far as is known, sectors.
    pub(crate) fn len(&self, vdi: VdiId) -> usize {
        self.items.get(&vdi).map_or(0, |item| item.oracle.len())
    }

    /// The volume that a snapshot is of, or this volume.
    pub(crate) fn volume_of(&self, vdi: VdiId) -> VdiId {
        self.items.get(&vdi).and_then(|item| item.of).unwrap_or(vdi)
    }

    /// Whether this was deleted.
    pub(crate) fn is_dead(&self, vdi: VdiId) -> bool {
        self.items.get(&vdi).is_some_and(|item| item.dead)
    }

    /// Whether this is being deleted.
    pub(crate) fn is_going(&self, vdi: VdiId) -> bool {
        self.limbo.values().any(|limbo| matches!(limbo.what, What::Delete(going) if going == vdi))
    }

    /// Whether it is not known yet what came of a command.
    pub(crate) fn is_in_limbo(&self, number: u64) -> bool {
        self.limbo.contains_key(&number)
    }

    /// What is there, in order of making.
    pub(crate) fn alive(&self) -> impl Iterator<Item = (VdiId, &Item)> {
        self.items.iter().filter(|(_, item)| !item.dead).map(|(vdi, item)| (*vdi, item))
    }

    /// A number for a line of contents.
    fn line(&mut self) -> u64 {
        self.lines += 1;
        self.lines
    }

    /// A number for a name or a command.
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A blank volume was made.
    pub(crate) fn made_blank(&mut self, vdi: VdiId, vid: Vid, name: String, size: u64) {
        let oracle = Oracle::new(size, self.line());
        self.add(vdi, vid, name, None, oracle, None);
    }

    fn add(
        &mut self,
        vdi: VdiId,
        vid: Vid,
        name: String,
        of: Option<VdiId>,
        oracle: Oracle,
        base: Option<VdiId>,
    ) {
        let item = Item { name, vid, of, oracle, base, dead: false, busy: false, user: None };
        self.items.insert(vdi, item);
    }

    /// The snapshot that a volume would give now.
    pub(crate) fn taken(&mut self, volume: VdiId, tag: &str) -> Taken {
        let item = self.item(volume);
        let oracle = item.oracle.frozen();
        let covered = item.oracle.begin_flush();
        let name = format!("{}@{tag}", item.name);
        Taken { volume, name, base: item.base, mark: item.oracle.mark(), oracle, covered }
    }

    /// Something is on its way.
    pub(crate) fn begin(&mut self, by: By, what: What) -> u64 {
        let number = self.number();
        self.limbo.insert(number, Limbo { by, what });
        number
    }
}
