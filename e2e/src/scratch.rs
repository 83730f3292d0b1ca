//! Temporary directories, and addresses nobody else uses.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::leaks;
use crate::process::run;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A directory that is removed on drop. Its path is short, because Unix socket paths end at 107 bytes.
pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes a fresh directory below `E2E_DIR`, or the directory for temporary files.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(name: &str) -> Result<Scratch> {
        let base = std::env::var_os("E2E_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        sweep(&base);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("sheep-{name}-{}-{serial}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        leaks::record_directory(&path);
        Ok(Scratch { path, keep: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory in place on drop.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        release(&self.path);
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// A loopback network of its own for a cluster: 127.X.Y.0/24, chosen by process id, so that clusters of processes
/// that run at the same time do not meet and every node can use the default ports.
pub fn loopback_network() -> Ipv4Addr {
    let serial = NEXT.fetch_add(1, Ordering::Relaxed);
    let mixed = std::process::id().wrapping_mul(31).wrapping_add(serial.wrapping_mul(7));
    let [_, _, high, low] = (mixed % 60_000).to_be_bytes();
    // 127.0.y is left to everybody else.
    Ipv4Addr::new(127, high.max(1), low, 0)
}

/// Address number `index` of a /24 network.
pub fn host(network: Ipv4Addr, index: u8) -> Ipv4Addr {
    let [a, b, c, _] = network.octets();
    Ipv4Addr::new(a, b, c, index)
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// No socket can be bound.
pub fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr().context("reading the port")?.port())
}

/// Takes away what a test that failed has left in a directory: loop devices on its files, and mounts. The devices come first: who
/// unmounts what their files are in can find them by their names no more.
fn release(path: &Path) {
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(&file).starts_with(path) {
            // One that is mounted goes when it is unmounted.
            let _ =
                run("losetup", ["--detach".as_ref(), Path::new("/dev").join(entry.file_name()).as_os_str()]);
        }
    }
    // The deepest first.
    for mount in leaks::mounts().iter().rev().filter(|mount| Path::new(mount).starts_with(path)) {
        let _ = run("umount", ["-l", mount]);
    }
}

/// Removes what runs that were interrupted (Ctrl-C) have left in the directory for scratch: directories named after
/// a process that is gone.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name().display().to_string();
        let owner = name
            .strip_prefix("sheep-")
            .and_then(|rest| rest.rsplit('-').nth(1))
            .and_then(|p| p.parse::<u32>().ok());
        // A demonstration that was left running keeps its own stop script.
        let kept = entry.path().join("stop.sh").exists();
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) && !kept {
            release(&entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
