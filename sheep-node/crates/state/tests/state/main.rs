//! Tests of the replicated state through its public interface.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod balance;
mod cluster;
mod deletion;
mod forest;
mod locks;
mod membership;
#[cfg(feature = "mutants")]
mod mutants;
mod properties;
mod reports;
mod snapshot;
mod traces;
mod tree;
mod vdis;
mod voters;
