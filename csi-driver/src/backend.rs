//! What the driver needs of a cluster.

use crate::Error;
use std::collections::BTreeMap;

/// Attributes of a volume or a snapshot.
pub type Attributes = BTreeMap<String, String>;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Never given again.
    pub id: u64,
    /// Its name in the cluster.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Whether it reads from the contents of another one what was not written since.
    pub cloned: bool,
    /// Attributes.
    pub attributes: Attributes,
    /// Nodes that it is given to.
    pub attachments: Vec<Attachment>,
}

/// A volume is given to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Id of the node.
    pub node: String,
    /// Its place in the order of everything; another one each time.
    pub index: u64,
    /// The node cannot write.
    pub read_only: bool,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Never given again.
    pub id: u64,
    /// The name that it was asked for by.
    pub tag: String,
    /// Volume that it was taken of; that may be deleted since.
    pub source: u64,
    /// Bytes.
    pub size: u64,
    /// When it was taken, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Attributes.
    pub attributes: Attributes,
}

/// What a new volume begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A snapshot.
    Snapshot(u64),
    /// Another volume as it is now.
    Volume(u64),
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Name, unique in the cluster.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What it begins with, if not zeros.
    pub source: Option<Source>,
    /// Copies of each object; `None` as the cluster, or the source, has it.
    pub copies: Option<u32>,
    /// Copies below which writes wait.
    pub min_copies: Option<u32>,
    /// Attributes.
    pub attributes: Attributes,
}

/// A snapshot to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// The volume.
    pub volume: u64,
    /// Name, unique among the volume's snapshots.
    pub tag: String,
    /// Attributes.
    pub attributes: Attributes,
}

/// Which snapshots are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotQuery {
    /// Only of this volume.
    pub source: Option<u64>,
    /// Only with this tag.
    pub tag: Option<String>,
}

/// Part of a list, in the order of ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What it has.
    pub items: Vec<T>,
    /// There is more behind the last one.
    pub more: bool,
}

/// What fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes that new volumes can still be filled with, at the cluster's number of copies.
    pub available: u64,
    /// That number.
    pub copies: u32,
    /// Smallest volume, bytes.
    pub min_volume: u64,
    /// Largest volume, bytes.
    pub max_volume: u64,
}

/// A cluster as the driver sees it. Every call may be repeated; where a name or an id is taken the error says so. A call is
/// carried out to its end or not at all when it is dropped.
#[tonic::async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The cluster's id.
    async fn cluster(&self) -> Result<String, Error>;

    /// Whether it serves now; the error says why not.
    async fn serves(&self) -> Result<(), Error>;

    /// The id of the node that is asked, which is the local one on a node.
    async fn node(&self) -> Result<String, Error>;

    /// Makes a volume. [`Error::Exists`] has the id of what has the name.
    async fn create(&self, new: NewVolume) -> Result<Volume, Error>;

    /// One volume. A snapshot is none.
    async fn volume(&self, id: u64) -> Result<Volume, Error>;

    /// The volume of this name, if there is one.
    async fn volume_by_name(&self, name: &str) -> Result<Option<Volume>, Error>;

    /// Volumes with ids above `after`, at most `limit` (0: as many as one likes to give).
    async fn volumes(&self, after: u64, limit: u32) -> Result<Page<Volume>, Error>;

    /// Deletes a volume that nobody uses. Its snapshots stay.
    async fn delete(&self, id: u64) -> Result<(), Error>;

    /// Gives a volume another size; never a smaller one.
    async fn resize(&self, id: u64, size: u64) -> Result<Volume, Error>;

    /// Takes a snapshot. [`Error::Exists`] has the id of what has the name.
    async fn take_snapshot(&self, new: NewSnapshot) -> Result<Snapshot, Error>;

    /// One snapshot. A volume is none.
    async fn snapshot(&self, id: u64) -> Result<Snapshot, Error>;

    /// Snapshots with ids above `after`, at most `limit` (0: as many as one likes to give).
    async fn snapshots(&self, query: &SnapshotQuery, after: u64, limit: u32)
    -> Result<Page<Snapshot>, Error>;

    /// Deletes a snapshot. Clones of it stay.
    async fn delete_snapshot(&self, id: u64) -> Result<(), Error>;

    /// Gives a volume to a node; again the same attachment. [`Error::NotFound`] if there is no such node.
    async fn attach(&self, id: u64, node: &str, read_only: bool) -> Result<Attachment, Error>;

    /// Takes a volume away from a node: whatever that node still writes is refused. Nothing to do if it is not attached.
    async fn detach(&self, id: u64, node: &str) -> Result<(), Error>;

    /// Sets an attribute that is as expected; [`Error::Busy`] if it is not.
    async fn mark(
        &self,
        id: u64,
        key: &str,
        expected: Option<&str>,
        value: Option<&str>,
    ) -> Result<(), Error>;

    /// Whether a volume reads as zeros everywhere because nothing was ever written to it, nor to what it is a copy of.
    async fn is_blank(&self, id: u64) -> Result<bool, Error>;

    /// What fits.
    async fn capacity(&self) -> Result<Capacity, Error>;
}
