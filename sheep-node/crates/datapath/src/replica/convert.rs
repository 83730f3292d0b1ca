//! Between the wire's shapes and the store's.

use sheep_store::{Body as StoreBody, Extent as StoreExtent, ReadResult, StoreError};
use sheep_wire::{Body, Extent, ExtentState, ReadData, Refusal};

/// A write's contents.
pub(super) fn body(body: Body) -> StoreBody {
    match body {
        Body::Data { payload, crcs } => StoreBody::Data { payload, crcs: crcs.into_vec() },
        Body::Zero { len } => StoreBody::Zero { len },
    }
}

/// What was read.
pub(crate) fn read_data(result: ReadResult) -> ReadData {
    let extents = extents(&result.extents);
    ReadData { version: result.version, extents, data: result.data, crcs: result.crcs }
}

/// Extents of a copy.
pub(crate) fn extents(extents: &[StoreExtent]) -> Vec<Extent> {
    let extent = |extent: &StoreExtent| Extent {
        offset: extent.offset,
        len: extent.len,
        state: match extent.state {
            sheep_store::BlockState::Absent => ExtentState::Absent,
            sheep_store::BlockState::Zero => ExtentState::Zero,
            sheep_store::BlockState::Data => ExtentState::Data,
            sheep_store::BlockState::Lost | sheep_store::BlockState::Damaged => ExtentState::Lost,
        },
    };
    extents.iter().map(extent).collect()
}

/// What an asker is told of a failed store operation.
pub(crate) fn refusal_of(error: &StoreError) -> Refusal {
    match error {
        StoreError::NotFound(_) => Refusal::NoCopy,
        StoreError::Corrupt { .. } | StoreError::Unreadable { .. } | StoreError::BadChecksum { .. } => {
            Refusal::Damaged
        }
        StoreError::NoSpace => Refusal::NoSpace,
        StoreError::Malformed => Refusal::Malformed,
        _ => Refusal::StoreFailed,
    }
}
