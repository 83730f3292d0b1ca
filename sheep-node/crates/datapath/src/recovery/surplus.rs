//! Copies that this node need not hold in the present epoch. One is deleted only when all members of the object's
//! present set, as many as there should be and all of them up, say in this very epoch that theirs is current
//! (and with that durable). That a peer lacks an object is never a reason to delete one.

use super::{Announced, AskKind, RecoveryTimer};
use crate::View;
use crate::replica::{Job, Replica};
use core::time::Duration;
use sheep_types::{Member, NodeId, ObjectId, Time};
use sheep_wire::{Request, Standing, StandingKind};
use std::collections::{BTreeMap, BTreeSet};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Looks for which a copy is kept while members have lost blocks, when all have recovered: they ask for them meanwhile.
const KEEP: u32 = 150;
/// Copies looked at at once.
const BATCH: usize = 512;

/// Surplus copies of the present epoch.
#[derive(Debug, Default)]
pub(super) struct Surplus {
    objects: BTreeSet<ObjectId>,
    /// Members that said that theirs is current.
    current: BTreeMap<ObjectId, BTreeSet<NodeId>>,
    /// Copies that may have what members have lost, and how often they were kept for that.
    kept: BTreeMap<ObjectId, u32>,
    /// Copies of which a member has said since the last look at them that it lacks blocks.
    lacking: BTreeSet<ObjectId>,
    /// When to look next; timers of earlier epochs do not count.
    next: Option<Time>,
    /// Where the last look ended.
    after: Option<ObjectId>,
}

impl Surplus {
    pub(super) fn add(&mut self, object: ObjectId) {
        self.objects.insert(object);
    }

    pub(super) fn forget(&mut self, object: ObjectId) {
        self.objects.remove(&object);
        self.current.remove(&object);
        self.kept.remove(&object);
        self.lacking.remove(&object);
    }

    /// A look begins: what the last one has shown is counted.
    fn count(&mut self, object: ObjectId, counts: bool) {
        self.current.remove(&object);
        if self.lacking.remove(&object) && counts {
            *self.kept.entry(object).or_default() += 1;
        }
    }

    fn was_kept(&self, object: ObjectId) -> bool {
        self.kept.get(&object).is_some_and(|kept| *kept >= KEEP)
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// The next ones to look at, around and around.
    fn batch(&mut self) -> Vec<ObjectId> {
        let from = self.after.map_or(ObjectId(0), |after| ObjectId(after.0.saturating_add(1)));
        let mut batch: Vec<_> = self.objects.range(from..).take(BATCH).copied().collect();
        if batch.is_empty() {
            batch = self.objects.iter().take(BATCH).copied().collect();
        }
        self.after = batch.last().copied();
        batch
    }
}

impl Replica {
    /// Looks at surplus copies in a while.
    pub(super) fn watch_surplus(&mut self, now: Time) {
        self.recovery.surplus.next = Some(now + PAUSE);
        self.set_timer(now, PAUSE, RecoveryTimer::Surplus);
    }

    pub(super) fn check_surplus(&mut self, now: Time, view: &View) {
        // What this node must hold comes first.
        let due = self.recovery.surplus.next.is_some_and(|next| next <= now);
        if !due || self.recovery.announced != Announced::Proposed || self.recovery.surplus.len() == 0 {
            return;
        }
        self.watch_surplus(now);
        let counts = may_lack(view);
        let mut questions: BTreeMap<Member, Vec<ObjectId>> = BTreeMap::new();
        for object in self.recovery.surplus.batch() {
            let (set, up) = (view.set(object), view.up_set(object));
            let whole = !up.is_empty() && up.len() == set.len() && set.len() == view.copies(object);
            if !whole || self.raw_header(object).is_none() {
                continue;
            }
            self.recovery.surplus.count(object, counts);
            for member in up {
                questions.entry(member).or_default().push(object);
            }
        }
        for (member, objects) in questions {
            let request = Request::Standing { objects: objects.clone(), at: view.epoch() };
            self.ask_for(now, view, member, request, AskKind::Surplus { objects });
        }
    }

    pub(super) fn take_surplus(
        &mut self,
        view: &View,
        from: Member,
        objects: &[ObjectId],
        list: &[Standing],
    ) {
        for (object, standing) in objects.iter().zip(list) {
            if standing.kind != StandingKind::Live || !self.recovery.surplus.objects.contains(object) {
                continue;
            }
            // Members ask for what they have lost: they get the time for it. What this copy surely has is kept until
            // they have it. One of another version may have the very block, too.
            if standing.wounded {
                self.recovery.surplus.lacking.insert(*object);
                let own = self.raw_header(*object).map(|copy| copy.version);
                let has = own.is_some() && own == standing.version && !self.is_wounded(*object);
                if has || !may_lack(view) || !self.recovery.surplus.was_kept(*object) {
                    continue;
                }
            }
            let current = self.recovery.surplus.current.entry(*object).or_default();
            current.insert(from.node);
            let set = view.set(*object);
            let all = !set.is_empty() && set.iter().all(|node| current.contains(node));
            if all && !set.contains(&self.me.node) && !self.replacing.contains(object) {
                self.recovery.surplus.forget(*object);
                self.delete_copy(*object, Job::Forget);
            }
        }
    }
}

/// Whether all members have had the time to ask for what they lack: recovery is not paused, and all have recovered.
fn may_lack(view: &View) -> bool {
    !view.state.settings().recovery_paused && view.has_recovered()
}
