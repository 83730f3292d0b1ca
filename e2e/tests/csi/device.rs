//! Real devices: `sheep-device` between a loop device and a gateway, any process of which may die.

use crate::machine::{LIMIT, Machine, SIZE, on_a_machine, with_options, write, writer};
use sheep_csi::v1::node_server::Node as Service;
use sheep_csi::v1::volume_capability::access_mode::Mode;
use sheep_csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use sheep_csi::v1::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability,
};
use sheep_csi::{Backend, Devices, Error, Node};
use sheep_e2e::process::{Signal, run};
use sheep_e2e::{NbdClient, Spec, wait_until};
use std::path::Path;
use std::time::Duration;
use tonic::Request;

const MOMENT: Duration = Duration::from_millis(50);

#[test]
fn a_device_outlives_its_server_and_the_gateway_under_load() {
    on_a_machine(|machine| {
        let (volume, attachment, device) = machine.device("disk");
        assert_eq!(machine.attach(volume, &attachment), Ok(device.clone()));
        let mut fio = Spec::new("fio", "fio")
            .args(["--name=load", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--rw=randwrite"])
            .args(["--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"])
            .args(["--size=48m", "--loops=4", "--fsync=32"])
            .arg(format!("--filename={}", device.path.display()))
            .log(machine.scratch.path().join("fio"))
            .spawn()
            .unwrap();
        let mut killed = 0;
        while fio.is_running() && killed < 30 {
            std::thread::sleep(Duration::from_millis(200));
            match killed % 6 {
                5 => {
                    machine.cluster.node(2).kill();
                    machine.cluster.node(2).start().unwrap();
                }
                // All but the holder, as when a container is stopped and started again.
                3 => {
                    machine.first.kill();
                    machine.start_again();
                }
                _ => machine.kill_worker(),
            }
            killed += 1;
        }
        let status = fio.wait(Duration::from_secs(300)).unwrap();
        assert!(status.success(), "{}\n{}", fio.log_text(), machine.log());
        assert!(killed >= 6, "only {killed} deaths while fio ran");
        machine.detach(volume).unwrap();
        machine.detach(volume).unwrap();
        assert_eq!(machine.runtime.block_on(machine.devices.list()), Ok(vec![]));
    });
}

#[test]
fn sizes_discards_and_zeros_go_through() {
    on_a_machine(|machine| {
        let (volume, _, device) = machine.device("disk");
        let path = device.path.display().to_string();
        assert!(write(&device.path, &["if=/dev/urandom", "count=4096", "conv=fsync"]));
        assert!(!machine.runtime.block_on(machine.backend.is_blank(volume)).unwrap());
        run("blkdiscard", ["--zeroout", "--length", "8388608", &path]).unwrap();
        run("cmp", ["--bytes=8388608", &path, "/dev/zero"]).unwrap();
        // A hole that is smaller than a block of the volume reads as zeros, and what is beside it stays.
        let around = |skip: &str| {
            let bytes =
                run("dd", [&format!("if={path}"), "bs=512", "count=1", skip, "iflag=direct", "status=none"]);
            bytes.is_ok_and(|text| text.bytes().all(|byte| byte == 0))
        };
        run("fallocate", ["--punch-hole", "--offset", "12583424", "--length", "512", &path]).unwrap();
        assert!(around("skip=24577"), "a hole has contents");
        assert!(!around("skip=24576") && !around("skip=24578"), "too much is gone");
        run("blkdiscard", [&path]).unwrap();
        wait_until("nothing allocated", LIMIT, Duration::from_millis(100), || {
            Ok(machine.runtime.block_on(machine.backend.is_blank(volume)).unwrap())
        })
        .unwrap();
        machine.runtime.block_on(machine.backend.resize(volume, 2 * SIZE)).unwrap();
        let handle = machine.handle(volume);
        machine.runtime.block_on(machine.devices.resize(&handle, 2 * SIZE)).unwrap();
        assert_eq!(run("blockdev", ["--getsize64", &path]).unwrap().trim(), (2 * SIZE).to_string());
        assert!(write(&device.path, &["if=/dev/urandom", "seek=25600", "count=1024"]));
        // What it has become while the gateway was away, a device learns from the gateway.
        machine.cluster.node(2).process().unwrap().terminate(LIMIT).unwrap();
        machine.runtime.block_on(machine.elsewhere.resize(volume, 3 * SIZE)).unwrap();
        machine.cluster.node(2).start().unwrap();
        wait_until("the new size", LIMIT, MOMENT, || {
            Ok(run("blockdev", ["--getsize64", &path])?.trim() == (3 * SIZE).to_string())
        })
        .unwrap();
        machine.detach(volume).unwrap();
    });
}

fn stage_request(machine: &Machine, volume: u64) -> NodeStageVolumeRequest {
    let access_type = Some(AccessType::Mount(MountVolume::default()));
    let mode = Mode::SingleNodeWriter.into();
    NodeStageVolumeRequest {
        volume_id: machine.handle(volume).to_string(),
        staging_target_path: machine.scratch.path().join("staging").display().to_string(),
        volume_capability: Some(VolumeCapability { access_type, access_mode: Some(AccessMode { mode }) }),
        ..Default::default()
    }
}

#[test]
fn a_volume_is_formatted_mounted_and_kept_through_deaths() {
    on_a_machine(|machine| {
        let volume = machine.create("disk");
        machine.publish(volume, false);
        let node = Node::new(machine.backend.clone(), machine.devices.clone(), 0);
        let request = stage_request(machine, volume);
        let staging = request.staging_target_path.clone();
        machine.runtime.block_on(node.node_stage_volume(Request::new(request.clone()))).unwrap();
        let file = format!("{staging}/file");
        std::fs::write(&file, "kept").unwrap();
        run("sync", ["--file-system", &staging]).unwrap();
        // In use: it is not taken away.
        assert!(matches!(machine.detach(volume), Err(Error::Precondition(_))));
        machine.kill_worker();
        std::fs::write(format!("{staging}/other"), vec![1; 1 << 20]).unwrap();
        run("sync", ["--file-system", &staging]).unwrap();
        let unstage =
            NodeUnstageVolumeRequest { volume_id: request.volume_id.clone(), staging_target_path: staging };
        machine.runtime.block_on(node.node_unstage_volume(Request::new(unstage.clone()))).unwrap();
        machine.runtime.block_on(node.node_stage_volume(Request::new(request))).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
        machine.runtime.block_on(node.node_unstage_volume(Request::new(unstage))).unwrap();
    });
}

/// The node is cut off with a write in hand, and its volume is taken away and given to it again: what it had in hand is never
/// written over what came since.
#[test]
fn a_device_writes_under_its_own_attachment_only() {
    on_a_machine(|machine| {
        let (volume, first, device) = machine.device("disk");
        let node = machine.node(2);
        assert!(write(&device.path, &["if=/dev/urandom", "count=16", "conv=fsync"]));
        machine.cluster.node(2).kill();
        let mut late = writer(&device.path, &["if=/dev/urandom", "count=16", "seek=16"]);
        std::thread::sleep(MOMENT * 10);
        assert!(late.is_running(), "nobody can have taken the write");
        machine.runtime.block_on(machine.elsewhere.detach(volume, &node)).unwrap();
        let second = machine.runtime.block_on(machine.elsewhere.attach(volume, &node, false)).unwrap();
        assert_ne!(first.index, second.index);
        machine.cluster.node(2).start().unwrap();
        assert!(!late.wait(LIMIT).unwrap().success(), "a write of an attachment that is over was answered");
        assert!(!write(&device.path, &["if=/dev/urandom", "count=1"]));
        assert_eq!(machine.find(volume), None, "it is shown as a device that works");
        assert!(matches!(machine.attach(volume, &first), Err(Error::Precondition(_))));
        // Nothing of the old one is in the way.
        let device = machine.attach(volume, &second).unwrap();
        let path = device.path.display().to_string();
        run("cmp", ["--bytes=65536", "--ignore-initial=65536:0", &path, "/dev/zero"]).unwrap();
        assert!(write(&device.path, &["if=/dev/urandom", "count=16", "seek=16"]));
        assert!(
            matches!(machine.attach(volume, &first), Err(Error::Precondition(_))),
            "older than the device"
        );
        assert_eq!(machine.find(volume), Some(device));
        machine.detach(volume).unwrap();
    });
}

/// A node that was given up, with a mounted file system, gets its volume again.
#[test]
fn a_volume_is_staged_anew_where_its_former_device_is_still_mounted() {
    on_a_machine(|machine| {
        let volume = machine.create("disk");
        machine.publish(volume, false);
        let node = Node::new(machine.backend.clone(), machine.devices.clone(), 0);
        let request = stage_request(machine, volume);
        let staging = request.staging_target_path.clone();
        machine.runtime.block_on(node.node_stage_volume(Request::new(request.clone()))).unwrap();
        let publish = NodePublishVolumeRequest {
            volume_id: request.volume_id.clone(),
            staging_target_path: staging.clone(),
            target_path: machine.scratch.path().join("target").display().to_string(),
            volume_capability: request.volume_capability.clone(),
            ..Default::default()
        };
        let target = publish.target_path.clone();
        machine.runtime.block_on(node.node_publish_volume(Request::new(publish.clone()))).unwrap();
        std::fs::write(format!("{staging}/file"), "kept").unwrap();
        run("sync", ["--file-system", &staging]).unwrap();
        let id = machine.node(2);
        machine.runtime.block_on(machine.backend.detach(volume, &id)).unwrap();
        wait_until("the device's end", LIMIT, MOMENT, || Ok(machine.find(volume).is_none())).unwrap();
        machine.publish(volume, false);
        machine.runtime.block_on(node.node_stage_volume(Request::new(request.clone()))).unwrap();
        assert_eq!(std::fs::read_to_string(format!("{staging}/file")).unwrap(), "kept");
        std::fs::write(format!("{staging}/more"), "written").unwrap();
        // The pod's path still shows the former one.
        machine.runtime.block_on(node.node_publish_volume(Request::new(publish))).unwrap();
        assert_eq!(std::fs::read_to_string(format!("{target}/more")).unwrap(), "written");
        let volume_id = request.volume_id.clone();
        let unpublish = NodeUnpublishVolumeRequest { volume_id, target_path: target };
        machine.runtime.block_on(node.node_unpublish_volume(Request::new(unpublish))).unwrap();
        let unstage = NodeUnstageVolumeRequest { volume_id: request.volume_id, staging_target_path: staging };
        machine.runtime.block_on(node.node_unstage_volume(Request::new(unstage))).unwrap();
    });
}

/// The kernel's loop devices are everybody's: its number may be another device's by then.
#[test]
fn a_volume_whose_loop_device_somebody_took_away_gets_another() {
    on_a_machine(|machine| {
        let (volume, attachment, device) = machine.device("disk");
        assert!(write(&device.path, &["if=/dev/urandom", "count=16", "conv=fsync"]));
        let contents = std::fs::read(&device.path).unwrap();
        run("losetup", ["--detach", &device.path.display().to_string()]).unwrap();
        let other = machine.scratch.path().join("other");
        std::fs::File::create(&other).unwrap().set_len(SIZE).unwrap();
        run("losetup", [device.path.as_os_str(), other.as_os_str()]).unwrap();
        // Whoever has known it by its path is told, and writes nothing there.
        let node = Node::new(machine.backend.clone(), machine.devices.clone(), 0);
        let publish = NodePublishVolumeRequest {
            volume_id: machine.handle(volume).to_string(),
            staging_target_path: machine.scratch.path().join("staging").display().to_string(),
            target_path: machine.scratch.path().join("target").display().to_string(),
            volume_capability: stage_request(machine, volume).volume_capability,
            ..Default::default()
        };
        let refused = machine.runtime.block_on(node.node_publish_volume(Request::new(publish))).unwrap_err();
        assert!(refused.message().contains("not any more"), "{refused}");
        let again = machine.attach(volume, &attachment).unwrap();
        assert_ne!(again.path, device.path);
        assert!(std::fs::read(&again.path).unwrap() == contents);
        machine.detach(volume).unwrap();
        run("losetup", ["--detach", &device.path.display().to_string()]).unwrap();
    });
}

#[test]
fn readers_share_a_volume_and_cannot_write_it() {
    on_a_machine(|machine| {
        let (volume, _, device) = machine.device("disk");
        assert!(write(&device.path, &["if=/dev/urandom", "count=16", "conv=fsync"]));
        // The writer dies; readers cannot settle what it left, so that is done before.
        machine.cluster.node(2).kill();
        machine.cluster.node(2).start().unwrap();
        machine.detach(volume).unwrap();
        let [one, two] = [1, 2].map(|index| machine.node(index));
        machine.runtime.block_on(machine.backend.detach(volume, &two)).unwrap();
        let reading = machine.publish(volume, true);
        let other = machine.runtime.block_on(machine.backend.attach(volume, &one, true)).unwrap();
        let device = machine.attach(volume, &reading).unwrap();
        assert!(device.read_only);
        let name = format!("@{}:{volume}:{}", machine.handle(volume).cluster, other.index);
        let mut client = NbdClient::unix(&machine.cluster.node(1).nbd_socket(), &name, LIMIT).unwrap();
        let mut theirs = vec![0; 65536];
        client.read(0, &mut theirs).unwrap();
        assert!(client.write(0, &[0; 4096], false).is_err(), "a reader writes");
        let mut ours = vec![0; 65536];
        std::io::Read::read_exact(&mut std::fs::File::open(&device.path).unwrap(), &mut ours).unwrap();
        assert!(ours == theirs && ours != vec![0; 65536]);
        assert!(!write(&device.path, &["if=/dev/zero", "count=1"]));
        drop(client);
        machine.detach(volume).unwrap();
    });
}

#[test]
fn a_volume_that_does_not_open_is_in_nobodys_way() {
    on_a_machine(|machine| {
        let (volume, serving, served) = machine.device("served");
        let stuck = machine.create("stuck");
        let attachment = machine.publish(stuck, false);
        machine.cluster.node(2).signal(Signal::Stop).unwrap();
        let (devices, wanted) = (machine.devices.clone(), machine.wanted(stuck, &attachment));
        let (of_stuck, wanted_served) = (machine.handle(stuck), machine.wanted(volume, &serving));
        machine.runtime.block_on(async {
            // The first call waits for the gateway; it goes on when nobody waits for its answer.
            let attach = || tokio::time::timeout(MOMENT * 10, devices.attach(&wanted));
            assert!(attach().await.is_err(), "somebody has opened it");
            tokio::time::timeout(LIMIT / 4, async {
                assert_eq!(devices.attach(&wanted).await, Err(busy()));
                assert_eq!(devices.attach(&wanted_served).await, Ok(served));
                assert_eq!(devices.find(&of_stuck).await, Ok(None));
                assert_eq!(devices.detach(&of_stuck).await, Err(busy()));
            })
            .await
            .unwrap();
        });
        machine.cluster.node(2).signal(Signal::Continue).unwrap();
        wait_until("the device", LIMIT, MOMENT, || Ok(machine.attach(stuck, &attachment).is_ok())).unwrap();
        machine.detach(stuck).unwrap();
        machine.detach(volume).unwrap();
    });
}

fn busy() -> Error {
    Error::Busy("another call for the volume is under way".into())
}

#[test]
fn a_device_whose_holder_died_gets_another_and_without_both_it_is_made_anew() {
    on_a_machine(|machine| {
        let (volume, attachment, device) = machine.device("disk");
        let urandom = ["if=/dev/urandom", "count=16"];
        // A state file that cannot be read is no reason to serve nobody.
        let odd = machine.scratch.path().join("odd.json");
        std::fs::write(&odd, "{").unwrap();
        machine.kill_holder();
        wait_until("another holder with the device", LIMIT, MOMENT, || {
            let Some(holder) = machine.holder() else { return Ok(false) };
            let fds = std::fs::read_dir(format!("/proc/{holder}/fd")).into_iter().flatten().flatten();
            Ok(fds.filter_map(|fd| fd.path().read_link().ok()).any(|file| file == Path::new("/dev/fuse")))
        })
        .unwrap();
        machine.kill_worker();
        assert!(write(&device.path, &urandom));
        assert!(!odd.exists() && odd.with_extension("unreadable").exists());
        // Users get errors, and no endless wait.
        machine.first.kill();
        machine.kill_holder();
        wait_until("an error", LIMIT, MOMENT, || Ok(!write(&device.path, &urandom))).unwrap();
        machine.start_again();
        assert_eq!(machine.find(volume), None, "nobody serves it");
        let device = machine.attach(volume, &attachment).unwrap();
        assert!(write(&device.path, &urandom));
        machine.detach(volume).unwrap();
    });
}

#[test]
fn before_linux_6_9_a_worker_that_dies_leaves_errors_and_nobody_waiting() {
    with_options(&["--no-resend"], None, |machine| {
        let (volume, attachment, device) = machine.device("disk");
        // With a request in hand that nobody will answer.
        machine.cluster.node(2).signal(Signal::Stop).unwrap();
        let mut waiting = writer(&device.path, &["if=/dev/urandom", "count=16"]);
        std::thread::sleep(MOMENT * 4);
        assert!(waiting.is_running());
        machine.kill_worker();
        assert!(!waiting.wait(LIMIT).unwrap().success());
        machine.cluster.node(2).signal(Signal::Continue).unwrap();
        assert_eq!(machine.find(volume), None);
        let device = machine.attach(volume, &attachment).unwrap();
        assert!(write(Path::new(&device.path), &["if=/dev/urandom", "count=16"]));
        machine.detach(volume).unwrap();
    });
}

#[test]
fn people_make_devices_by_dog() {
    on_a_machine(|machine| {
        machine.create("disk");
        let dog = machine.cluster.node(2).dog().unwrap();
        let socket = machine.scratch.path().join("devices.sock").display().to_string();
        let device = |words: &[&str]| dog.json(&[&["device", "--devices", &socket], words].concat());
        let made = device(&["attach", "disk"]).unwrap();
        assert!(write(Path::new(made["path"].as_str().unwrap()), &["if=/dev/urandom", "count=16"]));
        let list = device(&["list"]).unwrap();
        assert_eq!(
            (&list[0]["name"], &list[0]["state"], &list[0]["kind"]),
            (&"disk".into(), &"served".into(), &"fuse".into())
        );
        device(&["detach", "disk"]).unwrap();
        assert_eq!(device(&["list"]).unwrap().as_array().map(Vec::len), Some(0));
        // Nothing is left that would keep others from it.
        let other = machine.cluster.node(1).nbd_socket();
        drop(NbdClient::unix(&other, "disk", LIMIT).unwrap());
    });
}

/// Everything in a control group is ended, as a container is; only the holder has left it.
#[test]
fn devices_outlive_their_container() {
    const GROUPS: &str = "/sys/fs/cgroup";
    let tree = ["pids", "freezer", "."].map(|tree| Path::new(GROUPS).join(tree));
    let tree = tree.into_iter().find(|tree| tree.join("cgroup.procs").exists()).expect("control groups");
    let group = tree.join(format!("sheep-e2e-{}", std::process::id()));
    std::fs::create_dir(&group).unwrap();
    let members = || std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    with_options(&["--cgroups", GROUPS], Some(&group), |machine| {
        let (volume, _, device) = machine.device("disk");
        let holder = machine.holder().unwrap();
        assert!(members().lines().count() >= 2 && !members().lines().any(|pid| pid == holder));
        while !members().is_empty() {
            for pid in members().lines() {
                let _ = run("kill", ["-KILL", pid]);
            }
        }
        machine.first.kill();
        let mut waiting = writer(&device.path, &["if=/dev/urandom", "count=16"]);
        std::thread::sleep(MOMENT * 4);
        assert!(waiting.is_running(), "somebody has answered");
        machine.start_again();
        assert!(waiting.wait(LIMIT).unwrap().success(), "{}", machine.log());
        assert_eq!(machine.holder(), Some(holder));
        machine.detach(volume).unwrap();
    });
    std::fs::remove_dir(&group).unwrap();
}
