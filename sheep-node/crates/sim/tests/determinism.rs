//! The same seed gives the same run, byte for byte.

use sheep_sim::{Options, Report, run};
use std::process::Command;
use std::time::Duration;

fn short(seed: u64) -> Options {
    let mut options = Options::from_seed(seed);
    options.duration = Duration::from_secs(20);
    options.rivals = seed.is_multiple_of(2);
    options
}

fn traced(seed: u64) -> Report {
    run(short(seed))
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 8, 11] {
        let (one, two) = (traced(seed), traced(seed));
        assert_eq!((one.trace, one.events), (two.trace, two.events), "seed {seed}");
        assert_eq!(format!("{:?}", one.counts), format!("{:?}", two.counts), "seed {seed}");
        assert_eq!(one.failure, two.failure, "seed {seed}");
        assert!(one.events > 10_000, "seed {seed} does next to nothing");
    }
}

#[test]
fn other_seeds_give_other_runs() {
    assert_ne!(traced(3).trace, traced(4).trace);
}

/// Two processes have other addresses and hash keys: nothing of that may show.
#[test]
fn two_processes_give_the_same_run() {
    let line = || {
        let mut sim = Command::new(env!("CARGO_BIN_EXE_sheep-sim"));
        let output = sim.args(["--seed", "5", "--duration", "20"]).output().expect("the simulator starts");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().find(|line| line.starts_with("seed 5: trace ")).expect("a trace").to_owned()
    };
    assert_eq!(line(), line());
}
