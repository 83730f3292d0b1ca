//! Connections to other nodes: requests go out on ours, replies go back on theirs.

use super::framing::{Receiver, SendQueue, StreamError};
use super::handshake::{HELLO, HandshakeError, Hello, PROOF, Prover, Side};
use crate::seal::ClusterKey;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use sheep_frontend::BufferPool;
use sheep_types::{ClusterId, Member, NodeId, Time};
use sheep_wire::{Encoder, Header, Message, Packet};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tracing::{debug, warn};

/// Bytes that wait for one connection at most; more are dropped like lost packets, and asked for again.
const QUEUE_LIMIT: usize = 128 << 20;
/// A handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not shown the key yet, at most.
const STRANGERS: usize = 128;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// How far a connection is.
enum Phase {
    /// We called and wait for the server's hello and proof.
    Calling { hello: [u8; HELLO] },
    /// We were called and wait for the client's hello.
    Called,
    /// We were called and wait for the client's proof.
    Proving { client: [u8; HELLO], server: [u8; HELLO], peer: Member },
    /// Messages flow.
    Ready,
}

struct Connection {
    stream: TcpStream,
    phase: Phase,
    /// Who is at the other end: shown, or for our own calls, expected.
    peer: Option<NodeId>,
    outgoing: bool,
    receiver: Receiver,
    queue: SendQueue,
    /// Messages that wait for the end of the handshake.
    waiting: SendQueue,
    opened: Time,
}

/// When a node that could not be reached is called again.
struct Retry {
    at: Time,
    wait: Duration,
}

/// All data connections of this node.
pub(super) struct Peers {
    me: Member,
    cluster: ClusterId,
    prover: Prover,
    registry: Registry,
    listener: TcpListener,
    listener_token: Token,
    connections: BTreeMap<Token, Connection>,
    next_token: usize,
    callers: BTreeMap<NodeId, Token>,
    called: BTreeMap<NodeId, Token>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    retries: BTreeMap<NodeId, Retry>,
    pool: BufferPool,
    encoder: Encoder,
    /// Counters for metrics.
    pub(super) refused: u64,
    pub(super) damaged: u64,
    pub(super) dropped: u64,
}

impl Peers {
    pub(super) fn new(
        me: Member,
        key: &ClusterKey,
        registry: Registry,
        mut listener: TcpListener,
        listener_token: Token,
        pool: BufferPool,
    ) -> io::Result<Self> {
        registry.register(&mut listener, listener_token, Interest::READABLE)?;
        Ok(Self {
            me,
            cluster: ClusterId(0),
            prover: Prover::new(key),
            registry,
            listener,
            listener_token,
            connections: BTreeMap::new(),
            next_token: 0,
            callers: BTreeMap::new(),
            called: BTreeMap::new(),
            addresses: BTreeMap::new(),
            retries: BTreeMap::new(),
            pool,
            encoder: Encoder::default(),
            refused: 0,
            damaged: 0,
            dropped: 0,
        })
    }

    /// The cluster and where its nodes are.
    pub(super) fn set_cluster(
        &mut self,
        cluster: ClusterId,
        addresses: impl Iterator<Item = (NodeId, SocketAddr)>,
    ) {
        self.cluster = cluster;
        for (node, address) in addresses {
            if self.addresses.insert(node, address) != Some(address) {
                // What we called there may be somebody else.
                if let Some(token) = self.callers.remove(&node) {
                    self.close(token, None);
                }
                self.retries.remove(&node);
            }
        }
    }

    /// Queues a packet. It may be lost with its connection.
    pub(super) fn send(&mut self, now: Time, packet: &Packet) {
        let token = match packet.message {
            Message::Request(_) => self.caller(now, packet.to),
            Message::Reply(_) => self.called.get(&packet.to).copied(),
        };
        let connection = token.and_then(|token| self.connections.get_mut(&token));
        let Some(connection) = connection.filter(|c| c.queue.bytes() + c.waiting.bytes() < QUEUE_LIMIT)
        else {
            self.dropped += 1;
            return;
        };
        let frame = self.encoder.encode(&packet.header, &packet.message);
        let ready = matches!(connection.phase, Phase::Ready);
        let queue = if ready { &mut connection.queue } else { &mut connection.waiting };
        queue.push(frame.head);
        frame.payload.into_iter().for_each(|part| queue.push(part));
    }

    /// Our connection to a node, called if need be.
    fn caller(&mut self, now: Time, node: NodeId) -> Option<Token> {
        if let Some(token) = self.callers.get(&node) {
            return Some(*token);
        }
        if self.retries.get(&node).is_some_and(|retry| now < retry.at) {
            return None;
        }
        let address = *self.addresses.get(&node)?;
        let stream = TcpStream::connect(address).ok()?;
        let nonce = crate::identity::random().ok()?;
        let hello = Hello { cluster: self.cluster, from: self.me, nonce }.encode();
        let token = self.add(now, stream, Phase::Calling { hello }, Some(node))?;
        self.callers.insert(node, token);
        Some(token)
    }

    fn add(&mut self, now: Time, mut stream: TcpStream, phase: Phase, peer: Option<NodeId>) -> Option<Token> {
        // Small requests must not wait for each other.
        let _ = stream.set_nodelay(true);
        self.next_token += 1;
        let token = super::peer_token(self.next_token);
        self.registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).ok()?;
        let mut queue = SendQueue::default();
        let outgoing = matches!(phase, Phase::Calling { .. });
        if let Phase::Calling { hello } = &phase {
            queue.push(hello.to_vec());
        }
        let receiver = Receiver::new(self.pool.clone());
        let waiting = SendQueue::default();
        let connection = Connection { stream, phase, peer, outgoing, receiver, queue, waiting, opened: now };
        self.connections.insert(token, connection);
        Some(token)
    }

    /// Somebody calls.
    pub(super) fn accept(&mut self, now: Time) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let strangers =
                        self.connections.values().filter(|c| !matches!(c.phase, Phase::Ready)).count();
                    if strangers >= STRANGERS {
                        self.refused += 1;
                        continue;
                    }
                    self.add(now, stream, Phase::Called, None);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    warn!("cannot accept a data connection: {error}");
                    return;
                }
            }
        }
    }

    /// Whether an event belongs to the listener.
    pub(super) fn is_listener(&self, token: Token) -> bool {
        token == self.listener_token
    }

    /// Reads what came on a connection and hands on the messages.
    pub(super) fn receive(
        &mut self,
        now: Time,
        token: Token,
        closing: bool,
        mut take: impl FnMut(Header, Message),
    ) {
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return };
            match connection.receiver.read(&mut connection.stream, closing) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.end(now, token, &error),
            }
            if let Err(error) = self.handshake(token) {
                self.refused += 1;
                warn!(peer = %self.describe(token), "refused a data connection: the other side {error}");
                return self.close(token, Some(now));
            }
            loop {
                let Some(connection) = self.connections.get_mut(&token) else { return };
                if !matches!(connection.phase, Phase::Ready) {
                    break;
                }
                match connection.receiver.next() {
                    // Who has shown the key as one node must not speak for another.
                    Ok(Some((header, message))) if Some(header.from.node) == connection.peer => {
                        take(header, message)
                    }
                    Ok(Some(_)) => return self.close(token, Some(now)),
                    Ok(None) => break,
                    Err(error) => return self.end(now, token, &error),
                }
            }
        }
    }

    /// Sends what waits, on all connections.
    pub(super) fn flush(&mut self, now: Time) {
        let mut broken = Vec::new();
        for (token, connection) in &mut self.connections {
            if connection.queue.bytes() == 0 {
                continue;
            }
            match connection.queue.send(&mut connection.stream) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(_) => broken.push(*token),
            }
        }
        for token in broken {
            self.close(token, Some(now));
        }
    }

    /// Ends handshakes that take too long.
    pub(super) fn tick(&mut self, now: Time) {
        let slow: Vec<Token> = self
            .connections
            .iter()
            .filter(|(_, c)| !matches!(c.phase, Phase::Ready) && now.since(c.opened) > HANDSHAKE_TIMEOUT)
            .map(|(token, _)| *token)
            .collect();
        for token in slow {
            self.close(token, Some(now));
        }
    }

    /// Takes the handshake as far as the received bytes allow.
    fn handshake(&mut self, token: Token) -> Result<(), HandshakeError> {
        loop {
            let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
            let receiver = &mut connection.receiver;
            match &connection.phase {
                Phase::Ready => return Ok(()),
                Phase::Calling { hello } => {
                    let Some(bytes) = receiver.unread().first_chunk::<{ HELLO + PROOF }>() else {
                        return Ok(());
                    };
                    let (theirs, proof) = bytes.split_at(HELLO);
                    let mut server = [0; HELLO];
                    server.copy_from_slice(theirs);
                    let said = Hello::decode(&server, self.cluster)?;
                    self.prover.check(Side::Server, hello, &server, proof)?;
                    if Some(said.from.node) != connection.peer {
                        return Err(HandshakeError::OtherNode);
                    }
                    let proof = self.prover.prove(Side::Client, hello, &server);
                    receiver.consume(HELLO + PROOF);
                    connection.queue.push(proof.to_vec());
                    connection.queue.append(core::mem::take(&mut connection.waiting));
                    connection.phase = Phase::Ready;
                    self.retries.remove(&said.from.node);
                }
                Phase::Called => {
                    let Some(client) = receiver.unread().first_chunk::<HELLO>().copied() else {
                        return Ok(());
                    };
                    let peer = Hello::decode(&client, self.cluster)?.from;
                    let nonce = crate::identity::random().map_err(|_| HandshakeError::Proof)?;
                    let server = Hello { cluster: self.cluster, from: self.me, nonce }.encode();
                    receiver.consume(HELLO);
                    connection.queue.push(server.to_vec());
                    connection.queue.push(self.prover.prove(Side::Server, &client, &server).to_vec());
                    connection.phase = Phase::Proving { client, server, peer };
                }
                Phase::Proving { client, server, peer } => {
                    let Some(proof) = receiver.unread().first_chunk::<PROOF>() else { return Ok(()) };
                    self.prover.check(Side::Client, client, server, proof)?;
                    let peer = *peer;
                    receiver.consume(PROOF);
                    connection.peer = Some(peer.node);
                    connection.phase = Phase::Ready;
                    debug!(node = %peer.node, "data connection");
                    if let Some(old) = self.called.insert(peer.node, token) {
                        self.close(old, None);
                    }
                }
            }
        }
    }

    fn end(&mut self, now: Time, token: Token, error: &StreamError) {
        match error {
            StreamError::Decode(problem) => {
                self.damaged += 1;
                warn!(peer = %self.describe(token), "closed a data connection: {problem}");
            }
            StreamError::Closed | StreamError::Io(_) => debug!(peer = %self.describe(token), "{error}"),
        }
        self.close(token, Some(now));
    }

    fn describe(&self, token: Token) -> String {
        let connection = self.connections.get(&token);
        let node = connection.and_then(|c| c.peer).map(|node| node.to_string());
        let address = connection.and_then(|c| c.stream.peer_addr().ok()).map(|a| a.to_string());
        node.or(address).unwrap_or_else(|| "unknown".into())
    }

    /// Closes a connection; `now` if it broke, so that the node is not called again at once.
    fn close(&mut self, token: Token, now: Option<Time>) {
        let Some(mut connection) = self.connections.remove(&token) else { return };
        let _ = self.registry.deregister(&mut connection.stream);
        let Some(node) = connection.peer else { return };
        if connection.outgoing {
            self.callers.retain(|_, caller| *caller != token);
            if let Some(now) = now {
                let wait =
                    self.retries.get(&node).map_or(RETRY_FIRST, |retry| (retry.wait * 2).min(RETRY_LAST));
                self.retries.insert(node, Retry { at: now + wait, wait });
            }
        } else {
            self.called.retain(|_, called| *called != token);
        }
    }
}
