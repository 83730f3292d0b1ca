//! Each rule left out is noticed.

use crate::{fill, rules, traces};
use sheep_datapath::{GatewayConfig, Mutant, Mutants};

fn without(mutant: Mutant) -> GatewayConfig {
    GatewayConfig { mutants: Mutants::only(mutant), ..GatewayConfig::default() }
}

#[test]
fn flush_to_the_old_set() {
    assert!(!rules::a_flush_asks_the_present_members(&without(Mutant::FlushOldSet)));
}

#[test]
fn settling_without_the_flush() {
    assert!(!rules::settling_ends_with_a_flush(&without(Mutant::SettleWithoutFlush)));
}

#[test]
fn map_before_data() {
    assert!(!rules::the_map_names_only_durable_objects(&without(Mutant::MapBeforeData)));
}

#[test]
fn a_discard_forgets_who_has_left() {
    assert!(!rules::a_discard_holds_though_a_member_leaves(&without(Mutant::DiscardForgetsLeavers)));
}

#[test]
fn settling_with_too_few() {
    assert!(!rules::a_take_over_waits_for_enough_members(&without(Mutant::SettlesBelowMin)));
}

#[test]
fn a_lost_map_taken_for_empty() {
    assert!(!rules::a_lost_map_is_no_empty_map(&without(Mutant::LostMapIsEmpty)));
}

#[test]
fn a_fill_over_what_was_written_meanwhile() {
    assert!((0..20).any(|seed| !fill::writes_win(seed, &without(Mutant::FillsOverWrites))));
}

#[test]
fn an_entry_before_its_object_is_filled() {
    let mutant = without(Mutant::FilledBeforeDurable);
    assert!((0..20).any(|seed| !fill::entries_name_what_is_there(seed, &mutant)));
}

/// A rule that is missing may also show by an operation that fails or an assertion.
#[test]
fn traces_without_a_rule() {
    let broken: [(Mutant, fn(&GatewayConfig) -> bool); 6] = [
        (Mutant::SnapshotUndrained, traces::a_snapshot_has_what_was_answered),
        (Mutant::PauseEndsByItself, traces::a_pause_ends_in_the_order),
        (Mutant::MapNotAwaited, traces::entries_wait_for_their_map_object),
        (Mutant::MapUnordered, traces::the_next_holder_knows_the_map_objects),
        (Mutant::FlattensForeign, traces::what_is_flat_is_whole),
        (Mutant::FlattenedUnfinished, traces::what_is_flat_is_whole),
    ];
    let holds = |mutant, rule: fn(&GatewayConfig) -> bool| {
        std::panic::catch_unwind(|| rule(&without(mutant))).unwrap_or(false)
    };
    let missed: Vec<Mutant> =
        broken.into_iter().filter(|(mutant, rule)| holds(*mutant, *rule)).map(|(mutant, _)| mutant).collect();
    assert_eq!(missed, []);
}
