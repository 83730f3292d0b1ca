//! Gateways, replicas and recovery together: random work on one VDI under crashes, loss of power, partitions,
//! take-overs and new nodes, checked against a model of what a disk may answer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "what happened, for people")]

mod answers;
#[cfg(feature = "mutants")]
mod mutants;
#[path = "../support/mod.rs"]
mod support;
mod world;

use sheep_datapath::Mutants;
use world::{Counts, World};

fn run(seed: u64, rounds: u64, mutants: Mutants) -> Counts {
    let mut world = World::new(seed, 3 + seed % 3, mutants);
    for _ in 0..rounds {
        world.round(true);
    }
    world.finish();
    world.counts
}

#[test]
fn a_quiet_cluster_works() {
    let mut world = World::new(1, 3, Mutants::default());
    world.net.loss_percent = 0;
    for _ in 0..300 {
        world.round(false);
    }
    world.finish();
    assert!(world.counts.reads > 100 && world.counts.writes > 100 && world.counts.flushes > 3);
    assert_eq!(world.counts.sessions, 1);
}

#[test]
fn random_faults_lose_nothing() {
    let from = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(8);
    let mut total = Counts::default();
    for seed in from..from + seeds {
        let counts = run(seed, 1000, Mutants::default());
        total.reads += counts.reads;
        total.writes += counts.writes;
        total.flushes += counts.flushes;
        total.sessions += counts.sessions;
        total.crashes += counts.crashes;
        total.blackouts += counts.blackouts;
        total.partitions += counts.partitions;
        total.lost += counts.lost;
    }
    println!("{total:?}");
    assert!(total.reads > 0 && total.writes > 0 && total.sessions > 1 && total.crashes > 0);
}
