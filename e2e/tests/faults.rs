//! Nodes are killed, stopped and cut off in random phases while clients write and verify.
//!
//! `FAULT_ROUNDS` sets how many faults (default 50 in total over both tests), `FAULT_SEED` which ones.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sheep_e2e::fio::{Fio, Pattern, Target};
use sheep_e2e::oracle::{BLOCK, Random};
use sheep_e2e::{Cluster, Cut, LeakCheck, NbdClient, NetLab, Oracle, Signal, serial, wait_until};

const RECOVERED: Duration = Duration::from_secs(120);
/// A write may wait this long for a take-over before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop(Duration),
    Cut(Cut, Duration),
    /// Only the path from the victim to the next node is cut.
    OnePath(Duration),
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn draw(random: &mut Random) -> Fault {
    let short = Duration::from_millis(500 + random.below(5_000));
    match random.below(10) {
        0..=3 => Fault::Kill,
        4 => Fault::Stop(Duration::from_secs(30)),
        5 => Fault::Stop(short),
        6 => Fault::Cut(Cut::Both, short),
        7 => Fault::Cut(Cut::In, short),
        8 => Fault::Cut(Cut::Out, short),
        _ => Fault::OnePath(short),
    }
}

/// Lets the fault happen to node `victim`, keeps it for its time by calling `meanwhile` again and again, ends it.
fn inflict(
    lab: &NetLab,
    cluster: &mut Cluster,
    victim: u8,
    fault: Fault,
    mut meanwhile: impl FnMut(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let length = match fault {
        Fault::Kill => {
            cluster.node(victim).kill();
            Duration::from_secs(2)
        }
        Fault::Stop(length) => {
            cluster.node(victim).signal(Signal::Stop)?;
            length
        }
        Fault::Cut(cut, length) => {
            lab.cut(victim, cut)?;
            length
        }
        Fault::OnePath(length) => {
            lab.cut_path(victim, victim % 3 + 1)?;
            length
        }
    };
    let start = Instant::now();
    while start.elapsed() < length {
        meanwhile(cluster)?;
    }
    match fault {
        Fault::Kill => {
            cluster.node(victim).start()?;
        }
        Fault::Stop(_) => cluster.node(victim).signal(Signal::Continue)?,
        Fault::Cut(..) | Fault::OnePath(_) => lab.heal_all()?,
    }
    Ok(())
}

/// After a fault everybody comes back and every copy is re-created, before the next one.
fn settle(cluster: &mut Cluster) -> Result<()> {
    cluster.wait_up(3)?;
    cluster.wait_recovered(RECOVERED)?;
    cluster.any_dog()?.run(&["cluster", "check"]).map(drop)
}

#[test]
fn fio_verifies_while_replicas_fail() {
    let _one = serial();
    let check = LeakCheck::start();
    let (rounds, seed) = (from_env("FAULT_ROUNDS", 50) / 2, from_env("FAULT_SEED", 1));
    let mut random = Random::new(seed);
    let lab = NetLab::new(3).unwrap();
    let mut cluster = Cluster::start_in(&lab, 3).unwrap();
    cluster.any_dog().unwrap().create("disk", "64M", 3).unwrap();
    let job = |cluster: &mut Cluster, node: u8| {
        let uri = cluster.node(node).nbd_uri("disk");
        Fio::new(Target::Nbd(uri), Pattern::RandomWrite, "16M").shape("4k", 16)
    };
    let mut last = 0;
    for round in 1..=rounds {
        // Another seed each time, so that a block that missed this round's write is noticed.
        last = u32::try_from(round).unwrap();
        let log = cluster.path().join("fio.log");
        let mut writer = job(&mut cluster, 1).verify(last).set("rate_iops=800").start(&log).unwrap();
        std::thread::sleep(Duration::from_millis(random.below(4_000)));
        // Node 1 serves fio, whose connection a kill would end; the other test kills the server itself.
        let (victim, fault) = (random.pick(&[2, 3]), draw(&mut random));
        println!("round {round}: {fault:?} at node {victim} (seed {seed})");
        inflict(&lab, &mut cluster, victim, fault, |_| {
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        })
        .unwrap();
        let status = writer.wait(Duration::from_secs(180)).unwrap();
        assert!(status.success(), "round {round}, {fault:?} at node {victim}: {}", writer.log_tail(20));
        settle(&mut cluster).unwrap();
    }
    job(&mut cluster, 2).verify_only(last).run().unwrap();
    job(&mut cluster, 3).verify_only(last).run().unwrap();
    drop((cluster, lab));
    check.finish().unwrap();
}

/// A client like a virtual machine: keeps a request until some node has answered it.
struct Stubborn {
    client: Option<NbdClient>,
    /// The node it is connected to, or tries next.
    node: u8,
    oracle: Oracle,
    random: Random,
    longest: Duration,
}

impl Stubborn {
    fn step(&mut self, cluster: &mut Cluster) -> Result<()> {
        let block = self.random.below(self.oracle.len() as u64) as usize;
        let reads = self.random.below(4) == 0;
        // One contents per attempt: whether an attempt without an answer took effect is open until a read tells.
        let start = Instant::now();
        loop {
            match self.attempt(cluster, block, reads) {
                Ok(()) => break,
                Err(error) if error.downcast_ref::<Violation>().is_some() => return Err(error),
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(error.context("no answer for too long"));
                }
                Err(_) => {
                    self.client = None;
                    self.node = self.node % 3 + 1;
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        self.longest = self.longest.max(start.elapsed());
        Ok(())
    }

    fn attempt(&mut self, cluster: &mut Cluster, block: usize, reads: bool) -> Result<()> {
        if self.client.is_none() {
            let socket = cluster.node(self.node).nbd_socket();
            self.client = Some(NbdClient::unix(&socket, "disk", Duration::from_secs(5))?);
        }
        let client = self.client.as_mut().context("connected")?;
        let at = block as u64 * BLOCK as u64;
        if reads {
            let mut buffer = vec![0; BLOCK];
            client.read(at, &mut buffer)?;
            return self.oracle.check(block, &buffer).map_err(|error| Violation(error.to_string()).into());
        }
        let data = self.oracle.send(block);
        client.write(at, &data, false)?;
        self.oracle.answered(block);
        Ok(())
    }
}

/// Something that no fault excuses.
#[derive(Debug)]
struct Violation(String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Violation {}

#[test]
fn answered_writes_survive_faults_of_any_node() {
    let _one = serial();
    let check = LeakCheck::start();
    let rounds = from_env("FAULT_ROUNDS", 50).div_ceil(2);
    let seed = from_env("FAULT_SEED", 1) + 1_000;
    let lab = NetLab::new(3).unwrap();
    let mut cluster = Cluster::start_in(&lab, 3).unwrap();
    cluster.any_dog().unwrap().create("disk", "64M", 3).unwrap();
    let mut client = Stubborn {
        client: None,
        node: 1,
        oracle: Oracle::new(16 * 256, seed),
        random: Random::new(seed),
        longest: Duration::ZERO,
    };
    let mut random = Random::new(seed + 1);
    for round in 1..=rounds {
        for _ in 0..random.below(400) {
            client.step(&mut cluster).unwrap();
        }
        // Half of the faults hit the very node that serves.
        let victim = if random.below(2) == 0 { client.node } else { random.pick(&[1, 2, 3]) };
        let fault = draw(&mut random);
        println!("round {round}: {fault:?} at node {victim}, client at node {} (seed {seed})", client.node);
        client.longest = Duration::ZERO;
        let result = inflict(&lab, &mut cluster, victim, fault, |cluster| client.step(cluster));
        result.with_context(|| format!("round {round}, {fault:?} at node {victim}")).unwrap();
        println!("    longest request {:?}", client.longest);
        for _ in 0..100 {
            client.step(&mut cluster).unwrap();
        }
        settle(&mut cluster).unwrap();
    }
    for node in [1, 2, 3] {
        (client.client, client.node) = (None, node);
        let mut reader = NbdClient::unix(&cluster.node(node).nbd_socket(), "disk", PATIENCE).unwrap();
        let mut buffer = vec![0; BLOCK];
        for block in 0..client.oracle.len() {
            reader.read(block as u64 * BLOCK as u64, &mut buffer).unwrap();
            client.oracle.check(block, &buffer).unwrap();
        }
    }
    drop((client, cluster, lab));
    check.finish().unwrap();
}

#[test]
fn the_old_writer_of_a_taken_over_lock_is_refused() {
    let _one = serial();
    let check = LeakCheck::start();
    let lab = NetLab::new(3).unwrap();
    let mut cluster = Cluster::start_in(&lab, 3).unwrap();
    cluster.any_dog().unwrap().create("disk", "64M", 3).unwrap();
    let limit = Duration::from_secs(5);
    let mut old = NbdClient::unix(&cluster.node(1).nbd_socket(), "disk", limit).unwrap();
    old.write(0, &[1; BLOCK], false).unwrap();
    // Node 1 stands still and wakes up believing that it still holds the lock.
    cluster.node(1).signal(Signal::Stop).unwrap();
    let socket = cluster.node(2).nbd_socket();
    let mut new = None;
    wait_until("take-over", PATIENCE, Duration::from_millis(100), || {
        new = NbdClient::unix(&socket, "disk", limit).ok();
        Ok(new.is_some())
    })
    .unwrap();
    let mut new = new.unwrap();
    let mut buffer = vec![0; BLOCK];
    new.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [1; BLOCK], "an answered write is gone");
    new.write(0, &[2; BLOCK], true).unwrap();
    cluster.node(1).signal(Signal::Continue).unwrap();
    let late = old.write(0, &[3; BLOCK], false);
    assert!(late.is_err(), "a writer whose lock was taken over is still served");
    std::thread::sleep(Duration::from_secs(2));
    new.read(0, &mut buffer).unwrap();
    assert_eq!(buffer, [2; BLOCK], "the old writer's data got through");
    drop((old, new));
    settle(&mut cluster).unwrap();
    drop((cluster, lab));
    check.finish().unwrap();
}

#[test]
fn a_minority_neither_reads_nor_writes() {
    let _one = serial();
    let check = LeakCheck::start();
    let lab = NetLab::new(3).unwrap();
    let mut cluster = Cluster::start_in(&lab, 3).unwrap();
    cluster.any_dog().unwrap().create("disk", "64M", 3).unwrap();
    let mut client = NbdClient::unix(&cluster.node(3).nbd_socket(), "disk", Duration::from_secs(20)).unwrap();
    client.write(0, &[1; BLOCK], true).unwrap();
    lab.cut(3, Cut::Both).unwrap();
    std::thread::sleep(Duration::from_secs(15));
    // Its lease is long over: no read may be answered from its own copy, no write at all.
    let mut buffer = vec![0; BLOCK];
    assert!(client.read(0, &mut buffer).is_err(), "a cut-off node answered a read");
    drop(client);
    let refusal = cluster.node(3).dog().unwrap().refused(&["vdi", "create", "more", "1G"]).unwrap();
    assert_eq!(refusal.code, 1);
    assert!(!refusal.message.trim().is_empty());
    let majority = cluster.node(1).dog().unwrap();
    majority.create("more", "1G", 3).unwrap();
    lab.heal_all().unwrap();
    settle(&mut cluster).unwrap();
    let volumes = cluster.node(3).dog().unwrap().volumes().unwrap();
    assert_eq!(volumes.len(), 2, "{volumes:?}");
    drop((cluster, lab));
    check.finish().unwrap();
}
