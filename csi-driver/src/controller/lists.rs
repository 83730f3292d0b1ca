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

/// Items of a page when the caller does not say.
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

fn most(max_entries: i32) -> Result<Option<u32>, Error> {
    let number = u32::try_from(max_entries);
    let number = number.map_err(|_| Error::Invalid("the number of entries is negative".into()))?;
    Ok((number > 0).then_some(number))
}

impl Controller {
    pub(super) async fn volumes(
        &self,
        request: v1::ListVolumesRequest,
    ) -> Result<v1::ListVolumesResponse, Error> {
        let (mut from, limit) = (after(&request.starting_token)?, most(request.max_entries)?);
        let cluster = self.backend.cluster().await?;
        let (mut entries, mut more) = (Vec::new(), true);
        // Without a limit all of them are wanted at once.
        while more && limit.is_none_or(|limit| entries.len() < limit as usize) {
            let left = limit.map_or(PAGE, |limit| (limit - entries.len() as u32).min(PAGE));
            let page = self.backend.volumes(from, left).await?;
            from = page.items.last().map_or(from, |volume| volume.id);
            more = page.more && !page.items.is_empty();
            entries.extend(page.items.iter().map(|volume| Entry {
                volume: Some(volumes::shown(volume, &cluster)),
                status: Some(VolumeStatus {
                    published_node_ids: volume.attachments.iter().map(|a| a.node.clone()).collect(),
                    volume_condition: None,
                }),
            }));
        }
        Ok(v1::ListVolumesResponse { entries, next_token: token(Some(from), more) })
    }

    pub(super) async fn snapshots(
        &self,
        request: v1::ListSnapshotsRequest,
    ) -> Result<v1::ListSnapshotsResponse, Error> {
        let (mut from, limit) = (after(&request.starting_token)?, most(request.max_entries)?);
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
        let (mut entries, mut more) = (Vec::new(), true);
        while more && limit.is_none_or(|limit| entries.len() < limit as usize) {
            let left = limit.map_or(PAGE, |limit| (limit - entries.len() as u32).min(PAGE));
            let page = self.backend.snapshots(&query, from, left).await?;
            from = page.items.last().map_or(from, |snapshot| snapshot.id);
            more = page.more && !page.items.is_empty();
            entries.extend(page.items.iter().map(entry));
        }
        Ok(v1::ListSnapshotsResponse { entries, next_token: token(Some(from), more) })
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

    #[test]
    fn tokens_come_back_and_others_are_refused() {
        assert_eq!(after(""), Ok(0));
        assert_eq!(after(&token(Some(7), true)), Ok(7));
        assert_eq!(token(Some(7), false), "");
        for wrong in ["invalid-token", "7", "after-", "after--1"] {
            assert!(matches!(after(wrong), Err(Error::Busy(_))), "{wrong}");
        }
        assert!(most(-1).is_err());
        assert_eq!((most(0), most(3)), (Ok(None), Ok(Some(3))));
    }
}
