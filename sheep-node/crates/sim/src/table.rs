//! Which seeds catch which broken variant, and what the checker said.

use anyhow::{Context, Result, bail};
use sheep_sim::mutants::{self, Rule};
use std::process::Command;

/// Prints a line per variant: the first of the seeds that fails with it and passes without, how many failed both
/// ways before that, and what the checker said. Each run is a process of its own: some variants end it.
pub(crate) fn print(part: &str, first: u64, count: u64) -> Result<()> {
    if mutants::all().is_empty() {
        bail!("this build has no broken variants: build it with --features mutants");
    }
    println!("| variant | seeds until caught | fail anyway | what the checker said |");
    println!("|---|---|---|---|");
    for rule in mutants::all().iter().filter(|rule| rule.name.contains(part)) {
        println!("{}", line(rule, first, count)?);
    }
    Ok(())
}

fn line(rule: &Rule, first: u64, count: u64) -> Result<String> {
    let mut anyway = 0;
    for seed in first..first + count {
        let Some(said) = failure("--mutant", rule.name, seed)? else { continue };
        if !mutants::concerns(rule.name, &said) {
            continue;
        }
        // It is the variant only if the same run passes without it.
        if failure("--preset", rule.name, seed)?.is_some() {
            anyway += 1;
            continue;
        }
        let said: String = said.chars().take(160).collect();
        return Ok(format!("| `{}` | {} | {anyway} | {said} |", rule.name, seed - first + 1));
    }
    Ok(format!("| `{}` | not in {count} | {anyway} | |", rule.name))
}

/// What a checker says of a seed, if anything.
fn failure(which: &str, name: &str, seed: u64) -> Result<Option<String>> {
    let program = std::env::current_exe().context("own path")?;
    let output = Command::new(program).args([which, name, &format!("--seed={seed}")]).output();
    let output = output.context("running a seed")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().find_map(|line| line.strip_prefix("seed ")?.split_once(" FAILED: "));
    match said {
        Some((_, said)) => Ok(Some(said.to_owned())),
        None if output.status.success() => Ok(None),
        None => bail!("a run ended without a word: {}", String::from_utf8_lossy(&output.stderr)),
    }
}
