//! Between the wire's shapes and the store's.

use sheep_store::{Body as StoreBody, Extent as StoreExtent, Piece, ReadResult, StoreError};
use sheep_types::{BLOCK_SIZE, Geometry};
use sheep_wire::{Body, Extent, ExtentState, ReadData, Refusal};

/// A write's contents.
pub(super) fn body(body: Body) -> StoreBody {
    match body {
        Body::Data { payload, crcs } => StoreBody::Data { payload, crcs },
        Body::Zero { len } => StoreBody::Zero { len },
    }
}

/// What was read.
pub(crate) fn read_data(result: ReadResult) -> ReadData {
    let extent = |extent: &StoreExtent| Extent {
        offset: extent.offset,
        len: extent.len,
        state: match extent.state {
            sheep_store::BlockState::Absent => ExtentState::Absent,
            sheep_store::BlockState::Zero => ExtentState::Zero,
            sheep_store::BlockState::Data => ExtentState::Data,
        },
    };
    let extents = result.extents.iter().map(extent).collect();
    ReadData { version: result.version, extents, data: result.data, crcs: result.crcs }
}

/// The pieces of a whole object that came from another node; `None` if they do not make one. The store checks the
/// data against the checksums.
pub(crate) fn pieces_of(contents: ReadData, geometry: Geometry) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut buffers = contents.data.into_iter();
    let mut crcs = contents.crcs.into_iter();
    let mut end = 0u32;
    for extent in contents.extents {
        let fits = extent.offset == end
            && extent.len > 0
            && extent.len.is_multiple_of(BLOCK_SIZE)
            && extent.len <= geometry.object_size() - end;
        if !fits {
            return None;
        }
        end += extent.len;
        let body = match extent.state {
            ExtentState::Absent => continue,
            ExtentState::Zero => StoreBody::Zero { len: extent.len },
            ExtentState::Data => {
                let payload = buffers.next()?;
                let blocks = (extent.len / BLOCK_SIZE) as usize;
                let crcs: Vec<u32> = crcs.by_ref().take(blocks).collect();
                if payload.len() != extent.len as usize || crcs.len() != blocks {
                    return None;
                }
                StoreBody::Data { payload, crcs }
            }
        };
        pieces.push(Piece { offset: extent.offset, body });
    }
    let whole = end == geometry.object_size() && buffers.next().is_none() && crcs.next().is_none();
    whole.then_some(pieces)
}

/// What an asker is told of a failed store operation.
pub(crate) fn refusal_of(error: &StoreError) -> Refusal {
    match error {
        StoreError::NotFound(_) => Refusal::NoCopy,
        StoreError::Corrupt { .. } | StoreError::Unreadable { .. } => Refusal::Damaged,
        StoreError::NoSpace => Refusal::NoSpace,
        StoreError::Malformed | StoreError::BadChecksum { .. } => Refusal::Malformed,
        _ => Refusal::StoreFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn geometry() -> Geometry {
        Geometry::with_object_size(64 << 10).unwrap()
    }

    fn image() -> ReadData {
        let extent = |offset, len, state| Extent { offset, len, state };
        ReadData {
            extents: vec![
                extent(0, 8192, ExtentState::Data),
                extent(8192, 4096, ExtentState::Absent),
                extent(12288, (64 << 10) - 12288, ExtentState::Zero),
            ],
            data: vec![Bytes::from(vec![1; 8192])],
            crcs: vec![1, 2],
            ..ReadData::default()
        }
    }

    #[test]
    fn a_whole_image_becomes_pieces() {
        let pieces = pieces_of(image(), geometry()).unwrap();
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[1].body, StoreBody::Zero { len: (64 << 10) - 12288 });
    }

    #[test]
    fn what_is_no_whole_image_is_refused() {
        let broken: [fn(&mut ReadData); 6] = [
            |image| image.extents.truncate(2),
            |image| image.extents[1].offset = 4096,
            |image| image.extents[2].len += 4096,
            |image| image.crcs.truncate(1),
            |image| image.crcs.push(3),
            |image| image.data.clear(),
        ];
        for breaks in broken {
            let mut bad = image();
            breaks(&mut bad);
            assert_eq!(pieces_of(bad, geometry()), None);
        }
    }
}
