//! The envelope of every message.

use crate::{Reply, Request};
use sheep_types::{ClusterId, Epoch, Generation, Incarnation, LogIndex, Member, NodeId};

/// What every message says about its sender and about the knowledge it was sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the asker, unique within its run; the reply repeats it.
    pub request: u64,
    /// Both sides must be of this cluster.
    pub cluster: ClusterId,
    /// Who sends, in which of its runs.
    pub from: Member,
    /// The run of the receiver that is meant; any other refuses. Zero in requests that any run may answer
    /// (a check of the data path).
    pub to: Incarnation,
    /// Data shard of the receiver that owns the object (requests), or of the asker (replies).
    pub shard: u16,
    /// Epoch the sender acts in. The receiver answers only after it has applied this epoch, and from then on
    /// refuses older ones. In a reply: the epoch in which the answer holds.
    pub epoch: Epoch,
    /// Log index that the sender relies on; the receiver waits until it has applied it.
    pub relies_on: LogIndex,
    /// Generation of the VDI's lock in the sender's knowledge; zero where no holder is involved.
    pub generation: Generation,
}

/// A request or the reply to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for something.
    Request(Request),
    /// Answers the request with the same number.
    Reply(Reply),
}

/// A message on its way: to whom, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The receiving node; the sending node itself for its own replica.
    pub to: NodeId,
    /// The envelope.
    pub header: Header,
    /// The contents.
    pub message: Message,
}
