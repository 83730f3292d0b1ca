//! The Sheepdog node daemon: threads, sockets and files around the engine.

mod again;
mod cli;
mod clock;
mod config;
mod control;
mod daemon;
mod data;
mod disks;
mod grpc;
mod handle;
mod health;
mod http;
mod identity;
mod inbox;
mod log_file;
mod metrics;
mod priority;
mod rendezvous;
mod ring_socket;
mod ringload;
mod seal;
mod strangers;
mod telemetry;
#[cfg(test)]
mod testing;
mod whereabouts;

use cli::Invocation;
use std::io::Write;
use std::process::ExitCode;

/// Runs the program `sheep`. Exit status: 0 stopped in order, 1 failed, 2 wrong usage or configuration.
pub fn run() -> ExitCode {
    // What is not text names nothing that we know; a path that is not text is refused where it is used.
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let env = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    match cli::invocation(args, env) {
        Ok(Invocation::Print(text)) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(Invocation::Run(config)) => run_node(&config),
        Err(problem) => usage(&problem),
    }
}

/// Runs the program `ringload`, which measures the ring alone. Exit status as of [`run`].
pub fn run_ringload() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let options = match ringload::parse(args) {
        Ok(options) => options,
        Err(error) => {
            // Nobody is left to tell if that fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    abort_on_panic();
    match ringload::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "ringload: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

/// A panic on any thread ends the process: half a node must not go on. (Not `panic = "abort"`, which would make
/// tests build everything twice.)
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

fn run_node(config: &config::Config) -> ExitCode {
    abort_on_panic();
    if let Err(problem) = telemetry::start(config) {
        return usage(&format!("{problem:#}"));
    }
    match daemon::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            tracing::error!("{problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage(problem: &str) -> ExitCode {
    for line in problem.lines() {
        // Nobody is left to tell if that fails.
        let _ = writeln!(std::io::stderr(), "sheep: {line}");
    }
    ExitCode::from(2)
}
