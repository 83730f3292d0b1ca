//! Blocks that the source of a fetch does not have: lost there, or damaged.
//!
//! Everybody who is up is asked for them, in exactly the version that is fetched: whoever has that has the right
//! contents, whether or not the copy counts. An object may have begun as a clone of an older vid's: what nobody has
//! written since is in this node's copy of that one, too. Only when all have said that they do not have them, the source
//! again last, and have said so in several attempts, these blocks are stored as lost, so that the rest of the object has
//! as many copies as it should. What is not certain is not stored: the object waits.

use super::AskKind;
use super::compare::{Blocks, Cell, ranges_of};
use super::fetch::Fetch;
use crate::replica::{Job, Replica, read_data};
use crate::{Mutant, View};
use core::time::Duration;
use sheep_store::{Op, Outcome, StoreError};
use sheep_types::{BLOCK_SIZE, Member, ObjectId, Time, Version, Vid};
use sheep_wire::{ReadData, Refusal, Reply, Request};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Blocks of one question.
const AT_ONCE: usize = 64;
/// Attempts in which nobody had a block, one after the other, before it is stored as lost,
const ATTEMPTS: u32 = 3;
/// or if somebody has another version of the object, which may be on its way to this one,
const OTHERS: u32 = 6;
/// and the time that must be between the first and the last of them: errors of disks may pass.
const AWHILE: Duration = Duration::from_millis(500);
/// Attempts to make the own copy good that are made again at once because somebody could not say what it has.
const UNSURE: u32 = 6;
/// Attempts to make it good that are made later, in each epoch, and the pause before the first; it is doubled each time.
const HEALS: u32 = 5;
const HEAL_PAUSE: Duration = Duration::from_secs(2);

/// Blocks that are asked for elsewhere.
#[derive(Debug, Default)]
pub(super) struct Help {
    lost: BTreeSet<u32>,
    /// Who is still to be asked for which of them; none: nobody was asked yet.
    questions: Option<VecDeque<(Member, Vec<u32>)>>,
    /// The oldest vid whose copy on this node has been looked into for them.
    looked_into: Option<Vid>,
    /// Somebody could not say.
    unsure: bool,
    /// Somebody has another version.
    other: bool,
}

/// What earlier attempts of this epoch to fetch an object did not find anywhere.
#[derive(Debug, Default)]
pub(super) struct Missed {
    version: Version,
    /// For each block, in how many attempts up to the last one, and when that was first.
    blocks: BTreeMap<u32, (u32, Time)>,
    /// Attempts that are made again because somebody was unsure.
    tries: u32,
}

impl Missed {
    /// One more attempt has ended without these. Whether all of them have been looked for often and long enough.
    fn note(&mut self, now: Time, version: Version, blocks: &BTreeSet<u32>, attempts: u32) -> bool {
        if self.version != version {
            (self.version, self.blocks) = (version, BTreeMap::new());
        }
        let before = |block: &u32| self.blocks.get(block).copied().unwrap_or((0, now));
        let counted = blocks.iter().map(|block| (*block, before(block)));
        self.blocks =
            counted.map(|(block, (times, first))| (block, (times.saturating_add(1), first))).collect();
        self.blocks.values().all(|(times, first)| *times >= attempts && now.since(*first) >= AWHILE)
    }
}

impl Help {
    pub(super) fn new(lost: BTreeSet<u32>) -> Self {
        Self { lost, ..Self::default() }
    }

    /// Blocks that nobody has, as ranges of bytes.
    pub(super) fn left(&self) -> Vec<(u32, u32)> {
        ranges_of(self.lost.iter().copied())
    }

    fn begin(&mut self, members: impl Iterator<Item = Member>) {
        let lost: Vec<u32> = self.lost.iter().copied().collect();
        let question = |member| lost.chunks(AT_ONCE).map(move |blocks| (member, blocks.to_vec()));
        self.questions = Some(members.flat_map(question).collect());
    }

    /// A member does not answer: it is not asked for more.
    fn skip(&mut self, silent: Member) {
        if let Some(questions) = &mut self.questions {
            questions.retain(|(member, _)| *member != silent);
        }
    }

    /// The next question, for what nobody has given yet.
    fn next(&mut self) -> Option<(Member, Vec<(u32, u32)>)> {
        while let Some((member, blocks)) = self.questions.as_mut().and_then(VecDeque::pop_front) {
            let ranges = ranges_of(blocks.into_iter().filter(|block| self.lost.contains(block)));
            if !ranges.is_empty() {
                return Some((member, ranges));
            }
        }
        None
    }
}

impl Fetch {
    /// The source does not have these.
    pub(super) fn note_lost(&mut self, blocks: &[u32]) {
        let Some((_, cells)) = &mut self.digest else { return };
        for block in blocks {
            if let Some(cell) = cells.get_mut(*block as usize) {
                if let Cell::Data(crc) = *cell {
                    *cell = Cell::Lost(crc);
                }
                self.help.lost.insert(*block);
            }
        }
    }

    /// What came of these is not lost any more. `not`: what did not come.
    fn note_found(&mut self, ranges: &[(u32, u32)], not: &[u32]) {
        if let Some((_, cells)) = &mut self.digest {
            note_found(cells, &mut self.help.lost, &self.blocks, ranges, not);
        }
    }

    /// Whether something that may be right would be stored as lost.
    fn would_cover(&self) -> bool {
        let held = self.held().unwrap_or_default();
        self.digest.as_ref().is_none_or(|(_, cells)| covers(&self.help.lost, cells, held))
    }
}

/// Takes what came of some ranges from what is lost. Of blocks that did not come (`not`) there may be something older in
/// `have`: what was lost may be anything, if its checksum is not known.
fn note_found(
    cells: &mut [Cell],
    lost: &mut BTreeSet<u32>,
    have: &Blocks,
    ranges: &[(u32, u32)],
    not: &[u32],
) {
    let asked = ranges.iter().flat_map(|(offset, len)| *offset / BLOCK_SIZE..(*offset + *len) / BLOCK_SIZE);
    for block in asked.filter(|block| !not.contains(block)) {
        let crc = have.crc(block).filter(|_| lost.contains(&block));
        if let (Some(crc), Some(cell)) = (crc, cells.get_mut(block as usize))
            && (*cell == Cell::Lost(crc) || *cell == Cell::Lost(0))
        {
            *cell = Cell::Data(crc);
            lost.remove(&block);
        }
    }
}

/// Whether one of the blocks that would be stored as lost may have the right contents in the own copy: their checksum is
/// the right one, or it is not known what that is, and they are good ones of whatever version.
fn covers(lost: &BTreeSet<u32>, cells: &[Cell], own: &[Cell]) -> bool {
    lost.iter().any(|block| match (cells.get(*block as usize), own.get(*block as usize)) {
        (Some(Cell::Lost(right)), Some(Cell::Data(crc))) => *right == 0 || right == crc,
        _ => false,
    })
}

impl Replica {
    /// Everything that the source has is here. Asks the next one for what it has not; false if nothing is left to be
    /// asked.
    pub(super) fn ask_for_help(&mut self, now: Time, view: &View, number: u64) -> bool {
        let Some(fetch) = self.recovery.fetches.all.get(&number) else { return true };
        let spare = self.store().spare(fetch.object).is_some_and(|spare| spare.birth == fetch.birth);
        let Some(fetch) = self.recovery.fetches.all.get_mut(&number) else { return true };
        if fetch.help.lost.is_empty() {
            return false;
        }
        if fetch.help.questions.is_none() {
            // The source is asked again, last: it may be able to read now what it could not before.
            let (me, source) = (self.me, fetch.source);
            let others = view.up_members().into_iter().filter(|member| *member != me && *member != source);
            fetch.help.begin(others.chain((source != me).then_some(source)));
            if spare {
                fetch.asked += 1;
                let object = fetch.object;
                self.read_spare(object, view.state.geometry().object_size(), number);
                return true;
            }
        }
        if let Some((member, ranges)) = fetch.help.next() {
            let Some((digest, _)) = &fetch.digest else { return true };
            let (object, birth, version) = (fetch.object, fetch.birth, digest.version);
            fetch.asked += 1;
            let request = Request::Blocks { object, birth, version, ranges: ranges.clone(), urgent: true };
            self.ask_for(now, view, member, request, AskKind::Help { fetch: number, ranges });
            return true;
        }
        if !self.config.mutants.is(Mutant::LostIsNotInherited) && self.look_into_older(view, number) {
            return true;
        }
        let Some(fetch) = self.recovery.fetches.all.get(&number) else { return true };
        if fetch.help.lost.is_empty() || self.may_lose(now, number) {
            return false;
        }
        self.fetch_failed(now, number, Refusal::Busy);
        true
    }

    /// Reads what is lost in the next older vid's copy on this node; false if there is nothing to be read.
    fn look_into_older(&mut self, view: &View, number: u64) -> bool {
        let Some(fetch) = self.recovery.fetches.all.get(&number) else { return false };
        let lost = &fetch.help.lost;
        let (Some(first), Some(last)) = (lost.first(), lost.last()) else { return false };
        let (offset, len) = (*first * BLOCK_SIZE, (*last + 1 - *first) * BLOCK_SIZE);
        // Whatever comes and goes meanwhile: a parent's number is lower than its child's.
        let before = fetch.help.looked_into.unwrap_or(fetch.object.vid());
        let older = self.older_copies(view, fetch.object, usize::MAX).find(|(older, _)| older.vid() < before);
        let Some((object, _)) = older else { return false };
        if let Some(fetch) = self.recovery.fetches.all.get_mut(&number) {
            fetch.help.looked_into = Some(object.vid());
            fetch.asked += 1;
        }
        self.submit(Op::Salvage { object, offset, len }, Job::Older { fetch: number });
        true
    }

    /// Nobody has given some blocks in this attempt. Whether that may end it: they are stored as lost, or, where the own
    /// copy is to be made good, stay as they are.
    fn may_lose(&mut self, now: Time, number: u64) -> bool {
        let Some(fetch) = self.recovery.fetches.all.get(&number) else { return false };
        let Some((digest, _)) = &fetch.digest else { return false };
        let missed = self.recovery.missed.entry(fetch.object).or_default();
        let help = &fetch.help;
        if fetch.source == self.me {
            missed.tries += u32::from(missed.tries < UNSURE);
            return !(help.unsure || help.other) || missed.tries >= UNSURE;
        }
        let attempts = if help.other { OTHERS } else { ATTEMPTS };
        let often = missed.note(now, digest.version, &help.lost, attempts);
        often && !help.unsure && !fetch.would_cover()
    }

    /// Somebody has said what it has of them. None: no answer.
    pub(super) fn take_help(
        &mut self,
        from: Member,
        fetch: u64,
        ranges: &[(u32, u32)],
        reply: Option<Reply>,
    ) {
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        state.asked -= 1;
        match reply {
            Some(Reply::Read(data)) => {
                let bytes = self.take_found(fetch, ranges, data);
                self.recovery.bytes_done += bytes;
                self.recovery.bytes_ever += bytes;
            }
            Some(Reply::Refused(Refusal::NoCopy)) => {}
            Some(Reply::Refused(Refusal::OtherVersion)) => state.help.other = true,
            None => {
                state.help.unsure = true;
                state.help.skip(from);
            }
            Some(_) => state.help.unsure = true,
        }
    }

    /// A copy on another disk that does not count has been read, or an older vid's. What has the right checksum is right;
    /// if that is not known, what is of the right version of the same object.
    pub(crate) fn take_aside(&mut self, fetch: u64, older: bool, result: Result<Outcome, StoreError>) {
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        state.asked -= 1;
        let Ok(Outcome::Read(read)) = result else { return };
        let Some((digest, cells)) = &state.digest else { return };
        let same = !older && read.version == digest.version;
        let wanted = |block: u32, crc: u32| match cells.get(block as usize) {
            Some(Cell::Lost(0)) => same,
            Some(Cell::Lost(right)) => *right == crc,
            _ => false,
        };
        let taken = state.blocks.take_some(read_data(read), wanted);
        state.note_found(&ranges_of(taken.into_iter()), &[]);
    }

    fn take_found(&mut self, fetch: u64, ranges: &[(u32, u32)], data: ReadData) -> u64 {
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return 0 };
        let Some((digest, cells)) = &state.digest else { return 0 };
        let bytes: u64 = data.data.iter().map(|data| data.len() as u64).sum();
        let right = data.version == digest.version;
        let Some(not) = right.then(|| state.blocks.take(data, ranges, Some(cells))).flatten() else {
            state.help.unsure = true;
            return 0;
        };
        state.note_found(ranges, &not);
        state.bytes += bytes;
        bytes
    }

    /// The own copy is current and lacks blocks: they are asked for again in a while.
    pub(crate) fn heal_later(&mut self, now: Time, object: ObjectId) {
        let times = self.recovery.heals.entry(object).or_default();
        *times += 1;
        if *times <= HEALS {
            let pause = HEAL_PAUSE * (1 << *times);
            self.set_timer(now, pause / 2, super::RecoveryTimer::Heal(object));
        }
    }

    pub(super) fn heal_again(&mut self, now: Time, view: &View, object: ObjectId) {
        if !self.recovery.heals.contains_key(&object) || !self.is_wounded(object) {
            return;
        }
        if view.state.settings().recovery_paused {
            return self.set_timer(now, HEAL_PAUSE, super::RecoveryTimer::Heal(object));
        }
        self.want(view, object, false);
    }

    /// Whether the own copy lacks blocks that are still asked for in this epoch. If nobody has asked yet, that begins.
    pub(crate) fn is_healing(&mut self, now: Time, object: ObjectId) -> bool {
        if !self.is_wounded(object) {
            return false;
        }
        if !self.recovery.heals.contains_key(&object) {
            self.heal_later(now, object);
        }
        let times = self.recovery.heals.get(&object).copied().unwrap_or_default();
        let walks = self.recovery.todo.contains_key(&object) || self.recovery.walks.contains_key(&object);
        walks || times <= HEALS
    }

    /// A copy was to be made good, and there is nothing to be put into it.
    pub(super) fn end_heal(&mut self, now: Time, object: ObjectId, left: Vec<(u32, u32)>) {
        if self.scrub.doubt(object).is_some() {
            // It has come meanwhile, and the next walk makes the copy equal to another one.
            return self.walk_failed(now, object);
        }
        self.recovery.forget(object);
        self.wake(object);
        if left.is_empty() {
            // What was damaged has been written over.
            self.damaged.remove(&object);
            self.scrub.whole(object);
        } else {
            self.tell_lost(object, &left);
            self.not_repaired(object);
            self.heal_later(now, object);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Cell::{Data, Lost};
    use sheep_wire::{Extent, ExtentState};

    fn data(block: u32, crc: u32) -> ReadData {
        let extent = Extent { offset: block * BLOCK_SIZE, len: BLOCK_SIZE, state: ExtentState::Data };
        let bytes = bytes::Bytes::from(vec![1; BLOCK_SIZE as usize]);
        ReadData { extents: vec![extent], data: vec![bytes], crcs: vec![crc], ..ReadData::default() }
    }

    #[test]
    fn what_did_not_come_is_not_taken_from_what_is_older() {
        let mut cells = vec![Data(1), Lost(0), Lost(0), Lost(7), Lost(7)];
        let mut lost = BTreeSet::from([1, 2, 3, 4]);
        let mut have = Blocks::default();
        // The own old contents of one; what comes of another one.
        have.take_own(data(1, 99));
        have.take_own(data(3, 7));
        have.take_own(data(4, 8));
        let range = (2 * BLOCK_SIZE, BLOCK_SIZE);
        assert_eq!(have.take(data(2, 5), &[range], Some(&cells)), Some(vec![]));
        note_found(&mut cells, &mut lost, &have, &[(BLOCK_SIZE, 4 * BLOCK_SIZE)], &[1]);
        assert_eq!(cells, [Data(1), Lost(0), Data(5), Data(7), Lost(7)]);
        assert_eq!(lost, BTreeSet::from([1, 4]));
    }

    #[test]
    fn good_contents_that_may_be_right_are_not_covered() {
        let cells = [Lost(0), Lost(0), Lost(5), Lost(5), Lost(0)];
        let own = [Data(1), Cell::Zero, Data(5), Data(6), Lost(0)];
        let covered: Vec<_> = (0..5).map(|block| covers(&BTreeSet::from([block]), &cells, &own)).collect();
        assert_eq!(covered, [true, false, true, false, false]);
        assert!(!covers(&BTreeSet::from([0, 1]), &cells, &[]), "there is no own copy");
    }

    #[test]
    fn a_block_is_looked_for_often_and_long_enough() {
        let mut missed = Missed::default();
        let version = Version::default();
        let one = BTreeSet::from([1]);
        let at = |millis: u64| Time::from_nanos(millis * 1_000_000);
        for time in [0, 10, 30, 70] {
            assert!(!missed.note(at(time), version, &one, ATTEMPTS));
        }
        assert!(missed.note(at(500), version, &one, ATTEMPTS));
        // One more that fails for the first time; and those of another version count anew.
        assert!(!missed.note(at(600), version, &BTreeSet::from([1, 2]), ATTEMPTS));
        assert!(missed.note(at(700), version, &one, ATTEMPTS));
        let next = Version { sequence: 1, ..version };
        assert!(!missed.note(at(800), next, &one, ATTEMPTS));
        assert!(!missed.note(at(1400), next, &one, ATTEMPTS));
        assert!(missed.note(at(1410), next, &one, ATTEMPTS));
    }
}
