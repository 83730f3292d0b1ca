//! Which seeds catch which broken variant, and what the checker said.

use anyhow::{Context, Result, bail};
use sheep_sim::mutants::{self, Rule};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Failed seeds of some runs, with what a checker said.
type Failures = BTreeMap<u64, String>;

/// Prints a line per variant: the first of the seeds that fails with it and passes without, how many such there
/// are, and how many fail even without. Several variants run at once, each in a process of its own.
pub(crate) fn print(part: &str, first: u64, count: u64) -> Result<()> {
    if mutants::all().is_empty() {
        bail!("this build has no broken variants: build it with --features mutants");
    }
    println!("| variant | first seed | caught by | fail anyway | what the checker said |");
    println!("|---|---|---|---|---|");
    let rules: Vec<&Rule> = mutants::all().iter().filter(|rule| rule.name.contains(part)).collect();
    let next = AtomicUsize::new(0);
    let sound: Mutex<BTreeMap<String, Failures>> = Mutex::default();
    let trouble = Mutex::new(Ok(()));
    let work = || {
        while let Some(rule) = rules.get(next.fetch_add(1, Ordering::Relaxed)) {
            match line(rule, first, count, &sound) {
                Ok(line) => println!("{line}"),
                Err(error) => *trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Err(error),
            }
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
    trouble.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn line(rule: &Rule, first: u64, count: u64, sound: &Mutex<BTreeMap<String, Failures>>) -> Result<String> {
    let broken = failures("--mutant", rule.name, first, count)?;
    // Variants whose runs have the same options share the runs without them.
    let options: Vec<String> = (first..first + count).map(|seed| mutants::options(rule.name, seed)).collect();
    let known =
        sound.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&options.concat()).cloned();
    let without = match known {
        Some(without) => without,
        None => failures("--preset", rule.name, first, count)?,
    };
    let mut sound = sound.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    sound.insert(options.concat(), without.clone());
    let caught = broken
        .iter()
        .filter(|(seed, said)| !without.contains_key(*seed) && mutants::concerns(rule.name, said));
    let caught: Vec<_> = caught.collect();
    let anyway = without.len();
    Ok(match caught.first() {
        Some((seed, said)) => {
            let said: String = said.chars().take(160).collect();
            format!("| `{}` | {seed} | {} of {count} | {anyway} | {said} |", rule.name, caught.len())
        }
        None => format!("| `{}` | | 0 of {count} | {anyway} | |", rule.name),
    })
}

/// The seeds that fail, and why.
fn failures(which: &str, name: &str, first: u64, count: u64) -> Result<Failures> {
    let program = std::env::current_exe().context("own path")?;
    let range = [format!("--seed={first}"), format!("--count={count}")];
    let output = Command::new(program).args([which, name, "--keep-going"]).args(range).output();
    let output = output.context("running seeds")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter_map(|line| line.strip_prefix("seed ")?.split_once(" FAILED: "));
    let found: Failures =
        lines.filter_map(|(seed, said)| Some((seed.parse().ok()?, said.to_owned()))).collect();
    if found.is_empty() && !output.status.success() {
        bail!("runs ended without a word: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(found)
}
