//! What the control API says, and what its errors mean here.

use crate::{Attachment, Error, Snapshot, Volume};
use sheep_api::{EXISTING_VDI, v1};
use tonic::{Code, Status};

/// What an id means.
pub(super) enum Found {
    Volume(Volume),
    Snapshot(Snapshot),
}

pub(super) fn attachment(attachment: v1::Attachment) -> Attachment {
    let v1::Attachment { node, index, read_only } = attachment;
    Attachment { node, index, read_only }
}

pub(super) fn found(vdi: v1::Vdi) -> Result<Found, Error> {
    match vdi.kind.as_str() {
        "volume" => Ok(Found::Volume(Volume {
            id: vdi.id,
            name: vdi.name,
            size: vdi.size_bytes,
            cloned: vdi.cloned,
            attributes: vdi.attributes.into_iter().collect(),
            attachments: vdi.attachments.into_iter().map(attachment).collect(),
        })),
        "snapshot" => Ok(Found::Snapshot(Snapshot {
            id: vdi.id,
            tag: vdi.tag,
            source: vdi.source_id,
            size: vdi.size_bytes,
            created_unix_ms: vdi.created_unix_ms,
            attributes: vdi.attributes.into_iter().collect(),
        })),
        other => {
            Err(Error::Internal(format!("VDI {} is of a kind that is not known here: {other:?}", vdi.name)))
        }
    }
}

pub(super) fn volume(vdi: Option<v1::Vdi>) -> Result<Volume, Error> {
    match vdi.map(found) {
        Some(Ok(Found::Volume(volume))) => Ok(volume),
        Some(Err(error)) => Err(error),
        _ => Err(Error::Internal("an answer without the volume".into())),
    }
}

pub(super) fn snapshot(vdi: Option<v1::Vdi>) -> Result<Snapshot, Error> {
    match vdi.map(found) {
        Some(Ok(Found::Snapshot(snapshot))) => Ok(snapshot),
        Some(Err(error)) => Err(error),
        _ => Err(Error::Internal("an answer without the snapshot".into())),
    }
}

/// An error of the control API.
pub(super) fn error(status: &Status) -> Error {
    let text = status.message().to_owned();
    match status.code() {
        Code::InvalidArgument => Error::Invalid(text),
        Code::OutOfRange => Error::OutOfRange(text),
        Code::NotFound => Error::NotFound(text),
        Code::AlreadyExists => {
            let id = status.metadata().get(EXISTING_VDI).and_then(|id| id.to_str().ok()?.parse().ok());
            Error::Exists { message: text, id }
        }
        Code::FailedPrecondition => Error::Precondition(text),
        Code::Aborted => Error::Busy(text),
        Code::ResourceExhausted => Error::Exhausted(text),
        // Unknown: the connection broke.
        Code::Unavailable | Code::Cancelled | Code::Unknown => {
            Error::Unavailable(format!("the cluster cannot be asked: {text}"))
        }
        Code::DeadlineExceeded => Error::Late(text),
        code => Error::Internal(format!("the cluster says {code:?}: {text}")),
    }
}
