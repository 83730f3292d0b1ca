//! One device: the file, its mount, and the loop device on it.

use crate::control::Failure;
use crate::fuse::{self, Asked, File, REQUEST_ROOM};
use crate::holder::Kept;
use crate::loops;
use crate::nbd::Refusal;
use crate::state::{Place, State};
use crate::volume::{Kernel, Owner, Volume, drain, thread};
use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::{error, info, warn};

/// What the holder calls a device's descriptors.
fn fuse_name(state: &State) -> String {
    format!("fuse-{}-{}", state.key(), state.attachment)
}

fn nbd_name(state: &State) -> String {
    format!("nbd-{}-{}", state.key(), state.attachment)
}

/// The kernel's end of the file.
struct Fuse(Arc<OwnedFd>);

impl Kernel for Fuse {
    fn answer(&self, head: &[u8], body: &[u8]) {
        // Who has asked may be gone.
        let _ = rustix::io::writev(&self.0, &[IoSlice::new(head), IoSlice::new(body)]);
    }
}

/// What the volume tells the device.
struct Told {
    place: Arc<Place>,
    state: State,
}

impl Owner for Told {
    fn connected(&self, connection: &UnixStream) {
        if let Err(problem) = self.place.holder.keep(&nbd_name(&self.state), connection.as_fd()) {
            error!("{problem:#}");
        }
    }

    fn resized(&self, size: u64) {
        let (place, state) = (Arc::clone(&self.place), State { size, ..self.state.clone() });
        // The kernel asks for the size, and whoever answers may wait for this connection.
        thread(move || match follow_size(&place, &state) {
            Ok(()) => info!("volume {} has {} bytes now", state.name, state.size),
            Err(problem) => warn!("volume {} has another size now: {problem:#}", state.name),
        });
    }
}

/// Has the kernel see the present size of a volume.
fn follow_size(place: &Place, state: &State) -> Result<()> {
    let known = std::fs::metadata(place.point(&state.key()).join(state.mark()))?.len();
    ensure!(known == state.size, "the kernel believes in {known} bytes");
    loops::find(&state.mark()).iter().try_for_each(|device| loops::follow_size(device))
}

/// A device that is served.
pub(crate) struct Device {
    pub(crate) state: State,
    volume: Arc<Volume>,
    fuse: Arc<OwnedFd>,
    /// What a worker had read and not answered can be had from the kernel again.
    resend: Arc<AtomicBool>,
}

/// Reads requests of the kernel and sees to their being answered, until the file is no longer mounted.
fn serve(fuse: &OwnedFd, volume: &Volume, (name, read_only): (&str, bool), resend: &AtomicBool) {
    let kernel = Fuse(Arc::new(match fuse.try_clone() {
        Ok(fuse) => fuse,
        Err(problem) => return error!("a descriptor cannot be copied: {problem}"),
    }));
    let mut buffer = vec![0; REQUEST_ROOM];
    loop {
        let len = match rustix::io::read(fuse, &mut buffer) {
            Ok(len) => len,
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            // Unmounted, or ended by force.
            Err(Errno::NODEV | Errno::CONNABORTED) => return,
            Err(problem) => return error!("the kernel's requests cannot be read: {problem}"),
        };
        if let Some(offered) = fuse::offers_resend(&buffer[..len]) {
            resend.store(offered, Ordering::Release);
        }
        match fuse::parse(&buffer[..len], File { name, size: volume.size(), read_only }) {
            Some(Asked::Answer(bytes)) => kernel.answer(&bytes, &[]),
            Some(Asked::Io(io, data)) => volume.begin(io, data),
            Some(Asked::Nothing) => {}
            None => warn!("a request of the kernel is cut short"),
        }
    }
}

impl Device {
    /// A volume with its two ends, not connected yet.
    fn new(place: &Arc<Place>, state: State, fuse: OwnedFd) -> Self {
        let fuse = Arc::new(fuse);
        let kernel = Box::new(Fuse(Arc::clone(&fuse)));
        let owner = Box::new(Told { place: Arc::clone(place), state: state.clone() });
        let names = (state.export(), state.name.clone());
        let volume = Volume::new(&place.nbd, names, state.size, kernel, owner);
        Self { state, volume, fuse, resend: Arc::default() }
    }

    fn start(&self) {
        let (fuse, volume, resend) =
            (Arc::clone(&self.fuse), Arc::clone(&self.volume), Arc::clone(&self.resend));
        let (mark, read_only) = (self.state.mark(), self.state.read_only);
        thread(move || serve(&fuse, &volume, (&mark, read_only), &resend));
    }

    /// Opens a volume for a device that is made of it by [`Device::make`]: the gateway says whether the attachment is the present one.
    pub(crate) fn open(place: &Arc<Place>, state: State) -> Result<Self, Failure> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fuse = rustix::fs::open("/dev/fuse", flags, Mode::empty()).context("/dev/fuse")?;
        let mut device = Self::new(place, state, fuse);
        let export = device.volume.open().map_err(|refusal| match refusal {
            Refusal::Ended => Failure::Ended(format!(
                "volume {} is not attached to this node as attachment {} any more",
                device.state.name, device.state.attachment
            )),
            Refusal::Now(problem) => {
                Failure::Unavailable(format!("volume {} is not served: {problem:#}", device.state.name))
            }
        })?;
        device.state.size = export.size;
        if export.read_only && !device.state.read_only {
            device.give_up(place)?;
            return Err(anyhow!("volume {} can only be read here", device.state.name).into());
        }
        Ok(device)
    }

    /// It is opened, and not made after all.
    pub(crate) fn give_up(&self, place: &Place) -> Result<()> {
        self.volume.close();
        release(place, &self.state)
    }

    /// Makes the device.
    pub(crate) fn make(&mut self, place: &Place) -> Result<()> {
        let made = self.try_make(place);
        if made.is_err()
            && let Err(left) = self.unmake(place, true)
        {
            warn!("volume {}: {left}", self.state.name);
        }
        made
    }

    fn try_make(&mut self, place: &Place) -> Result<()> {
        // What an earlier process has left.
        remove(place, &self.state, true)?;
        place.save(&self.state)?;
        let key = self.state.key();
        place.holder.keep(&fuse_name(&self.state), self.fuse.as_fd())?;
        let point = place.point(&key);
        std::fs::create_dir_all(&point)?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", self.fuse.as_raw_fd());
        let options = CString::new(options).context("options")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(self.state.mark(), &point, "fuse", flags, options.as_c_str())
            .with_context(|| format!("cannot mount at {}", point.display()))?;
        self.start();
        let made = loops::make(&point.join(self.state.mark()), self.state.read_only)?;
        self.state.path = Some(made);
        place.save(&self.state)?;
        info!("volume {} is {}", self.state.name, self.path().display());
        if !place.resend {
            self.resend.store(false, Ordering::Release);
        }
        if !self.survives() {
            warn!(
                "this kernel does not hand out requests again: if the worker dies, users of the device see errors"
            );
        }
        Ok(())
    }

    /// Goes on with a device that a former worker made, if its descriptors were kept and the kernel gives again what that worker
    /// had read and not answered; else nothing would ever answer that, and the device has to end.
    pub(crate) fn take_over(place: &Arc<Place>, mut state: State, kept: &mut Kept) -> Option<Self> {
        let (fuse, nbd) = (kept.remove(&fuse_name(&state))?, kept.remove(&nbd_name(&state)));
        // The worker may have died before it wrote this down.
        state.path = Some(loops::find(&state.mark()).pop()?);
        let again = match place.resend {
            true => rustix::io::write(&fuse, &fuse::resend()).map(drop),
            false => Err(Errno::INVAL),
        };
        if let Err(problem) = again {
            error!("volume {}: the kernel does not hand out requests again: {problem}", state.name);
            return None;
        }
        let device = Self::new(place, state, fuse);
        device.resend.store(true, Ordering::Release);
        let (volume, fuse) = (Arc::clone(&device.volume), Arc::clone(&device.fuse));
        let (mark, read_only) = (device.state.mark(), device.state.read_only);
        let (resend, path) = (Arc::clone(&device.resend), device.path().to_owned());
        thread(move || {
            // What the predecessor had sent must be done before anything is sent again.
            if let Some(nbd) = nbd {
                drain(nbd);
            }
            volume.keep_up();
            info!("{} goes on", path.display());
            serve(&fuse, &volume, (&mark, read_only), &resend);
        });
        Some(device)
    }

    /// Has a loop device, also when somebody else on the machine has taken it away: its number may be another one's now.
    pub(crate) fn have_loop(&mut self, place: &Place) -> Result<()> {
        let mut present = loops::find(&self.state.mark());
        if self.state.path.as_ref().is_some_and(|path| present.contains(path)) {
            return Ok(());
        }
        let file = place.point(&self.state.key()).join(self.state.mark());
        let path = match present.pop() {
            Some(path) => path,
            None => loops::make(&file, self.state.read_only)?,
        };
        warn!("{} is not volume {} any more, {} is", self.path().display(), self.state.name, path.display());
        self.state.path = Some(path);
        place.save(&self.state)
    }

    fn path(&self) -> &Path {
        self.state.path.as_deref().unwrap_or(Path::new("nothing"))
    }

    /// Whether the kernel keeps requests for the next worker.
    pub(crate) fn survives(&self) -> bool {
        self.resend.load(Ordering::Acquire)
    }

    /// Whether its attachment is over, so that its users get errors.
    pub(crate) fn has_ended(&self) -> bool {
        self.volume.has_ended()
    }

    /// The volume has another size.
    pub(crate) fn resize(&mut self, place: &Place, size: u64) -> Result<()> {
        self.volume.set_size(size);
        self.state.size = size;
        place.save(&self.state)?;
        follow_size(place, &self.state)
    }

    /// Everything that was written through the kernel's cache is with the volume, if nobody has the device for himself, as a
    /// mounted file system has.
    fn settle(&self) -> Result<(), Failure> {
        let Some(path) = loops::find(&self.state.mark()).pop() else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::BUSY) => Err(Failure::InUse(format!("{} is in use", path.display()))),
            Ok(device) if !self.has_ended() && !self.state.read_only => {
                Ok(rustix::fs::fsync(device).with_context(|| format!("cannot flush {}", path.display()))?)
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Takes the device away. By force: whoever uses it gets errors.
    pub(crate) fn unmake(&mut self, place: &Place, force: bool) -> Result<(), Failure> {
        match force {
            true => self.volume.close(),
            false => self.settle()?,
        }
        remove(place, &self.state, force)?;
        self.volume.close();
        Ok(release(place, &self.state)?)
    }
}

/// Removes what can be seen of a device: the loop device, the mount, the state file. By force the kernel ends what nobody will
/// answer.
pub(crate) fn remove(place: &Place, state: &State, force: bool) -> Result<()> {
    let key = state.key();
    ensure!(state.node == place.node, "the device of volume {} is of node {}", state.name, state.node);
    loops::find(&state.mark()).iter().try_for_each(|device| loops::remove(device))?;
    let point = place.point(&key);
    let flags = if force { UnmountFlags::DETACH | UnmountFlags::FORCE } else { UnmountFlags::DETACH };
    match rustix::mount::unmount(&point, flags) {
        // It is not mounted, or was never made.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(problem) => return Err(problem).with_context(|| format!("cannot unmount {}", point.display())),
    }
    let _ = std::fs::remove_dir(&point);
    place.forget(&key);
    Ok(())
}

/// Has the holder forget a device. With its last descriptor the kernel ends the FUSE connection: users get errors, and do not wait
/// for ever.
pub(crate) fn release(place: &Place, state: &State) -> Result<()> {
    place.holder.release(&fuse_name(state))?;
    place.holder.release(&nbd_name(state))
}
