//! The CSI driver: its contract with clusters, in memory and real, and what Kubernetes' own test says of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which may")]

mod contract;
mod device;
mod machine;
mod memory;
mod node;
mod real;
mod sanity;
