//! Blocks that a write covers partly: read first, and completed.

use super::api::VolumeError;
use super::contents::{Found, flatten};
use super::io::Piece;
use super::read::{ReadOwner, ReadPiece, Target};
use super::shared::Core;
use super::volume::Volume;
use bytes::Bytes;
use sheep_types::BLOCK_SIZE;

impl Volume {
    /// Whether the blocks that the range covers partly are there; asks for them if not.
    pub(super) fn edges_ready(&mut self, piece: &mut Piece, exists: bool) -> bool {
        let partial = piece.partial_blocks();
        if partial.is_empty() {
            return true;
        }
        if piece.edges.is_empty() {
            for offset in partial {
                let zeros = (!exists).then(|| Bytes::from(vec![0; BLOCK_SIZE as usize]));
                piece.edges.push((offset, zeros));
                if exists {
                    let owner = ReadOwner::Edge { piece: piece.id, offset };
                    let range = (offset, offset + BLOCK_SIZE);
                    self.add_read(ReadPiece::new(owner, Target::Data(piece.index), range, self.sequence));
                    self.again = true;
                }
            }
        }
        piece.edges.iter().all(|(_, block)| block.is_some())
    }

    /// A block that a waiting write covers partly was read.
    pub(super) fn edge_arrived(
        &mut self,
        core: &mut Core,
        id: u64,
        offset: u32,
        result: Result<Vec<Found>, VolumeError>,
    ) {
        let Some(place) = self.queue.iter().position(|piece| piece.id == id) else { return };
        match result {
            Ok(contents) => {
                let edges = self.queue.get_mut(place).map(|piece| &mut piece.edges);
                for edge in edges.into_iter().flatten().filter(|edge| edge.0 == offset) {
                    edge.1 = Some(flatten(&contents));
                }
            }
            Err(error) => {
                if let Some(piece) = self.queue.remove(place) {
                    self.part_done(core, piece.io, Err(error), false);
                }
            }
        }
    }
}
