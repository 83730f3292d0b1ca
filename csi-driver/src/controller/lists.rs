//! Lists, page by page, and what fits.
//!
//! A token is the id of the last item of the page before. Ids only grow, so what is deleted or made between two pages
//! neither hides nor repeats anything.

use super::{Controller, snapshots, volumes};
use crate::capability::Usage;
use crate::parameters::VolumeParameters;
use crate::v1;
use crate::v1::list_volumes_response::{Entry, VolumeStatus};
use crate::{Error, Handle, Kind, SnapshotQuery};

/// Most items of a page, and as many when the caller does not say.
const PAGE: u32 = 1000;

/// Where a page begins.
fn after(token: &str) -> Result<u64, Error> {
    if token.is_empty() {
        return Ok(0);
    }
    let id = token.strip_prefix("after-").and_then(|id| id.parse().ok());
    id.ok_or_else(|| Error::Busy(format!("{token:?} is no token of this list; begin again without one")))
}

fn token(last: Option<u64>, more: bool) -> String {
    last.filter(|_| more).map_or_else(String::new, |id| format!("after-{id}"))
}

fn most(max_entries: i32) -> Result<u32, Error> {
    let number = u32::try_from(max_entries);
    let number = number.map_err(|_| Error::Invalid("the number of entries is negative".into()))?;
    Ok(if number == 0 { PAGE } else { number.min(PAGE) })
}

impl Controller {
    pub(super) async fn volumes(
        &self,
        request: v1::ListVolumesRequest,
    ) -> Result<v1::ListVolumesResponse, Error> {
        let (from, limit) = (after(&request.starting_token)?, most(request.max_entries)?);
        let cluster = self.backend.cluster().await?;
        let page = self.backend.volumes(from, limit).await?;
        let entry = |volume: &crate::Volume| Entry {
            volume: Some(volumes::shown(volume, &cluster)),
            status: Some(VolumeStatus {
                published_node_ids: volume.attachments.iter().map(|a| a.node.clone()).collect(),
                volume_condition: None,
            }),
        };
        let entries = page.items.iter().map(entry).collect();
        Ok(v1::ListVolumesResponse {
            entries,
            next_token: token(page.items.last().map(|last| last.id), page.more),
        })
    }

    pub(super) async fn snapshots(
        &self,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse, Error> {
        let (from, limit) = (after(&request.starting_token)?, most(request.max_entries)?);
        let cluster = self.backend.cluster().await?;
        let none = Ok(v1::ListSnapshotsResponse::default());
        let entry = |snapshot: &crate::Snapshot| v1::list_snapshots_response::Entry {
            snapshot: Some(snapshots::shown(snapshot, &cluster)),
        };
        let source = match request.source_volume_id.as_str() {
            "" => None,
            handle => match Handle::parse(handle, Kind::Volume, &cluster) {
                Ok(id) => Some(id),
                Err(_) => return none,
            },
        };
        if !request.snapshot_id.is_empty() {
            let Ok(id) = Handle::parse(&request.snapshot_id, Kind::Snapshot, &cluster) else { return none };
            return match self.backend.snapshot(id).await {
                Ok(one) if source.is_none_or(|source| source == one.source) => {
                    Ok(v1::ListSnapshotsResponse { entries: vec![entry(&one)], next_token: String::new() })
                }
                Ok(_) | Err(Error::NotFound(_)) => none,
                Err(error) => Err(error),
            };
        }
        let query = SnapshotQuery { source, tag: None };
        let page = self.backend.snapshots(&query, from, limit).await?;
        let entries = page.items.iter().map(entry).collect();
        Ok(v1::ListSnapshotsResponse {
            entries,
            next_token: token(page.items.last().map(|last| last.id), page.more),
        })
    }

    pub(super) async fn capacity(
        &self,
        request: v1::GetCapacityRequest,
    ) -> Result<v1::GetCapacityResponse, Error> {
        let usable = request.volume_capabilities.iter().all(|one| Usage::parse(Some(one)).is_ok());
        let parameters = VolumeParameters::parse(&request.parameters)?;
        let capacity = self.backend.capacity().await?;
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        // It is said for the cluster's number of copies.
        let available = match (parameters.copies, capacity.copies) {
            (Some(copies), usual) => capacity.available / u64::from(copies.max(1)) * u64::from(usual.max(1)),
            (None, _) => capacity.available,
        };
        Ok(v1::GetCapacityResponse {
            available_capacity: if usable { signed(available) } else { 0 },
            maximum_volume_size: Some(signed(capacity.max_volume)),
            minimum_volume_size: Some(signed(capacity.min_volume)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backend, Memory, NewVolume};
    use std::sync::Arc;

    #[test]
    fn tokens_come_back_and_others_are_refused() {
        assert_eq!(after(""), Ok(0));
        assert_eq!(after(&token(Some(7), true)), Ok(7));
        assert_eq!(token(Some(7), false), "");
        for wrong in ["invalid-token", "7", "after-", "after--1"] {
            assert!(matches!(after(wrong), Err(Error::Busy(_))), "{wrong}");
        }
        assert!(most(-1).is_err());
        assert_eq!((most(0), most(3), most(i32::MAX)), (Ok(PAGE), Ok(3), Ok(PAGE)));
    }

    #[tokio::test]
    async fn a_list_without_a_limit_has_pages_too() {
        let backend = Arc::new(Memory::new(&["n1"]));
        for at in 0..=PAGE {
            let new = NewVolume {
                name: format!("disk-{at}"),
                size: 1 << 20,
                source: None,
                copies: None,
                min_copies: None,
                attributes: Default::default(),
            };
            backend.create(new).await.unwrap();
        }
        let controller = Controller::new(backend);
        let mut request = v1::ListVolumesRequest::default();
        for (entries, last) in [(PAGE, false), (1, true)] {
            let page = controller.volumes(request).await.unwrap();
            assert_eq!((page.entries.len(), page.next_token.is_empty()), (entries as usize, last));
            request = v1::ListVolumesRequest { max_entries: 0, starting_token: page.next_token };
        }
    }
}
