//! The product on a real Kubernetes of several nodes, one file per behaviour.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]
#![allow(clippy::print_stdout, reason = "times that tests report")]

mod bare;
mod losses;
mod product;
mod volumes;

use sheep_e2e::{LeakCheck, serial};

/// On one cluster, since making one takes a while.
#[test]
#[ignore = "make e2e"]
fn volumes_of_pods_are_made_copied_and_grown_and_outlive_nodes() {
    let _one = serial();
    let check = LeakCheck::start();
    let mut kubernetes = product::start(3);
    volumes::are_mounted_wherever_the_pod_is(&kubernetes);
    volumes::are_copied_by_snapshot_and_clone(&kubernetes);
    volumes::grow(&kubernetes);
    losses::of_a_node_lose_no_data(&mut kubernetes);
    drop(kubernetes);
    check.finish().unwrap();
}
