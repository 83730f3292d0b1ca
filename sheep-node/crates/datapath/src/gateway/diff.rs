//! Which blocks of the volume differ from a snapshot, or are allocated at all.
//!
//! Maps tell which objects differ; of those that do, one current copy of each is asked which blocks do. What cannot be
//! found out counts as different. An operation looks at a bounded number of objects; who wants more asks again.

use super::api::{DiffExtent, Difference, VolumeError, VolumeReply};
use super::map::ENTRIES;
use super::object::ObjectWrites;
use super::read::ReadOwner;
use super::shared::{Core, Tag};
use super::stack::{OldMap, Unknown};
use super::verdict::{Case, by_block};
use super::volume::Volume;
use crate::View;
use sheep_types::{BLOCK_SIZE, Member, ObjectId, VdiId, Vid};
use sheep_wire::{Compared, Refusal, Reply, Request};
use std::collections::{BTreeMap, BTreeSet};

/// Map entries that one operation looks at.
const OBJECTS: u64 = 4096;
/// Objects that one operation asks about.
const ASKED: usize = 32;
/// Snapshots' maps that are kept though nothing needs them now.
const MAPS: usize = 2;

/// All comparisons of a volume.
#[derive(Debug, Default)]
pub(super) struct Diffs {
    /// By operation.
    all: BTreeMap<u64, Diff>,
    questions: BTreeMap<u64, Question>,
    next_question: u64,
    /// Maps of snapshots, by vid.
    pub(super) maps: BTreeMap<Vid, OldMap>,
}

#[derive(Debug)]
struct Diff {
    offset: u64,
    len: u64,
    old: Option<Old>,
    /// What is known of each index; none yet: maps are being read.
    parts: Option<Vec<Part>>,
    /// Questions that are not answered.
    open: usize,
}

/// What is compared with.
#[derive(Clone, Copy, Debug)]
struct Old {
    vdi: VdiId,
    vid: Vid,
    size: u64,
}

/// A range within one object.
#[derive(Debug)]
struct Part {
    index: u32,
    start: u32,
    end: u32,
    what: What,
}

#[derive(Debug)]
enum What {
    Known(Difference),
    /// Answers in the order of what is wanted; none: it could not be found out.
    Asked {
        case: Case,
        answers: Vec<Option<Vec<Compared>>>,
    },
}

#[derive(Debug)]
struct Question {
    io: u64,
    part: usize,
    answer: usize,
    object: ObjectId,
    other: Option<Vid>,
    tried: Vec<Member>,
    asked: bool,
}

impl Diffs {
    /// Answers about the former epoch do not count.
    pub(super) fn restart(&mut self) {
        for question in self.questions.values_mut() {
            question.tried.clear();
            question.asked = false;
        }
    }

    /// Forgets maps that nobody needs, but for a few.
    fn prune(&mut self) {
        let used: BTreeSet<Vid> = self.all.values().filter_map(|diff| Some(diff.old?.vid)).collect();
        let unused: Vec<Vid> = self.maps.keys().copied().filter(|vid| !used.contains(vid)).collect();
        for vid in unused.iter().rev().skip(MAPS) {
            self.maps.remove(vid);
        }
    }
}

/// Whether two vids stand in one tree, so that they may have objects in common.
fn in_one_tree(view: &View, one: Vid, other: Vid) -> bool {
    let line =
        |vid: Vid| std::iter::successors(Some(vid), |vid| view.vid(*vid).and_then(|record| record.parent));
    let above: BTreeSet<Vid> = line(one).collect();
    view.are_related(one, other) || line(other).any(|vid| above.contains(&vid))
}

impl Volume {
    /// The operation is taken, and counts as one part.
    pub(super) fn begin_diff(&mut self, core: &mut Core, io: u64, range: (u64, u64), since: Option<VdiId>) {
        let view = core.view();
        let old = since.map(|vdi| {
            let record = view.state.vdi(vdi).filter(|record| record.is_snapshot());
            let record = record.filter(|record| in_one_tree(&view, self.vid, record.vid));
            record.map(|record| Old { vdi, vid: record.vid, size: record.size })
        });
        if matches!(old, Some(None)) {
            return self.part_done(core, io, Err(VolumeError::NotRelated), false);
        }
        let diff = Diff { offset: range.0, len: range.1, old: old.flatten(), parts: None, open: 0 };
        self.diffs.all.insert(io, diff);
        self.again = true;
    }

    /// Carries on what can go on.
    pub(super) fn step_diffs(&mut self, core: &mut Core) {
        if self.diffs.all.is_empty() {
            return;
        }
        for io in self.diffs.all.keys().copied().collect::<Vec<_>>() {
            // It may have been given up for taking too long.
            if !self.ios.contains_key(&io) {
                self.end_diff(core, io);
                continue;
            }
            if self.is_old_gone(core, io) {
                self.end_diff(core, io);
                self.part_done(core, io, Err(VolumeError::NotRelated), false);
                continue;
            }
            let planned = self.diffs.all.get(&io).is_some_and(|diff| diff.parts.is_some());
            if !planned && let Err(error) = self.plan_diff(core, io) {
                self.end_diff(core, io);
                self.part_done(core, io, Err(error), false);
            }
        }
        self.ask_questions(core);
        let done: Vec<u64> = self
            .diffs
            .all
            .iter()
            .filter(|(_, diff)| diff.parts.is_some() && diff.open == 0)
            .map(|(io, _)| *io)
            .collect();
        for io in done {
            self.answer_diff(core, io);
        }
    }

    fn end_diff(&mut self, core: &mut Core, io: u64) -> Option<Diff> {
        let of_io = |question: &Question| question.io == io;
        let gone: BTreeSet<u64> =
            self.diffs.questions.iter().filter(|(_, q)| of_io(q)).map(|(id, _)| *id).collect();
        core.cancel_where(
            self.handle,
            |tag| matches!(tag, Tag::Compare { question } if gone.contains(question)),
        );
        self.diffs.questions.retain(|id, _| !gone.contains(id));
        let diff = self.diffs.all.remove(&io);
        self.diffs.prune();
        // Nobody has the map of what is deleted: a read of it would never end.
        let view = core.view();
        let gone = |vid: &Vid| !view.state.is_alive(*vid);
        let maps: Vec<Vid> = self.diffs.maps.keys().copied().filter(gone).collect();
        if !maps.is_empty() {
            self.diffs.maps.retain(|vid, _| !maps.contains(vid));
            self.drop_reads_for(
                core,
                |owner| matches!(owner, ReadOwner::OldMap { vid, .. } if maps.contains(&vid)),
            );
        }
        diff
    }

    /// Whether what is compared with was deleted meanwhile, or is not what it was.
    fn is_old_gone(&self, core: &Core, io: u64) -> bool {
        let old = self.diffs.all.get(&io).and_then(|diff| diff.old);
        old.is_some_and(|old| core.view().state.vdi(old.vdi).is_none_or(|record| record.vid != old.vid))
    }

    /// Looks up what the maps say, and what is to be asked; nothing, if blocks of them have to be read first.
    fn plan_diff(&mut self, core: &Core, io: u64) -> Result<(), VolumeError> {
        let Some(Diff { offset, len, old, .. }) = self.diffs.all.get(&io) else { return Ok(()) };
        let (offset, len, old) = (*offset, *len, *old);
        let size = u64::from(self.geometry.object_size());
        // No more of the map than the cache keeps.
        let (first, entries) = (offset / size, u64::from(ENTRIES));
        let room = (first / entries + self.map.room() as u64) * entries - first;
        let most = (room.min(OBJECTS) + first) * size - offset;
        let len = len.min(self.size.saturating_sub(offset)).min(most);
        let (mut parts, mut questions, mut loading) = (Vec::new(), Vec::new(), false);
        for (index, start, end) in self.cut(offset, len) {
            if questions.len() >= ASKED {
                break;
            }
            let case = match self.case(core, index, old) {
                Ok(case) => case,
                // The others are read meanwhile.
                Err(Unknown::Loading) => {
                    loading = true;
                    continue;
                }
                Err(Unknown::Unreadable) => return Err(VolumeError::Io),
            };
            let what = match case {
                None => What::Known(Difference::Data),
                Some(case) => match case.known() {
                    Some(known) => What::Known(known),
                    None => {
                        let wanted = case.wanted();
                        let part = parts.len();
                        questions.extend((0..).zip(&wanted).map(|(answer, wanted)| Question {
                            io,
                            part,
                            answer,
                            object: ObjectId::data(wanted.vid, index),
                            other: wanted.other,
                            tried: Vec::new(),
                            asked: false,
                        }));
                        What::Asked { case, answers: vec![None; wanted.len()] }
                    }
                },
            };
            parts.push(Part { index, start, end, what });
        }
        let Some(diff) = self.diffs.all.get_mut(&io).filter(|_| !loading) else { return Ok(()) };
        diff.open = questions.len();
        diff.parts = Some(parts);
        for question in questions {
            self.diffs.questions.insert(self.diffs.next_question, question);
            self.diffs.next_question += 1;
        }
        Ok(())
    }

    /// What is to be compared at an index; none: it is being written, and counts as different.
    fn case(&mut self, core: &Core, index: u32, old: Option<Old>) -> Result<Option<Case>, Unknown> {
        let own = self.stack(core, index)?;
        let size = u64::from(self.geometry.object_size());
        let blocks = self.geometry.blocks_per_object();
        let (mut before, mut old_end) = (Vec::new(), 0);
        if let Some(old) = old {
            // What is behind the end of the old contents, be it in their last block, is not theirs.
            let end = old.size.saturating_sub(u64::from(index) * size).min(size);
            old_end = if old.size < self.size { end as u32 } else { self.geometry.object_size() };
            if old_end > 0 {
                before = self.old_stack(core, old.vid, index)?;
            }
        }
        if self.is_unsure(index) {
            return Ok(None);
        }
        let view = core.view();
        Ok(Some(Case::of(&own, &before, old_end, blocks, |one, other| view.are_related(one, other))))
    }

    /// Whether what a member has of an object may never have been, as long as not all have it.
    fn is_unsure(&self, index: u32) -> bool {
        let (own, whole) = (ObjectId::data(self.vid, index), self.geometry.object_size());
        let unsure = |writes: &ObjectWrites| {
            writes.failed(0, whole).is_some() || writes.unanswered(0, whole, u64::MAX)
        };
        self.objects.get(&own).is_some_and(unsure)
    }

    /// Asks members that were not asked yet; who cannot be asked of anybody is done.
    fn ask_questions(&mut self, core: &mut Core) {
        let idle: Vec<u64> =
            self.diffs.questions.iter().filter(|(_, question)| !question.asked).map(|(id, _)| *id).collect();
        for id in idle {
            let Some(Question { object, other, tried, .. }) = self.diffs.questions.get(&id) else { continue };
            let (object, other, tried) = (*object, *other, tried.clone());
            let placed = self.placed(core, object);
            let writes = self.objects.get(&object);
            let size = self.geometry.object_size();
            let fresh = |member: &Member| writes.is_none_or(|writes| writes.is_fresh(*member, 0, size));
            let left: Vec<Member> = placed
                .members
                .iter()
                .copied()
                .filter(|member| fresh(member) && !tried.contains(member))
                .collect();
            let own = left.iter().find(|member| member.node == core.me.node);
            let turn = object.index() as usize % left.len().max(1);
            let Some(member) = own.or(left.get(turn)).copied() else {
                self.answered(id, None);
                continue;
            };
            let birth = self.birth_of(core, object);
            let other = other.map(|vid| (vid, self.birth_of(core, object.of(vid))));
            if let Some(question) = self.diffs.questions.get_mut(&id) {
                question.asked = true;
            }
            self.call(core, Tag::Compare { question: id }, member, Request::Compare { object, birth, other });
        }
    }

    pub(super) fn handle_compared(
        &mut self,
        core: &mut Core,
        number: u64,
        id: u64,
        from: Member,
        reply: Reply,
    ) {
        let blocks = self.geometry.blocks_per_object();
        let answer = match reply {
            // These end by themselves, or with the epoch.
            Reply::Refused(Refusal::Busy | Refusal::StaleEpoch(_) | Refusal::WrongIncarnation) => {
                return core.back_off(number, core.config.not_ready);
            }
            Reply::Compared(ranges) => by_block(&ranges, blocks),
            _ => None,
        };
        core.cancel(number);
        match answer {
            Some(answer) => self.answered(id, Some(answer)),
            None => {
                if let Some(question) = self.diffs.questions.get_mut(&id) {
                    question.tried.push(from);
                    question.asked = false;
                }
            }
        }
    }

    fn answered(&mut self, id: u64, answer: Option<Vec<Compared>>) {
        let Some(question) = self.diffs.questions.remove(&id) else { return };
        let Some(diff) = self.diffs.all.get_mut(&question.io) else { return };
        diff.open -= 1;
        let part = diff.parts.as_mut().and_then(|parts| parts.get_mut(question.part));
        if let Some(Part { what: What::Asked { answers, .. }, .. }) = part
            && let Some(place) = answers.get_mut(question.answer)
        {
            *place = answer;
        }
    }

    /// Everything is known.
    fn answer_diff(&mut self, core: &mut Core, io: u64) {
        let blocks = self.geometry.blocks_per_object();
        let Some(diff) = self.end_diff(core, io) else { return };
        let still = diff
            .old
            .is_none_or(|old| core.view().state.vdi(old.vdi).is_some_and(|record| record.vid == old.vid));
        if !still {
            return self.part_done(core, io, Err(VolumeError::NotRelated), false);
        }
        let mut extents = Vec::new();
        for part in diff.parts.unwrap_or_default() {
            match part.what {
                // Written since it was asked for, and who answered may be the only one who has it.
                What::Asked { .. } if self.is_unsure(part.index) => {
                    push(&mut extents, part.end - part.start, Difference::Data);
                }
                What::Known(known) => push(&mut extents, part.end - part.start, known),
                What::Asked { case, answers } => match answers.into_iter().collect::<Option<Vec<_>>>() {
                    None => push(&mut extents, part.end - part.start, case.unknown()),
                    Some(answers) => {
                        let judged = case.judge(&answers, blocks);
                        for (block, difference) in (0u32..).zip(judged) {
                            let (first, end) = (block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE);
                            let (first, end) = (first.max(part.start), end.min(part.end));
                            push(&mut extents, end.saturating_sub(first), difference);
                        }
                    }
                },
            }
        }
        self.ios.remove(&io);
        self.again = true;
        self.answer(core, io, Ok(VolumeReply::Diff(extents)));
    }
}

fn push(extents: &mut Vec<DiffExtent>, len: u32, difference: Difference) {
    let len = u64::from(len);
    match extents.last_mut() {
        _ if len == 0 => {}
        Some(last) if last.difference == difference => last.len += len,
        _ => extents.push(DiffExtent { len, difference }),
    }
}
