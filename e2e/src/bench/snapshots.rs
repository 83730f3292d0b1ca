//! What snapshots cost: to take, clone and delete one, on a volume nobody uses and on one that is written; the first write
//! to each object afterwards; reads through chains of them. Times of commands are those of the whole `dog` process, which
//! takes a few milliseconds for itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Figures;
use super::healing::Measurement;
use super::systems::Scale;
use crate::dog::Dog;
use crate::oracle::{BLOCK, Random};
use crate::{Cluster, NbdClient};

/// Names of the measurements.
pub const SNAPSHOTS: [&str; 12] = [
    "snapshot-4g",
    "clone-4g",
    "delete-snapshot-4g",
    "snapshot-1t-empty",
    "write-4k-qd1",
    "write-4k-qd1-while-snapshots-are-taken",
    "first-write-4k-to-an-object",
    "first-write-4k-after-a-snapshot",
    "second-write-4k-after-a-snapshot",
    "read-4k-qd1-1-snapshot",
    "read-4k-qd1-100-snapshots",
    "read-4k-qd1-clone",
];
pub(super) const OBJECT: u64 = 4 << 20;
/// Objects that are written and read.
pub(super) const OBJECTS: u64 = 64;
pub(super) const TIMES: u64 = 20;
const CHAIN: u64 = 100;
const READS: u64 = 4000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Latencies as figures.
pub(super) fn figures(mut latencies: Vec<Duration>) -> Figures {
    latencies.sort_unstable();
    let us = |latency: &Duration| latency.as_secs_f64() * 1e6;
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).map_or(0.0, us);
    let sum: f64 = latencies.iter().map(Duration::as_secs_f64).sum();
    let iops = latencies.len() as f64 / sum.max(1e-9);
    Figures {
        iops,
        p50_us: at(50),
        p99_us: at(99),
        max_us: latencies.last().map_or(0.0, us),
        ..Figures::default()
    }
}

pub(super) fn timed(mut act: impl FnMut() -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    act()?;
    Ok(begin.elapsed())
}

pub(super) fn client(cluster: &mut Cluster, export: &str) -> Result<NbdClient> {
    NbdClient::unix(&cluster.node(1).nbd_socket(), export, PATIENCE)
}

/// One block of each object is written; how long each took.
pub(super) fn write_each(client: &mut NbdClient, block: u64, tag: u8) -> Result<Vec<Duration>> {
    let at = |object: u64| object * OBJECT + block * BLOCK as u64;
    (0..OBJECTS).map(|object| timed(|| client.write(at(object), &[tag; BLOCK], false))).collect()
}

pub(super) fn reads(client: &mut NbdClient) -> Result<Figures> {
    let (mut random, mut buffer) = (Random::new(3), vec![0; BLOCK]);
    let latencies = (0..READS).map(|_| {
        let offset = random.below(OBJECTS) * OBJECT + random.below(16) * BLOCK as u64;
        timed(|| client.read(offset, &mut buffer))
    });
    latencies.collect::<Result<_>>().map(figures)
}

/// A command about the `n`th snapshot, for each.
pub(super) fn each(dog: &Dog, times: u64, words: impl Fn(u64) -> Vec<String>) -> Result<Figures> {
    let one = |n: u64| {
        let words = words(n);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        timed(|| dog.run(&words).map(drop))
    };
    (0..times).map(one).collect::<Result<_>>().map(figures)
}

pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Measures all of it on three nodes with three copies.
///
/// # Errors
/// The cluster does not start, or an operation fails.
pub fn costs(_: Scale) -> Result<Vec<Measurement>> {
    let mut found = Vec::new();
    let mut cluster = Cluster::start(3)?;
    let dog = cluster.node(1).dog()?;
    dog.create("disk", "4G", 3)?;
    dog.create("large", "1T", 3)?;
    let mut disk = client(&mut cluster, "disk")?;
    found.push(("first-write-4k-to-an-object", figures(write_each(&mut disk, 0, 1)?)));
    for block in 1..16 {
        write_each(&mut disk, block, 1)?;
    }
    disk.flush()?;
    drop(disk);
    cluster.wait_closed("disk")?;
    found
        .push(("snapshot-4g", each(&dog, TIMES, |n| words(&["vdi", "snapshot", "disk", &format!("s{n}")]))?));
    found.push((
        "snapshot-1t-empty",
        each(&dog, TIMES, |n| words(&["vdi", "snapshot", "large", &format!("s{n}")]))?,
    ));
    found.push((
        "clone-4g",
        each(&dog, TIMES, |n| words(&["vdi", "clone", "disk@s0", &format!("clone{n}")]))?,
    ));
    found.push((
        "delete-snapshot-4g",
        each(&dog, TIMES, |n| words(&["vdi", "delete", &format!("disk@s{n}")]))?,
    ));
    let mut clone = client(&mut cluster, "clone0")?;
    found.push(("read-4k-qd1-clone", reads(&mut clone)?));
    drop(clone);
    found.extend(in_use(&mut cluster, &dog)?);
    Ok(found)
}

/// The same volume while a client uses it.
fn in_use(cluster: &mut Cluster, dog: &Dog) -> Result<Vec<Measurement>> {
    let mut found = Vec::new();
    let mut disk = client(cluster, "disk")?;
    found.push(("read-4k-qd1-1-snapshot", reads(&mut disk)?));
    dog.run(&["vdi", "snapshot", "disk", "in-use"])?;
    found.push(("first-write-4k-after-a-snapshot", figures(write_each(&mut disk, 3, 2)?)));
    found.push(("second-write-4k-after-a-snapshot", figures(write_each(&mut disk, 5, 2)?)));
    for (name, snapshots) in [("write-4k-qd1", false), ("write-4k-qd1-while-snapshots-are-taken", true)] {
        let stop = AtomicBool::new(false);
        let latencies = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_on(&mut disk, &stop));
            let taken = (0..TIMES).try_for_each(|n| {
                std::thread::sleep(Duration::from_millis(200));
                let tag = format!("w{n}");
                if snapshots { dog.run(&["vdi", "snapshot", "disk", &tag]).map(drop) } else { Ok(()) }
            });
            stop.store(true, Ordering::Relaxed);
            let written = writer.join().ok().context("the writer has failed")?;
            taken.and(written)
        })?;
        found.push((name, figures(latencies)));
    }
    for n in 0..CHAIN {
        disk.write(n % OBJECTS * OBJECT, &[n as u8; BLOCK], false)?;
        dog.run(&["vdi", "snapshot", "disk", &format!("chain{n}")])?;
    }
    found.push(("read-4k-qd1-100-snapshots", reads(&mut disk)?));
    Ok(found)
}

fn write_on(client: &mut NbdClient, stop: &AtomicBool) -> Result<Vec<Duration>> {
    let (mut random, mut latencies) = (Random::new(1), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let offset = random.below(OBJECTS) * OBJECT + random.below(16) * BLOCK as u64;
        latencies.push(timed(|| client.write(offset, &[latencies.len() as u8; BLOCK], false))?);
    }
    Ok(latencies)
}
