//! The ring's UDP socket: sealing, and which address a node has.

use crate::seal::{OpenError, Sealer};
use mio::net::UdpSocket;
use sheep_totem::Destination;
use sheep_types::{Member, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

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
    /// Who last sent a datagram that the key does not open.
    pub(crate) stranger: Option<SocketAddr>,
    /// An address was learned that others may not know.
    learned: bool,
}

/// First byte of a datagram that tells addresses. (The control engine uses the numbers below.)
pub(crate) const ADDRESSES: u8 = 3;
/// Bytes of one address in it: node, IPv6 (or mapped IPv4) address, port.
const ADDRESS_LEN: usize = 8 + 16 + 2;
/// Addresses in one datagram, at most.
const ADDRESSES_MAX: usize = 256;
/// Addresses remembered from hearsay.
const KNOWN_MAX: usize = 1024;

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
            stranger: None,
            learned: false,
        }
    }

    /// Whether anybody's address is known.
    pub(crate) fn has_seeds(&self) -> bool {
        !self.seeds.is_empty()
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
        let room = self.addresses.len() < KNOWN_MAX;
        if room && node != self.me.node && !self.addresses.contains_key(&node) {
            self.addresses.insert(node, address);
            self.learned = true;
        }
    }

    /// Whether an address was learned since the last time this was asked.
    pub(crate) fn has_learned(&mut self) -> bool {
        core::mem::take(&mut self.learned)
    }

    /// Tells everybody which addresses this node knows: a node that was told of one member only must find all.
    pub(crate) fn tell_addresses(&mut self) {
        let mut packet = vec![ADDRESSES];
        let own = (!self.own.ip().is_unspecified()).then_some((&self.me.node, &self.own));
        for (node, address) in own.into_iter().chain(&self.addresses).take(ADDRESSES_MAX) {
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            packet.extend_from_slice(&node.0.to_le_bytes());
            packet.extend_from_slice(&ip.octets());
            packet.extend_from_slice(&address.port().to_le_bytes());
        }
        self.send(Destination::Everyone, &[], &packet);
    }

    /// Takes addresses that another node knows: the contents of a datagram that begins with [`ADDRESSES`].
    pub(crate) fn take_addresses(&mut self, packet: &[u8]) {
        let list = packet.get(1..).unwrap_or_default();
        for entry in list.chunks_exact(ADDRESS_LEN).take(ADDRESSES_MAX) {
            let (node, rest) = entry.split_at(8);
            let (ip, port) = rest.split_at(16);
            let node = NodeId(node.try_into().map_or(0, u64::from_le_bytes));
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(ip).unwrap_or_default()).to_canonical();
            let port = port.try_into().map_or(0, u16::from_le_bytes);
            if node != NodeId(0) && port != 0 && !ip.is_unspecified() && !ip.is_multicast() {
                self.suggest(node, SocketAddr::new(ip, port));
            }
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
                    self.learned |= self.addresses.insert(sender.node, from) != Some(from);
                    take(sender, contents);
                    return Some(());
                }
                Ok(_) => {}
                Err(OpenError::Key | OpenError::TooManySenders) => {
                    self.stats.bad_key += 1;
                    self.stranger = Some(from);
                }
                Err(OpenError::Replay | OpenError::OldIncarnation) => self.stats.replayed += 1,
                Err(OpenError::Malformed) => self.stats.malformed += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::ClusterKey;
    use proptest::prelude::*;
    use sheep_types::Incarnation;

    fn socket(node: u64) -> RingSocket {
        let me = Member { node: NodeId(node), incarnation: Incarnation(1) };
        let udp = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = udp.local_addr().unwrap();
        RingSocket::new(udp, Sealer::new(ClusterKey::new([3; 32]), me), me, own)
    }

    /// Everything that has come, as the control thread takes it.
    fn take(socket: &mut RingSocket) {
        for _ in 0..200 {
            let mut packet = None;
            if socket.receive(|_, contents| packet = Some(contents.to_vec())).is_some() {
                return socket.take_addresses(&packet.unwrap());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("nothing came");
    }

    #[test]
    fn two_nodes_that_know_the_same_third_find_each_other() {
        let (mut a, mut b, mut c) = (socket(1), socket(2), socket(3));
        for stranger in [&mut b, &mut c] {
            stranger.set_seeds([a.own]);
            stranger.tell_addresses();
            take(&mut a);
        }
        assert!(a.has_learned());
        a.tell_addresses();
        take(&mut b);
        take(&mut c);
        assert_eq!((b.addresses.get(&NodeId(3)), c.addresses.get(&NodeId(2))), (Some(&c.own), Some(&b.own)));
        b.take_addresses(&[ADDRESSES, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn any_list_of_addresses_is_bounded_and_usable(packet in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut socket = socket(1);
            for n in 0..50u8 {
                let other: Vec<u8> = packet.iter().map(|byte| byte.wrapping_add(n)).collect();
                socket.take_addresses(&other);
            }
            prop_assert!(socket.addresses.len() <= KNOWN_MAX);
            prop_assert!(socket.addresses.values().all(|address| address.port() != 0));
        }
    }
}
