//! The systems compared, and the workloads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::ceph::Ceph;
use super::disk::DiskCount;
use super::{Figures, load};
use crate::fio::{Fio, Measured, Pattern, Target};
use crate::nbd::{NbdClient, unix_uri};
use crate::process::cpu_us;

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name in the results.
    pub name: &'static str,
    /// Direction and order.
    pub pattern: Pattern,
    /// Block size in fio's notation.
    pub block: &'static str,
    /// Requests in flight.
    pub depth: u32,
    /// Every write is durable before it is answered.
    pub durable: bool,
}

const fn workload(
    name: &'static str,
    pattern: Pattern,
    block: &'static str,
    depth: u32,
    durable: bool,
) -> Workload {
    Workload { name, pattern, block, depth, durable }
}

/// All workloads on a disk.
pub const WORKLOADS: [Workload; 8] = [
    workload("randwrite-4k-qd1-durable", Pattern::RandomWrite, "4k", 1, true),
    workload("randwrite-4k-qd32-durable", Pattern::RandomWrite, "4k", 32, true),
    workload("randwrite-4k-qd1", Pattern::RandomWrite, "4k", 1, false),
    workload("randwrite-4k-qd32", Pattern::RandomWrite, "4k", 32, false),
    workload("randread-4k-qd1", Pattern::RandomRead, "4k", 1, false),
    workload("randread-4k-qd32", Pattern::RandomRead, "4k", 32, false),
    workload("write-1m-qd8", Pattern::Write, "1m", 8, false),
    workload("read-1m-qd8", Pattern::Read, "1m", 8, false),
];

/// A disk to measure.
pub enum System {
    /// A file on the disk below everything, with direct I/O.
    Raw(PathBuf),
    /// An NBD export.
    Nbd {
        /// Its Unix socket.
        socket: PathBuf,
        /// Its name.
        export: String,
        /// The processes that serve it, whose processor time counts.
        servers: Vec<u32>,
    },
    /// An image of Ceph, by librbd.
    Rbd(Ceph),
}

/// Sizes and times of a run.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Bytes of the volume or file that are used; written completely first.
    pub bytes: u64,
    /// Length of each measurement.
    pub run: Duration,
}

impl System {
    fn target(&self) -> Target {
        match self {
            System::Raw(path) => Target::File(path.clone()),
            System::Nbd { socket, export, .. } => Target::Nbd(unix_uri(socket, export)),
            System::Rbd(ceph) => ceph.target(),
        }
    }

    fn servers_cpu(&self) -> u64 {
        match self {
            System::Raw(_) => 0,
            System::Nbd { servers, .. } => servers.iter().map(|pid| cpu_us(*pid)).sum(),
            System::Rbd(ceph) => ceph.servers_cpu(),
        }
    }

    /// Writes everything once, so that no measurement meets a hole.
    ///
    /// # Errors
    /// The target cannot be written.
    pub fn fill(&self, scale: Scale) -> Result<()> {
        let job = Fio::new(self.target(), Pattern::Write, &scale.bytes.to_string()).shape("1m", 8);
        self.run(&job.set("refill_buffers=1").set("end_fsync=1"), scale).map(drop)
    }

    fn run(&self, job: &Fio, scale: Scale) -> Result<Measured> {
        let System::Rbd(ceph) = self else { return job.run() };
        // librbd waits for ever for OSDs that are gone; 4 MiB per second is slow enough for everybody.
        let limit = scale.run + Duration::from_secs(120 + (scale.bytes >> 22));
        let measured = job.run_within(limit, &ceph.fio_log());
        measured.and_then(|measured| ceph.check().map(|()| measured)).map_err(|error| ceph.explain(error))
    }

    /// Runs one workload.
    ///
    /// # Errors
    /// The load fails.
    pub fn measure(&self, workload: &Workload, scale: Scale, disk: &Path) -> Result<Figures> {
        forget_cached()?;
        if let System::Rbd(ceph) = self {
            let ready = ceph.check().and_then(|()| ceph.forget_cached());
            ready.map_err(|error| ceph.explain(error))?;
        }
        let (disk_before, cpu_before) = (DiskCount::at(disk)?, self.servers_cpu());
        let measured = self.load(workload, scale)?;
        // What was answered but is still on its way to the disk belongs to this measurement.
        crate::process::run("sync", ["-f", &disk.display().to_string()])?;
        let written = DiskCount::at(disk)?.since(disk_before);
        let servers = self.servers_cpu().saturating_sub(cpu_before) as f64;
        let operations = measured.operations.max(1) as f64;
        Ok(Figures {
            iops: measured.iops,
            mbps: measured.mbps,
            p50_us: measured.p50_us,
            p99_us: measured.p99_us,
            max_us: measured.max_us,
            cpu_us_per_io: match self {
                System::Raw(_) => measured.client_cpu_us,
                System::Nbd { .. } | System::Rbd(_) => servers / operations,
            },
            disk_writes_per_io: written.writes as f64 / operations,
            disk_bytes_per_io: written.bytes as f64 / operations,
            ..Figures::default()
        })
    }

    fn load(&self, workload: &Workload, scale: Scale) -> Result<Measured> {
        if let System::Nbd { socket, export, .. } = self
            && workload.durable
        {
            let mut client = NbdClient::unix(socket, export, Duration::from_secs(60))?;
            return load::durable_writes(&mut client, scale.bytes, workload.depth as usize, scale.run);
        }
        let mut job = Fio::new(self.target(), workload.pattern, &scale.bytes.to_string())
            .shape(workload.block, workload.depth)
            .timed(Duration::ZERO, scale.run)
            .set("refill_buffers=1");
        // A random map would cost memory and time in the client; blocks may repeat.
        if matches!(workload.pattern, Pattern::RandomRead | Pattern::RandomWrite) {
            job = job.set("norandommap=1");
        }
        // Ceph has no other writes: its OSDs answer when a write is on stable storage (and librbd keeps none back, as
        // its cache is off), so there both kinds of workload are the same one, measured twice.
        if workload.durable && !matches!(self, System::Rbd(_)) {
            job = job.set("sync=dsync");
        }
        self.run(&job, scale)
    }
}

/// Drops clean pages from the page cache, so that reads reach the disk.
fn forget_cached() -> Result<()> {
    crate::process::run("sync", std::iter::empty::<&str>())?;
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches (root?)")
}
