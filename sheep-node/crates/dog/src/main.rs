//! `dog`: the command line tool of Sheepdog; under the name `kubectl-sheepdog`, a plugin of kubectl.
//!
//! Exit status: 0 done, 1 failed, 2 wrong usage.

mod backup;
mod changes;
mod check;
mod cli;
mod cluster;
mod connect;
mod copies;
mod device;
mod image;
mod kubernetes;
mod md;
mod node;
mod output;
mod progress;
mod ranges;
mod scrub;
mod snapshots;
mod transfer;
mod tree;
mod vdi;

use clap::Parser;
use clap::error::ErrorKind;
use cli::{Cli, Command, VdiCommand};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    if kubernetes::is_plugin(std::env::args_os().next().as_deref()) {
        return kubernetes::main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output and is no error.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "dog: {}", output::describe(&problem));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let server = connect::Server::find(&cli.target)?;
    let format = cli.output;
    match cli.command {
        Command::Node(command) => node::run(&server, format, command).await.map(|()| ExitCode::SUCCESS),
        Command::Vdi(VdiCommand::Check { name, all }) => {
            copies::check(&server.connect().await?, format, &name, all).await
        }
        Command::Vdi(VdiCommand::AcceptLoss(command)) => {
            copies::accept_loss(&server.connect().await?, format, command).await
        }
        Command::Vdi(command) => vdi::run(&server, format, command).await.map(|()| ExitCode::SUCCESS),
        Command::Cluster(command) => cluster::run(&server, format, command).await,
        Command::Device(args) => device::run(&server, format, args).await.map(|()| ExitCode::SUCCESS),
    }
}
