//! The driver's node service with real file systems on devices that are files; the cluster is in memory.

use sheep_csi::v1::node_server::Node as Service;
use sheep_csi::v1::volume_capability::access_mode::Mode;
use sheep_csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use sheep_csi::v1::{
    NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use sheep_csi::{Backend, FileDevices, Handle, Memory, NewVolume, Node, Source};
use sheep_e2e::process::run;
use sheep_e2e::{LeakCheck, Scratch, serial};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::{Code, Request, Status};

const NODE: &str = "aa";
const MIB: u64 = 1 << 20;
const FORMAT: &str = "csi.sheepdog.io/format";

struct Machine {
    backend: Arc<Memory>,
    node: Node,
    // Dropped last.
    scratch: Scratch,
}

/// A volume with its paths on the machine.
struct Place {
    id: u64,
    handle: String,
    staging: String,
    target: String,
}

fn mount(fs_type: &str, mode: Mode) -> Option<VolumeCapability> {
    let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
    let access_type = Some(AccessType::Mount(mount));
    Some(VolumeCapability { access_type, access_mode: Some(AccessMode { mode: mode.into() }) })
}

fn ext4() -> Option<VolumeCapability> {
    mount("ext4", Mode::SingleNodeWriter)
}

fn block() -> Option<VolumeCapability> {
    let access_mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
    Some(VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), access_mode })
}

impl Machine {
    fn new() -> Self {
        let scratch = Scratch::new("csi").unwrap();
        let backend = Arc::new(Memory::new(&[NODE, "bb"]));
        let devices = Arc::new(FileDevices::new(scratch.path()));
        let node = Node::new(backend.clone(), devices, 0);
        Self { backend, node, scratch }
    }

    fn file(&self, place: &Place) -> PathBuf {
        FileDevices::new(self.scratch.path()).file(&Handle::read(&place.handle).unwrap())
    }

    async fn volume(&self, name: &str, size: u64, source: Option<Source>) -> Place {
        let (name, attributes) = (name.to_owned(), Default::default());
        let new = NewVolume { name, size, source, copies: None, min_copies: None, attributes };
        let id = self.backend.create(new).await.unwrap().id;
        self.backend.attach(id, NODE, false).await.unwrap();
        let path = |what: &str| self.scratch.path().join(format!("{what}-{id}")).display().to_string();
        let cluster = self.backend.cluster().await.unwrap();
        Place {
            id,
            handle: Handle { cluster, id }.to_string(),
            staging: path("staging"),
            target: path("target"),
        }
    }

    async fn stage(&self, place: &Place, volume_capability: Option<VolumeCapability>) -> Result<(), Status> {
        let attachments = self.backend.volume(place.id).await.unwrap().attachments;
        let index = attachments.iter().find(|own| own.node == NODE).map(|own| own.index.to_string());
        let request = NodeStageVolumeRequest {
            volume_id: place.handle.clone(),
            publish_context: index.map(|index| ("attachment".to_owned(), index)).into_iter().collect(),
            staging_target_path: place.staging.clone(),
            volume_capability,
            ..Default::default()
        };
        self.node.node_stage_volume(Request::new(request)).await.map(drop)
    }

    async fn unstage(&self, place: &Place) {
        let (volume_id, staging_target_path) = (place.handle.clone(), place.staging.clone());
        let request = NodeUnstageVolumeRequest { volume_id, staging_target_path };
        self.node.node_unstage_volume(Request::new(request)).await.unwrap();
    }

    async fn publish(
        &self,
        place: &Place,
        target: &str,
        volume_capability: Option<VolumeCapability>,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: place.handle.clone(),
            staging_target_path: place.staging.clone(),
            target_path: target.to_owned(),
            volume_capability,
            readonly,
            ..Default::default()
        };
        self.node.node_publish_volume(Request::new(request)).await.map(drop)
    }

    async fn unpublish(&self, place: &Place, target: &str) -> Result<(), Status> {
        let (volume_id, target_path) = (place.handle.clone(), target.to_owned());
        let request = NodeUnpublishVolumeRequest { volume_id, target_path };
        self.node.node_unpublish_volume(Request::new(request)).await.map(drop)
    }

    async fn bytes(&self, place: &Place, path: &str) -> i64 {
        let (volume_id, volume_path) = (place.handle.clone(), path.to_owned());
        let request = NodeGetVolumeStatsRequest { volume_id, volume_path, ..Default::default() };
        self.node.node_get_volume_stats(Request::new(request)).await.unwrap().into_inner().usage[0].total
    }

    async fn expand(&self, place: &Place, path: &str, size: u64) -> Result<i64, Status> {
        self.backend.resize(place.id, size).await.unwrap();
        let (volume_id, volume_path) = (place.handle.clone(), path.to_owned());
        let request = NodeExpandVolumeRequest { volume_id, volume_path, ..Default::default() };
        Ok(self.node.node_expand_volume(Request::new(request)).await?.into_inner().capacity_bytes)
    }

    async fn mark(&self, place: &Place) -> Option<String> {
        self.backend.volume(place.id).await.unwrap().attributes.get(FORMAT).cloned()
    }
}

fn write(directory: &str, text: &str) {
    std::fs::write(Path::new(directory).join("file"), text).unwrap();
    run("sync", ["--file-system", directory]).unwrap();
}

fn read(directory: &str) -> String {
    std::fs::read_to_string(Path::new(directory).join("file")).unwrap()
}

/// The kernel lets ext4 grow while it is mounted for those who have CAP_SYS_RESOURCE, which not every machine gives to root.
fn can_grow_mounted_ext4() -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & CAP_SYS_RESOURCE != 0
}

/// A test with its frame.
fn on_a_machine(test: impl AsyncFn(&Machine)) {
    let _one = serial();
    let check = LeakCheck::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let machine = Machine::new();
    runtime.block_on(test(&machine));
    drop(machine);
    check.finish().unwrap();
}

#[test]
fn a_blank_volume_is_formatted_once_and_never_again() {
    on_a_machine(async |machine| {
        let disk = machine.volume("disk", 64 * MIB, None).await;
        machine.stage(&disk, ext4()).await.unwrap();
        assert_eq!(machine.mark(&disk).await.as_deref(), Some("formatted"));
        write(&disk.staging, "kept");
        machine.stage(&disk, ext4()).await.unwrap();
        machine.unstage(&disk).await;
        machine.unstage(&disk).await;
        // The cluster believes that nothing was written: the mark alone keeps it from being formatted.
        machine.stage(&disk, ext4()).await.unwrap();
        assert_eq!(read(&disk.staging), "kept");
        machine.unstage(&disk).await;
        // Another file system than is asked for is an error, and stays.
        let error = machine.stage(&disk, mount("xfs", Mode::SingleNodeWriter)).await.unwrap_err();
        assert!(
            error.message().contains("cannot be mounted as xfs") && error.message().contains("ext4"),
            "{error}"
        );
        machine.stage(&disk, ext4()).await.unwrap();
        assert_eq!(read(&disk.staging), "kept");
        machine.unstage(&disk).await;
    });
}

#[test]
fn what_may_have_contents_is_never_formatted() {
    on_a_machine(async |machine| {
        let raw = machine.volume("raw", 64 * MIB, None).await;
        machine.backend.write(raw.id);
        let copy = machine.volume("copy", 64 * MIB, Some(Source::Volume(raw.id))).await;
        for place in [&raw, &copy] {
            let contents = vec![0; 64 * MIB as usize];
            std::fs::write(machine.file(place), &contents).unwrap();
            let error = machine.stage(place, ext4()).await.unwrap_err();
            assert!(error.message().contains("not formatted"), "{error}");
            assert_eq!(machine.mark(place).await, None);
            assert!(std::fs::read(machine.file(place)).unwrap() == contents, "it was written");
            machine.unstage(place).await;
        }
    });
}

#[test]
fn a_copy_of_what_was_never_mounted_can_be_mounted() {
    on_a_machine(async |machine| {
        let origin = machine.volume("origin", 64 * MIB, None).await;
        let copy = machine.volume("copy", 64 * MIB, Some(Source::Volume(origin.id))).await;
        for place in [&copy, &origin] {
            machine.stage(place, ext4()).await.unwrap();
            assert_eq!(machine.mark(place).await.as_deref(), Some("formatted"));
            machine.unstage(place).await;
        }
    });
}

/// Who only reads cannot replay a journal, and must not take what is there without it for all there is.
#[test]
fn what_was_copied_while_it_was_mounted_is_not_only_read() {
    on_a_machine(async |machine| {
        for (kind, size) in [("ext4", 64 * MIB), ("xfs", 320 * MIB)] {
            let capability = || mount(kind, Mode::SingleNodeWriter);
            let disk = machine.volume(kind, size, None).await;
            machine.stage(&disk, capability()).await.unwrap();
            write(&disk.staging, "text");
            machine.backend.write(disk.id);
            let copy = machine.volume(&format!("{kind}-copy"), size, Some(Source::Volume(disk.id))).await;
            std::fs::copy(machine.file(&disk), machine.file(&copy)).unwrap();
            machine.unstage(&disk).await;
            let lend = async |place: &Place, read_only| {
                machine.backend.detach(place.id, NODE).await.unwrap();
                machine.backend.attach(place.id, NODE, read_only).await.unwrap();
            };
            let reader = || mount(kind, Mode::MultiNodeReaderOnly);
            lend(&copy, true).await;
            let refused = machine.stage(&copy, reader()).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{kind}: {refused}");
            assert!(refused.message().contains("ReadWriteOnce"), "{refused}");
            lend(&copy, false).await;
            machine.stage(&copy, capability()).await.unwrap();
            machine.unstage(&copy).await;
            for place in [&copy, &disk] {
                lend(place, true).await;
                machine.stage(place, reader()).await.unwrap();
                assert_eq!(read(&place.staging), "text", "{kind}");
                machine.unstage(place).await;
            }
        }
    });
}

#[test]
fn a_flag_that_says_read_only_is_what_an_access_mode_says() {
    on_a_machine(async |machine| {
        let disk = machine.volume("disk", 64 * MIB, None).await;
        machine.stage(&disk, ext4()).await.unwrap();
        write(&disk.staging, "text");
        machine.unstage(&disk).await;
        let flags = MountVolume { mount_flags: vec!["ro".into()], ..MountVolume::default() };
        let access_mode = Some(AccessMode { mode: Mode::SingleNodeWriter.into() });
        let reader = VolumeCapability { access_type: Some(AccessType::Mount(flags)), access_mode };
        for _ in 0..2 {
            machine.stage(&disk, Some(reader.clone())).await.unwrap();
            machine.publish(&disk, &disk.target, Some(reader.clone()), false).await.unwrap();
        }
        assert_eq!(read(&disk.target), "text");
        machine.unpublish(&disk, &disk.target).await.unwrap();
        machine.unstage(&disk).await;
    });
}

#[test]
fn formatting_that_broke_off_is_done_again_if_nobody_else_can_have_written() {
    on_a_machine(async |machine| {
        let mark = async |place: &Place, expected: Option<&str>, value: &str| {
            machine.backend.mark(place.id, FORMAT, expected, Some(value)).await
        };
        // Half of a file system is on it.
        let half_made = |place: &Place| {
            let file = machine.file(place);
            std::fs::write(&file, vec![0; 64 * MIB as usize]).unwrap();
            run("mkfs.ext4", ["-q", "-F", file.to_str().unwrap()]).unwrap();
            machine.backend.write(place.id);
            std::fs::read(&file).unwrap()
        };
        // By this very attachment.
        let own = machine.volume("own", 64 * MIB, None).await;
        let index = machine.backend.volume(own.id).await.unwrap().attachments[0].index;
        mark(&own, None, &format!("formatting by attachment {index}")).await.unwrap();
        half_made(&own);
        machine.stage(&own, ext4()).await.unwrap();
        assert_eq!(machine.mark(&own).await.as_deref(), Some("formatted"));
        machine.unstage(&own).await;
        // By another one, which has written nothing.
        let blank = machine.volume("blank", 64 * MIB, None).await;
        mark(&blank, None, "formatting by attachment 1").await.unwrap();
        machine.backend.detach(blank.id, NODE).await.unwrap();
        let error = machine.stage(&blank, ext4()).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        machine.backend.attach(blank.id, NODE, false).await.unwrap();
        machine.stage(&blank, ext4()).await.unwrap();
        assert_eq!(machine.mark(&blank).await.as_deref(), Some("formatted"));
        // Who began is late.
        assert!(mark(&blank, Some("formatting by attachment 1"), "formatted").await.is_err());
        machine.unstage(&blank).await;
        // By another one, and something has been written since: it may be anybody's.
        let used = machine.volume("used", 64 * MIB, None).await;
        mark(&used, None, "formatting by attachment 1").await.unwrap();
        let contents = half_made(&used);
        let error = machine.stage(&used, ext4()).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(std::fs::read(machine.file(&used)).unwrap() == contents, "it was written");
        assert_eq!(machine.mark(&used).await.as_deref(), Some("formatting by attachment 1"));
        machine.unstage(&used).await;
    });
}

#[test]
fn file_systems_grow_while_they_are_mounted_and_xfs_copies_live_side_by_side() {
    on_a_machine(async |machine| {
        let xfs = || mount("xfs", Mode::SingleNodeWriter);
        let disk = machine.volume("disk", 320 * MIB, None).await;
        machine.stage(&disk, xfs()).await.unwrap();
        write(&disk.staging, "xfs");
        machine.publish(&disk, &disk.target, xfs(), false).await.unwrap();
        machine.backend.write(disk.id);
        // A copy of what is mounted, in a larger volume, as after a power cut.
        let copy = machine.volume("copy", 400 * MIB, Some(Source::Volume(disk.id))).await;
        std::fs::copy(machine.file(&disk), machine.file(&copy)).unwrap();
        machine.stage(&copy, xfs()).await.unwrap();
        assert_eq!(read(&copy.staging), "xfs");
        machine.publish(&copy, &copy.target, xfs(), false).await.unwrap();
        let (before, larger) =
            (machine.bytes(&disk, &disk.target).await, machine.bytes(&copy, &copy.target).await);
        assert!(larger > before + 60 * MIB as i64, "{before} {larger}");
        for _ in 0..2 {
            let size = 420 * MIB;
            assert_eq!(machine.expand(&disk, &disk.target, size).await.unwrap(), size as i64);
        }
        assert!(machine.bytes(&disk, &disk.target).await > before + 80 * MIB as i64);

        let plain = machine.volume("plain", 64 * MIB, None).await;
        machine.stage(&plain, ext4()).await.unwrap();
        machine.publish(&plain, &plain.target, ext4(), false).await.unwrap();
        let before = machine.bytes(&plain, &plain.target).await;
        let expanded = machine.expand(&plain, &plain.target, 128 * MIB).await;
        if can_grow_mounted_ext4() {
            assert_eq!(expanded.unwrap(), 128 * MIB as i64);
            assert!(machine.bytes(&plain, &plain.target).await > before + 50 * MIB as i64);
        } else {
            // Said, and no reason to keep anybody from what is on it.
            assert!(expanded.unwrap_err().message().contains("resize2fs"));
            machine.unpublish(&plain, &plain.target).await.unwrap();
            machine.unstage(&plain).await;
            machine.stage(&plain, ext4()).await.unwrap();
            machine.publish(&plain, &plain.target, ext4(), false).await.unwrap();
            assert_eq!(machine.bytes(&plain, &plain.target).await, before);
        }
        for place in [&disk, &copy, &plain] {
            machine.unpublish(place, &place.target).await.unwrap();
            machine.unstage(place).await;
        }
    });
}

#[test]
fn readers_cannot_write_and_one_pod_is_one_pod() {
    on_a_machine(async |machine| {
        let disk = machine.volume("disk", 64 * MIB, None).await;
        let (other, single) = (format!("{}-other", disk.target), mount("", Mode::SingleNodeSingleWriter));
        machine.stage(&disk, single.clone()).await.unwrap();
        write(&disk.staging, "text");
        machine.publish(&disk, &disk.target, single.clone(), false).await.unwrap();
        // Again, also when the pod has a part of it at another path.
        let part = format!("{}-part", disk.target);
        std::fs::create_dir(&part).unwrap();
        run("mount", ["--bind", &disk.target, &part]).unwrap();
        machine.publish(&disk, &disk.target, single.clone(), false).await.unwrap();
        run("umount", [&part]).unwrap();
        let error = machine.publish(&disk, &other, single, false).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        machine.publish(&disk, &other, ext4(), true).await.unwrap();
        assert!(std::fs::write(format!("{other}/file"), "x").is_err(), "a read-only path is written");
        let error = machine.publish(&disk, &other, ext4(), false).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        machine.unpublish(&disk, &other).await.unwrap();
        machine.unpublish(&disk, &disk.target).await.unwrap();
        // What somebody else has put there is not removed.
        std::fs::create_dir(&disk.target).unwrap();
        write(&disk.target, "not ours");
        assert!(machine.unpublish(&disk, &disk.target).await.is_err());
        assert_eq!(read(&disk.target), "not ours");
        machine.unstage(&disk).await;

        machine.backend.detach(disk.id, NODE).await.unwrap();
        machine.backend.attach(disk.id, NODE, true).await.unwrap();
        machine.stage(&disk, mount("", Mode::MultiNodeReaderOnly)).await.unwrap();
        assert_eq!(read(&disk.staging), "text");
        assert!(std::fs::write(format!("{}/file", disk.staging), "x").is_err());
        machine.unstage(&disk).await;
    });
}

#[test]
fn a_device_is_published_as_it_is() {
    on_a_machine(async |machine| {
        let disk = machine.volume("disk", 64 * MIB, None).await;
        let error = machine.publish(&disk, &disk.target, block(), false).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "not staged");
        machine.stage(&disk, block()).await.unwrap();
        machine.publish(&disk, &disk.target, block(), false).await.unwrap();
        machine.publish(&disk, &disk.target, block(), false).await.unwrap();
        assert_eq!(machine.bytes(&disk, &disk.target).await, 64 * MIB as i64);
        machine.expand(&disk, &disk.target, 96 * MIB).await.unwrap();
        assert_eq!(machine.bytes(&disk, &disk.target).await, 96 * MIB as i64);
        assert_eq!(machine.mark(&disk).await, None);
        let error = machine.publish(&disk, &format!("{}-ro", disk.target), block(), true).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        machine.unpublish(&disk, &disk.target).await.unwrap();
        machine.unpublish(&disk, &disk.target).await.unwrap();
        assert!(!Path::new(&disk.target).exists());
        machine.unstage(&disk).await;
    });
}

#[test]
fn calls_for_one_volume_do_not_wait_for_each_other() {
    on_a_machine(async |machine| {
        let disk = Arc::new(machine.volume("disk", 64 * MIB, None).await);
        let request = NodeStageVolumeRequest {
            volume_id: disk.handle.clone(),
            staging_target_path: disk.staging.clone(),
            volume_capability: ext4(),
            publish_context: HashMap::new(),
            ..Default::default()
        };
        let calls: Vec<_> = (0..4)
            .map(|_| {
                let (node, request) = (machine.node.clone(), request.clone());
                tokio::spawn(async move { node.node_stage_volume(Request::new(request)).await.map(drop) })
            })
            .collect();
        let mut codes = Vec::new();
        for call in calls {
            codes.push(call.await.unwrap().map_or_else(|status| status.code(), |()| Code::Ok));
        }
        assert!(codes.iter().all(|code| [Code::Ok, Code::Aborted].contains(code)), "{codes:?}");
        assert!(codes.contains(&Code::Ok) && codes.contains(&Code::Aborted), "{codes:?}");
        machine.unstage(&disk).await;
    });
}
