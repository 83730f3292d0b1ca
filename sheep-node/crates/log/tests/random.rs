//! Random clusters under random faults: every property holds, and everything comes together in the end.

mod support;

use sheep_log::LogConfig;
use support::run_random;

#[test]
fn random_runs_keep_every_property() {
    let only: Option<u64> = std::env::var("SHEEP_LOG_SEED").ok().and_then(|s| s.parse().ok());
    let seeds: u64 = std::env::var("SHEEP_LOG_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(400);
    let (mut terms, mut restores, mut renewals, mut committed) = (0, 0, 0, 0);
    for seed in only.map_or(0..seeds, |s| s..s + 1) {
        match run_random(seed, &LogConfig::default(), 3_000) {
            Ok(world) => {
                terms += world.terms;
                restores += world.restores;
                renewals += world.renewals;
                committed += world.truth.committed.len();
            }
            Err(e) => panic!("SHEEP_LOG_SEED={seed}: {e}"),
        }
    }
    println!("{terms} terms, {restores} restores, {renewals} renewals, {committed} entries");
    if only.is_none() {
        assert!(terms > 0 && restores > 0 && renewals > 0 && committed > 0, "the runs test nothing");
    }
}
