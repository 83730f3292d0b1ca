//! Record of everything the harness made, and the check that none of it remains.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};

#[derive(Default)]
struct Made {
    /// Process id to (start time in ticks since boot, what it is): an id alone could be somebody else's by now.
    processes: BTreeMap<u32, (u64, String)>,
    directories: BTreeSet<PathBuf>,
    /// Inode numbers of network namespaces.
    namespaces: BTreeMap<u64, String>,
}

static MADE: LazyLock<Mutex<Made>> = LazyLock::new(Mutex::default);

fn made() -> MutexGuard<'static, Made> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When process `pid` started, in clock ticks since boot; `None` if there is no such process, or only a zombie.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may itself contain blanks and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Remembers a process that the harness started.
pub fn record_process(pid: u32, what: &str) {
    if let Some(start) = start_ticks(pid) {
        made().processes.insert(pid, (start, what.to_owned()));
    }
}

/// Remembers a directory that the harness made.
pub fn record_directory(path: &Path) {
    made().directories.insert(path.to_owned());
}

/// Remembers a network namespace by the process that holds it.
pub fn record_namespace(holder: u32, what: &str) {
    if let Some(inode) = net_namespace(&format!("/proc/{holder}/ns/net")) {
        made().namespaces.insert(inode, what.to_owned());
    }
}

/// Forgets what is meant to stay (`KEEP=1` of the demonstration).
pub fn forget_all() {
    *made() = Made::default();
}

fn net_namespace(link: &str) -> Option<u64> {
    let target = std::fs::read_link(link).ok()?;
    target.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Paths of all mounts that this process sees.
pub fn mounts() -> BTreeSet<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| line.split_whitespace().nth(4)).map(str::to_owned).collect()
}

/// Loop devices whose file cannot be reached any more.
fn orphaned_loops() -> BTreeSet<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("loops.sh");
    let printed = crate::process::run("sh", [script]).unwrap_or_default();
    printed.lines().map(str::to_owned).collect()
}

/// The state of the machine before a test; [`LeakCheck::finish`] compares.
pub struct LeakCheck {
    mounts: BTreeSet<String>,
    loops: BTreeSet<String>,
}

impl LeakCheck {
    /// Notes which mounts, and which loop devices without a file system beneath, exist.
    pub fn start() -> LeakCheck {
        LeakCheck { mounts: mounts(), loops: orphaned_loops() }
    }

    /// Checks that no recorded process, directory or namespace, no new mount and no new orphaned loop device remains.
    ///
    /// # Errors
    /// Lists what remains.
    pub fn finish(self) -> Result<()> {
        // A killed process takes a moment to go, and so does the namespace it held.
        let settled =
            crate::wait_until("clean-up", Duration::from_secs(5), Duration::from_millis(50), || {
                Ok(self.remaining().is_empty())
            });
        if settled.is_err() {
            bail!("left behind: {}", self.remaining().join(", "));
        }
        Ok(())
    }

    fn remaining(&self) -> Vec<String> {
        let mut found = Vec::new();
        let made = made();
        for (pid, (start, what)) in &made.processes {
            if start_ticks(*pid) == Some(*start) {
                found.push(format!("process {pid} ({what})"));
            }
        }
        found.extend(
            made.directories
                .iter()
                .filter(|path| path.exists())
                .map(|p| format!("directory {}", p.display())),
        );
        let running = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for entry in running {
            let link = entry.path().join("ns/net");
            let inode = link.to_str().and_then(net_namespace);
            if let Some(what) = inode.and_then(|inode| made.namespaces.get(&inode)) {
                found.push(format!("namespace {what}, held by process {}", entry.file_name().display()));
            }
        }
        found.extend(mounts().difference(&self.mounts).map(|path| format!("mount {path}")));
        found.extend(orphaned_loops().difference(&self.loops).map(|path| format!("loop device {path}")));
        found
    }
}
