//! Harness for tests with real processes: clusters of `sheep`, their networks, disks, virtual machines and clients.
//!
//! Everything started here dies with the thread that started it (`PR_SET_PDEATHSIG`, set by setpriv(1)), every
//! network lives in namespaces held by such processes, and every file in a directory that is removed on drop, so a
//! test that panics or is killed leaves nothing behind. [`leaks`] keeps a record of all of it and checks that.
//!
//! Because of the first rule, start processes from the thread of the test, not from a helper thread that ends early.

pub mod bench;
pub mod certificates;
pub mod cluster;
pub mod dog;
pub mod filesystem;
pub mod fio;
pub mod kubernetes;
pub mod leaks;
pub mod mounted;
pub mod nbd;
pub mod netlab;
pub mod objects;
pub mod oracle;
pub mod page;
pub mod process;
pub mod scratch;
pub mod tools;
pub mod vm;

pub use cluster::{Cluster, Node, NodeOptions};
pub use dog::Dog;
pub use filesystem::Filesystem;
pub use fio::Fio;
pub use kubernetes::Kubernetes;
pub use leaks::LeakCheck;
pub use nbd::NbdClient;
pub use netlab::{Cut, NetLab};
pub use oracle::Oracle;
pub use process::{Proc, Signal, Spec};
pub use scratch::Scratch;
pub use vm::Vm;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// One test at a time: real clusters need the machine for themselves. Hold the guard for the whole test.
pub fn serial() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    // A test that failed has cleaned up behind itself, so poison says nothing about the next one.
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks `probe` every `every` until it answers true; an error or the time limit ends the wait.
///
/// # Errors
/// The probe's error, or that `what` did not happen within `limit`.
pub fn wait_until(
    what: &str,
    limit: Duration,
    every: Duration,
    mut probe: impl FnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if probe()? {
            return Ok(start.elapsed());
        }
        if start.elapsed() >= limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(every);
    }
}
