//! The CSI driver `csi.sheepdog.io`: volumes of a Sheepdog cluster for pods.
//!
//! [`Controller`] makes volumes and gives them to nodes, [`Node`] makes devices and mounts of them, [`Identity`] says who
//! they are. All three are thin: what a volume is, is in the cluster, behind [`Backend`]; what a device is, is behind
//! [`Devices`]. Nothing is remembered between two calls but which volumes are being worked on.

mod backend;
mod busy;
mod capability;
mod cluster;
mod controller;
mod devices;
mod error;
mod handle;
mod host;
mod identity;
mod liveness;
mod memory;
mod names;
mod node;
mod parameters;
mod register;
mod serve;

pub use backend::{
    Attachment, Attributes, Backend, Capacity, NewSnapshot, NewVolume, Page, Snapshot, SnapshotQuery, Source,
    Volume,
};
pub use cluster::Cluster;
pub use controller::Controller;
pub use devices::{Device, Devices, FileDevices, RemoteDevices, Wanted};
pub use error::Error;
pub use handle::{Handle, Kind};
pub use identity::{Identity, Role};
pub use liveness::liveness;
pub use memory::Memory;
pub use node::Node;
pub use register::{Registration, register};
pub use serve::{Services, serve};

/// Name of the driver, the same everywhere.
pub const DRIVER: &str = "csi.sheepdog.io";

/// Package `csi.v1`, as in `proto/csi/v1/csi.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// Package `pluginregistration`, as in `proto/pluginregistration/v1/registration.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod registration {
    tonic::include_proto!("pluginregistration");
}
