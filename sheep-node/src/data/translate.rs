//! Between what an NBD client asks and what a volume does.

use sheep_datapath::{Difference, VolumeError, VolumeOp, VolumeReply};
use sheep_frontend::{ChangeExtent, ErrorKind, Extent, Op, Reply};

/// What a volume is to do; `None`: nothing.
pub(super) fn operation(op: Op) -> Option<VolumeOp> {
    Some(match op {
        Op::Read { offset, len } => VolumeOp::Read { offset, len },
        Op::Write { offset, data, fua } => VolumeOp::Write { offset, data, fua },
        Op::Flush => VolumeOp::Flush,
        Op::Trim { offset, len, fua } => VolumeOp::Discard { offset, len, fua },
        Op::WriteZeroes { offset, len, fua, no_hole, fast_zero } => {
            VolumeOp::WriteZeroes { offset, len, fua, no_hole, fast_zero }
        }
        Op::BlockStatus { offset, len, req_one } => VolumeOp::BlockStatus { offset, len, req_one },
        Op::Cache { .. } | Op::ChangedSince { .. } => return None,
    })
}

/// What the client is told.
pub(super) fn reply(result: Result<VolumeReply, VolumeError>) -> Reply {
    match result {
        Ok(VolumeReply::Done) => Reply::Done,
        Ok(VolumeReply::Read(extents)) => Reply::Read(
            extents
                .into_iter()
                .map(|extent| match extent {
                    sheep_datapath::ReadExtent::Data(data) => Extent::Data(data),
                    sheep_datapath::ReadExtent::Hole(len) => Extent::Hole(len),
                })
                .collect(),
        ),
        Ok(VolumeReply::BlockStatus(extents)) => Reply::BlockStatus(
            extents
                .into_iter()
                .map(|e| sheep_frontend::BlockExtent { len: e.len, hole: e.hole, zero: e.zero })
                .collect(),
        ),
        Ok(VolumeReply::Diff(extents)) => Reply::Changes(
            extents
                .into_iter()
                .map(|extent| ChangeExtent {
                    len: extent.len,
                    changed: extent.difference != Difference::Same,
                    zero: extent.difference == Difference::Zero,
                })
                .collect(),
        ),
        // No client can ask for that.
        Ok(VolumeReply::Checked(_) | VolumeReply::Ordered(_)) => Reply::Done,
        Err(error) => Reply::Error(match error {
            VolumeError::NotPermitted | VolumeError::NotLost | VolumeError::MayComeBack => {
                ErrorKind::NotPermitted
            }
            VolumeError::Io => ErrorKind::Io,
            VolumeError::Invalid | VolumeError::NotRelated => ErrorKind::Invalid,
            VolumeError::NoSpace => ErrorKind::NoSpace,
            VolumeError::NotSupported => ErrorKind::NotSupported,
            VolumeError::ShuttingDown | VolumeError::Lost => ErrorKind::ShuttingDown,
        }),
    }
}
