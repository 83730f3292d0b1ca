//! Starts the holder, which outlives whoever starts it, and workers, one after the other.

use crate::holder::is_held;
use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Time before another worker is started,
const RESPAWN: Duration = Duration::from_millis(50);
/// and after one that did not live for long.
const RESPAWN_LATER: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(5);
/// The holder's cgroup where one tree has all controllers.
const CGROUP: &str = "sheep-device";

/// This program again, in another role, even if its file has been replaced since.
fn own(role: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    let words = std::env::args_os().skip(1).filter(|word| !word.to_string_lossy().starts_with("--role="));
    command.arg0("sheep-device").args(words).arg(format!("--role={role}")).stdin(Stdio::null());
    command
}

/// Starts a holder, in a process group of its own. If there is one already it ends at once.
pub(crate) fn start_holder() -> Result<Child> {
    own("holder").process_group(0).spawn().context("cannot start the holder")
}

fn work(directory: &Path, holder: &mut Option<Child>) -> Result<ExitStatus> {
    if let Some(ended) = holder
        && ended.try_wait()?.is_some()
    {
        *holder = None;
    }
    if !is_held(directory)? {
        *holder = Some(start_holder()?);
    }
    let mut worker = own("worker").spawn().context("cannot start the worker")?;
    worker.wait().context("the worker's end")
}

/// Keeps a worker running. That it cannot be started now, for want of memory for instance, is no reason to end.
pub(crate) fn launch(directory: &Path) -> ! {
    let mut holder = None;
    loop {
        let started = Instant::now();
        match work(directory, &mut holder) {
            Ok(status) => info!("the worker has ended ({status})"),
            Err(problem) => error!("{problem:#}"),
        }
        std::thread::sleep(if started.elapsed() < LONG { RESPAWN_LATER } else { RESPAWN });
    }
}

/// The trees of control groups below a mount point of them.
fn trees(root: &Path) -> Result<Vec<PathBuf>> {
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let entries = std::fs::read_dir(root).with_context(|| root.display().to_string())?;
    let trees = entries.flatten().map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists());
    Ok(trees.collect())
}

/// Takes this process out of its container, which is ended by its control group: into that of the machine, whose trees are
/// below `cgroups`, and into its mounts.
pub(crate) fn leave_container(cgroups: &Path) -> Result<()> {
    // What matters is the control group. From within a namespace of them nobody gets out, which is seen below; without the
    // machine's mounts the container's stay as long as this process does.
    let enter = |name: &str, kind| {
        let file = File::open(format!("/proc/1/ns/{name}"));
        let entered = file.and_then(|file| Ok(move_into_link_name_space(file.as_fd(), Some(kind))?));
        if let Err(problem) = entered {
            warn!("the machine's namespace {name} cannot be entered: {problem}");
        }
    };
    enter("cgroup", LinkNameSpaceType::ControlGroup);
    for tree in trees(cgroups)? {
        let group = match tree.join("cgroup.controllers").exists() {
            true => tree.join(CGROUP),
            false => tree,
        };
        std::fs::create_dir_all(&group).with_context(|| group.display().to_string())?;
        let file = group.join("cgroup.procs");
        std::fs::write(&file, "0").with_context(|| file.display().to_string())?;
    }
    enter("mnt", LinkNameSpaceType::Mount);
    Ok(())
}
