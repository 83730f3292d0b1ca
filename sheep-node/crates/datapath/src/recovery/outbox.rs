//! Questions and decisions about objects gather for a moment and travel together.

use super::{AskKind, Phase, RecoveryTimer};
use crate::View;
use crate::replica::Replica;
use core::time::Duration;
use sheep_types::{Epoch, Member, ObjectId, Time, Version};
use sheep_wire::Request;
use std::collections::BTreeMap;

/// Objects in one message.
const BATCH: usize = 512;
/// How long something waits for company, unless a client waits for it.
const GATHER: Duration = Duration::from_millis(1);

/// What is to be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Objects whose standing is asked for, by whom and about which epoch.
    questions: BTreeMap<(Member, Epoch), Vec<ObjectId>>,
    /// What this node has decided: copies that need only be durable.
    secures: BTreeMap<Member, Vec<(ObjectId, Version)>>,
    /// And copies that may serve.
    adopts: BTreeMap<Member, Vec<(ObjectId, Version)>>,
    /// A timer is set.
    gathering: bool,
    /// It has fired, or somebody waits: everything goes out.
    due: bool,
}

impl Outbox {
    pub(super) fn ask(&mut self, to: Member, at: Epoch, object: ObjectId) {
        self.questions.entry((to, at)).or_default().push(object);
    }

    pub(super) fn secure(&mut self, to: Member, object: ObjectId, version: Version) {
        self.secures.entry(to).or_default().push((object, version));
    }

    pub(super) fn adopt(&mut self, to: Member, object: ObjectId, version: Version) {
        self.adopts.entry(to).or_default().push((object, version));
    }

    pub(super) fn gathered(&mut self) {
        (self.gathering, self.due) = (false, true);
    }
}

/// Takes a message's worth: whatever there is if it is due, else only a full one.
fn next<K: Ord + Copy, T>(lists: &mut BTreeMap<K, Vec<T>>, due: bool) -> Option<(K, Vec<T>)> {
    let (&key, _) = lists.iter().find(|(_, list)| due || list.len() >= BATCH)?;
    let mut list = lists.remove(&key)?;
    if list.len() > BATCH {
        let rest = list.split_off(BATCH);
        lists.insert(key, rest);
    }
    Some((key, list))
}

impl Replica {
    /// Something was put into the outbox.
    pub(super) fn post(&mut self, now: Time, urgent: bool) {
        let outbox = &mut self.recovery.outbox;
        if urgent {
            outbox.due = true;
        } else if !outbox.gathering {
            outbox.gathering = true;
            self.set_timer(now, GATHER, RecoveryTimer::Gathered);
        }
    }

    /// Sends a message; whether there was one to send.
    pub(super) fn send_gathered(&mut self, now: Time, view: &View) -> bool {
        let (outbox, walks) = (&mut self.recovery.outbox, &self.recovery.walks);
        let due = outbox.due;
        let (to, request, kind) = if let Some(((to, at), objects)) = next(&mut outbox.questions, due) {
            // Some may have been answered by a list in the meantime.
            let asks = |object: &ObjectId| {
                matches!(walks.get(object).map(|walk| &walk.phase),
                    Some(Phase::Asking { at: asked, missing, .. })
                        if *asked == at && missing.contains(&to.node))
            };
            let objects: Vec<ObjectId> = objects.into_iter().filter(asks).collect();
            if objects.is_empty() {
                return true;
            }
            let request = Request::Standing { objects: objects.clone(), at };
            (to, request, AskKind::Standing { objects, at })
        } else if let Some((to, objects)) = next(&mut outbox.secures, due) {
            (to, Request::Secure { objects: objects.clone() }, AskKind::Secure { objects })
        } else if let Some((to, objects)) = next(&mut outbox.adopts, due) {
            (to, Request::AdoptAll { objects: objects.clone() }, AskKind::Adopt { objects })
        } else {
            outbox.due = false;
            return false;
        };
        self.ask_for(now, view, to, request, kind);
        true
    }
}
