//! Scripted runs of whole clusters: event sequences that break a cluster which has one rule less.

mod hooks;

pub use hooks::{Fate, Filter, Hooks, OF_SCRIPT};
