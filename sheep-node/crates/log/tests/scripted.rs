//! Scripted event sequences, each one the end of a log with one rule less.

mod support;

use sheep_log::LogConfig;
use support::scenarios;

macro_rules! scenario {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            assert_eq!(scenarios::$name(LogConfig::default()), Ok(()));
        }
    )*};
}

scenario![
    minority_installs_nothing,
    holes_end_the_term,
    old_terms_are_not_counted,
    gaps_are_filled_along_the_chain,
    commit_places_name_entries,
    an_empty_store_does_not_vote,
    lists_are_those_of_the_base_log,
    both_lists_confirm_a_change,
    an_unreachable_base_forms_again,
    a_late_token_renews_from_its_stamp,
    a_new_node_gets_a_snapshot,
    a_small_buffer_is_filled_by_fetching,
    foreign_logs_stop,
    a_power_cut_loses_nothing,
    a_promise_is_for_one_term,
    a_lease_waits_for_what_is_committed,
];
