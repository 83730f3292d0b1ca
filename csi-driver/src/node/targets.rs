//! What pods see: the directory or the device at a path of theirs.

use super::{Node, key};
use crate::capability::{Access, Usage};
use crate::host::{self, Mounted, trouble};
use crate::v1::volume_usage::Unit;
use crate::{Device, Error, Handle, v1};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How a volume is at a path.
enum At {
    /// Its file system is mounted there.
    Mounted(Mounted),
    /// Its device is there.
    Block,
}

/// How a device is at a path; nothing if it is not.
fn at(path: &Path, device: &Device) -> Result<Option<At>, Error> {
    let number = host::number_of(device)?;
    if host::block_device(path) == Some(number) {
        return Ok(Some(At::Block));
    }
    let mounted = host::mounted_at(path)?.filter(|mounted| mounted.device == number);
    Ok(mounted.map(At::Mounted))
}

/// Whether a mount can be a device at a path of its own: then it is of the file system that the device's node is in. No other one is
/// asked anything, for it may be one that does not answer.
fn may_be_node(mounted: &Mounted, nodes: u64) -> bool {
    mounted.device == nodes && mounted.root != Path::new("/")
}

/// A path that a device or its file system is at, besides those.
pub(super) async fn elsewhere(device: &Device, not: &[&Path]) -> Result<Option<PathBuf>, Error> {
    let number = host::number_of(device)?;
    let path = device.path.clone();
    let not: Vec<PathBuf> = not.iter().map(|path| (*path).to_owned()).collect();
    let look = move || {
        let nodes = std::fs::metadata(&path).map_err(|error| trouble("read", &path, &error))?.dev();
        let not: Vec<_> = not.into_iter().map(|path| std::fs::canonicalize(&path).unwrap_or(path)).collect();
        let shows = |mounted: &Mounted| {
            mounted.device == number
                || (may_be_node(mounted, nodes) && host::block_device(&mounted.point) == Some(number))
        };
        let other =
            host::mounts()?.into_iter().find(|mounted| !not.contains(&mounted.point) && shows(mounted));
        Ok(other.map(|mounted| mounted.point))
    };
    let found = tokio::task::spawn_blocking(look).await;
    found.map_err(|_| Error::Unavailable("the driver is stopping".into()))?
}

/// Takes away what a former device of the volume has left at a path: nothing can be written there any more.
async fn clear_former(target: &Path, device: &Device) -> Result<(), Error> {
    let number = host::number_of(device)?;
    let there = host::mounted_at(target)?.map(|mounted| mounted.device);
    let former = |there: u64| there != number && host::is_device_of(there, &device.volume);
    if there.is_some() && [there, host::block_device(target)].into_iter().flatten().any(former) {
        tracing::info!(
            "what a former device of volume {} shows at {} is taken away",
            device.volume,
            target.display()
        );
        host::unmount(target).await?;
    }
    Ok(())
}

/// The place where something is mounted later: a directory, or an empty file.
fn make_target(target: &Path, directory: bool) -> Result<(), Error> {
    let make = || {
        if directory {
            return std::fs::create_dir_all(target);
        }
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::File::options().create(true).truncate(false).write(true).open(target).map(drop)
    };
    make().map_err(|error| trouble("make", target, &error))
}

/// Removes the place of something that is not mounted there any more; never with anything in it.
fn remove_target(target: &Path) -> Result<(), Error> {
    let Ok(metadata) = std::fs::symlink_metadata(target) else { return Ok(()) };
    let empty = metadata.is_file() && metadata.len() == 0;
    let removed = match (metadata.is_dir(), empty) {
        (true, _) => std::fs::remove_dir(target),
        (false, true) => std::fs::remove_file(target),
        (false, false) => Err(std::io::Error::other("it is not what this driver has put there")),
    };
    removed.map_err(|error| trouble("remove", target, &error))
}

impl Node {
    pub(super) async fn publish(
        &self,
        request: v1::NodePublishVolumeRequest,
    ) -> Result<v1::NodePublishVolumeResponse, Error> {
        if request.volume_id.is_empty() {
            return Err(Error::missing("id of a volume"));
        }
        if request.target_path.is_empty() {
            return Err(Error::missing("target path"));
        }
        let usage = Usage::parse(request.volume_capability.as_ref())?;
        if request.staging_target_path.is_empty() {
            return Err(Error::Precondition("the request has no staging target path".into()));
        }
        let volume = self.handle(&request.volume_id).await?;
        let _claim = self.busy.claim([key(&volume)])?;
        let staging = Path::new(&request.staging_target_path);
        let target = Path::new(&request.target_path);
        let not_staged =
            || Error::Precondition(format!("volume {} is not staged on this node", request.volume_id));
        let device = self.devices.find(&volume).await?.ok_or_else(not_staged)?;
        let read_only = request.readonly || usage.read_only || device.read_only;
        let block = usage.access == Access::Block;
        if block && read_only != device.read_only {
            let message =
                "a device that can be written cannot be published read-only: the whole claim has to be so";
            return Err(Error::Precondition(message.into()));
        }
        let source = if block { device.path.as_path() } else { staging };
        if !block && !matches!(at(staging, &device)?, Some(At::Mounted(_))) {
            return Err(not_staged());
        }
        clear_former(target, &device).await?;
        match at(target, &device)? {
            Some(At::Block) if block => return Ok(v1::NodePublishVolumeResponse {}),
            Some(At::Mounted(present)) if !block && present.read_only == read_only => {
                return Ok(v1::NodePublishVolumeResponse {});
            }
            Some(_) => {
                let message = format!("the volume is at {} in another way", target.display());
                return Err(Error::exists(message));
            }
            None => {}
        }
        if usage.single_pod
            && let Some(other) = elsewhere(&device, &[staging, target]).await?
        {
            let message = format!("the volume is for one pod only, and published at {}", other.display());
            return Err(Error::Precondition(message));
        }
        if host::mounted_at(target)?.is_some() {
            return Err(Error::Precondition(format!("something else is mounted at {}", target.display())));
        }
        make_target(target, !block)?;
        let bound = host::bind(source, target, read_only && !block).await;
        if bound.is_err() {
            let _ = remove_target(target);
        }
        bound.map(|()| v1::NodePublishVolumeResponse {})
    }

    pub(super) async fn unpublish(
        &self,
        request: v1::NodeUnpublishVolumeRequest,
    ) -> Result<v1::NodeUnpublishVolumeResponse, Error> {
        if request.volume_id.is_empty() {
            return Err(Error::missing("id of a volume"));
        }
        if request.target_path.is_empty() {
            return Err(Error::missing("target path"));
        }
        // The cluster is not asked: a node that is cut off must get rid of what it has.
        let _claim = match Handle::read(&request.volume_id) {
            Some(volume) => Some(self.busy.claim([key(&volume)])?),
            None => None,
        };
        let target = Path::new(&request.target_path);
        host::unmount(target).await?;
        remove_target(target)?;
        Ok(v1::NodeUnpublishVolumeResponse {})
    }

    pub(super) async fn stats(
        &self,
        request: v1::NodeGetVolumeStatsRequest,
    ) -> Result<v1::NodeGetVolumeStatsResponse, Error> {
        if request.volume_path.is_empty() {
            return Err(Error::missing("volume path"));
        }
        let device = self.device(&self.handle(&request.volume_id).await?).await?;
        let path = PathBuf::from(&request.volume_path);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let one = |unit: Unit, [total, used, available]: [u64; 3]| v1::VolumeUsage {
            available: signed(available),
            total: signed(total),
            used: signed(used),
            unit: unit.into(),
        };
        let usage = match at(&path, &device)? {
            Some(At::Mounted(_)) => {
                let room = host::room(path).await?;
                vec![one(Unit::Bytes, room.bytes), one(Unit::Inodes, room.inodes)]
            }
            Some(At::Block) => vec![one(Unit::Bytes, [host::device_size(&device.path).await?, 0, 0])],
            None => return Err(Error::NotFound(format!("the volume is not at {}", path.display()))),
        };
        Ok(v1::NodeGetVolumeStatsResponse { usage, volume_condition: None })
    }

    pub(super) async fn expand(
        &self,
        request: v1::NodeExpandVolumeRequest,
    ) -> Result<v1::NodeExpandVolumeResponse, Error> {
        if request.volume_path.is_empty() {
            return Err(Error::missing("volume path"));
        }
        let handle = self.handle(&request.volume_id).await?;
        let _claim = self.busy.claim([key(&handle)])?;
        let device = self.device(&handle).await?;
        let volume = self.backend.volume(handle.id).await?;
        let required = crate::parameters::range(request.capacity_range)?.0;
        if required > volume.size {
            let message = format!("volume {} has {} bytes and was not expanded", volume.name, volume.size);
            return Err(Error::OutOfRange(message));
        }
        let path = Path::new(&request.volume_path);
        let staging = Path::new(&request.staging_target_path);
        let place = match at(path, &device)? {
            None if !request.staging_target_path.is_empty() => at(staging, &device)?,
            place => place,
        };
        let is_block = request.volume_capability.is_some()
            && Usage::parse(request.volume_capability.as_ref())?.access == Access::Block;
        self.devices.resize(&handle, volume.size).await?;
        match place {
            Some(At::Mounted(mounted)) if !mounted.read_only => {
                host::grow_filesystem(&device.path, &mounted.point, &mounted.fs).await?;
            }
            Some(At::Mounted(_) | At::Block) => {}
            // The kubelet names a directory of its own for a device.
            None if is_block => {}
            None => return Err(Error::NotFound(format!("the volume is not at {}", path.display()))),
        }
        Ok(v1::NodeExpandVolumeResponse { capacity_bytes: i64::try_from(volume.size).unwrap_or(i64::MAX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount of NFS whose server is away stops whoever looks at it.
    #[test]
    fn only_what_is_of_the_file_system_of_devices_is_looked_at() {
        let mounted = |device, root: &str| Mounted {
            device,
            root: root.into(),
            point: "/somewhere".into(),
            read_only: false,
            fs: "any".into(),
        };
        assert!(may_be_node(&mounted(5, "/loop3"), 5));
        assert!(!may_be_node(&mounted(5, "/"), 5), "/dev itself");
        assert!(!may_be_node(&mounted(51, "/export/home"), 5));
    }
}
