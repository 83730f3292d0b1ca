//! The commit token.

use super::{Malformed, Reader, Writer};
use crate::limits::MAX_MEMBERS;
use sheep_types::{ConfigId, Member};

/// What a member of the new configuration says about its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitEntry {
    pub member: Member,
    /// What it counts for when memberships are compared.
    pub weight: u16,
    /// Set when the member has written the rest, and the number is durable at it.
    pub filled: bool,
    /// Its last regular configuration; zero if none.
    pub previous: ConfigId,
    /// It has all messages of that configuration up to here.
    pub aru: u64,
    /// Highest sequence number it has.
    pub high: u64,
    /// Number of its last join before it agreed: older ones are void.
    pub join: u64,
}

/// The commit token (Amir et al. 1995, section 5): goes round twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommitToken {
    pub config: ConfigId,
    /// 1: members fill in their entries. 2: members read them.
    pub round: u8,
    /// Sorted by node id; the first is the representative.
    pub entries: Vec<CommitEntry>,
}

impl CommitToken {
    pub(super) fn write(&self, w: &mut Writer) {
        w.config(self.config);
        w.u8(self.round);
        w.count(self.entries.len());
        for e in &self.entries {
            w.member(e.member);
            w.u16(e.weight);
            w.u8(u8::from(e.filled));
            w.config(e.previous);
            w.u64(e.aru);
            w.u64(e.high);
            w.u64(e.join);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let config = r.config()?;
        let round = r.u8()?;
        let count = r.count(MAX_MEMBERS)?;
        let mut entries: Vec<CommitEntry> = Vec::new();
        for _ in 0..count {
            let member = r.member()?;
            let weight = r.u16()?;
            let filled = r.u8()?;
            let previous = r.config()?;
            let (aru, high, join) = (r.counter()?, r.counter()?, r.counter()?);
            let sorted = entries.last().is_none_or(|last| last.member.node < member.node);
            if filled > 1 || !sorted || aru > high {
                return Err(Malformed);
            }
            entries.push(CommitEntry { member, weight, filled: filled == 1, previous, aru, high, join });
        }
        let representative = entries.first().is_some_and(|e| e.member.node == config.representative);
        if !(1..=2).contains(&round) || !representative || (round == 2 && entries.iter().any(|e| !e.filled)) {
            return Err(Malformed);
        }
        Ok(Self { config, round, entries })
    }
}
