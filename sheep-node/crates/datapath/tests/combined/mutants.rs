//! Each rule that is left out must be noticed.

use super::run;
use sheep_datapath::{Mutant, Mutants};

fn caught(mutant: Mutant) {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(3000);
    std::panic::set_hook(Box::new(|_| {}));
    let by =
        (0..seeds).find(|seed| std::panic::catch_unwind(|| run(*seed, 1000, Mutants::only(mutant))).is_err());
    println!("{mutant:?} caught by seed {by:?}");
    assert!(by.is_some(), "{mutant:?} is not caught by {seeds} seeds");
}

macro_rules! mutants {
    ($($name:ident: $mutant:ident,)*) => {
        $(#[test] fn $name() { caught(Mutant::$mutant); })*
    };
}

// The others are rare in random runs; scripted traces show them.
mutants! {
    flush_old_set: FlushOldSet,
    source_at_older_epoch: SourceAtOlderEpoch,
    higher_version_wins: HigherVersionWins,
    delete_on_absence: DeleteOnAbsence,
    restarted_is_current: RestartedIsCurrent,
}
