//! Probes, by which rings find each other, and the request for a token that is held.

use super::{Malformed, Reader, Writer};
use crate::limits::{MAX_HEARD, MAX_KNOWN};
use sheep_types::{ConfigId, Member};

const FLAG_PRIMARY: u16 = 1;

/// What a configuration counts for when two compete: weight first, then number of members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RingSize {
    pub weight: u32,
    pub members: u16,
}

impl RingSize {
    pub(super) fn write(self, w: &mut Writer) {
        w.u32(self.weight);
        w.u16(self.members);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { weight: r.u32()?, members: r.u16()? })
    }

    /// The size with one more member.
    pub(crate) fn with(self, weight: u16) -> Self {
        Self {
            weight: self.weight.saturating_add(u32::from(weight)),
            members: self.members.saturating_add(1),
        }
    }
}

/// A merge probe, also the answer to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The sender's configuration; zero if it has none at the moment.
    pub config: ConfigId,
    /// That configuration is the primary one.
    pub primary: bool,
    /// What that configuration counts for.
    pub ring: RingSize,
    /// What the sender alone counts for.
    pub weight: u16,
    /// Times it came back after leaving.
    pub rejoins: u32,
    /// Highest configuration number it has seen.
    pub number: u64,
    /// Number of the ring layout: reserved.
    pub layout: u64,
    /// Whom it has heard of late.
    pub heard: Vec<Member>,
    /// Whom it holds failed until they show that they are well.
    pub accused: Vec<Member>,
}

/// A member has work while the representative holds the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub config: ConfigId,
}

impl Probe {
    pub(super) fn write(&self, w: &mut Writer) {
        w.config(self.config);
        w.u16(if self.primary { FLAG_PRIMARY } else { 0 });
        self.ring.write(w);
        w.u16(self.weight);
        w.u32(self.rejoins);
        w.u64(self.number);
        w.u64(self.layout);
        w.count(self.heard.len());
        self.heard.iter().for_each(|m| w.member(*m));
        w.count(self.accused.len());
        self.accused.iter().for_each(|m| w.member(*m));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let config = r.config()?;
        let flags = r.u16()?;
        let ring = RingSize::read(r)?;
        let (weight, rejoins, number, layout) = (r.u16()?, r.u32()?, r.counter()?, r.u64()?);
        if flags & !FLAG_PRIMARY != 0 {
            return Err(Malformed);
        }
        let heard = members(r, MAX_HEARD)?;
        let accused = members(r, MAX_KNOWN)?;
        let primary = flags & FLAG_PRIMARY != 0;
        Ok(Self { config, primary, ring, weight, rejoins, number, layout, heard, accused })
    }
}

fn members(r: &mut Reader<'_>, most: usize) -> Result<Vec<Member>, Malformed> {
    (0..r.count(most)?).map(|_| r.member()).collect()
}

impl Wanted {
    pub(super) fn write(self, w: &mut Writer) {
        w.config(self.config);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { config: r.config()? })
    }
}
