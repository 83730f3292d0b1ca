//! The product on a real Kubernetes of several nodes, one file per behaviour.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]
#![allow(clippy::print_stdout, reason = "times that tests report")]

mod bare;
mod core;
mod deaths;
mod installing;
mod losses;
mod product;
mod scaling;
mod seeing;
mod volumes;
mod writer;

use sheep_e2e::kubernetes::Kubernetes;
use sheep_e2e::{LeakCheck, serial};

/// Several behaviours on one cluster, since making one takes a while; afterwards nothing is left of it.
fn on(start: impl FnOnce() -> Kubernetes, run: impl FnOnce(&mut Kubernetes)) {
    let _one = serial();
    let check = LeakCheck::start();
    let mut kubernetes = start();
    run(&mut kubernetes);
    drop(kubernetes);
    check.finish().unwrap();
}

#[test]
#[ignore = "make e2e"]
fn volumes_of_pods_are_made_copied_and_grown_and_outlive_nodes() {
    on(
        || product::start(3),
        |kubernetes| {
            volumes::are_mounted_wherever_the_pod_is(kubernetes);
            volumes::are_copied_by_snapshot_and_clone(kubernetes);
            volumes::grow(kubernetes);
            losses::of_a_node_lose_no_data(kubernetes);
        },
    );
}

#[test]
#[ignore = "make e2e"]
fn volumes_are_used_in_all_ways_that_a_claim_can_ask_for() {
    on(
        || product::start(3),
        |kubernetes| {
            volumes::are_block_devices(kubernetes);
            volumes::are_read_by_many(kubernetes);
            volumes::are_one_pods_alone(kubernetes);
            volumes::are_snapshots_under_writes(kubernetes);
            volumes::follow_their_pods_when_a_node_is_drained(kubernetes);
        },
    );
}

#[test]
#[ignore = "make e2e"]
fn what_is_installed_is_changed_under_a_pod_leaves_its_data_and_finds_it_again() {
    on(
        || product::start(3),
        |kubernetes| {
            installing::tests_itself(kubernetes);
            seeing::says_how_it_is_and_what_uses_it(kubernetes);
            installing::refuses_what_cannot_work(kubernetes);
            installing::is_changed_under_a_pod(kubernetes);
            installing::leaves_its_data_and_finds_it_again(kubernetes);
            installing::goes_with_its_namespace(kubernetes);
        },
    );
}

#[test]
#[ignore = "make e2e"]
fn one_node_is_a_cluster_and_becomes_one_of_three() {
    on(|| product::empty(3), installing::begins_with_one_node);
}

#[test]
#[ignore = "make e2e"]
fn nodes_come_and_go_under_a_pod_that_writes() {
    on(|| product::empty(4), scaling::under_a_pod);
}

#[test]
#[ignore = "make e2e"]
fn deaths_of_programs_are_pauses_for_a_pod() {
    on(|| product::start(3), deaths::of_programs_are_pauses);
}

#[test]
#[ignore = "make e2e"]
fn a_lost_node_loses_its_pods_to_others() {
    on(|| product::start(3), deaths::of_a_node_moves_its_pods);
}
