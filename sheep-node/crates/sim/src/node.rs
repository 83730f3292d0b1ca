//! A simulated machine: clock, disks, and the node that runs on it, if it runs.

use crate::log_disk::LogDisk;
use crate::rng::Rng8;
use sheep_datapath::{Gateway, GatewayConfig, Replica, ReplicaConfig, Shard, View};
use sheep_engine::{Control, ControlConfig, NodeProfile};
use sheep_log::{Log, Recovered};
use sheep_state::{Addresses, DiskRecord, DiskState, Genesis, Role};
use sheep_store::{Store, StoreConfig, StoreIdentity, VirtualDisk};
use sheep_totem::RingConfig;
use sheep_types::{ClusterId, Geometry, Incarnation, Member, NodeId, Time};
use std::sync::Arc;

use crate::options::Options;

/// Capacity of a node's disk, bytes.
const CAPACITY: u64 = 64 << 20;

/// What runs in a process.
pub struct Running {
    /// Ring, log, state.
    pub control: Control,
    /// The data path, once the cluster is known.
    pub shard: Option<Shard>,
    /// The view the shard works from.
    pub view: Option<Arc<View>>,
    /// Deadline last told to the shard, in the node's time.
    pub lease: Time,
    /// When the last write of the log will be durable.
    pub log_busy_until: u64,
    /// Messages from control to the shard stay in order: when the last one arrives.
    pub to_shard: u64,
    /// The same, the other way.
    pub to_control: u64,
}

/// A machine.
pub struct Node {
    /// Its place in the world.
    pub index: usize,
    /// Identity of its store; a lost disk gives another one.
    pub id: NodeId,
    /// Starts so far: the incarnation.
    pub incarnation: u64,
    /// What runs, if anything.
    pub running: Option<Running>,
    /// Disk of the log.
    pub log: LogDisk,
    /// Disk of the store.
    pub disk: VirtualDisk,
    /// Whether a store was made on it.
    pub formatted: bool,
    /// Stands still until then.
    pub paused_until: u64,
    /// Disks take this many times as long.
    pub slow: u64,
    /// The log's disk answers nothing before.
    pub hung_until: u64,
    zone: String,
    offset_ns: u64,
    ppm: i64,
    store_id: u64,
}

impl Node {
    /// A machine that has never run.
    pub fn new(index: usize, rng: &mut Rng8, options: &Options) -> Self {
        let ppm = options.clock_ppm as i64;
        Self {
            index,
            id: NodeId(rng.any().max(1)),
            incarnation: 0,
            running: None,
            log: LogDisk::default(),
            disk: VirtualDisk::new(CAPACITY * 2),
            formatted: false,
            paused_until: 0,
            slow: 1,
            hung_until: 0,
            zone: if rng.chance(500_000) { format!("zone{}", index % 3) } else { String::new() },
            offset_ns: rng.range(0, 1_000_000_000_000),
            ppm: rng.range(0, 2 * options.clock_ppm) as i64 - ppm,
            store_id: rng.any(),
        }
    }

    /// The node in its present run.
    pub fn member(&self) -> Member {
        Member { node: self.id, incarnation: Incarnation(self.incarnation) }
    }

    /// The machine's clock at a world time.
    pub fn clock(&self, at: u64) -> Time {
        let drift = i128::from(at) * i128::from(self.ppm) / 1_000_000;
        Time::from_nanos((i128::from(self.offset_ns) + i128::from(at) + drift) as u64)
    }

    /// World time at which the machine's clock shows `time`, or a little later.
    pub fn world_time(&self, time: Time) -> u64 {
        let elapsed = i128::from(time.as_nanos()) - i128::from(self.offset_ns);
        let world = elapsed * 1_000_000 / (1_000_000 + i128::from(self.ppm)) + 2;
        world.max(0) as u64
    }

    /// Empty disks: whatever starts here is a new node.
    pub fn lose_disks(&mut self, rng: &mut Rng8, options: &Options) {
        assert!(self.running.is_none(), "disks are lost with the process");
        let id = NodeId(rng.any().max(1));
        if !crate::mutants::keeps_identity(options) {
            self.id = id;
            self.incarnation = 0;
        }
        self.log = LogDisk::default();
        self.disk = VirtualDisk::new(CAPACITY * 2);
        self.formatted = false;
        self.store_id = rng.any();
    }

    /// Makes the machine's log that of the first node of a new cluster.
    pub fn format(&mut self, genesis: &Genesis) {
        let file = Log::format(genesis.cluster, self.id, genesis.encode().into());
        self.log = LogDisk::with(file.to_vec());
    }

    /// Starts the node: a new incarnation.
    pub fn start(&mut self, at: u64, rng: &mut Rng8, options: &Options) -> Result<(), String> {
        self.incarnation += 1;
        let now = self.clock(at);
        let contents = self.log.contents().to_vec();
        let recovered = Recovered::decode(contents.into()).map_err(|error| format!("log file: {error}"))?;
        // A torn tail is cut off before anything is appended.
        self.log.truncate(recovered.durable_len());
        let config = self.control_config(options);
        let control = Control::new(config, self.member(), recovered, rng.any(), now);
        let control = control.map_err(|error| format!("control: {error}"))?;
        self.running = Some(Running {
            control,
            shard: None,
            view: None,
            lease: Time::ZERO,
            log_busy_until: at,
            to_shard: at,
            to_control: at,
        });
        Ok(())
    }

    fn control_config(&self, options: &Options) -> ControlConfig {
        let disk =
            DiskRecord { id: self.store_id, incarnation: Incarnation(1), state: DiskState::Up, weight: 1 };
        let profile = NodeProfile {
            role: Role::Storage,
            name: format!("node{}", self.index),
            zone: self.zone.clone(),
            weight: 100,
            addresses: Addresses::default(),
            shards: 1,
            capacity: CAPACITY,
            disks: vec![disk],
        };
        let mut config = ControlConfig::new(RingConfig::with_token_loss(options.token_loss), profile);
        // Small, so that compaction and snapshots happen in every run.
        config.log.snapshot_bytes = 64 << 10;
        config.log.keep_bytes = 8 << 10;
        crate::mutants::control(&mut config, options);
        config
    }

    /// Makes the data path, when the cluster is known.
    pub fn make_shard(&mut self, at: u64, cluster: ClusterId, geometry: Geometry, options: &Options) {
        let now = self.clock(at);
        let me = self.member();
        let identity = StoreIdentity { cluster, node: self.id, store: self.store_id };
        let fresh = !core::mem::replace(&mut self.formatted, true);
        let mut store_config = StoreConfig::small(geometry, CAPACITY);
        let (mut replica_config, mut gateway_config) = (ReplicaConfig::default(), GatewayConfig::default());
        crate::mutants::data(&mut store_config, &mut replica_config, &mut gateway_config, options);
        let store = Store::open(store_config, identity, fresh);
        let replica = Replica::new(replica_config, me, cluster, store, now);
        let gateway = Gateway::new(gateway_config, me, cluster, now);
        let Some(running) = &mut self.running else { return };
        let mut shard = Shard::new(me, Some(replica), gateway);
        shard.handle_lease(now, running.lease);
        running.shard = Some(shard);
    }

    /// The process is gone; disks keep what was synced, and some of the rest.
    pub fn crash(&mut self, rng: &mut Rng8) {
        if self.running.take().is_some() {
            self.log.crash(rng);
            self.disk.crash_seeded(rng.any());
            self.paused_until = 0;
        }
    }
}
