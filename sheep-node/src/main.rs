//! `sheep`: the Sheepdog node daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    sheep_node::run()
}
