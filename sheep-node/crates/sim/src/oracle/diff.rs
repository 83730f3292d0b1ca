//! What may be said of the differences between a volume and a snapshot.

use super::{Oracle, ReadTicket, Tag};
use sheep_datapath::Difference;
use std::ops::Range;

impl Oracle {
    /// What a sector may have contained at some time since the ticket.
    fn may_contain(&self, ticket: &ReadTicket, sector: usize) -> Vec<Tag> {
        let allowed = ticket.allowed.get(sector - ticket.sectors.start).filter(|_| !self.frozen);
        let mut tags = allowed.or(self.sectors.get(sector)).cloned().unwrap_or_else(|| vec![0]);
        let since = self.ranges.range(ticket.next_tag..);
        let since = since.filter(|(_, (range, _)): &(&Tag, &(Range<usize>, bool))| range.contains(&sector));
        tags.extend(since.map(|(tag, (_, zeros))| if *zeros { 0 } else { *tag }));
        tags
    }

    /// Holds what was said of a range, so many sectors each time, against what the volume may have contained since, and the
    /// snapshot; without one, zeros. What may be different can be called so; what is called the same must be possible.
    /// Gives how many sectors were called the same.
    ///
    /// # Errors
    /// A sentence about the first sector that is wrong.
    pub fn end_diff(
        &self,
        ticket: &ReadTicket,
        said: &[(usize, Difference)],
        old: Option<&Self>,
    ) -> Result<usize, String> {
        let (mut sector, mut same) = (ticket.sectors.start, 0);
        if said.first().is_none_or(|(sectors, _)| *sectors == 0) {
            return Err("nothing was said".into());
        }
        for (sectors, difference) in said {
            let range = sector..sector + sectors;
            sector = range.end;
            if range.end > ticket.sectors.end {
                return Err(format!("sectors {range:?} are beyond what was asked for"));
            }
            for sector in range {
                let now = self.may_contain(ticket, sector);
                let zero = vec![0];
                let before = old.map_or(&zero, |old| old.sectors.get(sector).unwrap_or(&zero));
                let possible = match difference {
                    Difference::Same => now.iter().any(|tag| before.contains(tag)),
                    Difference::Zero => now.contains(&0),
                    Difference::Data => true,
                };
                if !possible {
                    return Err(format!(
                        "sector {sector} is said to be {difference:?}, but may show {now:?}, and {before:?} before"
                    ));
                }
                same += usize::from(*difference == Difference::Same);
            }
        }
        Ok(same)
    }
}
