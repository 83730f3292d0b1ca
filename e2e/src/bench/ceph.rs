//! Ceph, as small as it is with three replicas: one monitor, one manager, three OSDs with BlueStore on files, one RBD
//! image. Everything listens on a loopback address of its own and lives in one directory.
//!
//! What is set here makes it small, keeps it in its place, or spares it work: no authentication, as ours has none
//! inside the cluster. The rest is Ceph's own choice.

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::fio::Target;
use crate::leaks::start_ticks;
use crate::process::{Proc, Spec, cpu_us, run};
use crate::scratch::{Scratch, host, loopback_network};
use crate::wait_until;

const OSDS: u64 = 3;
const POOL: &str = "rbd";
const IMAGE: &str = "bench";
const PROGRAMS: [&str; 5] = ["ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd"];
/// Time for one command, and for the cluster to become healthy.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running cluster with an image. Dropping it ends the daemons and removes their files.
pub struct Ceph {
    // Before the directory they write to, because fields are dropped in this order.
    daemons: Vec<Proc>,
    scratch: Scratch,
    conf: PathBuf,
    /// Process of the daemon whose end has been explained.
    told: Cell<Option<u32>>,
}

impl Ceph {
    /// Starts a cluster and makes an image of `bytes`.
    ///
    /// # Errors
    /// Ceph is not installed, or a step fails; then the message has the last lines of a daemon that ended, and the
    /// logs are kept in the directory `E2E_LOGS`, if that is set.
    pub fn start(bytes: u64) -> Result<Ceph> {
        for program in PROGRAMS {
            run(program, ["--version"]).context("Ceph is not installed; 'make bench CEPH=1' does that")?;
        }
        let scratch = Scratch::new("ceph")?;
        let conf = scratch.path().join("ceph.conf");
        let mut ceph = Ceph { daemons: Vec::new(), scratch, conf, told: Cell::new(None) };
        match ceph.bring_up(bytes) {
            Ok(()) => Ok(ceph),
            Err(error) => Err(ceph.explain(error)),
        }
    }

    fn bring_up(&mut self, bytes: u64) -> Result<()> {
        let address = host(loopback_network(), 1);
        let fsid = fresh_uuid()?;
        let text = configuration(self.scratch.path(), address, &fsid, bytes);
        std::fs::write(&self.conf, text).context("configuration")?;
        self.directory("mon")?;
        let monitor = addresses(address);
        let map = self.scratch.path().join("monmap").display().to_string();
        self.command("monmaptool", &["--create", "--addv", "a", &monitor, "--fsid", &fsid, &map])?;
        self.command("ceph-mon", &["--mkfs", "-i", "a", "--monmap", &map]).context("making the monitor")?;
        self.daemon("ceph-mon", "a")?;
        self.ceph("status").context("waiting for the monitor")?;
        self.directory("mgr")?;
        self.daemon("ceph-mgr", "x")?;
        for index in 0..OSDS {
            let (id, uuid) = (index.to_string(), fresh_uuid()?);
            self.directory(&format!("osd{id}"))?;
            self.ceph(&format!("osd new {uuid} {id}"))?;
            self.command("ceph-osd", &["--mkfs", "-i", &id, "--osd-uuid", &uuid])
                .with_context(|| format!("making OSD {id}"))?;
            self.daemon("ceph-osd", &id)?;
        }
        self.ceph(&format!("osd pool create {POOL} 32"))?;
        self.wait_until_healthy()?;
        self.command("rbd", &["pool", "init", POOL])?;
        // Megabytes, of 2^20 bytes.
        let size = (bytes >> 20).to_string();
        self.command("rbd", &["create", "--pool", POOL, "--size", &size, IMAGE])?;
        Ok(())
    }

    fn directory(&self, name: &str) -> Result<()> {
        std::fs::create_dir(self.scratch.path().join(name)).with_context(|| format!("directory {name}"))
    }

    fn daemon(&mut self, program: &str, id: &str) -> Result<()> {
        let spec = Spec::new(format!("{program} {id}"), program)
            // In the foreground, with its log on standard error.
            .args(["-d", "-i", id])
            .env("CEPH_CONF", &self.conf)
            .log(self.scratch.path().join(format!("{program}-{id}.log")));
        self.daemons.push(spec.spawn()?);
        Ok(())
    }

    /// Runs a command that must end in time: what waits for a broken cluster otherwise waits for ever.
    fn command(&self, program: &str, args: &[&str]) -> Result<String> {
        let log = self.scratch.path().join("command.log");
        let _ = std::fs::remove_file(&log);
        let what = format!("{program} {}", args.join(" "));
        let mut command =
            Spec::new(&what, program).args(args).env("CEPH_CONF", &self.conf).log(&log).spawn()?;
        let status = command.wait(PATIENCE).with_context(|| command.log_tail(5))?;
        ensure!(status.success(), "{what}: {status}: {}", command.log_tail(5));
        Ok(command.log_text())
    }

    fn ceph(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        self.command("ceph", &words)
    }

    fn trouble(&self) -> Result<Option<String>> {
        if let Some(daemon) = self.ended() {
            bail!("{} ended", daemon.name());
        }
        let osds = first_json(&self.ceph("osd stat --format json")?)?;
        let groups = first_json(&self.ceph("pg stat --format json")?)?;
        Ok(trouble(&osds, &groups))
    }

    fn wait_until_healthy(&self) -> Result<()> {
        let mut last = None;
        let waited = wait_until("a healthy cluster", PATIENCE, Duration::from_millis(300), || {
            last = self.trouble()?;
            Ok(last.is_none())
        });
        waited.map(drop).with_context(|| last.unwrap_or_default())
    }

    fn ended(&self) -> Option<&Proc> {
        self.daemons.iter().find(|daemon| start_ticks(daemon.pid()).is_none())
    }

    /// Checks that all daemons run and all replicas are there: a figure of less would be of something else.
    ///
    /// # Errors
    /// Something is missing.
    pub fn check(&self) -> Result<()> {
        match self.trouble()? {
            None => Ok(()),
            Some(trouble) => bail!("not healthy: {trouble}"),
        }
    }

    /// Empties the caches of the OSDs, so that reads reach the disk.
    ///
    /// # Errors
    /// An OSD does not answer.
    pub fn forget_cached(&self) -> Result<()> {
        (0..OSDS).try_for_each(|id| self.ceph(&format!("tell osd.{id} cache drop")).map(drop))
    }

    /// The image.
    pub fn target(&self) -> Target {
        Target::Rbd { conf: self.conf.clone(), pool: POOL.to_owned(), image: IMAGE.to_owned() }
    }

    /// Where fio is to write, so that it goes with the rest.
    pub fn fio_log(&self) -> PathBuf {
        self.scratch.path().join("fio.log")
    }

    /// Processor time of all daemons, microseconds. The client, librbd, is a part of fio here and not counted.
    pub fn servers_cpu(&self) -> u64 {
        self.daemons.iter().map(|daemon| cpu_us(daemon.pid())).sum()
    }

    /// Adds to an error what the log of a daemon that ended says (once), and keeps the logs.
    pub fn explain(&self, mut error: anyhow::Error) -> anyhow::Error {
        if let Some(daemon) = self.ended()
            && self.told.replace(Some(daemon.pid())) != Some(daemon.pid())
        {
            let said = excerpt(&daemon.log_text(), 6);
            error = anyhow!("{error:#}; {} said at its end:\n{said}\n", daemon.name());
        }
        match self.keep_logs() {
            Some(kept) => anyhow!("{error:#}; logs are in {}", kept.display()),
            None => error,
        }
    }

    fn keep_logs(&self) -> Option<PathBuf> {
        let into = PathBuf::from(std::env::var_os("E2E_LOGS")?).join(self.scratch.path().file_name()?);
        std::fs::create_dir_all(&into).ok()?;
        for entry in std::fs::read_dir(self.scratch.path()).ok()?.flatten() {
            if entry.path().extension().is_some_and(|end| end == "log" || end == "conf") {
                // Only a help for whoever looks for the cause; the failure itself is told anyway.
                let _ = std::fs::copy(entry.path(), into.join(entry.file_name()));
            }
        }
        Some(into)
    }
}

/// Which Ceph is installed.
///
/// # Errors
/// None.
pub fn version() -> Result<String> {
    run("ceph", ["--version"]).map(|line| line.trim().to_owned())
}

fn fresh_uuid() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("fresh UUID")?;
    Ok(text.trim().to_owned())
}

fn addresses(address: Ipv4Addr) -> String {
    format!("[v2:{address}:3300,v1:{address}:6789]")
}

fn configuration(dir: &Path, address: Ipv4Addr, fsid: &str, bytes: u64) -> String {
    let (dir, monitor) = (dir.display(), addresses(address));
    // The database of an OSD and its journal need room beside the data.
    let block = bytes * 2 + (2 << 30);
    format!(
        "[global]\n\
         fsid = {fsid}\n\
         mon host = {monitor}\n\
         public addr = {address}\n\
         cluster addr = {address}\n\
         auth cluster required = none\n\
         auth service required = none\n\
         auth client required = none\n\
         run dir = {dir}\n\
         crash dir = {dir}\n\
         keyring = {dir}/keyring\n\
         mon data = {dir}/mon\n\
         mgr data = {dir}/mgr\n\
         osd data = {dir}/osd$id\n\
         log file =\n\
         mon cluster log file =\n\
         # All OSDs are on one host, so replicas must be allowed to be.\n\
         osd crush chooseleaf type = 0\n\
         osd pool default size = 3\n\
         osd pool default min size = 2\n\
         osd pool default pg autoscale mode = off\n\
         # A disk that is nearly full is no reason for the monitor to give up.\n\
         mon data avail crit = 1\n\
         bluestore block create = true\n\
         bluestore block size = {block}\n\
         bluestore block preallocate file = true\n\
         # As with QEMU's cache=none: a write is answered when all replicas have it on stable storage.\n\
         rbd cache = false\n"
    )
}

/// The last `lines` of a daemon's log that tell of errors, or just the last if none does. One that crashes also writes
/// all that it remembers, which is nothing new and very long.
fn excerpt(log: &str, lines: usize) -> String {
    let log = log.split("--- begin dump of recent events").next().unwrap_or_default();
    let words = ["***", " -1 ", "FAILED", "ERROR", "ssert"];
    let all: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut chosen: Vec<&str> =
        all.iter().copied().filter(|line| words.iter().any(|word| line.contains(word))).collect();
    if chosen.is_empty() {
        chosen = all;
    }
    chosen[chosen.len().saturating_sub(lines)..].join("\n")
}

/// The first JSON value in what a command printed; warnings may stand before and after it.
fn first_json(printed: &str) -> Result<Value> {
    let start = printed.find('{').with_context(|| format!("no JSON in: {printed}"))?;
    let mut values = serde_json::Deserializer::from_str(&printed[start..]).into_iter::<Value>();
    values.next().context("no JSON")?.with_context(|| format!("JSON in: {printed}"))
}

/// What is wrong by `ceph osd stat` and `ceph pg stat`, if anything is.
fn trouble(osds: &Value, groups: &Value) -> Option<String> {
    let up = osds["num_up_osds"].as_u64().unwrap_or(0);
    if up != OSDS {
        return Some(format!("{up} of {OSDS} OSDs are up"));
    }
    let groups = &groups["pg_summary"];
    let all = groups["num_pgs"].as_u64().unwrap_or(0);
    let states = groups["num_pg_by_state"].as_array().into_iter().flatten();
    // They may also be scrubbed at the same time.
    let clean = states.filter(|state| state["name"].as_str().is_some_and(|n| n.starts_with("active+clean")));
    let clean: u64 = clean.filter_map(|state| state["num"].as_u64()).sum();
    (all == 0 || clean != all).then(|| format!("{clean} of {all} placement groups are clean"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_an_osd_or_a_placement_group_that_is_missing() {
        let osds = |up: u64| serde_json::json!({"num_osds": 3, "num_up_osds": up});
        let groups = first_json(
            "warning\n{\"pg_summary\":{\"num_pg_by_state\":[{\"name\":\"active+clean\",\"num\":30},\
             {\"name\":\"active+clean+scrubbing\",\"num\":2},{\"name\":\"peering\",\"num\":1}],\"num_pgs\":33}}\n\
             warning",
        );
        let mut groups = groups.unwrap();
        assert_eq!(trouble(&osds(2), &groups).unwrap(), "2 of 3 OSDs are up");
        assert_eq!(trouble(&osds(3), &groups).unwrap(), "32 of 33 placement groups are clean");
        groups["pg_summary"]["num_pgs"] = 32.into();
        assert_eq!(trouble(&osds(3), &groups), None);
        assert!(trouble(&osds(3), &serde_json::json!({})).is_some(), "nothing known yet");
    }

    #[test]
    fn an_excerpt_has_the_errors_and_not_the_memories() {
        let log = "12:00 7f16  0 starting\n\n12:01 7f16 -1 *** Caught signal **\n 1: main()\n12:01 7f16 -1 bad\n 2: x\n\
                   --- begin dump of recent events ---\n -5> 12:00 7f16 -1 old\n--- end dump of recent events ---\n";
        assert_eq!(excerpt(log, 6), "12:01 7f16 -1 *** Caught signal **\n12:01 7f16 -1 bad");
        assert_eq!(excerpt(log, 1), "12:01 7f16 -1 bad");
        assert_eq!(excerpt("one\n\ntwo\nthree\n", 2), "two\nthree");
    }
}
