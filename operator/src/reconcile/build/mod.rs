//! The objects that a cluster consists of in Kubernetes: a function of what is wished for and of what there is.

mod classes;
mod controller;
mod node_parts;
mod object;
mod pod;
mod storage;
#[cfg(test)]
mod tests;

pub(crate) use object::{Object, owner_references};
pub(crate) use pod::TEMPLATE;
pub(crate) use storage::DRAINED;

use super::observed::Observed;
use super::validate::Valid;
use crate::settings::Settings;

/// Name of the CSI driver, also in the data of volumes: it never changes.
pub(crate) const DRIVER: &str = "csi.sheepdog.io";

/// Annotation of the CSIDriver: namespace and name of the SheepdogCluster whose volumes it is for.
pub(crate) const OWNER: &str = "sheepdog.io/owner";

/// Ports of storage nodes: ring (UDP) and data (TCP).
pub(crate) const NODE_PORT: u16 = 7000;
/// Control API of storage nodes.
pub(crate) const CONTROL_PORT: u16 = 7002;
/// Metrics and health of storage nodes.
pub(crate) const HTTP_PORT: u16 = 7003;

/// The parts of a cluster, as the label `app.kubernetes.io/component` of their objects.
pub(crate) mod component {
    /// Storage nodes.
    pub(crate) const STORAGE: &str = "storage";
    /// Gateways: members of the cluster that store nothing and serve volumes to their machine.
    pub(crate) const GATEWAY: &str = "gateway";
    /// Owners of block devices.
    pub(crate) const DEVICE: &str = "device";
    /// The CSI driver on nodes.
    pub(crate) const CSI_NODE: &str = "csi-node";
    /// The CSI driver's controller.
    pub(crate) const CSI_CONTROLLER: &str = "csi-controller";
    /// What is no pod.
    pub(crate) const CLUSTER: &str = "cluster";
}

/// What the builders know.
#[derive(Clone, Copy)]
struct Plan<'a> {
    cluster: &'a Valid,
    settings: &'a Settings,
    observed: &'a Observed,
}

impl Plan<'_> {
    /// Name of an object of the cluster.
    fn name(&self, part: &str) -> String {
        format!("{}-{part}", self.cluster.name)
    }
}

/// Name of the Secret with the cluster's key.
pub(crate) fn secret_name(cluster: &str) -> String {
    format!("{cluster}-key")
}

/// Everything, in an order in which nothing needs what comes later. The Secret is not here: it is made once, and outlives the
/// rest.
pub(crate) fn build(cluster: &Valid, settings: &Settings, observed: &Observed) -> Vec<Object> {
    let plan = Plan { cluster, settings, observed };
    let mut objects = vec![
        // First: whoever makes it is the only one who makes the rest.
        classes::driver(plan),
        storage::node_configuration(plan),
        storage::peers(plan),
        storage::control(plan),
        storage::disruption_budget(plan),
        storage::daemon_set(plan),
        node_parts::gateways(plan),
        node_parts::devices(plan),
        node_parts::csi(plan),
        controller::deployment(plan),
    ];
    objects.extend(classes::storage_class(plan));
    objects.extend(classes::snapshot_class(plan));
    objects
}
