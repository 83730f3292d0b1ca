//! What all volumes of a gateway share: the view, the lease, requests under way, effects to be done.

use super::api::{GatewayConfig, GatewayOutput};
use crate::View;
use sheep_state::Command;
use sheep_types::{ClusterId, Epoch, Generation, LogIndex, Member, NodeId, ObjectId, Time};
use sheep_wire::{Header, Message, Packet, Refusal, Request};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Views whose time of publication is remembered. Older ones count as published with the oldest of these,
/// which only makes a take-over wait longer.
const VIEW_TIMES: usize = 1024;
/// Wait before a proposal that has no answer is made again.
const PROPOSED_AGAIN: Duration = Duration::from_millis(200);

/// What a request was sent for; says where its reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// A retained write.
    Write { object: ObjectId, sequence: u64 },
    /// A read of one range of one object.
    Read { piece: u64 },
    /// What a copy holds, to tell.
    Query { query: u64 },
    /// A block of a copy that is not current, for the refusal.
    QueryBlock { query: u64 },
    /// What the blocks of an object are, or in what they differ from another one's.
    Compare { question: u64 },
    /// The data stage of a flush.
    Flush,
    /// Map entries are confirmed; nobody waits for the answer.
    ClearPending,
    /// A discarded object goes.
    Remove,
    /// A page of hot objects.
    SettleList,
    /// Standings of a hot object.
    SettleStanding { object: ObjectId },
    /// A hot object is made equal.
    SettleEqualize { object: ObjectId },
    /// The flush at the end of settling.
    SettleFlush,
    /// The end of settling.
    SettleDone,
    /// A question of the sweeper.
    Sweep,
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) handle: u64,
    pub(super) tag: Tag,
    pub(super) to: Member,
    pub(super) header: Header,
    pub(super) request: Request,
    pub(super) last_sent: Time,
    first_sent: Time,
    due: Time,
    tries: u32,
}

/// A command that is being ordered.
#[derive(Debug)]
struct Proposal {
    handle: u64,
    command: Command,
}

/// Generation and log index that the requests of a volume name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Basis {
    pub(super) generation: Generation,
    pub(super) relies_on: LogIndex,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peer {
    pub(super) heard: Time,
    reported: Option<Time>,
}

#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: GatewayConfig,
    pub(super) me: Member,
    pub(super) cluster: ClusterId,
    /// Time of the call that is being handled.
    pub(super) now: Time,
    pub(super) view: Option<Arc<View>>,
    pub(super) lease: Time,
    pub(super) outputs: VecDeque<GatewayOutput>,
    /// Unflushed bytes kept over all volumes.
    pub(super) retained: u64,
    /// What clones have got lately.
    pub(super) filled: super::fill::Filled,
    /// There was little room, and now there is more.
    pub(super) room_freed: bool,
    /// Contents that came damaged over the network, and were asked for again.
    pub(super) garbled: u64,
    calls: BTreeMap<u64, Call>,
    due: BTreeSet<(Time, u64)>,
    next_request: u64,
    next_token: u64,
    /// Commands that are being ordered.
    proposals: BTreeMap<u64, Proposal>,
    /// Those of them that have no answer, and when they are made again.
    unanswered: BTreeSet<(Time, u64)>,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    pub(super) pressure: super::pressure::Pressure,
    /// Some node does not yet hold all that it must.
    pub(super) recovering: bool,
    view_times: VecDeque<(LogIndex, Time)>,
}

impl Core {
    pub(super) fn new(config: GatewayConfig, me: Member, cluster: ClusterId, now: Time) -> Self {
        Self {
            config,
            me,
            cluster,
            now,
            view: None,
            lease: Time::ZERO,
            outputs: VecDeque::new(),
            retained: 0,
            filled: super::fill::Filled::default(),
            room_freed: false,
            garbled: 0,
            calls: BTreeMap::new(),
            due: BTreeSet::new(),
            next_request: 2,
            next_token: 1,
            proposals: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            peers: BTreeMap::new(),
            pressure: super::pressure::Pressure::default(),
            recovering: false,
            view_times: VecDeque::new(),
        }
    }

    /// So many unflushed bytes are not kept any more.
    pub(super) fn free(&mut self, bytes: u64) {
        self.room_freed |= bytes > 0 && self.retained > self.config.buffer_bytes / 2;
        self.retained -= bytes;
    }

    /// The present view. Volumes exist only after the first one.
    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(self.view.as_ref().expect("a volume is served only under a view"))
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.view.as_ref().map_or(Epoch(0), |view| view.epoch())
    }

    pub(super) fn set_view(&mut self, view: Arc<View>) {
        if self.view_times.len() == VIEW_TIMES {
            self.view_times.pop_front();
        }
        self.view_times.push_back((view.index, self.now));
        self.view = Some(view);
        self.recovering = self.is_recovering();
    }

    /// When this gateway's view first contained the entry, or later.
    pub(super) fn applied_at(&self, index: LogIndex) -> Time {
        let first = self.view_times.partition_point(|(seen, _)| *seen < index);
        self.view_times.get(first).map_or(self.now, |(_, time)| *time)
    }

    pub(super) fn lease_valid(&self) -> bool {
        self.now < self.lease
    }

    /// Sends a request and keeps it until it is answered or cancelled.
    pub(super) fn call(&mut self, handle: u64, tag: Tag, to: Member, basis: Basis, request: Request) -> u64 {
        let (number, header) = self.header(to, basis);
        let due = self.now + self.config.retry;
        let call = Call {
            handle,
            tag,
            to,
            header,
            request,
            last_sent: self.now,
            first_sent: self.now,
            due,
            tries: 0,
        };
        self.transmit(&call);
        self.due.insert((due, number));
        self.calls.insert(number, call);
        number
    }

    /// Header of the next request, and its number.
    pub(super) fn header(&mut self, to: Member, basis: Basis) -> (u64, Header) {
        let number = self.next_request;
        self.next_request += 2;
        let header = Header {
            request: number,
            cluster: self.cluster,
            from: self.me,
            to: to.incarnation,
            shard: 0,
            epoch: self.epoch(),
            relies_on: basis.relies_on,
            generation: basis.generation,
        };
        (number, header)
    }

    fn transmit(&mut self, call: &Call) {
        let message = Message::Request(call.request.clone());
        self.outputs.push_back(GatewayOutput::Send(Packet {
            to: call.to.node,
            header: call.header,
            message,
        }));
    }

    pub(super) fn get_call(&self, number: u64) -> Option<&Call> {
        self.calls.get(&number)
    }

    /// Forgets a request; a late answer to it is ignored.
    pub(super) fn cancel(&mut self, number: u64) -> Option<Call> {
        let call = self.calls.remove(&number)?;
        self.due.remove(&(call.due, number));
        Some(call)
    }

    /// Forgets all requests of a volume.
    pub(super) fn cancel_all(&mut self, handle: u64) {
        self.cancel_where(handle, |_| true);
    }

    /// Forgets a volume's requests of some kind.
    pub(super) fn cancel_where(&mut self, handle: u64, of_kind: impl Fn(&Tag) -> bool) {
        let found = self.calls.iter().filter(|(_, call)| call.handle == handle && of_kind(&call.tag));
        let numbers: Vec<u64> = found.map(|(number, _)| *number).collect();
        for number in numbers {
            self.cancel(number);
        }
    }

    /// Whether this is an answer that counts: from the very run that was asked, about the epoch that was asked
    /// in. Refusals may come from a later epoch.
    pub(super) fn accepts(&mut self, header: &Header, refused: bool) -> Option<&Call> {
        let call = self.calls.get(&header.request)?;
        let same_run = header.from == call.to && header.to == self.me.incarnation;
        if header.cluster != self.cluster || !same_run || !(refused || header.epoch == call.header.epoch) {
            return None;
        }
        self.peers.entry(header.from.node).or_default().heard = self.now;
        Some(call)
    }

    /// Sends a request again after some time, longer each time, up to 16 times `first`.
    pub(super) fn back_off(&mut self, number: u64, first: Duration) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        self.due.remove(&(call.due, number));
        let wait = first.saturating_mul(1 << call.tries.min(4)).min(self.config.retry_max);
        call.tries += 1;
        call.due = self.now + wait;
        self.due.insert((call.due, number));
    }

    /// Sends a request again now.
    pub(super) fn resend(&mut self, number: u64) {
        let Some(mut call) = self.calls.remove(&number) else { return };
        call.last_sent = self.now;
        self.transmit(&call);
        self.calls.insert(number, call);
        self.back_off(number, self.config.retry);
    }

    /// Requests whose time has come.
    pub(super) fn due_calls(&self) -> Vec<(u64, u64)> {
        let due = self.due.iter().take_while(|(time, _)| *time <= self.now);
        due.filter_map(|(_, number)| Some((*number, self.calls.get(number)?.handle))).collect()
    }

    /// When the next request or proposal is due.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.due.first().into_iter().chain(self.unanswered.first()).map(|(time, _)| *time).min()
    }

    /// Reports the receiver of an overdue request if it has said nothing for long.
    pub(super) fn note_silence(&mut self, number: u64) {
        let Some(call) = self.calls.get(&number) else { return };
        let (suspect, since) = (call.to, call.first_sent);
        let peer = self.peers.entry(suspect.node).or_default();
        let silent = self.now.since(peer.heard.max(since));
        let lately = peer.reported.is_some_and(|at| self.now.since(at) < self.config.report_every);
        if suspect.node != self.me.node && silent >= self.config.report_after && !lately {
            peer.reported = Some(self.now);
            self.outputs.push_back(GatewayOutput::Report { suspect });
        }
    }

    /// Orders a command for a volume.
    pub(super) fn propose(&mut self, handle: u64, command: Command) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.proposals.insert(token, Proposal { handle, command: command.clone() });
        self.outputs.push_back(GatewayOutput::Propose { token, command });
        token
    }

    /// A proposal has its result: the volume that it was made for.
    pub(super) fn take_token(&mut self, token: u64) -> Option<u64> {
        self.proposals.remove(&token).map(|proposal| proposal.handle)
    }

    /// A proposal will not have a result, and whether it was carried out is not known. It is made again: every command of
    /// a gateway names what it was made under, and does the same twice as once.
    pub(super) fn unanswered(&mut self, token: u64) {
        if self.proposals.contains_key(&token) {
            self.unanswered.insert((self.now + PROPOSED_AGAIN, token));
        }
    }

    /// Makes proposals again whose time has come, unless nobody waits for them any more.
    pub(super) fn propose_again(&mut self, is_known: impl Fn(u64) -> bool) {
        let later = self.unanswered.split_off(&(Time::from_nanos(self.now.as_nanos() + 1), 0));
        for (_, token) in std::mem::replace(&mut self.unanswered, later) {
            let Some(Proposal { handle, command }) = self.proposals.get(&token) else { continue };
            if is_known(*handle) {
                let command = command.clone();
                self.outputs.push_back(GatewayOutput::Propose { token, command });
            } else {
                self.proposals.remove(&token);
            }
        }
    }
}

/// Whether a refusal passes by itself within a short time.
pub(super) fn passes_soon(refusal: Refusal) -> bool {
    matches!(refusal, Refusal::NotCurrent | Refusal::Busy)
}
