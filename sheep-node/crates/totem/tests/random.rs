//! Random faults from a seed: loss, duplication, reordering, delay, partitions whole, partial and one-way,
//! pauses, crashes, hung disks. Afterwards everybody must come together.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use sheep_totem::Mutants;
use support::scenario::{Seen, run_seed};

fn run_seeds(seeds: std::ops::Range<u64>) {
    let mut seen = Seen::default();
    let few = seeds.end.saturating_sub(seeds.start) < 100;
    for seed in seeds {
        let result = std::panic::catch_unwind(|| {
            let mut seen = Seen::default();
            run_seed(seed, Mutants::default(), &mut seen);
            seen
        });
        let Ok(one) = result else {
            panic!("seed {seed}: SEED={seed} cargo test -p sheep-totem --test random one_seed")
        };
        seen.configurations += one.configurations;
        seen.delivered += one.delivered;
        seen.transitional += one.transitional;
        seen.crashes += one.crashes;
        seen.departures += one.departures;
        seen.cuts += one.cuts;
        seen.pauses += one.pauses;
        seen.hangs += one.hangs;
        seen.recovered += one.recovered;
        seen.retransmits += one.retransmits;
        seen.slowest = seen.slowest.max(one.slowest);
    }
    println!("{seen:?}");
    let counts = [
        seen.configurations,
        seen.delivered,
        seen.transitional,
        seen.crashes,
        seen.departures,
        seen.cuts,
        seen.pauses,
        seen.hangs,
        seen.recovered,
    ];
    // A handful of seeds, asked for by hand, need not have everything.
    assert!(few || counts.iter().all(|n| *n > 0), "the faults did not happen: {seen:?}");
}

#[test]
fn seeds_0_to_150() {
    run_seeds(0..150);
}

#[test]
fn seeds_150_to_300() {
    run_seeds(150..300);
}

#[test]
fn one_seed() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    run_seed(seed, Mutants::default(), &mut Seen::default());
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut seen = Seen::default();
        run_seed(4711, Mutants::default(), &mut seen);
        format!("{seen:?}")
    };
    assert_eq!(run(), run());
}

/// A longer search: `SEEDS=1000..5000 cargo test -p sheep-totem --test random more -- --ignored`.
#[test]
#[ignore = "as long as asked for"]
fn more_seeds() {
    let range = std::env::var("SEEDS").unwrap_or("1000..2000".into());
    let (from, to) = range.split_once("..").unwrap();
    run_seeds(from.parse().unwrap()..to.parse().unwrap());
}
