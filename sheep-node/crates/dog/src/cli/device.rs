//! `dog device`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Socket of sheep-device on this machine
    #[arg(
        long,
        global = true,
        env = "SHEEP_DEVICES",
        value_name = "SOCKET",
        default_value = "/run/sheepdog/devices/devices.sock"
    )]
    pub(crate) devices: PathBuf,
    #[command(subcommand)]
    pub(crate) command: DeviceCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// All devices of this machine
    List,
    /// Give a volume to the node of this machine, which is the one that is asked, and make a device of it
    Attach {
        /// Name of the VDI
        vdi: String,
        /// For reading; several nodes may have it so
        #[arg(long)]
        read_only: bool,
    },
    /// Take a device away that nobody uses, and the volume from the node
    Detach {
        /// Name of the VDI
        vdi: String,
        /// Whoever uses it gets errors
        #[arg(short, long)]
        force: bool,
    },
}
