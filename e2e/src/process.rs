//! Child processes: started with a log file, signalled by id, ended on drop.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{leaks, wait_until};

/// Signals that the tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End politely.
    Term,
    /// Lose everything in memory, at once.
    Kill,
    /// Stand still, with all sockets open: what a paused machine looks like to the others.
    Stop,
    /// Go on after [`Signal::Stop`].
    Continue,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Term => "TERM",
            Signal::Kill => "KILL",
            Signal::Stop => "STOP",
            Signal::Continue => "CONT",
        }
    }
}

/// What to start.
pub struct Spec {
    name: String,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    /// Process whose network namespace to run in.
    netns_of: Option<u32>,
    log: Option<PathBuf>,
    outlive: bool,
}

impl Spec {
    /// A process called `name` in messages.
    pub fn new(name: impl Into<String>, program: impl AsRef<OsStr>) -> Spec {
        Spec {
            name: name.into(),
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            netns_of: None,
            log: None,
            outlive: false,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Spec {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Spec {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Spec {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in the network namespace of another process.
    pub fn in_namespace_of(mut self, pid: Option<u32>) -> Spec {
        self.netns_of = pid;
        self
    }

    /// Appends its output to a file instead of throwing it away.
    pub fn log(mut self, path: impl Into<PathBuf>) -> Spec {
        self.log = Some(path.into());
        self
    }

    /// Lets it live on when this process ends (`KEEP=1` of the demonstration).
    pub fn outlive(mut self, yes: bool) -> Spec {
        self.outlive = yes;
        self
    }

    /// The command line with its wrappers. Both wrappers replace themselves by the program, so the process id of
    /// the child is the program's own.
    pub fn command(&self) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(pid) = self.netns_of {
            words.extend(["nsenter".into(), format!("--net=/proc/{pid}/ns/net").into(), "--".into()]);
        }
        if !self.outlive {
            words.extend(["setpriv".into(), "--pdeathsig".into(), "KILL".into(), "--".into()]);
        }
        words.push(self.program.clone());
        words.extend(self.args.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(self.env.iter().map(|(k, v)| (k, v))).stdin(Stdio::null());
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// The log cannot be opened or the program cannot be started.
    pub fn spawn(self) -> Result<Proc> {
        let mut command = self.command();
        if let Some(path) = &self.log {
            let file = File::options().create(true).append(true).open(path);
            let file = file.with_context(|| format!("opening log {}", path.display()))?;
            command.stdout(file.try_clone().context("log of standard output")?).stderr(file);
        } else {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let child = command.spawn().with_context(|| format!("starting {}", self.name))?;
        leaks::record_process(child.id(), &self.name);
        Ok(Proc { name: self.name, child, log: self.log, outlive: self.outlive, status: None })
    }

    /// Runs it to its end and returns what it wrote to standard output.
    ///
    /// # Errors
    /// It cannot be started, or ends with a status other than 0; then the message carries its standard error.
    pub fn output(self) -> Result<String> {
        let output = self.command().output().with_context(|| format!("starting {}", self.name))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} {:?}: {}: {}", self.name, self.args, output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A running (or ended) child process. Dropping it kills it.
pub struct Proc {
    name: String,
    child: Child,
    log: Option<PathBuf>,
    outlive: bool,
    status: Option<ExitStatus>,
}

impl Proc {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has not ended yet (a stopped process has not).
    pub fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status.is_none()
    }

    /// Sends a signal. Does nothing to a process that has ended, whose id may belong to somebody else.
    ///
    /// # Errors
    /// kill(1) cannot be run.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        // The id cannot be reused before we have waited for the child, so it is ours.
        let line = format!("kill -{} {}", signal.name(), self.pid());
        Command::new("sh").args(["-c", &line]).status().context("running kill")?;
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.is_running() {
            // An error means that it has just ended by itself.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It runs longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("end of {}", self.name);
        wait_until(&what, limit, Duration::from_millis(20), || Ok(!self.is_running()))?;
        self.status.with_context(|| format!("status of {}", self.name))
    }

    /// SIGTERM, then waits.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::Term)?;
        self.wait(limit)
    }

    /// What it has written so far.
    pub fn log_text(&self) -> String {
        let bytes = self.log.as_deref().map(std::fs::read).and_then(Result::ok).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last lines it has written.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = self.log_text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Processor time it has used, user and system, in microseconds (granularity one clock tick, 10 ms).
    pub fn cpu_us(&self) -> u64 {
        cpu_us(self.pid())
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("");
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if !self.outlive {
            self.kill();
        }
    }
}

/// Processor time of a process in microseconds, 0 if there is none.
pub fn cpu_us(pid: u32) -> u64 {
    const TICK_US: u64 = 10_000;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * TICK_US
}

/// Runs a program to its end; see [`Spec::output`].
///
/// # Errors
/// It cannot be started or fails.
pub fn run<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: I,
) -> Result<String> {
    let name = program.as_ref().to_string_lossy().into_owned();
    Spec::new(name, program).args(args).output()
}

/// Where the binary `name` of this workspace is: `E2E_BIN_DIR`, or beside the running test.
///
/// # Errors
/// It has not been built.
pub fn workspace_binary(name: &str) -> Result<PathBuf> {
    let path = if let Some(dir) = std::env::var_os("E2E_BIN_DIR") {
        Path::new(&dir).join(name)
    } else {
        let own = std::env::current_exe().context("own path")?;
        let mut dir = own.parent().context("own directory")?.to_owned();
        if dir.ends_with("deps") {
            dir.pop();
        }
        dir.join(name)
    };
    if !path.is_file() {
        bail!("{} is not built; run `make build` (or set E2E_BIN_DIR)", path.display());
    }
    Ok(path)
}
