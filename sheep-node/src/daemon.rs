//! Puts a node together from its configuration, and takes it apart again in order.

use crate::config::{Config, DiskIo, Seed};
use crate::control::{ControlMessage, ControlPort, ControlSetup, genesis_file};
use crate::data::{DataMessage, DataPort, DataSetup, DiskMode};
use crate::disks::{self, DiskControl, DiskSpec};
use crate::handle::{DataStatus, NodeHandle, NodeStatus};
use crate::identity::{NodeDir, random, read_key, write_durably};
use crate::inbox::Sender;
use crate::rendezvous::Rendezvous;
use crate::ring_socket::RingSocket;
use crate::seal::{ClusterKey, Sealer};
use crate::whereabouts::Whereabouts;
use crate::{grpc, http, log_file};
use anyhow::{Context, Result, bail, ensure};
use sheep_engine::{ControlConfig, NodeProfile};
use sheep_log::Recovered;
use sheep_state::limits::MAX_WEIGHT;
use sheep_state::{Addresses, Role};
use sheep_tls::{Certificates, Role as TlsRole};
use sheep_totem::RingConfig;
use sheep_types::{ClusterId, ConfigId, LogIndex, Member};
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// How often nodes on this machine and the names of seeds are looked up.
const SEED_INTERVAL: Duration = Duration::from_secs(1);
/// How long open volumes are waited for when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the control thread may take to say goodbye.
const DEPART_TIMEOUT: Duration = Duration::from_secs(1);
/// Room for the ring's bursts.
const RING_BUFFER: usize = 4 << 20;

/// The sockets of a node, bound before anything else starts, so that a port that is taken is told at once.
struct Sockets {
    ring: UdpSocket,
    data: TcpListener,
    grpc: TcpListener,
    http: TcpListener,
    nbd_tcp: Option<TcpListener>,
}

impl Sockets {
    fn bind(config: &Config) -> Result<Self> {
        let tcp = |key: &str, what: &str, address: SocketAddr| {
            bind(config, key, address, TcpListener::bind)
                .with_context(|| format!("cannot listen on {address} ({what})"))
        };
        let ring = SocketAddr::new(config.node_listen, config.ring_port);
        let ring = bind(config, "ring_port", ring, UdpSocket::bind)
            .with_context(|| format!("cannot bind {ring} (ring)"))?;
        let socket = socket2::SockRef::from(&ring);
        // The kernel may grant less; the ring then only loses more often when a node stalls.
        let _ = socket.set_recv_buffer_size(RING_BUFFER);
        let _ = socket.set_send_buffer_size(RING_BUFFER);
        ring.set_nonblocking(true)?;
        Ok(Self {
            ring,
            data: tcp("data_port", "data", SocketAddr::new(config.node_listen, config.data_port))?,
            grpc: tcp("grpc", "gRPC", config.grpc)?,
            http: tcp("http", "HTTP", config.http)?,
            nbd_tcp: config.nbd_tcp.map(|address| tcp("nbd_tcp", "NBD", address)).transpose()?,
        })
    }

    fn addresses(&self) -> Result<Addresses> {
        Ok(Addresses {
            data: vec![self.data.local_addr()?],
            ring: vec![self.ring.local_addr()?],
            grpc: vec![self.grpc.local_addr()?],
            http: vec![self.http.local_addr()?],
        })
    }
}

/// Binds, to another port if the standard one is in use and nobody asked for it: a second node on a machine then
/// starts like the first.
fn bind<S>(
    config: &Config,
    key: &str,
    address: SocketAddr,
    open: impl Fn(SocketAddr) -> io::Result<S>,
) -> io::Result<S> {
    match open(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && config.may_move(key) => {
            open(SocketAddr::new(address.ip(), 0))
        }
        result => result,
    }
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// It could not start, or something ended that it cannot do without.
pub(crate) fn run(config: &Config) -> Result<()> {
    let dir = NodeDir::open(&config.dir)?;
    let Member { node, incarnation } = dir.me;
    info!(%node, run = incarnation.0, "{}", if dir.fresh { "new node" } else { "node" });
    let certificates = config.certificates()?.map(|files| Certificates::open(files, TlsRole::Node));
    let certificates = certificates.transpose()?.map(Arc::new);
    let sockets = Sockets::bind(config)?;
    let addresses = sockets.addresses()?;
    let key = cluster_key(config, &dir)?;
    let (recovered, log_len) = recover(config, &dir)?;
    let (list, disks) = if config.gateway { Default::default() } else { disks::find(config, &dir)? };
    let disk_control = Arc::new(DiskControl { list: Mutex::new(list), limit: config.capacity });
    let (data, control) = (DataPort::new()?, ControlPort::new()?);
    let (stop, stopped) = mpsc::channel();
    let (data_status, data_watch) = watch::channel(Arc::new(DataStatus::default()));
    let (status, status_watch) = watch::channel(Arc::new(first_status(&dir)));
    let handle = NodeHandle {
        control: control.sender(),
        volumes: data.sender(),
        status: status_watch,
        data: data_watch,
        started: Instant::now(),
        disks: Arc::clone(&disk_control),
    };
    let profile = profile(config, addresses.clone(), &disks);
    let ready = ready_line(config, &addresses, &sockets)?;
    let data_sender = data.sender();
    let setup = DataSetup {
        me: dir.me,
        key: key.clone(),
        certificates: certificates.clone(),
        encrypt: config.encrypt_data,
        disks,
        disk_control,
        disk: match config.disk_io {
            DiskIo::Direct => DiskMode { direct: true, uring: true },
            DiskIo::Cached => DiskMode { direct: false, uring: true },
            DiskIo::Threads => DiskMode { direct: false, uring: false },
        },
        listener: sockets.data,
        nbd_unix: config.nbd_unix.clone(),
        nbd_tcp: sockets.nbd_tcp,
        control: control.sender(),
        status: data_status,
        stop: stop.clone(),
    };
    data.start(setup)?;
    let own_ring = sockets.ring.local_addr()?;
    let setup = ControlSetup {
        me: dir.me,
        config: ControlConfig::new(RingConfig::with_token_loss(config.token_loss), profile),
        log_path: dir.log_file(),
        recovered,
        log_len,
        seed: u64::from_le_bytes(random()?),
        socket: RingSocket::new(
            mio::net::UdpSocket::from_std(sockets.ring),
            Sealer::new(key, dir.me),
            dir.me,
            Whereabouts::new(dir.me, own_ring, config.token_loss),
        ),
        data: data_sender.clone(),
        status,
        stop: stop.clone(),
    };
    let control_sender = control.sender();
    control.start(setup)?;
    let rendezvous = announce(config, &dir, own_ring, sockets.grpc.local_addr()?);
    find_seeds(config.seeds.clone(), rendezvous, control_sender.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let first = (!config.gateway).then(|| config.first.clone());
    // Binds the socket here and now; it needs the runtime only later.
    runtime.spawn(grpc::serve(handle.clone(), first, (sockets.grpc, certificates), dir.control_socket()));
    runtime.spawn(http::serve(handle, sockets.http));
    runtime.spawn(signals(stop));
    info!("sheep ready: {ready}");
    let reason = stopped.recv().unwrap_or_default();
    close_volumes(&data_sender);
    depart(&control_sender);
    runtime.shutdown_timeout(Duration::from_millis(200));
    let _ = std::fs::remove_file(dir.control_socket());
    if let Some(path) = &config.rendezvous {
        let _ = std::fs::remove_file(path.join(dir.me.node.to_string()));
    }
    match reason {
        Some(problem) => bail!(problem),
        None => Ok(()),
    }
}

/// Releases all locks, so that others need not wait for the lease.
fn close_volumes(data: &Sender<DataMessage>) {
    let (done, wait) = mpsc::channel();
    if data.send(DataMessage::Stop(done)).is_ok() && wait.recv_timeout(STOP_TIMEOUT).is_err() {
        warn!("volumes could not be closed in order; whoever opens them next settles them");
    }
}

/// Tells the others, so that they need not miss this node first.
fn depart(control: &Sender<ControlMessage>) {
    let (done, wait) = mpsc::channel();
    if control.send(ControlMessage::Depart(done)).is_ok() {
        // A thread that has ended, or hangs, tells nobody: then the others miss this node, as after a crash.
        let _ = wait.recv_timeout(DEPART_TIMEOUT);
    }
}

async fn signals(stop: mpsc::Sender<Option<String>>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = term.recv() => info!("stopping (SIGTERM)"),
        _ = int.recv() => info!("stopping (SIGINT)"),
    }
    let _ = stop.send(None);
}

/// The key from where it is said to be, from the node's directory, or from the rendezvous; a new cluster makes one.
fn cluster_key(config: &Config, dir: &NodeDir) -> Result<ClusterKey> {
    let stored = dir.key()?;
    let key = match (&config.key, stored) {
        (Some(path), stored) => match read_key(path)? {
            Some(key) => {
                // A key that the others do not have would cut the node off for good.
                ensure!(
                    stored.is_none_or(|stored| stored == key) || !belongs_to_a_cluster(dir)?,
                    "{} is not the key of the cluster that {} belongs to (if that cluster's key was changed, remove \
                     the file `key` in there first)",
                    path.display(),
                    config.dir.display()
                );
                key
            }
            None => bail!("there is no key file {}", path.display()),
        },
        (None, Some(key)) => key,
        (None, None) if config.new => ClusterKey::new(random()?),
        (None, None) => wait_for_key(config)?,
    };
    dir.set_key(&key)?;
    if config.new
        && let Some(rendezvous) = &config.rendezvous
    {
        Rendezvous::set_key(rendezvous, &key)?;
    }
    Ok(key)
}

fn belongs_to_a_cluster(dir: &NodeDir) -> Result<bool> {
    let path = dir.log_file();
    Ok(decode(&path, &log_file::read(&path)?)?.cluster() != ClusterId(0))
}

fn wait_for_key(config: &Config) -> Result<ClusterKey> {
    let Some(rendezvous) = &config.rendezvous else {
        bail!("this node has no cluster key: give it with --key FILE, or start a new cluster with --new");
    };
    let mut told = false;
    loop {
        if let Some(key) = Rendezvous::key(rendezvous)? {
            return Ok(key);
        }
        if !core::mem::replace(&mut told, true) {
            info!(
                "waiting for a cluster: no key yet in {} (start the first node with --new, or give --key FILE)",
                rendezvous.display()
            );
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Reads the log; `--new` makes the first entry of a new cluster.
fn recover(config: &Config, dir: &NodeDir) -> Result<(Recovered, u64)> {
    let path = dir.log_file();
    let mut contents = log_file::read(&path)?;
    let mut recovered = decode(&path, &contents)?;
    if config.new {
        ensure!(
            recovered.cluster() == ClusterId(0),
            "{} belongs to cluster {} already; start it without --new",
            config.dir.display(),
            recovered.cluster()
        );
        let cluster = ClusterId(u128::from_le_bytes(random()?).max(1));
        contents = genesis_file(&config.first.genesis(cluster, dir.me.node), dir.me, recovered.number());
        write_durably(&path, &contents, 0o600)?;
        recovered = decode(&path, &contents)?;
        info!(%cluster, "new cluster");
    }
    if recovered.torn() {
        info!("the log ended in a record that was being written when the power went; it is dropped");
    }
    let len = recovered.durable_len();
    Ok((recovered, len))
}

fn decode(path: &Path, contents: &bytes::Bytes) -> Result<Recovered> {
    Recovered::decode(contents.clone()).with_context(|| {
        format!(
            "{} cannot be used; this node must come back with an empty directory, as a new node",
            path.display()
        )
    })
}

fn profile(config: &Config, addresses: Addresses, disks: &[DiskSpec]) -> NodeProfile {
    let storage = !config.gateway;
    let by_capacity = disks.iter().fold(0u32, |sum, disk| sum.saturating_add(disk.weight));
    NodeProfile {
        role: if storage { Role::Storage } else { Role::Gateway },
        name: config.name.clone(),
        zone: config.zone.clone(),
        weight: if storage { config.weight.unwrap_or(by_capacity.min(MAX_WEIGHT)) } else { 0 },
        addresses,
        shards: config.shards,
        capacity: disks.iter().map(|disk| disk.capacity).sum(),
        disks: disks::records(disks),
    }
}

fn first_status(dir: &NodeDir) -> NodeStatus {
    NodeStatus {
        me: dir.me,
        cluster: ClusterId(0),
        primary: false,
        ring_state: "starting",
        ring_members: Vec::new(),
        term: ConfigId::default(),
        commit: LogIndex(0),
        voters: Vec::new(),
        published: None,
        counters: Vec::new(),
        fatal: None,
    }
}

fn ready_line(config: &Config, addresses: &Addresses, sockets: &Sockets) -> Result<String> {
    let one = |list: &[SocketAddr]| list.first().map(ToString::to_string).unwrap_or_default();
    let mut line = format!(
        "dir {}, ring {}, data {}, grpc {}, http {}",
        config.dir.display(),
        one(&addresses.ring),
        one(&addresses.data),
        one(&addresses.grpc),
        one(&addresses.http)
    );
    if let Some(nbd) = &sockets.nbd_tcp {
        line += &format!(", nbd {}", nbd.local_addr()?);
    }
    if let Some(path) = &config.nbd_unix {
        line += &format!(", nbd unix:{}", path.display());
    }
    Ok(line)
}

fn announce(config: &Config, dir: &NodeDir, ring: SocketAddr, grpc: SocketAddr) -> Option<Rendezvous> {
    let path = config.rendezvous.as_ref()?;
    match Rendezvous::join(path, dir.me.node, ring, grpc) {
        Ok(rendezvous) => Some(rendezvous),
        Err(problem) => {
            warn!("nodes on this machine will not find each other by themselves: {problem:#}");
            None
        }
    }
}

/// Looks up seeds for ever, on a thread that may block.
fn find_seeds(
    seeds: Vec<Seed>,
    rendezvous: Option<Rendezvous>,
    control: Sender<ControlMessage>,
) -> Result<()> {
    thread::Builder::new().name("seeds".into()).spawn(move || {
        let mut last = Vec::new();
        loop {
            let mut found: Vec<SocketAddr> = seeds.iter().flat_map(resolve).collect();
            found.extend(rendezvous.iter().flat_map(Rendezvous::peers));
            found.sort_unstable();
            found.dedup();
            if found != last {
                last.clone_from(&found);
                if control.send(ControlMessage::Seeds(found)).is_err() {
                    return;
                }
            }
            thread::sleep(SEED_INTERVAL);
        }
    })?;
    Ok(())
}

fn resolve(seed: &Seed) -> Vec<SocketAddr> {
    seed.to_string().to_socket_addrs().map(Iterator::collect).unwrap_or_default()
}
