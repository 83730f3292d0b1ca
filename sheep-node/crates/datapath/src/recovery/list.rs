//! Which objects must this node hold? Those in its own store, and those that its peers have and whose present set
//! it is in.

use super::{AskKind, RecoveryTimer};
use crate::View;
use crate::replica::{Job, Replica};
use core::time::Duration;
use sheep_types::{Member, NodeId, ObjectId, Time};
use sheep_wire::{Listed, Request};
use std::collections::BTreeMap;

/// Headers looked at without a pause for requests.
const SCAN: usize = 1024;
/// The pause.
const SCAN_PAUSE: Duration = Duration::from_micros(50);
/// Before a peer that did not answer is asked again.
const LIST_PAUSE: Duration = Duration::from_millis(200);

/// What is known of a peer's list.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    after: Option<ObjectId>,
    complete: bool,
}

/// Lists of all up peers.
#[derive(Debug, Default)]
pub(super) struct Lists {
    peers: BTreeMap<NodeId, Peer>,
}

impl Lists {
    pub(super) fn are_complete(&self) -> bool {
        self.peers.values().all(|peer| peer.complete)
    }
}

impl Replica {
    pub(super) fn begin_lists(&mut self, now: Time, view: &View) {
        for member in view.up_members() {
            if member != self.me {
                self.recovery.lists.peers.insert(member.node, Peer::default());
                self.ask_list(now, view, member.node);
            }
        }
    }

    pub(super) fn ask_list(&mut self, now: Time, view: &View, node: NodeId) {
        let Some(peer) = self.recovery.lists.peers.get(&node).filter(|peer| !peer.complete) else { return };
        let Some(to) = view.member_now(node) else { return };
        let request = Request::List { member: self.me.node, after: peer.after };
        self.ask_for(now, view, to, request, AskKind::List);
    }

    pub(super) fn take_list(&mut self, now: Time, view: &View, from: Member, lines: &[Listed], more: bool) {
        for line in lines {
            let known = view.is_born(line.object, line.birth) && !self.current_in(view, line.object);
            if known && !self.confirm_listed(view, line) {
                self.want(view, line.object, false);
            }
        }
        let Some(peer) = self.recovery.lists.peers.get_mut(&from.node) else { return };
        let last = lines.last().map(|line| line.object);
        // A page that does not go forward ends the list: a peer cannot keep this node busy for ever.
        if more && last > peer.after {
            peer.after = last;
            self.ask_list(now, view, from.node);
        } else {
            peer.complete = true;
        }
    }

    pub(super) fn list_failed(&mut self, now: Time, _view: &View, from: Member) {
        self.set_timer(now, LIST_PAUSE, RecoveryTimer::List(from.node));
    }

    /// Looks at the next piece of the own store.
    pub(super) fn scan(&mut self, now: Time, view: &View) {
        let Some(from) = self.recovery.scan else { return };
        let headers: Vec<_> = self.headers_from(from).take(SCAN).copied().collect();
        let last = headers.last().map(|header| header.id);
        self.recovery.scan = match last {
            Some(last) if headers.len() == SCAN => last.0.checked_add(1).map(ObjectId),
            Some(_) | None => None,
        };
        if self.recovery.scan.is_some() {
            self.set_timer(now, SCAN_PAUSE, RecoveryTimer::Scan);
        }
        for header in headers {
            if header.id.vid() == super::FLOORS {
                continue;
            }
            if view.is_gone(header.id, header.birth) {
                self.recovery.forget(header.id);
                self.delete_copy(header.id, Job::Forget);
            } else if view.in_up_set(header.id, self.me) {
                // What is bad somebody may have who has come back.
                let wounded = self.is_wounded(header.id);
                let paused = view.state.settings().recovery_paused;
                if (wounded && !paused) || !self.current_in(view, header.id) {
                    self.want(view, header.id, false);
                } else if wounded {
                    self.heal_later(now, header.id);
                }
            } else if view.vid(header.id.vid()).is_some() {
                self.recovery.surplus.add(header.id);
            }
        }
    }
}
