//! Real devices: `sheep-device` between a loop device and a gateway, either of which may die.

use sheep_csi::v1::node_server::Node as Service;
use sheep_csi::v1::volume_capability::access_mode::Mode;
use sheep_csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use sheep_csi::v1::{NodeStageVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability};
use sheep_csi::{Backend, Devices, Handle, NewVolume, Node, RemoteDevices, Wanted};
use sheep_e2e::dog::text;
use sheep_e2e::process::{run, workspace_binary};
use sheep_e2e::{Cluster, LeakCheck, Proc, Scratch, Spec, serial, wait_until};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::Request;

const LIMIT: Duration = Duration::from_secs(60);
const SIZE: u64 = 64 << 20;

/// The gateway of a cluster that stores elsewhere, so that its death loses nothing; and the devices beside it.
pub(crate) struct Machine {
    runtime: Runtime,
    pub(crate) backend: Arc<sheep_csi::Cluster>,
    pub(crate) devices: Arc<RemoteDevices>,
    holder: Proc,
    cluster: Cluster,
    pub(crate) scratch: Scratch,
}

fn start_holder(scratch: &Scratch, nbd: &Path, node: &str) -> Proc {
    let words = [Path::new("--nbd"), nbd, Path::new("--node"), Path::new(node)];
    let spec = Spec::new("sheep-device", workspace_binary("sheep-device").unwrap()).arg(scratch.path());
    spec.args(words).log(scratch.path().join("log")).spawn().unwrap()
}

impl Machine {
    fn start() -> Self {
        let mut cluster = Cluster::plan(2).unwrap();
        cluster.options(2).gateway = true;
        cluster.start_all().unwrap();
        let scratch = Scratch::new("dev").unwrap();
        let info = cluster.node(2).dog().unwrap().json(&["node", "info"]).unwrap();
        let holder = start_holder(&scratch, &cluster.node(2).nbd_socket(), text(&info, "id"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = [format!("{}:7002", cluster.node(2).address)];
        let backend = runtime.block_on(async { Arc::new(sheep_csi::Cluster::new(&server).unwrap()) });
        let devices = Arc::new(RemoteDevices::new(&scratch.path().join("devices.sock")));
        let machine = Self { runtime, backend, devices, holder, cluster, scratch };
        machine.wait_ready();
        machine
    }

    fn wait_ready(&self) {
        let ready = || Ok(self.runtime.block_on(self.devices.list()).is_ok());
        wait_until("the devices", LIMIT, Duration::from_millis(20), ready).unwrap();
    }

    fn worker(&self) -> String {
        let pid = self.holder.pid();
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap().trim().to_owned()
    }

    /// SIGKILL to the process that serves the devices; the next one is there when this returns.
    fn kill_worker(&self) {
        let before = self.worker();
        run("kill", ["-KILL", &before]).unwrap();
        let other = || Ok(!self.worker().is_empty() && self.worker() != before);
        wait_until("another worker", LIMIT, Duration::from_millis(10), other).unwrap();
        self.wait_ready();
    }

    fn create(&self, name: &str) -> u64 {
        let (name, attributes) = (name.to_owned(), Default::default());
        let new = NewVolume { name, size: SIZE, source: None, copies: None, min_copies: None, attributes };
        self.runtime.block_on(self.backend.create(new)).unwrap().id
    }

    fn wanted(&self, name: &str, volume: u64) -> Wanted {
        let cluster = self.runtime.block_on(self.backend.cluster()).unwrap();
        Wanted { cluster, volume, name: name.into(), size: SIZE, read_only: false }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }
}

/// A test with its frame.
pub(crate) fn on_a_machine(test: impl FnOnce(&mut Machine)) {
    let _one = serial();
    let check = LeakCheck::start();
    let mut machine = Machine::start();
    test(&mut machine);
    machine.holder.kill();
    let loops = run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]).unwrap();
    let own = machine.scratch.path().display().to_string();
    assert!(!loops.contains(&own), "loop devices are left: {loops}");
    drop(machine);
    check.finish().unwrap();
}

#[test]
fn a_device_outlives_its_server_and_the_gateway_under_load() {
    on_a_machine(|machine| {
        let volume = machine.create("disk");
        let wanted = machine.wanted("disk", volume);
        let device = machine.runtime.block_on(machine.devices.attach(&wanted)).unwrap();
        assert_eq!(machine.runtime.block_on(machine.devices.attach(&wanted)), Ok(device.clone()));
        let mut fio = Spec::new("fio", "fio")
            .args(["--name=load", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--rw=randwrite"])
            .args(["--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--size=48m", "--loops=4", "--fsync=32"])
            .arg(format!("--filename={}", device.path.display()))
            .log(machine.scratch.path().join("fio"))
            .spawn()
            .unwrap();
        let mut killed = 0;
        while fio.is_running() && killed < 30 {
            std::thread::sleep(Duration::from_millis(200));
            if killed % 6 == 5 {
                machine.cluster.node(2).kill();
                machine.cluster.node(2).start().unwrap();
            } else {
                machine.kill_worker();
            }
            killed += 1;
        }
        let status = fio.wait(Duration::from_secs(300)).unwrap();
        assert!(status.success(), "{}\n{}", fio.log_text(), machine.log());
        assert!(killed >= 6, "only {killed} deaths while fio ran");
        machine.runtime.block_on(machine.devices.detach(volume)).unwrap();
        machine.runtime.block_on(machine.devices.detach(volume)).unwrap();
        assert_eq!(machine.runtime.block_on(machine.devices.list()), Ok(vec![]));
    });
}

#[test]
fn sizes_discards_and_zeros_go_through() {
    on_a_machine(|machine| {
        let volume = machine.create("disk");
        let wanted = machine.wanted("disk", volume);
        let device = machine.runtime.block_on(machine.devices.attach(&wanted)).unwrap();
        let path = device.path.display().to_string();
        run(
            "dd",
            [
                "if=/dev/urandom",
                &format!("of={path}"),
                "bs=1M",
                "count=16",
                "oflag=direct",
                "conv=fsync",
                "status=none",
            ],
        )
        .unwrap();
        assert!(!machine.runtime.block_on(machine.backend.is_blank(volume)).unwrap());
        run("blkdiscard", ["--zeroout", "--length", "8388608", &path]).unwrap();
        run("cmp", ["--bytes=8388608", &path, "/dev/zero"]).unwrap();
        run("blkdiscard", [&path]).unwrap();
        wait_until("nothing allocated", LIMIT, Duration::from_millis(100), || {
            Ok(machine.runtime.block_on(machine.backend.is_blank(volume)).unwrap())
        })
        .unwrap();
        machine.runtime.block_on(machine.backend.resize(volume, 2 * SIZE)).unwrap();
        machine.runtime.block_on(machine.devices.resize(volume, 2 * SIZE)).unwrap();
        assert_eq!(run("blockdev", ["--getsize64", &path]).unwrap().trim(), (2 * SIZE).to_string());
        run(
            "dd",
            [
                "if=/dev/urandom",
                &format!("of={path}"),
                "bs=1M",
                "seek=100",
                "count=4",
                "oflag=direct",
                "status=none",
            ],
        )
        .unwrap();
        machine.runtime.block_on(machine.devices.detach(volume)).unwrap();
    });
}

#[test]
fn a_volume_is_formatted_mounted_and_kept_through_deaths() {
    on_a_machine(|machine| {
        let volume = machine.create("disk");
        let node_id = machine.runtime.block_on(machine.backend.node()).unwrap();
        machine.runtime.block_on(machine.backend.attach(volume, &node_id, false)).unwrap();
        let cluster = machine.runtime.block_on(machine.backend.cluster()).unwrap();
        let handle = Handle { cluster, id: volume }.to_string();
        let node = Node::new(machine.backend.clone(), machine.devices.clone(), 0);
        let staging = machine.scratch.path().join("staging").display().to_string();
        let access_type = Some(AccessType::Mount(MountVolume::default()));
        let mode = Mode::SingleNodeWriter.into();
        let request = NodeStageVolumeRequest {
            volume_id: handle.clone(),
            staging_target_path: staging.clone(),
            volume_capability: Some(VolumeCapability { access_type, access_mode: Some(AccessMode { mode }) }),
            ..Default::default()
        };
        machine.runtime.block_on(node.node_stage_volume(Request::new(request.clone()))).unwrap();
        let file = format!("{staging}/file");
        std::fs::write(&file, "kept").unwrap();
        run("sync", ["--file-system", &staging]).unwrap();
        // In use: it is not taken away.
        assert!(machine.runtime.block_on(machine.devices.detach(volume)).is_err());
        machine.kill_worker();
        std::fs::write(format!("{staging}/other"), vec![1; 1 << 20]).unwrap();
        run("sync", ["--file-system", &staging]).unwrap();
        let unstage = NodeUnstageVolumeRequest { volume_id: handle, staging_target_path: staging };
        machine.runtime.block_on(node.node_unstage_volume(Request::new(unstage.clone()))).unwrap();
        machine.runtime.block_on(node.node_stage_volume(Request::new(request))).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
        machine.runtime.block_on(node.node_unstage_volume(Request::new(unstage))).unwrap();
    });
}

#[test]
fn a_device_whose_holder_died_is_made_anew() {
    on_a_machine(|machine| {
        let volume = machine.create("disk");
        let wanted = machine.wanted("disk", volume);
        let device = machine.runtime.block_on(machine.devices.attach(&wanted)).unwrap();
        let write = |path: &Path| {
            let to = format!("of={}", path.display());
            run("dd", ["if=/dev/urandom", &to, "bs=4k", "count=16", "oflag=direct", "status=none"])
        };
        write(&device.path).unwrap();
        machine.holder.kill();
        // Users get errors, and no endless wait.
        wait_until("an error", LIMIT, Duration::from_millis(50), || Ok(write(&device.path).is_err()))
            .unwrap();
        let node = machine.runtime.block_on(machine.backend.node()).unwrap();
        machine.holder = start_holder(&machine.scratch, &machine.cluster.node(2).nbd_socket(), &node);
        machine.wait_ready();
        assert_eq!(machine.runtime.block_on(machine.devices.find(volume)), Ok(None), "nobody serves it");
        let device = machine.runtime.block_on(machine.devices.attach(&wanted)).unwrap();
        write(&device.path).unwrap();
        machine.runtime.block_on(machine.devices.detach(volume)).unwrap();
    });
}
