//! What went wrong, as gRPC codes. All codes are chosen here.

use crate::handle::{OrderError, VolumeAccessError};
use crate::inbox::SendError;
use sheep_api::{ASK_NODE, EXISTING_VDI};
use sheep_log::ProposeError;
use sheep_state::{Refusal, VdiRecord};
use sheep_types::NodeId;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Code of a refusal by the state machine.
fn refusal_code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Unknown => Code::Unimplemented,
        Refusal::NoSuchNode(_) | Refusal::NoSuchVdi | Refusal::NoSuchReport => Code::NotFound,
        Refusal::NameTaken { .. } => Code::AlreadyExists,
        // Somebody was faster: look again and repeat.
        Refusal::StaleView | Refusal::StaleGuard => Code::Aborted,
        Refusal::NodeNotUp(_) => Code::Unavailable,
        Refusal::Limit { .. } => Code::ResourceExhausted,
        Refusal::BadNode(_)
        | Refusal::BadSetting { .. }
        | Refusal::BadName
        | Refusal::BadSize { .. }
        | Refusal::BadCopies
        | Refusal::BadAttribute
        | Refusal::BadGroup
        | Refusal::NotASnapshot
        | Refusal::NotItsSnapshot
        | Refusal::BadMapIndex(_) => Code::InvalidArgument,
        Refusal::OldIncarnation { .. }
        | Refusal::Removed(_)
        | Refusal::NotStorage(_)
        | Refusal::RoleChanged(_)
        | Refusal::NotDrained(_)
        | Refusal::LastNode
        | Refusal::CopiesAway(_)
        | Refusal::WholeZone(_)
        | Refusal::TooManyOut { .. }
        | Refusal::NotWritable(_)
        | Refusal::WouldShrink { .. }
        | Refusal::Locked { .. }
        | Refusal::InUseByReaders(_)
        | Refusal::NotClean
        | Refusal::Attached(_)
        | Refusal::NotAttached
        | Refusal::Paused
        | Refusal::IsSnapshot => Code::FailedPrecondition,
    }
}

/// A refusal for the caller.
pub(super) fn refused(refusal: &Refusal) -> Status {
    Status::new(refusal_code(refusal), refusal.to_string())
}

/// A command that has no result, for the caller.
pub(super) fn not_ordered(error: &OrderError) -> Status {
    let code = match error {
        OrderError::Refused(refusal) => refusal_code(refusal),
        OrderError::Timeout(_) => Code::DeadlineExceeded,
        OrderError::NotSent(SendError::Full) => Code::ResourceExhausted,
        OrderError::NotSent(SendError::Stopping) | OrderError::Stopping => Code::Unavailable,
        OrderError::NotTaken(ProposeError::NotPrimary) => Code::Unavailable,
        OrderError::NotTaken(ProposeError::TooLarge { .. }) => Code::InvalidArgument,
        OrderError::NotTaken(_) => Code::ResourceExhausted,
        OrderError::AnswerLost => Code::Aborted,
    };
    Status::new(code, error.to_string())
}

/// A volume that could not be opened, read or written.
pub(super) fn no_access(error: &VolumeAccessError) -> Status {
    let code = match error {
        VolumeAccessError::Open(_) | VolumeAccessError::NotRelated => Code::FailedPrecondition,
        VolumeAccessError::Io(_) => Code::Internal,
        VolumeAccessError::Stopping => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}

/// Names the node that can answer.
pub(super) fn ask(node: NodeId, message: String) -> Status {
    let mut status = Status::failed_precondition(message);
    if let Ok(value) = MetadataValue::try_from(node.to_string()) {
        status.metadata_mut().insert(ASK_NODE, value);
    }
    status
}

/// Names the VDI that has the name.
pub(super) fn exists(record: &VdiRecord) -> Status {
    let kind = if record.is_snapshot() { "snapshot" } else { "volume" };
    let mut status = Status::already_exists(format!("a {kind} {} exists", record.name));
    status.metadata_mut().insert(EXISTING_VDI, MetadataValue::from(record.id.0));
    status
}
