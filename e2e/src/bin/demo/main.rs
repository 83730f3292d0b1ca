//! `make demo`: three sheep serve the disk of a virtual machine. One of them dies; the disk is cloned while the machine
//! runs, for a second machine beside it; then the sheep dies that serves the first.

mod second;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheep_e2e::cluster::Node;
use sheep_e2e::dog::{count, text};
use sheep_e2e::page::{Page, seconds};
use sheep_e2e::process::{Spec, run};
use sheep_e2e::tools::{allocation, bootable_image, import};
use sheep_e2e::vm::{Vm, VmOptions};
use sheep_e2e::{Cluster, LeakCheck, leaks, wait_until};

const VOLUME: &str = "vm";
const MINUTE: Duration = Duration::from_secs(60);
const RECOVERY: Duration = Duration::from_secs(180);
/// Files that the guest writes in an act in which something happens, and the one after which it does.
const FILES: u32 = 50;
const HAPPENS_AFTER: u32 = 15;
/// Files of the other acts.
const FEW: u32 = 20;
/// All that the first machine writes: in three acts something happens, in two nothing does.
const ALL: u32 = 3 * FILES + 2 * FEW;

struct Demo {
    page: Page,
    cluster: Cluster,
    keep: bool,
    /// What QEMU connects to: a symbolic link to the socket of the node that serves at the moment.
    socket: PathBuf,
}

fn main() -> ExitCode {
    match demonstrate() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything turned out as it must; what did not has been said.
fn demonstrate() -> Result<bool> {
    let keep = std::env::var("KEEP").is_ok_and(|value| !value.is_empty() && value != "0");
    let check = LeakCheck::start();
    let mut cluster = Cluster::plan(3)?;
    cluster.outlive(keep);
    let socket = cluster.path().join("vm.sock");
    let mut demo = Demo { page: Page::new(), cluster, keep, socket };
    let result = demo.play();
    if let Err(error) = &result {
        demo.page.bad(&format!("{error:#}"));
        demo.show_logs();
    }
    if keep {
        if result.is_ok() {
            closing_page(&demo.page);
        }
        demo.leave_running()?;
        leaks::forget_all();
        return Ok(result.is_ok());
    }
    let Demo { page, cluster, .. } = demo;
    drop(cluster);
    check.finish()?;
    if result.is_ok() {
        closing_page(&page);
    }
    Ok(result.is_ok())
}

impl Demo {
    fn play(&mut self) -> Result<()> {
        self.page.title("Sheepdog: first light");
        self.page.say("Every byte of the disk below is kept on three nodes, each a process of its own.");
        self.gather_flock()?;
        self.import_disk()?;
        self.page.step("A virtual machine boots from the volume");
        let mut vm = self.boot(VOLUME)?;
        self.another_sheep_dies(&mut vm)?;
        self.copies_come_back(3, "The dead sheep returns, and gets what it missed")?;
        self.second_machine(&mut vm)?;
        self.serving_sheep_dies(&mut vm)?;
        let sums = self.guest_verifies(&mut vm)?;
        drop(vm);
        self.copies_come_back(1, "The second victim returns, too")?;
        self.verify_elsewhere(&sums)?;
        if self.keep {
            self.page.step("The machine starts again, for you");
            let vm = self.boot(VOLUME)?;
            // Dropping does not end it: it was started to live on.
            drop(vm);
        }
        Ok(())
    }

    fn gather_flock(&mut self) -> Result<()> {
        self.page.step("Three sheep make a cluster");
        let start = Instant::now();
        for node in &self.cluster.nodes {
            let new = if node.index == 1 { "--new " } else { "" };
            self.page.command(&format!("sheep {new}{} --node-listen {} ...", short(node), node.address));
        }
        self.cluster.start_all()?;
        self.page.fact("three nodes up", seconds(start.elapsed()));
        self.show(&["node", "list"])
    }

    fn import_disk(&mut self) -> Result<()> {
        self.page.step("A bootable Debian disk becomes a volume");
        self.page.say("made from Debian packages: boot loader, kernel and root file system are on the disk");
        let image = bootable_image()?;
        let bytes = std::fs::metadata(&image).context("size of the image")?.len();
        let dog = self.cluster.any_dog()?;
        self.page.command(&format!("dog vdi create {VOLUME} {bytes} --copies 3"));
        dog.create(VOLUME, &bytes.to_string(), 3)?;
        let uri = self.cluster.node(1).nbd_uri(VOLUME);
        self.page.command("qemu-img convert -n image.raw nbd+unix:///vm");
        let start = Instant::now();
        import(&image, &uri)?;
        let took = start.elapsed();
        let (used, holes) = allocation(&uri)?;
        let mib = |bytes: u64| bytes >> 20;
        self.page.fact(
            "image imported, three copies",
            format!("{} of {} MiB in {}", mib(used), mib(used + holes), seconds(took)),
        );
        self.show(&["vdi", "list"])
    }

    fn serve_from(&self, index: u8) -> Result<()> {
        let target = self.cluster.nodes[usize::from(index) - 1].nbd_socket();
        let fresh = self.socket.with_extension("new");
        std::os::unix::fs::symlink(target, &fresh).context("link to the socket")?;
        // A rename replaces the link in one step: no moment without one.
        std::fs::rename(&fresh, &self.socket).context("link to the socket")
    }

    /// Starts a machine from the volume of its name: the first by way of the link, the other one at sheep 2.
    fn boot(&mut self, name: &str) -> Result<Vm> {
        if !self.socket.is_symlink() {
            self.serve_from(1)?;
        }
        let first = name == VOLUME;
        let socket = if first { self.socket.clone() } else { self.cluster.node(2).nbd_socket() };
        self.page.command(&format!(
            "qemu-system-x86_64 -accel tcg -blockdev driver=nbd,export={name},reconnect-delay=120 ..."
        ));
        let dir = self.cluster.path().join(name);
        // The console socket of an earlier machine would be in the way.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).context("directory of the machine")?;
        let options =
            VmOptions { dir: &dir, socket: &socket, export: name, reconnect: 2 * MINUTE, outlive: self.keep };
        let start = Instant::now();
        let mut vm = Vm::start(&options)?;
        vm.wait_booted(2 * MINUTE)?;
        let what =
            if first { "firmware to root shell, no -kernel" } else { "the clone boots, beside the first" };
        self.page.fact(what, seconds(start.elapsed()));
        let kernel = vm.run("uname -srv; df -h / | tail -1", MINUTE)?;
        self.page.say(&kernel);
        Ok(vm)
    }

    /// The guest writes files with checksums; when it has written [`HAPPENS_AFTER`], `event` happens. Returns the
    /// longest time between two finished files after that.
    fn write_through(
        &mut self,
        vm: &mut Vm,
        act: &str,
        event: impl FnOnce(&mut Demo) -> Result<()>,
    ) -> Result<Duration> {
        let id = vm.send(&writing(act, FILES, "sums"))?;
        let mut event = Some(event);
        let mut written = 0;
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while written < FILES {
            let lines = vm.progress(id)?;
            ensure!(!lines.iter().any(|line| line.starts_with("FAILED")), "the guest could not write");
            let now = u32::try_from(lines.iter().filter(|line| line.starts_with("wrote ")).count())?;
            if now > written {
                if event.is_none() {
                    longest = longest.max(last.elapsed());
                }
                (written, last) = (now, Instant::now());
            }
            if written >= HAPPENS_AFTER
                && let Some(event) = event.take()
            {
                event(self)?;
                last = Instant::now();
            }
            ensure!(last.elapsed() < 3 * MINUTE, "the guest has been waiting for its disk for three minutes");
        }
        vm.finish(id, MINUTE)?;
        ensure!(vm.io_errors().is_empty(), "the guest saw I/O errors: {:?}", vm.io_errors());
        Ok(longest)
    }

    fn another_sheep_dies(&mut self, vm: &mut Vm) -> Result<()> {
        self.page.step("While the guest writes, another sheep dies");
        let pause = self.write_through(vm, "a", |demo| {
            demo.kill(3);
            Ok(())
        })?;
        self.page.fact("longest write, another sheep killed", seconds(pause));
        self.wait_state(3)?;
        self.show(&["node", "list"])
    }

    fn serving_sheep_dies(&mut self, vm: &mut Vm) -> Result<()> {
        self.page.step("Now the very sheep that serves the machine dies");
        let pause = self.write_through(vm, "b", |demo| {
            demo.kill(1);
            demo.page.say("QEMU reconnects, to another sheep behind the same path");
            demo.serve_from(2)
        })?;
        self.page.fact("longest write, serving sheep killed", seconds(pause));
        self.show(&["vdi", "lock", "list"])
    }

    fn kill(&mut self, index: u8) {
        let node = self.cluster.node(index);
        let pid = node.process().map_or(0, |process| process.pid());
        node.kill();
        self.page.command(&format!("kill -9 {pid}    # sheep {index}"));
    }

    /// Waits until the others have noticed that a node is gone.
    fn wait_state(&mut self, index: u8) -> Result<()> {
        let address = self.cluster.node(index).address.to_string();
        let dog = self.cluster.any_dog()?;
        wait_until("loss noticed", MINUTE, Duration::from_millis(100), || {
            let nodes = dog.nodes().unwrap_or_default();
            let here = nodes.iter().find(|node| node["addresses"].to_string().contains(&address));
            Ok(here.is_none_or(|node| text(node, "state") != "up"))
        })
        .map(drop)
    }

    fn copies_come_back(&mut self, index: u8, title: &str) -> Result<()> {
        self.page.step(title);
        let start = Instant::now();
        self.cluster.node(index).start()?;
        self.page.say(&format!("serving again after {}", seconds(start.elapsed())));
        let mut shown = u64::MAX;
        let dog = self.cluster.any_dog()?;
        let page = &self.page;
        wait_until("all copies back", RECOVERY, Duration::from_millis(100), || {
            let Ok(info) = dog.cluster_info() else { return Ok(false) };
            let left = count(&info, "objects_to_recover");
            if left != shown && left > 0 {
                page.say(&format!("{left:>4} objects to re-create {}", "▒".repeat(left.min(60) as usize)));
                shown = left;
            }
            // The sum is of what nodes have found so far; each says of itself when it has looked at everything.
            Ok(left == 0 && text(&info, "health") == "ok" && dog.has_recovered().unwrap_or(false))
        })?;
        self.page.fact("start to full redundancy", seconds(start.elapsed()));
        self.show(&["node", "recovery"])
    }

    fn guest_verifies(&mut self, vm: &mut Vm) -> Result<String> {
        self.page.step("The guest reads everything back from its disk");
        let check = "cd /data; sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum -c sums | grep -c ': OK$'";
        let good = vm.run(check, 2 * MINUTE)?;
        ensure!(good == ALL.to_string(), "only {good} of {ALL} files are right");
        self.page.fact("checksums right, in the guest", format!("{good} of {ALL}"));
        let sums = vm.run("cat /data/sums", MINUTE)?;
        ensure!(vm.io_errors().is_empty(), "the guest saw I/O errors: {:?}", vm.io_errors());
        vm.power_off(MINUTE)?;
        self.page.good("not one I/O error in the guest's kernel log; switched off");
        Ok(sums)
    }

    /// Copies the volume out through a node that has never served it, and checks the files without the guest.
    fn verify_elsewhere(&mut self, sums: &str) -> Result<()> {
        self.page.step("The same files, read through a node that never served them");
        let uri = self.cluster.node(3).nbd_uri(VOLUME);
        let disk = self.cluster.path().join("copy.raw");
        self.page.command("nbdcopy nbd+unix:///vm?socket=n3.nbd copy.raw");
        run("nbdcopy", [uri.as_str(), &disk.display().to_string()])?;
        let files = self.cluster.path().join("files");
        std::fs::create_dir_all(&files).context("directory for the files")?;
        // The first partition starts at 1 MiB.
        let from = format!("{}?offset=1048576", disk.display());
        run("debugfs", ["-R", &format!("rdump /data {}", files.display()), &from])?;
        let list = files.join("expected");
        std::fs::write(&list, format!("{}\n", sums.replace('\r', ""))).context("list of checksums")?;
        let checked = Spec::new("sha256sum", "sh")
            .args(["-c", "cd \"$1/data\" && sha256sum -c \"$2\"", "sh"])
            .args([&files, &list])
            .output()?;
        let good = checked.lines().filter(|line| line.ends_with(": OK")).count();
        ensure!(good == ALL as usize, "only {good} of {ALL} files are right");
        self.page.fact("checksums right, through node 3", format!("{good} of {ALL}"));
        self.show(&["cluster", "check"])
    }

    /// Shows what a command of `dog` prints.
    fn show(&mut self, words: &[&str]) -> Result<()> {
        let printed = self.cluster.any_dog()?.run(words)?;
        self.page.command(&format!("dog {}", words.join(" ")));
        self.page.say(printed.trim_end());
        Ok(())
    }

    fn show_logs(&mut self) {
        for node in &mut self.cluster.nodes {
            let index = node.index;
            if let Ok(process) = node.process() {
                self.page.title(&format!("last lines of sheep {index}"));
                self.page.say(&process.log_tail(15));
            }
        }
    }

    fn leave_running(&mut self) -> Result<()> {
        self.cluster.keep();
        let dir = self.cluster.path().to_owned();
        let stop = dir.join("stop.sh");
        // By command line, because a node that was started again by hand has another process id.
        let script = format!(
            "#!/bin/sh\n# Ends everything of this demonstration and removes its files.\n\
             for process in /proc/[0-9]*; do\n  \
               tr '\\0' ' ' < \"$process/cmdline\" 2>/dev/null | grep -Eq '^[^ ]*(sheep|qemu-system-x86_64) .*{0}/' \
               && kill -9 \"${{process#/proc/}}\"\ndone\nrm -rf '{0}'\n",
            dir.display()
        );
        std::fs::write(&stop, script).context("stop.sh")?;
        self.page.title("It is still running. Try");
        let dog = format!("dog -s {}", short_path(&dir.join("n2")));
        for line in [
            format!("{dog} node list"),
            format!("{dog} cluster info"),
            format!("{dog} vdi tree"),
            format!("{dog} vdi create scratch 10G && {dog} vdi list"),
            format!("nbdinfo '{}'", self.cluster.node(3).nbd_uri("scratch")),
            format!(
                "socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{}    # the guest's console",
                dir.join("vm/console").display()
            ),
            format!("tail -f {}/n*.log", dir.display()),
            format!("sh {}    # ends it all", stop.display()),
        ] {
            self.page.command(&line);
        }
        Ok(())
    }
}

/// Command for a guest: writes files that are called after the act, each to the disk before the next, notes their
/// checksums in `list`, and says of each that it is written.
fn writing(act: &str, files: u32, list: &str) -> String {
    format!(
        "mkdir -p /data; cd /data; for i in $(seq 1 {files}); do dd if=/dev/urandom of={act}$i bs=64k count=4 \
         conv=fsync 2>/dev/null && sha256sum {act}$i >> {list} && echo \"wrote $i\" || echo \"FAILED $i\"; done; sync"
    )
}

fn short(node: &Node) -> String {
    node.dir.file_name().unwrap_or_default().display().to_string()
}

fn short_path(path: &Path) -> String {
    path.display().to_string()
}

fn closing_page(page: &Page) {
    page.show_facts();
    page.say(
        "Two nodes were killed without warning while a machine was writing to its disk. The machine lost",
    );
    page.say("nothing and noticed nothing but a pause, and every copy exists three times again. In between a second");
    page.say(
        "machine started from what its disk was at one instant, and each wrote what the other did not see.",
    );
    page.say(&format!("The whole of it took {}.", seconds(page.elapsed())));
}
