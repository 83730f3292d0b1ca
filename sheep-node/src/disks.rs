//! The disks of a node: where its stores are, and which store is where.
//!
//! `DIR/disks` lists them, so that a disk is known although it cannot be opened, and one that was plugged into the
//! running node is there after its next start. A disk that the list does not have must be empty: with the epochs that
//! it missed since it was given up, what it has is worth nothing.

use crate::config::{Config, MIN_CAPACITY};
use crate::identity::{NodeDir, random, read_small, write_durably};
use anyhow::{Context, Result, bail, ensure};
use sheep_state::{DiskRecord, DiskState};
use sheep_store::{FileId, StoreError, StoreIdentity};
use sheep_types::{Incarnation, NodeId};
use std::fs::File;
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::{error, warn};

/// Bytes kept free on the filesystem under a store without a limit of its own, as a fraction of what there is for it.
const RESERVED_FRACTION: u64 = 20;
/// Bytes of a superblock's copy.
const BLOCK: usize = 4096;

/// A disk, and what is to be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskSpec {
    /// Directory or raw block device.
    pub(crate) path: PathBuf,
    /// Number of its store.
    pub(crate) id: u64,
    /// The store is still to be made.
    pub(crate) fresh: bool,
    /// Share of the node's objects.
    pub(crate) weight: u32,
    /// Bytes that it may take.
    pub(crate) capacity: u64,
}

/// The list of disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DiskList {
    file: PathBuf,
    disks: Vec<Listed>,
    /// Places that are configured, and were unplugged.
    gone: Vec<PathBuf>,
    found: bool,
}

/// The list as the threads of the process share it.
#[derive(Debug, Default)]
pub(crate) struct DiskControl {
    /// The list.
    pub(crate) list: Mutex<DiskList>,
    /// Most bytes to store on each disk.
    pub(crate) limit: Option<u64>,
}

impl DiskControl {
    /// The list, to be looked at or changed.
    pub(crate) fn list(&self) -> MutexGuard<'_, DiskList> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    /// Its store was made: a disk without one has lost it.
    made: bool,
    id: u64,
    weight: u32,
    path: PathBuf,
}

impl DiskList {
    /// Reads the list; an empty one if there is none yet.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let empty = Self { file: file.to_owned(), ..Self::default() };
        match read_small(file) {
            Ok(text) => empty.parse(&text).with_context(|| format!("{} is damaged", file.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(empty),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn parse(mut self, text: &str) -> Result<Self> {
        for line in text.lines() {
            let (kind, rest) = line.split_once(' ').context("a line is too short")?;
            let mut words = rest.splitn(3, ' ');
            match kind {
                "disk" | "new" => {
                    let mut word = || words.next().context("a disk without its path");
                    let id = u64::from_str_radix(word()?, 16)?;
                    let (weight, path, made) = (word()?.parse()?, word()?.into(), kind == "disk");
                    self.disks.push(Listed { made, id, weight, path });
                }
                "gone" => self.gone.push(rest.into()),
                "sum" => {}
                _ => bail!("unknown line {line:?}"),
            }
        }
        ensure!(self.text() == text, "its checksum is wrong");
        self.found = true;
        Ok(self)
    }

    fn text(&self) -> String {
        let disk = |disk: &Listed| {
            let kind = if disk.made { "disk" } else { "new" };
            format!("{kind} {:016x} {} {}\n", disk.id, disk.weight, disk.path.display())
        };
        let mut text: String = self.disks.iter().map(disk).collect();
        text.extend(self.gone.iter().map(|path| format!("gone {}\n", path.display())));
        let sum = crc32c::crc32c(text.as_bytes());
        text + &format!("sum {sum:08x}\n")
    }

    fn save(&mut self) -> Result<()> {
        self.found = true;
        write_durably(&self.file, self.text().as_bytes(), 0o600)
    }

    /// Adds a disk, durably.
    ///
    /// # Errors
    /// It is there already, or the list cannot be written.
    pub(crate) fn add(&mut self, disk: &DiskSpec) -> Result<()> {
        let text = disk.path.to_str().filter(|path| !path.contains('\n'));
        ensure!(text.is_some(), "the path of a disk must be a line of text");
        self.disks.retain(|listed| listed.path != disk.path && listed.id != disk.id);
        self.gone.retain(|path| *path != disk.path);
        let (made, path) = (!disk.fresh, disk.path.clone());
        self.disks.push(Listed { made, id: disk.id, weight: disk.weight, path });
        self.save()
    }

    /// The stores on these disks work.
    ///
    /// # Errors
    /// The list cannot be written.
    pub(crate) fn made(&mut self, ids: &[u64]) -> Result<()> {
        let before = self.clone();
        for listed in self.disks.iter_mut().filter(|listed| ids.contains(&listed.id)) {
            listed.made = true;
        }
        if *self == before { Ok(()) } else { self.save() }
    }

    /// Takes a disk off the list, durably.
    ///
    /// # Errors
    /// The list cannot be written.
    pub(crate) fn remove(&mut self, id: u64) -> Result<()> {
        let gone = self.disks.iter().filter(|listed| listed.id == id).map(|listed| listed.path.clone());
        self.gone.extend(gone.collect::<Vec<_>>());
        self.disks.retain(|listed| listed.id != id);
        self.save()
    }

    /// The disk of this name: its path or its number in hexadecimal.
    pub(crate) fn named(&self, name: &str) -> Option<u64> {
        let by_path = self.disks.iter().find(|listed| listed.path == Path::new(name));
        by_path.map(|listed| listed.id).or_else(|| u64::from_str_radix(name, 16).ok())
    }

    /// Where a disk is.
    pub(crate) fn path_of(&self, id: u64) -> Option<&Path> {
        self.disks.iter().find(|listed| listed.id == id).map(|listed| listed.path.as_path())
    }

    fn at(&self, path: &Path) -> Option<&Listed> {
        self.disks.iter().find(|listed| listed.path == path)
    }

    /// Looks at a disk that is to be plugged in.
    ///
    /// # Errors
    /// It cannot be used, as a sentence.
    pub(crate) fn inspect(&self, path: &Path, node: NodeId, limit: Option<u64>) -> Result<DiskSpec> {
        ensure!(path.is_absolute(), "give the whole path of the disk, from / on");
        let meta = std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        ensure!(
            meta.is_dir() || meta.file_type().is_block_device(),
            "{} is neither a directory nor a block device",
            path.display()
        );
        let (known, capacity) = (self.at(path), capacity(path, limit)?);
        let (id, fresh) = match identity(path) {
            Ok(found) => {
                ensure!(found.node == node, "{} has objects of node {}", path.display(), found.node);
                ensure!(
                    known.is_some_and(|known| known.id == found.store),
                    "{} has objects of another time: it was given up, and others went on without it; remove what it \
                     has first",
                    path.display()
                );
                (found.store, false)
            }
            Err(StoreError::NotFormatted) => (new_id()?, true),
            Err(problem) => bail!("cannot use {}: {problem}", path.display()),
        };
        let weight = known.map_or_else(|| weight(capacity), |known| known.weight);
        Ok(DiskSpec { path: path.to_owned(), id, fresh, weight, capacity })
    }
}

fn new_id() -> Result<u64> {
    Ok(u64::from_le_bytes(random()?).max(1))
}

/// Weight by capacity.
fn weight(capacity: u64) -> u32 {
    u32::try_from((capacity >> 30).max(1)).unwrap_or(u32::MAX)
}

/// The file of the store on a disk.
pub(crate) fn blocks_of(path: &Path) -> PathBuf {
    let is_device = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    if is_device { path.to_owned() } else { path.join(FileId::BLOCKS.name()) }
}

/// Whose store is on a disk.
fn identity(path: &Path) -> Result<StoreIdentity, StoreError> {
    let file = match File::open(blocks_of(path)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(StoreError::NotFormatted),
        Err(_) => return Err(StoreError::Failed),
    };
    let copy = |offset| {
        let mut block = vec![0; BLOCK];
        // What is missing, or cannot be read, counts as damaged.
        file.read_exact_at(&mut block, offset).map(|()| block).unwrap_or_default()
    };
    match StoreIdentity::of(&copy(0), &copy(StoreIdentity::SECOND)) {
        // A store whose making was cut short.
        Err(StoreError::SuperblockCorrupt) if file.metadata().is_ok_and(|meta| meta.len() == 0) => {
            Err(StoreError::NotFormatted)
        }
        other => other,
    }
}

/// Bytes that a store may take: as configured, or what there is less a reserve.
fn capacity(path: &Path, limit: Option<u64>) -> Result<u64> {
    let blocks = blocks_of(path);
    if blocks == path {
        let size = File::open(path)?.seek(SeekFrom::End(0))?;
        return Ok(limit.map_or(size, |limit| limit.min(size)));
    }
    if let Some(limit) = limit {
        return Ok(limit);
    }
    let fs = rustix::fs::statvfs(path)?;
    let ours = std::fs::metadata(blocks).map_or(0, |meta| meta.blocks() * 512);
    let room = fs.f_bavail * fs.f_frsize + ours;
    Ok(room - room / RESERVED_FRACTION)
}

/// The disks that a node starts with, and their list: its own directory, the configured ones, and those that were
/// plugged in. One that cannot be used is in it all the same if it is known, and fails when it is opened.
///
/// # Errors
/// The list cannot be read or written, or the system gives no random numbers.
pub(crate) fn find(config: &Config, dir: &NodeDir) -> Result<(DiskList, Vec<DiskSpec>)> {
    let mut list = DiskList::read(&dir.disks())?;
    let own = dir.objects();
    let mut paths = vec![own.clone()];
    paths.extend(config.disks.iter().cloned());
    paths.extend(list.disks.iter().map(|listed| listed.path.clone()));
    paths.retain(|path| !list.gone.contains(path));
    let mut disks: Vec<DiskSpec> = Vec::new();
    for path in paths {
        if disks.iter().any(|disk| disk.path == path) {
            continue;
        }
        let disk = at_start(config, dir, &list, &path, path == own)?;
        disks.extend(disk.filter(|disk| disks.iter().all(|other| other.id != disk.id)));
    }
    let before = list.clone();
    for disk in &disks {
        if list.at(&disk.path).is_none_or(|known| known.id != disk.id || known.made == disk.fresh) {
            list.add(disk)?;
        }
    }
    if list != before {
        list.save()?;
    }
    ensure!(!disks.is_empty(), "this node has no disk that it can use: see the messages above");
    Ok((list, disks))
}

fn at_start(
    config: &Config,
    dir: &NodeDir,
    list: &DiskList,
    path: &Path,
    own: bool,
) -> Result<Option<DiskSpec>> {
    let known = list.at(path);
    let room = capacity(path, config.capacity).unwrap_or_default();
    let weight = known.map_or_else(|| weight(room), |known| known.weight);
    // Known disks are opened however little is left: what is there must be had.
    let new_store = || {
        ensure!(
            room >= MIN_CAPACITY,
            "{} has room for {} MiB only: a store needs {} MiB",
            path.display(),
            room >> 20,
            MIN_CAPACITY >> 20
        );
        new_id()
    };
    let spec = |id, fresh| DiskSpec { path: path.to_owned(), id, fresh, weight, capacity: room };
    Ok(match (identity(path), known) {
        (Ok(found), Some(known)) if found.store == known.id => Some(spec(found.store, false)),
        // Lists are younger than stores.
        (Ok(found), _) if !list.found => Some(spec(found.store, false)),
        (Ok(found), _) if found.node == dir.me.node => {
            error!(path = %path.display(), "this disk has objects of another time and is not used; remove what it has");
            known.map(|known| spec(known.id, false))
        }
        // Its directory in the node's own one is made when it is missing.
        (Err(StoreError::NotFormatted), Some(known)) if own && known.made => {
            warn!(path = %path.display(), "the objects of this node are gone; they are fetched from other nodes");
            Some(spec(new_store()?, true))
        }
        // Under another number: what was made under this one may have been removed since.
        (Err(StoreError::NotFormatted), known) if known.is_none_or(|known| !known.made) && path.exists() => {
            match new_store() {
                Err(problem) if !own => {
                    error!("this disk is not used: {problem}");
                    known.map(|known| spec(known.id, false))
                }
                made => Some(spec(made?, true)),
            }
        }
        (_, Some(known)) => Some(spec(known.id, false)),
        (Ok(found), None) => Some(spec(found.store, false)),
        (Err(problem), None) if own => {
            warn!(path = %path.display(), "{problem}");
            Some(spec(new_id()?, false))
        }
        (Err(problem), None) => {
            error!(path = %path.display(), "this disk cannot be used: {problem}");
            None
        }
    })
}

/// What the node announces.
pub(crate) fn records(disks: &[DiskSpec]) -> Vec<DiskRecord> {
    let record = |disk: &DiskSpec| DiskRecord {
        id: disk.id,
        incarnation: Incarnation(1),
        state: DiskState::Up,
        weight: disk.weight,
    };
    disks.iter().map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_it_was_written_or_not_at_all() {
        let dir = std::env::temp_dir().join(format!("sheep-disks-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("disks");
        let mut list = DiskList::read(&file).unwrap();
        assert!(!list.found);
        let disk = |name: &str, id| DiskSpec {
            path: PathBuf::from(name),
            id,
            fresh: true,
            weight: 7,
            capacity: 1 << 30,
        };
        for (name, id) in [("/a b", 1), ("/c", u64::MAX), ("/c", 5)] {
            list.add(&disk(name, id)).unwrap();
        }
        assert_eq!(DiskList::read(&file).unwrap(), list);
        assert_eq!(
            (list.named("/c"), list.named("1"), list.path_of(1)),
            (Some(5), Some(1), Some(Path::new("/a b")))
        );
        list.remove(1).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(DiskList::read(&file).unwrap().gone, [PathBuf::from("/a b")]);
        std::fs::write(&file, text.replace("/c", "/d")).unwrap();
        assert!(DiskList::read(&file).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
