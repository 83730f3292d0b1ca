//! State Gather: nodes tell each other whom they hear, until all members of a group propose it.

use super::{Phase, Ring};
use crate::codec::{Join, Packet, RingSize, Row};
use crate::graph;
use crate::limits::MAX_KNOWN;
use crate::mutant::Mutant;
use crate::types::Destination;
use sheep_types::{ConfigId, Member, NodeId, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of another node that gathers.
#[derive(Debug)]
pub(super) struct Known {
    row: Row,
    /// When its newest row came.
    learned: Time,
}

/// What state Gather (and Commit, for late joins) keeps.
#[derive(Debug)]
pub(super) struct Gather {
    rows: BTreeMap<NodeId, Known>,
    /// Members of the last configuration that are waited for.
    expected: BTreeSet<NodeId>,
    /// Foreign nodes that this configuration is to take in, in which run.
    invited: BTreeMap<NodeId, Member>,
    /// Before this nothing is decided.
    settle_at: Time,
    /// Until this the invited are waited for.
    invited_until: Time,
    /// Until this the members of the last configuration are waited for.
    expected_until: Time,
    chosen: Vec<Member>,
    ready: bool,
    /// Sets proposed in this state, newest last.
    announced: Vec<Vec<Member>>,
    sent_at: Time,
    join_at: Time,
}

const ANNOUNCED: usize = 8;

impl Gather {
    pub(super) fn wake_at(&self) -> Time {
        self.join_at
    }

    /// The old run of a node is gone.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.rows.remove(&node);
        self.expected.remove(&node);
    }

    /// A node is gone, and does not come back as long as this lasts.
    fn forget_invited(&mut self, node: NodeId) {
        self.forget(node);
        self.invited.remove(&node);
    }

    fn invite(&mut self, invited: &[Member], me: Member) {
        for member in invited.iter().filter(|m| m.node != me.node) {
            if self.invited.len() < MAX_KNOWN && !self.expected.contains(&member.node) {
                self.invited.insert(member.node, *member);
            }
        }
    }

    /// Takes over a row if it is news.
    pub(super) fn merge(&mut self, row: &Row, now: Time) {
        let node = row.member.node;
        let room = self.rows.len() + self.invited.len() + 1 < MAX_KNOWN || self.expected.contains(&node);
        match self.rows.get_mut(&node) {
            Some(known) => {
                let age = |r: &Row| (r.member.incarnation, r.version);
                if age(row) > age(&known.row) {
                    *known = Known { row: row.clone(), learned: now };
                }
            }
            None if room => {
                self.rows.insert(node, Known { row: row.clone(), learned: now });
            }
            None => {}
        }
    }

    pub(super) fn row(&self, node: NodeId) -> Option<&Row> {
        self.rows.get(&node).map(|known| &known.row)
    }

    /// The group proposed now.
    pub(super) fn chosen(&self) -> &[Member] {
        &self.chosen
    }

    /// Whether this very membership was proposed here.
    pub(super) fn has_announced(&self, members: &[Member]) -> bool {
        self.announced.iter().any(|set| set == members)
    }
}

impl Ring {
    /// Starts to form a configuration. `invited` are foreign nodes to take in.
    pub(super) fn gather(&mut self, now: Time, invited: &[Member]) {
        if let Phase::Gather(gather) = &mut self.phase {
            gather.invite(invited, self.me);
            return;
        }
        // An attempt that failed is repeated with those that took part in it: the others were waited for.
        let last = if matches!(self.phase, Phase::Left) { &[] } else { self.members() };
        let expected = last.iter().filter(|m| **m != self.me && !self.peers.is_gone(**m));
        let expected = expected.map(|m| m.node).collect();
        self.run = None;
        self.stats.gathers += 1;
        let mut gather = Gather {
            rows: BTreeMap::new(),
            expected,
            invited: BTreeMap::new(),
            settle_at: now + self.config.join_interval * 2,
            invited_until: now + self.config.heard_window(),
            expected_until: now + self.config.consensus,
            chosen: vec![self.me],
            ready: false,
            announced: Vec::new(),
            sent_at: now,
            join_at: now,
        };
        gather.invite(invited, self.me);
        self.admission.attempt(invited);
        self.phase = Phase::Gather(gather);
        self.announce(now);
    }

    /// A node says that its run is over: nobody waits for it.
    pub(super) fn on_leaving(&mut self, now: Time, sender: Member) {
        self.peers.leave(sender);
        if let Phase::Gather(gather) = &mut self.phase {
            gather.forget_invited(sender.node);
            self.propose(now);
        } else if self.members().contains(&sender) {
            self.gather(now, &[]);
        }
    }

    pub(super) fn gather_timeout(&mut self, now: Time) {
        let due = matches!(&self.phase, Phase::Gather(gather) if gather.join_at <= now);
        if due {
            self.propose(now);
            if matches!(self.phase, Phase::Gather(_)) {
                self.announce(now);
            }
        }
    }

    /// Computes the group to propose, and commits to it when all its members propose it.
    fn propose(&mut self, now: Time) {
        let row_window = self.config.row_window();
        let Phase::Gather(gather) = &mut self.phase else { return };
        gather.rows.retain(|_, known| now.since(known.learned) <= row_window);
        let own = self.describe(now);
        let Phase::Gather(gather) = &mut self.phase else { return };
        let me = self.me;
        // Who commits to a configuration without this node is busy.
        let free = |row: &&Row| !row.committing || row.chosen.contains(&me);
        let mut rows: Vec<&Row> = gather.rows.values().map(|known| &known.row).filter(free).collect();
        rows.push(&own);
        rows.sort_by_key(|row| row.member.node);
        let chosen = graph::choose(&rows, me);
        let taken = |node: &NodeId| chosen.iter().any(|m| m.node == *node);
        let waits = |complete: bool, until: Time| !complete && now < until;
        let ready = now >= gather.settle_at
            && !waits(gather.expected.iter().all(taken), gather.expected_until)
            && !waits(gather.invited.keys().all(taken), gather.invited_until);
        let changed = chosen != gather.chosen || ready != gather.ready;
        gather.chosen = chosen;
        gather.ready = ready;
        if changed {
            // At once, but for a flood of changes.
            gather.join_at = gather.join_at.min((gather.sent_at + self.config.join_interval / 5).max(now));
            if gather.join_at <= now {
                self.announce(now);
            }
        }
        self.check_consensus(now);
    }

    /// Consensus: all members of the group propose it and wait for nobody.
    fn check_consensus(&mut self, now: Time) {
        let Phase::Gather(gather) = &self.phase else { return };
        let agrees = |m: &Member| {
            *m == self.me
                || gather.row(m.node).is_some_and(|r| r.member == *m && r.ready && r.chosen == gather.chosen)
        };
        if !gather.ready || !gather.chosen.iter().all(agrees) {
            return;
        }
        let highest = gather.rows.values().map(|known| known.row.number).max().unwrap_or(0);
        let number = highest.max(self.numbers.highest()) + 1;
        // All members write the number that the representative will take, at the same time.
        self.numbers.prepare(number, &mut self.out);
        if gather.chosen.first() == Some(&self.me) {
            self.begin_commit(now, number);
        }
    }

    /// This node's row.
    fn describe(&self, now: Time) -> Row {
        let mut own = self.own_row(self.taken_number());
        let Phase::Gather(gather) = &self.phase else { return own };
        let since = now - self.config.heard_window();
        for row in gather.rows.values().map(|known| &known.row) {
            let member = row.member;
            if self.accuses(member, row.rejoins, now) {
                own.accused.push(member);
            }
            // Waiting times keep nodes from starting this, not from taking part.
            if self.peers.heard_since(member, since) {
                own.heard.push(member);
            }
        }
        own.chosen = gather.chosen.clone();
        own.ready = gather.ready;
        own
    }

    /// Sends a join.
    fn announce(&mut self, now: Time) {
        self.join += 1;
        let join_at = self.jittered(now, self.config.join_interval);
        let own = self.describe(now);
        let Phase::Gather(gather) = &mut self.phase else { return };
        gather.sent_at = now;
        gather.join_at = join_at;
        if gather.ready && gather.announced.last() != Some(&gather.chosen) {
            if gather.announced.len() >= ANNOUNCED {
                gather.announced.remove(0);
            }
            gather.announced.push(gather.chosen.clone());
        }
        let packet = join_packet(gather, own, self.ring_size, ConfigId::default());
        self.send_join(now, &packet);
    }

    /// Sends a join in state Commit, for members that have not yet seen the agreement. It names the number
    /// as it was before: the new one does not speak against the configuration that it is for.
    pub(super) fn announce_commit(&mut self, now: Time, forming: ConfigId, number: u64) {
        self.join += 1;
        let mut own = self.own_row(number);
        let Phase::Commit(commit) = &self.phase else { return };
        own.chosen = commit.members().to_vec();
        own.heard = own.chosen.iter().copied().filter(|m| *m != self.me).collect();
        own.ready = true;
        own.committing = true;
        let packet = join_packet(commit.gather(), own, self.ring_size, forming);
        self.send_join(now, &packet);
    }

    /// A node that cannot make a number durable keeps quiet: the others would wait for it in vain.
    fn send_join(&mut self, now: Time, packet: &Packet) {
        if self.numbers.waits(now) < self.config.token_loss {
            self.send(Destination::Everyone, packet);
        }
    }

    pub(super) fn on_join(&mut self, now: Time, sender: Member, join: Join) {
        let Some(row) = join.rows.iter().find(|row| row.member == sender && row.version > 0).cloned() else {
            self.stats.malformed += 1;
            return;
        };
        let Some(peer) = self.peers.get_mut(sender.node) else { return };
        if row.version <= peer.join {
            self.stats.stale += 1;
            return;
        }
        peer.join = row.version;
        peer.rejoins = peer.rejoins.max(row.rejoins);
        if row.accused.contains(&self.me) {
            self.accused_by_others = true;
        }
        if let Some(number) = join.rows.iter().map(|row| row.number).max() {
            self.numbers.observe(number, &mut self.out);
        }
        match self.phase {
            Phase::Gather(_) => self.merge_join(now, &join),
            Phase::Commit(_) => self.join_in_commit(now, &row),
            Phase::Recovery(_) | Phase::Operational => self.join_in_ring(now, &row, &join),
            Phase::Left => {}
        }
    }

    /// A join while a configuration runs: from a member it ends it, from a foreign node only if that one
    /// invites this one, and never a primary configuration.
    fn join_in_ring(&mut self, now: Time, row: &Row, join: &Join) {
        let Some(run) = &self.run else { return };
        if join.forming == run.id {
            return;
        }
        if self.members().contains(&row.member) {
            if run.void_joins.get(&row.member.node).is_some_and(|void| row.version <= *void) {
                self.stats.stale += 1;
                return;
            }
            self.gather(now, &[]);
            self.merge_join(now, join);
            return;
        }
        // Named without a row of its own: invited. With one, it was there and left again.
        let names_me = join.rows.iter().any(|r| r.member == self.me && r.version == 0)
            && !row.accused.contains(&self.me);
        // A primary takes in whom it can. Between others a node moves only to what becomes larger than what
        // it leaves: so every move grows the larger ring, and with links as they are the moves come to an end.
        let better = row.primary || join.ring.with(self.weight) > self.ring_size;
        let anyone = self.config.mutants.is(Mutant::AnyoneDisturbs);
        let named = names_me
            && better
            && !self.primary
            && matches!(self.phase, Phase::Operational)
            && !self.admission.blocks(row.member.node, now)
            && !self.accuses(row.member, row.rejoins, now);
        let welcome = named || anyone;
        if welcome {
            self.gather(now, &[row.member]);
            self.merge_join(now, join);
        } else {
            self.stats.refused += 1;
            self.answer(now, row.member);
        }
    }

    fn merge_join(&mut self, now: Time, join: &Join) {
        let (me, peers) = (self.me, &self.peers);
        let Phase::Gather(gather) = &mut self.phase else { return };
        let mut invited = Vec::new();
        for row in join.rows.iter().filter(|row| row.member.node != me.node && !peers.is_gone(row.member)) {
            if row.version == 0 {
                invited.push(row.member);
            } else {
                gather.merge(row, now);
            }
        }
        gather.invite(&invited, me);
        self.admission.attempt(&invited);
        self.propose(now);
    }
}

fn join_packet(gather: &Gather, own: Row, ring: RingSize, forming: ConfigId) -> Packet {
    let mut rows: BTreeMap<NodeId, Row> = BTreeMap::new();
    for known in gather.rows.values() {
        rows.insert(known.row.member.node, known.row.clone());
    }
    for member in gather.invited.values() {
        let named = Row {
            member: *member,
            version: 0,
            number: 0,
            rejoins: 0,
            weight: 0,
            ready: false,
            committing: false,
            primary: false,
            previous: ConfigId::default(),
            heard: Vec::new(),
            accused: Vec::new(),
            chosen: Vec::new(),
        };
        rows.entry(member.node).or_insert(named);
    }
    while rows.len() >= MAX_KNOWN {
        rows.pop_last();
    }
    rows.insert(own.member.node, own);
    Packet::Join(Join { forming, layout: 0, ring, rows: rows.into_values().collect() })
}
