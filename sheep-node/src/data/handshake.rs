//! The first bytes of a data connection: both sides show that they hold the cluster's key.
//!
//! ```text
//! client -> server  hello: magic "SHDH", version u16, flags u16, cluster u128, node u64, incarnation u64, nonce [32]
//! server -> client  hello of the same shape, then HMAC-SHA256(key, "server" | client hello | server hello)
//! client -> server  HMAC-SHA256(key, "client" | client hello | server hello)
//! ```
//!
//! Bit 0 of the flags says that a side wants TLS, bit 1 that it can. If one wants it and both can, the client begins TLS right
//! after its proof; if one of them cannot, the connection is refused. The proofs cover the flags, so nobody without the key
//! can talk two nodes out of it. Without TLS a connection is authenticated at its start and not encrypted.

use crate::seal::ClusterKey;
use ring::hmac;
use sheep_types::{ClusterId, Incarnation, Member, NodeId};
use thiserror::Error;

const MAGIC: &[u8; 4] = b"SHDH";
const VERSION: u16 = 1;
/// Bytes of a hello.
pub(super) const HELLO: usize = 72;
/// Bytes of a proof.
pub(super) const PROOF: usize = 32;

const WANTS_TLS: u16 = 1;
const CAN_TLS: u16 = 2;

/// What a side says of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Secrecy {
    /// It encrypts what goes between nodes.
    pub(super) wants: bool,
    /// It has a certificate.
    pub(super) can: bool,
}

impl Secrecy {
    fn flags(self) -> u16 {
        u16::from(self.wants) * WANTS_TLS + u16::from(self.can) * CAN_TLS
    }

    /// Whether TLS begins after the proofs. Both sides come to the same.
    pub(super) fn agree(self, theirs: Self) -> Result<bool, HandshakeError> {
        match (self.wants || theirs.wants, self.can, theirs.can) {
            (false, _, _) => Ok(false),
            (true, true, true) => Ok(true),
            (true, _, false) => Err(HandshakeError::NoCertificate),
            (true, false, true) => Err(HandshakeError::WantsCertificate),
        }
    }
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum HandshakeError {
    #[error("not a Sheepdog data connection")]
    Magic,
    #[error("data protocol version {0} is not supported (this program speaks {VERSION})")]
    Version(u16),
    #[error("belongs to cluster {0}")]
    Cluster(ClusterId),
    #[error("does not hold this cluster's key")]
    Proof,
    #[error("is not the node that was called")]
    OtherNode,
    #[error("has no certificate, and data between nodes are to be encrypted (encrypt_data)")]
    NoCertificate,
    #[error(
        "wants data to be encrypted, and this node has no certificate (tls_ca, tls_certificate, tls_key)"
    )]
    WantsCertificate,
    #[error("cannot be spoken to in TLS: it does not begin here")]
    NoTls,
}

/// What each side says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) cluster: ClusterId,
    pub(super) from: Member,
    pub(super) secrecy: Secrecy,
    pub(super) nonce: [u8; 32],
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO] {
        let mut out = Vec::with_capacity(HELLO);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.secrecy.flags().to_le_bytes());
        out.extend_from_slice(&self.cluster.0.to_le_bytes());
        out.extend_from_slice(&self.from.node.0.to_le_bytes());
        out.extend_from_slice(&self.from.incarnation.0.to_le_bytes());
        out.extend_from_slice(&self.nonce);
        let mut hello = [0; HELLO];
        hello.copy_from_slice(&out);
        hello
    }

    /// Checks what came from the other side against our cluster.
    pub(super) fn decode(bytes: &[u8; HELLO], cluster: ClusterId) -> Result<Self, HandshakeError> {
        if !bytes.starts_with(MAGIC) {
            return Err(HandshakeError::Magic);
        }
        let version = u16::from_le_bytes(field(bytes, 4));
        if version != VERSION {
            return Err(HandshakeError::Version(version));
        }
        let theirs = ClusterId(u128::from_le_bytes(field(bytes, 8)));
        if theirs != cluster {
            return Err(HandshakeError::Cluster(theirs));
        }
        let node = NodeId(u64::from_le_bytes(field(bytes, 24)));
        let incarnation = Incarnation(u64::from_le_bytes(field(bytes, 32)));
        let flags = u16::from_le_bytes(field(bytes, 6));
        let secrecy = Secrecy { wants: flags & WANTS_TLS != 0, can: flags & CAN_TLS != 0 };
        Ok(Self { cluster, from: Member { node, incarnation }, secrecy, nonce: field(bytes, 40) })
    }
}

fn field<const N: usize>(bytes: &[u8; HELLO], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes.get(at..at + N).unwrap_or(&[0; N]));
    out
}

/// Which side a proof is of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Client,
    Server,
}

/// Makes and checks proofs.
pub(super) struct Prover(hmac::Key);

impl Prover {
    pub(super) fn new(key: &ClusterKey) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key.derive(&[b"data connection"])))
    }

    fn message(side: Side, client: &[u8; HELLO], server: &[u8; HELLO]) -> Vec<u8> {
        let side: &[u8] = match side {
            Side::Client => b"client",
            Side::Server => b"server",
        };
        [side, client, server].concat()
    }

    pub(super) fn prove(&self, side: Side, client: &[u8; HELLO], server: &[u8; HELLO]) -> [u8; PROOF] {
        let tag = hmac::sign(&self.0, &Self::message(side, client, server));
        let mut proof = [0; PROOF];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    pub(super) fn check(
        &self,
        side: Side,
        client: &[u8; HELLO],
        server: &[u8; HELLO],
        proof: &[u8],
    ) -> Result<(), HandshakeError> {
        let message = Self::message(side, client, server);
        hmac::verify(&self.0, &message, proof).map_err(|_| HandshakeError::Proof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(cluster: u128) -> Hello {
        let from = Member { node: NodeId(3), incarnation: Incarnation(4) };
        Hello { cluster: ClusterId(cluster), from, secrecy: Secrecy::default(), nonce: [9; 32] }
    }

    #[test]
    fn hellos_come_back_and_others_are_refused() {
        let bytes = hello(1).encode();
        assert_eq!(Hello::decode(&bytes, ClusterId(1)), Ok(hello(1)));
        assert_eq!(Hello::decode(&bytes, ClusterId(2)), Err(HandshakeError::Cluster(ClusterId(1))));
        assert_eq!(Hello::decode(&[0; HELLO], ClusterId(1)), Err(HandshakeError::Magic));
        let mut newer = bytes;
        newer[4] = 2;
        assert_eq!(Hello::decode(&newer, ClusterId(1)), Err(HandshakeError::Version(2)));
    }

    #[test]
    fn a_proof_is_of_one_side_one_connection_and_one_key() {
        let prover = Prover::new(&ClusterKey::new([1; 32]));
        let (a, b) = (hello(1).encode(), hello(2).encode());
        let proof = prover.prove(Side::Client, &a, &b);
        assert!(prover.check(Side::Client, &a, &b, &proof).is_ok());
        assert!(prover.check(Side::Server, &a, &b, &proof).is_err());
        assert!(prover.check(Side::Client, &b, &a, &proof).is_err());
        assert!(Prover::new(&ClusterKey::new([2; 32])).check(Side::Client, &a, &b, &proof).is_err());
    }

    #[test]
    fn tls_is_used_if_one_wants_it_and_both_can() {
        let all = [(false, false), (false, true), (true, true)];
        for (mine, theirs) in all.iter().flat_map(|mine| all.iter().map(move |theirs| (*mine, *theirs))) {
            let said = |(wants, can)| Secrecy { wants, can };
            let (one, other) = (said(mine).agree(said(theirs)), said(theirs).agree(said(mine)));
            let expected = (mine.0 || theirs.0, mine.1 && theirs.1);
            match expected {
                (false, _) => assert_eq!((one, other), (Ok(false), Ok(false))),
                (true, true) => assert_eq!((one, other), (Ok(true), Ok(true))),
                (true, false) => assert!(one.is_err() && other.is_err() && one != other),
            }
            let hello = Hello { secrecy: said(mine), ..hello(1) };
            assert_eq!(Hello::decode(&hello.encode(), ClusterId(1)), Ok(hello));
        }
    }

    proptest! {
        #[test]
        fn any_hello_is_refused_or_says_what_was_said(
            bytes in prop::array::uniform32(any::<u8>()), holes in prop::collection::vec((0..HELLO, any::<u8>()), 0..4),
        ) {
            let mut hello = hello(1).encode();
            hello[40..].copy_from_slice(&bytes);
            for (at, byte) in holes {
                hello[at] = byte;
            }
            if let Ok(decoded) = Hello::decode(&hello, ClusterId(1)) {
                // Flags that this version does not know are passed over.
                let mut plain = hello;
                plain[6..8].copy_from_slice(&[hello[6] & 3, 0]);
                prop_assert_eq!(decoded.encode(), plain);
            }
        }

        #[test]
        fn a_proof_that_is_not_the_right_one_proves_nothing(proof in prop::collection::vec(any::<u8>(), 0..80)) {
            let prover = Prover::new(&ClusterKey::new([1; 32]));
            let (a, b) = (hello(1).encode(), hello(2).encode());
            prop_assert_eq!(prover.check(Side::Server, &a, &b, &proof), Err(HandshakeError::Proof));
        }
    }
}
