//! Which blocks are free, and when freed ones may be used again.
//!
//! Who wants few blocks gets them where the longest free run is just long enough, so that what is in pieces is
//! used up first and long runs stay for those who want many, unless there are plenty of them.

mod classes;
mod group;
#[cfg(test)]
mod tests;

use crate::map::Run;
use classes::{CLASSES, Classes, class_for};
use group::{Backing, Group};
use std::collections::VecDeque;

/// Blocks per group: the unit in which space is reserved and given back.
pub(crate) const GROUP_BLOCKS: u32 = 1024;

/// Wholly free groups are plenty if they are more than this part of all.
const PLENTY_PART: u64 = 8;
/// Class of groups with a run of 64 blocks.
const LONG_CLASS: usize = 6;

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
    classes: Classes,
    /// Groups that have more free blocks than when they were filed in a class.
    changed: Vec<usize>,
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
            classes: Classes::new(),
            changed: Vec::new(),
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

    /// The newest batch whose records freed any of them.
    pub(crate) fn newest_freed(&self) -> Option<u64> {
        self.freed.back().map(|freed| freed.batch)
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
            let room =
                self.limit.saturating_sub(index * u64::from(GROUP_BLOCKS)).min(u64::from(GROUP_BLOCKS));
            // The last group may be cut short by the limit.
            self.groups.push(Group::new(room as u32));
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
            let state = group.is_used(at);
            let mut len = 1;
            while u64::from(block + len) < end && at + len < GROUP_BLOCKS && group.is_used(at + len) == state
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

    /// After all marks: the store may have `limit` blocks, and what it has already; `None` leaves it as it was. Groups
    /// with something in them have space reserved already.
    pub(crate) fn marked(&mut self, limit: Option<u64>) {
        if let Some(limit) = limit {
            self.limit = limit.max(self.marked_end()).min(self.limit);
            self.unreserved = self.limit.div_ceil(u64::from(GROUP_BLOCKS));
            let room = (self.limit % u64::from(GROUP_BLOCKS)) as u32;
            if let Some(last) = self.groups.get_mut((self.limit / u64::from(GROUP_BLOCKS)) as usize) {
                // The end of the very largest store is cut off already.
                for at in room..GROUP_BLOCKS {
                    if !last.is_used(at) {
                        last.set(at, 1, true);
                    }
                }
            }
        }
        for index in 0..self.groups.len() {
            let group = &mut self.groups[index];
            if !group.is_whole() {
                group.backing = Backing::Reserved;
                self.free += u64::from(group.free);
                self.unreserved -= 1;
                self.file(index);
            }
        }
    }

    /// Blocks up to the last one that is marked.
    fn marked_end(&self) -> u64 {
        let Some(last) = self.groups.last() else { return 0 };
        let free = (0..GROUP_BLOCKS).rev().take_while(|&at| !last.is_used(at)).count();
        (self.groups.len() * GROUP_BLOCKS as usize - free) as u64
    }

    /// Puts a group into its class.
    fn file(&mut self, index: usize) {
        let group = &mut self.groups[index];
        group.changed = false;
        let longest = match group.backing {
            Backing::Reserved => group.longest().map_or(0, |(_, len)| len),
            Backing::None | Backing::Changing => 0,
        };
        self.classes.file(index, longest);
    }

    fn file_changed(&mut self) {
        while let Some(index) = self.changed.pop() {
            self.file(index);
        }
    }

    /// Takes free blocks of a group.
    fn take_at(&mut self, index: usize, at: u32, len: u32) -> Run {
        let group = &mut self.groups[index];
        self.whole -= u64::from(group.is_whole());
        group.set(at, len, true);
        self.free -= u64::from(len);
        self.used += u64::from(len);
        self.file(index);
        Run { place: self.start + index as u32 * GROUP_BLOCKS + at, len }
    }

    /// Takes `len` blocks, in as few runs as there can be; `None`, and nothing taken, if there are not enough.
    /// With `after`, those that follow that block if they are free.
    pub(crate) fn take(&mut self, len: u32, after: Option<u32>) -> Option<Vec<Run>> {
        if self.free < u64::from(len) {
            return None;
        }
        let mut runs: Vec<Run> = Vec::new();
        runs.extend(after.and_then(|block| self.take_after(block, len)));
        let mut left = len - runs.iter().map(|r| r.len).sum::<u32>();
        while left > 0 {
            let run = self.take_one(left)?;
            left -= run.len;
            match runs.last_mut() {
                Some(last) if last.end() == run.place => last.len += run.len,
                _ => runs.push(run),
            }
        }
        Some(runs)
    }

    /// Takes one run of at most `len` blocks, as long as there can be; `None` if nothing is free.
    pub(crate) fn take_one(&mut self, len: u32) -> Option<Run> {
        self.file_changed();
        let len = len.min(GROUP_BLOCKS);
        let class = class_for(len);
        // While much is wholly free, few blocks come out of long runs too: neighbours are written together, and what
        // is in pieces has time to become whole.
        let plenty = self.whole > self.groups.len() as u64 / PLENTY_PART;
        let from = if plenty { class.max(LONG_CLASS) } else { class };
        for class in (from..CLASSES).chain(class..from) {
            if let Some(index) = self.classes.find(class)
                && let Some(at) = self.groups[index].fit(len)
            {
                return Some(self.take_at(index, at, len));
            }
        }
        // Pieces, the longest first.
        for class in (0..class).rev() {
            if let Some(index) = self.classes.find(class)
                && let Some((at, longest)) = self.groups[index].longest()
            {
                return Some(self.take_at(index, at, longest.min(len)));
            }
        }
        None
    }

    /// Takes at most `len` blocks that follow `block`.
    fn take_after(&mut self, block: u32, len: u32) -> Option<Run> {
        let (index, at) = self.group_of(block.checked_add(1)?.max(self.start));
        let group = self.groups.get(index).filter(|g| g.backing == Backing::Reserved)?;
        let (found, n) = group.run_at(at, len)?;
        (found == at).then(|| self.take_at(index, at, n))
    }

    /// Number of groups in which `len` blocks are free in a row; at least whether there is one.
    pub(crate) fn with_run(&mut self, len: u32) -> u32 {
        if self.classes.with_run(len) == 0 {
            self.file_changed();
        }
        self.classes.with_run(len)
    }

    /// Makes blocks free that nothing can need any more.
    pub(crate) fn give(&mut self, run: Run) {
        let mut block = run.place;
        while block < run.end() {
            let (index, at) = self.group_of(block);
            let len = (GROUP_BLOCKS - at).min(run.end() - block);
            let group = &mut self.groups[index];
            group.set(at, len, false);
            self.whole += u64::from(group.is_whole());
            if !group.changed {
                group.changed = true;
                self.changed.push(index);
            }
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
                self.whole += u64::from(group.is_whole());
                self.file(index);
            } else {
                group.backing = Backing::None;
                self.unreserved += 1;
            }
        }
    }

    /// A wholly free reserved group whose space can be given back, if at least `keep` blocks and `keep_whole` such
    /// groups stay free without it. It counts as being changed until [`Space::punched`].
    pub(crate) fn punch_next(&mut self, keep: u64, keep_whole: u64) -> Option<Run> {
        if self.whole <= keep_whole || self.free < keep + u64::from(GROUP_BLOCKS) {
            return None;
        }
        let whole = |g: &Group| g.backing == Backing::Reserved && g.is_whole();
        let index = self.groups.iter().rposition(whole)?;
        self.groups[index].backing = Backing::Changing;
        self.file(index);
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
