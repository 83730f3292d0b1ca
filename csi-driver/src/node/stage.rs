//! A volume gets its device and, if it is to be a directory, its one mount on this node.

use super::{Node, key};
use crate::capability::{Access, FsKind, Usage};
use crate::controller::ATTACHMENT;
use crate::host::{self, trouble};
use crate::{Attachment, Device, Error, Handle, Volume, Wanted, parameters, v1};
use std::path::Path;

/// A file system that is wanted at a path.
pub(super) struct Filesystem<'a> {
    pub(super) kind: FsKind,
    pub(super) flags: &'a [String],
    pub(super) mkfs_options: Vec<String>,
    pub(super) point: &'a Path,
    pub(super) read_only: bool,
}

/// The attachment of a volume to this node, which has to be the one that the caller was told of.
fn attachment<'a>(volume: &'a Volume, node: &str, told: Option<&String>) -> Result<&'a Attachment, Error> {
    let own = volume.attachments.iter().find(|attachment| attachment.node == node);
    let own = own.ok_or_else(|| {
        Error::Precondition(format!("volume {} is not published to this node, {node}", volume.name))
    })?;
    if told.is_some_and(|told| *told != own.index.to_string()) {
        let name = &volume.name;
        return Err(Error::Precondition(format!(
            "volume {name} was unpublished and published again meanwhile"
        )));
    }
    Ok(own)
}

impl Node {
    pub(super) async fn stage(
        &self,
        request: v1::NodeStageVolumeRequest,
    ) -> Result<v1::NodeStageVolumeResponse, Error> {
        if request.volume_id.is_empty() {
            return Err(Error::missing("id of a volume"));
        }
        if request.staging_target_path.is_empty() {
            return Err(Error::missing("staging target path"));
        }
        let usage = Usage::parse(request.volume_capability.as_ref())?;
        let handle = self.handle(&request.volume_id).await?;
        let _claim = self.busy.claim([key(&handle)])?;
        let volume = self.backend.volume(handle.id).await?;
        let node = self.backend.node().await?;
        let attachment = attachment(&volume, &node, request.publish_context.get(ATTACHMENT))?;
        let read_only = attachment.read_only || usage.read_only;
        let before = self.devices.find(&handle).await?.is_some();
        let wanted = Wanted {
            volume: handle.clone(),
            attachment: attachment.index,
            name: volume.name.clone(),
            size: volume.size,
            read_only,
        };
        let device = self.devices.attach(&wanted).await?;
        let staged = async {
            if device.size != volume.size {
                self.devices.resize(&handle, volume.size).await?;
            }
            let Access::Mount { kind, flags } = &usage.access else { return Ok(()) };
            let wanted = Filesystem {
                kind: *kind,
                flags,
                mkfs_options: parameters::mkfs_options(&request.volume_context),
                point: Path::new(&request.staging_target_path),
                read_only,
            };
            self.stage_filesystem(&volume, attachment, &device, &wanted).await
        };
        if let Err(error) = staged.await {
            // Nothing half-made is left behind.
            if !before && let Err(left) = self.devices.detach(&handle).await {
                // The kubelet takes this for an error after which the volume may be here, and has it unstaged.
                let name = &volume.name;
                return Err(Error::Unavailable(format!(
                    "{error}; and the device of volume {name} is left: {left}"
                )));
            }
            return Err(error);
        }
        Ok(v1::NodeStageVolumeResponse {})
    }

    async fn stage_filesystem(
        &self,
        volume: &Volume,
        attachment: &Attachment,
        device: &Device,
        wanted: &Filesystem<'_>,
    ) -> Result<(), Error> {
        let number = host::number_of(device)?;
        let mut present = host::mounted_at(wanted.point)?;
        if present
            .as_ref()
            .is_some_and(|there| there.device != number && host::is_device_of(there.device, &device.volume))
        {
            // Of an earlier attachment: nothing can be written there any more.
            host::unmount(wanted.point).await?;
            present = None;
        }
        if let Some(present) = present {
            let (path, kind) = (wanted.point.display(), wanted.kind);
            if present.device != number {
                return Err(Error::Precondition(format!("something else is mounted at {path}")));
            }
            if present.fs != kind.name() || present.read_only != wanted.read_only {
                return Err(Error::exists(format!("the volume is mounted at {path} in another way")));
            }
        } else {
            self.prepare(volume, attachment, device, wanted).await?;
            std::fs::create_dir_all(wanted.point).map_err(|error| trouble("make", wanted.point, &error))?;
            self.mount(volume, device, wanted).await?;
        }
        if wanted.read_only {
            return Ok(());
        }
        // A copy may have got a larger volume than its origin's, and an expansion may have stopped half-way. That is done on what is
        // mounted, where the journal guards it. What is on a smaller file system can be had all the same.
        if let Err(error) = host::grow_filesystem(&device.path, wanted.point, wanted.kind.name()).await {
            tracing::warn!(
                "volume {} is mounted, and its file system does not fill it: {error}",
                volume.name
            );
        }
        Ok(())
    }

    pub(super) async fn unstage(
        &self,
        request: v1::NodeUnstageVolumeRequest,
    ) -> Result<v1::NodeUnstageVolumeResponse, Error> {
        if request.volume_id.is_empty() {
            return Err(Error::missing("id of a volume"));
        }
        if request.staging_target_path.is_empty() {
            return Err(Error::missing("staging target path"));
        }
        // The cluster is not asked: a node that is cut off must get rid of what it has.
        let done = v1::NodeUnstageVolumeResponse {};
        let Some(volume) = Handle::read(&request.volume_id) else { return Ok(done) };
        let _claim = self.busy.claim([key(&volume)])?;
        let point = Path::new(&request.staging_target_path);
        if self.is_foreign(&volume).await {
            // Nobody will ever serve this device again: to unmount what is on it would wait for ever.
            self.devices.end(&volume).await?;
        }
        // The path is the volume's alone, whatever has become of its device.
        host::unmount(point).await?;
        self.devices.detach(&volume).await?;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::Wanted;
    use crate::{Backend, Devices, Memory};
    use std::sync::{Arc, Mutex};

    /// Devices that note what they are told.
    #[derive(Default)]
    struct Told(Mutex<Vec<&'static str>>);

    impl Told {
        fn note(&self, what: &'static str) -> Result<(), Error> {
            self.0.lock().unwrap().push(what);
            Ok(())
        }
    }

    #[tonic::async_trait]
    impl Devices for Told {
        async fn attach(&self, wanted: &Wanted) -> Result<Device, Error> {
            Ok(Device { volume: wanted.volume.clone(), path: "".into(), size: 0, read_only: false })
        }
        async fn find(&self, _: &Handle) -> Result<Option<Device>, Error> {
            Ok(None)
        }
        async fn list(&self) -> Result<Vec<Device>, Error> {
            Ok(Vec::new())
        }
        async fn over(&self) -> Result<Vec<Device>, Error> {
            let volume = Handle { cluster: "ab".into(), id: 7 };
            Ok(vec![Device { volume, path: "".into(), size: 0, read_only: false }])
        }
        async fn resize(&self, _: &Handle, _: u64) -> Result<(), Error> {
            Err(Error::Unavailable("the device has another size".into()))
        }
        async fn detach(&self, _: &Handle) -> Result<(), Error> {
            self.note("detach")
        }
        async fn end(&self, _: &Handle) -> Result<(), Error> {
            self.note("end")
        }
    }

    #[tokio::test]
    async fn a_device_that_could_not_be_used_is_not_left_behind() {
        use crate::v1::VolumeCapability;
        use crate::v1::volume_capability::{AccessMode, AccessType, BlockVolume, access_mode::Mode};
        let backend = Arc::new(Memory::new(&["n1"]));
        let new = crate::NewVolume {
            name: "disk".into(),
            size: 1 << 20,
            source: None,
            copies: None,
            min_copies: None,
            attributes: Default::default(),
        };
        let id = backend.create(new).await.unwrap().id;
        backend.attach(id, "n1", false).await.unwrap();
        let devices = Arc::new(Told::default());
        let node = Node::new(backend.clone(), devices.clone(), 0);
        let mode = Mode::SingleNodeWriter.into();
        let request = v1::NodeStageVolumeRequest {
            volume_id: Handle { cluster: backend.cluster().await.unwrap(), id }.to_string(),
            staging_target_path: "/nothing/is/mounted/here".into(),
            volume_capability: Some(VolumeCapability {
                access_type: Some(AccessType::Block(BlockVolume {})),
                access_mode: Some(AccessMode { mode }),
            }),
            ..Default::default()
        };
        let failed = node.stage(request).await;
        assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
        assert_eq!(*devices.0.lock().unwrap(), ["detach"]);
    }

    #[tokio::test]
    async fn a_device_that_is_over_and_that_nobody_sees_is_taken_away_in_the_beginning() {
        let devices = Arc::new(Told::default());
        let node = Node::new(Arc::new(Memory::new(&["n1"])), devices.clone(), 0);
        let claim = node.busy.claim([key(&Handle { cluster: "ab".into(), id: 7 })]).unwrap();
        node.clear().await.unwrap();
        assert!(devices.0.lock().unwrap().is_empty(), "somebody works on it");
        drop(claim);
        node.clear().await.unwrap();
        assert_eq!(*devices.0.lock().unwrap(), ["detach"]);
    }

    /// Its last writes would wait for a cluster that does not come back, and unmounting for them.
    #[tokio::test]
    async fn a_device_of_another_cluster_is_ended_by_force_before_it_is_unmounted() {
        let backend = Arc::new(Memory::new(&["n1"]));
        let ours = backend.cluster().await.unwrap();
        let told = async |cluster: String| {
            let devices = Arc::new(Told::default());
            let node = Node::new(backend.clone(), devices.clone(), 0);
            let request = v1::NodeUnstageVolumeRequest {
                volume_id: Handle { cluster, id: 7 }.to_string(),
                staging_target_path: "/nothing/is/mounted/here".into(),
            };
            node.unstage(request).await.unwrap();
            devices.0.lock().unwrap().clone()
        };
        assert_eq!(told(ours.clone()).await, ["detach"]);
        assert_eq!(told(ours.replace('c', "d")).await, ["end", "detach"]);
        // A node that is cut off asks nobody, and takes nothing away that may be written yet.
        backend.set_trouble(Some("cut off"));
        assert_eq!(told(ours.replace('c', "d")).await, ["detach"]);
    }
}
