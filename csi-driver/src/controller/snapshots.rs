//! Snapshots are taken and deleted.

use super::volumes::check_name;
use super::{Controller, snapshot_key, volume_key};
use crate::v1;
use crate::{Error, Handle, Kind, NewSnapshot, Snapshot, SnapshotQuery, names, parameters};
use prost_types::Timestamp;

/// A snapshot as CSI says it.
pub(super) fn shown(snapshot: &Snapshot, cluster: &str) -> v1::Snapshot {
    let handle = |id| Handle { cluster: cluster.to_owned(), id }.to_string();
    let ms = i64::try_from(snapshot.created_unix_ms).unwrap_or(i64::MAX);
    v1::Snapshot {
        size_bytes: i64::try_from(snapshot.size).unwrap_or(i64::MAX),
        snapshot_id: handle(snapshot.id),
        source_volume_id: handle(snapshot.source),
        creation_time: Some(Timestamp {
            seconds: ms / 1000,
            nanos: i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
        }),
        ready_to_use: true,
        group_snapshot_id: String::new(),
    }
}

/// Whether it was taken for this name.
fn is_named(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.attributes.get(names::NAME).is_some_and(|of| of == name)
}

impl Controller {
    pub(super) async fn take_snapshot(
        &self,
        request: v1::CreateSnapshotRequest,
    ) -> Result<v1::CreateSnapshotResponse, Error> {
        check_name(&request.name)?;
        if request.source_volume_id.is_empty() {
            return Err(Error::missing("id of a source volume"));
        }
        let mut attributes = parameters::snapshot_attributes(&request.parameters)?;
        let (volume, cluster) = self.id(&request.source_volume_id, Kind::Volume).await?;
        let tag = names::in_cluster(&request.name);
        // Names are unique in the driver, tags only in a volume.
        let _claim = self.busy.claim([format!("snapshot {tag:?}"), volume_key(volume)])?;
        let query = SnapshotQuery { tag: Some(tag.clone()), source: None };
        let same = self.backend.snapshots(&query, 0, 0).await?.items;
        if let Some(taken) = same.into_iter().find(|taken| is_named(taken, &request.name)) {
            if taken.source != volume {
                let name = &request.name;
                return Err(Error::exists(format!("snapshot {name} exists and is of another volume")));
            }
            return Ok(v1::CreateSnapshotResponse { snapshot: Some(shown(&taken, &cluster)) });
        }
        let source = self.backend.volume(volume).await?;
        attributes.insert(names::NAME.to_owned(), request.name.clone());
        // Who restores it finds what is on it.
        if let Some(mark) = names::format_of_copy(&source.attributes) {
            attributes.insert(names::FORMAT.to_owned(), mark);
        }
        if let Some(line) = source.attributes.get(names::PARAMETERS) {
            attributes.insert(names::PARAMETERS.to_owned(), line.clone());
        }
        let snapshot = match self.backend.take_snapshot(NewSnapshot { volume, tag, attributes }).await {
            // By this very call, of which an answer was lost.
            Err(Error::Exists { id: Some(id), .. })
                if self.backend.snapshot(id).await.is_ok_and(|taken| is_named(&taken, &request.name)) =>
            {
                self.backend.snapshot(id).await?
            }
            Err(Error::Exists { .. }) => {
                let message = format!(
                    "volume {} has a snapshot of this name that was not made by this driver",
                    source.name
                );
                return Err(Error::exists(message));
            }
            taken => taken?,
        };
        Ok(v1::CreateSnapshotResponse { snapshot: Some(shown(&snapshot, &cluster)) })
    }

    pub(super) async fn drop_snapshot(
        &self,
        request: v1::DeleteSnapshotRequest,
    ) -> Result<v1::DeleteSnapshotResponse, Error> {
        let done = v1::DeleteSnapshotResponse {};
        let id = match self.id(&request.snapshot_id, Kind::Snapshot).await {
            Ok((id, _)) => id,
            Err(Error::NotFound(_)) => return Ok(done),
            Err(error) => return Err(error),
        };
        let _claim = self.busy.claim([snapshot_key(id)])?;
        match self.backend.delete_snapshot(id).await {
            Ok(()) | Err(Error::NotFound(_)) => Ok(done),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn one_snapshot(
        &self,
        request: v1::GetSnapshotRequest,
    ) -> Result<v1::GetSnapshotResponse, Error> {
        let (id, cluster) = self.id(&request.snapshot_id, Kind::Snapshot).await?;
        let snapshot = self.backend.snapshot(id).await?;
        Ok(v1::GetSnapshotResponse { snapshot: Some(shown(&snapshot, &cluster)) })
    }
}
