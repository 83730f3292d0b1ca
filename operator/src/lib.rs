//! The operator: keeps in Kubernetes what a Sheepdog cluster consists of, and tells people how it is.

mod controller;
#[allow(clippy::duplicated_attributes, reason = "several columns have the same type")]
mod crd;
mod lease;
mod reconcile;
mod settings;
mod wish;

pub use controller::{Context, run};
pub use crd::{SheepdogCluster, SheepdogClusterSpec, SheepdogClusterStatus};
pub use lease::Leadership;
pub use settings::Settings;
pub use wish::Wish;
