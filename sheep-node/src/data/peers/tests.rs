use super::*;
use mio::{Events, Poll};
use sheep_tls::Role;
use sheep_tls::authority::Authority;
use sheep_types::*;
use sheep_wire::{Body, Confirmed, Request, WriteRequest};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

const LISTENER: Token = Token(1);
const DAY: Duration = Duration::from_secs(86_400);

/// A node's connections with a poll of their own.
struct Side {
    peers: Peers,
    poll: Poll,
    address: SocketAddr,
    got: Vec<Message>,
    small: bool,
}

fn member(node: u64) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(1) }
}

impl Side {
    fn new(node: u64, certificates: Option<Arc<Certificates>>, encrypt: bool) -> Self {
        let poll = Poll::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let key = ClusterKey::new([7; 32]);
        let pool = BufferPool::new(1 << 20);
        let peers =
            Peers::new(member(node), &key, (certificates, encrypt), registry, listener, LISTENER, pool)
                .unwrap();
        Self { peers, poll, address, got: Vec::new(), small: false }
    }

    fn turn(&mut self, now: Time) {
        let mut events = Events::with_capacity(16);
        self.poll.poll(&mut events, Some(Duration::from_millis(1))).unwrap();
        for event in &events {
            if event.token() == LISTENER {
                self.peers.accept(now);
            } else {
                let got = &mut self.got;
                self.peers
                    .receive(now, event.token(), event.is_read_closed(), |_, message| got.push(message));
            }
        }
        if self.small {
            for connection in self.peers.connections.values() {
                let socket = socket2::SockRef::from(&connection.stream);
                socket.set_send_buffer_size(32 << 10).unwrap();
                socket.set_recv_buffer_size(64 << 10).unwrap();
            }
        }
        self.peers.flush(now);
        self.peers.tick(now);
    }

    fn send(&mut self, now: Time, to: u64, message: &Message) {
        let header = Header {
            request: 1,
            cluster: ClusterId(1),
            from: self.peers.me,
            to: Incarnation(1),
            shard: 0,
            epoch: Epoch(1),
            relies_on: LogIndex(1),
            generation: Generation(1),
        };
        self.peers.send(now, &Packet { to: NodeId(to), header, message: message.clone() });
    }
}

fn message(bytes: usize, fill: u8) -> Message {
    let payload: Vec<u8> = vec![fill; bytes];
    Message::Request(Request::Write(WriteRequest {
        object: ObjectId(1),
        birth: Birth(1),
        previous: None,
        version: Version::default(),
        create: false,
        base: None,
        offset: 0,
        body: Body::Data { crcs: vec![0; bytes / 4096].into(), payload: payload.into() },
        durable: false,
        confirmed: Confirmed::default(),
    }))
}

struct Pair {
    one: Side,
    other: Side,
    started: Instant,
}

impl Pair {
    fn new(one: Side, other: Side) -> Self {
        let mut pair = Self { one, other, started: Instant::now() };
        let (one, other) = (pair.one.address, pair.other.address);
        pair.meet(one, other);
        pair
    }

    fn meet(&mut self, one: SocketAddr, other: SocketAddr) {
        let addresses = [(NodeId(1), one), (NodeId(2), other)];
        self.one.peers.set_cluster(ClusterId(1), addresses.into_iter());
        self.other.peers.set_cluster(ClusterId(1), addresses.into_iter());
    }

    fn now(&self) -> Time {
        Time::ZERO + (Duration::from_secs(1) + self.started.elapsed())
    }

    /// Has both work until it is so; `false`: that takes too long.
    fn until(&mut self, so: impl Fn(&Self) -> bool) -> bool {
        let limit = Instant::now() + Duration::from_secs(20);
        while Instant::now() < limit {
            let now = self.now();
            self.one.turn(now);
            self.other.turn(now);
            if so(self) {
                return true;
            }
        }
        false
    }

    /// Sends a message each way, and whether they arrive.
    fn talk(&mut self) -> bool {
        let now = self.now();
        self.one.send(now, 2, &message(8192, 1));
        self.other.send(now, 1, &message(4096, 2));
        self.until(|pair| pair.other.got == [message(8192, 1)] && pair.one.got == [message(4096, 2)])
    }

    /// Sends until both, or those that are meant, have refused something.
    fn refused(&mut self, so: impl Fn(&Self) -> bool) -> bool {
        let limit = Instant::now() + Duration::from_secs(10);
        while Instant::now() < limit {
            let now = self.now();
            self.one.send(now, 2, &message(4096, 1));
            self.one.turn(now);
            self.other.turn(now);
            if so(self) {
                assert!(self.other.got.is_empty(), "nothing passes before both have agreed");
                return true;
            }
        }
        false
    }
}

fn authority() -> Authority {
    Authority::make("test", 10 * DAY).unwrap()
}

fn node_of(authority: &Authority) -> Option<Arc<Certificates>> {
    Some(Arc::new(Certificates::fixed(authority.issue(Role::Node, DAY).unwrap(), Role::Node).unwrap()))
}

#[test]
fn connections_are_encrypted_if_one_wants_it() {
    let ca = authority();
    for (one, other, encrypted) in [(false, false, 0), (true, false, 2), (false, true, 2), (true, true, 2)] {
        let mut pair = Pair::new(Side::new(1, node_of(&ca), one), Side::new(2, node_of(&ca), other));
        assert!(pair.talk(), "{one} {other}");
        let counted = (pair.one.peers.encrypted(), pair.other.peers.encrypted());
        assert_eq!(counted, (encrypted, encrypted), "{one} {other}");
        assert_eq!((pair.one.peers.refused, pair.other.peers.damaged), (0, 0));
    }
    let mut pair = Pair::new(Side::new(1, None, false), Side::new(2, None, false));
    assert!(pair.talk() && pair.one.peers.encrypted() == 0, "without certificates as ever");
}

#[test]
fn a_node_that_cannot_encrypt_is_refused_by_one_that_wants_it() {
    let ca = authority();
    let mut pair = Pair::new(Side::new(1, node_of(&ca), true), Side::new(2, None, false));
    assert!(pair.refused(|pair| pair.one.peers.refused > 0));
    let mut pair = Pair::new(Side::new(1, None, false), Side::new(2, node_of(&ca), true));
    assert!(pair.refused(|pair| pair.one.peers.refused > 0));
    assert_eq!((pair.one.peers.encrypted(), pair.other.peers.encrypted()), (0, 0));
}

#[test]
fn certificates_of_another_ca_or_role_and_those_of_the_past_are_refused() {
    let (ca, foreign) = (authority(), authority());
    let client = ca.issue(Role::Client, DAY).unwrap();
    let client = Some(Arc::new(Certificates::fixed(client, Role::Client).unwrap()));
    let now = SystemTime::now();
    let short = ca.issue_for(Role::Node, now - DAY..now + Duration::from_secs(2)).unwrap();
    let short = Some(Arc::new(Certificates::fixed(short, Role::Node).unwrap()));
    std::thread::sleep(Duration::from_secs(3));
    for (wrong, what) in [(node_of(&foreign), "foreign"), (client, "client"), (short, "expired")] {
        let mut pair = Pair::new(Side::new(1, wrong.clone(), true), Side::new(2, node_of(&ca), true));
        assert!(pair.refused(|pair| pair.one.peers.refused + pair.other.peers.refused > 1), "{what} calls");
        let mut pair = Pair::new(Side::new(1, node_of(&ca), true), Side::new(2, wrong, true));
        assert!(pair.refused(|pair| pair.one.peers.refused > 1), "{what} is called");
        let tries = pair.one.peers.refused;
        pair.started -= Duration::from_millis(100);
        assert!(pair.refused(|pair| pair.one.peers.refused > tries), "it is tried again, with pauses");
    }
}

#[test]
fn large_messages_pass_both_ways_at_once_through_small_sockets() {
    let ca = authority();
    for encrypt in [false, true] {
        let side = |node| Side { small: true, ..Side::new(node, node_of(&ca), encrypt) };
        let mut pair = Pair::new(side(1), side(2));
        let now = pair.now();
        for fill in 0..8 {
            pair.one.send(now, 2, &message(4 << 20, fill));
            pair.other.send(now, 1, &message(4 << 20, fill + 100));
        }
        let done = pair.until(|pair| pair.one.got.len() == 8 && pair.other.got.len() == 8);
        assert!(done, "encrypted {encrypt}: {} and {}", pair.one.got.len(), pair.other.got.len());
        for fill in 0..8 {
            let at = usize::from(fill);
            assert!(pair.other.got[at] == message(4 << 20, fill));
            assert!(pair.one.got[at] == message(4 << 20, fill + 100));
        }
    }
}

/// What stands between two nodes: hears everything, and changes the byte at `spoil` of what the caller sends.
fn between(to: SocketAddr, spoil: Option<usize>) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&heard);
    let pass = |mut from: std::net::TcpStream,
                mut to: std::net::TcpStream,
                heard: Arc<Mutex<Vec<u8>>>,
                spoil: Option<usize>| {
        std::thread::spawn(move || {
            let (mut buffer, mut passed) = (vec![0; 64 << 10], 0);
            while let Ok(n) =
                from.read(&mut buffer).map_err(drop).and_then(|n| if n > 0 { Ok(n) } else { Err(()) })
            {
                if let Some(byte) =
                    spoil.and_then(|at| at.checked_sub(passed)).and_then(|at| buffer[..n].get_mut(at))
                {
                    *byte ^= 1;
                }
                passed += n;
                heard.lock().unwrap().extend_from_slice(&buffer[..n]);
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        });
    };
    std::thread::spawn(move || {
        while let Ok((caller, _)) = listener.accept() {
            let Ok(called) = std::net::TcpStream::connect(to) else { return };
            pass(caller.try_clone().unwrap(), called.try_clone().unwrap(), Arc::clone(&shared), spoil);
            pass(called, caller, Arc::clone(&shared), None);
        }
    });
    (address, heard)
}

#[test]
fn who_listens_between_two_nodes_reads_nothing() {
    let ca = authority();
    for (encrypt, readable) in [(false, true), (true, false)] {
        let mut pair = Pair::new(Side::new(1, node_of(&ca), encrypt), Side::new(2, node_of(&ca), encrypt));
        let (listener, heard) = between(pair.other.address, None);
        let own = pair.one.address;
        pair.meet(own, listener);
        let now = pair.now();
        pair.one.send(now, 2, &message(8192, 0xA7));
        assert!(pair.until(|pair| pair.other.got == [message(8192, 0xA7)]));
        let heard = heard.lock().unwrap();
        assert!(heard.len() > 8192);
        assert_eq!(heard.windows(16).any(|bytes| bytes == [0xA7; 16]), readable, "encrypted: {encrypt}");
    }
}

#[test]
fn what_is_changed_on_its_way_closes_the_connection_and_is_counted() {
    let ca = authority();
    let mut pair = Pair::new(Side::new(1, node_of(&ca), true), Side::new(2, node_of(&ca), true));
    let (listener, _) = between(pair.other.address, Some(20_000));
    let own = pair.one.address;
    pair.meet(own, listener);
    let now = pair.now();
    pair.one.send(now, 2, &message(4096, 1));
    assert!(pair.until(|pair| pair.other.got == [message(4096, 1)]));
    let now = pair.now();
    pair.one.send(now, 2, &message(64 << 10, 2));
    assert!(pair.until(|pair| pair.other.peers.damaged == 1));
    assert_eq!(pair.other.got, [message(4096, 1)]);
    assert!(pair.until(|pair| pair.one.peers.encrypted() == 0), "both have closed it");
    let now = pair.now();
    pair.one.send(now + DAY, 2, &message(4096, 3));
    assert!(pair.until(|pair| pair.other.got.len() == 2), "and a new one works");
}
