//! Programs of other people that are built from Go modules, and kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::process::run;

/// A file or script of the local Kubernetes.
pub(super) fn part(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes").join(name)
}

/// Where program `name` is; built first if it is not in the cache, which can take minutes.
///
/// # Errors
/// There is no such program, or it cannot be built.
pub fn program(name: &str) -> Result<PathBuf> {
    let printed = run("bash", [part("program.sh").as_os_str(), name.as_ref()])?;
    let path = PathBuf::from(printed.lines().last().context("program.sh printed no path")?);
    ensure!(path.is_file(), "{} does not exist", path.display());
    Ok(path)
}
