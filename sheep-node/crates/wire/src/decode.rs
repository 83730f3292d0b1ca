//! From bytes to messages. Everything here comes from the network: nothing is believed before it is checked.
#![deny(clippy::indexing_slicing)]

use crate::codec::{
    DecodeError, HEADER_CRC_AT, HEADER_LEN, MAGIC, MAX_BODY_LEN, MAX_PAYLOAD_LEN, Reader, VERSION, kind,
};
use crate::{
    Body, Compared, Confirmed, Crcs, Extent, ExtentState, Header, HotObject, Listed, Message, ObjectDigest,
    ObjectRun, ReadData, Refusal, Reply, Request, Standing, StandingKind, WriteRequest,
};
use bytes::Bytes;
use sheep_types::{
    BLOCK_SIZE, Birth, ClusterId, Epoch, Generation, Incarnation, LogIndex, Member, NodeId, ObjectId,
    Version, Vid,
};

/// A checked fixed header: what to read next from the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawHeader {
    /// The envelope.
    pub header: Header,
    /// Bytes of the variable part that follows.
    pub body_len: usize,
    /// Bytes of payload after that.
    pub payload_len: usize,
    kind: u8,
}

/// Checks and takes apart the fixed header.
pub fn decode_header(bytes: &[u8; HEADER_LEN]) -> Result<RawHeader, DecodeError> {
    let mut input = Reader::new(bytes, "header");
    if input.u32()? != MAGIC {
        return Err(DecodeError::Magic);
    }
    let version = input.u16()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let crc = bytes.get(..HEADER_CRC_AT).map(crc32c::crc32c);
    let kind = input.u8()?;
    input.u8()?;
    let header = Header {
        request: input.u64()?,
        cluster: ClusterId(input.u128()?),
        from: get_member(&mut input)?,
        to: Incarnation(input.u64()?),
        epoch: Epoch(input.u64()?),
        relies_on: LogIndex(input.u64()?),
        generation: Generation(input.u64()?),
        shard: input.u16()?,
    };
    input.u16()?;
    let (body_len, payload_len) = (input.u32()? as usize, input.u32()? as usize);
    if crc != Some(input.u32()?) {
        return Err(DecodeError::Checksum("header"));
    }
    input.finish()?;
    if body_len > MAX_BODY_LEN {
        return Err(DecodeError::TooLong("variable part"));
    }
    if payload_len > MAX_PAYLOAD_LEN {
        return Err(DecodeError::TooLong("payload"));
    }
    Ok(RawHeader { header, body_len, payload_len, kind })
}

/// Puts a message together from the variable part and the payload that followed its header. The payload's
/// block checksums are *not* verified here but by whoever uses the data.
pub fn decode_message(raw: &RawHeader, body: &[u8], payload: Bytes) -> Result<Message, DecodeError> {
    let (content, crc) = body.split_last_chunk::<4>().ok_or(DecodeError::Malformed("variable part"))?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
        return Err(DecodeError::Checksum("variable part"));
    }
    let mut input = Reader::new(content, "variable part");
    let mut payload = Payload(payload);
    let message = if raw.kind < kind::DONE {
        Message::Request(get_request(raw.kind, &mut input, &mut payload)?)
    } else {
        Message::Reply(get_reply(raw.kind, &mut input, &mut payload)?)
    };
    input.finish()?;
    if payload.0.is_empty() { Ok(message) } else { Err(DecodeError::Malformed("payload")) }
}

/// What is left of the payload.
struct Payload(Bytes);

impl Payload {
    fn take(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        if len > self.0.len() {
            return Err(DecodeError::Malformed("payload"));
        }
        Ok(self.0.split_to(len))
    }
}

fn get_request(kind: u8, input: &mut Reader<'_>, payload: &mut Payload) -> Result<Request, DecodeError> {
    Ok(match kind {
        kind::WRITE => Request::Write(get_write(input, payload)?),
        kind::READ => Request::Read {
            object: ObjectId(input.u64()?),
            birth: Birth(input.u64()?),
            offset: input.u32()?,
            len: input.u32()?,
        },
        kind::FLUSH => Request::Flush { vid: Vid(input.u32()?) },
        kind::SETTLE => {
            Request::Settle { vid: Vid(input.u32()?), after: get_option(input, |i| i.u64().map(ObjectId))? }
        }
        kind::EQUALIZE => Request::Equalize {
            object: ObjectId(input.u64()?),
            birth: Birth(input.u64()?),
            source: get_member(input)?,
            version: get_version(input)?,
        },
        kind::ADOPT => Request::Adopt { object: ObjectId(input.u64()?), version: get_version(input)? },
        kind::SETTLED => Request::Settled { vid: Vid(input.u32()?), confirmed: get_confirmed(input)? },
        kind::CLEAR_PENDING => Request::ClearPending { objects: get_objects(input)? },
        kind::REMOVE => Request::Remove {
            object: ObjectId(input.u64()?),
            birth: Birth(input.u64()?),
            version: get_version(input)?,
        },
        kind::STANDING => Request::Standing { objects: get_objects(input)?, at: Epoch(input.u64()?) },
        kind::LIST => Request::List {
            member: NodeId(input.u64()?),
            after: get_option(input, |i| i.u64().map(ObjectId))?,
        },
        kind::DIGEST_OF => Request::Digest {
            object: ObjectId(input.u64()?),
            birth: Birth(input.u64()?),
            version: get_option(input, get_version)?,
        },
        kind::BLOCKS => Request::Blocks {
            object: ObjectId(input.u64()?),
            birth: Birth(input.u64()?),
            version: get_version(input)?,
            ranges: input.list(8, |input| Ok((input.u32()?, input.u32()?)))?,
            urgent: input.bool()?,
        },
        kind::SECURE => Request::Secure { objects: get_versions(input)? },
        kind::ADOPT_ALL => Request::AdoptAll { objects: get_versions(input)? },
        kind::COMPARE => Request::Compare {
            object: ObjectId(input.u64()?),
            birth: Birth(input.u64()?),
            other: get_option(input, |input| Ok((Vid(input.u32()?), Birth(input.u64()?))))?,
        },
        kind::SWEEP => Request::Sweep {
            vids: input.list(4, |input| input.u32().map(Vid))?,
            first: input.u32()?,
            last: input.u32()?,
            keep: input.list(12, |input| {
                Ok(ObjectRun { vid: Vid(input.u32()?), first: input.u32()?, last: input.u32()? })
            })?,
            from: ObjectId(input.u64()?),
        },
        kind::PING => Request::Ping,
        kind::GIVE_WAY => Request::GiveWay,
        other => return Err(DecodeError::Kind(other)),
    })
}

fn get_write(input: &mut Reader<'_>, payload: &mut Payload) -> Result<WriteRequest, DecodeError> {
    let object = ObjectId(input.u64()?);
    let birth = Birth(input.u64()?);
    let previous = get_option(input, get_version)?;
    let version = get_version(input)?;
    let create = input.bool()?;
    let base = get_option(input, |input| input.u32().map(Vid))?;
    let durable = input.bool()?;
    let offset = input.u32()?;
    let body = match input.u8()? {
        0 => {
            let crcs: Crcs = input.short(4, Reader::u32)?;
            let data = payload.take(crcs.len().saturating_mul(BLOCK_SIZE as usize))?;
            Body::Data { payload: data, crcs }
        }
        1 => Body::Zero { len: input.u32()? },
        _ => return Err(input.malformed()),
    };
    let confirmed = get_confirmed(input)?;
    Ok(WriteRequest { object, birth, previous, version, create, base, offset, body, durable, confirmed })
}

fn get_reply(kind: u8, input: &mut Reader<'_>, payload: &mut Payload) -> Result<Reply, DecodeError> {
    Ok(match kind {
        kind::DONE => Reply::Done,
        kind::BEHIND => Reply::Behind(get_option(input, get_version)?),
        kind::READ_DATA => Reply::Read(get_read_data(input, payload)?),
        kind::HOT => {
            let more = input.bool()?;
            let objects = input.list(26, |input| {
                Ok(HotObject {
                    object: ObjectId(input.u64()?),
                    version: get_version(input)?,
                    pending: input.bool()?,
                    current: input.bool()?,
                })
            })?;
            Reply::Hot(objects, more)
        }
        kind::STANDINGS => Reply::Standings(input.list(12, get_standing)?),
        kind::LISTING => {
            let more = input.bool()?;
            let objects = input.list(42, |input| {
                Ok(Listed {
                    object: ObjectId(input.u64()?),
                    birth: Birth(input.u64()?),
                    version: get_version(input)?,
                    validated: Epoch(input.u64()?),
                    live: input.bool()?,
                    hot: input.bool()?,
                })
            })?;
            Reply::Listing(objects, more)
        }
        kind::DIGEST => Reply::Digest(Box::new(ObjectDigest {
            birth: Birth(input.u64()?),
            pending: input.bool()?,
            hot: input.bool()?,
            version: get_version(input)?,
            extents: get_extents(input)?,
            crcs: input.list(4, Reader::u32)?,
        })),
        kind::SWEPT => Reply::Swept {
            dropped: input.u32()?,
            left: input.u32()?,
            needed: input.list(4, |input| input.u32().map(Vid))?,
            next: get_option(input, |i| i.u64().map(ObjectId))?,
        },
        kind::WHICH => Reply::Which(input.list(1, Reader::bool)?),
        kind::COMPARED => Reply::Compared(input.list(7, |input| {
            let len = input.u32()?;
            let (state, other) = (get_state(input)?, get_state(input)?);
            Ok(Compared { len, state, other, same: input.bool()? })
        })?),
        kind::REFUSED => Reply::Refused(get_refusal(input)?),
        other => return Err(DecodeError::Kind(other)),
    })
}

fn get_standing(input: &mut Reader<'_>) -> Result<Standing, DecodeError> {
    let kind = match input.u8()? {
        0 => StandingKind::Live,
        1 => StandingKind::Restarted,
        2 => StandingKind::Never,
        3 => StandingKind::Unknown,
        4 => StandingKind::Busy,
        _ => return Err(input.malformed()),
    };
    Ok(Standing {
        kind,
        version: get_option(input, get_version)?,
        validated: Epoch(input.u64()?),
        hot: input.bool()?,
        wounded: input.bool()?,
    })
}

fn get_refusal(input: &mut Reader<'_>) -> Result<Refusal, DecodeError> {
    let code = input.u8()?;
    let epoch = Epoch(input.u64()?);
    Ok(match code {
        0 => Refusal::StaleEpoch(epoch),
        1 => Refusal::WrongIncarnation,
        2 => Refusal::StaleGeneration,
        3 => Refusal::NotWritable,
        4 => Refusal::NotMember,
        5 => Refusal::NotCurrent,
        6 => Refusal::OtherVersion,
        7 => Refusal::NoCopy,
        8 => Refusal::NoSpace,
        9 => Refusal::Damaged,
        10 => Refusal::StoreFailed,
        11 => Refusal::Busy,
        12 => Refusal::Malformed,
        13 => Refusal::BaseLost,
        _ => return Err(input.malformed()),
    })
}

fn get_extents(input: &mut Reader<'_>) -> Result<Vec<Extent>, DecodeError> {
    input.list(9, |input| {
        let (offset, len) = (input.u32()?, input.u32()?);
        Ok(Extent { offset, len, state: get_state(input)? })
    })
}

fn get_state(input: &mut Reader<'_>) -> Result<ExtentState, DecodeError> {
    Ok(match input.u8()? {
        0 => ExtentState::Absent,
        1 => ExtentState::Zero,
        2 => ExtentState::Data,
        3 => ExtentState::Lost,
        _ => return Err(input.malformed()),
    })
}

fn get_read_data(input: &mut Reader<'_>, payload: &mut Payload) -> Result<ReadData, DecodeError> {
    let version = get_version(input)?;
    let extents = get_extents(input)?;
    let crcs = input.list(4, Reader::u32)?;
    let mut data = Vec::new();
    for extent in extents.iter().filter(|extent| extent.state == ExtentState::Data) {
        data.push(payload.take(extent.len as usize)?);
    }
    let summed = extents.iter().filter(|extent| extent.state.has_sums());
    let blocks: u64 = summed.map(|extent| u64::from(extent.len / BLOCK_SIZE)).sum();
    if blocks != crcs.len() as u64 || data.iter().any(|bytes| bytes.len() % BLOCK_SIZE as usize != 0) {
        return Err(input.malformed());
    }
    Ok(ReadData { version, extents, data, crcs })
}

fn get_confirmed(input: &mut Reader<'_>) -> Result<Confirmed, DecodeError> {
    Ok(Confirmed { upto: input.u64()?, except: input.short(8, Reader::u64)? })
}

fn get_objects(input: &mut Reader<'_>) -> Result<Vec<ObjectId>, DecodeError> {
    input.list(8, |input| input.u64().map(ObjectId))
}

fn get_versions(input: &mut Reader<'_>) -> Result<Vec<(ObjectId, Version)>, DecodeError> {
    input.list(24, |input| Ok((ObjectId(input.u64()?), get_version(input)?)))
}

fn get_version(input: &mut Reader<'_>) -> Result<Version, DecodeError> {
    Ok(Version { generation: Generation(input.u64()?), sequence: input.u64()? })
}

fn get_member(input: &mut Reader<'_>) -> Result<Member, DecodeError> {
    Ok(Member { node: NodeId(input.u64()?), incarnation: Incarnation(input.u64()?) })
}

fn get_option<T>(
    input: &mut Reader<'_>,
    get: impl FnOnce(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    if input.bool()? { get(input).map(Some) } else { Ok(None) }
}
