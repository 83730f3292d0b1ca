//! Rules left out on purpose, by name, in builds that have them.

use crate::options::Options;
use sheep_datapath::{GatewayConfig, ReplicaConfig};
use sheep_engine::ControlConfig;
use sheep_store::StoreConfig;

/// Breaks the control engine, if asked to.
pub(crate) fn control(config: &mut ControlConfig, options: &Options) {
    let _ = (config, options);
}

/// Breaks the data path, if asked to.
pub(crate) fn data(
    store: &mut StoreConfig,
    replica: &mut ReplicaConfig,
    gateway: &mut GatewayConfig,
    options: &Options,
) {
    let _ = (store, replica, gateway, options);
}
