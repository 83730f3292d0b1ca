//! `ringload`: measures the ring alone; see `ringload --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    sheep_node::run_ringload()
}
