//! Commands of this node that wait for their answer.

use sheep_state::{Answer, Outcome, Refusal};
use sheep_types::{CommandSeq, Member};
use std::collections::BTreeMap;

/// Which token waits for which command. Tokens are the caller's; housekeeping has none.
#[derive(Debug, Default)]
pub(crate) struct Proposals {
    waiting: BTreeMap<CommandSeq, u64>,
}

impl Proposals {
    pub(crate) fn wait(&mut self, seq: CommandSeq, token: u64) {
        self.waiting.insert(seq, token);
    }

    /// The token whose command this answers, if it is one of this run of this node.
    pub(crate) fn answered(&mut self, me: Member, answer: Answer) -> Option<(u64, Result<Outcome, Refusal>)> {
        if answer.origin != me {
            return None;
        }
        self.waiting.remove(&answer.seq).map(|token| (token, answer.result))
    }

    /// After a restored snapshot: commands up to `last` are in it, their answers are not.
    pub(crate) fn lost(&mut self, last: CommandSeq) -> Vec<u64> {
        let later = self.waiting.split_off(&CommandSeq(last.0 + 1));
        core::mem::replace(&mut self.waiting, later).into_values().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}
