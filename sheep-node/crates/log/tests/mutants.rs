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

/// The rules whose scenario is a script are missed by that script, too.
#[test]
fn scripts_catch_their_mutants() {
    use support::scenarios as s;
    type Scenario = fn(LogConfig) -> Result<(), String>;
    let scripts: [(Mutant, Scenario); 12] = [
        (Mutant::MinorityInstall, s::minority_installs_nothing),
        (Mutant::IndexAfterHole, s::holes_end_the_term),
        (Mutant::CommitOldTerm, s::old_terms_are_not_counted),
        (Mutant::FetchWithoutChain, s::gaps_are_filled_along_the_chain),
        (Mutant::PlaceByIndex, s::commit_places_name_entries),
        (Mutant::VotersFromApplied, s::lists_are_those_of_the_base_log),
        (Mutant::NewVotersOnly, s::both_lists_confirm_a_change),
        (Mutant::OwnBase, s::an_unreachable_base_forms_again),
        (Mutant::LeaseFromReceipt, s::a_late_token_renews_from_its_stamp),
        (Mutant::NoResend, s::holes_end_the_term),
        (Mutant::PromiseOfAnyTerm, s::a_promise_is_for_one_term),
        (Mutant::LeaseWithoutApplied, s::a_lease_waits_for_what_is_committed),
    ];
    for (mutant, script) in scripts {
        let config = LogConfig { mutant: Some(mutant), ..LogConfig::default() };
        let verdict = catch_unwind(AssertUnwindSafe(|| script(config)));
        println!("{mutant:?}: {verdict:?}");
        assert!(!matches!(verdict, Ok(Ok(()))), "{mutant:?} is not caught by its script");
    }
}
