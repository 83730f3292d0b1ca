//! One device: the file, its mount, the loop device on it, and the state file that says what all that is.

use crate::fuse::{self, Asked, File, REQUEST_ROOM};
use crate::holder::Holder;
use crate::volume::{Kernel, Volume, drain, thread};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::{error, info, warn};

/// What a device is; its state file has just this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) volume: u64,
    /// Name of the export.
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    /// The loop device, once there is one.
    pub(crate) path: Option<PathBuf>,
}

/// Where things are, and who asks.
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    pub(crate) nbd: PathBuf,
    pub(crate) node: String,
    pub(crate) holder: Holder,
}

impl Place {
    fn state(&self, volume: u64) -> PathBuf {
        self.directory.join(format!("{volume}.json"))
    }

    fn mount(&self, volume: u64) -> PathBuf {
        self.directory.join(volume.to_string())
    }

    /// All state files, and what is in them.
    pub(crate) fn states(&self) -> Result<Vec<State>> {
        let entries = std::fs::read_dir(&self.directory).context("the directory of devices")?;
        let mut states = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension() == Some(OsStr::new("json")) {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                states.push(serde_json::from_str(&text).with_context(|| path.display().to_string())?);
            }
        }
        Ok(states)
    }

    fn save(&self, state: &State) -> Result<()> {
        let path = self.state(state.volume);
        let draft = path.with_extension("new");
        std::fs::write(&draft, serde_json::to_vec(state)?)?;
        std::fs::File::open(&draft)?.sync_all()?;
        std::fs::rename(&draft, &path)?;
        Ok(std::fs::File::open(&self.directory)?.sync_all()?)
    }
}

fn run(program: &str, args: &[&OsStr]) -> Result<String> {
    let output =
        Command::new(program).args(args).env("LC_ALL", "C").stdin(std::process::Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?} failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The kernel's end of the file.
struct Fuse(Arc<OwnedFd>);

impl Kernel for Fuse {
    fn answer(&self, head: &[u8], body: &[u8]) {
        // Who has asked may be gone.
        let _ = rustix::io::writev(&self.0, &[IoSlice::new(head), IoSlice::new(body)]);
    }
}

/// A device that is served.
pub(crate) struct Device {
    pub(crate) state: State,
    volume: Arc<Volume>,
    /// What the predecessor had read and not answered can be had from the kernel.
    resend: Arc<AtomicBool>,
}

fn mark(state: &State) -> String {
    format!("sheep-device:{}:{}:{}", state.cluster, state.node, state.volume)
}

/// Reads requests of the kernel and sees to their being answered, until the file is no longer mounted.
fn serve(fuse: &OwnedFd, volume: &Volume, read_only: bool, resend: &AtomicBool) {
    let kernel = Fuse(Arc::new(match fuse.try_clone() {
        Ok(fuse) => fuse,
        Err(problem) => return error!("a descriptor cannot be copied: {problem}"),
    }));
    let mut buffer = vec![0; REQUEST_ROOM];
    loop {
        let len = match rustix::io::read(fuse, &mut buffer) {
            Ok(len) => len,
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            Err(Errno::NODEV) => return,
            Err(problem) => return error!("the kernel's requests cannot be read: {problem}"),
        };
        if let Some(offered) = fuse::offers_resend(&buffer[..len]) {
            resend.store(offered, Ordering::Release);
        }
        match fuse::parse(&buffer[..len], File { size: volume.size(), read_only }) {
            Some(Asked::Answer(bytes)) => kernel.answer(&bytes, &[]),
            Some(Asked::Io(io, data)) => volume.begin(io, data),
            Some(Asked::Nothing) => {}
            None => warn!("a request of the kernel is cut short"),
        }
    }
}

impl Device {
    /// A volume with its two ends, not connected yet.
    fn new(place: &Arc<Place>, state: State, fuse: OwnedFd) -> Result<(Self, Arc<OwnedFd>)> {
        let fuse = Arc::new(fuse);
        let (keeper, name) = (Arc::clone(place), format!("nbd-{}", state.volume));
        let keep = move |stream: &std::os::unix::net::UnixStream| {
            if let Err(problem) = keeper.holder.keep(&name, stream.as_fd()) {
                error!("{problem:#}");
            }
        };
        let kernel = Box::new(Fuse(Arc::clone(&fuse)));
        let volume = Volume::new(&place.nbd, &state.name, state.size, kernel, Box::new(keep));
        Ok((Self { state, volume, resend: Arc::default() }, fuse))
    }

    fn start(&self, fuse: Arc<OwnedFd>) {
        let (volume, read_only) = (Arc::clone(&self.volume), self.state.read_only);
        let resend = Arc::clone(&self.resend);
        thread(move || serve(&fuse, &volume, read_only, &resend));
    }

    /// Makes a device.
    pub(crate) fn make(place: &Arc<Place>, state: State) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fuse = rustix::fs::open("/dev/fuse", flags, Mode::empty()).context("/dev/fuse")?;
        let (mut device, fuse) = Self::new(place, state, fuse)?;
        let export = device.volume.open()?;
        let made = device.finish(place, export.read_only, fuse);
        match made {
            Ok(()) => Ok(device),
            Err(problem) => {
                if let Err(left) = device.unmake(place, true) {
                    warn!("volume {}: {left:#}", device.state.name);
                }
                Err(problem)
            }
        }
    }

    fn finish(&mut self, place: &Arc<Place>, served_read_only: bool, fuse: Arc<OwnedFd>) -> Result<()> {
        ensure!(
            self.state.read_only || !served_read_only,
            "volume {} can only be read here",
            self.state.name
        );
        self.volume.set_size(self.state.size);
        self.state.size = self.volume.size();
        place.save(&self.state)?;
        let id = self.state.volume;
        place.holder.keep(&format!("fuse-{id}"), fuse.as_fd())?;
        let point = place.mount(id);
        std::fs::create_dir_all(&point)?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        let options = CString::new(options).context("options")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(mark(&self.state), &point, "fuse", flags, options.as_c_str())
            .with_context(|| format!("cannot mount at {}", point.display()))?;
        self.start(fuse);
        let file = point.join("disk");
        let mut args: Vec<&OsStr> =
            ["--find", "--show", "--direct-io=on"].iter().map(AsRef::as_ref).collect();
        if self.state.read_only {
            args.push("--read-only".as_ref());
        }
        args.push(file.as_ref());
        self.state.path = Some(PathBuf::from(run("losetup", &args)?));
        place.save(&self.state)?;
        info!("volume {} is {}", self.state.name, self.path().display());
        if !self.resend.load(Ordering::Acquire) {
            warn!(
                "this kernel does not hand out requests again: if the worker dies, users of the device see errors"
            );
        }
        Ok(())
    }

    /// Goes on with a device that a former worker made.
    pub(crate) fn take_over(
        place: &Arc<Place>,
        state: State,
        fuse: OwnedFd,
        nbd: Option<OwnedFd>,
    ) -> Result<Self> {
        let (device, fuse) = Self::new(place, state, fuse)?;
        let (volume, read_only) = (Arc::clone(&device.volume), device.state.read_only);
        let resend = Arc::clone(&device.resend);
        let place = device.path().to_owned();
        thread(move || {
            // What the predecessor had sent must be done before anything is sent again.
            if let Some(nbd) = nbd {
                drain(nbd);
            }
            volume.keep_up();
            match rustix::io::write(&*fuse, &fuse::resend()) {
                Ok(_) => resend.store(true, Ordering::Release),
                Err(problem) => warn!("the kernel does not hand out requests again: {problem}"),
            }
            info!("{} goes on", place.display());
            serve(&fuse, &volume, read_only, &resend);
        });
        Ok(device)
    }

    fn path(&self) -> &Path {
        self.state.path.as_deref().unwrap_or(Path::new("nothing"))
    }

    /// Whether the kernel keeps requests for the next worker.
    pub(crate) fn survives(&self) -> bool {
        self.resend.load(Ordering::Acquire)
    }

    /// The volume has grown.
    pub(crate) fn resize(&mut self, place: &Place, size: u64) -> Result<()> {
        self.volume.set_size(size);
        self.state.size = self.volume.size();
        place.save(&self.state)?;
        // So the kernel asks for the size.
        let known = std::fs::metadata(place.mount(self.state.volume).join("disk"))?.len();
        ensure!(known == self.state.size, "the kernel believes in {known} bytes");
        run("losetup", &["--set-capacity".as_ref(), self.path().as_ref()]).map(drop)
    }

    /// Whether somebody has the device open for himself, as a mounted file system has.
    fn in_use(&self) -> bool {
        let Some(path) = &self.state.path else { return false };
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        matches!(rustix::fs::open(path, flags, Mode::empty()), Err(Errno::BUSY))
    }

    /// Takes the device away. By force: whoever uses it gets errors.
    pub(crate) fn unmake(&mut self, place: &Place, force: bool) -> Result<()> {
        if force {
            self.volume.close();
        } else if self.in_use() {
            bail!("{} is in use", self.path().display());
        }
        remove(place, &self.state)?;
        self.volume.close();
        Ok(())
    }
}

/// Removes what there is of a device: the loop device, the mount, the state file, the descriptors.
pub(crate) fn remove(place: &Place, state: &State) -> Result<()> {
    let (id, point) = (state.volume, place.mount(state.volume));
    ensure!(state.node == place.node, "the device of volume {} is of node {}", state.name, state.node);
    let file = point.join("disk");
    let ours = |path: &Path| {
        let backing =
            Path::new("/sys/block").join(path.file_name().unwrap_or_default()).join("loop/backing_file");
        std::fs::read_to_string(backing)
            .is_ok_and(|text| text.trim_end().starts_with(&file.display().to_string()))
    };
    if let Some(path) = state.path.as_ref().filter(|path| ours(path)) {
        run("losetup", &["--detach".as_ref(), path.as_ref()])?;
    }
    match rustix::mount::unmount(&point, UnmountFlags::DETACH) {
        // It is not mounted, or was never made.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(problem) => return Err(problem).with_context(|| format!("cannot unmount {}", point.display())),
    }
    let _ = std::fs::remove_dir(&point);
    place.holder.release(&format!("fuse-{id}"))?;
    place.holder.release(&format!("nbd-{id}"))?;
    let _ = std::fs::remove_file(place.state(id));
    Ok(())
}
