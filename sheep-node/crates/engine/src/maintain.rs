//! Housekeeping: what a node proposes by itself. Timers only propose; each command names what was seen and
//! does nothing if that no longer holds when it is applied.

use crate::control::{Control, ControlOutput};
use core::time::Duration;
use sheep_state::{Changes, Command, NodeState, Role};
use sheep_types::{LogIndex, NodeId, Term, Time};
use std::collections::{BTreeMap, BTreeSet};

/// How often something that was proposed and has not come about is proposed again, in maintenance intervals.
const AGAIN_INTERVALS: u32 = 8;
/// A node's weight is not lowered again sooner: it takes time until what was moved off it is deleted there.
const WEIGH_AGAIN: Duration = Duration::from_secs(600);

/// When to look, and what was proposed already.
#[derive(Debug)]
pub(crate) struct Housekeeping {
    next: Time,
    /// Term and time of the last announcement of this node.
    announced: Option<(Term, Time)>,
    voters_proposed: Time,
    /// Since when, by this node's clock, a node has been down (named by the entry that said so).
    down: BTreeMap<(NodeId, LogIndex), Time>,
    out_proposed: BTreeMap<NodeId, Time>,
    /// When a node's weight was last lowered.
    weighed: BTreeMap<NodeId, Time>,
    /// Reports this node has been asked to test, and when each was first seen.
    reports: BTreeMap<LogIndex, Time>,
    tested: BTreeSet<LogIndex>,
}

impl Housekeeping {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            next: now,
            announced: None,
            voters_proposed: Time::ZERO,
            down: BTreeMap::new(),
            out_proposed: BTreeMap::new(),
            weighed: BTreeMap::new(),
            reports: BTreeMap::new(),
            tested: BTreeSet::new(),
        }
    }

    pub(crate) fn due(&self, now: Time) -> bool {
        self.next <= now
    }

    pub(crate) fn next(&self) -> Time {
        self.next
    }

    pub(crate) fn announce_again(&mut self) {
        self.announced = None;
        self.next = Time::ZERO;
    }

    /// An entry changed something that may want an answer at once.
    pub(crate) fn applied(&mut self, now: Time, changes: &Changes) {
        if changes.epoch.is_some() || changes.reports || changes.voters {
            self.next = self.next.min(now);
        }
    }
}

impl Control {
    pub(crate) fn note(&mut self, text: String) {
        self.outputs.push_back(ControlOutput::Note(text));
    }

    pub(crate) fn maintain(&mut self, now: Time) {
        self.housekeeping.next = now + self.config.maintain_interval;
        if self.watch.hangs(now) {
            self.note("disk of the log does not answer: leaving the ring until it does".into());
            self.ring.leave(now);
        }
        if self.ring.is_excluded() && self.test_write.is_none() {
            self.note("the others went on without this node: testing its disk".into());
            self.test_write = Some(self.log.persist_number(self.ring.highest_number()));
        }
        if !self.log.is_installed() {
            return;
        }
        self.announce(now);
        if self.leads() {
            self.propose_voters(now);
            self.propose_out(now);
            self.propose_weight(now);
        }
        self.test_reports(now);
    }

    fn again(&self) -> Duration {
        self.config.maintain_interval * AGAIN_INTERVALS
    }

    /// Says that this run is up, in each term in which the state does not show it.
    fn announce(&mut self, now: Time) {
        if self.state.is_up(self.me) {
            return;
        }
        let term = self.log.term();
        if self.housekeeping.announced.is_some_and(|(t, at)| t == term && now.since(at) < self.again()) {
            return;
        }
        self.housekeeping.announced = Some((term, now));
        let seen_down_since = match self.state.node(self.me.node) {
            Some(record) if record.incarnation == self.me.incarnation => match record.state {
                NodeState::Down { since, .. } | NodeState::Out { since, .. } => Some(since),
                NodeState::Up | NodeState::Leaving => None,
            },
            Some(_) | None => None,
        };
        let up = sheep_state::NodeUp { seen_down_since, ..self.config.profile.announcement() };
        self.order(now, &Command::NodeUp(up));
    }

    /// One node proposes for all: the lowest storage node that is up and in the configuration.
    fn leads(&self) -> bool {
        let present: BTreeSet<NodeId> = self.state.configuration().iter().map(|member| member.node).collect();
        self.state
            .nodes()
            .find(|node| node.role == Role::Storage && node.state.is_up() && present.contains(&node.node))
            .is_some_and(|node| node.node == self.me.node)
    }

    fn propose_voters(&mut self, now: Time) {
        if now.since(self.housekeeping.voters_proposed) < self.again()
            && self.housekeeping.voters_proposed != Time::ZERO
        {
            return;
        }
        if let Some(list) = self.state.desired_voters() {
            // Refused while a change is pending or a new voter lags. Then it is asked again soon: until the list has
            // grown, the first node of a new cluster decides alone.
            if self.log.propose_voters(now, list).is_ok() {
                self.housekeeping.voters_proposed = now;
            }
        }
    }

    fn propose_out(&mut self, now: Time) {
        let settings = self.state.settings();
        if !settings.automatic_out {
            return;
        }
        let delay = Duration::from_millis(settings.out_delay_ms);
        let down: Vec<_> = self
            .state
            .nodes()
            .filter_map(|node| match node.state {
                NodeState::Down { since, .. } if node.role == Role::Storage => {
                    Some((node.node, node.incarnation, since))
                }
                _ => None,
            })
            .collect();
        let hurry = self.below_min_copies();
        let known: BTreeSet<(NodeId, LogIndex)> =
            down.iter().map(|(node, _, since)| (*node, *since)).collect();
        self.housekeeping.down.retain(|key, _| known.contains(key));
        for (node, incarnation, down_since) in down {
            let since = *self.housekeeping.down.entry((node, down_since)).or_insert(now);
            let due =
                now.since(since) >= delay || (hurry && now.since(since) >= self.config.ring.token_loss * 2);
            let again = self.again();
            let asked = self.housekeeping.out_proposed.get(&node).is_some_and(|at| now.since(*at) < again);
            if due && !asked {
                self.housekeeping.out_proposed.insert(node, now);
                self.order(now, &Command::ProposeOut { node, incarnation, down_since, by_operator: false });
            }
        }
    }

    /// Objects move off a node that is much fuller than the others.
    fn propose_weight(&mut self, now: Time) {
        let Some((node, weight)) = self.state.overfull_node() else { return };
        let weighed = &mut self.housekeeping.weighed;
        if weighed.get(&node).is_some_and(|at| now.since(*at) < WEIGH_AGAIN) {
            return;
        }
        weighed.insert(node, now);
        self.note(format!(
            "node {node} is nearly full: its weight becomes {weight}, so that objects move off it"
        ));
        self.order(now, &Command::SetWeight { node, weight: Some(weight) });
    }

    /// Whether some set of objects may be below its least number of copies, so that writes wait: then it does
    /// not pay to wait for a node to come back.
    fn below_min_copies(&self) -> bool {
        let members = self.state.members();
        let down = members.iter().filter(|member| !member.is_up()).count();
        let settings = self.state.settings();
        let (copies, least) = (
            members.effective_copies(settings.copies),
            members.effective_min_copies(settings.copies, settings.min_copies),
        );
        down > copies.saturating_sub(least)
    }

    fn test_reports(&mut self, now: Time) {
        let open: Vec<(LogIndex, sheep_types::Member)> =
            self.state.open_reports().map(|report| (report.index, report.suspect)).collect();
        let indexes: BTreeSet<LogIndex> = open.iter().map(|(index, _)| *index).collect();
        self.housekeeping.reports.retain(|index, _| indexes.contains(index));
        self.housekeeping.tested.retain(|index| indexes.contains(index));
        let leads = self.leads();
        for (report, peer) in open {
            let seen = *self.housekeeping.reports.entry(report).or_insert(now);
            if self.housekeeping.tested.insert(report)
                && peer.node != self.me.node
                && self.state.is_up(self.me)
            {
                self.outputs.push_back(ControlOutput::TestPeer { report, peer });
            }
            if leads && now.since(seen) >= self.config.report_timeout {
                self.order(now, &Command::CloseReport { report });
            }
        }
    }
}
