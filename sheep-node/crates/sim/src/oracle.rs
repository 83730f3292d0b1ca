//! What a volume may contain: the reference that every read is held against.
//!
//! Every write has a number of its own, its *tag*, and fills its sectors with it, so that a read tells which
//! write each sector shows. Per sector the oracle keeps the tags that a read may show. Usually that is one; more
//! while a write is under way, after one failed, or after power cuts took what nobody had flushed.

use sheep_types::SECTOR_SIZE;
use std::collections::BTreeMap;
use std::ops::Range;

/// Number of a write. Zero: never written, or zeros. The low bits tell one line of contents from another, so that what
/// was written to a volume does not look like what was written to its clone.
pub type Tag = u64;

/// Tags of one line are so far apart.
const STEP: Tag = 1 << 16;

/// A node in one of its runs, by its place in the world.
pub type Run = (usize, u32);

/// A write that was acknowledged and not flushed since.
#[derive(Clone, Debug)]
struct Unflushed {
    tag: Tag,
    sectors: Range<usize>,
    /// What the sectors could show before.
    before: Vec<Vec<Tag>>,
    /// Who held it in memory when it was acknowledged.
    holders: Vec<Run>,
    /// In which epoch that was.
    epoch: u64,
}

/// A write under way.
#[derive(Clone, Debug)]
struct InFlight {
    sectors: Range<usize>,
    before: Vec<Vec<Tag>>,
    /// A discard: the sectors may also stay as they are.
    maybe: bool,
}

/// A read under way: what it may show as of its start.
#[derive(Clone, Debug)]
pub struct ReadTicket {
    sectors: Range<usize>,
    allowed: Vec<Vec<Tag>>,
    /// Writes that were under way at its start: what it shows of them decides nothing.
    beside: Vec<Range<usize>>,
    next_tag: Tag,
    session: u64,
}

impl ReadTicket {
    /// What is read.
    pub fn sectors(&self) -> &Range<usize> {
        &self.sectors
    }
}

/// A moment in the life of a volume.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Writes that were under way, or that failed and may yet happen.
    beside: Vec<Range<usize>>,
    next_tag: Tag,
}

/// The model of one volume.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// Tags that a sector may show, besides those of writes under way.
    sectors: Vec<Vec<Tag>>,
    in_flight: BTreeMap<Tag, InFlight>,
    unflushed: Vec<Unflushed>,
    /// Ranges of all writes, by tag, to tell a misplaced one.
    ranges: BTreeMap<Tag, (Range<usize>, bool)>,
    next_tag: Tag,
    session: u64,
    /// Writes whose fate is unknown in this session: their sectors must not be narrowed by reading.
    failed: Vec<Range<usize>>,
    /// Which sectors may differ from what the contents go on from.
    touched: Vec<bool>,
    /// Nobody can write it any more: what one read shows all others show.
    frozen: bool,
    /// It may be as small as this, sectors: that was ordered, and nobody has seen yet what came of it.
    shrinks_to: Option<usize>,
}

impl Oracle {
    /// A blank volume, and the number of its line, below 65536.
    pub fn new(size: u64, line: u64) -> Self {
        let sectors = (size / u64::from(SECTOR_SIZE)) as usize;
        Self {
            sectors: vec![vec![0]; sectors],
            in_flight: BTreeMap::new(),
            unflushed: Vec::new(),
            ranges: BTreeMap::new(),
            next_tag: STEP + line,
            session: 0,
            failed: Vec::new(),
            touched: vec![true; sectors],
            frozen: false,
            shrinks_to: None,
        }
    }

    /// What a snapshot that is asked for now may contain.
    pub fn frozen(&self) -> Self {
        let (in_flight, unflushed, failed) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { in_flight, unflushed, failed, frozen: true, ..self.clone() }
    }

    /// What a volume may contain that begins with these frozen contents, or is given them again; as a line of its own.
    /// `former`: what the volume was.
    pub fn line_from(&self, line: u64, former: Option<&Self>) -> Self {
        let past = former.map_or(self.next_tag, |former| former.next_tag.max(self.next_tag));
        let session = former.map_or(0, |former| former.session + 1);
        let next_tag = past / STEP * STEP + STEP + line;
        Self { next_tag, session, touched: vec![false; self.len()], frozen: false, ..self.clone() }
    }

    /// The place from which [`Self::goes_on_from`] counts.
    pub fn mark(&self) -> Mark {
        let beside = self.in_flight.values().map(|write| write.sectors.clone());
        Mark { beside: beside.chain(self.failed.iter().cloned()).collect(), next_tag: self.next_tag }
    }

    /// At that mark the contents were those of a snapshot that was taken: only what was written since may differ.
    pub fn goes_on_from(&mut self, mark: &Mark) {
        self.touched.fill(false);
        let since = self.ranges.range(mark.next_tag..).map(|(_, (range, _))| range.clone());
        for range in mark.beside.iter().cloned().chain(since.collect::<Vec<_>>()) {
            let len = self.touched.len();
            self.touched[range.start.min(len)..range.end.min(len)].fill(true);
        }
    }

    /// What was not written since is as in the contents that these go on from.
    ///
    /// # Errors
    /// A sentence about the first sector that cannot be.
    pub fn agree(&mut self, with: &Self) -> Result<(), String> {
        for (sector, (mine, theirs)) in self.sectors.iter_mut().zip(&with.sectors).enumerate() {
            if !self.touched[sector] {
                let common: Vec<Tag> = mine.iter().copied().filter(|tag| theirs.contains(tag)).collect();
                if common.is_empty() {
                    let what = "what it goes on from, and nobody has written it since";
                    return Err(format!("sector {sector} may show {mine:?}, but {theirs:?} in {what}"));
                }
                *mine = common;
            }
        }
        Ok(())
    }

    /// It was ordered that the volume has so many sectors. What lies beyond was made zeros, durably, and nothing is under way.
    pub fn may_shrink(&mut self, sectors: usize) {
        self.shrinks_to = Some(sectors);
    }

    /// Who can write the volume has seen its size: what was ordered before has happened, or never will.
    pub fn size_is_known(&mut self) {
        self.shrinks_to = None;
    }

    /// Whether it may have this size, bytes, although it is known to have had more.
    pub fn may_have(&self, size: u64) -> bool {
        let sectors = (size / u64::from(SECTOR_SIZE)) as usize;
        sectors >= self.len() || self.shrinks_to.is_some_and(|least| sectors >= least)
    }

    /// The volume has this size now: what is new is zeros, also where something was before the volume was made smaller.
    ///
    /// # Errors
    /// It was larger, and nobody has made it smaller.
    pub fn resize(&mut self, size: u64) -> Result<(), String> {
        let sectors = (size / u64::from(SECTOR_SIZE)) as usize;
        if !self.may_have(size) {
            return Err(format!("a volume of {} sectors has {sectors}", self.len()));
        }
        self.sectors.resize(sectors, vec![0]);
        self.touched.resize(sectors, true);
        self.unflushed.retain(|write| write.sectors.end <= sectors);
        Ok(())
    }

    /// Changes when somebody opens the volume to write it, or gives it other contents.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Number of sectors.
    pub fn len(&self) -> usize {
        self.sectors.len()
    }

    /// Whether the volume has no sectors.
    pub fn is_empty(&self) -> bool {
        self.sectors.is_empty()
    }

    /// Whether a write under way touches these sectors.
    pub fn is_busy(&self, sectors: &Range<usize>) -> bool {
        self.in_flight.values().any(|w| w.sectors.start < sectors.end && sectors.start < w.sectors.end)
    }

    /// Begins a write; gives its number and, for a write of zeros, the tag its sectors show is zero.
    pub fn begin_write(&mut self, sectors: Range<usize>, zeros: bool, maybe: bool) -> Tag {
        assert!(!self.is_busy(&sectors), "clients do not overlap their writes");
        let tag = self.next_tag;
        self.next_tag += STEP;
        self.touched[sectors.clone()].fill(true);
        let before = self.sectors[sectors.clone()].to_vec();
        self.ranges.insert(tag, (sectors.clone(), zeros));
        let shown = if zeros { 0 } else { tag };
        for sector in &mut self.sectors[sectors.clone()] {
            if !sector.contains(&shown) {
                sector.push(shown);
            }
        }
        self.in_flight.insert(tag, InFlight { sectors, before, maybe });
        tag
    }

    /// The write was acknowledged in this epoch, and these nodes held it then.
    pub fn end_write(&mut self, tag: Tag, holders: Vec<Run>, epoch: u64) {
        let Some(write) = self.in_flight.remove(&tag) else { return };
        let zeros = self.ranges[&tag].1;
        if !write.maybe {
            for sector in &mut self.sectors[write.sectors.clone()] {
                *sector = vec![if zeros { 0 } else { tag }];
            }
        }
        self.unflushed.push(Unflushed { tag, sectors: write.sectors, before: write.before, holders, epoch });
    }

    /// The write failed: it may have happened, or may yet in this session.
    pub fn fail_write(&mut self, tag: Tag) {
        if let Some(write) = self.in_flight.remove(&tag) {
            self.failed.push(write.sectors);
        }
    }

    /// A write that must not happen: gives its number, which no read may show.
    pub fn forbidden_write(&mut self) -> Tag {
        self.next_tag += STEP;
        self.next_tag - STEP
    }

    /// Begins a flush: gives what [`Self::end_flush`] wants.
    pub fn begin_flush(&self) -> Vec<Tag> {
        self.unflushed.iter().map(|write| write.tag).collect()
    }

    /// The flush was acknowledged: what had been acknowledged before it began is durable.
    pub fn end_flush(&mut self, flushed: &[Tag]) {
        self.unflushed.retain(|write| !flushed.contains(&write.tag));
    }

    /// The session is over and another one has opened the volume: what every holder forgot, together with the
    /// session, may be gone. `alive` says whether a run is still going on; `excused`, whether in some epoch since the given one only
    /// holders were up that have forgotten since: the others, which were not up then, cannot know what those had
    /// answered, and give way to them.
    pub fn new_session(&mut self, alive: impl Fn(Run) -> bool, excused: impl Fn(&[Run], u64) -> bool) {
        for tag in self.in_flight.keys().copied().collect::<Vec<_>>() {
            self.fail_write(tag);
        }
        for write in core::mem::take(&mut self.unflushed) {
            if write.holders.iter().any(|holder| alive(*holder)) && !excused(&write.holders, write.epoch) {
                continue;
            }
            for (sector, before) in self.sectors[write.sectors.clone()].iter_mut().zip(&write.before) {
                for tag in before {
                    if !sector.contains(tag) {
                        sector.push(*tag);
                    }
                }
            }
        }
        self.failed.clear();
        self.session += 1;
    }

    /// Begins a read.
    pub fn begin_read(&self, sectors: Range<usize>) -> ReadTicket {
        let allowed = self.sectors[sectors.clone()].to_vec();
        let beside = self.in_flight.values().map(|write| write.sectors.clone()).collect();
        ReadTicket { sectors, allowed, beside, next_tag: self.next_tag, session: self.session }
    }

    /// Holds what a read showed, a tag per sector, against what it may show.
    ///
    /// # Errors
    /// A sentence about the first sector that is wrong.
    pub fn end_read(&mut self, ticket: &ReadTicket, shown: &[Tag]) -> Result<(), String> {
        if shown.len() != ticket.sectors.len() {
            return Err(format!("read {} sectors instead of {}", shown.len(), ticket.sectors.len()));
        }
        for (place, (&tag, allowed)) in shown.iter().zip(&ticket.allowed).enumerate() {
            let sector = ticket.sectors.start + place;
            let later = |(number, (range, zeros)): (&Tag, &(Range<usize>, bool))| {
                range.contains(&sector) && (if *zeros { 0 } else { *number }) == tag
            };
            let issued_since = self.ranges.range(ticket.next_tag..).any(later);
            // Another reader may have seen meanwhile what it is.
            let allowed = if self.frozen { &self.sectors[sector] } else { allowed };
            if !allowed.contains(&tag) && !issued_since {
                let written = self.ranges.get(&tag).is_some_and(|(range, _)| range.contains(&sector));
                let what =
                    if tag == 0 || written { "stale or lost data" } else { "data never written there" };
                return Err(format!("sector {sector} shows {tag}, may show {allowed:?}: {what}"));
            }
            self.narrow(ticket, sector, tag);
        }
        Ok(())
    }

    /// What has been seen stays, unless a write that may still happen says otherwise.
    fn narrow(&mut self, ticket: &ReadTicket, sector: usize, tag: Tag) {
        let one = sector..sector + 1;
        let mut open = self.failed.iter().chain(&ticket.beside);
        let unsettled = self.is_busy(&one) || open.any(|range| range.contains(&sector));
        // A write issued since then may be over by now, and a discard may leave the tags as they were: what the
        // read shows may be from before it.
        let overtaken = self.ranges.range(ticket.next_tag..).any(|(_, (range, _))| range.contains(&sector));
        let untouched = !overtaken && self.sectors[sector] == ticket.allowed[sector - ticket.sectors.start];
        if ticket.session == self.session && !unsettled && untouched && self.sectors[sector].len() > 1 {
            self.sectors[sector] = vec![tag];
        }
    }
}

mod diff;
#[cfg(test)]
mod tests;
