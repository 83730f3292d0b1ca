//! One round of a sweep: some dead vids, over the whole range of indexes.

use super::super::contents;
use super::super::map::PARTIAL;
use super::super::open::layers;
use super::super::shared::{Basis, Core, Tag};
use super::HANDLE;
use super::reach::{Blocks, Walk, Window, blocks_of};
use crate::{Mutant, View};
use sheep_types::{BLOCK_SIZE, Generation, Member, ObjectId, Time, Vid};
use sheep_wire::{ExtentState, ObjectRun, Reply, Request};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Blocks of a map object that are read at once: 1 MiB.
const WINDOW: u32 = 256;
/// Runs of objects that one request names.
const RUNS: usize = 32 << 10;
/// Windows of origins that are remembered, for the next one that reads through them.
const REMEMBERED: usize = 16;
/// Between two windows.
const PAUSE: Duration = Duration::from_millis(1);
/// Answers that say "not now", one after the other, after which the round is given up, and the pause between them.
const TRIES: u32 = 40;
const TRY_PAUSE: Duration = Duration::from_millis(50);

/// What follows.
pub(super) enum Next {
    /// Answers, or this time.
    Wait(Option<Time>),
    /// Nothing can be said now.
    Failed,
    /// It has gone over everything.
    Done,
}

/// A part of the range of indexes.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: u32,
    last: u32,
    /// What says who reaches what there; without, nobody reaches anything.
    window: Option<Window>,
}

/// What became of the present one of the frontier.
enum Reading {
    /// Something is asked for.
    Asked,
    /// What it reaches is known.
    Counted,
    /// All have been counted.
    All,
}

#[derive(Debug)]
enum Step {
    /// The maps of the frontier are read, this one's now.
    Reading { place: usize, walk: Option<Walk> },
    /// What was read becomes durable.
    Securing,
    /// What nobody reaches is deleted, in pieces of a part.
    Deleting { pieces: VecDeque<(u32, u32, Vec<ObjectRun>)> },
}

/// What is asked for, and of whom.
#[derive(Debug)]
struct Asked {
    to: Member,
    request: Request,
    layer: usize,
}

#[derive(Debug)]
pub(super) struct Round {
    pub(super) begun: Time,
    /// The state that the frontier is taken from.
    pub(super) view: Arc<View>,
    /// The dead vids; whether somebody reaches something of them.
    pub(super) vids: BTreeMap<Vid, bool>,
    /// Objects that were deleted, and that had to stay.
    pub(super) dropped: u64,
    pub(super) left: u64,
    /// Vids of which something may be the last that has what younger ones have lost.
    pub(super) needed: BTreeSet<Vid>,
    frontier: Vec<Vid>,
    parts: VecDeque<Part>,
    step: Step,
    /// What is reached in the present part.
    names: BTreeSet<(Vid, u32)>,
    /// Members of which something was read that may still change.
    unsure: BTreeSet<Member>,
    remembered: BTreeMap<ObjectId, Blocks>,
    /// Vids whose reach in the present part is known because somebody reads through them.
    counted: BTreeSet<Vid>,
    asked: BTreeMap<u64, Asked>,
    /// Asked for again when the time comes.
    again: Vec<Asked>,
    again_at: Option<Time>,
    tries: u32,
    failed: bool,
}

impl Round {
    pub(super) fn new(now: Time, view: &Arc<View>, vids: Vec<Vid>) -> Self {
        let frontier = vids.first().map_or_else(Vec::new, |vid| view.state.frontier(*vid));
        let mut maps = BTreeSet::new();
        for layer in frontier.iter().flat_map(|vid| layers(view, *vid)) {
            maps.extend(layer.maps.keys().copied());
        }
        Self {
            begun: now,
            view: Arc::clone(view),
            vids: vids.into_iter().map(|vid| (vid, false)).collect(),
            dropped: 0,
            left: 0,
            needed: BTreeSet::new(),
            frontier,
            parts: parts(&maps, view.state.geometry().entries_per_map()),
            step: Step::Reading { place: 0, walk: None },
            names: BTreeSet::new(),
            unsure: BTreeSet::new(),
            remembered: BTreeMap::new(),
            counted: BTreeSet::new(),
            asked: BTreeMap::new(),
            again: Vec::new(),
            again_at: None,
            tries: 0,
            failed: false,
        }
    }

    /// Goes on as far as possible without answers.
    pub(super) fn step(&mut self, core: &mut Core) -> Next {
        self.ask_again(core);
        loop {
            if self.failed && matches!(self.step, Step::Reading { .. }) {
                self.skip(core);
                return Next::Wait(Some(core.now + PAUSE));
            }
            if self.failed {
                return Next::Failed;
            }
            if !self.asked.is_empty() || !self.again.is_empty() {
                return Next::Wait(self.again_at);
            }
            let Some(part) = self.parts.front().copied() else { return Next::Done };
            match &mut self.step {
                Step::Reading { .. } => match part.window.map(|window| self.read_on(core, window)) {
                    Some(Reading::Asked) => {}
                    // A vid may reach very many objects: others come in between.
                    Some(Reading::Counted) => return Next::Wait(Some(core.now + PAUSE)),
                    Some(Reading::All) | None => self.secure(core),
                },
                Step::Securing => self.step = Step::Deleting { pieces: self.pieces(part) },
                Step::Deleting { pieces } => {
                    if let Some((first, last, keep)) = pieces.pop_front() {
                        self.delete(core, (first, last), &keep);
                        continue;
                    }
                    self.end_part();
                    return Next::Wait(Some(core.now + PAUSE));
                }
            }
        }
    }

    /// Asks for what the present one of the frontier still needs, or counts what it reaches.
    fn read_on(&mut self, core: &mut Core, window: Window) -> Reading {
        let Step::Reading { place, walk } = &mut self.step else { return Reading::All };
        if walk.is_none() {
            while let Some(vid) = self.frontier.get(*place).copied() {
                let layers = layers(&self.view, vid);
                // Of many clones that have nothing of their own here one is enough.
                let is_blank = layers.first().is_some_and(|own| !own.maps.contains_key(&window.map));
                let below = layers.get(1).filter(|_| is_blank).map(|layer| layer.vid);
                if below.is_none_or(|below| self.counted.insert(below)) {
                    *walk = Some(Walk::new(layers, window));
                    break;
                }
                *place += 1;
            }
        }
        let Some(walk) = walk else { return Reading::All };
        while let Some((layer, object)) = walk.wanted() {
            if let Some(blocks) = self.remembered.get(&object) {
                walk.take(layer, blocks.clone());
                continue;
            }
            let (offset, len) = window.range();
            self.read(core, layer, object, (offset, len));
            return Reading::Asked;
        }
        let entries_per_map = self.view.state.geometry().entries_per_map();
        self.failed |= walk.names(&self.view, &self.vids, entries_per_map, &mut self.names).is_err();
        *place += 1;
        self.step = Step::Reading { place: *place, walk: None };
        Reading::Counted
    }

    /// What the present part is cannot be read. It stays, and so does everything that might be reached there.
    fn skip(&mut self, core: &mut Core) {
        core.cancel_all(HANDLE);
        self.asked.clear();
        self.again.clear();
        (self.again_at, self.tries, self.failed) = (None, 0, false);
        if !core.config.mutants.is(Mutant::SweepSkipsUnread) {
            self.left += 1;
            self.vids.values_mut().for_each(|reached| *reached = true);
        }
        self.end_part();
    }

    fn end_part(&mut self) {
        self.names.clear();
        self.remembered.clear();
        self.counted.clear();
        self.unsure.clear();
        self.parts.pop_front();
        self.step = Step::Reading { place: 0, walk: None };
    }

    /// Reads a map object: of all up members if it may still change, else of one of them.
    fn read(&mut self, core: &mut Core, layer: usize, object: ObjectId, (offset, len): (u32, u32)) {
        let view = core.view();
        let Some(birth) = view.vid(object.vid()).map(|record| record.birth) else {
            self.failed = true;
            return;
        };
        let mut members = view.up_set(object);
        let changes = view.writable(object.vid());
        if changes {
            self.unsure.extend(&members);
        }
        if !changes || core.config.mutants.is(Mutant::SweepReadsOneCopy) {
            let own = members.iter().position(|member| *member == core.me);
            // Another one each time, so that one that cannot does not stop it.
            let turn = own.filter(|_| self.tries == 0).unwrap_or(self.tries as usize % members.len().max(1));
            members = members.get(turn).copied().into_iter().collect();
        }
        self.failed |= members.is_empty();
        for member in members {
            self.ask(core, member, layer, Request::Read { object, birth, offset, len });
        }
    }

    fn ask(&mut self, core: &mut Core, to: Member, layer: usize, request: Request) {
        let view = core.view();
        let generation = match &request {
            Request::Read { object, .. } => view.generation(object.vid()).unwrap_or_default(),
            _ => Generation(0),
        };
        let basis = Basis { generation, relies_on: self.view.index };
        let number = core.call(HANDLE, Tag::Sweep, to, basis, request.clone());
        self.asked.insert(number, Asked { to, request, layer });
    }

    fn ask_again(&mut self, core: &mut Core) {
        if self.again_at.is_none_or(|at| at > core.now) {
            return;
        }
        self.again_at = None;
        for Asked { to, request, layer } in std::mem::take(&mut self.again) {
            match request {
                // Of one that does not change another member is asked.
                Request::Read { object, offset, len, .. } if !core.view().writable(object.vid()) => {
                    self.read(core, layer, object, (offset, len));
                }
                request => self.ask(core, to, layer, request),
            }
        }
    }

    pub(super) fn handle_reply(&mut self, core: &mut Core, number: u64, from: Member, reply: Reply) {
        let Some(asked) = self.asked.remove(&number) else { return };
        let answered = match (&asked.request, reply) {
            (Request::Read { object, offset, len, .. }, Reply::Read(data)) => {
                let verify = from != core.me;
                let lost = data.extents.iter().any(|extent| extent.state == ExtentState::Lost);
                let found = contents::check(&data, *offset, offset + len, verify).filter(|_| !lost);
                found.is_some_and(|found| self.take(core, asked.layer, *object, &found))
            }
            (Request::Secure { .. }, Reply::Which(_)) => true,
            (Request::Sweep { .. }, Reply::Swept { dropped, left, needed, next }) => {
                self.dropped += u64::from(dropped);
                self.left += u64::from(left);
                self.needed.extend(needed);
                self.delete_on(core, from, &asked.request, next);
                true
            }
            _ => false,
        };
        if answered {
            self.tries = 0;
            return;
        }
        self.tries += 1;
        self.failed |= self.tries > TRIES;
        self.again.push(asked);
        self.again_at = Some(core.now + TRY_PAUSE);
    }

    /// Takes over what a member has in a map object; false if it does not say.
    fn take(&mut self, core: &Core, layer: usize, object: ObjectId, found: &[contents::Found]) -> bool {
        let Some(Part { window: Some(window), .. }) = self.parts.front().copied() else { return false };
        let mut blocks = blocks_of(found, window);
        if core.config.mutants.is(Mutant::SweepIgnoresPartial) {
            blocks.iter_mut().flatten().flatten().for_each(|entry| *entry &= !PARTIAL);
        }
        let Step::Reading { walk: Some(walk), .. } = &mut self.step else { return false };
        if layer > 0 && self.remembered.len() < REMEMBERED {
            self.remembered.insert(object, blocks.clone());
        }
        walk.take(layer, blocks);
        true
    }

    /// Everything about a part is read: members make it durable.
    fn secure(&mut self, core: &mut Core) {
        for (vid, _) in &self.names {
            if let Some(reached) = self.vids.get_mut(vid) {
                *reached = true;
            }
        }
        self.step = Step::Securing;
        if core.config.mutants.is(Mutant::SweepUnsecured) {
            self.unsure.clear();
        }
        for member in std::mem::take(&mut self.unsure) {
            self.ask(core, member, 0, Request::Secure { objects: Vec::new() });
        }
    }

    /// What is to be kept of a part, cut so that it fits messages.
    fn pieces(&self, part: Part) -> VecDeque<(u32, u32, Vec<ObjectRun>)> {
        let mut by_index: BTreeMap<u32, Vec<Vid>> = BTreeMap::new();
        for (vid, index) in &self.names {
            by_index.entry(*index).or_default().push(*vid);
        }
        let mut pieces = VecDeque::new();
        let (mut first, mut names) = (part.first, BTreeSet::new());
        for (index, vids) in by_index {
            if names.len() + vids.len() > RUNS && index > first {
                pieces.push_back((first, index - 1, runs(&std::mem::take(&mut names))));
                first = index;
            }
            names.extend(vids.into_iter().map(|vid| (vid, index)));
        }
        pieces.push_back((first, part.last, runs(&names)));
        pieces
    }

    fn delete(&mut self, core: &mut Core, (first, last): (u32, u32), keep: &[ObjectRun]) {
        let vids: Vec<Vid> = self.vids.keys().copied().collect();
        for member in core.view().up_members() {
            let (vids, keep) = (vids.clone(), keep.to_vec());
            self.ask(core, member, 0, Request::Sweep { vids, first, last, keep, from: ObjectId(0) });
        }
    }

    fn delete_on(&mut self, core: &mut Core, to: Member, request: &Request, next: Option<ObjectId>) {
        let (Request::Sweep { vids, first, last, keep, from }, Some(next)) = (request, next) else { return };
        // One that goes back would keep this up for ever.
        if next <= *from {
            self.failed = true;
            return;
        }
        let (vids, keep) = (vids.clone(), keep.clone());
        self.ask(core, to, 0, Request::Sweep { vids, first: *first, last: *last, keep, from: next });
    }
}

/// The whole range of indexes: windows of these map objects, and what is between them.
fn parts(maps: &BTreeSet<u32>, entries_per_map: u32) -> VecDeque<Part> {
    let mut parts = VecDeque::new();
    let mut next = 0;
    let per_block = BLOCK_SIZE / 4;
    for map in maps {
        let begin = map * entries_per_map;
        if begin > next {
            parts.push_back(Part { first: next, last: begin - 1, window: None });
        }
        let blocks = entries_per_map / per_block;
        let mut block = 0;
        while block < blocks {
            let count = WINDOW.min(blocks - block);
            let first = begin + block * per_block;
            let last = first + count * per_block - 1;
            parts.push_back(Part { first, last, window: Some(Window { map: *map, block, blocks: count }) });
            block += count;
        }
        next = begin + entries_per_map;
    }
    if next < ObjectId::INDEX_LIMIT {
        parts.push_back(Part { first: next, last: ObjectId::INDEX_LIMIT - 1, window: None });
    }
    parts
}

fn runs(names: &BTreeSet<(Vid, u32)>) -> Vec<ObjectRun> {
    let mut runs: Vec<ObjectRun> = Vec::new();
    for (vid, index) in names {
        match runs.last_mut() {
            Some(run) if run.vid == *vid && run.last + 1 == *index => run.last = *index,
            _ => runs.push(ObjectRun { vid: *vid, first: *index, last: *index }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once() {
        let parts = parts(&BTreeSet::from([1, 3]), 1 << 20);
        assert_eq!(parts.len(), 2 * 4 + 3);
        let mut next = 0;
        for part in &parts {
            assert_eq!(part.first, next);
            next = part.last + 1;
        }
        assert_eq!(next, ObjectId::INDEX_LIMIT);
    }

    #[test]
    fn neighbours_are_one_run() {
        let names = BTreeSet::from([(Vid(1), 4), (Vid(1), 5), (Vid(1), 7), (Vid(2), 8)]);
        let run = |vid, first, last| ObjectRun { vid: Vid(vid), first, last };
        assert_eq!(runs(&names), [run(1, 4, 5), run(1, 7, 7), run(2, 8, 8)]);
    }
}
