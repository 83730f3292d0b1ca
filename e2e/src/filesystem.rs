//! Small filesystems on loop devices, which can be filled and broken without harm to anything else.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::run;

/// An ext4 filesystem in a file, mounted. Dropping it unmounts it; the loop device goes with the last file in it.
pub struct Filesystem {
    mount: PathBuf,
}

impl Filesystem {
    /// Makes one of `megabytes` (MiB) and mounts it at `mount`, which is made. The image lies beside it.
    ///
    /// # Errors
    /// No root, no loop devices, no ext4.
    pub fn new(mount: &Path, megabytes: u64) -> Result<Filesystem> {
        let image = mount.with_extension("img");
        std::fs::create_dir_all(mount).context("mount point")?;
        let file = std::fs::File::create(&image).context("image of a filesystem")?;
        file.set_len(megabytes << 20).context("size of the image")?;
        run("mkfs.ext4", ["-q", "-m", "0", "-O", "^has_journal", &image.display().to_string()])?;
        run("mount", ["-o", "loop", &image.display().to_string(), &mount.display().to_string()])?;
        let made = Filesystem { mount: mount.to_owned() };
        // Who uses the directory expects to find it empty.
        std::fs::remove_dir(mount.join("lost+found")).context("lost+found")?;
        Ok(made)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    fn filler(&self, number: u32) -> PathBuf {
        self.mount.join(format!("filler-{number}"))
    }

    /// Takes all the space that is left.
    ///
    /// # Errors
    /// `fallocate` is missing.
    pub fn fill(&self) -> Result<()> {
        // Pieces of falling size: the allocation of one that does not fit fails whole.
        for (number, kilobytes) in (0..).zip([1 << 18, 1 << 16, 1 << 14, 1 << 12, 1 << 8, 1 << 4, 4]) {
            for copy in 0.. {
                let path = self.filler(number * 100_000 + copy);
                let args = ["-l".to_owned(), format!("{kilobytes}KiB"), path.display().to_string()];
                if run("fallocate", args).is_err() {
                    // What it has got before it failed stays otherwise.
                    let _ = std::fs::remove_file(&path);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Gives the space back that [`Filesystem::fill`] took.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn free(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.mount)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("filler-") {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Lets every access fail from now on with an I/O error, as if the disk beneath had died.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn break_down(&self) -> Result<()> {
        // FS_IOC_SHUTDOWN with "no flush of the log".
        let call = "import fcntl, os, struct, sys; \
                    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run("python3", ["-c", call, &self.mount.display().to_string()]).map(drop)
    }

    /// Mounts it anew after it has broken down: what had reached the disk is there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn repair(&self) -> Result<()> {
        let (image, mount) = (self.mount.with_extension("img"), self.mount.display().to_string());
        run("umount", ["-l", &mount])?;
        // It ends with 1 when it has corrected something, and what it cannot correct the mount refuses.
        let _ = run("e2fsck", ["-p", "-f", &image.display().to_string()]);
        run("mount", ["-o", "loop", &image.display().to_string(), &mount]).map(drop)
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        // Lazily: processes that are about to be killed may have files open in it.
        if let Err(error) = run("umount", ["-l", &self.mount.display().to_string()]) {
            eprintln!("cannot unmount {}: {error}", self.mount.display());
        }
    }
}
