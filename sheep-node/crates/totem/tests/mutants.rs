//! Each rule left out is caught by a checker, in random runs or in its scenario.

#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use sheep_totem::{Mutant, Mutants};
use std::panic::{AssertUnwindSafe, catch_unwind};
use support::Net;
use support::net::{CLUSTER, ms};
use support::scenario::{Seen, run_seed};

/// Seeds tried before a mutant counts as missed.
const SEEDS: u64 = 300;

fn is_caught(mutant: Mutant) {
    let caught = |seed: &u64| {
        let run = || run_seed(*seed, Mutants::only(mutant), &mut Seen::default());
        catch_unwind(AssertUnwindSafe(run)).is_err()
    };
    let seed = (0..SEEDS).find(caught);
    println!("{mutant:?} caught by seed {seed:?}");
    assert!(seed.is_some(), "{mutant:?} is not caught");
}

#[test]
fn random_runs_catch_each_variant() {
    for mutant in [
        Mutant::NumberForgotten,
        Mutant::NumberNotAwaited,
        Mutant::OrderAcrossHole,
        Mutant::LeaseFromReceipt,
        Mutant::SafeAtOnce,
        Mutant::NoExchange,
    ] {
        is_caught(mutant);
    }
}

#[test]
fn a_primary_that_anyone_disturbs_flaps() {
    let mut net = Net::empty(3);
    net.config.mutants = Mutants::only(Mutant::AnyoneDisturbs);
    (net.tells_primary, net.total) = (true, 4);
    (1..=3).for_each(|n| net.start(n, CLUSTER));
    net.settle(&[1, 2, 3], ms(3000));
    net.run(ms(100));
    let id = net.together(&[1, 2, 3]);
    net.start(4, CLUSTER);
    net.cut_both(4, 2);
    net.run(ms(60_000));
    assert_ne!(net.together(&[1, 2, 3]), id);
}
