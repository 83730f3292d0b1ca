//! State Commit: the commit token goes round. First each member makes the number durable and says what
//! it has of its last configuration, then each reads what the others said.

use super::gather::Gather;
use super::{Phase, Ring};
use crate::codec::{CommitEntry, CommitToken, Packet, Row};
use crate::mutant::Mutant;
use crate::types::Destination;
use bytes::Bytes;
use sheep_types::{ConfigId, Member, NodeId, Time};

/// What state Commit keeps.
#[derive(Debug)]
pub(super) struct Commit {
    id: ConfigId,
    members: Vec<Member>,
    /// Highest number taken before this attempt.
    before: u64,
    gather: Gather,
    /// The token while the number is not durable.
    waiting: Option<CommitToken>,
    /// What was sent to whom, to be sent again.
    sent: Option<(NodeId, Bytes)>,
    retransmit_at: Time,
    loss_at: Time,
    join_at: Time,
}

impl Commit {
    pub(super) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(super) fn gather(&self) -> &Gather {
        &self.gather
    }

    pub(super) fn wake_at(&self) -> Time {
        let at = self.loss_at.min(self.join_at);
        if self.sent.is_some() { at.min(self.retransmit_at) } else { at }
    }
}

/// The member after `node`, round the ring.
pub(super) fn successor(members: &[Member], node: NodeId) -> Option<NodeId> {
    let index = members.iter().position(|m| m.node == node)?;
    members.get(index + 1).or(members.first()).map(|m| m.node)
}

impl Ring {
    /// As representative of the agreed group.
    pub(super) fn begin_commit(&mut self, now: Time, number: u64) {
        let Phase::Gather(gather) = &self.phase else { return };
        let id = ConfigId { number, representative: self.me.node };
        let entry = |member: &Member| CommitEntry {
            member: *member,
            weight: 0,
            filled: false,
            previous: ConfigId::default(),
            aru: 0,
            high: 0,
            join: 0,
        };
        let token =
            CommitToken { config: id, round: 1, entries: gather.chosen().iter().map(entry).collect() };
        self.enter_commit(now, token);
    }

    fn enter_commit(&mut self, now: Time, token: CommitToken) {
        let before = self.taken_number();
        let gather = match core::mem::replace(&mut self.phase, Phase::Left) {
            Phase::Gather(gather) => gather,
            Phase::Commit(commit) => commit.gather,
            other => {
                self.phase = other;
                return;
            }
        };
        self.phase = Phase::Commit(Commit {
            id: token.config,
            members: token.entries.iter().map(|e| e.member).collect(),
            before,
            gather,
            waiting: None,
            sent: None,
            retransmit_at: now,
            loss_at: now + self.config.token_loss,
            join_at: now + self.config.join_interval,
        });
        self.numbers.take(token.config.number, &mut self.out);
        self.announce_commit(now, token.config, before);
        if let Phase::Commit(commit) = &mut self.phase {
            commit.waiting = Some(token);
        }
        self.commit_number_durable(now);
    }

    /// Fills in this node's entry and passes the token on, once the number is durable.
    pub(super) fn commit_number_durable(&mut self, now: Time) {
        let Phase::Commit(commit) = &mut self.phase else { return };
        if !self.numbers.is_durable(commit.id.number) && !self.config.mutants.is(Mutant::NumberNotAwaited) {
            return;
        }
        let Some(mut token) = commit.waiting.take() else { return };
        let previous = self.order.as_ref();
        for entry in token.entries.iter_mut().filter(|e| e.member == self.me) {
            entry.filled = true;
            entry.weight = self.weight;
            entry.previous = previous.map_or(ConfigId::default(), |o| o.config.id);
            entry.aru = previous.map_or(0, |o| o.aru);
            entry.high = previous.map_or(0, |o| o.high.max(o.aru));
            entry.join = self.join;
        }
        commit.loss_at = now + self.config.token_loss;
        if commit.members.len() == 1 {
            self.enter_recovery(now, &token);
            self.start_token(now);
        } else {
            self.send_commit_token(now, token);
        }
    }

    fn send_commit_token(&mut self, now: Time, token: CommitToken) {
        let members: Vec<Member> = token.entries.iter().map(|e| e.member).collect();
        let Some(to) = successor(&members, self.me.node) else { return };
        let bytes = self.send(Destination::Node(to), &Packet::Commit(token));
        let retransmit_at = now + self.config.token_retransmit;
        match &mut self.phase {
            Phase::Commit(commit) => {
                commit.sent = Some((to, bytes));
                commit.retransmit_at = retransmit_at;
            }
            _ => {
                if let Some(run) = &mut self.run {
                    run.sent = Some(bytes);
                    run.retransmit_at = retransmit_at;
                }
            }
        }
    }

    pub(super) fn on_commit_token(&mut self, now: Time, sender: Member, token: CommitToken) {
        let members: Vec<Member> = token.entries.iter().map(|e| e.member).collect();
        let expected = successor(&members, sender.node) == Some(self.me.node) && members.contains(&sender);
        if !members.contains(&self.me) || !expected {
            self.stats.refused += 1;
            return;
        }
        match &self.phase {
            Phase::Gather(gather) => {
                let agreed = gather.chosen() == members || gather.has_announced(&members);
                let number = token.config.number;
                // A member that has taken this number in another attempt will not commit to this one.
                let dead = |m: &Member| gather.row(m.node).is_some_and(|row| row.number >= number);
                let fresh = number > self.taken_number() && !members.iter().any(dead);
                let representative = token.config.representative == self.me.node;
                if agreed && fresh && token.round == 1 && !representative {
                    self.enter_commit(now, token);
                } else {
                    self.stats.refused += 1;
                }
            }
            Phase::Commit(commit) if commit.id == token.config && commit.members == members => {
                self.commit_token_again(now, token);
            }
            // The representative gave its first attempt up.
            Phase::Commit(commit)
                if commit.members == members
                    && commit.id.representative == token.config.representative
                    && token.config.number > self.taken_number()
                    && token.round == 1 =>
            {
                self.enter_commit(now, token);
            }
            Phase::Recovery(_) => self.commit_token_back(now, &token),
            _ => self.stats.stale += 1,
        }
    }

    fn commit_token_again(&mut self, now: Time, mut token: CommitToken) {
        let representative = token.config.representative == self.me.node;
        let complete = token.entries.iter().all(|e| e.filled);
        let waiting = matches!(&self.phase, Phase::Commit(commit) if commit.waiting.is_some());
        match token.round {
            1 if representative && complete => token.round = 2,
            2 if !representative && !waiting => {}
            _ => {
                self.stats.stale += 1;
                return;
            }
        }
        self.enter_recovery(now, &token);
        self.send_commit_token(now, token);
    }

    /// The representative gets the commit token back: all members are in state Recovery.
    fn commit_token_back(&mut self, now: Time, token: &CommitToken) {
        let mine = self.run.as_ref().is_some_and(|run| run.id == token.config && !run.started());
        if mine && token.config.representative == self.me.node && token.round == 2 {
            self.start_token(now);
        } else {
            self.stats.stale += 1;
        }
    }

    /// A member that is back in Gather, or cannot take the number, will not commit.
    pub(super) fn join_in_commit(&mut self, now: Time, row: &Row) {
        let Phase::Commit(commit) = &mut self.phase else { return };
        if !commit.members.contains(&row.member) {
            return;
        }
        let took_part = commit.gather.row(row.member.node).is_some_and(|known| known.committing);
        commit.gather.merge(row, now);
        if row.committing {
            return;
        }
        if took_part || row.number >= commit.id.number {
            self.gather(now, &[]);
        }
    }

    pub(super) fn commit_timeout(&mut self, now: Time) {
        let Phase::Commit(commit) = &mut self.phase else { return };
        if commit.loss_at <= now {
            self.gather(now, &[]);
            return;
        }
        if commit.retransmit_at <= now
            && let Some((to, packet)) = commit.sent.clone()
        {
            commit.retransmit_at = now + self.config.token_retransmit;
            self.stats.token_retransmits += 1;
            self.out.push_back(crate::types::Output::Send { to: Destination::Node(to), packet });
        }
        if commit.join_at <= now {
            commit.join_at = now + self.config.join_interval;
            let (id, before) = (commit.id, commit.before);
            self.announce_commit(now, id, before);
        }
    }
}
