//! Each rule left out is noticed.

use crate::{fill, rules};
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
