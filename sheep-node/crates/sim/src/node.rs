//! A simulated machine: clock, disks, and the node that runs on it, if it runs.

use crate::disks::{self, CAPACITY, SimDisk};
use crate::log_disk::LogDisk;
use crate::rng::Rng8;
use sheep_datapath::{Gateway, GatewayConfig, Replica, ReplicaConfig, Shard, View};
use sheep_engine::{Control, ControlConfig, NodeProfile};
use sheep_log::{Log, Recovered};
use sheep_state::{Addresses, Genesis, Role};
use sheep_store::{StoreConfig, StoreIdentity, StoreSet};
use sheep_totem::RingConfig;
use sheep_types::{ClusterId, Geometry, Incarnation, Member, NodeId, Time};
use std::sync::Arc;

use crate::options::Options;

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
    /// Disks of the store, those that were given up too.
    pub disks: Vec<SimDisk>,
    /// Disks that were lost to the node since it started.
    pub losses: u64,
    /// How stores are made.
    pub store_config: Option<StoreConfig>,
    /// Stands still until then.
    pub paused_until: u64,
    /// Disks take this many times as long.
    pub slow: u64,
    /// The log's disk answers nothing before.
    pub hung_until: u64,
    zone: String,
    offset_ns: u64,
    ppm: i64,
}

impl Node {
    /// A machine that has never run.
    pub fn new(index: usize, rng: &mut Rng8, options: &Options) -> Self {
        let ppm = options.clock_ppm as i64;
        let mut node = Self {
            index,
            id: NodeId(rng.any().max(1)),
            incarnation: 0,
            running: None,
            log: LogDisk::default(),
            disks: Vec::new(),
            losses: 0,
            store_config: None,
            paused_until: 0,
            slow: 1,
            hung_until: 0,
            zone: if rng.chance(500_000) { format!("zone{}", index % 3) } else { String::new() },
            offset_ns: rng.range(0, 1_000_000_000_000),
            ppm: rng.range(0, 2 * options.clock_ppm) as i64 - ppm,
        };
        node.new_disks(rng.any(), options);
        node
    }

    fn new_disks(&mut self, first: u64, options: &Options) {
        let id = |number: u64| first.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.disks = (0..options.disks as u64).map(|number| SimDisk::new(id(number))).collect();
    }

    /// Number of the present run, for the oracle: a lost disk is as good as a restart.
    pub fn run_number(&self) -> u32 {
        (self.incarnation * 1000 + self.losses.min(999)) as u32
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
            // Its incarnations would begin anew. Here they go on, so that no run of a machine has the number of an earlier
            // one: events and holders of writes are told apart by it.
            self.id = id;
        }
        self.log = LogDisk::default();
        self.new_disks(rng.any(), options);
    }

    /// Makes the machine's log that of the first node of a new cluster.
    pub fn format(&mut self, genesis: &Genesis) {
        let file = Log::format(genesis.cluster, self.id, 0, genesis.encode().into());
        self.log = LogDisk::with(file.to_vec());
    }

    /// Starts the node: a new incarnation.
    pub fn start(&mut self, at: u64, rng: &mut Rng8, options: &Options) -> Result<(), String> {
        self.incarnation += 1;
        self.losses = 0;
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
        let profile = NodeProfile {
            role: Role::Storage,
            name: format!("node{}", self.index),
            zone: self.zone.clone(),
            weight: 100,
            addresses: Addresses::default(),
            shards: 1,
            capacity: CAPACITY,
            disks: self.disk_records(),
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
        let mut store_config = StoreConfig::small(geometry, CAPACITY);
        let (mut replica_config, mut gateway_config) = (ReplicaConfig::default(), GatewayConfig::default());
        crate::mutants::data(&mut store_config, &mut replica_config, &mut gateway_config, options);
        disks::remember(self, &store_config);
        let mut store = StoreSet::new();
        for disk in &mut self.disks {
            disk.slot = None;
            if !disk.pulled && !disk.gone {
                let identity = StoreIdentity { cluster, node: self.id, store: disk.id };
                let fresh = disk.is_fresh();
                disk.slot = store.add(store_config.clone(), identity, fresh, disk.weight());
            }
        }
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
            for disk in self.disks.iter_mut().filter(|disk| !disk.pulled && !disk.gone) {
                disk.slot = None;
                disk.disk.crash_seeded(rng.any());
            }
            self.paused_until = 0;
        }
    }
}
