//! Bounds that every packet and every queue keeps, whatever a peer sends.

/// Largest payload of one message, bytes. Larger ones are refused; the packet has room for fragmentation.
pub const MAX_PAYLOAD: usize = 8192;
/// Most members of one ring: the token, with a note and candidates for each, must fit one datagram.
pub const MAX_MEMBERS: usize = 40;
/// Largest configuration number that is believed. A larger one in a packet makes it malformed, so that no
/// peer can bring the counter to its end.
pub const MAX_NUMBER: u64 = 1 << 62;

/// Most nodes that a join describes: one bit each in its bitmaps.
pub(crate) const MAX_KNOWN: usize = 64;
/// Most nodes remembered outside the configuration.
pub(crate) const MAX_PEERS: usize = 128;
/// Most candidates for admission that one member names on the token.
pub(crate) const MAX_CANDIDATES: usize = 4;
/// Most retransmission requests on the token.
pub(crate) const MAX_REQUESTS: usize = 64;
/// Most nodes in the list of heard nodes of a probe.
pub(crate) const MAX_HEARD: usize = 128;
