//! Which seed catches which broken variant, and what the checker said.

use anyhow::{Context, Result, bail};
use sheep_sim::mutants;
use std::process::Command;
use std::time::Instant;

/// Prints a line per variant. Each seed runs in a process of its own, because a broken variant may end it. A seed
/// counts only if it passes with all rules in force.
pub(crate) fn print(part: &str, first: u64, count: u64) -> Result<()> {
    if mutants::all().is_empty() {
        bail!("this build has no broken variants: build it with --features mutants");
    }
    println!("| variant | seeds until caught | seconds | what the checker said |");
    println!("|---|---|---|---|");
    for rule in mutants::all().iter().filter(|rule| rule.name.contains(part)) {
        let started = Instant::now();
        let mut next = first;
        let line = loop {
            let left = (first + count).saturating_sub(next);
            let found = if left == 0 { None } else { failure(&["--mutant", rule.name], next, left)? };
            let Some((seed, said)) = found else { break format!("not caught in {count}") };
            let concerns = mutants::concerns(rule.name, &said);
            if concerns && failure(&["--preset", rule.name], seed, 1)?.is_none() {
                break format!("{} | {:.0} | {said}", seed - first + 1, started.elapsed().as_secs_f64());
            }
            next = seed + 1;
        };
        println!("| `{}` | {line} |", rule.name);
    }
    Ok(())
}

/// The first seed that fails, and why.
fn failure(which: &[&str], first: u64, count: u64) -> Result<Option<(u64, String)>> {
    let program = std::env::current_exe().context("own path")?;
    let range = [format!("--seed={first}"), format!("--count={count}")];
    let output = Command::new(program).args(which).args(range).output().context("running a seed")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("seed ")?.split_once(" FAILED: "));
    let found = line.and_then(|(seed, said)| Some((seed.parse().ok()?, said.to_owned())));
    if found.is_none() && !output.status.success() {
        bail!("a run ended without a word: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(found)
}
