//! A virtual machine: QEMU without hardware acceleration, its disk on an NBD export, driven over its serial console.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::{Proc, Spec};
use crate::wait_until;

/// How to start it.
pub struct VmOptions<'a> {
    /// Directory for the console socket and logs.
    pub dir: &'a Path,
    /// NBD socket; looked up anew at each attempt to connect, so it may be a symbolic link that moves.
    pub socket: &'a Path,
    /// Export to boot from.
    pub export: &'a str,
    /// How long the guest's requests wait for the server to come back before they fail.
    pub reconnect: Duration,
    /// Lives on when this process ends.
    pub outlive: bool,
}

/// A running guest with a root shell on its console.
pub struct Vm {
    process: Proc,
    console: UnixStream,
    /// Everything the console has shown so far.
    seen: Vec<u8>,
    commands: u64,
    console_path: PathBuf,
}

const PROMPT: &str = "guest# ";

impl Vm {
    /// Starts QEMU. SeaBIOS reads the boot sector from the export; there is no `-kernel`.
    ///
    /// Requests in flight when the server dies are kept and sent again (`reconnect-delay`). QEMU 7.2 tries to
    /// connect at once, then after 1, 2, 4, 8, 16, 16... s, so an outage of the server costs up to twice its length.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn start(options: &VmOptions<'_>) -> Result<Vm> {
        let console_path = options.dir.join("console");
        let disk = format!(
            "driver=nbd,node-name=disk,server.type=unix,server.path={},export={},reconnect-delay={},open-timeout=30",
            options.socket.display(),
            options.export,
            options.reconnect.as_secs()
        );
        let serial = format!(
            "socket,id=serial,path={},server=on,wait=off,logfile={}",
            console_path.display(),
            options.dir.join("console.log").display()
        );
        let process = Spec::new("qemu", "qemu-system-x86_64")
            .args(["-accel", "tcg", "-machine", "pc", "-m", "256", "-display", "none", "-nodefaults"])
            .args(["-no-reboot", "-blockdev", &disk, "-device", "virtio-blk-pci,drive=disk"])
            .args(["-chardev", &serial, "-serial", "chardev:serial"])
            .log(options.dir.join("qemu.log"))
            .outlive(options.outlive);
        let mut process = process.spawn()?;
        let mut console = None;
        wait_until("console", Duration::from_secs(40), Duration::from_millis(10), || {
            if !process.is_running() {
                bail!("qemu ended: {}", process.log_tail(5));
            }
            console = UnixStream::connect(&console_path).ok();
            Ok(console.is_some())
        })?;
        let console = console.context("console")?;
        console.set_read_timeout(Some(Duration::from_millis(50))).context("console time limit")?;
        Ok(Vm { process, console, seen: Vec::new(), commands: 0, console_path })
    }

    /// Waits for the root shell, then makes the console quiet.
    ///
    /// # Errors
    /// It takes longer than `limit`, or QEMU ends.
    pub fn wait_booted(&mut self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        self.wait_for(PROMPT, 0, limit)?;
        self.console.write_all(b"stty -echo; PS1=; PS2=\n").context("console")?;
        self.run("true", Duration::from_secs(30))?;
        Ok(start.elapsed())
    }

    /// Runs a command in the guest and returns what it prints.
    ///
    /// # Errors
    /// It fails or takes longer than `limit`; QEMU ends.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        let id = self.send(command)?;
        self.finish(id, limit)
    }

    /// Starts a command in the guest's foreground; get its result with [`Vm::finish`].
    ///
    /// # Errors
    /// The console is gone.
    pub fn send(&mut self, command: &str) -> Result<u64> {
        self.commands += 1;
        let id = self.commands;
        // The marks are put together by printf, so that an echo of the command line cannot be taken for them.
        let line = format!(
            "printf '\\n<%s %s>\\n' begin {id}; {{ {command} ; }} 2>&1; printf '\\n<%s %s %s>\\n' end {id} $?\n"
        );
        // A terminal accepts no longer line.
        if line.len() > 4000 {
            bail!("command too long for a console: {} bytes", line.len());
        }
        self.console.write_all(line.as_bytes()).context("console")?;
        Ok(id)
    }

    /// Waits for the end of a command started with [`Vm::send`].
    ///
    /// # Errors
    /// As [`Vm::run`].
    pub fn finish(&mut self, id: u64, limit: Duration) -> Result<String> {
        let begin = format!("<begin {id}>");
        let from = self.wait_for(&begin, 0, limit)? + begin.len();
        let end = format!("<end {id} ");
        let to = self.wait_for(&end, from, limit)?;
        let close = self.wait_for(">", to, limit)?;
        let text = self.text();
        let status = text[to + end.len()..close].trim();
        let printed = text[from..to].trim().to_owned();
        if status != "0" {
            bail!("in the guest: status {status}: {printed}");
        }
        Ok(printed)
    }

    /// What a command has printed so far, one entry per line.
    ///
    /// # Errors
    /// QEMU has ended.
    pub fn progress(&mut self, id: u64) -> Result<Vec<String>> {
        self.pump()?;
        let text = self.text();
        let begin = format!("<begin {id}>");
        let from = text.find(&begin).map_or(text.len(), |at| at + begin.len());
        Ok(text[from..].lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
    }

    /// Lines of the console that tell of failed I/O.
    pub fn io_errors(&self) -> Vec<String> {
        let bad = |line: &&str| {
            [
                "I/O error",
                "Remounting filesystem read-only",
                "EXT4-fs error",
                "Kernel panic",
                "blocked for more",
            ]
            .iter()
            .any(|sign| line.contains(sign))
        };
        self.text().lines().filter(bad).map(str::to_owned).collect()
    }

    /// Writes everything back and switches the guest off.
    ///
    /// # Errors
    /// QEMU does not end within `limit`.
    pub fn power_off(&mut self, limit: Duration) -> Result<()> {
        self.console.write_all(b"poweroff\n").context("console")?;
        // Whoever reads the console keeps it from filling up.
        wait_until("power off", limit, Duration::from_millis(20), || {
            let _ = self.pump();
            Ok(!self.process.is_running())
        })
        .map(drop)
    }

    /// The QEMU process.
    pub fn process(&mut self) -> &mut Proc {
        &mut self.process
    }

    /// Socket of the console.
    pub fn console_path(&self) -> &Path {
        &self.console_path
    }

    /// Everything the console has shown. What is not UTF-8 is replaced byte for byte, so positions stay.
    fn text(&self) -> String {
        self.seen.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '?' }).collect()
    }

    /// Takes what the console shows now.
    fn pump(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        match self.console.read(&mut buffer) {
            Ok(0) => bail!("console closed: {}", self.process.log_tail(5)),
            Ok(count) => self.seen.extend(&buffer[..count]),
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("console"),
        }
        Ok(())
    }

    /// Position of `pattern` at or after `from`.
    fn wait_for(&mut self, pattern: &str, from: usize, limit: Duration) -> Result<usize> {
        let start = Instant::now();
        loop {
            if let Some(at) = self.text()[from..].find(pattern) {
                return Ok(from + at);
            }
            if start.elapsed() > limit {
                let text = self.text();
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(15)..].join("\n");
                bail!("the console did not show {pattern:?} within {limit:?}; it shows:\n{tail}");
            }
            self.pump()?;
        }
    }
}
