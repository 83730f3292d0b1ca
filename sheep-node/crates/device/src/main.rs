//! Block devices of volumes on a node: a loop device on a FUSE file, which is served from the local gateway's NBD socket.
//!
//! Two processes. The holder keeps descriptors and nothing else; the worker does everything, and when it dies the holder
//! starts the next one, which goes on where it was.

mod control;
mod device;
mod fuse;
mod holder;
mod nbd;
mod volume;

use anyhow::{Context, Result};
use clap::Parser;
use device::Place;
use holder::Holder;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing::warn;

/// Block devices of a Sheepdog cluster's volumes, through the NBD socket of a gateway
#[derive(Debug, Parser)]
#[command(name = "sheep-device", version)]
struct Cli {
    /// Directory for state files, mounts and the socket devices.sock
    dir: PathBuf,
    /// NBD socket of the gateway on this machine
    #[arg(long, value_name = "SOCKET")]
    nbd: PathBuf,
    /// Id of the node that the devices belong to; devices of another one are left alone
    #[arg(long, value_name = "ID")]
    node: String,
    /// Started by the holder
    #[arg(long, hide = true)]
    worker: bool,
}

/// What keeps a worker from waiting for memory that only it can free.
fn prepare_for_pressure() {
    use rustix::mm::MlockAllFlags;
    if let Err(problem) = rustix::process::configure_io_flusher_behavior(true) {
        warn!("memory for writes may be slow to come: PR_SET_IO_FLUSHER: {problem}");
    }
    if let Err(problem) = rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        warn!("memory cannot be locked: {problem}");
    }
}

fn work(cli: Cli) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    prepare_for_pressure();
    let directory = std::fs::canonicalize(&cli.dir).context("the directory of devices")?;
    let place = Place { directory, nbd: cli.nbd, node: cli.node, holder: Holder };
    control::Devices::take_over(place)?.serve()
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(false).init();
    let result = match cli.worker {
        true => work(cli),
        false => std::fs::create_dir_all(&cli.dir)
            .with_context(|| format!("cannot make {}", cli.dir.display()))
            .and_then(|()| holder::hold().map(|never| match never {})),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("sheep-device: {problem:#}");
            ExitCode::FAILURE
        }
    }
}
