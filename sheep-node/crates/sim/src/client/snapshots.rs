//! Snapshots that clients take of their volumes, and clones on which they go on. In the end every snapshot is read
//! through every node, and held against what the volume could contain when it was taken.

use super::{Client, Pending, Place};
use crate::oracle::Oracle;
use crate::world::{Event, World};
use sheep_datapath::{OpenMode, VolumeOp};
use sheep_state::{CacheMode, CloneVdi, Command, Outcome, Refusal, VdiRecord};
use sheep_types::VdiId;
use std::collections::BTreeMap;

/// Snapshots of a client in one run.
const MOST: usize = 6;
/// A clone that was not made after so long never will be: the node that ordered it is gone.
const PATIENCE: u64 = 30_000_000_000;

/// A snapshot that a client has asked for.
pub(super) struct Snapshot {
    volume: Option<VdiId>,
    tag: String,
    /// What it may contain.
    oracle: Oracle,
}

/// A clone on its way.
pub(super) enum Clone {
    /// To be made of this snapshot.
    Wanted(VdiId, Box<Oracle>),
    /// It is being ordered, since when.
    Ordered(u64, u64, Box<Oracle>),
    /// It is there; the client goes on with it as soon as it has closed its volume.
    Made(VdiId, Box<Oracle>),
}

impl World {
    /// Whether a snapshot is to be taken now.
    pub(super) fn takes_snapshot(&mut self, number: usize) -> bool {
        let client = &self.clients[number];
        let wanted =
            self.options.snapshots && client.snapshots.len() < MOST && !self.options.faults.is_empty();
        wanted && self.rng.chance(12_000)
    }

    pub(super) fn take_snapshot(&mut self, number: usize, node: usize) {
        let client = &mut self.clients[number];
        let tag = format!("s{}", client.snapshots.len());
        client.snapshots.push(Snapshot {
            volume: client.vdi,
            tag: tag.clone(),
            oracle: client.oracle.frozen(),
        });
        let pending = Pending::Snapshot(client.snapshots.len() - 1, client.oracle.begin_flush());
        let op = VolumeOp::Snapshot { tag, attributes: BTreeMap::new(), created_unix_ms: 0 };
        self.submit(number, node, pending, op);
    }

    /// What the order said to a snapshot.
    pub(super) fn snapshot_ordered(
        &mut self,
        number: usize,
        (place, covered): (usize, Vec<u64>),
        result: &Result<Outcome, Refusal>,
    ) {
        let Ok(Outcome::Snapshots(made)) = result else {
            return self.violate(format!("a snapshot of client {number} was refused: {result:?}"));
        };
        self.counts.snapshots += 1;
        self.clients[number].oracle.end_flush(&covered);
        let clones = self.rng.chance(300_000) && self.clients[number].clone.is_none();
        if let (true, Some(made)) = (clones, made.first()) {
            let oracle = Box::new(self.clients[number].snapshots[place].oracle.clone());
            self.clients[number].clone = Some(Clone::Wanted(made.vdi, oracle));
        }
    }

    /// Carries a clone on. True while the client must not open its volume.
    pub(super) fn step_clone(&mut self, number: usize) -> bool {
        // In the end all is looked at where it is.
        let wanted = self.clients[number].clone.take().filter(|_| self.clients[number].verifying.is_none());
        match wanted {
            None => false,
            Some(Clone::Wanted(snapshot, oracle)) => {
                let command = Command::CloneVdi(CloneVdi {
                    snapshot,
                    name: format!("clone{number}-{}", snapshot.0),
                    size: None,
                    copies: None,
                    min_copies: None,
                    cache: CacheMode::WriteBack,
                    attributes: BTreeMap::new(),
                    created_unix_ms: 0,
                });
                let node = self.rng.index(self.nodes.len());
                self.clients[number].clone = Some(match self.order(node, &command) {
                    Some(token) => Clone::Ordered(token, self.now, oracle),
                    None => Clone::Wanted(snapshot, oracle),
                });
                false
            }
            Some(Clone::Ordered(token, since, oracle)) => {
                self.clients[number].clone = match self.answers.remove(&token) {
                    Some(Ok(Outcome::Created { vdi, .. })) => Some(Clone::Made(vdi, oracle)),
                    None if self.now - since < PATIENCE => Some(Clone::Ordered(token, since, oracle)),
                    Some(_) | None => None,
                };
                false
            }
            Some(Clone::Made(vdi, oracle)) => {
                if self.clients[number].place == Place::Away && self.clients[number].is_idle() {
                    self.counts.clones += 1;
                    self.clients[number].go_on_with(vdi, *oracle);
                    return false;
                }
                self.clients[number].clone = Some(Clone::Made(vdi, oracle));
                self.close(number);
                true
            }
        }
    }

    /// Every snapshot gets a client that only reads it.
    pub fn look_at_snapshots(&mut self) {
        let view = self.nodes.iter().find_map(|node| node.running.as_ref()?.view.clone());
        let Some(view) = view else { return };
        for number in 0..self.clients.len() {
            for snapshot in core::mem::take(&mut self.clients[number].snapshots) {
                // One whose answer got lost may have been taken or not.
                let is_it = |record: &&&std::sync::Arc<VdiRecord>| {
                    let of = record.snapshot_of.map(|of| of.vdi);
                    of.is_some() && of == snapshot.volume && record.tag() == Some(&snapshot.tag)
                };
                let all = view.state.vdis();
                let Some(record) = all.iter().find(is_it) else { continue };
                let mut reader = Client::new(self.clients.len(), 0);
                reader.vdi = Some(record.id);
                reader.oracle = snapshot.oracle;
                reader.mode = OpenMode::Read;
                reader.verifying = Some(usize::MAX);
                self.clients.push(reader);
                self.schedule(0, Event::Client(self.clients.len() - 1));
            }
        }
    }
}

impl Client {
    /// Goes on with a clone; what the volume was, was looked at enough.
    fn go_on_with(&mut self, vdi: VdiId, oracle: Oracle) {
        self.vdi = Some(vdi);
        self.oracle = oracle;
        (self.opened_before, self.clean) = (false, true);
    }
}
