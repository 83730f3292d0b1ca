//! Nodes are killed, stopped and cut off in random phases while clients write and verify.
//!
//! `FAULT_ROUNDS` sets how many faults there are under fio (50), `FAULT_MOVES` how many with a client that changes nodes
//! (20), `TREE_SECONDS` how long snapshots are taken and deleted (40), `FAULT_SEED` which ones (1), `FAULT_CLUSTERS` over how many clusters at the same time they are spread (2).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests, which may")]

mod client;
mod fault;
mod files;
mod hour;
mod load;
mod trees;

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use client::{PATIENCE, Stubborn};
use fault::{Deck, Fault};
use load::Load;
use sheep_e2e::oracle::{BLOCK, Random};
use sheep_e2e::{Cluster, Cut, LeakCheck, NbdClient, NetLab, Signal, serial, wait_until};

const RECOVERED: Duration = Duration::from_secs(240);

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// After a fault everybody comes back and every copy is re-created, before the next one.
fn settle(cluster: &mut Cluster) -> Result<()> {
    cluster.wait_recovered(RECOVERED)?;
    cluster.wait_sound(RECOVERED)
}

/// One of the clusters that faults are spread over, in a network of its own.
struct Lane<'a> {
    number: u64,
    seed: u64,
    rounds: u64,
    moves: u64,
    /// Another one has failed: there is no use in going on.
    failed: &'a AtomicBool,
    begin: Instant,
}

impl Lane<'_> {
    fn run(&self) {
        let lab = NetLab::new(3).unwrap();
        let mut cluster = Cluster::start_in(&lab, 3).unwrap();
        // Panics only here, where the logs of the cluster are shown for it.
        let result = self.under_fio(&lab, &mut cluster).and_then(|()| self.moving(&lab, &mut cluster));
        if let Err(error) = &result {
            self.failed.store(true, Ordering::Relaxed);
            panic!("cluster {} (seed {}): {error:?}", self.number, self.seed);
        }
    }

    fn say(&self, text: &str) {
        println!("{:5.1} s  cluster {}  {text}", self.begin.elapsed().as_secs_f64(), self.number);
    }

    fn go_on(&self) -> Result<()> {
        ensure!(!self.failed.load(Ordering::Relaxed), "ended, because another cluster has failed");
        Ok(())
    }

    /// fio cannot connect again, so the node that serves it is spared; every node serves for a third of the rounds.
    fn under_fio(&self, lab: &NetLab, cluster: &mut Cluster) -> Result<()> {
        cluster.create("disk", "64M", 3)?;
        let (mut load, mut random) = (Load::new(cluster, "disk"), Random::new(self.seed));
        let mut kinds = fault::kinds();
        let mut round = 0;
        for server in [1, 2, 3] {
            load.move_to(cluster, server)?;
            let mut victims = Deck::new(&[server % 3 + 1, (server + 1) % 3 + 1]);
            while round < self.rounds * u64::from(server) / 3 {
                round += 1;
                self.go_on()?;
                load.run_for(Duration::from_millis(random.below(3_000)))?;
                let (kind, victim) = (kinds.deal(&mut random), victims.deal(&mut random));
                let fault = Fault::new(kind, victim, Some(server), &mut random);
                self.say(&format!("round {round}: {fault}; fio at node {server}, pass {}", load.seed));
                let result = fault.inflict(lab, cluster, |_| {
                    std::thread::sleep(Duration::from_millis(50));
                    load.keep_up()
                });
                result.with_context(|| format!("round {round}, {fault}"))?;
                // Everybody is back before the next fault, but copies may still be behind: it may hit their recovery.
                cluster.wait_up(3).with_context(|| format!("round {round}, {fault}"))?;
            }
            load.keep_up()?;
            load.finish()?;
            cluster.wait_up(3)?;
            settle(cluster)?;
        }
        [1, 2].into_iter().try_for_each(|node| load.verify_at(cluster, node))?;
        self.say(&format!("{round} rounds, {} passes, read back through nodes 1 and 2", load.seed));
        Ok(())
    }

    /// The client changes nodes when it gets no answer, so the one that serves is a victim too.
    fn moving(&self, lab: &NetLab, cluster: &mut Cluster) -> Result<()> {
        cluster.create("moves", "64M", 3)?;
        let seed = self.seed + 1_000;
        let (mut client, mut random) = (Stubborn::new("moves", seed), Random::new(seed + 1));
        let (mut kinds, mut serves) = (fault::kinds(), Deck::new(&[true, true, false]));
        for round in 1..=self.moves {
            self.go_on()?;
            for _ in 0..random.below(400) {
                client.step(cluster)?;
            }
            let victim = match serves.deal(&mut random) {
                true => client.node,
                false => random.pick(&[client.node % 3 + 1, (client.node + 1) % 3 + 1]),
            };
            let fault = Fault::new(kinds.deal(&mut random), victim, None, &mut random);
            self.say(&format!("move {round}: {fault}; client at node {}", client.node));
            client.longest = Duration::ZERO;
            let result = fault.inflict(lab, cluster, |cluster| client.step(cluster));
            result.with_context(|| format!("move {round}, {fault}"))?;
            for _ in 0..100 {
                client.step(cluster)?;
            }
            self.say(&format!("move {round}: longest request {:.1} s", client.longest.as_secs_f64()));
            cluster
                .wait_up(3)
                .and_then(|()| settle(cluster))
                .with_context(|| format!("move {round}, {fault}"))?;
        }
        client.verify(cluster)?;
        self.say(&format!("{} moves, read back through all nodes", self.moves));
        Ok(())
    }
}

#[test]
fn nothing_is_lost_while_nodes_are_killed_stopped_and_cut_off() {
    let _one = serial();
    let check = LeakCheck::start();
    let (rounds, moves) = (from_env("FAULT_ROUNDS", 50), from_env("FAULT_MOVES", 20));
    let (seed, clusters) = (from_env("FAULT_SEED", 1), from_env("FAULT_CLUSTERS", 2).max(1));
    println!("FAULT_SEED={seed} FAULT_ROUNDS={rounds} FAULT_MOVES={moves} FAULT_CLUSTERS={clusters}");
    let (failed, begin) = (AtomicBool::new(false), Instant::now());
    let share = |all: u64, number: u64| all * number / clusters - all * (number - 1) / clusters;
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (1..=clusters)
            .map(|number| {
                let (rounds, moves) = (share(rounds, number), share(moves, number));
                let lane = Lane { number, seed: seed * 100 + number, rounds, moves, failed: &failed, begin };
                scope.spawn(move || lane.run())
            })
            .collect();
        let results: Vec<_> = lanes.into_iter().map(|lane| lane.join()).collect();
        results.into_iter().for_each(|result| result.unwrap_or_else(|panic| resume_unwind(panic)));
    });
    check.finish().unwrap();
}

#[test]
fn snapshots_and_clones_under_faults_keep_their_contents_and_give_their_space_back() {
    let _one = serial();
    let check = LeakCheck::start();
    let (seconds, seed) = (from_env("TREE_SECONDS", 40), from_env("FAULT_SEED", 1));
    println!("FAULT_SEED={seed} TREE_SECONDS={seconds}");
    let mut trees = trees::Trees::new(seed).unwrap();
    // Panics while the cluster is there, so that its logs are kept.
    trees.run(Duration::from_secs(seconds)).unwrap();
    drop(trees);
    check.finish().unwrap();
}

/// `FAULT_MINUTES` says how long (60).
#[test]
#[ignore = "takes an hour: make soak"]
fn nothing_is_lost_or_left_over_in_an_hour() {
    let _one = serial();
    let check = LeakCheck::start();
    let (minutes, seed) = (from_env("FAULT_MINUTES", 60), from_env("FAULT_SEED", 1));
    println!("FAULT_SEED={seed} FAULT_MINUTES={minutes}");
    let hour = hour::Hour::new(seed).unwrap();
    hour.run(Duration::from_secs(minutes * 60)).unwrap();
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
    cluster.wait_up(3).unwrap();
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
    cluster.wait_up(3).unwrap();
    settle(&mut cluster).unwrap();
    let volumes = cluster.node(3).dog().unwrap().volumes().unwrap();
    assert_eq!(volumes.len(), 2, "{volumes:?}");
    drop((cluster, lab));
    check.finish().unwrap();
}
