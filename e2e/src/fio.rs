//! fio: load with verification, and measurement.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{Proc, Spec};

/// What a job reads or writes.
#[derive(Clone, Debug)]
pub enum Target {
    /// An NBD export, by URI.
    Nbd(String),
    /// A file or device, with direct I/O.
    File(std::path::PathBuf),
    /// An RBD image of Ceph.
    Rbd {
        /// The configuration file of the cluster.
        conf: std::path::PathBuf,
        /// The pool.
        pool: String,
        /// Its name in the pool.
        image: String,
    },
}

/// Pattern of a job, in fio's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Sequential writes.
    Write,
    /// Sequential reads.
    Read,
    /// Random writes, every block once per pass.
    RandomWrite,
    /// Random reads.
    RandomRead,
}

impl Pattern {
    fn word(self) -> &'static str {
        match self {
            Pattern::Write => "write",
            Pattern::Read => "read",
            Pattern::RandomWrite => "randwrite",
            Pattern::RandomRead => "randread",
        }
    }

    /// Whether it writes.
    pub fn writes(self) -> bool {
        matches!(self, Pattern::Write | Pattern::RandomWrite)
    }
}

/// A job.
#[derive(Clone, Debug)]
pub struct Fio {
    target: Target,
    pattern: Pattern,
    size: String,
    extra: Vec<String>,
}

/// What a job measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Operations per second.
    pub iops: f64,
    /// Megabytes (10^6) per second.
    pub mbps: f64,
    /// Median completion latency in microseconds.
    pub p50_us: f64,
    /// 99th percentile of it.
    pub p99_us: f64,
    /// Longest of it.
    pub max_us: f64,
    /// Operations done.
    pub operations: u64,
    /// Processor time of fio itself per operation, microseconds.
    pub client_cpu_us: f64,
}

impl Fio {
    /// A job over the first `size` (fio's notation) of the target, in blocks of 4 KiB at depth 1.
    pub fn new(target: Target, pattern: Pattern, size: &str) -> Fio {
        Fio { target, pattern, size: size.to_owned(), extra: Vec::new() }
    }

    /// Adds an option, as `name=value`.
    pub fn set(mut self, option: &str) -> Fio {
        self.extra.push(format!("--{option}"));
        self
    }

    /// Block size and depth.
    pub fn shape(self, block: &str, depth: u32) -> Fio {
        self.set(&format!("bs={block}")).set(&format!("iodepth={depth}"))
    }

    /// Every block is filled with the seed and its own offset, so blocks that are stale (of a pass with another seed)
    /// or misplaced are found; after the pass everything is read back through the same connection. fio's own
    /// checksummed headers would not do: they accept an older block of the same place.
    pub fn verify(self, seed: u32) -> Fio {
        self.set("verify=pattern")
            .set(&format!("verify_pattern=0x{seed:08x}%o"))
            .set("verify_fatal=1")
            .set("do_verify=1")
            .set(&format!("randseed={seed}"))
    }

    /// Only reads back what [`Fio::verify`] with the same seed, pattern and size wrote.
    pub fn verify_only(self, seed: u32) -> Fio {
        self.verify(seed).set("verify_only=1")
    }

    /// Runs for a fixed time, after a time that does not count.
    pub fn timed(self, ramp: Duration, run: Duration) -> Fio {
        self.set("time_based=1")
            .set(&format!("ramp_time={}", ramp.as_secs()))
            .set(&format!("runtime={}", run.as_secs()))
    }

    /// The command.
    pub fn spec(&self) -> Spec {
        let mut args = vec![
            "--name=job".to_owned(),
            "--output-format=json".to_owned(),
            "--thread=1".to_owned(),
            // fio leaves a state file in the working directory otherwise.
            "--verify_state_save=0".to_owned(),
            format!("--rw={}", self.pattern.word()),
            format!("--size={}", self.size),
        ];
        let mut spec = Spec::new("fio", "fio");
        match &self.target {
            Target::Nbd(uri) => args.extend(["--ioengine=nbd".to_owned(), format!("--uri={uri}")]),
            Target::File(path) => args.extend([
                "--ioengine=libaio".to_owned(),
                "--direct=1".to_owned(),
                format!("--filename={}", path.display()),
            ]),
            Target::Rbd { conf, pool, image } => {
                // The engine has no option for the file.
                spec = spec.env("CEPH_CONF", conf);
                args.extend(["--ioengine=rbd".to_owned(), "--clientname=admin".to_owned()]);
                args.extend([format!("--pool={pool}"), format!("--rbdname={image}")]);
            }
        }
        args.extend(self.extra.iter().cloned());
        spec.args(args)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// fio fails: an I/O error, or a verification error.
    pub fn run(&self) -> Result<Measured> {
        let printed = self.spec().output()?;
        self.measured(&printed)
    }

    /// Runs it to its end, but not longer than `limit`, where the target may never answer.
    ///
    /// # Errors
    /// fio fails, or is not done in time.
    pub fn run_within(&self, limit: Duration, log: &Path) -> Result<Measured> {
        let _ = std::fs::remove_file(log);
        let mut job = self.start(log)?;
        let status = job.wait(limit)?;
        ensure!(status.success(), "fio: {status}: {}", job.log_tail(5));
        self.measured(&job.log_text())
    }

    /// Starts it in the background; its report goes to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, log: &Path) -> Result<Proc> {
        self.spec().log(log).spawn()
    }

    fn measured(&self, printed: &str) -> Result<Measured> {
        // The engine may print lines of its own before the report, and after it.
        let start = printed.find('{').context("fio printed no report")?;
        let mut values = serde_json::Deserializer::from_str(&printed[start..]).into_iter::<Value>();
        let report = values.next().context("no report")?.context("fio's report")?;
        let job = &report["jobs"][0];
        let side = &job[if self.pattern.writes() { "write" } else { "read" }];
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let latency = &side["clat_ns"];
        let operations = side["total_ios"].as_u64().unwrap_or(0);
        let cpu = number(&job["usr_cpu"]) + number(&job["sys_cpu"]);
        let run_ms = number(&side["runtime"]);
        Ok(Measured {
            iops: number(&side["iops"]),
            mbps: number(&side["bw_bytes"]) / 1e6,
            p50_us: number(&latency["percentile"]["50.000000"]) / 1e3,
            p99_us: number(&latency["percentile"]["99.000000"]) / 1e3,
            max_us: number(&latency["max"]) / 1e3,
            operations,
            client_cpu_us: if operations == 0 { 0.0 } else { cpu / 100.0 * run_ms * 1e3 / operations as f64 },
        })
    }
}
