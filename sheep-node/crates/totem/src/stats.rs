//! Counters of a ring.

/// What happened since the ring was made. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets that did not decode.
    pub malformed: u64,
    /// Packets of another cluster: a configuration error that the node must report loudly.
    pub foreign_cluster: u64,
    /// Packets of an incarnation that is known to be gone.
    pub old_incarnation: u64,
    /// Packets with this node's own id, from another run or another machine.
    pub own_id: u64,
    /// Packets of a configuration that this node is not in.
    pub foreign_config: u64,
    /// Joins, tokens and messages that came twice or late.
    pub stale: u64,
    /// Packets that were well-formed but not acceptable in this state or from this sender.
    pub refused: u64,
    /// Regular configurations installed.
    pub configurations: u64,
    /// Times that the membership protocol started.
    pub gathers: u64,
    /// Times that the token was lost.
    pub token_losses: u64,
    /// Tokens sent again.
    pub token_retransmits: u64,
    /// Visits of the token.
    pub visits: u64,
    /// Messages (datagrams) sent in order, without retransmissions.
    pub messages_sent: u64,
    /// Messages sent again on request.
    pub retransmits: u64,
    /// Messages of the last configuration that were sent again in recovery.
    pub recovered: u64,
    /// Payloads delivered in regular configurations.
    pub delivered: u64,
    /// Payloads delivered in transitional configurations.
    pub delivered_transitional: u64,
    /// Times that a member was failed because it did not receive.
    pub failed_to_receive: u64,
    /// Candidates that were invited and did not come in, or did not stay.
    pub admissions_refused: u64,
    /// Nodes not remembered because the table is full.
    pub peers_dropped: u64,
}
