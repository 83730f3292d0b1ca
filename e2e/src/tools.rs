//! Other people's programs, as thin functions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{Proc, Spec, run};
use crate::wait_until;

/// Builds the disk image of the demonstration (or finds it in the cache); returns its path.
///
/// # Errors
/// Not root, packages missing, or no mirror reachable.
pub fn bootable_image() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("image/build.sh");
    let printed = run("bash", [script])?;
    let path = PathBuf::from(printed.lines().last().context("build.sh printed no path")?);
    ensure!(path.is_file(), "{} does not exist", path.display());
    Ok(path)
}

/// nbdkit serving one export on a Unix socket.
pub struct Nbdkit {
    process: Proc,
    socket: PathBuf,
}

impl Nbdkit {
    /// Starts `nbdkit PLUGIN ARGS` with export name `vm`, and waits for its socket.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(socket: &Path, plugin: &[&str]) -> Result<Nbdkit> {
        // nbdkit refuses to bind where an earlier one, killed, has left its socket.
        let _ = std::fs::remove_file(socket);
        let spec = Spec::new("nbdkit", "nbdkit").args(["-f", "-e", "vm", "-U"]).arg(socket).args(plugin);
        let mut process = spec.spawn()?;
        wait_until("nbdkit", Duration::from_secs(10), Duration::from_millis(10), || {
            ensure!(process.is_running(), "nbdkit ended");
            Ok(socket.exists())
        })?;
        Ok(Nbdkit { process, socket: socket.to_owned() })
    }

    /// URI of its export.
    pub fn uri(&self) -> String {
        crate::nbd::unix_uri(&self.socket, "vm")
    }

    /// The process.
    pub fn process(&mut self) -> &mut Proc {
        &mut self.process
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        self.process.kill();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// What nbdinfo says about an export.
///
/// # Errors
/// nbdinfo fails.
pub fn nbdinfo(uri: &str) -> Result<Value> {
    serde_json::from_str(&run("nbdinfo", ["--json", uri])?).context("nbdinfo printed no JSON")
}

/// Bytes that nbdinfo counts as (allocated, not allocated).
///
/// # Errors
/// nbdinfo fails.
pub fn allocation(uri: &str) -> Result<(u64, u64)> {
    let map: Value = serde_json::from_str(&run("nbdinfo", ["--json", "--map", uri])?).context("map")?;
    let mut sums = (0, 0);
    for extent in map.as_array().into_iter().flatten() {
        let length = extent["length"].as_u64().unwrap_or(0);
        // Bit 0 of base:allocation: a hole.
        if extent["type"].as_u64().unwrap_or(0) & 1 == 1 {
            sums.1 += length;
        } else {
            sums.0 += length;
        }
    }
    Ok(sums)
}

/// `qemu-img compare`: equal contents.
///
/// # Errors
/// They differ, or cannot be read.
pub fn compare(a: &str, b: &str) -> Result<()> {
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", a, b]).map(drop)
}

/// Copies a raw image into an export, leaving out what is zero.
///
/// # Errors
/// qemu-img fails.
pub fn import(image: &Path, uri: &str) -> Result<()> {
    let image = image.display().to_string();
    let words = ["convert", "-n", "-f", "raw", "-O", "raw", "-W", "--target-is-zero", &image, uri];
    run("qemu-img", words).map(drop)
}
