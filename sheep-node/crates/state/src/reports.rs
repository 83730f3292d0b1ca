//! Reports of nodes whose ring traffic works but whose data path does not.
//!
//! A report makes every up storage node test the reported one. Anybody who confirms it brings the node down. If
//! nobody does, it is one pair that cannot talk, and one of the two must go: the one that appears in reports
//! with more than one partner, else the reported one; of two that report each other the lower id stays.

use crate::apply::Step;
use crate::limits::MAX_REPORTS;
use crate::{ClusterState, DownCause, Limited, Outcome, Refusal, Role};
use serde::{Deserialize, Serialize};
use sheep_types::{Epoch, LogIndex, Member, NodeId};
use std::collections::BTreeSet;

/// A report. Decided ones are remembered until the next term: they tell a node that cannot reach many from the
/// many it cannot reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRecord {
    /// Index of the entry.
    pub index: LogIndex,
    /// Who got no answer.
    pub reporter: Member,
    /// From whom.
    pub suspect: Member,
    /// The epoch then.
    pub epoch: Epoch,
    /// Nodes that have not said yet whether they reach the suspect.
    pub awaited: BTreeSet<NodeId>,
    /// Not decided.
    pub open: bool,
}

impl ReportRecord {
    /// The other of the pair, if the node is one of it.
    fn partner_of(&self, node: NodeId) -> Option<NodeId> {
        if self.reporter.node == node {
            Some(self.suspect.node)
        } else if self.suspect.node == node {
            Some(self.reporter.node)
        } else {
            None
        }
    }
}

impl ClusterState {
    pub(crate) fn report(
        &mut self,
        step: &mut Step,
        suspect: Member,
        epoch: Epoch,
    ) -> Result<Outcome, Refusal> {
        let reporter = step.origin;
        self.require_up(reporter)?;
        let known = self.node(suspect.node).ok_or(Refusal::NoSuchNode(suspect.node))?;
        if known.role != Role::Storage {
            return Err(Refusal::NotStorage(suspect.node));
        }
        if epoch != self.epoch() || !known.is_up_as(suspect.incarnation) {
            return Err(Refusal::StaleView);
        }
        if reporter == suspect {
            // Its own check of its data path fails: nobody needs to be asked.
            self.report_down(step, suspect.node);
            return Ok(Outcome::Done);
        }
        let same =
            |report: &&ReportRecord| report.open && (report.reporter, report.suspect) == (reporter, suspect);
        if let Some(open) = self.reports.iter().find(same) {
            return Ok(Outcome::Reported { report: open.index });
        }
        if self.reports.len() >= MAX_REPORTS {
            let decided = self.reports.iter().position(|report| !report.open);
            let limit = Refusal::Limit { what: Limited::Reports, limit: MAX_REPORTS as u64 };
            self.reports.remove(decided.ok_or(limit)?);
        }
        let others = self.storage_nodes().filter(|node| node.state.is_up()).map(|node| node.node);
        let awaited = others.filter(|node| *node != reporter.node && *node != suspect.node).collect();
        let index = step.at;
        self.reports.push(ReportRecord { index, reporter, suspect, epoch, awaited, open: true });
        step.changes.reports = true;
        self.settle_reports(step);
        Ok(Outcome::Reported { report: index })
    }

    pub(crate) fn report_result(
        &mut self,
        step: &mut Step,
        report: LogIndex,
        reachable: bool,
    ) -> Result<Outcome, Refusal> {
        let tester = self.require_storage(step.origin)?;
        let found = self.reports.iter_mut().find(|found| found.index == report && found.open);
        let found = found.ok_or(Refusal::NoSuchReport)?;
        if !found.awaited.remove(&tester) {
            return Ok(Outcome::Done);
        }
        step.changes.reports = true;
        if !reachable {
            found.open = false;
            let suspect = found.suspect.node;
            self.report_down(step, suspect);
        }
        self.settle_reports(step);
        Ok(Outcome::Done)
    }

    pub(crate) fn close_report(&mut self, step: &mut Step, report: LogIndex) -> Result<Outcome, Refusal> {
        let found = self.reports.iter_mut().find(|found| found.index == report && found.open);
        found.ok_or(Refusal::NoSuchReport)?.awaited.clear();
        step.changes.reports = true;
        self.settle_reports(step);
        Ok(Outcome::Done)
    }

    /// Decides every report that waits for nobody. Each round decides one, so it ends.
    pub(crate) fn settle_reports(&mut self, step: &mut Step) {
        loop {
            let nodes = &self.nodes;
            let is_up = |node: &NodeId| nodes.get(node).is_some_and(|record| record.state.is_up());
            let is_up_as =
                |who: &Member| nodes.get(&who.node).is_some_and(|record| record.is_up_as(who.incarnation));
            for report in self.reports.iter_mut().filter(|report| report.open) {
                // One of the pair went down otherwise: nothing left to decide.
                report.open = is_up_as(&report.reporter) && is_up_as(&report.suspect);
                report.awaited.retain(is_up);
            }
            let ready = self.reports.iter_mut().find(|report| report.open && report.awaited.is_empty());
            let Some(ready) = ready else { return };
            ready.open = false;
            step.changes.reports = true;
            let pair = (ready.reporter.node, ready.suspect.node);
            let victim = self.choose(pair.0, pair.1);
            self.report_down(step, victim);
        }
    }

    /// Which of a pair that cannot talk goes down.
    fn choose(&self, reporter: NodeId, suspect: NodeId) -> NodeId {
        let partners = |node: NodeId| -> usize {
            self.reports.iter().filter_map(|report| report.partner_of(node)).collect::<BTreeSet<_>>().len()
        };
        let mutual = || {
            let back =
                |report: &ReportRecord| (report.reporter.node, report.suspect.node) == (suspect, reporter);
            self.reports.iter().any(back)
        };
        let victim = match (partners(reporter) > 1, partners(suspect) > 1) {
            (true, false) => reporter,
            (false, true) => suspect,
            (true, true) | (false, false) if mutual() => reporter.max(suspect),
            (true, true) | (false, false) => suspect,
        };
        // The last storage node stays: without it nothing works at all.
        let other = if victim == suspect { reporter } else { suspect };
        if self.is_last_storage(victim) { other } else { victim }
    }

    fn is_last_storage(&self, node: NodeId) -> bool {
        let mut up = self.storage_nodes().filter(|record| record.state.is_up());
        up.next().is_some_and(|record| record.node == node) && up.next().is_none()
    }

    fn report_down(&mut self, step: &mut Step, node: NodeId) {
        if !self.is_last_storage(node) {
            self.node_down(step, node, DownCause::Reported);
        }
    }

    /// A node came up anew: what was reported before says nothing about it.
    pub(crate) fn forget_reports_of(&mut self, step: &mut Step, node: NodeId) {
        let before = self.reports.len();
        self.reports.retain(|report| report.partner_of(node).is_none());
        step.changes.reports |= before != self.reports.len();
    }
}
