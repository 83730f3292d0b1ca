//! Authentication and encryption of ring datagrams.
//!
//! Every datagram is sealed with AES-256-GCM under a key derived from the cluster's key for its sender and the
//! sender's incarnation; the nonce is a counter that never repeats within an incarnation, and incarnations never
//! repeat. What fails to open is counted and dropped. Replays are refused by the counter.
//!
//! | at | size | field |
//! | --- | --- | --- |
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | key number (two keys are accepted while a key is rotated) |
//! | 2 | 6 | zero |
//! | 8 | 8 | sending node |
//! | 16 | 8 | its incarnation |
//! | 24 | 8 | counter |
//! | 32 | n | sealed contents |
//! | 32 + n | 16 | tag; covers the header too |

mod replay;

use replay::ReplayWindow;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use sheep_types::{Incarnation, Member, NodeId};
use std::collections::BTreeMap;
use thiserror::Error;

/// Bytes that sealing adds to a datagram.
#[cfg(test)]
pub(crate) const OVERHEAD: usize = HEADER + 16;
const HEADER: usize = 32;
const VERSION: u8 = 1;
/// Senders remembered at most. Only holders of the key can make entries; the bound is against bugs.
const MAX_SENDERS: usize = 8192;

/// The cluster's key: 32 random bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ClusterKey([u8; 32]);

impl ClusterKey {
    /// From raw bytes.
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From the text of a key file: 64 hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().as_bytes();
        let mut key = [0; 32];
        if text.len() != 64 || !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(key))
    }

    /// The text of a key file.
    pub(crate) fn to_text(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n"
    }

    /// A key for another use, bound to a name.
    pub(crate) fn derive(&self, purpose: &[&[u8]]) -> [u8; 32] {
        struct Len;
        impl ring::hkdf::KeyType for Len {
            fn len(&self) -> usize {
                32
            }
        }
        let mut out = [0; 32];
        let prk = Salt::new(HKDF_SHA256, b"sheepdog v1").extract(&self.0);
        let filled = prk.expand(purpose, Len).and_then(|okm| okm.fill(&mut out));
        assert!(filled.is_ok(), "32 bytes are within the limits of HKDF");
        out
    }

    fn sealing_key(&self, sender: Member) -> LessSafeKey {
        let (node, incarnation) = (sender.node.0.to_le_bytes(), sender.incarnation.0.to_le_bytes());
        let bytes = self.derive(&[b"ring", &node, &incarnation]);
        let key = UnboundKey::new(&AES_256_GCM, &bytes);
        LessSafeKey::new(key.unwrap_or_else(|_| unreachable!("the length is that of the algorithm")))
    }
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterKey(..)")
    }
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum OpenError {
    /// Too short, or of another version.
    #[error("not a sealed datagram")]
    Malformed,
    /// Another key, or damaged on the way.
    #[error("not sealed with this cluster's key")]
    Key,
    /// Seen before, or too old to tell.
    #[error("replayed")]
    Replay,
    /// From a run of the sender that is over.
    #[error("from a former incarnation")]
    OldIncarnation,
    /// More senders than can be remembered.
    #[error("too many senders")]
    TooManySenders,
}

struct Sender {
    incarnation: Incarnation,
    key: LessSafeKey,
    window: ReplayWindow,
}

/// Seals this node's datagrams and opens those of others.
pub(crate) struct Sealer {
    key: ClusterKey,
    me: Member,
    own: LessSafeKey,
    counter: u64,
    senders: BTreeMap<NodeId, Sender>,
}

impl Sealer {
    /// For this node in this run.
    pub(crate) fn new(key: ClusterKey, me: Member) -> Self {
        let own = key.sealing_key(me);
        Self { key, me, own, counter: 0, senders: BTreeMap::new() }
    }

    /// Seals a datagram into `out`, replacing what is there.
    pub(crate) fn seal(&mut self, contents: &[u8], out: &mut Vec<u8>) {
        self.counter += 1;
        out.clear();
        out.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.me.node.0.to_le_bytes());
        out.extend_from_slice(&self.me.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.counter.to_le_bytes());
        out.extend_from_slice(contents);
        let (header, body) = out.split_at_mut(HEADER);
        let sealed = self.own.seal_in_place_separate_tag(nonce(self.counter), Aad::from(&*header), body);
        let tag = sealed.unwrap_or_else(|_| unreachable!("datagrams are far below the limit of the cipher"));
        out.extend_from_slice(tag.as_ref());
    }

    /// Opens a datagram in place; gives the sender and the contents.
    pub(crate) fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<(Member, &'a [u8]), OpenError> {
        let Some((header, body)) = datagram.split_at_mut_checked(HEADER) else {
            return Err(OpenError::Malformed);
        };
        if header.first() != Some(&VERSION) {
            return Err(OpenError::Malformed);
        }
        let field =
            |at: usize| header.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let sender = Member { node: NodeId(field(8)), incarnation: Incarnation(field(16)) };
        let counter = field(24);
        let known = self.senders.get(&sender.node);
        if known.is_some_and(|known| known.incarnation > sender.incarnation) {
            return Err(OpenError::OldIncarnation);
        }
        if known.is_some_and(|known| known.incarnation == sender.incarnation && !known.window.is_new(counter))
        {
            return Err(OpenError::Replay);
        }
        let same = known.filter(|known| known.incarnation == sender.incarnation);
        let fresh = same.is_none().then(|| self.key.sealing_key(sender));
        let key = match (&fresh, same) {
            (Some(key), _) => key,
            (None, Some(known)) => &known.key,
            (None, None) => return Err(OpenError::Key),
        };
        let opened = key.open_in_place(nonce(counter), Aad::from(&*header), body);
        let contents = opened.map_err(|_| OpenError::Key)?;
        // Only now is anything the datagram says believed.
        if let Some(key) = fresh {
            if self.senders.len() >= MAX_SENDERS && !self.senders.contains_key(&sender.node) {
                return Err(OpenError::TooManySenders);
            }
            let window = ReplayWindow::default();
            self.senders.insert(sender.node, Sender { incarnation: sender.incarnation, key, window });
        }
        if let Some(known) = self.senders.get_mut(&sender.node) {
            known.window.mark(counter);
        }
        Ok((sender, contents))
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    let (_, tail) = bytes.split_at_mut(4);
    tail.copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(node: u64, incarnation: u64) -> Member {
        Member { node: NodeId(node), incarnation: Incarnation(incarnation) }
    }

    fn pair() -> (Sealer, Sealer) {
        let key = ClusterKey::new([7; 32]);
        (Sealer::new(key.clone(), member(1, 1)), Sealer::new(key, member(2, 1)))
    }

    fn sealed(from: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        from.seal(text, &mut out);
        assert_eq!(out.len(), text.len() + OVERHEAD);
        out
    }

    #[test]
    fn opens_once_and_only_once() {
        let (mut a, mut b) = pair();
        let packet = sealed(&mut a, b"token");
        assert_eq!(b.open(&mut packet.clone()), Ok((member(1, 1), &b"token"[..])));
        assert_eq!(b.open(&mut packet.clone()), Err(OpenError::Replay));
    }

    #[test]
    fn order_does_not_matter_within_the_window() {
        let (mut a, mut b) = pair();
        let packets: Vec<_> = (0..50u8).map(|n| sealed(&mut a, &[n])).collect();
        for packet in packets.iter().rev() {
            assert!(b.open(&mut packet.clone()).is_ok());
        }
        for packet in &packets {
            assert_eq!(b.open(&mut packet.clone()), Err(OpenError::Replay));
        }
    }

    #[test]
    fn every_bit_counts() {
        let (mut a, mut b) = pair();
        let packet = sealed(&mut a, b"x");
        for bit in 0..packet.len() * 8 {
            let mut bad = packet.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(b.open(&mut bad).is_err(), "bit {bit}");
        }
        assert!(b.senders.is_empty(), "nothing that failed is remembered");
        assert!(b.open(&mut packet.clone()).is_ok());
    }

    #[test]
    fn another_key_and_garbage_are_refused() {
        let (mut a, _) = pair();
        let mut c = Sealer::new(ClusterKey::new([8; 32]), member(3, 1));
        assert_eq!(c.open(&mut sealed(&mut a, b"x")), Err(OpenError::Key));
        for len in 0..100 {
            assert!(c.open(&mut vec![1; len]).is_err());
        }
    }

    #[test]
    fn a_new_run_ends_the_old_one() {
        let (mut a, mut b) = pair();
        let old = sealed(&mut a, b"old");
        let mut again = Sealer::new(ClusterKey::new([7; 32]), member(1, 2));
        assert!(b.open(&mut sealed(&mut again, b"new")).is_ok());
        assert_eq!(b.open(&mut old.clone()), Err(OpenError::OldIncarnation));
    }

    #[test]
    fn key_files_come_back() {
        let key = ClusterKey::new(std::array::from_fn(|i| i as u8));
        assert_eq!(ClusterKey::parse(&key.to_text()).map(|k| k.0), Some(key.0));
        assert!(ClusterKey::parse("abc").is_none());
        assert!(ClusterKey::parse(&"g".repeat(64)).is_none());
        assert!(ClusterKey::parse(&"+a".repeat(32)).is_none());
    }

    /// Bytes of a datagram to overwrite, and where to cut it off.
    fn damage() -> impl Strategy<Value = (Vec<(usize, u8)>, usize)> {
        (prop::collection::vec((any::<usize>(), any::<u8>()), 0..6), 0usize..200)
    }

    proptest! {
        #[test]
        fn any_datagram_is_opened_as_it_was_sealed_or_refused(
            contents in prop::collection::vec(any::<u8>(), 0..100),
            (holes, cut) in damage(),
            garbage in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let (mut a, mut b) = pair();
            let good = sealed(&mut a, &contents);
            let mut bad = good.clone();
            for (at, byte) in holes {
                let at = at % bad.len();
                bad[at] = byte;
            }
            bad.truncate(cut);
            let whole = bad == good;
            let opened = b.open(&mut bad).map(|(from, contents)| (from, contents.to_vec()));
            match opened {
                Ok(opened) => prop_assert!(whole && opened == (member(1, 1), contents)),
                Err(_) => prop_assert!(!whole),
            }
            prop_assert!(b.open(&mut garbage.clone()).is_err());
            prop_assert_eq!(b.senders.len(), usize::from(whole), "nothing that failed is remembered");
        }

        #[test]
        fn any_text_is_a_key_or_none(text in any::<String>(), hex in "[0-9a-fA-F]{64}") {
            prop_assert_eq!(ClusterKey::parse(&text).map(|key| key.to_text()), None);
            prop_assert_eq!(ClusterKey::parse(&hex).unwrap().to_text(), hex.to_ascii_lowercase() + "\n");
        }
    }
}
