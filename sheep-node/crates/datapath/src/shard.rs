//! One data shard: a replica and a gateway on one thread. What they send to the own node does not leave it.

use crate::{Finding, Gateway, GatewayOutput, Replica, ReplicaOutput, ScrubOrder, SweepStatus, View};
use sheep_state::{Command, Outcome, Refusal as OrderRefusal};
use sheep_store::{DiskOp, DiskOpId, DiskResult, StoreError};
use sheep_types::{Member, Time};
use sheep_wire::{Header, Message, Packet};
use std::collections::VecDeque;
use std::sync::Arc;

/// An effect of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardOutput {
    /// Send this to another node.
    Send(Packet),
    /// Do this on the disk and give the result to [`Shard::handle_disk`].
    Disk(DiskOp),
    /// Order a command for the replica; nobody waits for its result.
    Order(Command),
    /// Something of the gateway that is no packet.
    Gateway(GatewayOutput),
    /// A disk of the replica, not the last one, has failed or was taken away: it is not used any more.
    DiskFailed {
        /// Its slot.
        slot: u8,
        /// Why.
        error: StoreError,
    },
    /// No disk works any more: the node's incarnation ends. Said once.
    StoreFailed,
}

/// A shard. A node without a store has no replica.
///
/// After each call, and after each direct use of [`Shard::gateway`], poll [`Shard::poll_output`] until it is empty.
#[derive(Debug)]
pub struct Shard {
    me: Member,
    replica: Option<Replica>,
    gateway: Gateway,
    /// Packets to the own node.
    own: VecDeque<Packet>,
}

impl Shard {
    /// Puts a shard together.
    pub fn new(me: Member, replica: Option<Replica>, gateway: Gateway) -> Self {
        Self { me, replica, gateway, own: VecDeque::new() }
    }

    /// The gateway, to open volumes and submit operations. Poll the outputs afterwards.
    pub fn gateway(&mut self) -> &mut Gateway {
        &mut self.gateway
    }

    /// Contents that came damaged to the gateway, and were asked for again.
    pub fn garbled(&self) -> u64 {
        self.gateway.garbled()
    }

    /// What sweeps of this node have done.
    pub fn sweep_status(&self) -> SweepStatus {
        self.gateway.sweep_status()
    }

    /// What the gateway is doing with each of its volumes, in words, for diagnosis.
    pub fn gateway_status(&self) -> Vec<String> {
        self.gateway.describe()
    }

    /// The replica, to look at.
    pub fn replica(&self) -> Option<&Replica> {
        self.replica.as_ref()
    }

    /// An order to the scrub of the own copies.
    pub fn order_scrub(&mut self, now: Time, order: ScrubOrder) {
        if let Some(replica) = &mut self.replica {
            replica.order_scrub(now, order);
        }
    }

    /// What the replica has found since the last time.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        self.replica.as_mut().map(Replica::take_findings).unwrap_or_default()
    }

    /// The replica, to add and take away disks. Poll the outputs afterwards.
    pub fn replica_mut(&mut self) -> Option<&mut Replica> {
        self.replica.as_mut()
    }

    /// A newer picture of the cluster. The replica sees it first: what the gateway then sends is answered.
    pub fn handle_view(&mut self, now: Time, view: Arc<View>) {
        if let Some(replica) = &mut self.replica {
            replica.handle_view(now, Arc::clone(&view));
        }
        self.gateway.handle_view(now, view);
    }

    /// The lease now ends at `deadline`.
    pub fn handle_lease(&mut self, now: Time, deadline: Time) {
        self.gateway.handle_lease(now, deadline);
    }

    /// A packet from another node.
    pub fn handle_packet(&mut self, now: Time, header: Header, message: Message) {
        match message {
            // Replies go to whoever asked: the gateway's numbers are even, the replica's odd.
            Message::Reply(reply) if header.request.is_multiple_of(2) => {
                self.gateway.handle_reply(now, header, reply);
            }
            Message::Reply(reply) => {
                if let Some(replica) = &mut self.replica {
                    replica.handle_reply(now, header, reply);
                }
            }
            Message::Request(request) => {
                if let Some(replica) = &mut self.replica {
                    replica.handle_request(now, header, request);
                }
            }
        }
    }

    /// Result of a disk operation.
    pub fn handle_disk(&mut self, now: Time, id: DiskOpId, result: DiskResult) {
        if let Some(replica) = &mut self.replica {
            replica.handle_disk(now, id, result);
        }
    }

    /// A command that the gateway proposed will have no result.
    pub fn handle_unanswered(&mut self, now: Time, token: u64) {
        self.gateway.handle_unanswered(now, token);
    }

    /// Result of a command that the gateway proposed.
    pub fn handle_proposed(&mut self, now: Time, token: u64, result: Result<Outcome, OrderRefusal>) {
        self.gateway.handle_proposed(now, token, result);
    }

    /// Time has come to what [`Shard::poll_timeout`] said.
    pub fn handle_timeout(&mut self, now: Time) {
        if let Some(replica) = &mut self.replica {
            replica.handle_timeout(now);
        }
        self.gateway.handle_timeout(now);
    }

    /// When to call [`Shard::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Time> {
        let replica = self.replica.as_ref().and_then(Replica::poll_timeout);
        replica.into_iter().chain(self.gateway.poll_timeout()).min()
    }

    /// Next effect, if any. Packets to the own node are delivered on the way.
    pub fn poll_output(&mut self, now: Time) -> Option<ShardOutput> {
        loop {
            if let Some(output) = self.next_output() {
                match output {
                    ShardOutput::Send(packet) if packet.to == self.me.node => self.own.push_back(packet),
                    output => return Some(output),
                }
            } else {
                let packet = self.own.pop_front()?;
                self.handle_packet(now, packet.header, packet.message);
            }
        }
    }

    fn next_output(&mut self) -> Option<ShardOutput> {
        if let Some(output) = self.replica.as_mut().and_then(Replica::poll_output) {
            return Some(match output {
                ReplicaOutput::Send(packet) => ShardOutput::Send(packet),
                ReplicaOutput::Disk(operation) => ShardOutput::Disk(operation),
                ReplicaOutput::Propose(command) => ShardOutput::Order(command),
                ReplicaOutput::DiskFailed { slot, error } => ShardOutput::DiskFailed { slot, error },
                ReplicaOutput::StoreFailed => ShardOutput::StoreFailed,
            });
        }
        Some(match self.gateway.poll_output()? {
            GatewayOutput::Send(packet) => ShardOutput::Send(packet),
            output => ShardOutput::Gateway(output),
        })
    }
}
