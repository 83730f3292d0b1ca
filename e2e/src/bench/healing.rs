//! What a failure costs: how fast missing copies are made, what clients feel of that, and the longest write when a node
//! dies or is cut off. Default settings, but for the time that a node may be away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Figures;
use super::systems::Scale;
use crate::dog::{count, text};
use crate::fio::{Fio, Measured, Pattern, Target};
use crate::nbd::unix_uri;
use crate::oracle::{BLOCK, Random};
use crate::{Cluster, Cut, NbdClient, NetLab, wait_until};

/// Names of the measurements.
pub const HEALING: [&str; 6] = [
    "recovery",
    "recovery-with-clients",
    "randwrite-4k-qd1-before-recovery",
    "randwrite-4k-qd1-in-recovery",
    "longest-write-node-killed",
    "longest-write-node-cut-off",
];
const LIMIT: Duration = Duration::from_secs(600);
/// A writer goes on so long after a failure.
const WATCH: Duration = Duration::from_secs(15);

/// One measurement: its name and what it gave.
pub type Measurement = (&'static str, Figures);

fn fill(cluster: &mut Cluster, scale: Scale) -> Result<()> {
    let uri = unix_uri(&cluster.node(1).nbd_socket(), "bench");
    let job = Fio::new(Target::Nbd(uri), Pattern::Write, &scale.bytes.to_string()).shape("1m", 8);
    job.set("refill_buffers=1").set("end_fsync=1").run().map(drop)
}

fn client(cluster: &mut Cluster, scale: Scale) -> Fio {
    let uri = unix_uri(&cluster.node(1).nbd_socket(), "bench");
    Fio::new(Target::Nbd(uri), Pattern::RandomWrite, &scale.bytes.to_string()).set("norandommap=1")
}

fn latency(measured: Measured) -> Figures {
    Figures {
        iops: measured.iops,
        mbps: measured.mbps,
        p50_us: measured.p50_us,
        p99_us: measured.p99_us,
        max_us: measured.max_us,
        ..Figures::default()
    }
}

/// Bytes fetched by all running nodes since they started.
fn fetched(cluster: &mut Cluster) -> Result<u64> {
    let all = cluster.any_dog()?.recoveries()?;
    Ok(all.iter().map(|row| count(row, "bytes_fetched")).sum())
}

/// One of four nodes dies; three copies of everything are made anew by the others. First without clients, then with one.
///
/// # Errors
/// The cluster does not start or does not heal.
pub fn recovery(scale: Scale) -> Result<Vec<Measurement>> {
    let mut found = Vec::new();
    for with_clients in [false, true] {
        let mut cluster = Cluster::start(4)?;
        let dog = cluster.any_dog()?;
        dog.run(&["cluster", "settings", "--out-delay-ms", "1000"])?;
        dog.create("bench", &scale.bytes.to_string(), 3)?;
        fill(&mut cluster, scale)?;
        cluster.wait_recovered(LIMIT)?;
        if with_clients {
            let before = client(&mut cluster, scale).timed(Duration::from_secs(2), scale.run).run()?;
            found.push(("randwrite-4k-qd1-before-recovery", latency(before)));
        }
        let before = fetched(&mut cluster)?;
        cluster.node(4).kill();
        wait_until("the dead node is out", LIMIT, Duration::from_millis(20), || {
            Ok(dog.nodes()?.iter().any(|node| text(node, "state") == "out"))
        })?;
        let begin = Instant::now();
        let load = if with_clients {
            let log = cluster.path().join("client.log");
            let job = client(&mut cluster, scale).timed(Duration::ZERO, LIMIT);
            // Its latencies are logged one by one: it is ended when recovery is.
            let job = job.set(&format!("write_lat_log={}", cluster.path().join("lat").display()));
            Some(job.set("log_avg_msec=0").start(&log)?)
        } else {
            None
        };
        cluster.wait_recovered(LIMIT)?;
        let took = begin.elapsed();
        let moved = fetched(&mut cluster)? - before;
        let mbps = moved as f64 / took.as_secs_f64() / 1e6;
        let name = if with_clients { "recovery-with-clients" } else { "recovery" };
        found.push((name, Figures { mbps, ..Figures::default() }));
        if let Some(mut load) = load {
            load.terminate(Duration::from_secs(30))?;
            found.push(("randwrite-4k-qd1-in-recovery", from_log(&cluster.path().join("lat_clat.1.log"))?));
        }
    }
    Ok(found)
}

/// Latencies from fio's log: time in milliseconds, latency in nanoseconds, and more.
fn from_log(path: &std::path::Path) -> Result<Figures> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let fields = |line: &str| -> Option<(u64, u64)> {
        let mut fields = line.split(',').map(str::trim);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let all: Vec<(u64, u64)> = text.lines().filter_map(fields).collect();
    let mut latencies: Vec<u64> = all.iter().map(|(_, latency)| *latency).collect();
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).map_or(0.0, |l| *l as f64 / 1e3);
    let seconds = all.last().map_or(1.0, |(ms, _)| *ms as f64 / 1e3).max(0.001);
    let iops = latencies.len() as f64 / seconds;
    Ok(Figures {
        iops,
        mbps: iops * BLOCK as f64 / 1e6,
        p50_us: at(50),
        p99_us: at(99),
        max_us: latencies.last().map_or(0.0, |l| *l as f64 / 1e3),
        ..Figures::default()
    })
}

/// The longest write of a client at another node while a node is killed, and while one is cut off.
///
/// # Errors
/// The cluster does not start, or the client loses its connection.
pub fn longest_writes(_: Scale) -> Result<Vec<Measurement>> {
    let mut found = Vec::new();
    for (name, cut) in [("longest-write-node-killed", false), ("longest-write-node-cut-off", true)] {
        let lab = NetLab::new(3)?;
        let mut cluster = Cluster::start_in(&lab, 3)?;
        cluster.create("bench", "256M", 3)?;
        let mut client = NbdClient::unix(&cluster.node(1).nbd_socket(), "bench", Duration::from_secs(60))?;
        let stop = AtomicBool::new(false);
        let measured = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_on(&mut client, &stop));
            std::thread::sleep(Duration::from_secs(2));
            let failed = match cut {
                true => lab.cut(3, Cut::Both),
                false => {
                    cluster.node(3).kill();
                    Ok(())
                }
            };
            std::thread::sleep(WATCH);
            stop.store(true, Ordering::Relaxed);
            failed.and(writer.join().unwrap_or_else(|_| anyhow::bail!("the writer has failed")))
        })?;
        found.push((name, measured));
    }
    Ok(found)
}

fn write_on(client: &mut NbdClient, stop: &AtomicBool) -> Result<Figures> {
    let (mut random, mut latencies, begin) = (Random::new(1), Vec::new(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        client.write(random.below(1 << 14) * BLOCK as u64, &[latencies.len() as u8; BLOCK], false)?;
        latencies.push(start.elapsed());
    }
    latencies.sort_unstable();
    let at = |percent: usize| {
        latencies.get(latencies.len() * percent / 100).map_or(0.0, |l| l.as_secs_f64() * 1e6)
    };
    let max_us = latencies.last().map_or(0.0, |l| l.as_secs_f64() * 1e6);
    let iops = latencies.len() as f64 / begin.elapsed().as_secs_f64();
    Ok(Figures { iops, p50_us: at(50), p99_us: at(99), max_us, ..Figures::default() })
}
