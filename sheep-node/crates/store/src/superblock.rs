//! The superblock: whose store this is, how it is laid out, and where its newest checkpoint is.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use crate::codec::{Put, Reader, check_seal, seal};
use crate::{StoreError, StoreIdentity};
use sheep_types::{BLOCK_SIZE, ClusterId, NodeId};

/// Bytes of a block, as an index.
pub(crate) const BLOCK: usize = BLOCK_SIZE as usize;
/// Version of the format.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// First bytes of a superblock.
pub(crate) const MAGIC: [u8; 8] = *b"SheepSto";

// Places of the two copies, in blocks. They lie apart so that one bad spot does not take both.
pub(crate) const SLOT_BLOCKS: [u32; 2] = [0, 8];
/// First block of the log.
pub(crate) const LOG_START: u32 = 16;

// Offsets in the superblock, each derived from the one before. Magic, version and checksum stay where they
// are in every later version, so that a newer format is told from a damaged one.
const MAGIC_OFFSET: usize = 0;
const VERSION_OFFSET: usize = MAGIC_OFFSET + 8;
const CRC_OFFSET: usize = VERSION_OFFSET + 4;
const CLUSTER_OFFSET: usize = CRC_OFFSET + 4;
const NODE_OFFSET: usize = CLUSTER_OFFSET + 16;
const STORE_OFFSET: usize = NODE_OFFSET + 8;
const OBJECT_SIZE_OFFSET: usize = STORE_OFFSET + 8;
const LOG_BLOCKS_OFFSET: usize = OBJECT_SIZE_OFFSET + 4;
const BATCH_BLOCKS_OFFSET: usize = LOG_BLOCKS_OFFSET + 4;
const LOG_POSITION_OFFSET: usize = BATCH_BLOCKS_OFFSET + 4;
const SEQUENCE_OFFSET: usize = LOG_POSITION_OFFSET + 4;
const LOG_SEQUENCE_OFFSET: usize = SEQUENCE_OFFSET + 8;
const LOG_CHAIN_OFFSET: usize = LOG_SEQUENCE_OFFSET + 8;
const OPENING_OFFSET: usize = LOG_CHAIN_OFFSET + 4;
const CHECKPOINT_PLACE_OFFSET: usize = OPENING_OFFSET + 4;
const CHECKPOINT_BLOCKS_OFFSET: usize = CHECKPOINT_PLACE_OFFSET + 4;
const CHECKPOINT_BYTES_OFFSET: usize = CHECKPOINT_BLOCKS_OFFSET + 4;
const CHECKPOINT_OBJECTS_OFFSET: usize = CHECKPOINT_BYTES_OFFSET + 8;
const FIELDS_END: usize = CHECKPOINT_OBJECTS_OFFSET + 8;

const _: () =
    assert!(STORE_OFFSET == 40 && SEQUENCE_OFFSET == 64 && FIELDS_END == 112 && FIELDS_END <= BLOCK);
const _: () = assert!(SLOT_BLOCKS[1] < LOG_START);

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) identity: StoreIdentity,
    /// Bytes per object.
    pub(crate) object_size: u32,
    /// Length of the log ring.
    pub(crate) log_blocks: u32,
    /// Longest batch; the ring wraps where less than this is left.
    pub(crate) batch_blocks: u32,
    /// Grows by one with every checkpoint.
    pub(crate) sequence: u64,
    /// Block in the ring where the first batch after the checkpoint begins.
    pub(crate) log_position: u32,
    /// Number of that batch.
    pub(crate) log_sequence: u64,
    /// Checksum of the batch before it.
    pub(crate) log_chain: u32,
    /// Opening in which the checkpoint was made.
    pub(crate) opening: u32,
    pub(crate) checkpoint: CheckpointRoot,
}

/// Where a checkpoint begins and how much it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckpointRoot {
    /// First block of the first chunk; zero if the checkpoint is empty and takes no room.
    pub(crate) place: u32,
    /// Blocks of the first chunk.
    pub(crate) blocks: u32,
    /// Bytes of object records over all chunks.
    pub(crate) bytes: u64,
    /// Number of object records.
    pub(crate) objects: u64,
}

impl Superblock {
    /// The block that holds it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK);
        out.put(&MAGIC);
        out.put_u32(FORMAT_VERSION);
        out.put_u32(0);
        out.put_u128(self.identity.cluster.0);
        out.put_u64(self.identity.node.0);
        out.put_u64(self.identity.store);
        out.put_u32(self.object_size);
        out.put_u32(self.log_blocks);
        out.put_u32(self.batch_blocks);
        out.put_u32(self.log_position);
        out.put_u64(self.sequence);
        out.put_u64(self.log_sequence);
        out.put_u32(self.log_chain);
        out.put_u32(self.opening);
        out.put_u32(self.checkpoint.place);
        out.put_u32(self.checkpoint.blocks);
        out.put_u64(self.checkpoint.bytes);
        out.put_u64(self.checkpoint.objects);
        debug_assert_eq!(out.len(), FIELDS_END);
        out.resize(BLOCK, 0);
        seal(&mut out, CRC_OFFSET);
        out
    }

    /// Reads one copy. `NotFormatted` if it was never one, `SuperblockCorrupt` if it is damaged.
    pub(crate) fn decode(block: &[u8]) -> Result<Self, StoreError> {
        if block.get(..MAGIC.len()) != Some(&MAGIC) {
            // A block of zeros was never written; anything else may have been a superblock once.
            let blank = block.iter().all(|&b| b == 0);
            return Err(if blank { StoreError::NotFormatted } else { StoreError::SuperblockCorrupt });
        }
        if block.len() != BLOCK || check_seal(block, CRC_OFFSET).is_none() {
            return Err(StoreError::SuperblockCorrupt);
        }
        let version = block.get(VERSION_OFFSET..).and_then(|b| Reader::new(b).u32());
        match version {
            Some(FORMAT_VERSION) => {}
            Some(found) if found > FORMAT_VERSION => {
                return Err(StoreError::NewerFormat { found, known: FORMAT_VERSION });
            }
            _ => return Err(StoreError::SuperblockCorrupt),
        }
        Self::fields(block).ok_or(StoreError::SuperblockCorrupt)
    }

    fn fields(block: &[u8]) -> Option<Self> {
        let mut r = Reader::new(block.get(CLUSTER_OFFSET..)?);
        let identity =
            StoreIdentity { cluster: ClusterId(r.u128()?), node: NodeId(r.u64()?), store: r.u64()? };
        let (object_size, log_blocks, batch_blocks, log_position) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        let (sequence, log_sequence, log_chain, opening) = (r.u64()?, r.u64()?, r.u32()?, r.u32()?);
        let checkpoint =
            CheckpointRoot { place: r.u32()?, blocks: r.u32()?, bytes: r.u64()?, objects: r.u64()? };
        let sound = batch_blocks > 0 && log_position < log_blocks && log_blocks / 4 >= batch_blocks;
        sound.then_some(Self {
            identity,
            object_size,
            log_blocks,
            batch_blocks,
            sequence,
            log_position,
            log_sequence,
            log_chain,
            opening,
            checkpoint,
        })
    }

    /// The newer of two copies, or why there is none.
    pub(crate) fn choose(a: &[u8], b: &[u8]) -> Result<Self, StoreError> {
        match (Self::decode(a), Self::decode(b)) {
            (Ok(a), Ok(b)) => Ok(if b.sequence > a.sequence { b } else { a }),
            // A newer release may have begun to convert the store: hands off.
            (Err(e @ StoreError::NewerFormat { .. }), _) | (_, Err(e @ StoreError::NewerFormat { .. })) => {
                Err(e)
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(StoreError::NotFormatted), Err(StoreError::NotFormatted)) => Err(StoreError::NotFormatted),
            (Err(_), Err(_)) => Err(StoreError::SuperblockCorrupt),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(sequence: u64) -> Superblock {
        Superblock {
            identity: StoreIdentity { cluster: ClusterId(7), node: NodeId(8), store: 9 },
            object_size: 4 << 20,
            log_blocks: 1024,
            batch_blocks: 20,
            sequence,
            log_position: 5,
            log_sequence: 6,
            log_chain: 0xdead_beef,
            opening: 3,
            checkpoint: CheckpointRoot { place: 2000, blocks: 64, bytes: 12345, objects: 67 },
        }
    }

    #[test]
    fn round_trip_and_pinned_bytes() {
        let bytes = sample(10).encode();
        assert_eq!(Superblock::decode(&bytes), Ok(sample(10)));
        assert_eq!(&bytes[..12], b"SheepSto\x01\0\0\0");
        // Changing the format must change this line, and with it the version.
        assert_eq!(crc32c::crc32c(&bytes), PINNED);
    }
    const PINNED: u32 = 2600330788;

    #[test]
    fn the_newer_copy_wins_and_damage_is_named() {
        let (old, new) = (sample(10).encode(), sample(11).encode());
        assert_eq!(Superblock::choose(&old, &new), Ok(sample(11)));
        assert_eq!(Superblock::choose(&new, &old), Ok(sample(11)));
        let mut torn = new.clone();
        torn[100] ^= 1;
        assert_eq!(Superblock::choose(&torn, &old), Ok(sample(10)));
        assert_eq!(Superblock::choose(&torn, &torn), Err(StoreError::SuperblockCorrupt));
        let blank = vec![0; BLOCK];
        assert_eq!(Superblock::choose(&blank, &blank), Err(StoreError::NotFormatted));
        assert_eq!(Superblock::choose(&blank, &torn), Err(StoreError::SuperblockCorrupt));
        let mut newer = new;
        newer[VERSION_OFFSET] = 2;
        seal(&mut newer, CRC_OFFSET);
        let refused = Err(StoreError::NewerFormat { found: 2, known: 1 });
        assert_eq!(Superblock::choose(&old, &newer), refused);
    }

    #[test]
    fn no_input_panics() {
        for len in [0, 7, 8, 12, 16, 100, BLOCK - 1, BLOCK + 1] {
            let mut bytes = MAGIC.to_vec();
            bytes.resize(len, 0xff);
            assert!(Superblock::decode(&bytes).is_err());
        }
    }

    proptest! {
        /// Anything on the disk, with a right checksum or a wrong one: an error or a superblock, never a panic.
        #[test]
        fn any_blocks_are_refused_or_read(
            holes in prop::collection::vec((12..200usize, any::<u8>()), 0..12), sealed in any::<bool>(),
            other in prop::collection::vec(any::<u8>(), 0..2 * BLOCK),
        ) {
            let mut bytes = sample(10).encode();
            for (at, byte) in holes {
                bytes[at] = byte;
            }
            if sealed {
                seal(&mut bytes, CRC_OFFSET);
            }
            let decoded = Superblock::decode(&bytes);
            if let Ok(superblock) = &decoded {
                prop_assert_eq!(Superblock::decode(&superblock.encode()), Ok(*superblock));
            }
            prop_assert!(Superblock::decode(&other).is_err());
            let chosen = Superblock::choose(&bytes, &other);
            prop_assert_eq!(chosen.ok(), decoded.ok());
        }
    }
}
