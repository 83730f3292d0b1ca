//! What snapshots cost where there is much of something: a volume of 1 TiB with something in each of its objects, chains of
//! thousands of snapshots, a hundred clones that start at once, the history of few objects spread over the nodes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Figures;
use super::healing::Measurement;
use super::snapshots::{OBJECT, OBJECTS, TIMES, client, each, figures, reads, timed, words, write_each};
use super::systems::Scale;
use crate::dog::{Dog, count};
use crate::oracle::{BLOCK, Random};
use crate::{Cluster, NbdClient, wait_until};

/// Names of the measurements.
pub const MANY: [&str; 13] = [
    "snapshot-1t-allocated",
    "clone-1t-allocated",
    "delete-snapshot-1t-allocated",
    "delete-1t-allocated",
    "space-of-1t-is-back",
    "boot-storm-1-clone",
    "boot-storm-100-clones",
    "snapshot-while-there-are-10000",
    "read-4k-qd1-1000-snapshots",
    "read-4k-qd1-10000-snapshots",
    "delete-snapshots-10000",
    "space-of-10000-snapshots-is-back",
    "spread-1000-snapshots-8-nodes",
];
const LIMIT: Duration = Duration::from_secs(900);
/// Objects of a volume of 1 TiB.
const TERABYTE: u64 = (1 << 40) / OBJECT;
const WRITERS: u64 = 8;
const CLONES: u64 = 100;
/// What a machine that starts does, as far as its disk is concerned.
const BOOT: u64 = 400;
const CHAIN: u64 = 10_000;

/// Objects on all nodes together.
fn objects(cluster: &mut Cluster) -> Result<u64> {
    let counts = cluster.nodes.iter().map(|node| Ok(count(&node.dog()?.json(&["node", "info"])?, "objects")));
    counts.sum()
}

/// How long it takes until there are only so many objects.
fn until_left(cluster: &mut Cluster, left: u64) -> Result<Figures> {
    let (begin, mut now) = (Instant::now(), 0);
    let back = wait_until("space to come back", LIMIT, Duration::from_millis(100), || {
        now = objects(cluster)?;
        Ok(now <= left)
    });
    back.with_context(|| format!("{now} objects are left, there should be {left}"))?;
    Ok(figures(vec![begin.elapsed()]))
}

/// A volume of 1 TiB with one block written in each of its objects.
///
/// # Errors
/// The cluster does not start, or an operation fails.
pub fn terabyte(_: Scale) -> Result<Vec<Measurement>> {
    let mut cluster = Cluster::start(3)?;
    let dog = cluster.node(1).dog()?;
    dog.create("large", "1T", 3)?;
    let empty = objects(&mut cluster)?;
    let clients: Result<Vec<NbdClient>> = (0..WRITERS).map(|_| client(&mut cluster, "large")).collect();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..)
            .zip(clients?)
            .map(|(first, mut client)| {
                scope.spawn(move || {
                    let own = (0..TERABYTE).filter(|object| object % WRITERS == first);
                    own.map(|object| client.write(object * OBJECT, &[7; BLOCK], false))
                        .collect::<Result<Vec<_>>>()?;
                    client.flush()
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().ok().context("a writer has failed")?)
    })?;
    cluster.wait_closed("large")?;
    let mut found = Vec::new();
    found.push((
        "snapshot-1t-allocated",
        each(&dog, TIMES, |n| words(&["vdi", "snapshot", "large", &format!("s{n}")]))?,
    ));
    found.push((
        "clone-1t-allocated",
        each(&dog, TIMES, |n| words(&["vdi", "clone", "large@s0", &format!("clone{n}")]))?,
    ));
    found.push((
        "delete-snapshot-1t-allocated",
        each(&dog, TIMES, |n| words(&["vdi", "delete", &format!("large@s{n}")]))?,
    ));
    each(&dog, TIMES, |n| words(&["vdi", "delete", &format!("clone{n}")]))?;
    found.push(("delete-1t-allocated", each(&dog, 1, |_| words(&["vdi", "delete", "large"]))?));
    found.push(("space-of-1t-is-back", until_left(&mut cluster, empty)?));
    Ok(found)
}

/// Some of what it reads is its own, most is what it has in common with all others.
fn boot(client: &mut NbdClient, seed: u64) -> Result<Vec<Duration>> {
    let (mut random, mut buffer) = (Random::new(seed), vec![0; 8 * BLOCK]);
    let one = |_| {
        let offset = random.below(OBJECTS) * OBJECT + random.below(16) * BLOCK as u64;
        match random.below(5) {
            0 => timed(|| client.write(offset, &[seed as u8; BLOCK], false)),
            _ => timed(|| client.read(offset, &mut buffer)),
        }
    };
    (0..BOOT).map(one).collect()
}

/// A hundred clones of one image that are read and written at once, and one alone.
///
/// # Errors
/// The cluster does not start, or an operation fails.
pub fn boot_storm(_: Scale) -> Result<Vec<Measurement>> {
    let mut cluster = Cluster::start(3)?;
    let dog = cluster.node(1).dog()?;
    dog.create("golden", "4G", 3)?;
    let mut golden = client(&mut cluster, "golden")?;
    (0..16).try_for_each(|block| write_each(&mut golden, block, 1).map(drop))?;
    golden.flush()?;
    drop(golden);
    cluster.wait_closed("golden")?;
    dog.run(&["vdi", "snapshot", "golden", "image"])?;
    each(&dog, CLONES + 1, |n| words(&["vdi", "clone", "golden@image", &format!("clone{n}")]))?;
    let mut found = Vec::new();
    for (name, clones) in [("boot-storm-1-clone", CLONES..CLONES + 1), ("boot-storm-100-clones", 0..CLONES)] {
        let open = |n: u64| {
            let socket = cluster.node(1 + (n % 3) as u8).nbd_socket();
            Ok((n, NbdClient::unix(&socket, &format!("clone{n}"), LIMIT)?))
        };
        let clients: Vec<(u64, NbdClient)> = clones.map(open).collect::<Result<_>>()?;
        let begin = Instant::now();
        let latencies: Vec<Duration> = std::thread::scope(|scope| {
            let booting: Vec<_> = clients
                .into_iter()
                .map(|(n, mut client)| scope.spawn(move || boot(&mut client, n + 1)))
                .collect();
            let ended = booting.into_iter().map(|one| one.join().ok().context("a client has failed")?);
            ended.collect::<Result<Vec<_>>>().map(|all| all.into_iter().flatten().collect())
        })?;
        let iops = latencies.len() as f64 / begin.elapsed().as_secs_f64();
        found.push((name, Figures { iops, ..figures(latencies) }));
    }
    Ok(found)
}

/// Between any two snapshots one object is written.
fn grow_chain(dog: &Dog, disk: &mut NbdClient, from: u64, to: u64) -> Result<Figures> {
    let one = |n: u64| {
        disk.write(n % OBJECTS * OBJECT, &[n as u8; BLOCK], false)?;
        timed(|| dog.run(&["vdi", "snapshot", "disk", &format!("chain{n}")]).map(drop))
    };
    (from..to).map(one).collect::<Result<_>>().map(figures)
}

/// Thousands of snapshots of one volume.
///
/// # Errors
/// The cluster does not start, or an operation fails.
pub fn chain(_: Scale) -> Result<Vec<Measurement>> {
    let mut cluster = Cluster::start(3)?;
    let dog = cluster.node(1).dog()?;
    dog.create("disk", "4G", 3)?;
    let mut disk = client(&mut cluster, "disk")?;
    (0..16).try_for_each(|block| write_each(&mut disk, block, 1).map(drop))?;
    disk.flush()?;
    // What it has alone: its objects and a map object, on each node.
    let own = (OBJECTS + 1) * cluster.nodes.len() as u64;
    let mut found = Vec::new();
    grow_chain(&dog, &mut disk, 0, 1_000)?;
    found.push(("read-4k-qd1-1000-snapshots", reads(&mut disk)?));
    grow_chain(&dog, &mut disk, 1_000, CHAIN)?;
    found.push(("read-4k-qd1-10000-snapshots", reads(&mut disk)?));
    let last = grow_chain(&dog, &mut disk, CHAIN, CHAIN + TIMES)?;
    found.push(("snapshot-while-there-are-10000", last));
    drop(disk);
    cluster.wait_closed("disk")?;
    let deletion = each(&dog, CHAIN + TIMES, |n| words(&["vdi", "delete", &format!("disk@chain{n}")]))?;
    found.push(("delete-snapshots-10000", deletion));
    found.push(("space-of-10000-snapshots-is-back", until_left(&mut cluster, own)?));
    Ok(found)
}

/// Copies of one object's whole history lie on the same nodes, so few objects with a long one could fill those.
///
/// # Errors
/// The cluster does not start, or an operation fails.
pub fn spread(_: Scale) -> Result<Vec<Measurement>> {
    let mut cluster = Cluster::start(8)?;
    let dog = cluster.node(1).dog()?;
    dog.create("disk", "4G", 2)?;
    let mut disk = client(&mut cluster, "disk")?;
    write_each(&mut disk, 0, 1)?;
    let mut random = Random::new(5);
    for n in 0..1_000_u64 {
        for _ in 0..8 {
            // Half of the writes go to one in sixteen of the objects.
            let hot = random.below(2) == 0;
            let object = random.below(if hot { OBJECTS / 16 } else { OBJECTS });
            disk.write(object * OBJECT + random.below(1024) * BLOCK as u64, &[n as u8; BLOCK], false)?;
        }
        dog.run(&["vdi", "snapshot", "disk", &format!("s{n}")])?;
    }
    disk.flush()?;
    let mut objects = Vec::new();
    for node in &cluster.nodes {
        objects.push(count(&node.dog()?.json(&["node", "info"])?, "objects") as f64);
    }
    let mean = objects.iter().sum::<f64>() / objects.len() as f64;
    let most = objects.iter().copied().fold(0.0, f64::max);
    let spread = most / mean.max(1.0);
    Ok(vec![("spread-1000-snapshots-8-nodes", Figures { spread, ..Figures::default() })])
}
