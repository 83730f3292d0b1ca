//! Settings of a replica, and what comes out of it.

use crate::Mutants;
use core::time::Duration;
use sheep_state::Command;
use sheep_store::{DiskOp, StoreError};
use sheep_wire::Packet;

/// Settings of a replica that are not the cluster's.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// How long a request waits for an epoch or a log index that is not applied here yet.
    pub view_wait: Duration,
    /// How long a write waits for the write before it: two connections may overtake each other.
    pub order_wait: Duration,
    /// How long a write waits for the validation of the copy.
    pub validate_wait: Duration,
    /// Most requests that wait, for whatever reason.
    pub waiting_requests: usize,
    /// Most bytes of payload that wait.
    pub waiting_bytes: usize,
    /// An answer of another replica that has not come after this time is asked for again.
    pub ask_timeout: Duration,
    /// The same, for answers that carry blocks, or wait for a disk or for other nodes.
    pub move_timeout: Duration,
    /// First pause before an object that could not be brought up to date is tried again; doubled each time.
    pub retry_min: Duration,
    /// Longest such pause.
    pub retry_max: Duration,
    /// Objects being validated at once.
    pub walks: usize,
    /// Objects being fetched at once.
    pub fetches: usize,
    /// Bytes of blocks in one request, at most.
    pub fetch_bytes: u32,
    /// Requests for blocks of one object under way at once.
    pub fetch_pipeline: usize,
    /// The same two where clients are served: what is moved must not be long in their way.
    pub shared_fetch_bytes: u32,
    /// See there.
    pub shared_fetch_pipeline: usize,
    /// Requests of others for blocks that are carried out at once where clients are served.
    pub shared_sources: usize,
    /// Time since the Unix epoch when the replica is made; zero: not known, and scrubbing never
    /// begins by itself.
    pub wall: Duration,
    /// Rules to break on purpose, for tests of the checkers.
    pub mutants: Mutants,
}

impl Default for ReplicaConfig {
    fn default() -> Self {
        Self {
            view_wait: Duration::from_secs(5),
            order_wait: Duration::from_millis(20),
            validate_wait: Duration::from_millis(500),
            waiting_requests: 4096,
            waiting_bytes: 64 << 20,
            ask_timeout: Duration::from_secs(1),
            move_timeout: Duration::from_secs(3),
            retry_min: Duration::from_millis(10),
            retry_max: Duration::from_secs(1),
            walks: 1024,
            fetches: 8,
            fetch_bytes: 256 << 10,
            fetch_pipeline: 4,
            shared_fetch_bytes: 64 << 10,
            shared_fetch_pipeline: 2,
            shared_sources: 4,
            wall: Duration::ZERO,
            mutants: Mutants::default(),
        }
    }
}

/// An effect of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaOutput {
    /// Send this; to the own node without a network.
    Send(Packet),
    /// Do this on the disk and give the result back.
    Disk(DiskOp),
    /// Order a command; nobody waits for its result.
    Propose(Command),
    /// A disk, not the last one, has failed or was taken away: it is not used any more.
    DiskFailed {
        /// Its slot.
        slot: u8,
        /// Why.
        error: StoreError,
    },
    /// No disk works any more: the node's incarnation ends. Said once.
    StoreFailed,
}

/// What a replica counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Whether the store has started and not failed.
    pub serving: bool,
    /// Requests that wait.
    pub waiting: usize,
    /// Store operations under way.
    pub jobs: usize,
    /// Packets of another cluster, dropped.
    pub foreign: u64,
    /// Requests refused because too much waits.
    pub busy: u64,
    /// Contents that came damaged over the network, and were refused.
    pub garbled: u64,
    /// Bytes per second that recovery is held to because clients waited; none: it is not.
    pub pace: Option<u64>,
}
