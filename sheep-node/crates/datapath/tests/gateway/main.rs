//! Tests of the gateway against model replicas: perfect ones, over a network and an order under full control.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod diff;
mod fill;
mod full;
mod late;
#[cfg(feature = "mutants")]
mod mutants;
mod opening;
mod oracle;
mod random;
mod replica;
mod rules;
mod serving;
mod silence;
mod snapshots;
mod traces;
mod trouble;
mod world;
