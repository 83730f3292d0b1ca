//! Each rule left out is noticed.

use super::{lost, rules};
use sheep_datapath::{Mutant, Mutants};

/// Whether the rule fails.
fn caught(mutant: Mutant, rule: fn(Mutants)) -> bool {
    std::panic::catch_unwind(|| rule(Mutants::only(mutant))).is_err()
}

#[test]
fn sweeps_without_a_rule() {
    let broken: [(Mutant, fn(Mutants)); 10] = [
        (Mutant::SweepReadsOneCopy, rules::what_any_copy_of_a_map_names_stays),
        (Mutant::SweepUnsecured, rules::what_goes_is_named_by_nothing_durable),
        (Mutant::SweepForgetsLeavers, rules::nothing_goes_while_a_node_that_may_have_it_is_away),
        (Mutant::SweptWhileAway, rules::what_a_node_brings_back_that_was_cut_off_during_a_round_goes_too),
        (Mutant::SweepIgnoresPartial, rules::clones_keep_what_they_read_through),
        (Mutant::SweepSkipsUnread, rules::what_an_unreadable_map_may_name_stays),
        (Mutant::KeepsForgotten, rules::a_node_that_was_away_drops_what_is_forgotten),
        (Mutant::SweepTakesTheLast, lost::what_a_node_that_is_away_may_have_is_not_forgotten),
        (Mutant::SweptUnrecovered, lost::nothing_is_forgotten_while_nodes_recover),
        (Mutant::ReplacedUnsaid, rules::what_only_a_deleted_snapshot_had_goes),
    ];
    let missed: Vec<Mutant> = broken
        .into_iter()
        .filter(|(mutant, rule)| !caught(*mutant, *rule))
        .map(|(mutant, _)| mutant)
        .collect();
    assert_eq!(missed, []);
}
