//! Loop devices, which all containers of a machine share. One is known by the name of its file, and by nothing else.

use anyhow::{Context, Result, ensure};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const BLOCK: &str = "/sys/block";

fn losetup(args: &[&OsStr]) -> Result<String> {
    let output = Command::new("losetup").args(args).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.context("cannot run losetup")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "losetup {args:?} failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Names of all loop devices that there are.
fn all() -> Vec<String> {
    let entries = std::fs::read_dir(BLOCK).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("loop")).collect()
}

/// Loop devices on files of this name, wherever the file is.
pub(crate) fn find(mark: &str) -> Vec<PathBuf> {
    let has = |name: &String| {
        let file = std::fs::read_to_string(Path::new(BLOCK).join(name).join("loop/backing_file"));
        // Of a file system that is not mounted any more only the name is left.
        file.is_ok_and(|file| file.trim_end().rsplit('/').next() == Some(mark))
    };
    all().into_iter().filter(has).map(|name| Path::new("/dev").join(name)).collect()
}

/// Makes device nodes that are missing: where /dev is no devtmpfs nobody else does. Whether there were any.
fn make_nodes() -> Result<bool> {
    let mut made = false;
    for name in all() {
        let number = std::fs::read_to_string(Path::new(BLOCK).join(&name).join("dev")).unwrap_or_default();
        let number = number.trim().split_once(':');
        let Some((Ok(major), Ok(minor))) = number.map(|(a, b)| (a.parse(), b.parse())) else { continue };
        let path = Path::new("/dev").join(&name);
        let mode = Mode::RUSR | Mode::WUSR;
        match mknodat(CWD, &path, FileType::BlockDevice, mode, makedev(major, minor)) {
            Ok(()) => made = true,
            Err(Errno::EXIST) => {}
            Err(problem) => return Err(problem).with_context(|| format!("cannot make {}", path.display())),
        }
    }
    Ok(made)
}

/// A loop device on a file.
pub(crate) fn make(file: &Path, read_only: bool) -> Result<PathBuf> {
    let mut args: Vec<&OsStr> = ["--find", "--show", "--direct-io=on"].iter().map(AsRef::as_ref).collect();
    if read_only {
        args.push("--read-only".as_ref());
    }
    args.push(file.as_ref());
    match losetup(&args) {
        // The kernel has a device and this container no node of it, perhaps.
        Err(problem) => {
            if make_nodes()? {
                losetup(&args)
            } else {
                Err(problem)
            }
        }
        made => made,
    }
    .map(PathBuf::from)
}

/// The file has another size.
pub(crate) fn follow_size(device: &Path) -> Result<()> {
    losetup(&["--set-capacity".as_ref(), device.as_ref()]).map(drop)
}

/// Takes a loop device away; one that is in use goes when it is not any more.
pub(crate) fn remove(device: &Path) -> Result<()> {
    losetup(&["--detach".as_ref(), device.as_ref()]).map(drop)
}
