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
        Mutant::NumberTakenAgain,
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

/// With one path broken two groups form at the same time and choose the same number.
#[test]
fn groups_whose_numbers_bind_each_other_flap() {
    let configurations = |mutants: Mutants| {
        let mut sum = 0;
        for seed in 0..5 {
            let mut net = Net::empty(seed);
            net.config.mutants = mutants;
            (net.tells_primary, net.total) = (true, 4);
            (1..=4).for_each(|n| net.start(n, CLUSTER));
            net.settle(&[1, 2, 3, 4], ms(3000));
            let before = net.checker.configurations;
            net.cut.insert((2, 3));
            net.run(ms(20_000));
            sum += net.checker.configurations - before;
        }
        sum
    };
    // Each node installs one.
    assert_eq!(configurations(Mutants::default()), 20);
    assert!(configurations(Mutants::only(Mutant::ForeignNumberBinds)) > 24);
}
