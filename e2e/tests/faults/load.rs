//! fio, at one node after the other: passes that write everything and read it back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheep_e2e::fio::{Fio, Pattern, Target};
use sheep_e2e::{Cluster, Proc};

/// A pass may take this long, pauses included.
const PASS: Duration = Duration::from_secs(300);

/// Passes of fio, one after the other: each writes everything and reads it back. Each has another seed, so that a
/// block that missed a write is noticed in a later pass.
pub(crate) struct Load {
    volume: &'static str,
    uri: String,
    dir: PathBuf,
    /// Seed of the last pass; none was run if it is zero.
    pub(crate) seed: u32,
    pass: Option<Proc>,
}

fn job(uri: String) -> Fio {
    Fio::new(Target::Nbd(uri), Pattern::RandomWrite, "16M").shape("4k", 16)
}

impl Load {
    pub(crate) fn new(cluster: &mut Cluster, volume: &'static str) -> Load {
        let dir = cluster.path().to_owned();
        Load { volume, uri: String::new(), dir, seed: 0, pass: None }
    }

    /// Lets a node serve from now on. What was written elsewhere is read back there, all of it.
    pub(crate) fn move_to(&mut self, cluster: &mut Cluster, node: u8) -> Result<()> {
        self.verify_at(cluster, node)?;
        self.uri = cluster.node(node).nbd_uri(self.volume);
        Ok(())
    }

    /// Reads everything back through a node.
    pub(crate) fn verify_at(&mut self, cluster: &mut Cluster, node: u8) -> Result<()> {
        self.finish()?;
        cluster.wait_closed(self.volume)?;
        if self.seed > 0 {
            let read = job(cluster.node(node).nbd_uri(self.volume)).verify_only(self.seed).run();
            read.with_context(|| format!("reading pass {} back at node {node}", self.seed))?;
            cluster.wait_closed(self.volume)?;
        }
        Ok(())
    }

    /// Starts the next pass if the last one has ended, which must have been in success.
    pub(crate) fn keep_up(&mut self) -> Result<()> {
        if self.pass.as_mut().is_some_and(Proc::is_running) {
            return Ok(());
        }
        self.finish()?;
        self.seed += 1;
        let log = self.dir.join(format!("fio-{}-{}.log", self.volume, self.seed));
        self.pass = Some(job(self.uri.clone()).verify(self.seed).set("rate_iops=1000").start(&log)?);
        Ok(())
    }

    /// Waits for the end of the pass under way.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let Some(mut pass) = self.pass.take() else { return Ok(()) };
        let status = pass.wait(PASS).with_context(|| format!("pass {}", self.seed))?;
        let said = || {
            pass.log_text().lines().take_while(|line| !line.starts_with('{')).collect::<Vec<_>>().join("\n")
        };
        ensure!(status.success(), "pass {} failed: {}", self.seed, said());
        Ok(())
    }

    pub(crate) fn run_for(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.keep_up()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}
