//! NBD clients: sockets, and which volume each connection uses.

use super::translate::{operation, reply};
use super::volumes::{Opened, VolumeId};
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use sheep_datapath::{VolumeError, VolumeOp, VolumeReply};
use sheep_frontend::nbd::{
    Connection, ExportEntry, ExportInfo, OpenError, OpenMode, ReadTarget, ServerEvent, ServerLimits,
};
use sheep_frontend::{BufferPool, ErrorKind, Op, Reply, Request, RequestHandle};
use sheep_types::Time;
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{debug, info, warn};

/// Clients at once; more are turned away.
const CLIENTS: usize = 4096;
/// A client that has not chosen an export by then is disconnected.
const NEGOTIATION_TIMEOUT: Duration = Duration::from_secs(30);
const SLICES: usize = 512;

/// A listening socket.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A client's socket.
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_vectored(buffers),
            Self::Unix(stream) => stream.read_vectored(buffers),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(buffers),
            Self::Unix(stream) => stream.write_vectored(buffers),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Client {
    socket: Socket,
    nbd: Connection,
    volume: Option<VolumeId>,
    name: String,
    since: Time,
    dirty: bool,
    /// The socket may have more than was wanted so far.
    unread: bool,
    /// The client sends no more.
    closing: bool,
}

/// What a client wants of the data thread.
pub(super) enum Want {
    /// Names of all VDIs.
    List(Token),
    /// Open a VDI (or, for information only, look at it).
    Open { client: Token, name: String, info_only: bool },
    /// An operation.
    Io { client: Token, handle: RequestHandle, volume: VolumeId, op: VolumeOp },
    /// What differs from a snapshot of the volume that is exported as `name`.
    Changes { client: Token, handle: RequestHandle, volume: VolumeId, name: String, range: Changed },
    /// The client is gone.
    Release(VolumeId),
}

/// Range, and tag or name of the snapshot.
pub(super) struct Changed {
    pub(super) tag: String,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// All NBD clients of this node.
pub(super) struct Clients {
    registry: Registry,
    listeners: BTreeMap<Token, Listener>,
    clients: BTreeMap<Token, Client>,
    next: usize,
    pool: BufferPool,
    wants: VecDeque<Want>,
    /// Of those that are being flushed; kept for its room.
    flushed: Vec<Token>,
}

impl Clients {
    pub(super) fn new(registry: Registry, pool: BufferPool) -> Self {
        Self {
            registry,
            listeners: BTreeMap::new(),
            clients: BTreeMap::new(),
            next: 0,
            pool,
            wants: VecDeque::new(),
            flushed: Vec::new(),
        }
    }

    pub(super) fn listen_tcp(&mut self, token: Token, mut listener: TcpListener) -> io::Result<()> {
        self.registry.register(&mut listener, token, Interest::READABLE)?;
        self.listeners.insert(token, Listener::Tcp(listener));
        Ok(())
    }

    /// A socket file left by a process that was killed is replaced.
    pub(super) fn listen_unix(&mut self, token: Token, path: &Path) -> io::Result<()> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut listener = UnixListener::bind(path)?;
        self.registry.register(&mut listener, token, Interest::READABLE)?;
        self.listeners.insert(token, Listener::Unix(listener, path.to_owned()));
        Ok(())
    }

    pub(super) fn is_listener(&self, token: Token) -> bool {
        self.listeners.contains_key(&token)
    }

    pub(super) fn accept(&mut self, now: Time, token: Token) {
        loop {
            let accepted = match self.listeners.get(&token) {
                Some(Listener::Tcp(listener)) => listener.accept().map(|(stream, _)| {
                    let _ = stream.set_nodelay(true);
                    Socket::Tcp(stream)
                }),
                Some(Listener::Unix(listener, _)) => {
                    listener.accept().map(|(stream, _)| Socket::Unix(stream))
                }
                None => return,
            };
            match accepted {
                Ok(_) if self.clients.len() >= CLIENTS => warn!("too many NBD clients"),
                Ok(socket) => self.add(now, socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return warn!("cannot accept an NBD client: {error}"),
            }
        }
    }

    fn add(&mut self, now: Time, mut socket: Socket) {
        self.next += 1;
        let token = super::client_token(self.next);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered = match &mut socket {
            Socket::Tcp(stream) => self.registry.register(stream, token, interest),
            Socket::Unix(stream) => self.registry.register(stream, token, interest),
        };
        if registered.is_ok() {
            let nbd = Connection::new(ServerLimits::default(), self.pool.clone());
            let client = Client {
                socket,
                nbd,
                volume: None,
                name: String::new(),
                since: now,
                dirty: true,
                unread: false,
                closing: false,
            };
            self.clients.insert(token, client);
        }
    }

    /// Reads what is there, as much as is wanted now; the rest when more is wanted. A read that got less than it had room for
    /// has emptied the socket; only the end of a connection that is `closing` needs one more.
    pub(super) fn receive(&mut self, token: Token, closing: bool) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        client.dirty = true;
        client.closing |= closing;
        client.unread = true;
        while client.unread && client.nbd.wants_read() {
            let ReadTarget { payload, staging } = client.nbd.read_target();
            let room = payload.len() + staging.len();
            let mut buffers = [IoSliceMut::new(payload), IoSliceMut::new(staging)];
            match client.socket.read_vectored(&mut buffers) {
                Ok(0) => client.nbd.handle_eof(),
                Ok(n) => {
                    client.nbd.handle_received(n);
                    client.unread = n == room || client.closing;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => client.unread = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => client.nbd.handle_eof(),
            }
        }
        self.events(token);
    }

    fn events(&mut self, token: Token) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        while let Some(event) = client.nbd.poll_event() {
            match event {
                ServerEvent::ListExports => self.wants.push_back(Want::List(token)),
                ServerEvent::OpenExport { name, mode } => {
                    client.name.clone_from(&name);
                    let info_only = mode == OpenMode::Info;
                    self.wants.push_back(Want::Open { client: token, name, info_only });
                }
                ServerEvent::Request(Request { handle, op: Op::ChangedSince { tag, offset, len } })
                    if client.volume.is_some() =>
                {
                    let (name, range) = (client.name.clone(), Changed { tag, offset, len });
                    let volume = client.volume.unwrap_or_default();
                    self.wants.push_back(Want::Changes { client: token, handle, volume, name, range });
                }
                ServerEvent::Request(request) => match (client.volume, operation(request.op)) {
                    (Some(volume), Some(op)) => {
                        self.wants.push_back(Want::Io { client: token, handle: request.handle, volume, op });
                    }
                    // A hint that nothing is made of.
                    (Some(_), None) => client.nbd.complete(request.handle, Reply::Done),
                    (None, _) => client.nbd.complete(request.handle, Reply::Error(ErrorKind::ShuttingDown)),
                },
                ServerEvent::Disconnect(reason) => {
                    debug!(vdi = client.name, "NBD client: {reason}");
                }
            }
        }
    }

    /// What a client wants next.
    pub(super) fn next_want(&mut self) -> Option<Want> {
        self.wants.pop_front()
    }

    pub(super) fn listed(&mut self, token: Token, names: Result<Vec<String>, OpenError>) {
        if let Some(client) = self.clients.get_mut(&token) {
            let entry = |name| ExportEntry { name, description: String::new() };
            client.nbd.handle_export_list(names.map(|names| names.into_iter().map(entry).collect()));
            client.dirty = true;
        }
        self.events(token);
    }

    /// The answer to [`Want::Open`]. Says whether the client is still there to use it.
    pub(super) fn opened(
        &mut self,
        token: Token,
        result: Result<(Option<VolumeId>, Opened), OpenError>,
    ) -> bool {
        let Some(client) = self.clients.get_mut(&token) else { return false };
        if let Ok((Some(volume), _)) = &result {
            client.volume = Some(*volume);
            info!(vdi = client.name, "NBD client attached");
        }
        if !matches!(result, Ok((Some(_), _))) {
            client.name.clear();
        }
        client.nbd.handle_opened(result.map(|(_, opened)| ExportInfo {
            read_only: opened.read_only,
            // All connections end in this one gateway, and a flush covers them all.
            can_multi_conn: true,
            ..ExportInfo::new(opened.size)
        }));
        client.dirty = true;
        self.events(token);
        true
    }

    pub(super) fn done(
        &mut self,
        token: Token,
        handle: RequestHandle,
        result: Result<VolumeReply, VolumeError>,
    ) {
        if let Some(client) = self.clients.get_mut(&token) {
            client.nbd.complete(handle, reply(result));
            client.dirty = true;
        }
        self.events(token);
    }

    /// The volume has another size, or is gone.
    pub(super) fn resized(&mut self, volume: VolumeId, size: u64) {
        for client in self.clients.values_mut().filter(|client| client.volume == Some(volume)) {
            client.nbd.handle_resized(size);
        }
    }

    /// The volume can no longer be served: clients reconnect, here or elsewhere.
    pub(super) fn lost(&mut self, volume: VolumeId) {
        let tokens: Vec<Token> =
            self.clients.iter().filter(|(_, c)| c.volume == Some(volume)).map(|(token, _)| *token).collect();
        for token in tokens {
            self.remove(token);
        }
    }

    /// Sends what waits, reads where reading was held back, and forgets clients that are done.
    pub(super) fn flush(&mut self) {
        let mut dirty = core::mem::take(&mut self.flushed);
        dirty.extend(self.clients.iter().filter(|(_, client)| client.dirty).map(|(token, _)| *token));
        for token in dirty.drain(..) {
            let Some(client) = self.clients.get_mut(&token) else { continue };
            client.dirty = false;
            let alive = client.transmit();
            if !alive || client.nbd.is_finished() {
                self.remove(token);
            } else {
                // What was answered or sent may have made room for what is here already.
                match client.unread && client.nbd.wants_read() {
                    true => self.receive(token, false),
                    false => self.events(token),
                }
                if let Some(client) = self.clients.get_mut(&token) {
                    client.dirty = client.nbd.poll_transmit().len() > 0 && client.transmit_again();
                }
            }
        }
        self.flushed = dirty;
    }

    /// A socket takes bytes again.
    pub(super) fn writable(&mut self, token: Token) {
        if let Some(client) = self.clients.get_mut(&token) {
            client.dirty = true;
        }
    }

    /// Whether something is to be flushed before sleeping.
    pub(super) fn busy(&self) -> bool {
        !self.wants.is_empty() || self.clients.values().any(|client| client.dirty)
    }

    /// Disconnects clients that do not get on with the negotiation. Those whose volume is being opened wait for us.
    pub(super) fn tick(&mut self, now: Time) {
        let idle = |client: &Client| {
            client.volume.is_none() && client.name.is_empty() && now.since(client.since) > NEGOTIATION_TIMEOUT
        };
        let tokens: Vec<Token> =
            self.clients.iter().filter(|(_, c)| idle(c)).map(|(token, _)| *token).collect();
        for token in tokens {
            self.remove(token);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    fn remove(&mut self, token: Token) {
        let Some(mut client) = self.clients.remove(&token) else { return };
        let _ = match &mut client.socket {
            Socket::Tcp(stream) => self.registry.deregister(stream),
            Socket::Unix(stream) => self.registry.deregister(stream),
        };
        if let Some(volume) = client.volume {
            self.wants.push_back(Want::Release(volume));
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        for listener in self.listeners.values() {
            if let Listener::Unix(_, path) = listener {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Client {
    /// Sends what waits. `false`: the client is gone.
    fn transmit(&mut self) -> bool {
        loop {
            let sent = {
                let chunks = self.nbd.poll_transmit().take(SLICES);
                let slices: SmallVec<[IoSlice<'_>; 64]> = chunks.map(|chunk| IoSlice::new(chunk)).collect();
                if slices.is_empty() {
                    return true;
                }
                self.socket.write_vectored(&slices)
            };
            match sent {
                Ok(0) => return false,
                Ok(n) => self.nbd.handle_transmitted(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// Whether trying to send once more may help: only if the last try was before the newest bytes.
    fn transmit_again(&self) -> bool {
        self.dirty
    }
}
