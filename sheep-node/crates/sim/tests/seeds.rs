//! Random runs of whole clusters. `SIM_SEEDS` says how many, `SIM_FIRST` from where; a failing one is repeated by
//! `make sim SEED=n`, or by `sheep-sim --seed n --rivals` if it says so.
#![allow(clippy::print_stdout)]

use sheep_sim::checks::Counts;
use sheep_sim::mutants::preset;
use sheep_sim::{Options, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// As many as two cores do in about a minute and a half, in the release profile.
const SEEDS: u64 = 300;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs all of these, on all cores; counters, and what failed.
fn run_all(runs: &[(String, Options)]) -> (Counts, Vec<String>) {
    let next = AtomicUsize::new(0);
    let found: Mutex<(Counts, Vec<String>)> = Mutex::default();
    let work = || {
        while let Some((how, options)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let report = catch_unwind(AssertUnwindSafe(|| run(options.clone())));
            let mut found = found.lock().expect("nothing panics here");
            match report {
                Ok(report) => {
                    found.0.add(&report.counts);
                    if let Some(failure) = report.failure {
                        found.1.push(format!("sheep-sim {how}: {failure}"));
                    }
                }
                Err(_) => found.1.push(format!("sheep-sim {how}: an assertion")),
            }
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
    found.into_inner().expect("nothing panics here")
}

/// Runs all of them, none of which may fail; gives what happened.
fn all_pass(runs: &[(String, Options)]) -> Counts {
    let (total, failures) = run_all(runs);
    let count = runs.len();
    assert!(failures.is_empty(), "{} of {count} failed, {total:?}:\n{}", failures.len(), failures.join("\n"));
    total
}

/// Crashes of gateways in use, loss of power soon after take-overs, hardly a flush, very slow disks.
#[test]
fn aimed_seeds_pass() {
    let mut runs = Vec::new();
    for name in ["datapath:settle-without-flush", "datapath:resend-is-behind", "datapath:create-keeps-orphan"]
    {
        for seed in 1..=number("SIM_AIMED", 8) {
            let mut options = Options::from_seed(seed);
            preset(name, &mut options);
            runs.push((format!("--preset {name} --seed {seed}"), options));
        }
    }
    let total = all_pass(&runs);
    assert!(total.take_overs > 0 && total.power_cuts > 0, "{total:?}");
}

#[test]
fn random_seeds_pass() {
    let (first, count) = (number("SIM_FIRST", 1), number("SIM_SEEDS", SEEDS));
    let options = |seed: u64| {
        let mut options = Options::from_seed(seed);
        // Every other run has clients that give up gateways which live.
        options.rivals = seed.is_multiple_of(2);
        let how = if options.rivals { " --rivals" } else { "" };
        (format!("--seed {seed}{how}"), options)
    };
    let runs: Vec<(String, Options)> = (first..first + count).map(options).collect();
    let total = all_pass(&runs);
    println!("{count} seeds: {total:?}");
    let happened = [
        ("take-overs", total.take_overs),
        ("epochs", total.epochs),
        ("power cuts", total.power_cuts),
        ("recoveries", total.recovered),
        ("lost disks", total.lost_disks),
        ("reads", total.reads),
    ];
    for (what, number) in happened {
        assert!(number > 0, "no {what} in {count} seeds");
    }
}

/// Snapshots, clones, rollbacks, deletions and growing volumes in any order, and everything that is there contains what it
/// should.
#[test]
fn snapshots_pass() {
    let options = |seed: u64| {
        let mut options = Options::from_seed(seed);
        options.snapshots = true;
        options.rivals = seed.is_multiple_of(2);
        let more = if options.rivals { " --rivals" } else { "" };
        (format!("--snapshots --seed {seed}{more}"), options)
    };
    let first = number("SIM_FIRST", 1);
    let count = number("SIM_SNAPSHOTS", 40);
    let runs: Vec<(String, Options)> = (first..first + count).map(options).collect();
    let total = all_pass(&runs);
    assert!(total.snapshots > count && total.clones > count && total.take_overs > 0, "{total:?}");
    assert!(
        total.rollbacks > 0 && total.deletions > count && total.grown > 0 && total.groups > 0,
        "{total:?}"
    );
}

/// The same with volumes that are made smaller, and grow again.
#[test]
fn shrinking_passes() {
    let options = |seed: u64| {
        let mut options = Options::from_seed(seed);
        (options.snapshots, options.shrinks) = (true, true);
        options.rivals = seed.is_multiple_of(2);
        options.rot.data = seed.is_multiple_of(3);
        let more = if options.rivals { " --rivals" } else { "" };
        let rot = if options.rot.data { " --rot" } else { "" };
        (format!("--shrinks --seed {seed}{more}{rot}"), options)
    };
    let first = number("SIM_FIRST", 1);
    let count = number("SIM_SHRINKS", 20);
    let runs: Vec<(String, Options)> = (first..first + count).map(options).collect();
    let total = all_pass(&runs);
    assert!(total.shrunk > count && total.grown > count, "{total:?}");
}

/// Bits of messages flip: no client notices, but for the time it takes to send them again.
#[test]
fn flipped_bits_pass() {
    let options = |seed: u64| {
        let mut options = Options::from_seed(seed);
        options.flips = 2_000;
        (format!("--flips --seed {seed}"), options)
    };
    let first = number("SIM_FIRST", 1);
    let runs: Vec<(String, Options)> = (first..first + number("SIM_FLIPS", 12)).map(options).collect();
    let total = all_pass(&runs);
    assert!(total.frames_flipped > 0 && total.payloads_flipped > 0, "{total:?}");
}

/// What stores write about their data rots on one node, and a little of the data: nothing is lost.
#[test]
fn rotten_records_pass() {
    let options = |seed: u64| {
        let mut options = Options::from_seed(seed);
        (options.rot.records, options.rot.data) = (true, seed.is_multiple_of(2));
        options.rivals = seed.is_multiple_of(2);
        let more = if options.rivals { " --rot --rivals" } else { "" };
        (format!("--rot-records --seed {seed}{more}"), options)
    };
    let first = number("SIM_FIRST", 1);
    let runs: Vec<(String, Options)> = (first..first + number("SIM_ROT", 16)).map(options).collect();
    let total = all_pass(&runs);
    assert!(total.records_rotted > 0 && total.stores_refused > 0 && total.damaged > 0, "{total:?}");
}
