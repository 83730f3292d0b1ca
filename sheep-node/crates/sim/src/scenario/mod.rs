//! Scripted runs of whole clusters: event sequences that break a cluster which has one rule less.
//!
//! Each scenario passes on the real system and fails with the variants it names. What can only be steered inside
//! one crate (a record on one disk and not on another) is scripted in that crate's tests.

mod data;
mod disk;
mod hooks;
mod lease;
mod order;
mod script;

pub use hooks::{Fate, Filter, Hooks, OF_SCRIPT};
pub use script::{Script, Session, Setup, Verdict, ensure};

/// A scripted run.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What must hold.
    pub rule: &'static str,
    /// Variants that it catches.
    pub mutants: &'static [&'static str],
    /// Runs it, with one rule left out if so asked.
    pub run: fn(Option<&str>) -> Verdict,
}

/// All of them.
pub const ALL: &[&[Scenario]] = &[order::SCENARIOS, lease::SCENARIOS, data::SCENARIOS, disk::SCENARIOS];

/// The scenario of this name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().flat_map(|list| list.iter()).find(|scenario| scenario.name == name)
}
