//! What a run is like: drawn from its seed, so that runs differ in kind and not only in timing.

use crate::rng::Rng8;
use core::time::Duration;

/// Kinds of fault that a run may inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process is killed and started again.
    Crash,
    /// A process stands still.
    Pause,
    /// The network splits into groups.
    Partition,
    /// One node hears, but is not heard, or the other way round.
    OneWay,
    /// One pair of nodes cannot talk.
    BrokenPair,
    /// Datagrams are lost, doubled and late.
    BadNetwork,
    /// A disk is slow, or hangs.
    SlowDisk,
    /// Power goes everywhere at once.
    PowerCut,
    /// A node comes back with empty disks: as a new node.
    LostDisk,
    /// A disk of a running node answers errors, and works again later.
    DiskFails,
    /// A disk of a running node is pulled, and put back later or given up.
    DiskTaken,
    /// A running node gets a disk more, or one is emptied.
    DiskAdded,
}

/// Those that need more disks than one.
pub const DISK_FAULTS: [Fault; 3] = [Fault::DiskFails, Fault::DiskTaken, Fault::DiskAdded];

/// All other kinds.
pub const FAULTS: [Fault; 9] = [
    Fault::Crash,
    Fault::Pause,
    Fault::Partition,
    Fault::OneWay,
    Fault::BrokenPair,
    Fault::BadNetwork,
    Fault::SlowDisk,
    Fault::PowerCut,
    Fault::LostDisk,
];

/// What rots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rot {
    /// Blocks of data that another node has, too.
    pub data: bool,
    /// And those that nobody else has: what is not flushed yet.
    pub unflushed: bool,
    /// What stores write about their data: superblocks, logs, checkpoints, pages of checksums and of places.
    pub records: bool,
}

impl Rot {
    /// Whether anything does.
    pub fn any(self) -> bool {
        self.data || self.unflushed || self.records
    }
}

/// What clients do, in percent of their operations; what is left over are reads.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Writes.
    pub writes: u64,
    /// Writes of zeros.
    pub zeros: u64,
    /// Discards, often of whole objects.
    pub discards: u64,
    /// Flushes.
    pub flushes: u64,
    /// Writes that must be durable when answered, in a million.
    pub fua: u64,
}

/// Settings of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The seed it was drawn from.
    pub seed: u64,
    /// Storage nodes.
    pub nodes: usize,
    /// Volumes, each with a client of its own.
    pub clients: usize,
    /// Disks of each node.
    pub disks: usize,
    /// Copies of each object.
    pub copies: u8,
    /// Copies below which writes wait.
    pub min_copies: u8,
    /// Bytes of a volume.
    pub volume_size: u64,
    /// Token loss timeout of the rings.
    pub token_loss: Duration,
    /// How long a node stays down before its data is re-created elsewhere.
    pub out_delay: Duration,
    /// Simulated time with faults.
    pub duration: Duration,
    /// Kinds of fault, two or more.
    pub faults: Vec<Fault>,
    /// Mean time between faults.
    pub fault_interval: Duration,
    /// Largest deviation of a node's clock, parts per million.
    pub clock_ppm: u64,
    /// Mean time between a client's operations.
    pub think: Duration,
    /// Operations that a client has under way at most.
    pub depth: usize,
    /// What they are.
    pub work: Work,
    /// When gateways flush by themselves.
    pub flush_interval: Duration,
    /// How many times as long as usual a slow disk takes at most.
    pub slowest: u64,
    /// Crashes hit gateways that are in use, and power cuts come soon after take-overs.
    pub aimed: bool,
    /// Time without faults in which everything must come back.
    pub recovery_limit: Duration,
    /// Whether clients give sessions up without closing them, and the old gateways are used on.
    pub rivals: bool,
    /// Network faults are short, and each one ends the one before.
    pub restless: bool,
    /// What rots on the disks of one node. A scrub of all nodes ends the run.
    pub rot: Rot,
    /// Bits of messages between data paths flip: how many messages of a million are hit.
    pub flips: u64,
    /// Snapshots, clones, rollbacks, deletions, growing volumes, and readers.
    pub snapshots: bool,
    /// With these: who has a volume makes it smaller.
    pub shrinks: bool,
    /// Then what is on the disks is held against what can be reached; every third time everything is deleted.
    pub space: bool,
    /// Clients also order commands that have nothing to do with their volumes.
    pub commands: bool,
    /// The rule that is left out, by name, if the build has broken variants.
    pub mutant: Option<String>,
    /// Print what happens.
    pub verbose: bool,
}

impl Options {
    /// The options of a seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng8::new(seed ^ 0x5eed_0000_0000_0000);
        let nodes = rng.range(3, 7) as usize;
        let copies = rng.range(2, 3) as u8;
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| rng.chance(450_000)).collect();
        while faults.len() < 2 {
            let fault = FAULTS[rng.index(FAULTS.len())];
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
        // A source of its own: the rest of what a seed means stays.
        let mut of_disks = Rng8::new(seed ^ 0xd15c_0000_0000_0000);
        let disks = of_disks.range(1, 3) as usize;
        if disks > 1 {
            faults.extend(DISK_FAULTS.into_iter().filter(|_| of_disks.chance(450_000)));
        }
        Self {
            seed,
            nodes,
            disks,
            clients: rng.range(1, 3) as usize,
            copies,
            min_copies: rng.range(1, u64::from(copies)) as u8,
            volume_size: 1 << 20,
            token_loss: Duration::from_millis(rng.range(200, 600)),
            out_delay: Duration::from_secs(rng.range(4, 20)),
            duration: Duration::from_secs(60),
            faults,
            fault_interval: Duration::from_millis(rng.range(1500, 6000)),
            clock_ppm: rng.range(0, 4000),
            think: Duration::from_millis(rng.range(10, 60)),
            depth: rng.range(1, 8) as usize,
            work: Work { writes: 45, zeros: 4, discards: 3, flushes: 8, fua: 50_000 },
            flush_interval: Duration::from_millis(500),
            slowest: 100,
            aimed: false,
            recovery_limit: Duration::from_secs(120),
            rivals: false,
            restless: false,
            rot: Rot::default(),
            flips: 0,
            snapshots: false,
            shrinks: false,
            space: true,
            commands: false,
            mutant: None,
            verbose: false,
        }
    }

    /// One disk for each node, and no faults of disks alone.
    pub fn single_disk(mut self) -> Self {
        self.disks = 1;
        self.faults.retain(|fault| !DISK_FAULTS.contains(fault));
        self
    }
}
