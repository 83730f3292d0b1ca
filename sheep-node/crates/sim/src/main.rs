//! `sheep-sim`: runs seeds, prints what they found.

use anyhow::{Result, bail};
use clap::Parser;
use sheep_sim::checks::Counts;
use sheep_sim::{Options, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Runs the cluster simulator on one or many seeds.
#[derive(Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Print what happens.
    #[arg(long, short)]
    verbose: bool,
    /// The rule to leave out (in builds with the feature `mutants`).
    #[arg(long)]
    mutant: Option<String>,
    /// Seconds of simulated time with faults.
    #[arg(long)]
    duration: Option<u64>,
}

#[allow(clippy::print_stdout)]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let started = Instant::now();
    let (mut total, mut failed, mut events) = (Counts::default(), Vec::new(), 0);
    for seed in arguments.seed..arguments.seed + arguments.count {
        let mut options = Options::from_seed(seed);
        options.verbose = arguments.verbose;
        options.mutant.clone_from(&arguments.mutant);
        if let Some(seconds) = arguments.duration {
            options.duration = std::time::Duration::from_secs(seconds);
        }
        if arguments.verbose {
            eprintln!("{options:?}");
        }
        let report = catch_unwind(AssertUnwindSafe(|| run(options)));
        let failure = match report {
            Ok(report) => {
                total.add(&report.counts);
                events += report.events;
                if arguments.count == 1 {
                    println!("seed {seed}: trace {:016x}, {} events", report.trace, report.events);
                }
                report.failure
            }
            Err(_) => Some("panic".into()),
        };
        if let Some(failure) = failure {
            println!("seed {seed} FAILED: {failure}");
            println!("  again: make sim SEED={seed}");
            failed.push(seed);
            if !arguments.keep_going {
                break;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{} seeds, {events} events, {seconds:.1} s: {total:?}", arguments.count);
    if !failed.is_empty() {
        bail!("{} of {} seeds failed: {failed:?}", failed.len(), arguments.count);
    }
    Ok(())
}
