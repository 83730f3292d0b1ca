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
        if device.size != volume.size {
            self.devices.resize(&handle, volume.size).await?;
        }
        let Access::Mount { kind, flags } = &usage.access else {
            return Ok(v1::NodeStageVolumeResponse {});
        };
        let wanted = Filesystem {
            kind: *kind,
            flags,
            mkfs_options: parameters::mkfs_options(&request.volume_context),
            point: Path::new(&request.staging_target_path),
            read_only,
        };
        let staged = self.stage_filesystem(&volume, attachment, &device, &wanted).await;
        if let Err(error) = staged {
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
        let number = host::block_device(&device.path)
            .ok_or_else(|| Error::Internal(format!("{} is no block device", device.path.display())))?;
        let mut present = host::mounted_at(wanted.point)?;
        if present
            .as_ref()
            .is_some_and(|there| there.device != number && host::is_device_of(there.device, &device.volume))
        {
            // Of an earlier attachment: nothing can be written there any more.
            host::unmount(wanted.point).await?;
            present = None;
        }
        let mounted = present.is_some();
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
        if wanted.read_only || (!mounted && wanted.kind == FsKind::Ext4) {
            return Ok(());
        }
        let grown = host::grow_filesystem(&device.path, wanted.point, wanted.kind.name()).await;
        if grown.is_err() && !mounted {
            host::unmount(wanted.point).await?;
        }
        grown
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
        async fn attach(&self, _: &Wanted) -> Result<Device, Error> {
            Err(Error::Internal("nobody asks for a device".into()))
        }
        async fn find(&self, _: &Handle) -> Result<Option<Device>, Error> {
            Ok(None)
        }
        async fn list(&self) -> Result<Vec<Device>, Error> {
            Ok(Vec::new())
        }
        async fn resize(&self, _: &Handle, _: u64) -> Result<(), Error> {
            Ok(())
        }
        async fn detach(&self, _: &Handle) -> Result<(), Error> {
            self.note("detach")
        }
        async fn end(&self, _: &Handle) -> Result<(), Error> {
            self.note("end")
        }
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
