//! Applying entries: order, the duplicate filter, and which command is which.

mod attachments;
mod locks;
mod membership;
mod nodes;
mod snapshots;
mod tree;
mod vdis;

use crate::epoch::EpochHistory;
use crate::origins::Admission;
use crate::settings::remember_lease;
use crate::{
    Answer, Applied, Changes, ClusterState, Command, EntryKind, Genesis, Outcome, PastLease, Refusal,
};
use crate::{Settings, limits};
use sheep_types::{ClusterId, CommandSeq, Epoch, Incarnation, LogIndex, Member, NodeId};
use std::sync::Arc;

/// Result of a command.
type Result<T = Outcome> = core::result::Result<T, Refusal>;

/// One entry under way.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its index.
    pub(crate) at: LogIndex,
    /// The origin, for a command.
    pub(crate) origin: Member,
    /// Make an epoch although no member changed.
    pub(crate) force_epoch: bool,
    pub(crate) changes: Changes,
}

impl ClusterState {
    /// Applies the next committed entry.
    ///
    /// # Panics
    /// If `index` is not the next one: the log never skips or repeats an entry.
    pub fn apply(&mut self, index: LogIndex, entry: &EntryKind) -> Applied {
        assert_eq!(index.0, self.applied.0 + 1, "entries are applied in order");
        self.applied = index;
        let origin = Member { node: NodeId(0), incarnation: Incarnation(0) };
        let mut step = Step { at: index, origin, force_epoch: false, changes: Changes::default() };
        let mut answer = None;
        match entry {
            EntryKind::Genesis(genesis) => self.apply_genesis(&mut step, genesis),
            // Before the first entry there is no cluster that anything could be about.
            _ if self.cluster == ClusterId(0) => {}
            EntryKind::Unknown => {}
            EntryKind::Install { term, members } => self.apply_install(&mut step, *term, members),
            EntryKind::Voters { voters } => self.apply_voters(&mut step, voters.clone()),
            EntryKind::Command { origin, seq, command } => {
                step.origin = *origin;
                answer = self.apply_command(&mut step, *seq, command);
            }
        }
        if step.force_epoch || !step.changes.nodes.is_empty() {
            self.settle_reports(&mut step);
            self.make_epoch(&mut step);
            self.drop_recovered_epochs(&mut step.changes);
        }
        sort(&mut step.changes.vdis);
        sort(&mut step.changes.vids);
        sort(&mut step.changes.nodes);
        Applied { answer, changes: step.changes }
    }

    fn make_epoch(&mut self, step: &mut Step) {
        #[cfg(feature = "mutants")]
        if self.quick_restart_without_epoch(step) {
            return;
        }
        self.refresh_epoch(step.at, step.force_epoch, &mut step.changes);
    }

    fn apply_genesis(&mut self, step: &mut Step, genesis: &Genesis) {
        if self.cluster != ClusterId(0) || !genesis.is_valid() {
            return;
        }
        self.cluster = genesis.cluster;
        self.geometry = genesis.geometry;
        self.settings = Arc::new(genesis.settings.clone());
        self.settings_at = step.at;
        self.epochs = Arc::new(EpochHistory::begin(Epoch(1), step.at));
        self.next_vid = 1;
        step.changes.epoch = Some(Epoch(1));
        step.changes.settings = true;
        self.apply_voters(step, genesis.voters.clone());
    }

    fn apply_voters(&mut self, step: &mut Step, mut voters: Vec<NodeId>) {
        sort(&mut voters);
        self.removed_voters.retain(|node| voters.contains(node));
        self.voters = voters;
        self.voters_at = step.at;
        step.changes.voters = true;
    }

    fn apply_command(&mut self, step: &mut Step, seq: CommandSeq, command: &Command) -> Option<Answer> {
        let origin = step.origin;
        let any_later = self.filter_is_broken();
        let result = match Arc::make_mut(&mut self.origins).admit(origin, seq, step.at, any_later) {
            Admission::OutOfTurn => return None,
            Admission::OldRun(known) => Err(Refusal::OldIncarnation { known: known.0 }),
            Admission::Next => self.execute(step, command),
        };
        Some(Answer { origin, seq, result })
    }

    fn execute(&mut self, step: &mut Step, command: &Command) -> Result {
        match command {
            Command::Unknown => Err(Refusal::Unknown),
            Command::NodeUp(up) => self.node_up(step, up),
            Command::SetDisks { disks } => self.set_disks(step, disks),
            Command::Usage { capacity, used } => self.usage(step, *capacity, *used),
            Command::SetWeight { node, weight } => self.set_weight(step, *node, *weight),
            Command::NodeLeaving { node, leaving } => self.node_leaving(step, *node, *leaving),
            Command::NodeRemove { node, force } => self.node_remove(step, *node, *force),
            Command::ProposeOut { node, incarnation, down_since, by_operator } => {
                let node = Member { node: *node, incarnation: *incarnation };
                self.propose_out(step, node, *down_since, *by_operator)
            }
            Command::Recovered { epoch } => self.recovered(step, *epoch),
            Command::Report { suspect, epoch } => self.report(step, *suspect, *epoch),
            Command::ReportResult { report, reachable } => self.report_result(step, *report, *reachable),
            Command::CloseReport { report } => self.close_report(step, *report),
            Command::ChangeSettings { settings, seen } => self.change_settings(step, settings, *seen),
            Command::CreateVdi(create) => self.create_vdi(step, create),
            Command::DeleteVdi { vdi, guard } => self.delete_vdi(step, *vdi, *guard),
            Command::ResizeVdi { vdi, size, guard, shrink } => {
                self.resize_vdi(step, *vdi, *size, *guard, *shrink)
            }
            Command::RenameVdi { vdi, name } => self.rename_vdi(step, *vdi, name),
            Command::SetAttribute { vdi, key, value } => {
                self.set_attribute(step, *vdi, key, value.as_deref())
            }
            Command::ChangeAttributes { vdi, expected, changes } => {
                self.change_attributes(step, *vdi, expected, changes)
            }
            Command::SetCopies { vdi, copies, min_copies } => {
                self.set_copies(step, *vdi, *copies, *min_copies)
            }
            Command::Attach { vdi, node, mode, share } => self.attach(step, *vdi, *node, *mode, *share),
            Command::Detach { vdi, attachment } => self.detach(step, *vdi, *attachment),
            Command::Lock { vdi, attachment, mode, take_from } => {
                self.lock(step, *vdi, *attachment, *mode, *take_from)
            }
            Command::Unlock { vdi, generation, clean } => self.unlock(step, *vdi, *generation, *clean),
            Command::Revoke { vdi, generation } => self.revoke(step, *vdi, *generation),
            Command::ConfirmEnded { vdi, generation } => self.confirm_ended(step, *vdi, *generation),
            Command::MarkSettled { vdi, generation } => self.mark_settled(step, *vdi, *generation),
            Command::MapExists { vid, maps, generation } => self.map_exists(step, *vid, maps, *generation),
            Command::Snapshot { items } => self.snapshot(step, items),
            Command::Pause { vdi, generation, token } => self.pause(step, *vdi, *generation, *token),
            Command::AskPause { vdi, generation, token } => self.ask_pause(step, *vdi, *generation, *token),
            Command::Resume { vdi, generation, token } => self.resume(step, *vdi, *generation, *token),
            Command::CloneVdi(clone) => self.clone_vdi(step, clone),
            Command::Rollback { vdi, snapshot, guard } => self.rollback(step, *vdi, *snapshot, *guard),
            Command::Replaced { vdi, generation, vids } => self.replaced(step, *vdi, *generation, vids),
            Command::Swept { vids, seen } => self.swept(step, vids, *seen),
            Command::Flatten { vdi, wanted } => self.want_flat(step, *vdi, *wanted),
            Command::LockToFlatten { vdi } => self.lock_to_flatten(step, *vdi),
            Command::Yield { vdi } => self.yield_lock(step, *vdi),
            Command::Flattened { vdi, generation } => self.flattened(step, *vdi, *generation),
        }
    }

    fn change_settings(&mut self, step: &mut Step, settings: &Settings, seen: LogIndex) -> Result {
        settings.validate()?;
        if seen != self.settings_at {
            return Err(Refusal::StaleView);
        }
        if settings.lease_ms != self.settings.lease_ms {
            let former = PastLease { lease_ms: self.settings.lease_ms, replaced_at: step.at };
            remember_lease(&mut self.past_leases, former);
        }
        self.settings = Arc::new(settings.clone());
        self.settings_at = step.at;
        step.changes.settings = true;
        Ok(Outcome::Done)
    }

    /// The origin must be up, in the very run that speaks.
    pub(crate) fn require_up(&self, member: Member) -> Result<()> {
        if self.is_up(member) { Ok(()) } else { Err(Refusal::NodeNotUp(member.node)) }
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn is_mutant(&self, mutant: crate::Mutant) -> bool {
        self.mutant.0 == Some(mutant)
    }

    fn filter_is_broken(&self) -> bool {
        #[cfg(feature = "mutants")]
        return self.is_mutant(crate::Mutant::DuplicateFilterAnyLater);
        #[cfg(not(feature = "mutants"))]
        false
    }
}

/// 1 to 255 printable bytes: what can be shown in a table and typed on a command line.
pub(crate) fn is_printable(name: &str) -> bool {
    !name.is_empty() && name.len() <= limits::MAX_NAME && !name.chars().any(char::is_control)
}

fn sort<T: Ord>(list: &mut Vec<T>) {
    list.sort_unstable();
    list.dedup();
}
