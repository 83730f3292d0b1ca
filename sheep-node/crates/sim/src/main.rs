//! `sheep-sim`: runs seeds, prints what they found.

#![allow(clippy::print_stdout)]

use anyhow::{Result, bail};
use clap::Parser;
use sheep_sim::checks::Counts;
use sheep_sim::{Options, mutants, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

mod table;

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
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    keep_going: bool,
    /// Print what happens.
    #[arg(long, short)]
    verbose: bool,
    /// The rule to leave out (in builds with the feature `mutants`).
    #[arg(long)]
    mutant: Option<String>,
    /// Draw options as for this broken variant, but leave nothing out.
    #[arg(long)]
    preset: Option<String>,
    /// Names of all broken variants of this build.
    #[arg(long)]
    list_mutants: bool,
    /// For every broken variant (those that contain the value, if given): which seed catches it first.
    #[arg(long, num_args = 0..=1, default_missing_value = "")]
    mutant_table: Option<String>,
    /// Runs a scripted scenario instead (`list` names them all).
    #[arg(long)]
    scenario: Option<String>,
    /// Clients give sessions up without closing them.
    #[arg(long)]
    rivals: bool,
    /// Snapshots, clones, rollbacks, deletions, growing volumes, and readers.
    #[arg(long)]
    snapshots: bool,
    /// The same, and volumes are made smaller.
    #[arg(long)]
    shrinks: bool,
    /// With these, what is on the disks in the end is not held against what can be reached.
    #[arg(long)]
    no_space: bool,
    /// Contents rot on the disk of one node.
    #[arg(long)]
    rot: bool,
    /// They rot even if nobody else has them.
    #[arg(long)]
    rot_unflushed: bool,
    /// What stores write about their data rots on one node.
    #[arg(long)]
    rot_records: bool,
    /// Bits of messages between nodes flip.
    #[arg(long)]
    flips: bool,
    /// Seconds of simulated time with faults.
    #[arg(long)]
    duration: Option<u64>,
}

/// Of a million messages.
const FLIPS: u64 = 2_000;

/// Seed under way and what its panic said: in builds that abort there is no other way to tell.
static PANIC: Mutex<(u64, String)> = Mutex::new((0, String::new()));

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tell_panics();
    if arguments.list_mutants {
        mutants::all().iter().for_each(|rule| println!("{:<34} {}", rule.name, rule.rule));
        return Ok(());
    }
    if let Some(part) = &arguments.mutant_table {
        return table::print(part, arguments.seed, arguments.count);
    }
    if let Some(name) = arguments.mutant.as_ref().or(arguments.preset.as_ref()) {
        mutants::check(name).map_err(anyhow::Error::msg)?;
    }
    match &arguments.scenario {
        Some(name) => scenario(name, arguments.mutant.as_deref()),
        None => seeds(&arguments),
    }
}

fn scenario(name: &str, mutant: Option<&str>) -> Result<()> {
    let mut failed = Vec::new();
    let all = sheep_sim::scenario::ALL.iter().flat_map(|list| list.iter());
    for scenario in all.filter(|scenario| name == "all" || name == "list" || name == scenario.name) {
        if name == "list" {
            println!("{:<34} {}", scenario.name, scenario.rule);
        } else if let Err(problem) =
            catch_unwind(|| (scenario.run)(mutant)).unwrap_or_else(|_| Err("an assertion".into()))
        {
            println!("{} FAILED: {problem}", scenario.name);
            failed.push(scenario.name);
        } else {
            println!("{} passed", scenario.name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{} scenarios failed: {failed:?}", failed.len()) }
}

/// Keeps what a panic says; prints it at once if the process ends with it.
fn tell_panics() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string().replace('\n', " ");
        eprintln!("{text}");
        if let Ok(mut panic) = PANIC.lock() {
            if cfg!(panic = "abort") {
                println!("seed {} FAILED: {text}", panic.0);
            }
            panic.1 = text;
        }
    }));
}

fn options(arguments: &Arguments, seed: u64) -> Options {
    let mut options = Options::from_seed(seed);
    options.verbose = arguments.verbose;
    options.rivals |= arguments.rivals;
    options.snapshots |= arguments.snapshots || arguments.shrinks;
    options.shrinks |= arguments.shrinks;
    options.space &= !arguments.no_space;
    options.rot.data |= arguments.rot;
    options.rot.unflushed |= arguments.rot_unflushed;
    options.rot.records |= arguments.rot_records;
    if arguments.flips {
        options.flips = FLIPS;
    }
    options.mutant.clone_from(&arguments.mutant);
    if let Some(name) = arguments.mutant.as_ref().or(arguments.preset.as_ref()) {
        mutants::preset(name, &mut options);
    }
    if let Some(seconds) = arguments.duration {
        options.duration = std::time::Duration::from_secs(seconds);
    }
    options
}

fn seeds(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let (mut total, mut failed, mut events) = (Counts::default(), Vec::new(), 0);
    for seed in arguments.seed..arguments.seed + arguments.count {
        let options = options(arguments, seed);
        if arguments.verbose {
            eprintln!("{options:?}");
        }
        *PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = (seed, "panic".into());
        let failure = match catch_unwind(AssertUnwindSafe(|| run(options))) {
            Ok(report) => {
                total.add(&report.counts);
                events += report.events;
                if arguments.count == 1 {
                    println!("seed {seed}: trace {:016x}, {} events", report.trace, report.events);
                }
                report.failure
            }
            Err(_) => Some(PANIC.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1.clone()),
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
