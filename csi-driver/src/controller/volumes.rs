//! Volumes come, grow and go.

use super::{Controller, volume_key};
use crate::capability::Usage;
use crate::parameters::{self, VolumeParameters};
use crate::v1::volume_content_source::{SnapshotSource, Type as Content, VolumeSource};
use crate::v1::{self, VolumeContentSource};
use crate::{Capacity, Error, Handle, Kind, NewVolume, Source, Volume, names};

/// Longest name of a request, bytes: what CSI says.
pub(super) const NAME_MAX: usize = 128;

/// What a new volume comes from, the size that it has at least, and how far it is formatted.
#[derive(Default)]
struct Origin {
    source: Option<Source>,
    size: u64,
    format: Option<String>,
}

/// How a source stands in a volume's attributes.
fn source_text(source: Source) -> String {
    match source {
        Source::Snapshot(id) => format!("snapshot:{id}"),
        Source::Volume(id) => format!("volume:{id}"),
    }
}

/// The source that stands in a volume's attributes.
fn source_of(volume: &Volume, cluster: &str) -> Option<VolumeContentSource> {
    let (kind, id) = volume.attributes.get(names::SOURCE)?.split_once(':')?;
    let handle = Handle { cluster: cluster.to_owned(), id: id.parse().ok()? }.to_string();
    let content = match kind {
        "snapshot" => Content::Snapshot(SnapshotSource { snapshot_id: handle }),
        _ => Content::Volume(VolumeSource { volume_id: handle }),
    };
    Some(VolumeContentSource { r#type: Some(content) })
}

/// A volume as CSI says it.
pub(super) fn shown(volume: &Volume, cluster: &str) -> v1::Volume {
    v1::Volume {
        capacity_bytes: i64::try_from(volume.size).unwrap_or(i64::MAX),
        volume_id: Handle { cluster: cluster.to_owned(), id: volume.id }.to_string(),
        volume_context: parameters::context_of(&volume.attributes),
        content_source: source_of(volume, cluster),
        accessible_topology: Vec::new(),
    }
}

pub(super) fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::missing("name"));
    }
    if name.len() > NAME_MAX {
        return Err(Error::Invalid(format!("the name has more than {NAME_MAX} bytes")));
    }
    Ok(())
}

/// Whether a volume that has the name is what is asked for now.
fn compatible(volume: &Volume, new: &NewVolume, (least, most): (u64, Option<u64>)) -> Result<(), Error> {
    let what = |key: &str| (volume.attributes.get(key), new.attributes.get(key));
    let differs = |key: &str| what(key).0 != what(key).1;
    let problem = if differs(names::NAME) {
        "was not made for this name"
    } else if volume.size < least || most.is_some_and(|most| volume.size > most) {
        "has another size"
    } else if differs(names::SOURCE) {
        "has another source"
    } else if differs(names::PARAMETERS) {
        "was made with other parameters"
    } else {
        return Ok(());
    };
    Err(Error::exists(format!("volume {} exists and {problem}", new.name)))
}

impl Controller {
    pub(super) async fn create(
        &self,
        request: v1::CreateVolumeRequest,
    ) -> Result<v1::CreateVolumeResponse, Error> {
        check_name(&request.name)?;
        let usages = Usage::parse_all(&request.volume_capabilities)?;
        if request.volume_content_source.is_none() && usages.iter().all(|usage| usage.read_only) {
            let message = "a volume that is only read needs contents from the beginning: the claim has to name a data source, or \
                           another access mode than ReadOnlyMany";
            return Err(Error::Invalid(message.into()));
        }
        if !request.mutable_parameters.is_empty() {
            return Err(Error::Invalid("mutable parameters are not supported".into()));
        }
        let parameters = VolumeParameters::parse(&request.parameters)?;
        let range = parameters::range(request.capacity_range)?;
        let capacity = self.backend.capacity().await?;
        let smallest = usages.iter().map(Usage::min_size).max().unwrap_or(0);
        let capacity = Capacity { min_volume: capacity.min_volume.max(smallest), ..capacity };
        let cluster = self.backend.cluster().await?;
        let name = names::in_cluster(&request.name);
        let _claim = self.busy.claim([format!("volume {name:?}")])?;
        let origin = self.origin(request.volume_content_source.as_ref(), &cluster).await;
        let mut attributes = parameters.attributes;
        attributes.insert(names::NAME.to_owned(), request.name);
        let mut new = NewVolume {
            name,
            size: 0,
            source: None,
            copies: parameters.copies,
            min_copies: parameters.min_copies,
            attributes,
        };
        let origin = match origin {
            Ok(origin) => origin,
            // What it was made from may be gone since the first call.
            Err(missing) => {
                return self
                    .made_before(&mut new, &request.volume_content_source, &cluster, range, missing)
                    .await;
            }
        };
        new.source = origin.source;
        if let Some(source) = origin.source {
            new.attributes.insert(names::SOURCE.to_owned(), source_text(source));
        }
        new.attributes.extend(origin.format.map(|mark| (names::FORMAT.to_owned(), mark)));
        new.size = parameters::size(range, origin.size, &capacity)?;
        let volume = match self.backend.create(new.clone()).await {
            Err(Error::Exists { id: Some(id), .. }) => {
                let volume = self.taken(id, &new).await?;
                compatible(&volume, &new, range)?;
                volume
            }
            made => made?,
        };
        Ok(v1::CreateVolumeResponse { volume: Some(shown(&volume, &cluster)) })
    }

    /// What has the name of a new volume.
    async fn taken(&self, id: u64, new: &NewVolume) -> Result<Volume, Error> {
        self.backend.volume(id).await.map_err(|error| match error {
            Error::NotFound(_) => Error::Busy(format!("what was called {} is gone meanwhile", new.name)),
            error => error,
        })
    }

    /// The source of a new volume.
    async fn origin(&self, content: Option<&VolumeContentSource>, cluster: &str) -> Result<Origin, Error> {
        match content.map(|content| &content.r#type) {
            None => Ok(Origin::default()),
            Some(None) => Err(Error::missing("kind of content source")),
            Some(Some(Content::Snapshot(from))) => {
                let id = Handle::parse(&from.snapshot_id, Kind::Snapshot, cluster)?;
                let snapshot = self.backend.snapshot(id).await?;
                let format = names::format_of_copy(&snapshot.attributes);
                Ok(Origin { source: Some(Source::Snapshot(id)), size: snapshot.size, format })
            }
            Some(Some(Content::Volume(from))) => {
                let id = Handle::parse(&from.volume_id, Kind::Volume, cluster)?;
                let volume = self.backend.volume(id).await?;
                let format = names::format_of_copy(&volume.attributes);
                Ok(Origin { source: Some(Source::Volume(id)), size: volume.size, format })
            }
        }
    }

    /// The source is gone: the volume may nevertheless have been made, by a call whose answer was lost.
    async fn made_before(
        &self,
        new: &mut NewVolume,
        content: &Option<VolumeContentSource>,
        cluster: &str,
        range: (u64, Option<u64>),
        missing: Error,
    ) -> Result<v1::CreateVolumeResponse, Error> {
        let source = match content.as_ref().and_then(|content| content.r#type.as_ref()) {
            Some(Content::Snapshot(from)) => {
                Handle::parse(&from.snapshot_id, Kind::Snapshot, cluster).map(Source::Snapshot)
            }
            Some(Content::Volume(from)) => {
                Handle::parse(&from.volume_id, Kind::Volume, cluster).map(Source::Volume)
            }
            None => return Err(missing),
        };
        let (Ok(source), Error::NotFound(_)) = (source, &missing) else { return Err(missing) };
        new.attributes.insert(names::SOURCE.to_owned(), source_text(source));
        let Some(volume) = self.backend.volume_by_name(&new.name).await? else { return Err(missing) };
        compatible(&volume, new, range)?;
        Ok(v1::CreateVolumeResponse { volume: Some(shown(&volume, cluster)) })
    }

    pub(super) async fn delete(
        &self,
        request: v1::DeleteVolumeRequest,
    ) -> Result<v1::DeleteVolumeResponse, Error> {
        let done = v1::DeleteVolumeResponse {};
        let id = match self.id(&request.volume_id, Kind::Volume).await {
            Ok((id, _)) => id,
            Err(Error::NotFound(_)) => return Ok(done),
            Err(error) => return Err(error),
        };
        let _claim = self.busy.claim([volume_key(id)])?;
        match self.backend.delete(id).await {
            Ok(()) | Err(Error::NotFound(_)) => Ok(done),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn expand(
        &self,
        request: v1::ControllerExpandVolumeRequest,
    ) -> Result<v1::ControllerExpandVolumeResponse, Error> {
        let (id, _) = self.id(&request.volume_id, Kind::Volume).await?;
        let range = request.capacity_range.ok_or_else(|| Error::missing("capacity range"))?;
        let range = parameters::range(Some(range))?;
        if request.volume_capability.is_some() {
            Usage::parse(request.volume_capability.as_ref())?;
        }
        let capacity = self.backend.capacity().await?;
        let _claim = self.busy.claim([volume_key(id)])?;
        let volume = self.backend.volume(id).await?;
        // A smaller size than now is had already.
        let size = parameters::size(range, volume.size, &capacity)?;
        let enough = volume.size >= range.0;
        let size = if enough { volume.size } else { self.backend.resize(id, size).await?.size };
        Ok(v1::ControllerExpandVolumeResponse {
            capacity_bytes: i64::try_from(size).unwrap_or(i64::MAX),
            // A device is told its size by its node, whatever is on it.
            node_expansion_required: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::volume_capability::access_mode::Mode;
    use crate::v1::volume_capability::{AccessMode, AccessType, MountVolume};
    use crate::v1::{CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, VolumeCapability};
    use crate::{Backend, Memory};
    use std::sync::Arc;

    const MIB: i64 = 1 << 20;

    fn wanted(name: &str, fs_type: &str, mode: Mode) -> CreateVolumeRequest {
        let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
        let access_type = Some(AccessType::Mount(mount));
        let access_mode = Some(AccessMode { mode: mode.into() });
        CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![VolumeCapability { access_type, access_mode }],
            ..Default::default()
        }
    }

    fn plain(name: &str) -> CreateVolumeRequest {
        wanted(name, "", Mode::SingleNodeWriter)
    }

    fn copy(name: &str, content: Content) -> CreateVolumeRequest {
        let source = VolumeContentSource { r#type: Some(content) };
        CreateVolumeRequest { volume_content_source: Some(source), ..plain(name) }
    }

    /// What is written while a volume is being formatted is the cluster's to tell.
    #[tokio::test]
    async fn a_copy_of_what_is_formatted_is_formatted_and_no_other_one() {
        let backend = Arc::new(Memory::new(&["n1"]));
        let controller = Controller::new(backend.clone());
        let cluster = backend.cluster().await.unwrap();
        let marks = [
            (None, None),
            (Some("formatting by attachment 7"), None),
            (Some("formatted"), Some("formatted")),
        ];
        for (at, (mark, expected)) in marks.into_iter().enumerate() {
            let made = controller.create(plain(&format!("disk-{at}"))).await.unwrap().volume.unwrap();
            let id = Handle::parse(&made.volume_id, Kind::Volume, &cluster).unwrap();
            backend.mark(id, names::FORMAT, None, mark).await.unwrap();
            let taken = CreateSnapshotRequest {
                source_volume_id: made.volume_id.clone(),
                name: format!("snapshot-{at}"),
                ..Default::default()
            };
            let taken = controller.take_snapshot(taken).await.unwrap().snapshot.unwrap();
            let sources = [
                Content::Volume(VolumeSource { volume_id: made.volume_id }),
                Content::Snapshot(SnapshotSource { snapshot_id: taken.snapshot_id }),
            ];
            for (kind, source) in sources.into_iter().enumerate() {
                let made = controller.create(copy(&format!("copy-{at}-{kind}"), source)).await.unwrap();
                let id = Handle::parse(&made.volume.unwrap().volume_id, Kind::Volume, &cluster).unwrap();
                let found = backend.volume(id).await.unwrap();
                assert_eq!(found.attributes.get(names::FORMAT).map(String::as_str), expected, "{mark:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_could_never_be_mounted_is_not_made() {
        let controller = Controller::new(Arc::new(Memory::new(&["n1"])));
        // Blank, and nobody may write to it.
        let reader = controller.create(wanted("reader", "", Mode::MultiNodeReaderOnly)).await;
        assert!(matches!(&reader, Err(Error::Invalid(text)) if text.contains("data source")), "{reader:?}");
        // Smaller than XFS can be.
        let xfs = |name: &str, limit_bytes| CreateVolumeRequest {
            capacity_range: Some(CapacityRange { required_bytes: 64 * MIB, limit_bytes }),
            ..wanted(name, "xfs", Mode::SingleNodeWriter)
        };
        for _ in 0..2 {
            let made = controller.create(xfs("xfs", 0)).await.unwrap().volume.unwrap();
            assert_eq!(made.capacity_bytes, 300 * MIB);
        }
        let limited = controller.create(xfs("limited", 128 * MIB)).await;
        assert!(matches!(limited, Err(Error::OutOfRange(_))), "{limited:?}");
    }
}
