//! Saying which vids the map has ceased to name: if they are dead, objects of theirs may be free.
//!
//! It is said now and then, for each is a command; and before anything that ends the vid's being the one below them: a
//! snapshot, and closing. Whoever takes over after a holder that did not come to that counts as having said so.

use super::map::{Change, Entry};
use super::read::makes_partial;
use super::shared::Core;
use super::volume::Volume;
use crate::{Mutant, View};
use sheep_state::Command;
use sheep_types::{Time, Vid};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between the first replaced entry and its being said.
const EVERY: Duration = Duration::from_secs(10);
/// Vids that are remembered one by one.
const REMEMBERED: usize = 256;

/// Vids that confirmed entries named before.
#[derive(Clone, Debug, Default)]
pub(super) struct Replaced {
    vids: BTreeSet<Vid>,
    /// Others besides, it is not known which.
    others: bool,
    since: Option<Time>,
    /// It is being said.
    ordering: Option<u64>,
}

impl Replaced {
    /// An entry of this vid's map is to be changed.
    pub(super) fn note(&mut self, view: &View, own: Vid, old: Entry, change: Change) {
        let Entry::At { vid, partial: was_partial } = old else { return };
        let partial = change == Change::Enter && makes_partial(view, own, old);
        // What comes in the place of another lineage's object may have that one as its base; unless it is whole already
        // in the cycle in which it is entered.
        if vid != own && (!partial || view.are_related(vid, own)) {
            self.vids.insert(vid);
        }
        // What was below it is reached no more.
        self.others |= was_partial && !partial;
        self.bound();
    }

    /// All changes are confirmed.
    pub(super) fn add(&mut self, now: Time, confirmed: Self) {
        if confirmed.is_empty() {
            return;
        }
        self.vids.extend(confirmed.vids);
        self.others |= confirmed.others;
        self.since.get_or_insert(now);
        self.bound();
    }

    fn bound(&mut self) {
        if self.vids.len() > REMEMBERED {
            self.vids.clear();
            self.others = true;
        }
    }

    fn is_empty(&self) -> bool {
        self.vids.is_empty() && !self.others
    }

    /// When it is to be said.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.since.filter(|_| self.ordering.is_none()).map(|since| since + EVERY)
    }
}

impl Volume {
    /// Says what was replaced, if it is time.
    pub(super) fn step_replaced(&mut self, core: &mut Core) {
        if self.replaced.deadline().is_some_and(|deadline| deadline <= core.now) {
            self.say_replaced(core);
        }
    }

    /// Says what was replaced; false: that is on its way. One that dies later is looked through for that.
    pub(super) fn say_replaced(&mut self, core: &mut Core) -> bool {
        if self.replaced.ordering.is_some() {
            return false;
        }
        let replaced = std::mem::take(&mut self.replaced);
        if replaced.is_empty() || core.config.mutants.is(Mutant::ReplacedUnsaid) {
            return true;
        }
        let view = core.view();
        let parent = view.vid(self.vid).and_then(|record| record.parent);
        let is_dead = |vid: &Vid| view.state.is_dead(*vid);
        let dead: Vec<Vid> = replaced.vids.iter().copied().filter(is_dead).collect();
        // Without a dead vid right above, this volume is not the one to ask about any.
        if !parent.is_some_and(|parent| is_dead(&parent)) || dead.is_empty() && !replaced.others {
            return true;
        }
        let vids = if replaced.others { Vec::new() } else { dead };
        let (vdi, generation) = (self.vdi, self.generation);
        let token = core.propose(self.handle, Command::Replaced { vdi, generation, vids });
        self.replaced.ordering = Some(token);
        false
    }

    /// The result of a proposal; false if it is none of this page.
    pub(super) fn handle_replaced_ordered(&mut self, token: u64) -> bool {
        if self.replaced.ordering != Some(token) {
            return false;
        }
        self.replaced.ordering = None;
        self.again = true;
        true
    }
}
