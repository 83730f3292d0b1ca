//! A machine with devices: a gateway of a cluster that stores elsewhere, so that its death loses nothing, and `sheep-device`
//! beside it.

use sheep_csi::{Attachment, Backend, Device, Devices, Error, Handle, NewVolume, RemoteDevices, Wanted};
use sheep_e2e::dog::text;
use sheep_e2e::process::{run, workspace_binary};
use sheep_e2e::{Cluster, LeakCheck, Proc, Scratch, Spec, serial, wait_until};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const SIZE: u64 = 64 << 20;

/// What the node is called: loop devices of all tests are the machine's.
fn node_name() -> String {
    format!("machine-{}", std::process::id())
}

pub(crate) struct Machine {
    pub(crate) runtime: Runtime,
    pub(crate) backend: Arc<sheep_csi::Cluster>,
    /// The cluster, asked at another node.
    pub(crate) elsewhere: Arc<sheep_csi::Cluster>,
    pub(crate) devices: Arc<RemoteDevices>,
    /// The first process of `sheep-device`.
    pub(crate) first: Proc,
    pub(crate) cluster: Cluster,
    pub(crate) scratch: Scratch,
    options: Vec<&'static str>,
    group: Option<PathBuf>,
}

/// The first process, in a control group if there is one, as in a container.
fn start_first(scratch: &Scratch, nbd: &Path, options: &[&str], group: Option<&Path>) -> Proc {
    let node = node_name();
    let words = [Path::new("--nbd"), nbd, Path::new("--node"), Path::new(&node)];
    let program = workspace_binary("sheep-device").unwrap();
    let spec = match group {
        Some(group) => Spec::new("sheep-device", "sh")
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(group.join("cgroup.procs"))
            .arg(program),
        None => Spec::new("sheep-device", program),
    };
    spec.arg(scratch.path()).args(words).args(options).log(scratch.path().join("log")).spawn().unwrap()
}

impl Machine {
    fn start(options: &[&'static str], group: Option<&Path>) -> Self {
        let mut cluster = Cluster::plan(2).unwrap();
        cluster.options(2).gateway = true;
        cluster.start_all().unwrap();
        let scratch = Scratch::new("dev").unwrap();
        let first = start_first(&scratch, &cluster.node(2).nbd_socket(), options, group);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let mut asked = |index: u8| {
            let server = [format!("{}:7002", cluster.node(index).address)];
            runtime.block_on(async { Arc::new(sheep_csi::Cluster::new(&server).unwrap()) })
        };
        let (backend, elsewhere) = (asked(2), asked(1));
        let devices = Arc::new(RemoteDevices::new(&scratch.path().join("devices.sock")));
        let (options, group) = (options.to_vec(), group.map(Path::to_owned));
        let machine = Self { runtime, backend, elsewhere, devices, first, cluster, scratch, options, group };
        machine.wait_ready();
        machine
    }

    /// Starts the first process again.
    pub(crate) fn start_again(&mut self) {
        let nbd = self.cluster.node(2).nbd_socket();
        self.first = start_first(&self.scratch, &nbd, &self.options, self.group.as_deref());
        self.wait_ready();
    }

    fn wait_ready(&self) {
        let ready = || Ok(self.runtime.block_on(self.devices.list()).is_ok());
        wait_until("the devices", LIMIT, Duration::from_millis(20), ready).unwrap();
    }

    fn worker(&self) -> Option<u32> {
        let pid = self.first.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let works = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                .unwrap_or_default()
                .contains("--role=worker")
        };
        children.split_whitespace().map(|pid| pid.parse().unwrap()).find(works)
    }

    /// SIGKILL to the process that serves the devices; the next one is there when this returns.
    pub(crate) fn kill_worker(&self) {
        let before = self.worker().unwrap();
        run("kill", ["-KILL", &before.to_string()]).unwrap();
        let other = || Ok(self.worker().is_some_and(|now| now != before));
        wait_until("another worker", LIMIT, Duration::from_millis(10), other).unwrap();
        self.wait_ready();
    }

    /// The process that keeps descriptors, if it runs.
    pub(crate) fn holder(&self) -> Option<String> {
        let pid = std::fs::read_to_string(self.scratch.path().join("holder.lock")).ok()?.trim().to_owned();
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        (line.contains("--role=holder") && line.contains(self.scratch.path().to_str()?)).then_some(pid)
    }

    pub(crate) fn kill_holder(&self) {
        if let Some(pid) = self.holder() {
            run("kill", ["-KILL", &pid]).unwrap();
            wait_until("the holder's end", LIMIT, Duration::from_millis(10), || {
                Ok(self.holder().as_ref() != Some(&pid))
            })
            .unwrap();
        }
    }

    pub(crate) fn create(&self, name: &str) -> u64 {
        let (name, attributes) = (name.to_owned(), Default::default());
        let new = NewVolume { name, size: SIZE, source: None, copies: None, min_copies: None, attributes };
        self.runtime.block_on(self.backend.create(new)).unwrap().id
    }

    /// The id of a node of the cluster.
    pub(crate) fn node(&mut self, index: u8) -> String {
        let info = self.cluster.node(index).dog().unwrap().json(&["node", "info"]).unwrap();
        text(&info, "id").to_owned()
    }

    /// Gives a volume to this machine.
    pub(crate) fn publish(&mut self, id: u64, read_only: bool) -> Attachment {
        let node = self.node(2);
        self.runtime.block_on(self.backend.attach(id, &node, read_only)).unwrap()
    }

    pub(crate) fn handle(&self, id: u64) -> Handle {
        Handle { cluster: self.runtime.block_on(self.backend.cluster()).unwrap(), id }
    }

    pub(crate) fn wanted(&self, id: u64, attachment: &Attachment) -> Wanted {
        let (volume, name) = (self.handle(id), format!("volume-{id}"));
        Wanted { volume, attachment: attachment.index, name, size: SIZE, read_only: attachment.read_only }
    }

    pub(crate) fn attach(&self, id: u64, attachment: &Attachment) -> Result<Device, Error> {
        self.runtime.block_on(self.devices.attach(&self.wanted(id, attachment)))
    }

    pub(crate) fn detach(&self, id: u64) -> Result<(), Error> {
        self.runtime.block_on(self.devices.detach(&self.handle(id)))
    }

    pub(crate) fn find(&self, id: u64) -> Option<Device> {
        self.runtime.block_on(self.devices.find(&self.handle(id))).unwrap()
    }

    /// A volume, given to this machine and with a device.
    pub(crate) fn device(&mut self, name: &str) -> (u64, Attachment, Device) {
        let id = self.create(name);
        let attachment = self.publish(id, false);
        let device = self.attach(id, &attachment).unwrap();
        (id, attachment, device)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }
}

/// A process that writes blocks of a device.
pub(crate) fn writer(device: &Path, words: &[&str]) -> Proc {
    let spec = Spec::new("dd", "dd").arg(format!("of={}", device.display()));
    spec.args(["bs=4k", "oflag=direct", "status=none"]).args(words).spawn().unwrap()
}

/// Writes blocks of a device, to the end. Whether that worked.
pub(crate) fn write(device: &Path, words: &[&str]) -> bool {
    writer(device, words).wait(LIMIT).unwrap().success()
}

/// A test with its frame.
pub(crate) fn on_a_machine(test: impl FnOnce(&mut Machine)) {
    with_options(&[], None, test);
}

/// The same with options of `sheep-device`, perhaps in a control group.
pub(crate) fn with_options(options: &[&'static str], group: Option<&Path>, test: impl FnOnce(&mut Machine)) {
    let _one = serial();
    let check = LeakCheck::start();
    let mut machine = Machine::start(options, group);
    let loops = || run("losetup", ["--list", "--noheadings", "--output", "NAME,BACK-FILE"]).unwrap();
    let own = format!(":{}:", node_name());
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&mut machine)));
    machine.first.kill();
    if let Err(panic) = result {
        eprintln!("sheep-device says:\n{}", machine.log());
        machine.kill_holder();
        for line in loops().lines().filter(|line| line.contains(&own)) {
            let _ = run("losetup", ["--detach", line.split_whitespace().next().unwrap_or_default()]);
        }
        std::panic::resume_unwind(panic);
    }
    wait_until("the end of a holder of nothing", LIMIT, Duration::from_millis(20), || {
        Ok(machine.holder().is_none())
    })
    .unwrap();
    assert!(!loops().contains(&own), "loop devices are left: {}", loops());
    drop(machine);
    check.finish().unwrap();
}
