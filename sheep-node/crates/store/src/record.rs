//! Records of the metadata log and the batches they travel in, and object records of checkpoints.
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use crate::Header;
use crate::codec::{Put, Reader, check_seal, seal};
use crate::map::{BlockMap, MapRun, ZERO_PLACE};
use crate::sums::{PageRef, Sums};
use crate::superblock::BLOCK;
use sheep_types::{Birth, Epoch, Generation, ObjectId, Version};

/// One change of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Takes header and blocks over; everything else goes with `reset`, and stays without.
    Put {
        header: Header,
        reset: bool,
        /// In order, not overlapping.
        runs: Vec<MapRun>,
        /// One for each block of `runs` that is data, or lost: then it is what it should be.
        crcs: Vec<u32>,
    },
    /// Takes the header over.
    SetHeader(Header),
    /// Makes an object with the blocks of another.
    Clone { header: Header, from: ObjectId },
    /// Forgets an object.
    Delete(ObjectId),
}

const KIND_PUT: u8 = 1;
const KIND_SET_HEADER: u8 = 2;
const KIND_CLONE: u8 = 3;
const KIND_DELETE: u8 = 4;

const FLAG_PENDING: u8 = 1;
const FLAG_RESET: u8 = 1;

/// Bytes of a header in a record.
const HEADER_LEN: usize = 5 * 8 + 1;
/// Bytes of a run.
const RUN_LEN: usize = 2 + 2 + 4;
const CRC_LEN: usize = 4;
const PUT_FIXED: usize = 1 + HEADER_LEN + 1 + 2;

/// Most bytes of a record that puts `blocks` blocks.
pub(crate) const fn record_len_max(blocks: u32) -> usize {
    PUT_FIXED + blocks as usize * (RUN_LEN + CRC_LEN)
}

fn put_header(out: &mut Vec<u8>, h: &Header) {
    out.put_u64(h.id.0);
    out.put_u64(h.birth.0);
    out.put_u64(h.version.generation.0);
    out.put_u64(h.version.sequence);
    out.put_u64(h.validated.0);
    out.put_u8(if h.pending { FLAG_PENDING } else { 0 });
}

fn header(r: &mut Reader<'_>) -> Option<Header> {
    let (id, birth) = (ObjectId(r.u64()?), Birth(r.u64()?));
    let version = Version { generation: Generation(r.u64()?), sequence: r.u64()? };
    let validated = Epoch(r.u64()?);
    let flags = r.u8()?;
    (flags & !FLAG_PENDING == 0).then_some(Header { id, birth, version, validated, pending: flags != 0 })
}

fn put_run(out: &mut Vec<u8>, run: &MapRun) {
    out.put_u16(run.start);
    out.put_u16(run.len);
    out.put_u32(run.place);
}

/// Reads `n` runs; they must lie in order in an object of `blocks` blocks.
fn runs(r: &mut Reader<'_>, n: u16, blocks: u32) -> Option<Vec<MapRun>> {
    if r.remaining() < usize::from(n) * RUN_LEN {
        return None;
    }
    let mut out = Vec::with_capacity(usize::from(n));
    for _ in 0..n {
        out.push(MapRun { start: r.u16()?, len: r.u16()?, place: r.u32()? });
    }
    // The places themselves are checked when the used blocks are marked.
    BlockMap::from_runs(out, blocks).map(|map| map.runs().to_vec())
}

impl Record {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Put { header, reset, runs, crcs } => {
                out.put_u8(KIND_PUT);
                put_header(out, header);
                out.put_u8(if *reset { FLAG_RESET } else { 0 });
                out.put_u16(runs.len() as u16);
                runs.iter().for_each(|run| put_run(out, run));
                crcs.iter().for_each(|crc| out.put_u32(*crc));
            }
            Self::SetHeader(header) => {
                out.put_u8(KIND_SET_HEADER);
                put_header(out, header);
            }
            Self::Clone { header, from } => {
                out.put_u8(KIND_CLONE);
                put_header(out, header);
                out.put_u64(from.0);
            }
            Self::Delete(id) => {
                out.put_u8(KIND_DELETE);
                out.put_u64(id.0);
            }
        }
    }

    fn decode(r: &mut Reader<'_>, blocks: u32) -> Option<Self> {
        Some(match r.u8()? {
            KIND_PUT => {
                let header = header(r)?;
                let flags = r.u8()?;
                if flags & !FLAG_RESET != 0 {
                    return None;
                }
                let n = r.u16()?;
                let runs = runs(r, n, blocks)?;
                let data: u32 = runs.iter().filter(|run| !run.is_zero()).map(|run| run.count()).sum();
                let mut crcs = Vec::with_capacity(data as usize);
                for _ in 0..data {
                    crcs.push(r.u32()?);
                }
                Self::Put { header, reset: flags != 0, runs, crcs }
            }
            KIND_SET_HEADER => Self::SetHeader(header(r)?),
            KIND_CLONE => Self::Clone { header: header(r)?, from: ObjectId(r.u64()?) },
            KIND_DELETE => Self::Delete(ObjectId(r.u64()?)),
            _ => return None,
        })
    }
}

// Offsets in the header of a batch.
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"ShBt");
const BATCH_CRC_OFFSET: usize = 4;
const BATCH_STORE_OFFSET: usize = BATCH_CRC_OFFSET + 4;
const BATCH_SEQUENCE_OFFSET: usize = BATCH_STORE_OFFSET + 8;
const BATCH_OPENING_OFFSET: usize = BATCH_SEQUENCE_OFFSET + 8;
const BATCH_CHAIN_OFFSET: usize = BATCH_OPENING_OFFSET + 4;
const BATCH_LEN_OFFSET: usize = BATCH_CHAIN_OFFSET + 4;
const BATCH_RECORDS_OFFSET: usize = BATCH_LEN_OFFSET + 4;
/// Bytes of the header of a batch.
pub(crate) const BATCH_HEADER_LEN: usize = BATCH_RECORDS_OFFSET + 4;

const _: () = assert!(BATCH_SEQUENCE_OFFSET == 16 && BATCH_HEADER_LEN == 40);

/// Header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// The store's random number.
    pub(crate) store: u64,
    /// Number of the batch, without gaps.
    pub(crate) sequence: u64,
    /// Number of the opening of the store that wrote it.
    pub(crate) opening: u32,
    /// Checksum of the batch before it.
    pub(crate) chain: u32,
}

/// A batch that was read.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) header: BatchHeader,
    /// Its checksum, which the next one names.
    pub(crate) crc: u32,
    /// Blocks it takes in the log.
    pub(crate) blocks: u32,
    records: Vec<u8>,
    count: u32,
}

/// The bytes of a batch, whole blocks, and its checksum.
pub(crate) fn encode_batch(header: BatchHeader, count: u32, records: &[u8]) -> (Vec<u8>, u32) {
    let len = BATCH_HEADER_LEN + records.len();
    let mut out = Vec::with_capacity(len.next_multiple_of(BLOCK));
    out.put_u32(BATCH_MAGIC);
    out.put_u32(0);
    out.put_u64(header.store);
    out.put_u64(header.sequence);
    out.put_u32(header.opening);
    out.put_u32(header.chain);
    out.put_u32(len as u32);
    out.put_u32(count);
    out.put(records);
    let crc = seal(&mut out, BATCH_CRC_OFFSET);
    out.resize(len.next_multiple_of(BLOCK), 0);
    (out, crc)
}

impl Batch {
    /// The batch at the start of `bytes`, if a whole and undamaged one of this store is there.
    pub(crate) fn decode(bytes: &[u8], store: u64) -> Option<Self> {
        let mut r = Reader::new(bytes);
        if r.u32()? != BATCH_MAGIC {
            return None;
        }
        let (_crc, owner) = (r.u32()?, r.u64()?);
        let (sequence, opening, chain) = (r.u64()?, r.u32()?, r.u32()?);
        let (len, count) = (r.u32()? as usize, r.u32()?);
        if owner != store || len < BATCH_HEADER_LEN {
            return None;
        }
        let whole = bytes.get(..len)?;
        let crc = check_seal(whole, BATCH_CRC_OFFSET)?;
        let records = whole.get(BATCH_HEADER_LEN..)?.to_vec();
        let header = BatchHeader { store, sequence, opening, chain };
        Some(Self { header, crc, blocks: len.div_ceil(BLOCK) as u32, records, count })
    }

    /// Its records; `None` if they make no sense although the checksum holds.
    pub(crate) fn records(&self, blocks: u32) -> Option<Vec<Record>> {
        let mut r = Reader::new(&self.records);
        let mut out = Vec::new();
        for _ in 0..self.count {
            out.push(Record::decode(&mut r, blocks)?);
        }
        r.is_empty().then_some(out)
    }
}

/// Bytes of an object record in a checkpoint without its runs and changes.
pub(crate) const OBJECT_FIXED: usize = HEADER_LEN + 2 + 2 + 4 + 4 + 4 + 4;
/// Bytes of a run in an object record.
pub(crate) const OBJECT_RUN_LEN: usize = RUN_LEN;
/// Bytes of a change in an object record: block, place, checksum.
pub(crate) const OBJECT_CHANGE_LEN: usize = 2 + 4 + CRC_LEN;

/// Appends the record of an object in a checkpoint.
pub(crate) fn put_object(out: &mut Vec<u8>, header: &Header, map: &BlockMap, sums: &Sums) {
    let runs = if sums.map.is_some() { &[] } else { map.runs() };
    put_header(out, header);
    out.put_u16(runs.len() as u16);
    out.put_u16(sums.delta().len() as u16);
    for page in [sums.base, sums.map] {
        let page = page.unwrap_or(PageRef { place: 0, crc: 0 });
        out.put_u32(page.place);
        out.put_u32(page.crc);
    }
    runs.iter().for_each(|run| put_run(out, run));
    for &(block, crc) in sums.delta() {
        out.put_u16(block);
        // Only needed where the map is in a page; a block of the delta is never absent.
        out.put_u32(map.place(block.into()).unwrap_or(ZERO_PLACE));
        out.put_u32(crc);
    }
}

/// An object as a checkpoint records it.
#[derive(Debug)]
pub(crate) struct ObjectRecord {
    pub(crate) header: Header,
    /// The whole map; with a map page only what differs from that.
    pub(crate) map: BlockMap,
    pub(crate) sums: Sums,
}

/// Reads the record of an object in a checkpoint.
pub(crate) fn object(r: &mut Reader<'_>, blocks: u32) -> Option<ObjectRecord> {
    let header = header(r)?;
    let (n, m) = (r.u16()?, r.u16()?);
    let mut page = || {
        let page = PageRef { place: r.u32()?, crc: r.u32()? };
        Some((page.place != 0).then_some(page))
    };
    let (base, map_page) = (page()?, page()?);
    let mut map = BlockMap::from_runs(runs(r, n, blocks)?, blocks)?;
    if r.remaining() < usize::from(m) * OBJECT_CHANGE_LEN || (map_page.is_some() && n > 0) {
        return None;
    }
    let (mut delta, mut changed) = (Vec::with_capacity(usize::from(m)), Vec::new());
    for _ in 0..m {
        let (block, place, crc) = (r.u16()?, r.u32()?, r.u32()?);
        if u32::from(block) >= blocks {
            return None;
        }
        delta.push((block, crc));
        if map_page.is_some() {
            changed.push((block, place));
        }
    }
    let sums = Sums::from_parts(base, map_page, delta)?;
    if map_page.is_some() {
        map = BlockMap::from_places(changed.into_iter());
    }
    Some(ObjectRecord { header, map, sums })
}

// Offsets in the header of a checkpoint's chunk.
const CHUNK_MAGIC: u32 = u32::from_le_bytes(*b"ShCk");
const CHUNK_CRC_OFFSET: usize = 4;
const CHUNK_STORE_OFFSET: usize = CHUNK_CRC_OFFSET + 4;
const CHUNK_SEQUENCE_OFFSET: usize = CHUNK_STORE_OFFSET + 8;
const CHUNK_INDEX_OFFSET: usize = CHUNK_SEQUENCE_OFFSET + 8;
const CHUNK_LEN_OFFSET: usize = CHUNK_INDEX_OFFSET + 4;
const CHUNK_NEXT_PLACE_OFFSET: usize = CHUNK_LEN_OFFSET + 4;
const CHUNK_NEXT_BLOCKS_OFFSET: usize = CHUNK_NEXT_PLACE_OFFSET + 4;
/// Bytes of the header of a chunk.
pub(crate) const CHUNK_HEADER_LEN: usize = CHUNK_NEXT_BLOCKS_OFFSET + 4;

const _: () = assert!(CHUNK_HEADER_LEN == 40 && CHUNK_HEADER_LEN < BLOCK);

/// Header of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHeader {
    /// The store's random number.
    pub(crate) store: u64,
    /// Sequence of the superblock that goes with the checkpoint.
    pub(crate) sequence: u64,
    /// Number of the chunk, from 0.
    pub(crate) index: u32,
    /// First block of the next chunk; zero if this is the last.
    pub(crate) next_place: u32,
    /// Blocks of the next chunk.
    pub(crate) next_blocks: u32,
}

/// The bytes of a chunk, whole blocks.
pub(crate) fn encode_chunk(header: ChunkHeader, payload: &[u8]) -> Vec<u8> {
    let len = CHUNK_HEADER_LEN + payload.len();
    let mut out = Vec::with_capacity(len.next_multiple_of(BLOCK));
    out.put_u32(CHUNK_MAGIC);
    out.put_u32(0);
    out.put_u64(header.store);
    out.put_u64(header.sequence);
    out.put_u32(header.index);
    out.put_u32(len as u32);
    out.put_u32(header.next_place);
    out.put_u32(header.next_blocks);
    out.put(payload);
    seal(&mut out, CHUNK_CRC_OFFSET);
    out.resize(len.next_multiple_of(BLOCK), 0);
    out
}

/// Reads a chunk: its header and payload.
pub(crate) fn decode_chunk(bytes: &[u8]) -> Option<(ChunkHeader, &[u8])> {
    let mut r = Reader::new(bytes);
    if r.u32()? != CHUNK_MAGIC {
        return None;
    }
    let (_crc, store, sequence, index) = (r.u32()?, r.u64()?, r.u64()?, r.u32()?);
    let (len, next_place, next_blocks) = (r.u32()? as usize, r.u32()?, r.u32()?);
    let whole = bytes.get(..len)?;
    check_seal(whole, CHUNK_CRC_OFFSET)?;
    let header = ChunkHeader { store, sequence, index, next_place, next_blocks };
    Some((header, whole.get(CHUNK_HEADER_LEN..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a_header(n: u64) -> Header {
        let version = Version { generation: Generation(n + 2), sequence: n + 3 };
        Header { id: ObjectId(n), birth: Birth(n + 1), version, validated: Epoch(n + 4), pending: n % 2 == 1 }
    }

    fn samples() -> Vec<Record> {
        let runs = vec![
            MapRun { start: 1, len: 2, place: 5000 },
            MapRun { start: 3, len: 1, place: ZERO_PLACE },
            MapRun { start: 9, len: 1, place: 7000 },
        ];
        vec![
            Record::Put { header: a_header(1), reset: true, runs, crcs: vec![11, 12, 13] },
            Record::Put { header: a_header(2), reset: false, runs: vec![], crcs: vec![] },
            Record::SetHeader(a_header(3)),
            Record::Clone { header: a_header(4), from: ObjectId(1) },
            Record::Delete(ObjectId(9)),
        ]
    }

    fn sample_batch() -> (Vec<u8>, BatchHeader) {
        let mut records = Vec::new();
        samples().iter().for_each(|record| record.encode(&mut records));
        let header = BatchHeader { store: 77, sequence: 5, opening: 2, chain: 0xabcd };
        (encode_batch(header, samples().len() as u32, &records).0, header)
    }

    #[test]
    fn a_batch_comes_back_and_its_bytes_are_pinned() {
        let (bytes, header) = sample_batch();
        let batch = Batch::decode(&bytes, 77).unwrap();
        assert_eq!((batch.header, batch.blocks), (header, 1));
        assert_eq!(batch.records(1024).unwrap(), samples());
        assert!(Batch::decode(&bytes, 78).is_none(), "another store's");
        // Changing the format must change this line, and with it the version.
        assert_eq!(crc32c::crc32c(&bytes), 4_039_019_917);
    }

    #[test]
    fn the_longest_record_is_as_long_as_said() {
        let runs: Vec<MapRun> =
            (0..16).map(|i| MapRun { start: i, len: 1, place: 100 + 2 * u32::from(i) }).collect();
        let record = Record::Put { header: a_header(1), reset: true, runs, crcs: vec![0; 16] };
        let mut out = Vec::new();
        record.encode(&mut out);
        assert_eq!(out.len(), record_len_max(16));
    }

    #[test]
    fn an_object_and_a_chunk_come_back() {
        let run = MapRun { start: 3, len: 4, place: 900 };
        let map = BlockMap::from_runs(vec![run], 16).unwrap();
        let page = |place| Some(PageRef { place, crc: 6 });
        for map_page in [None, page(51)] {
            let sums = Sums::from_parts(page(50), map_page, vec![(3, 33), (6, 66)]).unwrap();
            let mut out = Vec::new();
            put_object(&mut out, &a_header(1), &map, &sums);
            let got = object(&mut Reader::new(&out), 16).unwrap();
            assert_eq!((got.header, &got.sums), (a_header(1), &sums));
            let changed = BlockMap::from_places([(3, 900), (6, 903)].into_iter());
            assert_eq!(got.map, if map_page.is_some() { changed } else { map.clone() });
            for len in 0..out.len() {
                assert!(object(&mut Reader::new(out.get(..len).unwrap()), 16).is_none(), "cut at {len}");
            }
            assert!(object(&mut Reader::new(&out), 6).is_none(), "beyond the object");
        }
        let header = ChunkHeader { store: 1, sequence: 2, index: 3, next_place: 4, next_blocks: 5 };
        let mut chunk = encode_chunk(header, b"payload");
        assert_eq!(decode_chunk(&chunk), Some((header, &b"payload"[..])));
        *chunk.get_mut(45).unwrap() ^= 1;
        assert_eq!(decode_chunk(&chunk), None);
    }

    proptest! {
        /// Bytes with a right checksum but no sense: an error, never a panic.
        #[test]
        fn hostile_bytes_are_refused(
            records in prop::collection::vec(any::<u8>(), 0..200),
            count in 0u32..5,
            kind in 1u8..5,
            flip in 0usize..4096,
        ) {
            let mut bytes = vec![kind];
            bytes.extend(&records);
            let header = BatchHeader { store: 1, sequence: 1, opening: 1, chain: 0 };
            let (batch, _) = encode_batch(header, count, &bytes);
            let batch = Batch::decode(&batch, 1).unwrap();
            let _ = batch.records(16);
            let _ = object(&mut Reader::new(&records), 16);
            let _ = decode_chunk(&records);
            let (mut good, _) = sample_batch();
            let used = Batch::decode(&good, 77).unwrap().records.len() + BATCH_HEADER_LEN;
            *good.get_mut(flip).unwrap() ^= 4;
            prop_assert_eq!(Batch::decode(&good, 77).is_none(), flip < used);
        }
    }
}
