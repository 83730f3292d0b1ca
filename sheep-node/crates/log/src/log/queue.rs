//! This node's own commands, from the proposal until they are committed in order.

use super::Log;
use super::term::{Current, Phase};
use crate::api::{Output, ProposeError};
use crate::codec::{COMMAND_OVERHEAD, command_message, voters_message};
use crate::entry::valid_voters;
use crate::mutant::Mutant;
use bytes::Bytes;
use sheep_types::{CommandSeq, NodeId, Time};
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Number of the last one that is committed with all before it.
    last: u64,
    /// Encoded messages with the numbers after `last`.
    messages: VecDeque<(u64, Bytes)>,
    bytes: usize,
    next: u64,
    /// Highest number ever given to the ring; of interest to a broken variant only.
    sent: u64,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// A command of this node is committed. The replicated state takes only the origin's last + 1; what
    /// came out of order had no effect, stays here and is sent again.
    pub(super) fn committed(&mut self, seq: CommandSeq, any_order: bool) {
        if seq.0 == self.last + 1 {
            self.advance_to(seq);
        } else if any_order
            && let Some(at) = self.messages.iter().position(|(s, _)| *s == seq.0)
            && let Some((_, message)) = self.messages.remove(at)
        {
            self.bytes -= message.len();
        }
    }

    fn advance_to(&mut self, seq: CommandSeq) {
        self.last = self.last.max(seq.0);
        self.next = self.next.max(seq.0);
        while self.messages.front().is_some_and(|(s, _)| *s <= self.last) {
            if let Some((_, message)) = self.messages.pop_front() {
                self.bytes -= message.len();
            }
        }
    }
}

impl Log {
    /// Queues a command. The log sends it, again in every term, until it is committed after all commands
    /// that were proposed before it.
    ///
    /// # Errors
    /// [`ProposeError::QueueFull`], [`ProposeError::TooLarge`] or [`ProposeError::Stopped`].
    pub fn propose(&mut self, _now: Time, command: Bytes) -> Result<CommandSeq, ProposeError> {
        if self.stopped {
            return Err(ProposeError::Stopped);
        }
        let limit = self.config.max_payload - COMMAND_OVERHEAD;
        if command.len() > limit {
            return Err(ProposeError::TooLarge { size: command.len(), limit });
        }
        let queue = &mut self.queue;
        if queue.messages.len() >= self.config.queue_commands
            || queue.bytes + command.len() + COMMAND_OVERHEAD > self.config.queue_bytes
        {
            return Err(ProposeError::QueueFull);
        }
        queue.next += 1;
        let seq = CommandSeq(queue.next);
        let message = command_message(self.me, seq, &command);
        queue.bytes += message.len();
        queue.messages.push_back((seq.0, message.clone()));
        if self.is_primary() {
            self.queue.sent = seq.0;
            self.stats.sent_commands += 1;
            self.outputs.push_back(Output::Multicast(message));
        }
        Ok(seq)
    }

    /// Sends everything that is not committed, in order: what was ordered before may have been cut off.
    pub(super) fn resend_queue(&mut self) {
        let from = if self.without(Mutant::NoResend) { self.queue.sent } else { 0 };
        let queue = &mut self.queue;
        for (seq, message) in queue.messages.iter().filter(|(seq, _)| *seq > from) {
            queue.sent = *seq;
            self.stats.sent_commands += 1;
            self.outputs.push_back(Output::Multicast(message.clone()));
        }
    }

    /// After [`Output::Restore`](crate::Output::Restore): the restored state has this as the last number of
    /// this node's present run.
    pub fn restored(&mut self, last: CommandSeq) {
        self.queue.advance_to(last);
    }

    /// Orders a change of the voters to `list`, sorted. It is sent once; if it is lost with its term,
    /// propose it again.
    ///
    /// # Errors
    /// [`ProposeError::NotPrimary`], [`ProposeError::ChangePending`], [`ProposeError::InvalidVoters`],
    /// [`ProposeError::NotCaughtUp`] or [`ProposeError::Stopped`].
    pub fn propose_voters(&mut self, _now: Time, list: Vec<NodeId>) -> Result<(), ProposeError> {
        if self.stopped {
            return Err(ProposeError::Stopped);
        }
        if !self.is_installed() {
            return Err(ProposeError::NotPrimary);
        }
        let lists = self.chain.lists();
        let Some(newest) = lists.last().filter(|_| lists.len() == 1) else {
            return Err(ProposeError::ChangePending);
        };
        if newest.list == list || list.len() > self.config.max_voters || !valid_voters(&list) {
            return Err(ProposeError::InvalidVoters);
        }
        for node in list.iter().filter(|node| !newest.list.contains(node)) {
            if !self.is_caught_up(*node) {
                return Err(ProposeError::NotCaughtUp(*node));
            }
        }
        let message = voters_message(self.me, newest.at, &list);
        self.outputs.push_back(Output::Multicast(message));
        Ok(())
    }

    fn is_caught_up(&self, node: NodeId) -> bool {
        let Some(Current { config, phase: Phase::Started(_), confirmed, .. }) = &self.current else {
            return false;
        };
        let place =
            if node == self.me.node { Some(self.durable) } else { confirmed.get(&node).map(|c| c.latest) };
        place.is_some_and(|p| {
            p.term == config.id
                && p.index.0.saturating_add(self.config.voter_lag) >= self.chain.last().index.0
        })
    }
}
