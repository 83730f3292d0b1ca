//! The data thread: one shard with its sockets, its disk and its clients.
//!
//! Single-threaded, without locks: each turn takes what came (bytes, completions, views), lets the shard work,
//! and sends everything that came of it with few system calls.

mod api;
mod clients;
mod disk;
mod disks;
mod exports;
mod findings;
mod flatten;
mod framing;
mod handshake;
mod peers;
mod secure;
mod translate;
mod turn;
mod unknown;
mod volumes;
mod waits;

use crate::control::ControlMessage;
use crate::disks::{DiskControl, DiskSpec};
use crate::handle::{DataStatus, DiskRequest, VolumeRequest};
use crate::inbox::{Inbox, Sender};
use crate::seal::ClusterKey;
use anyhow::{Context, Result};
use clients::Clients;
use disk::DiskDriver;
pub(crate) use disk::DiskMode;
use mio::net::TcpListener;
use mio::{Events, Poll, Token, Waker};
use peers::Peers;
use sheep_datapath::{ScrubOrder, Shard, View};
use sheep_engine::Published;
use sheep_frontend::BufferPool;
use sheep_state::{Outcome, Refusal};
use sheep_store::{DiskOpId, DiskResult};
use sheep_tls::Certificates;
use sheep_types::{LogIndex, Member, Time};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;
use unknown::Unknown;
use volumes::Volumes;
use waits::Waits;

const WAKE: Token = Token(0);
const PEERS: Token = Token(1);
const NBD_UNIX: Token = Token(2);
const NBD_TCP: Token = Token(3);
/// Connections to nodes have odd tokens from here on, NBD clients even ones.
const FIRST: usize = 16;
/// Buffers kept for reuse, bytes.
const POOL: usize = 64 << 20;
/// Status, time limits of handshakes and the like are looked at this often.
const TICK: Duration = Duration::from_millis(500);

fn peer_token(number: usize) -> Token {
    Token(FIRST + number * 2 + 1)
}

fn client_token(number: usize) -> Token {
    Token(FIRST + number * 2)
}

fn is_peer(token: Token) -> bool {
    token.0 >= FIRST && token.0 % 2 == 1
}

/// Result of a test of a reported node's data path.
pub(crate) struct Tested {
    pub(crate) report: LogIndex,
    pub(crate) reachable: bool,
}

/// Messages to the data thread.
pub(crate) enum DataMessage {
    /// The applied state moved on.
    View(Published),
    /// Gateways may serve until then.
    Lease(Time),
    /// A command of the shard has its answer; `None`: it is not known what became of it.
    Ordered { token: u64, result: Option<Result<Outcome, Refusal>> },
    /// Test the data path of a node.
    TestPeer { report: LogIndex, peer: Member },
    /// A disk operation is done.
    Disk(DiskOpId, DiskResult),
    /// An order of an operator to the scrub of this node.
    Scrub(ScrubOrder),
    /// From gRPC.
    Volume(VolumeRequest),
    /// Likewise.
    Disks(DiskRequest),
    /// Close all volumes in order and end.
    Stop(mpsc::Sender<()>),
}

/// What the thread is made of.
pub(crate) struct DataSetup {
    pub(crate) me: Member,
    pub(crate) key: ClusterKey,
    /// What is shown to other nodes, if anything.
    pub(crate) certificates: Option<Arc<Certificates>>,
    /// Whether connections to other nodes must be encrypted.
    pub(crate) encrypt: bool,
    /// Disks of the store; none for a gateway without one.
    pub(crate) disks: Vec<DiskSpec>,
    /// Their list.
    pub(crate) disk_control: Arc<DiskControl>,
    /// How they are used.
    pub(crate) disk: DiskMode,
    pub(crate) listener: std::net::TcpListener,
    pub(crate) nbd_unix: Option<PathBuf>,
    pub(crate) nbd_tcp: Option<std::net::TcpListener>,
    pub(crate) control: Sender<ControlMessage>,
    pub(crate) status: watch::Sender<Arc<DataStatus>>,
    pub(crate) stop: mpsc::Sender<Option<String>>,
}

/// Who waits for an operation of a volume.
enum IoOwner {
    Client(Token, sheep_frontend::RequestHandle),
    Api(api::ApiIo),
}

struct DataThread {
    /// Before the poll, which it may wait for: fields are dropped in order.
    disk: Option<DiskDriver>,
    poll: Poll,
    me: Member,
    inbox: Inbox<DataMessage>,
    disks: Vec<DiskSpec>,
    disk_control: Arc<DiskControl>,
    /// The list does not say yet that the stores of all disks were made.
    unlisted: bool,
    /// Where the disk in each slot is.
    slots: BTreeMap<u8, PathBuf>,
    /// Made when the node learns which cluster it is of.
    shard: Option<Shard>,
    view: Option<Arc<View>>,
    lease: Time,
    disk_mode: DiskMode,
    pool: BufferPool,
    disk_done: Sender<DataMessage>,
    peers: Peers,
    clients: Clients,
    volumes: Volumes,
    idle: flatten::Idle,
    ios: BTreeMap<u64, IoOwner>,
    last_io: u64,
    control: Sender<ControlMessage>,
    status: watch::Sender<Arc<DataStatus>>,
    stop: mpsc::Sender<Option<String>>,
    stopping: Option<mpsc::Sender<()>>,
    /// Volumes are being closed for good.
    closing: bool,
    /// Tests of reported nodes under way, by request number, and those that were answered.
    tests: BTreeMap<u64, (LogIndex, Time)>,
    passed: Vec<(LogIndex, Time)>,
    last_test: u64,
    /// What the cluster was last told of how full the store is, and when.
    usage: Option<(Time, u64)>,
    failed: Option<String>,
    waits: Waits,
    unknown: Vec<Unknown>,
    tick: Time,
}

/// The poll and inbox of a data thread that is to be started: others need the sender first.
pub(crate) struct DataPort {
    poll: Poll,
    sender: Sender<DataMessage>,
    inbox: Inbox<DataMessage>,
}

impl DataPort {
    pub(crate) fn new() -> Result<Self> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let (sender, inbox) = crate::inbox::inbox(waker);
        Ok(Self { poll, sender, inbox })
    }

    pub(crate) fn sender(&self) -> Sender<DataMessage> {
        self.sender.clone()
    }

    /// Starts the thread.
    pub(crate) fn start(self, setup: DataSetup) -> Result<JoinHandle<()>> {
        let pool = BufferPool::new(POOL);
        let registry = || self.poll.registry().try_clone();
        setup.listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(setup.listener);
        let peers = Peers::new(
            setup.me,
            &setup.key,
            (setup.certificates, setup.encrypt),
            registry()?,
            listener,
            PEERS,
            pool.clone(),
        )?;
        let mut clients = Clients::new(registry()?, pool.clone());
        if let Some(path) = &setup.nbd_unix {
            clients
                .listen_unix(NBD_UNIX, path)
                .with_context(|| format!("cannot listen on {}", path.display()))?;
        }
        if let Some(listener) = setup.nbd_tcp {
            listener.set_nonblocking(true)?;
            clients.listen_tcp(NBD_TCP, TcpListener::from_std(listener))?;
        }
        let mut thread = DataThread {
            poll: self.poll,
            me: setup.me,
            inbox: self.inbox,
            disks: setup.disks,
            disk_control: setup.disk_control,
            unlisted: true,
            slots: BTreeMap::new(),
            shard: None,
            view: None,
            lease: Time::ZERO,
            disk: None,
            disk_mode: setup.disk,
            pool: pool.clone(),
            disk_done: self.sender,
            peers,
            clients,
            volumes: Volumes::default(),
            idle: flatten::Idle::default(),
            ios: BTreeMap::new(),
            last_io: 0,
            control: setup.control,
            status: setup.status,
            stop: setup.stop,
            stopping: None,
            closing: false,
            tests: BTreeMap::new(),
            passed: Vec::new(),
            last_test: 0,
            usage: None,
            failed: None,
            waits: Waits::default(),
            unknown: Vec::new(),
            tick: Time::ZERO,
        };
        Ok(std::thread::Builder::new().name("data".into()).spawn(move || {
            let mut events = Events::with_capacity(1024);
            while thread.turn(&mut events) {}
        })?)
    }
}
