//! Unicast messages by which a log gets what it lacks from another one. They may be lost, repeated and late:
//! each answer names its question.
//!
//! All begin with a version (u8), a kind (u8) and the cluster (u128; zero if the asker does not know it yet).
//!
//! | kind | message | fields |
//! |---|---|---|
//! | 1 | request | target place, place after which entries are wanted, place of the snapshot being fetched, offset in it (u64) |
//! | 2 | entries | target, after, count (u16), each: term, length (u32), body |
//! | 3 | differs | target, after: the answerer's log has something else at the index of `after` |
//! | 4 | absent | target, after: the answerer does not have the target |
//! | 5 | chunk | target, after, place of the snapshot, place of the voter list, list, total length (u64), XXH3 of the whole (u64), offset (u64), data |

#![deny(clippy::indexing_slicing)]

use crate::chain::VoterList;
use crate::codec::{Malformed, Put, Reader};
use bytes::Bytes;
use sheep_types::{ClusterId, Place, Term};

const VERSION: u8 = 1;
/// Bytes that an entry adds to its body in an answer.
pub(crate) const ENTRY_OVERHEAD: usize = 20;

/// A question or an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FetchMessage {
    pub(crate) cluster: ClusterId,
    /// The place up to which the asker wants the log.
    pub(crate) target: Place,
    /// The last place before what it lacks.
    pub(crate) after: Place,
    pub(crate) kind: FetchKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FetchKind {
    /// The place of the snapshot of which a part is here already (zero if none), and the length of that part.
    Request {
        snapshot: Place,
        offset: u64,
    },
    Entries(Vec<(Term, Bytes)>),
    Differs,
    Absent,
    Chunk(Chunk),
}

/// A piece of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) at: Place,
    pub(crate) voters: VoterList,
    pub(crate) total: u64,
    pub(crate) checksum: u64,
    pub(crate) offset: u64,
    pub(crate) data: Bytes,
}

impl FetchMessage {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(256);
        out.u8(VERSION);
        out.u8(match self.kind {
            FetchKind::Request { .. } => 1,
            FetchKind::Entries(_) => 2,
            FetchKind::Differs => 3,
            FetchKind::Absent => 4,
            FetchKind::Chunk(_) => 5,
        });
        out.cluster(self.cluster);
        out.place(self.target);
        out.place(self.after);
        match &self.kind {
            FetchKind::Request { snapshot, offset } => {
                out.place(*snapshot);
                out.u64(*offset);
            }
            FetchKind::Entries(entries) => {
                out.u16(u16::try_from(entries.len()).unwrap_or(u16::MAX));
                for (term, body) in entries {
                    out.term(*term);
                    out.u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
                    out.put_raw(body);
                }
            }
            FetchKind::Differs | FetchKind::Absent => {}
            FetchKind::Chunk(chunk) => {
                out.place(chunk.at);
                out.place(chunk.voters.at);
                out.nodes(&chunk.voters.list);
                out.u64(chunk.total);
                out.u64(chunk.checksum);
                out.u64(chunk.offset);
                out.put_raw(&chunk.data);
            }
        }
        out.into()
    }

    pub(crate) fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader(Bytes::copy_from_slice(message));
        if r.u8()? != VERSION {
            return Err(Malformed);
        }
        let kind = r.u8()?;
        let (cluster, target, after) = (r.cluster()?, r.place()?, r.place()?);
        let kind = match kind {
            1 => FetchKind::Request { snapshot: r.place()?, offset: r.u64()? },
            2 => {
                let count = usize::from(r.u16()?);
                if r.0.len() < count.saturating_mul(ENTRY_OVERHEAD) {
                    return Err(Malformed);
                }
                let mut entries = Vec::with_capacity(count);
                for _ in 0..count {
                    let term = r.term()?;
                    let len = r.u32()? as usize;
                    // A copy: an entry may stay in memory longer than the message it came in.
                    entries.push((term, Bytes::copy_from_slice(&r.take(len)?)));
                }
                FetchKind::Entries(entries)
            }
            3 => FetchKind::Differs,
            4 => FetchKind::Absent,
            5 => FetchKind::Chunk(Chunk {
                at: r.place()?,
                voters: VoterList { at: r.place()?, list: r.nodes()? },
                total: r.u64()?,
                checksum: r.u64()?,
                offset: r.u64()?,
                data: r.rest(),
            }),
            _ => return Err(Malformed),
        };
        r.end()?;
        Ok(Self { cluster, target, after, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sheep_types::{LogIndex, NodeId};

    fn place(n: u64) -> Place {
        let term = Term { number: n, representative: NodeId(n ^ 5) };
        Place { term, index: LogIndex(n.wrapping_mul(3) >> 2), checksum: n.wrapping_mul(7) }
    }

    fn kinds() -> impl Strategy<Value = FetchKind> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        prop_oneof![
            (any::<u64>(), any::<u64>())
                .prop_map(|(n, offset)| FetchKind::Request { snapshot: place(n), offset }),
            prop::collection::vec((any::<u64>().prop_map(|n| place(n).term), bytes()), 0..5)
                .prop_map(FetchKind::Entries),
            Just(FetchKind::Differs),
            Just(FetchKind::Absent),
            (any::<[u64; 4]>(), bytes()).prop_map(|(n, data)| FetchKind::Chunk(Chunk {
                at: place(n[0]),
                voters: VoterList { at: place(n[1]), list: vec![NodeId(n[2])] },
                total: n[3],
                checksum: n[2],
                offset: n[1],
                data,
            })),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_coding(cluster: u128, a: u64, b: u64, kind in kinds()) {
            let message = FetchMessage { cluster: ClusterId(cluster), target: place(a), after: place(b), kind };
            prop_assert_eq!(FetchMessage::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn garbage_is_an_error_or_a_message(kind in 0u8..7, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut message = vec![VERSION, kind];
            message.extend(bytes);
            let _ = FetchMessage::decode(&message);
        }
    }
}
