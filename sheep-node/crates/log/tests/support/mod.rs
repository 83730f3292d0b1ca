//! A small deterministic network of logs over an idealised ring.
//!
//! The ring model keeps what extended virtual synchrony promises and nothing more: one order per
//! configuration; a member may lack any message until it moves on; members that move on together deliver
//! the same messages, those after a hole as transitional; a node left behind goes on in the old
//! configuration with what it has, and may even get a token that was on its way.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::print_stdout)]

mod faults;
mod node;
pub mod scenarios;
mod state;
mod world;

#[allow(unused_imports)]
pub use node::SimNode;
#[allow(unused_imports)]
pub use world::{World, run_random};
