//! Making the own copy equal to another one by fetching only the blocks that differ.
//!
//! The source is asked for its *digest*: version, extents and checksums of one instant. Compared with the own copy
//! that says which blocks are missing; they are fetched in bounded pieces, several at once, each from exactly that
//! version. If the source has gone on meanwhile it says so, and its digest is asked for again: what has come and
//! has not changed is not fetched again. What the source has lost itself is asked of everybody ([`super::help`]). A copy
//! that lacks blocks is made good the same way, with itself as the source. In the end one change of the store takes contents and version over.

use super::compare::{Blocks, Cell, cells, find_lost, missing, must_forget, next_ranges, pieces};
use super::help::Help;
use super::{AskKind, Phase};
use crate::replica::{Contents, Job, Replica, Then, read_data};
use crate::{Mutant, View};
use sheep_store::{Body, Op, Outcome, StoreError};
use sheep_types::{BLOCK_SIZE, Birth, Member, ObjectId, Time, Version};
use sheep_wire::{Header, ObjectDigest, ReadData, Refusal, Request};
use std::collections::VecDeque;

/// How often the source may go on before another attempt is made later.
const RESTARTS: u32 = 16;

/// What an object is fetched for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Its walk.
    Walk,
    /// Somebody asked to make the copy equal.
    Equalize { asker: Header, version: Version },
}

/// What is known of the own copy.
#[derive(Debug)]
enum Own {
    /// The store is asked.
    Awaited,
    /// Nothing of it is of use.
    Nothing,
    /// This is where it differs from.
    Copy(Vec<Cell>),
    /// Its contents are being read, for it is replaced as a whole: some blocks have to go, or it is in doubt. What it
    /// holds, if that is known.
    Reading(Vec<Cell>),
    /// They have been read, and held this.
    Read(Vec<Cell>),
}

/// An object that is being fetched.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) object: ObjectId,
    pub(super) birth: Birth,
    pub(super) source: Member,
    /// Only this version will do.
    version: Option<Version>,
    pub(super) purpose: Purpose,
    /// Version of the own copy when this began.
    began: Option<Version>,
    own: Own,
    pub(super) digest: Option<(ObjectDigest, Vec<Cell>)>,
    /// A question for the digest is on its way.
    asking: bool,
    pub(super) blocks: Blocks,
    pub(super) missing: VecDeque<(u32, u32)>,
    /// Blocks that the source does not have either, and who else is asked for them.
    pub(super) help: Help,
    /// All blocks of the own copy were read: those that are bad are known.
    checked: bool,
    /// Questions for blocks on their way.
    pub(super) asked: usize,
    restarts: u32,
    pub(super) bytes: u64,
}

impl Fetch {
    /// What the own copy holds, as far as is known.
    pub(super) fn held(&self) -> Option<&[Cell]> {
        match &self.own {
            Own::Copy(cells) | Own::Reading(cells) | Own::Read(cells) => Some(cells),
            Own::Awaited | Own::Nothing => None,
        }
    }

    /// What the store is told the difference from.
    fn base(&self) -> Option<&[Cell]> {
        match &self.own {
            Own::Copy(cells) => Some(cells),
            Own::Awaited | Own::Nothing | Own::Reading(_) | Own::Read(_) => None,
        }
    }
}

impl Replica {
    pub(super) fn start_fetch(&mut self, now: Time, view: &View) -> bool {
        if self.recovery.fetching >= self.config.fetches {
            return false;
        }
        let mut next = self.recovery.fetch_urgent.pop_first();
        if next.is_none() && !view.state.settings().recovery_paused {
            next = self.recovery.fetch_ready.pop_first();
        }
        let Some(object) = next else { return false };
        let Some(Phase::Queued(source)) = self.recovery.walks.get(&object).map(|walk| &walk.phase) else {
            return true;
        };
        let source = *source;
        let heals = source.node == self.me.node;
        if heals && (self.scrub.doubt(object).is_some() || self.copy(view, object).is_none()) {
            // It is not to be made good from itself any more.
            self.walk_failed(now, object);
            return true;
        }
        let (Some(from), Some(record)) = (view.member_now(source.node), view.vid(object.vid())) else {
            self.walk_failed(now, object);
            return true;
        };
        let (version, birth) = ((!source.serves).then_some(source.version), record.birth);
        let fetch = self.begin_fetch(now, view, (object, birth, version), from, Purpose::Walk);
        if let Some(walk) = self.recovery.walks.get_mut(&object) {
            walk.phase = Phase::Fetching { source, fetch };
            self.recovery.fetching += 1;
        }
        true
    }

    /// Fetches an object for somebody who asked to make the copy equal.
    pub(crate) fn fetch_for(
        &mut self,
        now: Time,
        view: &View,
        asker: Header,
        source: Member,
        what: (ObjectId, Birth, Version),
    ) {
        let (object, birth, version) = what;
        let purpose = Purpose::Equalize { asker, version };
        self.begin_fetch(now, view, (object, birth, Some(version)), source, purpose);
    }

    fn begin_fetch(
        &mut self,
        now: Time,
        view: &View,
        what: (ObjectId, Birth, Option<Version>),
        source: Member,
        purpose: Purpose,
    ) -> u64 {
        let (object, birth, version) = what;
        let copy = self.copy(view, object);
        let number = self.recovery.fetches.next;
        self.recovery.fetches.next += 1;
        // A copy in doubt proves nothing about itself, but what the source has lost may be in it; one that is damaged
        // is read, to see where.
        let doubted = self.scrub.doubt(object).is_some();
        let checked = self.damaged.contains(&object);
        let heals = source == self.me;
        let blocks = self.recovery.fetches.take_kept(object);
        let fetch = Fetch {
            object,
            birth,
            source,
            version,
            purpose,
            began: copy.map(|copy| copy.version),
            own: match copy {
                None => Own::Nothing,
                Some(_) if doubted => Own::Reading(Vec::new()),
                Some(_) => Own::Awaited,
            },
            digest: None,
            asking: true,
            blocks,
            missing: VecDeque::new(),
            help: Help::default(),
            checked,
            asked: 0,
            restarts: 0,
            bytes: 0,
        };
        self.recovery.fetches.all.insert(number, fetch);
        if !heals {
            let request = Request::Digest { object, birth, version };
            self.ask_for(now, view, source, request, AskKind::Digest { fetch: number });
        }
        let len = view.state.geometry().object_size();
        let look =
            if checked || doubted { Op::Salvage { object, offset: 0, len } } else { Op::Inspect { object } };
        if copy.is_some() {
            self.submit(look, Job::Own { fetch: number });
        }
        number
    }

    /// The store has said what the own copy holds.
    pub(crate) fn take_own(&mut self, now: Time, fetch: u64, result: Result<Outcome, StoreError>) {
        let Some(view) = self.view.clone() else { return };
        let geometry = view.state.geometry();
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        match (&state.own, result) {
            (Own::Awaited, Ok(Outcome::Inspect(found))) if Some(found.header.version) == state.began => {
                let extents = crate::replica::extents(&found.extents);
                let cells = cells(&extents, &found.crcs, geometry);
                state.own = cells.map_or(Own::Nothing, Own::Copy);
            }
            (Own::Awaited, Ok(Outcome::Read(read))) if Some(read.version) == state.began => {
                if !crate::replica::is_damaged(&read.extents) {
                    self.damaged.remove(&state.object);
                    self.scrub.not_damaged(state.object);
                }
                let cells = cells(&crate::replica::extents(&read.extents), &read.crcs, geometry);
                state.own = cells.map_or(Own::Nothing, Own::Copy);
            }
            (Own::Reading(before), Ok(Outcome::Read(read))) if Some(read.version) == state.began => {
                // What could not be read this time may be there all the same.
                let found = cells(&crate::replica::extents(&read.extents), &read.crcs, geometry);
                let held = if before.is_empty() { found.unwrap_or_default() } else { before.clone() };
                let damaged = crate::replica::is_damaged(&read.extents);
                state.own = Own::Read(held);
                state.blocks.take_own(read_data(read));
                if damaged {
                    self.damaged.insert(state.object);
                }
            }
            _ => state.own = Own::Nothing,
        }
        if state.source == self.me {
            return self.heal_own(now, &view, fetch);
        }
        self.compare(fetch);
    }

    pub(super) fn take_digest(&mut self, now: Time, view: &View, fetch: u64, digest: ObjectDigest) {
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        let right = digest.birth == state.birth && state.version.is_none_or(|v| v == digest.version);
        let cells = cells(&digest.extents, &digest.crcs, view.state.geometry());
        let Some(cells) = cells.filter(|_| right) else {
            return self.fetch_failed(now, fetch, Refusal::OtherVersion);
        };
        state.digest = Some((digest, cells));
        state.asking = false;
        self.compare(fetch);
    }

    /// A copy that is to be made good is its own source: it has its version, and everything but what is bad.
    fn heal_own(&mut self, now: Time, view: &View, fetch: u64) {
        let copy = self.recovery.fetches.all.get(&fetch).and_then(|state| self.copy(view, state.object));
        let hot = copy.is_some_and(|copy| self.hot.is_hot(copy.id));
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        let (Own::Copy(cells), Some(copy)) = (&state.own, copy) else {
            return self.fetch_failed(now, fetch, Refusal::Busy);
        };
        if Some(copy.version) != state.began {
            return self.fetch_failed(now, fetch, Refusal::OtherVersion);
        }
        let digest = ObjectDigest {
            birth: copy.birth,
            pending: copy.pending,
            hot,
            version: copy.version,
            ..ObjectDigest::default()
        };
        state.digest = Some((digest, cells.clone()));
        state.asking = false;
        self.compare(fetch);
    }

    /// Finds out what is missing, once both sides are known.
    fn compare(&mut self, fetch: u64) {
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        let Some((_, target)) = &mut state.digest else { return };
        let own = match &state.own {
            Own::Awaited | Own::Reading(_) => return,
            Own::Nothing | Own::Read(_) => None,
            Own::Copy(cells) if must_forget(target, cells) => {
                state.own = Own::Reading(cells.clone());
                let (object, len) = (state.object, target.len() as u32 * BLOCK_SIZE);
                return self.submit(Op::Salvage { object, offset: 0, len }, Job::Own { fetch });
            }
            Own::Copy(cells) => Some(cells.as_slice()),
        };
        state.help = Help::new(find_lost(target, own, &state.blocks));
        state.missing = missing(target, own, &state.blocks);
    }

    /// Asks for the next blocks of one of the objects being fetched, or ends it.
    pub(super) fn move_fetch(&mut self, now: Time, view: &View) -> bool {
        let (pipeline, bytes) = self.pieces(now);
        let free = self.may_move(now);
        let walks = &self.recovery.walks;
        let urgent = |fetch: &Fetch| match fetch.purpose {
            Purpose::Walk => walks.get(&fetch.object).is_some_and(|walk| walk.urgent),
            // Somebody decides, and goes on when all are equal.
            Purpose::Equalize { .. } => true,
        };
        let ready = |fetch: &Fetch| match (&fetch.own, &fetch.digest) {
            (Own::Awaited | Own::Reading(_), _) => false,
            (_, None) => fetch.asked == 0 && !fetch.asking,
            (_, Some(_)) => {
                if fetch.missing.is_empty() {
                    fetch.asked == 0
                } else {
                    fetch.asked < pipeline && (free || urgent(fetch))
                }
            }
        };
        let next = self.recovery.fetches.all.iter_mut().find(|(_, fetch)| ready(fetch));
        let Some((&number, fetch)) = next else { return false };
        let (object, birth, source) = (fetch.object, fetch.birth, fetch.source);
        let urgent = urgent(fetch);
        match &fetch.digest {
            None => {
                fetch.asking = true;
                let request = Request::Digest { object, birth, version: fetch.version };
                self.ask_for(now, view, source, request, AskKind::Digest { fetch: number });
            }
            Some(_) if fetch.missing.is_empty() => {
                if !self.ask_for_help(now, view, number) {
                    self.end_fetch(now, view, number);
                }
            }
            Some((digest, _)) => {
                let version = digest.version;
                fetch.asked += 1;
                let ranges = next_ranges(&mut fetch.missing, bytes / BLOCK_SIZE);
                let request = Request::Blocks { object, birth, version, ranges: ranges.clone(), urgent };
                self.moves(now, view, ranges.iter().map(|(_, len)| u64::from(*len)).sum());
                self.ask_for(now, view, source, request, AskKind::Blocks { fetch: number, ranges });
            }
        }
        true
    }

    pub(super) fn take_blocks(&mut self, now: Time, fetch: u64, ranges: &[(u32, u32)], data: ReadData) {
        let careless = self.config.mutants.is(Mutant::PatchAnyVersion);
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        state.asked -= 1;
        let bytes: u64 = data.data.iter().map(|data| data.len() as u64).sum();
        // While the source's new digest is awaited, what belongs to the former one may still be of use.
        let (version, want) = match &state.digest {
            Some((digest, cells)) => (Some(digest.version), Some(cells.as_slice())),
            None => (None, None),
        };
        let right = careless || version.is_none_or(|version| version == data.version);
        let took = state.blocks.take(data, ranges, want.filter(|_| !careless)).filter(|_| right);
        state.bytes += bytes;
        self.recovery.bytes_done += bytes;
        self.recovery.bytes_ever += bytes;
        match took {
            Some(lost) => state.note_lost(&lost),
            None => self.fetch_failed(now, fetch, Refusal::OtherVersion),
        }
    }

    /// The source does not have the version any more that its digest was of.
    pub(super) fn source_moved(&mut self, now: Time, fetch: u64) {
        let Some(state) = self.recovery.fetches.all.get_mut(&fetch) else { return };
        state.asked -= 1;
        state.restarts += 1;
        if state.version.is_some() || state.restarts > RESTARTS {
            return self.fetch_failed(now, fetch, Refusal::OtherVersion);
        }
        state.digest = None;
        state.help = Help::default();
        state.missing.clear();
    }

    /// It cannot go on.
    pub(super) fn fetch_failed(&mut self, now: Time, fetch: u64, refusal: Refusal) {
        let Some(object) = self.recovery.fetches.all.get(&fetch).map(|fetch| fetch.object) else { return };
        match self.recovery.fetches.end(fetch) {
            Some(Purpose::Walk) => self.walk_failed(now, object),
            Some(Purpose::Equalize { asker, .. }) => self.refuse(&asker, refusal),
            None => {}
        }
    }

    /// Everything is here: the own copy becomes equal.
    fn end_fetch(&mut self, now: Time, view: &View, number: u64) {
        let Some(fetch) = self.recovery.fetches.all.remove(&number) else { return };
        let Some((digest, target)) = &fetch.digest else { return };
        let object = fetch.object;
        let own = fetch.base();
        let careless = self.config.mutants.is(Mutant::PatchAnyVersion);
        let found = if careless {
            pieces(&fetch.blocks.over(target), own, &fetch.blocks)
        } else {
            pieces(target, own, &fetch.blocks)
        };
        let found = found.map(|mut pieces| {
            let ignores = self.config.mutants.is(Mutant::PatchIgnoresZeros) && own.is_some();
            pieces.retain(|piece| !ignores || matches!(piece.body, Body::Data { .. }));
            pieces
        });
        let keeps = self.config.mutants.is(Mutant::EqualBlocksAreEqualVersions)
            && own.is_some()
            && found.as_ref().is_some_and(Vec::is_empty);
        let contents = found.map(|pieces| Contents {
            birth: digest.birth,
            version: fetch.began.filter(|_| keeps).unwrap_or(digest.version),
            pending: digest.pending,
            hot: digest.hot,
            whole: fetch.help.left().is_empty(),
            patches: own.is_some(),
            pieces,
        });
        // The own copy must still be the one that this began with, or the difference means nothing.
        let changed = self.copy(view, object).map(|copy| copy.version) != fetch.began;
        let changed = changed || (own.is_some() && !fetch.checked && self.damaged.contains(&object));
        let left = fetch.help.left();
        if fetch.source == self.me && contents.as_ref().is_some_and(|found| found.pieces.is_empty()) {
            return self.end_heal(now, object, left);
        }
        self.tell_lost(object, &left);
        match (fetch.purpose, contents) {
            (Purpose::Walk, Some(contents)) => {
                self.end_walk_fetch(now, view, object, contents, changed, fetch.bytes);
            }
            (Purpose::Walk, None) => self.walk_failed(now, object),
            (Purpose::Equalize { asker, version }, Some(contents)) => {
                self.equalize_with(view, asker, (object, fetch.birth, version), contents, changed);
            }
            (Purpose::Equalize { asker, .. }, None) => self.refuse(&asker, Refusal::Busy),
        }
    }

    fn end_walk_fetch(
        &mut self,
        now: Time,
        view: &View,
        object: ObjectId,
        contents: Contents,
        changed: bool,
        bytes: u64,
    ) {
        let Some(walk) = self.recovery.walks.get_mut(&object) else { return };
        let Phase::Fetching { source, .. } = walk.phase else { return };
        walk.phase = Phase::Storing;
        self.recovery.fetching -= 1;
        // A current copy that is repaired goes on meanwhile, and must not lose writes.
        let own = self.copy(view, object).filter(|_| self.current_in(view, object));
        let wrong = (!source.serves && contents.version != source.version)
            || match own {
                Some(own) => {
                    let ahead = self.scrub.doubt(object).is_some_and(|doubt| {
                        let any = self.config.mutants.is(Mutant::ScrubIgnoresVersion);
                        let newer = contents.version >= doubt.by && doubt.by > doubt.version;
                        own.version == doubt.version && (newer || any)
                    });
                    // A patch is of the very version that was compared.
                    let patched = contents.patches && !changed && own.version == contents.version;
                    !patched && (contents.patches || (own.version != contents.version && (changed || !ahead)))
                }
                None => changed,
            };
        let heals = source.node == self.me.node;
        let doubted = heals && self.scrub.doubt(object).is_some();
        if wrong || doubted || !view.is_born(object, contents.birth) || self.replacing.contains(&object) {
            return self.walk_failed(now, object);
        }
        let then = if heals { Then::Healed(bytes) } else { Then::Validated(bytes) };
        self.replace_with(object, contents, view.epoch(), then);
    }
}
