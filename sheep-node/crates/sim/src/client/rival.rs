//! Gateways that are given up but not stopped.
//!
//! Somebody takes a node for dead that is not: the client opens its volume elsewhere, and the old gateway is used
//! on as if nothing had happened. From the moment the volume is open elsewhere nothing may succeed there any more:
//! that is what the lock, the lease and the fences are for.

use super::{Client, Pending, Place, bytes_of, contents};
use crate::world::World;
use sheep_datapath::{GatewayOutput, VolumeOp};
use sheep_state::Command;
use sheep_types::VdiId;
use std::collections::BTreeMap;

/// Turns of a client after which it does not wait for its old gateway to be taken for dead.
const PATIENCE: u32 = 200;

/// A gateway that was given up.
pub(super) struct Rival {
    node: usize,
    handle: u64,
    /// The client's openings before it was given up.
    session: u64,
    pending: BTreeMap<u64, Pending>,
    turns: u32,
    closing: bool,
}

impl Client {
    /// Whether a gateway that was given up still has the volume there.
    pub(super) fn has_rival(&self, node: usize) -> bool {
        self.rivals.iter().any(|rival| rival.node == node)
    }

    /// The process is gone, and its gateway with it.
    pub(super) fn lose_rivals(&mut self, node: usize) -> Vec<u64> {
        let (gone, rest) =
            core::mem::take(&mut self.rivals).into_iter().partition(|rival| rival.node == node);
        self.rivals = rest;
        let gone: Vec<Rival> = gone;
        let current = |rival: &Rival| rival.session == self.sessions;
        let open = gone.iter().filter(|rival| current(rival)).flat_map(|rival| rival.pending.values());
        open.filter_map(|pending| match pending {
            Pending::Write(tag, ..) => Some(*tag),
            Pending::Read(_) | Pending::Flush(_) | Pending::Snapshot(_) | Pending::Diff(_) => None,
        })
        .collect()
    }
}

impl World {
    /// Whether something keeps this node from being a good member: nobody can be sure that it is dead.
    fn is_suspect(&self, node: usize) -> bool {
        let cut = |other| !self.net.carries(node, other) || !self.net.carries(other, node);
        self.nodes[node].paused_until > self.now + 100_000_000 || (0..self.nodes.len()).any(cut)
    }

    /// Now and then gives a gateway up; gives whether that happened now.
    pub(super) fn gives_up(&mut self, number: usize, node: usize) -> bool {
        if !self.options.rivals || self.options.faults.is_empty() || self.clients[number].rivals.len() >= 2 {
            return false;
        }
        let revoke = self.rng.chance(2_000);
        let doubt = self.is_suspect(node) && self.rng.chance(100_000);
        if !revoke && !doubt {
            return false;
        }
        self.trace.say(self.now, &format!("client {number} gives its gateway at node {node} up"));
        if let (true, Some(vdi)) = (revoke, self.clients[number].vdi) {
            self.revoke(vdi);
        }
        let handle = self.handle(number);
        let client = &mut self.clients[number];
        let pending = core::mem::take(&mut client.pending);
        let session = client.sessions;
        client.rivals.push(Rival { node, handle, session, pending, turns: 0, closing: false });
        client.place = Place::Away;
        client.clean = false;
        client.handle += 1;
        true
    }

    /// An operator ends the lock, through any node.
    fn revoke(&mut self, vdi: VdiId) {
        let at = self.rng.index(self.nodes.len());
        let view = self.nodes[at].running.as_ref().and_then(|running| running.view.clone());
        let lock = view.and_then(|view| view.state.vdi(vdi).and_then(|record| record.lock));
        if let Some(lock) = lock {
            self.order(at, &Command::Revoke { vdi, generation: lock.generation });
        }
    }

    /// Orders something at any node: what the log is for.
    pub(super) fn orders(&mut self, number: usize) {
        let Some(vdi) = self.clients[number].vdi else { return };
        if self.options.commands && !self.options.faults.is_empty() && self.rng.chance(300_000) {
            let node = self.rng.index(self.nodes.len());
            let value = Some(self.now.to_string());
            self.order(node, &Command::SetAttribute { vdi, key: format!("node{node}"), value });
        }
    }

    /// Uses the gateways that were given up.
    pub(super) fn use_rivals(&mut self, number: usize) {
        for at in 0..self.clients[number].rivals.len() {
            let rival = &mut self.clients[number].rivals[at];
            rival.turns += 1;
            let (node, handle) = (rival.node, rival.handle);
            if rival.closing || self.nodes[node].paused_until > self.now {
                continue;
            }
            if rival.turns > PATIENCE || self.options.faults.is_empty() {
                rival.closing = true;
                let now = self.nodes[node].clock(self.now);
                self.with_shard(node, |shard| shard.gateway().close(now, handle));
                return;
            }
            if rival.pending.len() < 16 && self.rng.chance(300_000) {
                self.use_rival(number, at);
            }
        }
    }

    fn use_rival(&mut self, number: usize, at: usize) {
        let sectors = self.some_sectors(number, 16);
        let write = self.rng.chance(400_000);
        let (offset, len) = bytes_of(&sectors);
        let current = self.clients[number].rivals[at].session == self.clients[number].sessions;
        let (pending, op) = if write {
            if self.oracle(number).is_busy(&sectors) {
                return;
            }
            // Once the volume is open elsewhere, nothing of this may ever be seen.
            let tag = if current {
                self.oracle(number).begin_write(sectors.clone(), false, false)
            } else {
                self.oracle(number).forbidden_write()
            };
            let data = contents(tag, sectors.len());
            (Pending::Write(tag, sectors, false), VolumeOp::Write { offset, data, fua: false })
        } else {
            (
                Pending::Read(self.oracle(number).begin_read(sectors)),
                VolumeOp::Read { offset, len: len as u32 },
            )
        };
        self.counts.ios += 1;
        let io = self.counts.ios * 64 + number as u64;
        let rival = &mut self.clients[number].rivals[at];
        rival.pending.insert(io, pending);
        let (node, handle) = (rival.node, rival.handle);
        let now = self.nodes[node].clock(self.now);
        self.with_shard(node, |shard| shard.gateway().submit(now, handle, io, op));
    }

    /// Takes what a gateway says that was given up; gives back what another one said.
    pub(super) fn rival_output(&mut self, node: usize, output: GatewayOutput) -> Option<GatewayOutput> {
        let handle = match &output {
            GatewayOutput::Done { handle, .. } | GatewayOutput::Lost { handle, .. } => *handle,
            GatewayOutput::Closed { handle } => *handle,
            _ => return Some(output),
        };
        let number = (handle % 64) as usize;
        let found = self.clients.get(number).and_then(|client| {
            client.rivals.iter().position(|rival| rival.handle == handle && rival.node == node)
        });
        let Some(at) = found else { return Some(output) };
        match output {
            GatewayOutput::Done { io, result, .. } => {
                let sessions = self.clients[number].sessions;
                let rival = &mut self.clients[number].rivals[at];
                let over = rival.session != sessions;
                let pending = rival.pending.remove(&io)?;
                match (over, result) {
                    (true, Ok(_)) => self.violate(format!(
                        "the gateway of client {number} at node {node} serves after the volume was opened elsewhere"
                    )),
                    (true, Err(_)) => {}
                    (false, Ok(reply)) => self.succeeded(number, node, pending, reply),
                    (false, Err(_)) => self.failed(number, pending),
                }
            }
            GatewayOutput::Lost { .. } => self.clients[number].rivals[at].turns = PATIENCE,
            _ => {
                self.clients[number].rivals.remove(at);
            }
        }
        None
    }
}
