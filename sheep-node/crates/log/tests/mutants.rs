//! Every rule that is left out must be noticed in random runs. Run with `--features mutants`.
#![cfg(feature = "mutants")]

mod support;

use sheep_log::{LogConfig, Mutant};
use std::panic::{AssertUnwindSafe, catch_unwind};
use support::run_random;

/// Most seeds tried for one rule.
const SEEDS: u64 = 3_000;

#[test]
fn every_mutant_is_caught_in_random_runs() {
    let only = std::env::var("SHEEP_LOG_MUTANT").ok();
    let mut alive = Vec::new();
    let start = std::time::Instant::now();
    for mutant in Mutant::ALL {
        if only.as_ref().is_some_and(|name| *name != format!("{mutant:?}")) {
            continue;
        }
        let config = LogConfig { mutant: Some(*mutant), ..LogConfig::default() };
        let caught = (0..SEEDS).find_map(|seed| {
            match catch_unwind(AssertUnwindSafe(|| run_random(seed, &config, 3_000).err())) {
                Ok(None) => None,
                Ok(Some(violation)) => Some((seed, violation)),
                Err(_) => Some((seed, "an assertion of the log".into())),
            }
        });
        match caught {
            Some((seed, violation)) => println!("{:?} {mutant:?}: seed {seed}: {violation}", start.elapsed()),
            None => alive.push(mutant),
        }
    }
    assert!(alive.is_empty(), "not caught: {alive:?}");
}
