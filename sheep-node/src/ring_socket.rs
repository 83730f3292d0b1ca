//! The ring's UDP socket: sealing, and which address a node has.

use crate::seal::{OpenError, Sealer};
use mio::net::UdpSocket;
use sheep_totem::Destination;
use sheep_types::{Member, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

/// Counters for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RingSocketStats {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) send_errors: u64,
    pub(crate) bad_key: u64,
    pub(crate) replayed: u64,
    pub(crate) malformed: u64,
}

/// Seals and sends, receives and opens.
pub(crate) struct RingSocket {
    socket: UdpSocket,
    sealer: Sealer,
    me: Member,
    own: SocketAddr,
    /// Where a node was last heard from, or is said to be.
    addresses: BTreeMap<NodeId, SocketAddr>,
    seeds: BTreeSet<SocketAddr>,
    buffer: Vec<u8>,
    out: Vec<u8>,
    pub(crate) stats: RingSocketStats,
}

impl RingSocket {
    pub(crate) fn new(socket: UdpSocket, sealer: Sealer, me: Member, own: SocketAddr) -> Self {
        Self {
            socket,
            sealer,
            me,
            own,
            addresses: BTreeMap::new(),
            seeds: BTreeSet::new(),
            buffer: vec![0; 1 << 16],
            out: Vec::with_capacity(1 << 14),
            stats: RingSocketStats::default(),
        }
    }

    pub(crate) fn socket(&mut self) -> &mut UdpSocket {
        &mut self.socket
    }

    /// Where joins and probes go besides known nodes.
    pub(crate) fn set_seeds(&mut self, seeds: impl IntoIterator<Item = SocketAddr>) {
        self.seeds = seeds.into_iter().filter(|seed| *seed != self.own).collect();
    }

    /// What the cluster says about a node's address; what is heard from the node itself weighs more.
    pub(crate) fn suggest(&mut self, node: NodeId, address: SocketAddr) {
        if node != self.me.node {
            self.addresses.entry(node).or_insert(address);
        }
    }

    /// Sends a datagram. Errors are like loss: counted, and the protocol repairs them.
    pub(crate) fn send(&mut self, to: Destination, members: &[Member], packet: &[u8]) {
        let mut targets = BTreeSet::new();
        match to {
            Destination::Node(node) => targets.extend(self.addresses.get(&node)),
            Destination::Members => targets.extend(
                members.iter().filter(|m| m.node != self.me.node).filter_map(|m| self.addresses.get(&m.node)),
            ),
            Destination::Everyone => {
                targets.extend(self.addresses.values());
                targets.extend(&self.seeds);
            }
        }
        for address in targets {
            // Each datagram has a counter of its own, so each is sealed by itself.
            self.sealer.seal(packet, &mut self.out);
            match self.socket.send_to(&self.out, address) {
                Ok(_) => self.stats.sent += 1,
                Err(_) => self.stats.send_errors += 1,
            }
        }
    }

    /// Receives one datagram that this cluster's key opens, and hands it on. `None`: nothing more has come.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(Member, &[u8])) -> Option<()> {
        loop {
            let (len, from) = match self.socket.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // ICMP errors of earlier sends come out here.
                Err(_) => continue,
            };
            self.stats.received += 1;
            match self.sealer.open(self.buffer.get_mut(..len).unwrap_or_default()) {
                Ok((sender, contents)) if sender.node != self.me.node => {
                    self.addresses.insert(sender.node, from);
                    take(sender, contents);
                    return Some(());
                }
                Ok(_) => {}
                Err(OpenError::Key | OpenError::TooManySenders) => self.stats.bad_key += 1,
                Err(OpenError::Replay | OpenError::OldIncarnation) => self.stats.replayed += 1,
                Err(OpenError::Malformed) => self.stats.malformed += 1,
            }
        }
    }
}
