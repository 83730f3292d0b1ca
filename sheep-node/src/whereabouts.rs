//! Which addresses nodes have: where they were heard from, and where others say that they are.
//!
//! What a node hears of another one, sealed by that one, is first-hand. All else is hearsay: what the cluster's log says may be
//! from before a move, and so may be what a third node has heard. A node that was not heard in this run is looked for at all
//! places where it is said to be. One that was heard is where it was heard last; after silence it is looked for elsewhere
//! too. Only what is first-hand is passed on, again and again, for datagrams get lost.

use sheep_types::{Member, NodeId, Time};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// First byte of a datagram that tells addresses. (The control engine uses the numbers below.)
pub(crate) const ADDRESSES: u8 = 3;
/// Bytes of one address in it: node, IPv6 (or mapped IPv4) address, port.
const ADDRESS_LEN: usize = 8 + 16 + 2;
/// Whereabouts in one datagram, at most.
const ADDRESSES_MAX: usize = 256;
/// Nodes known from hearsay.
const KNOWN_MAX: usize = 1024;
/// Places where one node is said to be; those that were said last.
const PLACES_MAX: usize = 4;
/// Time until addresses are told again after a new one was learned; doubled each time, up to the longest.
const TOLD_AGAIN: Duration = Duration::from_millis(500);
const TOLD_AT_LEAST: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Known {
    /// Where it was last heard from in this run, and when.
    heard: Option<(SocketAddr, Time)>,
    /// Where it is said to be since, the newest last.
    said: Vec<SocketAddr>,
}

/// The addresses that one node knows.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    me: Member,
    own: SocketAddr,
    /// Who was heard within this time is there.
    silence: Duration,
    now: Time,
    nodes: BTreeMap<NodeId, Known>,
    /// When to tell others, and how long after to do so again.
    tell: Time,
    pause: Duration,
}

impl Whereabouts {
    /// `own`: this node's. `silence`: how long one that runs is not heard at most, while somebody waits for it.
    pub(crate) fn new(me: Member, own: SocketAddr, silence: Duration) -> Self {
        let (now, tell, pause) = (Time::ZERO, Time::ZERO, TOLD_AGAIN);
        Self { me, own, silence, now, nodes: BTreeMap::new(), tell, pause }
    }

    /// This node's address.
    pub(crate) fn own(&self) -> SocketAddr {
        self.own
    }

    /// Time passes.
    pub(crate) fn set_now(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// A datagram has come that only this node can have made.
    pub(crate) fn heard(&mut self, node: NodeId, from: SocketAddr) {
        let known = self.nodes.entry(node).or_default();
        if known.heard.is_none_or(|(address, _)| address != from) {
            (self.tell, self.pause) = (self.now, TOLD_AGAIN);
        }
        known.heard = Some((from, self.now));
        known.said.clear();
    }

    /// Somebody else, or the log, says where a node is.
    pub(crate) fn said(&mut self, node: NodeId, address: SocketAddr) {
        if node == self.me.node || self.nodes.len() >= KNOWN_MAX && !self.nodes.contains_key(&node) {
            return;
        }
        let known = self.nodes.entry(node).or_default();
        if known.said.last() == Some(&address) || known.heard.is_some_and(|(heard, _)| heard == address) {
            return;
        }
        known.said.retain(|said| *said != address);
        if known.said.len() >= PLACES_MAX {
            known.said.remove(0);
        }
        known.said.push(address);
    }

    /// Where to look for a node.
    pub(crate) fn of(&self, node: NodeId) -> impl Iterator<Item = &SocketAddr> {
        self.nodes.get(&node).into_iter().flat_map(|known| self.places(known))
    }

    /// Where to look for all of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &SocketAddr> {
        self.nodes.values().flat_map(|known| self.places(known))
    }

    fn places<'a>(&self, known: &'a Known) -> impl Iterator<Item = &'a SocketAddr> + use<'a> {
        let heard_lately = known.heard.is_some_and(|(_, at)| self.now.since(at) <= self.silence);
        let said = known.said.iter().filter(move |_| !heard_lately);
        known.heard.iter().map(|(address, _)| address).chain(said)
    }

    /// Whether it is time to tell others what this node has heard.
    pub(crate) fn must_tell(&mut self) -> bool {
        let due = self.tell <= self.now && self.nodes.values().any(|known| known.heard.is_some());
        if due {
            self.tell = self.now + self.pause;
            self.pause = (self.pause * 2).min(TOLD_AT_LEAST);
        }
        due
    }

    /// The contents of a datagram that says where this node has heard others: one that was told of one member only must
    /// find all.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut packet = vec![ADDRESSES];
        let own = (!self.own.ip().is_unspecified()).then_some((self.me.node, self.own));
        let heard = self.nodes.iter().filter_map(|(node, known)| Some((*node, known.heard?.0)));
        for (node, address) in own.into_iter().chain(heard).take(ADDRESSES_MAX) {
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            packet.extend_from_slice(&node.0.to_le_bytes());
            packet.extend_from_slice(&ip.octets());
            packet.extend_from_slice(&address.port().to_le_bytes());
        }
        packet
    }

    /// Takes what another node has heard: the contents of a datagram that begins with [`ADDRESSES`].
    pub(crate) fn take(&mut self, packet: &[u8]) {
        let list = packet.get(1..).unwrap_or_default();
        for entry in list.chunks_exact(ADDRESS_LEN).take(ADDRESSES_MAX) {
            let (node, rest) = entry.split_at(8);
            let (ip, port) = rest.split_at(16);
            let node = NodeId(node.try_into().map_or(0, u64::from_le_bytes));
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(ip).unwrap_or_default()).to_canonical();
            let port = port.try_into().map_or(0, u16::from_le_bytes);
            if node != NodeId(0) && port != 0 && !ip.is_unspecified() && !ip.is_multicast() {
                self.said(node, SocketAddr::new(ip, port));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sheep_types::Incarnation;
    use std::collections::BTreeSet;

    const SILENCE: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(250);

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 7000))
    }

    fn book(node: u64, own: SocketAddr) -> Whereabouts {
        Whereabouts::new(Member { node: NodeId(node), incarnation: Incarnation(1) }, own, SILENCE)
    }

    fn of(book: &Whereabouts, node: u64) -> Vec<SocketAddr> {
        book.of(NodeId(node)).copied().collect()
    }

    #[test]
    fn hearsay_counts_for_who_was_not_heard_or_is_silent() {
        let mut book = book(1, address(1));
        // From the log, and then from somebody who knows better. Nobody can tell which is newer.
        book.said(NodeId(2), address(2));
        book.said(NodeId(2), address(12));
        assert_eq!(of(&book, 2), [address(2), address(12)]);
        book.heard(NodeId(2), address(12));
        book.said(NodeId(2), address(2));
        assert_eq!(of(&book, 2), [address(12)], "where it was heard");
        book.set_now(Time::ZERO + SILENCE + STEP);
        assert_eq!(of(&book, 2), [address(12), address(2)], "or elsewhere, since it is silent");
        book.heard(NodeId(2), address(22));
        assert_eq!(of(&book, 2), [address(22)]);
        book.set_now(Time::ZERO + SILENCE * 4);
        assert_eq!(of(&book, 2), [address(22)], "what was said before is not held against that");
        for number in 0..20 {
            book.said(NodeId(2), address(100 + number));
        }
        assert_eq!(of(&book, 2).len(), 1 + PLACES_MAX);
        assert!(of(&book, 2).contains(&address(119)), "the newest");
    }

    #[test]
    fn only_what_was_heard_is_passed_on() {
        let (mut one, mut other) = (book(1, address(1)), book(9, address(9)));
        one.said(NodeId(2), address(2));
        assert!(!one.must_tell(), "nothing to tell, and nobody");
        one.heard(NodeId(3), address(3));
        one.heard(NodeId(4), address(4));
        one.said(NodeId(4), address(44));
        assert!(one.must_tell() && !one.must_tell());
        other.take(&one.encode());
        assert_eq!(of(&other, 1), [address(1)]);
        assert_eq!(
            (of(&other, 2), of(&other, 3), of(&other, 4)),
            (vec![], vec![address(3)], vec![address(4)])
        );
        other.take(&[ADDRESSES, 1, 2, 3]);
    }

    #[test]
    fn what_is_learned_is_told_at_once_and_then_now_and_again() {
        let mut book = book(1, address(1));
        book.heard(NodeId(2), address(2));
        let mut told = 0;
        for step in 1..=4 * 600 {
            book.set_now(Time::ZERO + STEP * step);
            told += u32::from(book.must_tell());
            book.heard(NodeId(2), address(2));
        }
        assert!((10..25).contains(&told), "{told} times in ten minutes");
        book.heard(NodeId(2), address(3));
        assert!(book.must_tell());
    }

    /// Nodes with their addresses. Each looks for all others and tells what it has heard, over a network that loses datagrams.
    struct Net {
        books: Vec<Whereabouts>,
        cut: BTreeSet<(usize, usize)>,
        random: u64,
        now: Time,
    }

    impl Net {
        fn new(nodes: u8, seed: u64) -> Self {
            let books: Vec<Whereabouts> = (0..nodes).map(|n| book(u64::from(n) + 1, address(n))).collect();
            let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            Self { books, cut: BTreeSet::new(), random, now: Time::ZERO }
        }

        fn chance(&mut self, percent: u64) -> bool {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random >> 11) % 100 < percent
        }

        /// A node starts again at another place; it knows what the log says, which is where all were at first.
        fn move_to(&mut self, node: usize, to: SocketAddr) {
            let mut moved = book(node as u64 + 1, to);
            moved.set_now(self.now);
            for other in 0..self.books.len() {
                moved.said(NodeId(other as u64 + 1), address(other as u8));
            }
            self.books[node] = moved;
        }

        fn run(&mut self, steps: u32) {
            for _ in 0..steps {
                self.now = self.now + STEP;
                for from in 0..self.books.len() {
                    self.books[from].set_now(self.now);
                    let tells = self.books[from].must_tell().then(|| self.books[from].encode());
                    let targets: BTreeSet<SocketAddr> = self.books[from].all().copied().collect();
                    for target in targets {
                        self.send(from, target, None);
                        self.send(from, target, tells.as_deref());
                    }
                }
            }
        }

        fn send(&mut self, from: usize, to: SocketAddr, packet: Option<&[u8]>) {
            let lost = self.chance(30);
            let Some(to) = self.books.iter().position(|book| book.own == to) else { return };
            if lost || from == to || self.cut.contains(&(from.min(to), from.max(to))) {
                return;
            }
            let own = self.books[from].own;
            self.books[to].heard(NodeId(from as u64 + 1), own);
            self.books[to].take(packet.unwrap_or(&[ADDRESSES]));
        }

        /// Pairs that do not know where the other one is.
        fn strangers(&self) -> Vec<(usize, usize)> {
            let all = 0..self.books.len();
            let pairs = all.clone().flat_map(|one| all.clone().map(move |other| (one, other)));
            let knows = |one: usize, other: usize| {
                self.books[one].of(NodeId(other as u64 + 1)).any(|place| *place == self.books[other].own)
            };
            let cut = |one: usize, other: usize| self.cut.contains(&(one.min(other), one.max(other)));
            pairs.filter(|(one, other)| one != other && !cut(*one, *other) && !knows(*one, *other)).collect()
        }
    }

    /// Two of four have moved; who has not passes on where they are. The fourth hears nothing of one of them, and says that it
    /// is where it was.
    #[test]
    fn nodes_that_have_moved_find_each_other_by_one_that_has_not() {
        for seed in 0..200 {
            let mut net = Net::new(4, seed);
            for node in 0..4 {
                net.move_to(node, address(node as u8));
            }
            net.run(20);
            assert!(net.strangers().is_empty(), "seed {seed}: {:?}", net.strangers());
            net.cut.insert((0, 3));
            let together = seed % 2 == 0;
            net.move_to(0, address(100));
            net.run(if together { 0 } else { 40 });
            net.move_to(1, address(101));
            net.run(40);
            assert!(net.strangers().is_empty(), "seed {seed}: {:?}", net.strangers());
        }
    }

    proptest! {
        #[test]
        fn any_list_of_addresses_is_bounded_and_usable(packet in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut book = book(1, address(1));
            for n in 0..50u8 {
                let other: Vec<u8> = packet.iter().map(|byte| byte.wrapping_add(n)).collect();
                book.take(&other);
            }
            prop_assert!(book.nodes.len() <= KNOWN_MAX && book.nodes.values().all(|known| known.said.len() <= PLACES_MAX));
            prop_assert!(book.all().all(|address| address.port() != 0));
        }
    }
}
