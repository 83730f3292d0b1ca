//! Block devices of volumes on a node: a loop device on a FUSE file, which is served from the local gateway's NBD socket.
//!
//! Three processes. The holder keeps descriptors and nothing else. The worker does everything, and when it dies the next one goes
//! on where it was. The first process keeps both running; the holder outlives it.

mod control;
mod device;
mod fuse;
mod holder;
mod launch;
mod loops;
mod nbd;
mod state;
mod volume;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use holder::Holder;
use state::Place;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing::warn;

/// Block devices of a Sheepdog cluster's volumes, through the NBD socket of a gateway
#[derive(Debug, Parser)]
#[command(name = "sheep-device", version)]
struct Cli {
    /// Directory for state files, mounts and sockets
    #[arg(env = "SHEEP_DEVICE_DIR")]
    dir: PathBuf,
    /// NBD socket of the gateway on this machine
    #[arg(long, env = "SHEEP_NBD", value_name = "SOCKET")]
    nbd: PathBuf,
    /// Name of this node, which its devices bear; those of another one are left alone
    #[arg(long, env = "SHEEP_NODE", value_name = "NAME")]
    node: String,
    /// In a container with the machine's processes: where the machine's control groups are mounted. Devices then outlive the
    /// container
    #[arg(long, env = "SHEEP_CGROUPS", value_name = "DIR")]
    cgroups: Option<PathBuf>,
    /// Do as on kernels before Linux 6.9: when the worker dies, its devices end with errors
    #[arg(long, env = "SHEEP_NO_RESEND")]
    no_resend: bool,
    /// What the first process starts
    #[arg(long, hide = true, value_enum, default_value_t = Role::First)]
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    First,
    Holder,
    Worker,
}

/// Standard error. Nobody may read it any more, which is no reason to fail.
struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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
    let (holder, kept) = Holder::of(&directory)?;
    let place = Place { directory, nbd: cli.nbd, node: cli.node, holder, resend: !cli.no_resend };
    control::Devices::take_over(place, kept)?.serve()
}

fn run(cli: Cli) -> Result<()> {
    match cli.role {
        Role::Worker => work(cli),
        Role::Holder => {
            holder::hold(&cli.dir, || cli.cgroups.as_deref().map_or(Ok(()), launch::leave_container))
        }
        Role::First => {
            state::check_word("node", &cli.node, state::MAX_NODE)?;
            // As such it takes everything with it when it ends.
            ensure!(
                cli.cgroups.is_none() || std::process::id() != 1,
                "a container with --cgroups needs hostPID"
            );
            std::fs::create_dir_all(&cli.dir)
                .with_context(|| format!("cannot make {}", cli.dir.display()))?;
            launch::launch(&cli.dir)
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(|| Log).with_target(false).with_ansi(false).init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let _ = writeln!(Log, "sheep-device: {problem:#}");
            ExitCode::FAILURE
        }
    }
}
