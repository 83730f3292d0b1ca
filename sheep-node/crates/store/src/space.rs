//! Which blocks are free, and when freed ones may be used again.

use crate::map::Run;
use std::collections::VecDeque;

/// Blocks per group: the unit in which space is reserved and given back.
pub(crate) const GROUP_BLOCKS: u32 = 1024;
const WORDS: usize = GROUP_BLOCKS as usize / 64;
/// Requests from this many blocks on look for one run first; smaller ones take the next free blocks.
const RUN_WANTED: u32 = 16;
/// Groups looked at for one run before fragments are taken.
const GROUPS_TRIED: usize = 256;

/// What the disk knows of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    /// Space is reserved: blocks may be handed out.
    Reserved,
    /// No space is reserved.
    None,
    /// A reservation or punch is under way.
    Changing,
}

#[derive(Clone, Debug)]
struct Group {
    /// One bit per block, set if used.
    used: [u64; WORDS],
    free: u16,
    backing: Backing,
}

impl Group {
    fn run_at(&self, from: u32, limit: u32) -> Option<(u32, u32)> {
        let mut at = from;
        while at < GROUP_BLOCKS {
            let word = self.used[at as usize / 64] >> (at % 64);
            if word & 1 == 1 {
                at += (!word).trailing_zeros().min(64 - at % 64);
                continue;
            }
            // Free from here to the next set bit.
            let mut end = at;
            while end < GROUP_BLOCKS && end - at < limit {
                let word = self.used[end as usize / 64] >> (end % 64);
                let free = word.trailing_zeros().min(64 - end % 64);
                end += free;
                if free == 0 || !end.is_multiple_of(64) {
                    break;
                }
            }
            return Some((at, (end - at).min(limit)));
        }
        None
    }

    fn set(&mut self, first: u32, len: u32, used: bool) {
        for at in first..first + len {
            let (word, bit) = (at as usize / 64, 1u64 << (at % 64));
            assert_eq!(self.used[word] & bit != 0, !used, "block {at} of a group is already so");
            self.used[word] ^= bit;
        }
        self.free = if used { self.free - len as u16 } else { self.free + len as u16 };
    }
}

/// Space that will be free once what still needs it is gone.
#[derive(Debug)]
struct Freed {
    /// Batch whose records freed it.
    batch: u64,
    runs: Vec<Run>,
}

/// The free space of a store.
#[derive(Debug)]
pub(crate) struct Space {
    /// First block of the first group.
    start: u32,
    groups: Vec<Group>,
    /// Blocks that the store may have in groups.
    limit: u64,
    /// Free blocks in reserved groups.
    free: u64,
    /// Blocks marked used, of all groups.
    used: u64,
    /// Groups (also those not in the list yet) without reserved space.
    unreserved: u64,
    /// Reserved groups without a used block.
    whole: u64,
    /// Where the search for single blocks goes on: a sweep, so that writes at random make nearly sequential ones.
    cursor: usize,
    cursor_block: u32,
    /// Where the search for long runs goes on.
    run_cursor: usize,
    freed: VecDeque<Freed>,
    freed_blocks: u64,
}

impl Space {
    /// Space of `limit` blocks from block `start` on, none of it reserved.
    pub(crate) fn new(start: u32, limit: u64) -> Self {
        let limit = limit.min(u64::from(u32::MAX - start - GROUP_BLOCKS));
        Self {
            start,
            groups: Vec::new(),
            limit,
            free: 0,
            used: 0,
            unreserved: limit.div_ceil(u64::from(GROUP_BLOCKS)),
            whole: 0,
            cursor: 0,
            cursor_block: 0,
            run_cursor: 0,
            freed: VecDeque::new(),
            freed_blocks: 0,
        }
    }

    /// Free blocks that can be handed out now.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// Blocks that could be free if all space that the limit allows were reserved, and all freed space usable.
    pub(crate) fn potential(&self) -> u64 {
        self.limit - self.used + self.freed_blocks
    }

    /// Blocks used, freed ones that can't be reused yet included.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Blocks waiting to be reusable.
    pub(crate) fn freed(&self) -> u64 {
        self.freed_blocks
    }

    /// Most blocks there may be.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    fn group_of(&self, block: u32) -> (usize, u32) {
        let at = block - self.start;
        ((at / GROUP_BLOCKS) as usize, at % GROUP_BLOCKS)
    }

    fn grow_to(&mut self, groups: usize) {
        while self.groups.len() < groups {
            let index = self.groups.len() as u64;
            let mut group = Group { used: [0; WORDS], free: GROUP_BLOCKS as u16, backing: Backing::None };
            // The last group may be cut short by the limit: what is beyond counts as used for ever.
            let room = self.limit.saturating_sub(index * u64::from(GROUP_BLOCKS)).min(u64::from(GROUP_BLOCKS))
                as u32;
            group.set(room, GROUP_BLOCKS - room, true);
            self.groups.push(group);
        }
    }

    /// Marks a run found in the metadata at start-up as used; `false` if it is not a place where data can be.
    /// Runs may overlap (clones): returns what was not marked before through `fresh`.
    pub(crate) fn mark(&mut self, run: Run, mut fresh: impl FnMut(Run, bool)) -> bool {
        let end = u64::from(run.place) + u64::from(run.len);
        if run.len == 0 || run.place < self.start || end > u64::from(self.start) + self.limit {
            return false;
        }
        let mut block = run.place;
        while u64::from(block) < end {
            let (index, at) = self.group_of(block);
            self.grow_to(index + 1);
            let group = &mut self.groups[index];
            let is_used = |group: &Group, at: u32| group.used[at as usize / 64] >> (at % 64) & 1 == 1;
            let state = is_used(group, at);
            let mut len = 1;
            while u64::from(block + len) < end && at + len < GROUP_BLOCKS && is_used(group, at + len) == state
            {
                len += 1;
            }
            if !state {
                group.set(at, len, true);
                self.used += u64::from(len);
            }
            fresh(Run { place: block, len }, state);
            block += len;
        }
        true
    }

    /// After all marks: groups with something in them have space reserved already.
    pub(crate) fn marked(&mut self) {
        for group in &mut self.groups {
            if u32::from(group.free) < GROUP_BLOCKS {
                group.backing = Backing::Reserved;
                self.free += u64::from(group.free);
                self.unreserved -= 1;
            }
        }
    }

    /// Marks free blocks of a group as used.
    fn mark_taken(&mut self, index: usize, at: u32, len: u32) {
        let group = &mut self.groups[index];
        self.whole -= u64::from(u32::from(group.free) == GROUP_BLOCKS);
        group.set(at, len, true);
        self.free -= u64::from(len);
        self.used += u64::from(len);
    }

    /// Takes `len` blocks, in as few runs as is cheap to find; `None`, and nothing taken, if there are not enough.
    pub(crate) fn take(&mut self, len: u32) -> Option<Vec<Run>> {
        if self.free < u64::from(len) {
            return None;
        }
        if (RUN_WANTED..=GROUP_BLOCKS).contains(&len)
            && let Some(run) = self.take_run(len)
        {
            return Some(vec![run]);
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut left = len;
        while left > 0 {
            let group = &self.groups[self.cursor];
            let found = match group.backing {
                Backing::Reserved if group.free > 0 => group.run_at(self.cursor_block, left),
                _ => None,
            };
            let Some((at, n)) = found else {
                self.cursor = (self.cursor + 1) % self.groups.len();
                self.cursor_block = 0;
                continue;
            };
            self.mark_taken(self.cursor, at, n);
            self.cursor_block = at + n;
            let place = self.start + self.cursor as u32 * GROUP_BLOCKS + at;
            match runs.last_mut() {
                Some(last) if last.end() == place => last.len += n,
                _ => runs.push(Run { place, len: n }),
            }
            left -= n;
        }
        Some(runs)
    }

    /// Takes one run of at most `len` blocks, as long as is cheap to find; `None` if nothing is free.
    pub(crate) fn take_one(&mut self, len: u32) -> Option<Run> {
        if self.free == 0 {
            return None;
        }
        if self.free >= u64::from(len)
            && let Some(run) = self.take_run(len.min(GROUP_BLOCKS))
        {
            return Some(run);
        }
        self.take(1)?.pop()
    }

    /// Takes one run of `len` blocks out of one group.
    fn take_run(&mut self, len: u32) -> Option<Run> {
        for _ in 0..self.groups.len().min(GROUPS_TRIED) {
            let index = self.run_cursor % self.groups.len();
            let group = &self.groups[index];
            let mut from = 0;
            while group.backing == Backing::Reserved && u32::from(group.free) >= len {
                let Some((at, n)) = group.run_at(from, len) else { break };
                if n == len {
                    self.mark_taken(index, at, len);
                    let place = self.start + index as u32 * GROUP_BLOCKS + at;
                    return Some(Run { place, len });
                }
                from = at + n;
            }
            self.run_cursor = index + 1;
        }
        None
    }

    /// Makes blocks free that nothing can need any more.
    pub(crate) fn give(&mut self, run: Run) {
        let mut block = run.place;
        while block < run.end() {
            let (index, at) = self.group_of(block);
            let len = (GROUP_BLOCKS - at).min(run.end() - block);
            self.groups[index].set(at, len, false);
            self.whole += u64::from(u32::from(self.groups[index].free) == GROUP_BLOCKS);
            self.free += u64::from(len);
            self.used -= u64::from(len);
            block += len;
        }
    }

    /// Notes blocks that the records of `batch` free. They stay used until [`Space::release`].
    pub(crate) fn free_later(&mut self, batch: u64, runs: Vec<Run>) {
        if runs.is_empty() {
            return;
        }
        self.freed_blocks += runs.iter().map(|r| u64::from(r.len)).sum::<u64>();
        match self.freed.back_mut() {
            Some(last) if last.batch == batch => last.runs.extend(runs),
            _ => self.freed.push_back(Freed { batch, runs }),
        }
    }

    /// Makes what batches before `batch` freed usable.
    pub(crate) fn release(&mut self, batch: u64) {
        while self.freed.front().is_some_and(|f| f.batch < batch) {
            for run in self.freed.pop_front().map(|f| f.runs).unwrap_or_default() {
                self.freed_blocks -= u64::from(run.len);
                self.give(run);
            }
        }
    }

    /// The next groups to reserve, at most `most`: their first block and number. They count as being changed
    /// until [`Space::reserved`].
    pub(crate) fn reserve_next(&mut self, most: u32) -> Option<Run> {
        if self.unreserved == 0 {
            return None;
        }
        let all = self.limit.div_ceil(u64::from(GROUP_BLOCKS)) as usize;
        let first = (0..self.groups.len()).find(|&i| self.groups[i].backing == Backing::None);
        let first = first.unwrap_or(self.groups.len());
        let mut n = 0;
        while n < most as usize && first + n < all {
            self.grow_to(first + n + 1);
            if self.groups[first + n].backing != Backing::None {
                break;
            }
            self.groups[first + n].backing = Backing::Changing;
            n += 1;
        }
        self.unreserved -= n as u64;
        let place = self.start + first as u32 * GROUP_BLOCKS;
        (n > 0).then_some(Run { place, len: n as u32 * GROUP_BLOCKS })
    }

    /// Blocks of `run`, a run of groups, that the limit allows.
    pub(crate) fn within_limit(&self, run: Run) -> u64 {
        (u64::from(self.start) + self.limit - u64::from(run.place)).min(u64::from(run.len))
    }

    /// The reservation of `run` is done, or failed.
    pub(crate) fn reserved(&mut self, run: Run, success: bool) {
        for index in self.groups_of(run) {
            let group = &mut self.groups[index];
            if success {
                group.backing = Backing::Reserved;
                self.free += u64::from(group.free);
                self.whole += u64::from(u32::from(group.free) == GROUP_BLOCKS);
            } else {
                group.backing = Backing::None;
                self.unreserved += 1;
            }
        }
    }

    /// A wholly free reserved group whose space can be given back, if more than `keep` blocks stay free
    /// without it. It counts as being changed until [`Space::punched`].
    pub(crate) fn punch_next(&mut self, keep: u64) -> Option<Run> {
        if self.whole == 0 || self.free < keep + u64::from(GROUP_BLOCKS) {
            return None;
        }
        let whole = |g: &Group| g.backing == Backing::Reserved && u32::from(g.free) == GROUP_BLOCKS;
        let index = self.groups.iter().rposition(whole)?;
        self.groups[index].backing = Backing::Changing;
        self.whole -= 1;
        self.free -= u64::from(GROUP_BLOCKS);
        Some(Run { place: self.start + index as u32 * GROUP_BLOCKS, len: GROUP_BLOCKS })
    }

    /// The punch of `run` is done, or failed: either way its space must be reserved before it is used.
    pub(crate) fn punched(&mut self, run: Run) {
        for index in self.groups_of(run) {
            self.groups[index].backing = Backing::None;
            self.unreserved += 1;
        }
    }

    fn groups_of(&self, run: Run) -> std::ops::Range<usize> {
        let (first, _) = self.group_of(run.place);
        first..first + (run.len / GROUP_BLOCKS) as usize
    }
}
