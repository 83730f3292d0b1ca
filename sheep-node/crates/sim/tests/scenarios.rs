//! Scripted runs of whole clusters: they pass, and with a rule left out they do not.
#![allow(clippy::print_stdout)]

use sheep_sim::scenario::{ALL, Scenario, find};

fn passes(name: &str) {
    let scenario = find(name).expect("a scenario of this name");
    if let Err(problem) = (scenario.run)(None) {
        panic!("{name}: {problem}");
    }
}

macro_rules! scenarios {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { passes($name); })*
        const TESTED: &[&str] = &[$($name),*];
    };
}

scenarios! {
    minority_appends_nothing: "minority-appends-nothing",
    holes_end_the_term: "holes-end-the-term",
    numbers_outlive_power: "numbers-outlive-power",
    empty_disks_are_a_new_node: "empty-disks-are-a-new-node",
    clusters_do_not_merge: "clusters-do-not-merge",
    commands_of_a_minority_wait: "commands-of-a-minority-wait",
    a_hung_disk_stops_nobody: "a-hung-disk-stops-nobody",
    a_broken_link_does_not_flap: "a-broken-link-does-not-flap",
    a_dead_data_path_is_noticed: "a-dead-data-path-is-noticed",
    out_only_when_still_down: "out-only-when-still-down",
    an_old_token_renews_nothing: "an-old-token-renews-nothing",
    a_late_joiner_serves_nothing: "a-late-joiner-serves-nothing",
    a_minority_has_no_lease: "a-minority-has-no-lease",
    a_revoked_lock_ends: "a-revoked-lock-ends",
    a_lock_goes_with_its_attachment: "a-lock-goes-with-its-attachment",
    late_writes_are_fenced: "late-writes-are-fenced",
    answered_writes_outlive_replicas: "answered-writes-outlive-replicas",
    higher_is_not_fresher: "higher-is-not-fresher",
    a_source_is_not_older: "a-source-is-not-older",
    reads_wait_for_writes: "reads-wait-for-writes",
    creation_survives_power_cuts: "creation-survives-power-cuts",
    one_decides: "one-decides",
    a_take_over_is_durable: "a-take-over-is-durable",
    marks_are_inherited: "marks-are-inherited",
    lost_answers_do_no_harm: "lost-answers-do-no-harm",
    a_lost_disk_proves_nothing: "a-lost-disk-proves-nothing",
    a_disk_that_is_back_has_forgotten: "a-disk-that-is-back-has-forgotten",
    a_lost_disk_flushes_nothing: "a-lost-disk-flushes-nothing",
}

#[test]
fn every_scenario_is_tested() {
    let all: Vec<&Scenario> = ALL.iter().flat_map(|list| list.iter()).collect();
    assert_eq!(all.len(), TESTED.len());
    assert!(all.iter().all(|scenario| TESTED.contains(&scenario.name)));
}

/// With its rule left out, each scenario fails.
#[cfg(feature = "mutants")]
#[test]
fn scenarios_catch_their_mutants() {
    let mut missed = Vec::new();
    for scenario in ALL.iter().flat_map(|list| list.iter()) {
        for name in scenario.mutants {
            sheep_sim::mutants::check(name).expect("a variant of this name");
            match std::panic::catch_unwind(|| (scenario.run)(Some(name))) {
                Ok(Ok(())) => missed.push((scenario.name, *name)),
                Ok(Err(problem)) => println!("{name}: {}: {problem}", scenario.name),
                Err(_) => println!("{name}: {}: an assertion", scenario.name),
            }
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
