//! Volumes as files and as mounted filesystems, without a network block device in the kernel: nbdfuse serves the volume as a
//! file, and the kernel mounts that through a loop device.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Proc, Spec, run};
use crate::wait_until;

/// Opening waits for whoever holds the volume, and for nodes that come back.
const PATIENCE: Duration = Duration::from_secs(120);

/// A volume as a file, served by a process of its own. Dropping it takes the file away, whoever uses it.
pub struct VolumeFile {
    server: Proc,
    dir: PathBuf,
}

impl VolumeFile {
    /// Serves what `uri` names as the file `disk` in `dir`, which is made. The process writes to `dir` with `.log` after it.
    ///
    /// # Errors
    /// nbdfuse is missing, or the volume cannot be opened in two minutes.
    pub fn new(uri: &str, dir: &Path) -> Result<VolumeFile> {
        std::fs::create_dir_all(dir).context("mount point of a volume")?;
        let mut tries = Vec::new();
        let begin = std::time::Instant::now();
        while begin.elapsed() < PATIENCE {
            let spec = Spec::new("nbdfuse", "nbdfuse").arg(dir.join("disk")).arg(uri);
            let server = spec.log(dir.with_extension("log")).spawn()?;
            let mut file = VolumeFile { server, dir: dir.to_owned() };
            let served = wait_until("volume as a file", PATIENCE, Duration::from_millis(10), || {
                Ok(!file.server.is_running() || file.path().exists())
            });
            served?;
            if file.server.is_running() {
                return Ok(file);
            }
            tries.push(file.server.log_tail(2));
            std::thread::sleep(Duration::from_millis(200));
        }
        anyhow::bail!("{uri} cannot be opened: {}", tries.last().map_or("no answer", String::as_str))
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// Takes the file away in order: what was written has been flushed, and the volume is closed.
    ///
    /// # Errors
    /// Somebody still uses it.
    pub fn end(mut self) -> Result<()> {
        run("umount", [self.dir.as_os_str()])?;
        let status = self.server.wait(PATIENCE).context("nbdfuse after its file was taken away")?;
        ensure!(status.success(), "nbdfuse ended with {status}: {}", self.server.log_tail(3));
        Ok(())
    }
}

impl Drop for VolumeFile {
    fn drop(&mut self) {
        if self.server.is_running() {
            // Without its server the file answers errors, so nobody can hang on it.
            self.server.kill();
            let _ = run("umount", ["-l".as_ref(), self.dir.as_os_str()]);
        }
    }
}

/// A filesystem on a volume, mounted.
pub struct Mounted {
    mount: PathBuf,
    file: Option<VolumeFile>,
}

impl Mounted {
    /// Mounts the filesystem in `file` at `mount`, which is made.
    ///
    /// # Errors
    /// No root, no loop devices, or no filesystem in it.
    pub fn new(file: VolumeFile, mount: &Path) -> Result<Mounted> {
        std::fs::create_dir_all(mount).context("mount point")?;
        run("mount", ["-o".as_ref(), "loop".as_ref(), file.path().as_os_str(), mount.as_os_str()])?;
        Ok(Mounted { mount: mount.to_owned(), file: Some(file) })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Unmounts it in order.
    ///
    /// # Errors
    /// A file in it is open, or the volume does not take what was still to be written.
    pub fn end(mut self) -> Result<()> {
        let file = self.file.take();
        run("umount", [self.mount.as_os_str()])?;
        let Some(file) = file else { return Ok(()) };
        // The loop device is given back behind unmount(2).
        wait_until("loop device to be given back", PATIENCE, Duration::from_millis(20), || {
            let of_it = run("losetup", ["-j".as_ref(), file.path().as_os_str()])?;
            Ok(of_it.trim().is_empty())
        })?;
        file.end()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = run("umount", ["-l".as_ref(), self.mount.as_os_str()]);
        }
    }
}

/// Checks an ext4 filesystem as a machine does that starts after its power went: the journal is replayed, and then
/// there must be nothing to correct.
///
/// # Errors
/// What the check found.
pub fn check_ext4(file: &Path) -> Result<()> {
    let path = file.display().to_string();
    // Ends with 1 when it has replayed the journal.
    let _ = run("e2fsck", ["-p", &path]);
    run("e2fsck", ["-f", "-n", &path]).map(drop).context("filesystem after its journal was replayed")
}
