//! The ring's UDP socket: sealing, and sending to where nodes are.

use crate::seal::{OpenError, Sealer};
use crate::whereabouts::Whereabouts;
use mio::net::UdpSocket;
use sheep_totem::Destination;
use sheep_types::{Member, NodeId, Time};
use std::collections::BTreeSet;
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
    addresses: Whereabouts,
    seeds: BTreeSet<SocketAddr>,
    buffer: Vec<u8>,
    out: Vec<u8>,
    pub(crate) stats: RingSocketStats,
    /// Who last sent a datagram that the key does not open.
    pub(crate) stranger: Option<SocketAddr>,
}

impl RingSocket {
    pub(crate) fn new(socket: UdpSocket, sealer: Sealer, me: Member, addresses: Whereabouts) -> Self {
        Self {
            socket,
            sealer,
            me,
            addresses,
            seeds: BTreeSet::new(),
            buffer: vec![0; 1 << 16],
            out: Vec::with_capacity(1 << 14),
            stats: RingSocketStats::default(),
            stranger: None,
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
        self.seeds = seeds.into_iter().filter(|seed| *seed != self.addresses.own()).collect();
    }

    /// Where the cluster's log says that a node is.
    pub(crate) fn suggest(&mut self, node: NodeId, address: SocketAddr) {
        self.addresses.said(node, address);
    }

    /// Takes where another node has heard others: the contents of a datagram that begins with [`crate::whereabouts::ADDRESSES`].
    pub(crate) fn take_addresses(&mut self, packet: &[u8]) {
        self.addresses.take(packet);
    }

    /// Time has passed: tells everybody where this node has heard others, if that is due.
    pub(crate) fn tell_addresses(&mut self, now: Time) {
        self.addresses.set_now(now);
        if self.addresses.must_tell() {
            let packet = self.addresses.encode();
            self.send(Destination::Everyone, &[], &packet);
        }
    }

    /// Sends a datagram. Errors are like loss: counted, and the protocol repairs them.
    pub(crate) fn send(&mut self, to: Destination, members: &[Member], packet: &[u8]) {
        let mut targets = BTreeSet::new();
        match to {
            Destination::Node(node) => targets.extend(self.addresses.of(node)),
            Destination::Members => {
                let others = members.iter().filter(|member| member.node != self.me.node);
                targets.extend(others.flat_map(|member| self.addresses.of(member.node)));
            }
            Destination::Everyone => {
                targets.extend(self.addresses.all());
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
    pub(crate) fn receive(&mut self, now: Time, mut take: impl FnMut(Member, &[u8])) -> Option<()> {
        self.addresses.set_now(now);
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
                    self.addresses.heard(sender.node, from);
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
    use sheep_types::Incarnation;
    use std::time::Duration;

    const SILENCE: Duration = Duration::from_secs(1);

    fn socket(node: u64) -> RingSocket {
        let me = Member { node: NodeId(node), incarnation: Incarnation(1) };
        let udp = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = udp.local_addr().unwrap();
        RingSocket::new(
            udp,
            Sealer::new(ClusterKey::new([3; 32]), me),
            me,
            Whereabouts::new(me, own, SILENCE),
        )
    }

    fn place(socket: &RingSocket, node: u64) -> Vec<SocketAddr> {
        socket.addresses.of(NodeId(node)).copied().collect()
    }

    /// The next datagram, as the control thread takes it.
    fn take(socket: &mut RingSocket, now: Time) {
        for _ in 0..200 {
            let mut packet = None;
            if socket.receive(now, |_, contents| packet = Some(contents.to_vec())).is_some() {
                return socket.take_addresses(&packet.unwrap());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("nothing came");
    }

    #[test]
    fn two_nodes_that_know_the_same_third_find_each_other() {
        let (mut a, mut b, mut c) = (socket(1), socket(2), socket(3));
        let now = Time::ZERO;
        for stranger in [&mut b, &mut c] {
            // In their logs all are where they no longer are.
            (1..=3).for_each(|node| stranger.suggest(NodeId(node), "127.0.0.1:9".parse().unwrap()));
            stranger.set_seeds([a.addresses.own()]);
            stranger.send(Destination::Everyone, &[], b"?");
            take(&mut a, now);
        }
        a.tell_addresses(now);
        take(&mut b, now);
        take(&mut c, now);
        let (at_b, at_c) = (b.addresses.own(), c.addresses.own());
        assert!(place(&b, 3).contains(&at_c) && place(&c, 2).contains(&at_b));
        b.send(Destination::Node(NodeId(3)), &[], b"!");
        take(&mut c, now);
        assert_eq!(place(&c, 2), [at_b]);
    }
}
