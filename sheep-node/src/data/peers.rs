//! Connections to other nodes: requests go out on ours, replies go back on theirs.

use super::framing::{Receiver, SendQueue, StreamError};
use super::handshake::{HELLO, HandshakeError, Hello, PROOF, Prover, Secrecy, Side};
use super::secure::{Session, is_refusal};
use crate::seal::ClusterKey;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use sheep_frontend::BufferPool;
use sheep_tls::Certificates;
use sheep_types::{ClusterId, Member, NodeId, Time};
use sheep_wire::{Encoder, Header, Message, Packet};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, warn};

#[cfg(test)]
mod tests;

/// Bytes that wait for one connection at most; more are dropped like lost packets, and asked for again.
const QUEUE_LIMIT: usize = 128 << 20;
/// A handshake takes at most this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not shown the key yet, at most.
const STRANGERS: usize = 128;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// A connection that lasted this long was a good one: with TLS the side that calls hears last that it is refused.
const LASTED: Duration = Duration::from_secs(2);

/// How far a connection is.
enum Phase {
    /// We called and wait for the server's hello and proof.
    Calling { hello: [u8; HELLO] },
    /// We were called and wait for the client's hello.
    Called,
    /// We were called and wait for the client's proof.
    Proving { client: [u8; HELLO], server: [u8; HELLO], peer: NodeId, encrypt: Result<bool, HandshakeError> },
    /// Both have shown the key, and TLS begins with this node.
    Securing { peer: NodeId },
    /// Messages flow.
    Ready,
}

struct Connection {
    stream: TcpStream,
    phase: Phase,
    /// Who is at the other end: shown, or for our own calls, expected.
    peer: Option<NodeId>,
    outgoing: bool,
    /// If what is sent is encrypted.
    tls: Option<Box<Session>>,
    receiver: Receiver,
    queue: SendQueue,
    /// Messages that wait for the end of the handshake.
    waiting: SendQueue,
    opened: Time,
}

impl Connection {
    fn read(&mut self, closing: bool) -> Result<bool, StreamError> {
        match &mut self.tls {
            None => self.receiver.read(&mut self.stream, closing),
            Some(tls) => {
                let look = closing || tls.has_more();
                self.receiver.read(&mut tls.reader(&mut self.stream, closing), look)
            }
        }
    }

    fn send(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None if self.queue.bytes() == 0 => Ok(()),
            None => self.queue.send(&mut self.stream),
            Some(tls) => tls.send(&mut self.queue, &mut self.stream),
        }
    }
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
    certificates: Option<Arc<Certificates>>,
    secrecy: Secrecy,
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
        (certificates, encrypt): (Option<Arc<Certificates>>, bool),
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
            secrecy: Secrecy { wants: encrypt, can: certificates.is_some() },
            certificates,
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
        let hello = hello(self.cluster, self.me, self.secrecy, nonce);
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
        let tls = None;
        let connection =
            Connection { stream, phase, peer, outgoing, tls, receiver, queue, waiting, opened: now };
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
            let more = match connection.read(closing) {
                // The end of a handshake of TLS is no byte of a message.
                Ok(false) if !matches!(connection.phase, Phase::Securing { .. }) => return,
                Ok(more) => more,
                Err(error) => return self.end(now, token, &error),
            };
            if let Err(error) = self.handshake(token) {
                self.refused += 1;
                warn!(peer = %self.describe(token), "refused a data connection: the other side {error}");
                return self.close(token, Some(now));
            }
            if !more {
                return;
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
            match connection.send() {
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
                    let encrypt = self.secrecy.agree(said.secrecy)?;
                    let proof = self.prover.prove(Side::Client, hello, &server);
                    receiver.consume(HELLO + PROOF);
                    connection.queue.push(proof.to_vec());
                    self.proven(token, said.from.node, encrypt)?;
                }
                Phase::Called => {
                    let Some(client) = receiver.unread().first_chunk::<HELLO>().copied() else {
                        return Ok(());
                    };
                    let said = Hello::decode(&client, self.cluster)?;
                    let nonce = crate::identity::random().map_err(|_| HandshakeError::Proof)?;
                    let server = hello(self.cluster, self.me, self.secrecy, nonce);
                    // If there is no agreement, the other side is to hear what to say of it, and it is said of no stranger here.
                    let encrypt = self.secrecy.agree(said.secrecy);
                    receiver.consume(HELLO);
                    connection.queue.push(server.to_vec());
                    connection.queue.push(self.prover.prove(Side::Server, &client, &server).to_vec());
                    connection.phase = Phase::Proving { client, server, peer: said.from.node, encrypt };
                }
                Phase::Proving { client, server, peer, encrypt } => {
                    let Some(proof) = receiver.unread().first_chunk::<PROOF>() else { return Ok(()) };
                    self.prover.check(Side::Client, client, server, proof)?;
                    let (peer, encrypt) = (*peer, (*encrypt)?);
                    receiver.consume(PROOF);
                    self.proven(token, peer, encrypt)?;
                }
                Phase::Securing { peer } => {
                    if connection.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                        return Ok(());
                    }
                    let peer = *peer;
                    self.ready(token, peer);
                }
            }
        }
    }

    /// Both sides have shown the key: messages flow, or TLS begins.
    fn proven(&mut self, token: Token, peer: NodeId, encrypt: bool) -> Result<(), HandshakeError> {
        if !encrypt {
            self.retries.remove(&peer);
            self.ready(token, peer);
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        let identity = self.certificates.as_ref().ok_or(HandshakeError::NoTls)?.current();
        let tls = if connection.outgoing { identity.call() } else { identity.answer() };
        let tls = tls.map_err(|_| HandshakeError::NoTls)?;
        let before = core::mem::take(&mut connection.queue);
        let unread = connection.receiver.unread();
        connection.tls = Some(Box::new(Session::new(tls, before, unread)));
        connection.receiver.consume(connection.receiver.unread().len());
        connection.phase = Phase::Securing { peer };
        Ok(())
    }

    /// Messages flow from here on.
    fn ready(&mut self, token: Token, peer: NodeId) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.peer = Some(peer);
        connection.queue.append(core::mem::take(&mut connection.waiting));
        connection.phase = Phase::Ready;
        debug!(node = %peer, encrypted = connection.tls.is_some(), "data connection");
        if !connection.outgoing
            && let Some(old) = self.called.insert(peer, token)
        {
            self.close(old, None);
        }
    }

    fn end(&mut self, now: Time, token: Token, error: &StreamError) {
        let ready = self.connections.get(&token).is_some_and(|c| matches!(c.phase, Phase::Ready));
        match error {
            StreamError::Tls(_) if !ready || is_refusal(error) => {
                self.refused += 1;
                warn!(peer = %self.describe(token), "refused a data connection: the other side {error}");
            }
            StreamError::Tls(_) => {
                self.damaged += 1;
                warn!(peer = %self.describe(token), "closed a data connection: the other side {error}");
            }
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

    /// Connections whose contents nobody can read on their way.
    pub(super) fn encrypted(&self) -> u64 {
        self.connections.values().filter(|c| c.tls.is_some() && matches!(c.phase, Phase::Ready)).count()
            as u64
    }

    /// Closes a connection; `now` if it broke, so that the node is not called again at once.
    fn close(&mut self, token: Token, now: Option<Time>) {
        let Some(mut connection) = self.connections.remove(&token) else { return };
        if let Some(tls) = &mut connection.tls {
            tls.farewell(&mut connection.stream);
        }
        let _ = self.registry.deregister(&mut connection.stream);
        let Some(node) = connection.peer else { return };
        if connection.outgoing {
            self.callers.retain(|_, caller| *caller != token);
            if let Some(now) = now {
                let good = matches!(connection.phase, Phase::Ready) && now.since(connection.opened) >= LASTED;
                let again = self.retries.get(&node).filter(|_| !good);
                let wait = again.map_or(RETRY_FIRST, |retry| (retry.wait * 2).min(RETRY_LAST));
                self.retries.insert(node, Retry { at: now + wait, wait });
            }
        } else {
            self.called.retain(|_, called| *called != token);
        }
    }
}

fn hello(cluster: ClusterId, from: Member, secrecy: Secrecy, nonce: [u8; 32]) -> [u8; HELLO] {
    Hello { cluster, from, secrecy, nonce }.encode()
}
