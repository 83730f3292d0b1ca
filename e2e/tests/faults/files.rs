//! A mounted filesystem that is written while its volume is snapshotted, and what clones of it must contain.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use sheep_e2e::mounted::{Mounted, VolumeFile, check_ext4};
use sheep_e2e::oracle::Random;
use sheep_e2e::process::run;

/// Files that are replaced one after the other, for ever.
const FILES: u64 = 40;
const LARGEST: u64 = 100_000;

/// Versions of the files: the last that is on stable storage, and the last that was begun.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    stable: u64,
    begun: u64,
}

/// What a clone may contain: at least what was stable before the snapshot, at most what was begun behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    stable: u64,
    begun: u64,
}

/// A filesystem on a volume, and a thread that writes files into it.
pub(crate) struct Files {
    mounted: Option<Mounted>,
    progress: Arc<Mutex<Progress>>,
    end: Arc<AtomicBool>,
    writer: Option<JoinHandle<Result<()>>>,
}

impl Files {
    /// Makes a filesystem on the volume that `uri` names, mounts it in `dir`, and begins to write.
    pub(crate) fn new(uri: &str, dir: &Path) -> Result<Files> {
        let file = VolumeFile::new(uri, &dir.join("files-volume"))?;
        run("mkfs.ext4", ["-q", "-F", &file.path().display().to_string()])?;
        let mounted = Mounted::new(file, &dir.join("files"))?;
        let (progress, end) = (Arc::new(Mutex::new(Progress::default())), Arc::new(AtomicBool::new(false)));
        let (path, seen, ended) = (mounted.path().to_owned(), Arc::clone(&progress), Arc::clone(&end));
        let writer = std::thread::spawn(move || write_files(&path, &seen, &ended));
        Ok(Files { mounted: Some(mounted), progress, end, writer: Some(writer) })
    }

    /// What `snapshot` makes contains at least, and at most, what is in the span.
    pub(crate) fn during(&self, snapshot: impl FnOnce() -> Result<()>) -> Result<Span> {
        let stable = lock(&self.progress).stable;
        snapshot()?;
        Ok(Span { stable, begun: lock(&self.progress).begun })
    }

    /// How many files were written.
    pub(crate) fn written(&self) -> u64 {
        lock(&self.progress).stable
    }

    /// Ends the writer, which must not have failed, and unmounts.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.end.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.take() {
            let result = writer.join().map_err(|_| anyhow::anyhow!("the writer of files panicked"));
            result?.context("writing files")?;
        }
        self.mounted.take().map_or(Ok(()), Mounted::end)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn lock(progress: &Mutex<Progress>) -> std::sync::MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path_of(dir: &Path, version: u64) -> PathBuf {
    dir.join(format!("file-{}", version % FILES))
}

/// The contents of a version: its number, and what follows from it.
fn contents(version: u64) -> Vec<u8> {
    let mut random = Random::new(version);
    let words = 1 + random.below(LARGEST / 8);
    let body = (1..words).flat_map(|_| random.below(u64::MAX).to_le_bytes());
    version.to_le_bytes().into_iter().chain(body).collect()
}

/// Each version replaces a file as programs do that mean not to lose it: written beside it, synced, renamed, synced.
fn write_files(dir: &Path, progress: &Mutex<Progress>, end: &AtomicBool) -> Result<()> {
    for version in 1.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        lock(progress).begun = version;
        let new = dir.join("new");
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&contents(version))?;
        file.sync_all()?;
        std::fs::rename(&new, path_of(dir, version))?;
        std::fs::File::open(dir)?.sync_all()?;
        lock(progress).stable = version;
    }
    Ok(())
}

/// A clone's filesystem passes its check, and every file in it is one that may be there.
pub(crate) fn check(uri: &str, dir: &Path, span: Span) -> Result<()> {
    let file = VolumeFile::new(uri, &dir.join("clone-volume"))?;
    check_ext4(&file.path())?;
    let mounted = Mounted::new(file, &dir.join("clone"))?;
    let newest = (0..FILES)
        .map(|number| check_file(&mounted.path().join(format!("file-{number}")), number, span))
        .collect::<Result<Vec<_>>>()?;
    let newest = newest.into_iter().max().unwrap_or(0);
    ensure!(newest >= span.stable, "the newest file is version {newest}, of {span:?}");
    // A clone is a volume like any other.
    std::fs::write(mounted.path().join("mark"), "seen")?;
    mounted.end()
}

/// The version of a file, which must be whole; 0 if it is not there and need not be.
fn check_file(path: &Path, number: u64, span: Span) -> Result<u64> {
    // The last version of this file that was stable.
    let least =
        (0..FILES).map(|back| span.stable.saturating_sub(back)).find(|version| version % FILES == number);
    let least = least.unwrap_or(0);
    let found = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && least == 0 => return Ok(0),
        found => found.with_context(|| format!("{} of {span:?}", path.display()))?,
    };
    let version = found.first_chunk().map_or(0, |head| u64::from_le_bytes(*head));
    ensure!(
        version >= least && version <= span.begun && version % FILES == number,
        "{} is version {version}, of {span:?}",
        path.display()
    );
    ensure!(found == contents(version), "{}, version {version}, is damaged", path.display());
    Ok(version)
}
