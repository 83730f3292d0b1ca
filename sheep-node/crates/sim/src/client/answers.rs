//! What gateways answer, held against the reference.

use super::{Pending, Place, bytes_of, tags};
use crate::node::Node;
use crate::oracle::Run;
use crate::world::World;
use sheep_datapath::{GatewayOutput, LostReason, OpenError, OpenMode, VolumeError, VolumeReply};
use sheep_state::Refusal;
use sheep_types::{SECTOR_SIZE, VdiId};
use std::ops::Range;

impl World {
    /// A gateway says something about a volume.
    pub fn volume_output(&mut self, node: usize, output: GatewayOutput) {
        let Some(output) = self.rival_output(node, output) else { return };
        match output {
            GatewayOutput::Opened { handle, size, .. } => self.opened(node, handle, size),
            GatewayOutput::OpenFailed { handle, error } => self.open_failed(handle, &error),
            GatewayOutput::Done { handle, io, result } => self.done(node, handle, io, result),
            GatewayOutput::Lost { handle, reason } => {
                self.trace.say(self.now, &format!("node {node} loses a volume: {reason}"));
                if let Some(number) = self.client_of(handle) {
                    // Nothing damages disks here: what was answered, and is not durable, can be sent again.
                    if reason == LostReason::WritesMissing {
                        self.violate(format!("node {node} cannot send what client {number} wrote again"));
                    }
                    self.clients[number].clean = false;
                    self.close(number);
                }
                self.nobody_loses(node, handle);
            }
            GatewayOutput::Closed { handle } => {
                if let Some(number) = self.client_of(handle) {
                    self.clients[number].place = Place::Away;
                }
            }
            GatewayOutput::Resized { handle, size } => {
                if let Some(number) = self.client_of(handle) {
                    self.has_size(number, size);
                }
            }
            GatewayOutput::Send(_) | GatewayOutput::Propose { .. } | GatewayOutput::Report { .. } => {}
        }
    }

    fn client_of(&self, handle: u64) -> Option<usize> {
        let number = (handle % 64) as usize;
        (number < self.clients.len() && self.handle(number) == handle).then_some(number)
    }

    /// Whether a reader has lost its lock, and somebody has changed the volume since.
    pub(super) fn reads_the_past(&mut self, number: usize) -> bool {
        let began = self.clients[number].reads_in;
        self.clients[number].mode == OpenMode::Read && self.oracle(number).session() != began
    }

    fn has_size(&mut self, number: usize, size: u64) {
        let behind = !self.oracle(number).may_have(size);
        if self.clients[number].mode == OpenMode::Read && (behind || self.reads_the_past(number)) {
            // Its node does not know yet that the volume has grown.
            return self.close(number);
        }
        if size < self.oracle(number).len() as u64 * u64::from(SECTOR_SIZE) {
            self.counts.shrunk += 1;
        }
        if let Err(problem) = self.oracle(number).resize(size) {
            self.violate(format!("client {number}: {problem}"));
        }
    }

    fn opened(&mut self, node: usize, handle: u64, size: u64) {
        let Some(number) = self.client_of(handle) else { return self.nobody_opened(node, handle) };
        let vdi = self.clients[number].vdi.unwrap_or_default();
        self.trace.say(self.now, &format!("client {number} has volume {vdi} open at node {node}"));
        let writes = self.clients[number].mode == OpenMode::Write;
        if writes {
            self.begins_session(vdi, node);
        }
        let view = self.nodes[node].running.as_ref().and_then(|running| running.view.clone());
        if let Some(view) = view
            && let Err(problem) = self.tree.opened(vdi, &view.state, writes)
        {
            self.violate(problem);
        }
        if !writes {
            self.clients[number].place = Place::Open(node);
            self.clients[number].reads_in = self.oracle(number).session();
        }
        self.has_size(number, size);
        if !writes {
            return;
        }
        self.oracle(number).size_is_known();
        let client = &mut self.clients[number];
        client.place = Place::Open(node);
        let taken_over = client.opened_before && !client.clean;
        client.opened_before = true;
        client.sessions += 1;
        client.clean = true;
        if taken_over {
            self.counts.take_overs += 1;
            self.taken_over();
        }
    }

    /// What all who held it have forgotten, together with the former session, may be gone.
    pub(crate) fn begins_session(&mut self, vdi: VdiId, node: usize) {
        // Holders that the new gateway's epoch does not have count as gone: of an object that no map names yet
        // nobody else can know. That is a crash of the writer, and loses no more than what was not flushed.
        let view = self.nodes[node].running.as_ref().and_then(|running| running.view.clone());
        let up = |n: &Node| view.as_ref().is_some_and(|view| view.state.is_up(n.member()));
        let runs: Vec<Option<u32>> =
            self.nodes.iter().map(|n| n.running.as_ref().filter(|_| up(n)).map(|_| n.run_number())).collect();
        let (given_up, up_in) = (&self.given_up, &self.up_in);
        let alive = |(index, run): Run| {
            runs[index] == Some(run) && !given_up.contains(&(index, u64::from(run / 1000)))
        };
        let excused = |holders: &[Run], since: u64| {
            up_in.iter().filter(|((_, epoch), _)| epoch.0 >= since).any(|(_, then)| {
                let was_up = |(index, run): &Run| then.contains(&(*index, u64::from(run / 1000)));
                let mut up = holders.iter().filter(|run| was_up(run)).peekable();
                up.peek().is_some() && up.all(|run| !alive(*run))
            })
        };
        self.tree.item(vdi).oracle.new_session(alive, excused);
    }

    fn open_failed(&mut self, handle: u64, error: &OpenError) {
        let Some(number) = self.client_of(handle) else { return };
        self.clients[number].place = Place::Away;
        match error {
            OpenError::Refused(Refusal::Locked { .. } | _) | OpenError::LockEnded | OpenError::Closed => {}
            OpenError::NoSuchVdi => {}
            // It is being closed there, or somebody else has just opened it.
            OpenError::AlreadyOpen if self.options.snapshots => {}
            other => self.violate(format!("client {number} cannot open its volume: {other}")),
        }
    }

    fn done(&mut self, node: usize, handle: u64, io: u64, result: Result<VolumeReply, VolumeError>) {
        let Some(number) = self.client_of(handle) else { return };
        let Some(pending) = self.clients[number].pending.remove(&io) else {
            return self.violate(format!("operation {io} of client {number} is answered twice"));
        };
        match result {
            Ok(reply) => self.succeeded(number, node, pending, reply),
            Err(VolumeError::Lost | VolumeError::ShuttingDown) => self.failed(number, pending),
            Err(error) if self.may_not_compare(&pending, error) => {}
            // What was deleted is not there.
            Err(_) if self.is_going(number) => self.failed(number, pending),
            // The only copies that were up then had rotted.
            Err(VolumeError::Io) if self.options.rot.any() && !self.healed => self.failed(number, pending),
            Err(error) => self.violate(format!(
                "operation of client {number} at node {node} failed: {error}: {}",
                pending.told()
            )),
        }
    }

    /// Whether a client's volume is deleted, or may be.
    fn is_going(&self, number: usize) -> bool {
        self.clients[number].vdi.is_some_and(|vdi| self.tree.is_dead(vdi) || self.tree.is_going(vdi))
    }

    pub(super) fn succeeded(&mut self, number: usize, node: usize, pending: Pending, reply: VolumeReply) {
        match (pending, reply) {
            (Pending::Write(tag, sectors, fua), _) => {
                let holders = self.holders(number, node, &sectors);
                if self.options.verbose {
                    let at = self.now as f64 / 1e9;
                    eprintln!(
                        "{at:>12.6} client {number} at {node}: write {tag} to {sectors:?} held by {holders:?}"
                    );
                }
                let view = self.nodes[node].running.as_ref().and_then(|running| running.view.as_ref());
                let epoch = view.map_or(0, |view| view.epoch().0);
                self.oracle(number).end_write(tag, holders, epoch);
                if fua {
                    self.oracle(number).end_flush(&[tag]);
                }
            }
            (Pending::Flush(covered), _) => {
                if self.options.verbose {
                    eprintln!(
                        "{:>12.6} client {number} at {node}: flushed {covered:?}",
                        self.now as f64 / 1e9
                    );
                }
                self.oracle(number).end_flush(&covered);
            }
            (Pending::Read(ticket), VolumeReply::Read(extents)) => {
                self.counts.reads += 1;
                if self.reads_the_past(number) {
                    return;
                }
                let checked = tags(&extents).and_then(|shown| self.oracle(number).end_read(&ticket, &shown));
                if let Err(problem) = checked {
                    self.violate(format!("client {number} at node {node}: {problem}"));
                }
            }
            (Pending::Diff(asked), VolumeReply::Diff(extents)) => {
                self.compared(number, node, &asked, &extents);
            }
            (Pending::Diff(_), _) => self.violate("a comparison was answered with something else".into()),
            (Pending::Snapshot(limbo), VolumeReply::Ordered(result)) => {
                self.snapshot_ordered(number, limbo, &result);
            }
            (Pending::Snapshot(_), _) => self.violate("a snapshot was answered with something else".into()),
            (Pending::Read(_), _) => self.violate("a read was answered without contents".into()),
        }
    }

    pub(super) fn failed(&mut self, number: usize, pending: Pending) {
        self.clients[number].shrink = None;
        if let Pending::Write(tag, ..) = pending {
            self.oracle(number).fail_write(tag);
        }
    }

    /// The process at a node is gone: clients there have no answers any more.
    pub fn clients_lose(&mut self, node: usize) {
        for number in 0..self.clients.len() {
            for tag in self.clients[number].lose_rivals(node) {
                self.oracle(number).fail_write(tag);
            }
            let here = match self.clients[number].place {
                Place::Opening(at) | Place::Open(at) | Place::Closing(at) => at == node,
                Place::Away => false,
            };
            if here {
                self.clients[number].place = Place::Away;
                self.clients[number].handle += 1;
                self.clients[number].clean = false;
                for pending in core::mem::take(&mut self.clients[number].pending).into_values() {
                    self.failed(number, pending);
                }
                if self.clients[number].verifying.is_some() {
                    self.clients[number].verifying = Some(0);
                }
            }
        }
    }

    /// Runs that hold a write when it is acknowledged: those that every object of the range has in common.
    fn holders(&self, number: usize, node: usize, sectors: &Range<usize>) -> Vec<Run> {
        let view = self.nodes[node].running.as_ref().and_then(|running| running.view.clone());
        let (Some(view), Some(vdi)) = (view, self.clients[number].vdi) else { return Vec::new() };
        let Some(record) = view.state.vdi(vdi) else { return Vec::new() };
        let geometry = view.state.geometry();
        let (offset, len) = bytes_of(sectors);
        let (first, last) = (geometry.locate(offset).0, geometry.locate(offset + len - 1).0);
        let mut common: Option<Vec<Run>> = None;
        for index in first..=last {
            let object = sheep_types::ObjectId::data(record.vid, index);
            let runs: Vec<Run> = view
                .up_set(object)
                .iter()
                .filter_map(|m| {
                    let machine = self.nodes.iter().find(|n| n.id == m.node)?;
                    let same = m.incarnation.0 == machine.incarnation;
                    Some((machine.index, if same { self.holder(machine, &view) } else { u32::MAX }))
                })
                .collect();
            common = Some(match common {
                Some(before) => before.into_iter().filter(|run| runs.contains(run)).collect(),
                None => runs,
            });
        }
        common.unwrap_or_default()
    }
}
