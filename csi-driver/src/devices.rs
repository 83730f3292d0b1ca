//! Block devices of volumes on a node.

mod remote;

use crate::host::{run, trouble};
use crate::{Error, Handle};
pub use remote::RemoteDevices;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The device that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The volume.
    pub volume: Handle,
    /// The attachment that the device is for: when it is over, the device is.
    pub attachment: u64,
    /// The volume's name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// It cannot be written.
    pub read_only: bool,
}

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The volume.
    pub volume: Handle,
    /// Its path.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// It cannot be written.
    pub read_only: bool,
}

/// Makes devices of volumes. All calls may be repeated. What is there stays there when the process that asked for it ends:
/// the devices are asked what there is, nobody else remembers.
#[tonic::async_trait]
pub trait Devices: Send + Sync + 'static {
    /// Makes a device, or finds the one that is there for this attachment; one for an earlier attachment is replaced.
    /// [`Error::Precondition`] if that is writable and this is not to be, or the reverse.
    async fn attach(&self, wanted: &Wanted) -> Result<Device, Error>;

    /// The device of a volume, if there is one.
    async fn find(&self, volume: &Handle) -> Result<Option<Device>, Error>;

    /// All devices of this node.
    async fn list(&self) -> Result<Vec<Device>, Error>;

    /// Devices that are over: their attachment is, or nobody serves them any more. Only errors come of them.
    async fn over(&self) -> Result<Vec<Device>, Error>;

    /// Tells a device that its volume has grown.
    async fn resize(&self, volume: &Handle, size: u64) -> Result<(), Error>;

    /// Takes a device away that nobody uses; nothing to do if there is none.
    async fn detach(&self, volume: &Handle) -> Result<(), Error>;

    /// Takes a device away whoever uses it: they get errors. Nothing to do if there is none.
    async fn end(&self, volume: &Handle) -> Result<(), Error>;
}

/// Devices on sparse files in a directory, for tests of what stands on [`Devices`]: real devices, real file systems, no
/// cluster.
#[derive(Debug)]
pub struct FileDevices {
    directory: PathBuf,
}

impl FileDevices {
    /// In this directory.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Called as the files of sheep-device are, by which a device is known to be a volume's.
    pub fn file(&self, volume: &Handle) -> PathBuf {
        self.directory.join(format!("sheep:{}:files:{}:0", volume.cluster, volume.id))
    }

    fn set_size(&self, volume: &Handle, size: u64) -> Result<PathBuf, Error> {
        let path = self.file(volume);
        let grow = || {
            let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path)?;
            if file.metadata()?.len() < size { file.set_len(size) } else { Ok(()) }
        };
        grow().map_err(|error| trouble("make", &path, &error))?;
        Ok(path)
    }
}

#[tonic::async_trait]
impl Devices for FileDevices {
    async fn attach(&self, wanted: &Wanted) -> Result<Device, Error> {
        if let Some(device) = self.find(&wanted.volume).await? {
            if device.read_only == wanted.read_only {
                return Ok(device);
            }
            let message = format!("volume {} has a device of another kind", wanted.volume);
            return Err(Error::Precondition(message));
        }
        let file = self.set_size(&wanted.volume, wanted.size)?;
        let mut args: Vec<&OsStr> = vec!["--find".as_ref(), "--show".as_ref()];
        if wanted.read_only {
            args.push("--read-only".as_ref());
        }
        args.push(file.as_ref());
        let path = PathBuf::from(run("losetup", &args).await?);
        Ok(Device { volume: wanted.volume.clone(), path, size: wanted.size, read_only: wanted.read_only })
    }

    async fn find(&self, volume: &Handle) -> Result<Option<Device>, Error> {
        let file = self.file(volume);
        if !file.exists() {
            return Ok(None);
        }
        let args: [&OsStr; 6] = [
            "--list".as_ref(),
            "--noheadings".as_ref(),
            "--output".as_ref(),
            "NAME,RO".as_ref(),
            "--associated".as_ref(),
            file.as_ref(),
        ];
        let said = run("losetup", &args).await?;
        let mut words = said.split_whitespace();
        let (Some(path), mark) = (words.next(), words.next()) else { return Ok(None) };
        let size = std::fs::metadata(&file).map_err(|error| trouble("read", &file, &error))?.len();
        Ok(Some(Device { volume: volume.clone(), path: path.into(), size, read_only: mark == Some("1") }))
    }

    async fn list(&self) -> Result<Vec<Device>, Error> {
        let entries = std::fs::read_dir(&self.directory);
        let entries = entries.map_err(|error| trouble("read", &self.directory, &error))?;
        let id = |name: std::ffi::OsString| {
            let (cluster, id) = name.to_str()?.strip_prefix("sheep:")?.split_once(":files:")?;
            Handle::read(&format!("{cluster}-{}", id.strip_suffix(":0")?))
        };
        let mut ids: Vec<Handle> = entries.flatten().filter_map(|entry| id(entry.file_name())).collect();
        ids.sort_unstable_by_key(|handle| handle.id);
        let mut devices = Vec::new();
        for id in ids {
            devices.extend(self.find(&id).await?);
        }
        Ok(devices)
    }

    /// A file goes on as long as it is there.
    async fn over(&self) -> Result<Vec<Device>, Error> {
        Ok(Vec::new())
    }

    async fn resize(&self, volume: &Handle, size: u64) -> Result<(), Error> {
        let Some(device) = self.find(volume).await? else {
            return Err(Error::NotFound(format!("volume {volume} has no device here")));
        };
        self.set_size(volume, size)?;
        run("losetup", &["--set-capacity".as_ref(), device.path.as_ref()]).await.map(drop)
    }

    async fn detach(&self, volume: &Handle) -> Result<(), Error> {
        match self.find(volume).await? {
            Some(device) => run("losetup", &["--detach".as_ref(), device.path.as_ref()]).await.map(drop),
            None => Ok(()),
        }
    }

    /// The kernel keeps it until nobody uses it any more.
    async fn end(&self, volume: &Handle) -> Result<(), Error> {
        self.detach(volume).await
    }
}
