//! A real cluster, by its control API.

mod convert;
mod link;

use crate::{
    Attachment, Backend, Capacity, Error, NewSnapshot, NewVolume, Page, Snapshot, SnapshotQuery, Source,
    Volume,
};
use convert::{Found, attachment, found, snapshot, volume};
use link::Link;
use sheep_api::v1;
use sheep_tls::Certificates;
use std::sync::{Arc, Mutex, PoisonError};

/// Tags of snapshots that are taken only to be cloned begin so.
const CLONE_TAG: &str = "csi-clone-";

/// The cluster that some nodes belong to.
#[derive(Debug)]
pub struct Cluster {
    link: Link,
    /// Its id, once it is known. It never changes: another cluster at the same addresses is another one.
    id: Mutex<Option<String>>,
}

impl Cluster {
    /// The cluster of the nodes at these addresses: `host:port`, or `unix:/path`. The first one that serves is asked.
    ///
    /// # Errors
    /// An address is none.
    pub fn new(addresses: &[String]) -> Result<Self, Error> {
        Self::with(addresses, None)
    }

    /// The same, of nodes that want to see a certificate.
    ///
    /// # Errors
    /// An address is none.
    pub fn with(addresses: &[String], certificates: Option<Arc<Certificates>>) -> Result<Self, Error> {
        Ok(Self { link: Link::new(addresses, certificates)?, id: Mutex::default() })
    }

    async fn info(&self) -> Result<v1::ClusterInfoReply, Error> {
        let ask = |node: link::Node| async move { node.cluster().info(v1::ClusterInfoRequest {}).await };
        let info = self.link.call(ask).await?;
        if info.cluster_id.is_empty() {
            return Err(Error::Unavailable("the node that is asked has no cluster yet".into()));
        }
        let mut known = self.id.lock().unwrap_or_else(PoisonError::into_inner);
        match known.as_ref() {
            Some(id) if *id != info.cluster_id => {
                let now = &info.cluster_id;
                return Err(Error::Precondition(format!("this is cluster {now} now, and was cluster {id}")));
            }
            Some(_) => {}
            None => *known = Some(info.cluster_id.clone()),
        }
        Ok(info)
    }

    /// What a list request finds.
    async fn list(&self, request: v1::ListVdisRequest) -> Result<v1::ListVdisReply, Error> {
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().list(request).await }
        };
        self.link.call(ask).await
    }

    async fn one(&self, id: u64) -> Result<Found, Error> {
        let request = v1::ListVdisRequest { id, ..Default::default() };
        let vdi = self.list(request).await?.vdis.into_iter().next();
        found(vdi.ok_or_else(|| Error::Internal("a list without what was asked for".into()))?)
    }

    async fn clone_of(&self, source: u64, new: &NewVolume) -> Result<Volume, Error> {
        let request = v1::CloneVdiRequest {
            source_id: source,
            name: new.name.clone(),
            size_bytes: new.size,
            copies: new.copies.unwrap_or(0),
            min_copies: new.min_copies.unwrap_or(0),
            attributes: new.attributes.clone().into_iter().collect(),
            ..Default::default()
        };
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().clone_vdi(request).await }
        };
        volume(self.link.call(ask).await?.vdi)
    }

    /// A clone of a volume, through a snapshot that is named after the clone: a call that is repeated, because the first one
    /// broke off, finds it and goes on from there.
    async fn clone_volume(&self, source: u64, new: &NewVolume) -> Result<Volume, Error> {
        if let Some(taken) = self.volume_by_name(&new.name).await? {
            self.tidy(&new.name).await?;
            let message = format!("a volume {} exists", new.name);
            return Err(Error::Exists { message, id: Some(taken.id) });
        }
        let tag = format!("{CLONE_TAG}{}", new.name);
        let wanted = NewSnapshot { volume: source, tag, attributes: Default::default() };
        let snapshot = match self.take_snapshot(wanted).await {
            Ok(taken) => taken.id,
            Err(Error::Exists { id: Some(id), .. }) if self.snapshot(id).await?.source == source => id,
            Err(error) => return Err(error),
        };
        let made = self.clone_of(snapshot, new).await;
        if let Err(error) = self.delete_snapshot(snapshot).await {
            tracing::warn!("snapshot {snapshot} was taken only to be cloned, and is left: {error}");
        }
        made
    }

    /// Deletes what a call that broke off has left of a clone of this name: the snapshot that it was to be made from.
    async fn tidy(&self, name: &str) -> Result<(), Error> {
        let query = SnapshotQuery { source: None, tag: Some(format!("{CLONE_TAG}{name}")) };
        for left in self.snapshots(&query, 0, 0).await?.items {
            match self.delete_snapshot(left.id).await {
                Ok(()) | Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn remove(&self, id: u64) -> Result<(), Error> {
        let request = v1::DeleteVdiRequest { id, ..Default::default() };
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().delete(request).await }
        };
        self.link.call(ask).await.map(drop)
    }
}

/// Ids of nodes are hexadecimal digits; what is none is the id of no node.
fn is_node(node: &str) -> bool {
    (1..=16).contains(&node.len()) && node.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[tonic::async_trait]
impl Backend for Cluster {
    async fn cluster(&self) -> Result<String, Error> {
        let known = self.id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(id) => Ok(id),
            None => Ok(self.info().await?.cluster_id),
        }
    }

    async fn serves(&self) -> Result<(), Error> {
        let info = self.info().await?;
        if info.primary { Ok(()) } else { Err(Error::Unavailable(info.message)) }
    }

    async fn node(&self) -> Result<String, Error> {
        let ask = |node: link::Node| async move { node.nodes().info(v1::NodeInfoRequest {}).await };
        let node = self.link.call(ask).await?.node.map(|node| node.id).filter(|id| !id.is_empty());
        node.ok_or_else(|| Error::Unavailable("the node that is asked does not know its id yet".into()))
    }

    async fn create(&self, new: NewVolume) -> Result<Volume, Error> {
        match new.source {
            Some(Source::Snapshot(id)) => {
                // An id of a volume would be cloned too, otherwise than is meant.
                self.snapshot(id).await?;
                return self.clone_of(id, &new).await;
            }
            Some(Source::Volume(id)) => return self.clone_volume(id, &new).await,
            None => {}
        }
        let request = v1::CreateVdiRequest {
            name: new.name.clone(),
            size_bytes: new.size,
            copies: new.copies.unwrap_or(0),
            min_copies: new.min_copies.unwrap_or(0),
            attributes: new.attributes.clone().into_iter().collect(),
            write_through: false,
        };
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().create(request).await }
        };
        volume(self.link.call(ask).await?.vdi)
    }

    async fn volume(&self, id: u64) -> Result<Volume, Error> {
        match self.one(id).await? {
            Found::Volume(volume) => Ok(volume),
            Found::Snapshot(_) => Err(Error::NotFound(format!("{id} is a snapshot and no volume"))),
        }
    }

    async fn volume_by_name(&self, name: &str) -> Result<Option<Volume>, Error> {
        let request = v1::ListVdisRequest { name: name.to_owned(), ..Default::default() };
        match self.list(request).await {
            Ok(reply) => volume(reply.vdis.into_iter().next()).map(Some),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn volumes(&self, after: u64, limit: u32) -> Result<Page<Volume>, Error> {
        let request = v1::ListVdisRequest { kind: "volume".into(), after, limit, ..Default::default() };
        let reply = self.list(request).await?;
        let items = reply.vdis.into_iter().map(|vdi| volume(Some(vdi)));
        Ok(Page { items: items.collect::<Result<_, _>>()?, more: reply.more })
    }

    async fn delete(&self, id: u64) -> Result<(), Error> {
        let volume = self.volume(id).await?;
        // Before its name is forgotten.
        self.tidy(&volume.name).await?;
        self.remove(id).await
    }

    async fn resize(&self, id: u64, size: u64) -> Result<Volume, Error> {
        self.volume(id).await?;
        let request = v1::ResizeVdiRequest { id, size_bytes: size, ..Default::default() };
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().resize(request).await }
        };
        volume(self.link.call(ask).await?.vdi)
    }

    async fn take_snapshot(&self, new: NewSnapshot) -> Result<Snapshot, Error> {
        let request = v1::SnapshotVdiRequest {
            id: new.volume,
            tag: new.tag.clone(),
            attributes: new.attributes.clone().into_iter().collect(),
            ..Default::default()
        };
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().snapshot(request).await }
        };
        snapshot(self.link.call(ask).await?.snapshot)
    }

    async fn snapshot(&self, id: u64) -> Result<Snapshot, Error> {
        match self.one(id).await? {
            Found::Snapshot(snapshot) => Ok(snapshot),
            Found::Volume(_) => Err(Error::NotFound(format!("{id} is a volume and no snapshot"))),
        }
    }

    async fn snapshots(
        &self,
        query: &SnapshotQuery,
        after: u64,
        limit: u32,
    ) -> Result<Page<Snapshot>, Error> {
        let request = v1::ListVdisRequest {
            kind: "snapshot".into(),
            source_id: query.source.unwrap_or(0),
            tag: query.tag.clone().unwrap_or_default(),
            after,
            limit,
            ..Default::default()
        };
        let reply = self.list(request).await?;
        let items = reply.vdis.into_iter().map(|vdi| snapshot(Some(vdi)));
        Ok(Page { items: items.collect::<Result<_, _>>()?, more: reply.more })
    }

    async fn delete_snapshot(&self, id: u64) -> Result<(), Error> {
        self.snapshot(id).await?;
        self.remove(id).await
    }

    async fn attach(&self, id: u64, node: &str, read_only: bool) -> Result<Attachment, Error> {
        self.volume(id).await?;
        if !is_node(node) {
            return Err(Error::NotFound(format!("there is no node {node}")));
        }
        let request = v1::AttachRequest { id, node: node.to_owned(), read_only, ..Default::default() };
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().attach(request).await }
        };
        let index = self.link.call(ask).await?.index;
        Ok(attachment(v1::Attachment { node: node.to_owned(), index, read_only }))
    }

    async fn detach(&self, id: u64, node: &str) -> Result<(), Error> {
        self.volume(id).await?;
        if !is_node(node) {
            return Ok(());
        }
        let request = v1::DetachRequest { id, node: node.to_owned(), ..Default::default() };
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().detach(request).await }
        };
        self.link.call(ask).await.map(drop)
    }

    async fn mark(
        &self,
        id: u64,
        key: &str,
        expected: Option<&str>,
        value: Option<&str>,
    ) -> Result<(), Error> {
        let one = |value: Option<&str>| {
            vec![v1::Attribute { key: key.to_owned(), value: value.map(str::to_owned) }]
        };
        let (expected, changes) = (one(expected), one(value));
        let request = v1::ChangeAttributesRequest { id, expected, changes, ..Default::default() };
        let ask = |node: link::Node| {
            let request = request.clone();
            async move { node.vdis().change_attributes(request).await }
        };
        self.link.call(ask).await.map(drop)
    }

    async fn is_blank(&self, id: u64) -> Result<bool, Error> {
        let ask = |node: link::Node| async move {
            let request = v1::AllocatedRequest { id, max_results: 1, ..Default::default() };
            let mut stream = node.vdis().allocated(request).await?.into_inner();
            while let Some(message) = stream.message().await? {
                if !message.ranges.is_empty() {
                    return Ok(tonic::Response::new(false));
                }
            }
            Ok(tonic::Response::new(true))
        };
        self.link.call(ask).await
    }

    async fn capacity(&self) -> Result<Capacity, Error> {
        let info = self.info().await?;
        let copies = info.settings.and_then(|settings| settings.copies).unwrap_or(1);
        // Fewer nodes than copies have as many copies as there are nodes.
        let copies = copies.min(info.storage_nodes).max(1);
        Ok(Capacity {
            available: info.capacity_bytes.saturating_sub(info.used_bytes) / u64::from(copies),
            copies,
            min_volume: info.min_volume_bytes,
            max_volume: info.max_volume_bytes,
        })
    }
}
