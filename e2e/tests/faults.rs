//! Nodes are killed, stopped and cut off in random phases while clients write and verify.
//!
//! `FAULT_ROUNDS` sets how many faults (default 50: three fifths under fio, the rest with a client that changes
//! nodes), `FAULT_SEED` which ones.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheep_e2e::fio::{Fio, Pattern, Target};
use sheep_e2e::oracle::{BLOCK, Random};
use sheep_e2e::{Cluster, Cut, LeakCheck, NbdClient, NetLab, Oracle, Proc, Signal, serial, wait_until};

const RECOVERED: Duration = Duration::from_secs(240);
/// A write may wait this long for a take-over before the test gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// fio passes may take this long, pauses included.
const PASS: Duration = Duration::from_secs(300);
/// Faults between two full read-backs.
const BATCH: u64 = 5;

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

fn draw(random: &mut Random, round: u64) -> Fault {
    let short = Duration::from_millis(500 + random.below(5_000));
    // Long ones are rationed: they make most of the time.
    if round % 10 == 4 {
        return Fault::Stop(Duration::from_secs(30));
    }
    match random.below(9) {
        0..=3 => Fault::Kill,
        4 => Fault::Stop(short),
        5 => Fault::Cut(Cut::Both, short),
        6 => Fault::Cut(Cut::In, short),
        7 => Fault::Cut(Cut::Out, short),
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
    cluster.wait_sound(RECOVERED)
}

/// Passes of fio, one after the other: each writes everything and reads it back. Each has another seed, so that a
/// block that missed a write is noticed in a later pass.
struct Load {
    uri: String,
    dir: PathBuf,
    seed: u32,
    pass: Option<Proc>,
}

fn job(uri: String) -> Fio {
    Fio::new(Target::Nbd(uri), Pattern::RandomWrite, "16M").shape("4k", 16)
}

impl Load {
    /// Starts the next pass if the last one has ended, which must have been in success.
    fn keep_up(&mut self) -> Result<()> {
        if self.pass.as_mut().is_some_and(Proc::is_running) {
            return Ok(());
        }
        self.finish()?;
        self.seed += 1;
        let log = self.dir.join(format!("fio-{}.log", self.seed));
        self.pass = Some(job(self.uri.clone()).verify(self.seed).set("rate_iops=1000").start(&log)?);
        Ok(())
    }

    /// Waits for the end of the pass under way.
    fn finish(&mut self) -> Result<()> {
        let Some(mut pass) = self.pass.take() else { return Ok(()) };
        let status = pass.wait(PASS).with_context(|| format!("pass {}", self.seed))?;
        ensure!(status.success(), "pass {} failed: {}", self.seed, pass.log_tail(20));
        Ok(())
    }

    fn run_for(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.keep_up()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

#[test]
fn fio_verifies_while_replicas_fail() {
    let _one = serial();
    let check = LeakCheck::start();
    let (rounds, seed) = (from_env("FAULT_ROUNDS", 50) * 3 / 5, from_env("FAULT_SEED", 1));
    let mut random = Random::new(seed);
    let lab = NetLab::new(3).unwrap();
    let mut cluster = Cluster::start_in(&lab, 3).unwrap();
    cluster.create("disk", "64M", 3).unwrap();
    // Node 1 serves fio, whose connection a kill would end; the other test kills the server itself.
    let (uri, dir) = (cluster.node(1).nbd_uri("disk"), cluster.path().to_owned());
    let mut load = Load { uri, dir, seed: 0, pass: None };
    for round in 1..=rounds {
        load.run_for(Duration::from_millis(random.below(4_000))).unwrap();
        let (victim, fault) = (random.pick(&[2, 3]), draw(&mut random, round));
        println!("round {round}: {fault:?} at node {victim}, pass {} (seed {seed})", load.seed);
        let result = inflict(&lab, &mut cluster, victim, fault, |_| {
            std::thread::sleep(Duration::from_millis(50));
            load.keep_up()
        });
        result.with_context(|| format!("round {round}, {fault:?} at node {victim}")).unwrap();
        // Everybody is back before the next fault, but copies may still be behind: it may hit their recovery.
        cluster.wait_up(3).unwrap();
        if round % BATCH == 0 || round == rounds {
            load.keep_up().unwrap();
            load.finish().unwrap();
            settle(&mut cluster).unwrap();
            for node in [2, 3] {
                cluster.wait_closed("disk").unwrap();
                job(cluster.node(node).nbd_uri("disk")).verify_only(load.seed).run().unwrap();
            }
            cluster.wait_closed("disk").unwrap();
        }
    }
    drop((load, cluster, lab));
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
    let rounds = from_env("FAULT_ROUNDS", 50) * 2 / 5;
    let seed = from_env("FAULT_SEED", 1) + 1_000;
    let lab = NetLab::new(3).unwrap();
    let mut cluster = Cluster::start_in(&lab, 3).unwrap();
    cluster.create("disk", "64M", 3).unwrap();
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
        let fault = draw(&mut random, round);
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
        cluster.wait_closed("disk").unwrap();
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
    cluster.create("disk", "64M", 3).unwrap();
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
    cluster.create("disk", "64M", 3).unwrap();
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
    assert!(refusal.message.contains("voters"), "{}", refusal.message);
    let majority = cluster.node(1).dog().unwrap();
    majority.create("more", "1G", 3).unwrap();
    lab.heal_all().unwrap();
    settle(&mut cluster).unwrap();
    let volumes = cluster.node(3).dog().unwrap().volumes().unwrap();
    assert_eq!(volumes.len(), 2, "{volumes:?}");
    drop((cluster, lab));
    check.finish().unwrap();
}
