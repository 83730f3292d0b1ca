//! One entry of the log, and the hash chain that binds it to all before it.

#![deny(clippy::indexing_slicing)]

use crate::codec::{self, Malformed, Put, Reader};
use bytes::Bytes;
use sheep_types::{ClusterId, CommandSeq, LogIndex, Member, NodeId, Place, Term};
use twox_hash::XxHash3_64;

/// An entry. Its body stays encoded: it is written, sent and hashed far more often than looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) body: Bytes,
}

impl Entry {
    /// The entry of `term` that follows `previous`.
    pub(crate) fn after(previous: &Place, term: Term, body: Bytes) -> Self {
        let index = LogIndex(previous.index.0.saturating_add(1));
        let mut hashed = Vec::with_capacity(24 + body.len());
        hashed.term(term);
        hashed.u64(index.0);
        hashed.put_raw(&body);
        // XXH3, 64 bits, seeded with the predecessor's value, over term, index and body. It guards against
        // mistakes, not against an attacker: whoever could forge entries holds the cluster's key.
        let checksum = XxHash3_64::oneshot_with_seed(previous.checksum, &hashed);
        Self { place: Place { term, index, checksum }, body }
    }
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Genesis { cluster: ClusterId, first_voter: NodeId, command: Bytes },
    Install { term: Term, members: Vec<Member> },
    Voters { replaces: Place, list: Vec<NodeId> },
    Command { origin: Member, seq: CommandSeq, command: Bytes },
    Unknown,
}

impl Body {
    /// Never fails: what is not understood has no effect, the same on all nodes.
    pub(crate) fn decode(body: &Bytes) -> Self {
        Self::try_decode(body.clone()).unwrap_or(Self::Unknown)
    }

    fn try_decode(body: Bytes) -> Result<Self, Malformed> {
        let mut r = Reader(body);
        let body = match r.u8()? {
            codec::KIND_GENESIS => {
                Self::Genesis { cluster: r.cluster()?, first_voter: r.node()?, command: r.rest() }
            }
            codec::KIND_INSTALL => {
                let term = r.term()?;
                let count = r.u32()? as usize;
                if r.0.len() / 16 < count {
                    return Err(Malformed);
                }
                let members = (0..count).map(|_| r.member()).collect::<Result<_, _>>()?;
                Self::Install { term, members }
            }
            codec::KIND_VOTERS => {
                let _proposer = r.member()?;
                Self::Voters { replaces: r.place()?, list: r.nodes()? }
            }
            codec::KIND_COMMAND => {
                Self::Command { origin: r.member()?, seq: CommandSeq(r.u64()?), command: r.rest() }
            }
            _ => Self::Unknown,
        };
        r.end()?;
        Ok(body)
    }
}

pub(crate) fn install_body(term: Term, members: &[Member]) -> Bytes {
    let mut out = Vec::with_capacity(21 + members.len() * 16);
    out.u8(codec::KIND_INSTALL);
    out.term(term);
    out.u32(u32::try_from(members.len()).unwrap_or(u32::MAX));
    for member in members {
        out.member(*member);
    }
    out.into()
}

pub(crate) fn genesis_body(cluster: ClusterId, first_voter: NodeId, command: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(25 + command.len());
    out.u8(codec::KIND_GENESIS);
    out.cluster(cluster);
    out.u64(first_voter.0);
    out.put_raw(command);
    out.into()
}

/// The body of the entry that an ordered message makes. Only commands and voter changes come in by
/// ordering; whatever else was sent must not pass for an install entry or a genesis.
pub(crate) fn ordered_body(payload: Bytes) -> Bytes {
    match payload.first() {
        Some(&(codec::KIND_COMMAND | codec::KIND_VOTERS)) => payload,
        _ => {
            let mut out = Vec::with_capacity(1 + payload.len());
            out.u8(codec::KIND_UNKNOWN);
            out.put_raw(&payload);
            out.into()
        }
    }
}

/// Whether a list can be a list of voters: odd, sorted, without duplicates, naming somebody.
pub(crate) fn valid_voters(list: &[NodeId]) -> bool {
    !list.len().is_multiple_of(2)
        && list.first() != Some(&NodeId(0))
        && list.iter().zip(list.iter().skip(1)).all(|(a, b)| a < b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chain_value_is_pinned() {
        // A change here makes every existing log unreadable.
        let body = genesis_body(ClusterId(7), NodeId(1), b"settings");
        let term = Term { number: 1, representative: NodeId(1) };
        let entry = Entry::after(&Place::default(), term, body);
        assert_eq!((entry.place.index, entry.place.checksum), (LogIndex(1), PINNED));
    }
    const PINNED: u64 = 13338271459073599259;

    #[test]
    fn chain_value_depends_on_everything() {
        let term = |n| Term { number: n, representative: NodeId(1) };
        let root = Place::default();
        let base = Entry::after(&root, term(1), Bytes::from_static(b"x")).place;
        let moved = Place { index: LogIndex(1), ..root };
        let other = Place { checksum: 1, ..root };
        for different in [
            Entry::after(&root, term(2), Bytes::from_static(b"x")),
            Entry::after(&root, term(1), Bytes::from_static(b"y")),
            Entry::after(&moved, term(1), Bytes::from_static(b"x")),
            Entry::after(&other, term(1), Bytes::from_static(b"x")),
        ] {
            assert_ne!(different.place.checksum, base.checksum);
        }
    }

    #[test]
    fn ordered_messages_cannot_pass_for_install_or_genesis() {
        let term = Term { number: 9, representative: NodeId(1) };
        assert_eq!(Body::decode(&ordered_body(install_body(term, &[]))), Body::Unknown);
        assert_eq!(Body::decode(&ordered_body(genesis_body(ClusterId(1), NodeId(1), b""))), Body::Unknown);
        assert_eq!(Body::decode(&ordered_body(Bytes::new())), Body::Unknown);
    }

    proptest! {
        #[test]
        fn any_bytes_decode(kind in 0u8..7, rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut body = vec![kind];
            body.extend(rest);
            let _ = Body::decode(&body.into());
        }

        #[test]
        fn install_survives_coding(number: u64, nodes in prop::collection::vec(any::<(u64, u64)>(), 0..50)) {
            let term = Term { number, representative: NodeId(3) };
            let members: Vec<Member> = nodes
                .into_iter()
                .map(|(n, i)| Member { node: NodeId(n), incarnation: sheep_types::Incarnation(i) })
                .collect();
            prop_assert_eq!(Body::decode(&install_body(term, &members)), Body::Install { term, members });
        }
    }
}
