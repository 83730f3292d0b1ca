//! A cluster in memory, for tests of what stands on [`Backend`]. It keeps the same contract as a real one; the suite in
//! `tests/contract` holds both to it.

use crate::{
    Attachment, Attributes, Backend, Capacity, Error, NewSnapshot, NewVolume, Page, Snapshot, SnapshotQuery,
    Source, Volume,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

const CLUSTER: &str = "00000000000000000000000000000c51";
const MIN_VOLUME: u64 = 1 << 20;
const MAX_VOLUME: u64 = 1 << 50;
const COPIES: u32 = 3;

#[derive(Debug, Default)]
struct Model {
    index: u64,
    volumes: BTreeMap<u64, Volume>,
    snapshots: BTreeMap<u64, Snapshot>,
    /// Volumes that were written to.
    written: BTreeSet<u64>,
    /// Why it does not serve now.
    trouble: Option<String>,
}

/// The cluster.
#[derive(Debug)]
pub struct Memory {
    nodes: Vec<String>,
    model: Mutex<Model>,
}

fn none(id: u64) -> Error {
    Error::NotFound(format!("there is nothing with id {id}"))
}

impl Model {
    fn next(&mut self) -> u64 {
        self.index += 1;
        self.index
    }

    fn volume(&mut self, id: u64) -> Result<&mut Volume, Error> {
        self.volumes.get_mut(&id).ok_or_else(|| none(id))
    }

    /// The volume's size, and whether it was written to.
    fn source(&self, source: Source) -> Result<(u64, bool), Error> {
        match source {
            Source::Snapshot(id) => {
                let size = self.snapshots.get(&id).ok_or_else(|| none(id))?.size;
                Ok((size, self.written.contains(&id)))
            }
            Source::Volume(id) => {
                let size = self.volumes.get(&id).ok_or_else(|| none(id))?.size;
                Ok((size, self.written.contains(&id)))
            }
        }
    }
}

fn page<T: Clone>(all: impl Iterator<Item = T>, limit: u32) -> Page<T> {
    let mut all = all.peekable();
    let limit = if limit == 0 { usize::MAX } else { limit as usize };
    let items = all.by_ref().take(limit).collect();
    Page { items, more: all.peek().is_some() }
}

fn check_size(size: u64) -> Result<(), Error> {
    let fits = (MIN_VOLUME..=MAX_VOLUME).contains(&size) && size.is_multiple_of(512);
    if fits { Ok(()) } else { Err(Error::OutOfRange(format!("no volume has {size} bytes"))) }
}

impl Memory {
    /// An empty cluster with these nodes, of which the first one is asked.
    pub fn new(nodes: &[&str]) -> Self {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        Self { nodes, model: Mutex::default() }
    }

    /// Somebody writes to a volume.
    pub fn write(&self, id: u64) {
        self.model().written.insert(id);
    }

    /// It does not serve, for this reason, or does again.
    pub fn set_trouble(&self, trouble: Option<&str>) {
        self.model().trouble = trouble.map(str::to_owned);
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serving(&self) -> Result<MutexGuard<'_, Model>, Error> {
        let model = self.model();
        match &model.trouble {
            Some(trouble) => Err(Error::Unavailable(trouble.clone())),
            None => Ok(model),
        }
    }
}

#[tonic::async_trait]
impl Backend for Memory {
    async fn cluster(&self) -> Result<String, Error> {
        self.serving().map(|_| CLUSTER.to_owned())
    }

    async fn serves(&self) -> Result<(), Error> {
        self.serving().map(drop)
    }

    async fn node(&self) -> Result<String, Error> {
        self.nodes.first().cloned().ok_or_else(|| Error::Unavailable("there is no node".into()))
    }

    async fn create(&self, new: NewVolume) -> Result<Volume, Error> {
        let mut model = self.serving()?;
        if let Some(taken) = model.volumes.values().find(|volume| volume.name == new.name) {
            let message = format!("a volume {} exists", new.name);
            return Err(Error::Exists { message, id: Some(taken.id) });
        }
        check_size(new.size)?;
        let (least, written) = new.source.map_or(Ok((0, false)), |source| model.source(source))?;
        if new.size < least {
            return Err(Error::OutOfRange(format!("a clone has at least {least} bytes")));
        }
        let id = model.next();
        if written {
            model.written.insert(id);
        }
        let NewVolume { name, size, source, attributes, .. } = new;
        let volume = Volume { id, name, size, cloned: source.is_some(), attributes, attachments: Vec::new() };
        model.volumes.insert(id, volume.clone());
        Ok(volume)
    }

    async fn volume(&self, id: u64) -> Result<Volume, Error> {
        self.serving()?.volume(id).cloned()
    }

    async fn volume_by_name(&self, name: &str) -> Result<Option<Volume>, Error> {
        Ok(self.serving()?.volumes.values().find(|volume| volume.name == name).cloned())
    }

    async fn volumes(&self, after: u64, limit: u32) -> Result<Page<Volume>, Error> {
        Ok(page(self.serving()?.volumes.range(after + 1..).map(|(_, volume)| volume.clone()), limit))
    }

    async fn delete(&self, id: u64) -> Result<(), Error> {
        let mut model = self.serving()?;
        let volume = model.volume(id)?;
        if let Some(attachment) = volume.attachments.first() {
            let message = format!("volume {} is attached to node {}", volume.name, attachment.node);
            return Err(Error::Precondition(message));
        }
        model.volumes.remove(&id);
        model.written.remove(&id);
        Ok(())
    }

    async fn resize(&self, id: u64, size: u64) -> Result<Volume, Error> {
        let mut model = self.serving()?;
        check_size(size)?;
        let volume = model.volume(id)?;
        if size < volume.size {
            return Err(Error::Precondition(format!("volume {} has {} bytes", volume.name, volume.size)));
        }
        volume.size = size;
        Ok(volume.clone())
    }

    async fn take_snapshot(&self, new: NewSnapshot) -> Result<Snapshot, Error> {
        let mut model = self.serving()?;
        let size = model.volume(new.volume)?.size;
        let same = |taken: &&Snapshot| taken.source == new.volume && taken.tag == new.tag;
        if let Some(taken) = model.snapshots.values().find(same) {
            return Err(Error::Exists {
                message: format!("a snapshot {} exists", new.tag),
                id: Some(taken.id),
            });
        }
        let id = model.next();
        if model.written.contains(&new.volume) {
            model.written.insert(id);
        }
        let NewSnapshot { volume: source, tag, attributes } = new;
        let created_unix_ms = 1_700_000_000_000 + id;
        let snapshot = Snapshot { id, tag, source, size, created_unix_ms, attributes };
        model.snapshots.insert(id, snapshot.clone());
        Ok(snapshot)
    }

    async fn snapshot(&self, id: u64) -> Result<Snapshot, Error> {
        self.serving()?.snapshots.get(&id).cloned().ok_or_else(|| none(id))
    }

    async fn snapshots(
        &self,
        query: &SnapshotQuery,
        after: u64,
        limit: u32,
    ) -> Result<Page<Snapshot>, Error> {
        let model = self.serving()?;
        let wanted = |snapshot: &&Snapshot| {
            query.source.is_none_or(|source| source == snapshot.source)
                && query.tag.as_ref().is_none_or(|tag| *tag == snapshot.tag)
        };
        let rest = model.snapshots.range(after + 1..).map(|(_, snapshot)| snapshot);
        Ok(page(rest.filter(wanted).cloned(), limit))
    }

    async fn delete_snapshot(&self, id: u64) -> Result<(), Error> {
        let mut model = self.serving()?;
        model.written.remove(&id);
        model.snapshots.remove(&id).map(drop).ok_or_else(|| none(id))
    }

    async fn attach(&self, id: u64, node: &str, read_only: bool) -> Result<Attachment, Error> {
        let mut model = self.serving()?;
        let volume = model.volume(id)?;
        if !self.nodes.iter().any(|known| known == node) {
            return Err(Error::NotFound(format!("there is no node {node}")));
        }
        let own = volume.attachments.iter().find(|attachment| attachment.node == node);
        if let Some(own) = own.filter(|own| own.read_only == read_only) {
            return Ok(own.clone());
        }
        let all_read = read_only && volume.attachments.iter().all(|attachment| attachment.read_only);
        if let Some(first) = volume.attachments.first().filter(|_| own.is_some() || !all_read) {
            return Err(Error::Precondition(format!("attached to node {}", first.node)));
        }
        let index = model.next();
        let attachment = Attachment { node: node.to_owned(), index, read_only };
        model.volume(id)?.attachments.push(attachment.clone());
        Ok(attachment)
    }

    async fn detach(&self, id: u64, node: &str) -> Result<(), Error> {
        self.serving()?.volume(id)?.attachments.retain(|attachment| attachment.node != node);
        Ok(())
    }

    async fn mark(
        &self,
        id: u64,
        key: &str,
        expected: Option<&str>,
        value: Option<&str>,
    ) -> Result<(), Error> {
        let mut model = self.serving()?;
        let attributes: &mut Attributes = &mut model.volume(id)?.attributes;
        if attributes.get(key).map(String::as_str) != expected {
            return Err(Error::Busy("the attribute was changed meanwhile".into()));
        }
        match value {
            Some(value) => attributes.insert(key.to_owned(), value.to_owned()),
            None => attributes.remove(key),
        };
        Ok(())
    }

    async fn is_blank(&self, id: u64) -> Result<bool, Error> {
        let mut model = self.serving()?;
        model.volume(id)?;
        Ok(!model.written.contains(&id))
    }

    async fn capacity(&self) -> Result<Capacity, Error> {
        drop(self.serving()?);
        Ok(Capacity { available: 1 << 40, copies: COPIES, min_volume: MIN_VOLUME, max_volume: MAX_VOLUME })
    }
}
