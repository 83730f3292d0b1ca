//! Moving copies between disks: when one was added, or is being emptied. One object at a time, when there is nothing to
//! recover. While it moves, the object is Busy like one that is being replaced, so that nothing changes it.

use super::{Job, Replica, Timer, is_damaged};
use core::time::Duration;
use sheep_store::{BlockState, Body, Header as CopyHeader, Op, Outcome, Piece, ReadResult, StoreError};
use sheep_types::{BLOCK_SIZE, ObjectId, Time};

/// Headers looked at at once.
const SCAN: usize = 1024;
/// Between two objects.
const PAUSE: Duration = Duration::from_millis(2);
/// Before it is tried again, where something stands against it.
const WAIT: Duration = Duration::from_millis(200);

/// What is being moved.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// The next object to look at; none when all are where they belong.
    next: Option<ObjectId>,
    under_way: Option<ObjectId>,
    /// Objects that could not be moved in this pass.
    left: u64,
    done: u64,
}

impl Replica {
    /// Objects moved to another disk since the node started, and whether there may be more.
    pub fn moved(&self) -> (u64, bool) {
        (self.moves.done, self.moves.next.is_some() || self.moves.under_way.is_some())
    }

    /// A new epoch: where objects belong may have changed.
    pub(crate) fn begin_moves(&mut self, now: Time) {
        if self.store.is_several() {
            (self.moves.next, self.moves.left) = (Some(ObjectId(0)), 0);
            self.timers.set(now + WAIT, Timer::Move);
        }
    }

    pub(super) fn move_next(&mut self, now: Time) {
        let (Some(view), Some(from)) = (self.view.clone(), self.moves.next) else { return };
        if self.moves.under_way.is_some() {
            return;
        }
        if self.misses_disk || !self.is_serving() || !self.progress().complete || self.store.is_tidying() {
            self.timers.set(now + WAIT, Timer::Move);
            return;
        }
        let headers: Vec<CopyHeader> = self.headers_from(from).take(SCAN).copied().collect();
        let more = headers.len() == SCAN;
        for header in headers {
            let object = header.id;
            self.moves.next = object.0.checked_add(1).map(ObjectId);
            let Some(to) = self.home_of(object) else { continue };
            let there = self.store.located(object).is_none_or(|(slot, _)| slot == to);
            if there || self.store.spare(object).is_some() {
                continue;
            }
            // A move makes no blocks lost: what is damaged may be readable the next time, where it is.
            if !self.current_in(&view, object) || self.damaged.contains(&object) {
                self.moves.left += 1;
                continue;
            }
            self.moves.under_way = Some(object);
            self.replacing.insert(object);
            let len = view.state.geometry().object_size();
            return self.submit(Op::Salvage { object, offset: 0, len }, Job::MoveRead(object, to));
        }
        if more {
            self.timers.set(now + PAUSE, Timer::Move);
        } else if core::mem::take(&mut self.moves.left) > 0 {
            self.moves.next = Some(ObjectId(0));
            self.timers.set(now + WAIT, Timer::Move);
        } else {
            self.moves.next = None;
        }
    }

    pub(super) fn move_read(
        &mut self,
        now: Time,
        object: ObjectId,
        to: u8,
        result: Result<Outcome, StoreError>,
    ) {
        let view = self.view.clone();
        let right = view.as_ref().filter(|view| !self.misses_disk && self.is_right(view, object));
        let copy = right.and_then(|view| self.copy(view, object));
        match (result, copy, view) {
            (Ok(Outcome::Read(read)), _, Some(view)) if is_damaged(&read.extents) => {
                self.end_move(now, object, None, false);
                self.found_damage(object);
                self.want(&view, object, true);
            }
            (Ok(Outcome::Read(read)), Some(copy), Some(view)) => {
                let header = CopyHeader { validated: view.epoch(), ..copy };
                let token = self.begin_job(Job::MoveWrite(object, to));
                self.store.begin_move(token, header, pieces(read), to);
            }
            _ => self.end_move(now, object, None, false),
        }
    }

    /// Reads a copy that does not count, on another disk, for a fetch that lacks blocks.
    pub(crate) fn read_spare(&mut self, object: ObjectId, len: u32, fetch: u64) {
        let token = self.begin_job(Job::Spare { fetch });
        self.store.read_spare(token, object, len);
    }

    pub(super) fn move_written(&mut self, now: Time, object: ObjectId, to: u8, done: bool) {
        if done {
            self.submit(Op::Flush, Job::MoveFlush(object, to));
        } else {
            self.end_move(now, object, Some(to), false);
        }
    }

    /// `to`: where there is a copy that counts from now on, or goes.
    pub(super) fn end_move(&mut self, now: Time, object: ObjectId, to: Option<u8>, done: bool) {
        if let Some(to) = to {
            self.store.finish_move(object, to, done);
        }
        self.moves.under_way = None;
        self.moves.done += u64::from(done);
        self.moves.left += u64::from(!done);
        self.replacing.remove(&object);
        self.wake(object);
        self.timers.set(now + if done { PAUSE } else { WAIT }, Timer::Move);
    }
}

/// Everything that was read, to be written again.
fn pieces(read: ReadResult) -> Vec<Piece> {
    let mut data = read.data.into_iter();
    let mut crcs = read.crcs.into_iter();
    let mut pieces = Vec::new();
    for extent in read.extents {
        let body = match extent.state {
            BlockState::Absent => continue,
            BlockState::Zero => Body::Zero { len: extent.len },
            // Nobody has it. What is only damaged is not moved.
            BlockState::Lost | BlockState::Damaged => {
                Body::Lost { crcs: crcs.by_ref().take((extent.len / BLOCK_SIZE) as usize).collect() }
            }
            BlockState::Data => Body::Data {
                payload: data.next().unwrap_or_default(),
                crcs: crcs.by_ref().take((extent.len / BLOCK_SIZE) as usize).collect(),
            },
        };
        pieces.push(Piece { offset: extent.offset, body });
    }
    pieces
}
