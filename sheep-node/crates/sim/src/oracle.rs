//! What a volume may contain: the reference that every read is held against.
//!
//! Every write has a number of its own, its *tag*, and fills its sectors with it, so that a read tells which
//! write each sector shows. Per sector the oracle keeps the tags that a read may show. Usually that is one; more
//! while a write is under way, after one failed, or after power cuts took what nobody had flushed.

use sheep_types::SECTOR_SIZE;
use std::collections::BTreeMap;
use std::ops::Range;

/// Number of a write. Zero: never written, or zeros.
pub type Tag = u64;

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
}

impl Oracle {
    /// A blank volume.
    pub fn new(size: u64) -> Self {
        Self {
            sectors: vec![vec![0]; (size / u64::from(SECTOR_SIZE)) as usize],
            in_flight: BTreeMap::new(),
            unflushed: Vec::new(),
            ranges: BTreeMap::new(),
            next_tag: 1,
            session: 0,
            failed: Vec::new(),
        }
    }

    /// What a snapshot that is asked for now may contain.
    pub fn frozen(&self) -> Self {
        let (in_flight, unflushed, failed) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (sectors, ranges) = (self.sectors.clone(), self.ranges.clone());
        Self { sectors, in_flight, unflushed, ranges, next_tag: self.next_tag, session: self.session, failed }
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
        self.next_tag += 1;
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
        self.next_tag += 1;
        self.next_tag - 1
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(oracle: &mut Oracle, sectors: Range<usize>, shown: &[Tag]) -> Result<(), String> {
        let ticket = oracle.begin_read(sectors);
        oracle.end_read(&ticket, shown)
    }

    #[test]
    fn acknowledged_writes_must_show() {
        let mut o = Oracle::new(1 << 20);
        let tag = o.begin_write(0..2, false, false);
        assert!(read(&mut o, 0..2, &[0, tag]).is_ok(), "either while under way");
        o.end_write(tag, vec![], 0);
        assert!(read(&mut o, 0..2, &[tag, tag]).is_ok());
        assert!(read(&mut o, 0..2, &[tag, 0]).is_err());
        assert!(read(&mut o, 2..3, &[tag]).is_err());
    }

    #[test]
    fn a_read_may_show_what_was_issued_after_it() {
        let mut o = Oracle::new(1 << 20);
        let ticket = o.begin_read(0..1);
        let a = o.begin_write(0..1, false, false);
        o.end_write(a, vec![], 0);
        let b = o.begin_write(0..1, false, false);
        o.end_write(b, vec![], 0);
        assert!(o.end_read(&ticket, &[a]).is_ok());
        assert!(o.end_read(&ticket, &[b]).is_ok());
        assert!(o.end_read(&ticket, &[99]).is_err());
    }

    #[test]
    fn a_power_cut_takes_only_what_no_holder_kept_and_only_once() {
        let mut o = Oracle::new(1 << 20);
        let flushed = o.begin_write(0..1, false, false);
        o.end_write(flushed, vec![(0, 0), (1, 0)], 0);
        let mark = o.begin_flush();
        let lost = o.begin_write(1..2, false, false);
        o.end_write(lost, vec![(0, 0), (1, 0)], 0);
        o.end_flush(&mark);
        let kept = o.begin_write(2..3, false, false);
        o.end_write(kept, vec![(0, 0), (2, 0)], 0);
        o.new_session(|run| run == (2, 0), |_, _| false);
        assert!(read(&mut o, 0..1, &[0]).is_err(), "flushed");
        assert!(read(&mut o, 2..3, &[0]).is_err(), "a holder lives");
        assert!(read(&mut o, 1..2, &[0]).is_ok());
        assert!(read(&mut o, 1..2, &[lost]).is_err(), "decided by the first read");
    }

    #[test]
    fn a_holder_that_was_left_out_gives_way_to_those_that_were_not() {
        let mut o = Oracle::new(1 << 20);
        let tag = o.begin_write(0..1, false, false);
        o.end_write(tag, vec![(0, 0), (1, 0)], 0);
        o.new_session(|run| run == (1, 0), |holders, _| holders == [(0, 0), (1, 0)]);
        assert!(read(&mut o, 0..1, &[0]).is_ok());
    }

    #[test]
    fn a_read_beside_a_discard_does_not_decide_what_it_leaves() {
        let mut o = Oracle::new(1 << 20);
        let tag = o.begin_write(0..1, false, false);
        o.end_write(tag, vec![], 0);
        let discard = o.begin_write(0..1, true, true);
        let ticket = o.begin_read(0..1);
        o.end_write(discard, vec![], 0);
        assert!(o.end_read(&ticket, &[tag]).is_ok());
        assert!(read(&mut o, 0..1, &[0]).is_ok());
    }

    #[test]
    fn a_read_from_before_a_discard_does_not_decide_what_it_leaves() {
        let mut o = Oracle::new(1 << 20);
        let tag = o.begin_write(0..1, false, false);
        o.end_write(tag, vec![], 0);
        // Power goes: the sector shows the write, or zeros.
        o.new_session(|_| false, |_, _| false);
        let ticket = o.begin_read(0..1);
        let discard = o.begin_write(0..1, true, true);
        o.end_write(discard, vec![], 0);
        assert!(o.end_read(&ticket, &[tag]).is_ok());
        assert!(read(&mut o, 0..1, &[0]).is_ok());
    }

    #[test]
    fn failed_writes_stay_open_until_the_next_session() {
        let mut o = Oracle::new(1 << 20);
        let tag = o.begin_write(0..1, false, false);
        o.fail_write(tag);
        assert!(read(&mut o, 0..1, &[0]).is_ok());
        assert!(read(&mut o, 0..1, &[tag]).is_ok());
        o.new_session(|_| true, |_, _| false);
        assert!(read(&mut o, 0..1, &[tag]).is_ok());
        assert!(read(&mut o, 0..1, &[0]).is_err());
    }
}
