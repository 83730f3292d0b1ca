//! Joins: who is there, who hears whom, and which membership the sender proposes.

use super::{Malformed, Reader, RingSize, Writer};
use crate::limits::MAX_KNOWN;
use sheep_types::{ConfigId, Member};

const FLAG_READY: u16 = 1;
const FLAG_COMMITTING: u16 = 2;
const FLAG_PRIMARY: u16 = 4;
const FLAGS: u16 = FLAG_READY | FLAG_COMMITTING | FLAG_PRIMARY;

/// What is known of one node that forms a configuration: said by itself, or passed on by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub member: Member,
    /// Number of the join in which the node said this; grows within one incarnation. Zero: the node said
    /// nothing, it is only wanted.
    pub version: u64,
    /// Highest configuration number it has taken part in, or that the layer above it knows.
    pub number: u64,
    /// Times it came back after leaving, which ends the exclusion by others.
    pub rejoins: u32,
    /// What it counts for when memberships are compared.
    pub weight: u16,
    /// It waits for nobody else.
    pub ready: bool,
    /// It takes part in a configuration that is being committed.
    pub committing: bool,
    /// Its last configuration was the primary one.
    pub primary: bool,
    /// Its last regular configuration; zero if none.
    pub previous: ConfigId,
    /// Whom it hears and takes.
    pub heard: Vec<Member>,
    /// Whom it has failed.
    pub accused: Vec<Member>,
    /// The membership it proposes.
    pub chosen: Vec<Member>,
}

/// A join (Amir et al. 1995, section 5): the processor set with all that is known of it. The rows of
/// the sender itself and of those it knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    /// The configuration being committed, if any.
    pub forming: ConfigId,
    /// Number of the ring layout: reserved.
    pub layout: u64,
    /// What the sender's last configuration counts for.
    pub ring: RingSize,
    pub rows: Vec<Row>,
}

impl Join {
    pub(super) fn write(&self, w: &mut Writer) {
        assert!(self.rows.len() <= MAX_KNOWN, "too many nodes in a join");
        w.config(self.forming);
        w.u64(self.layout);
        self.ring.write(w);
        w.count(self.rows.len());
        let names: Vec<Member> = self.rows.iter().map(|row| row.member).collect();
        for row in &self.rows {
            w.member(row.member);
            w.u64(row.version);
            w.u64(row.number);
            w.u32(row.rejoins);
            w.u16(row.weight);
            let bit = |set, flag| if set { flag } else { 0 };
            w.u16(
                bit(row.ready, FLAG_READY)
                    | bit(row.committing, FLAG_COMMITTING)
                    | bit(row.primary, FLAG_PRIMARY),
            );
            w.config(row.previous);
            for set in [&row.heard, &row.accused, &row.chosen] {
                w.u64(bitmap(&names, set));
            }
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let forming = r.config()?;
        let layout = r.u64()?;
        let ring = RingSize::read(r)?;
        let count = r.count(MAX_KNOWN)?;
        let mut rows = Vec::new();
        let mut sets = Vec::new();
        for _ in 0..count {
            let member = r.member()?;
            let (version, number) = (r.counter()?, r.counter()?);
            let (rejoins, weight, flags) = (r.u32()?, r.u16()?, r.u16()?);
            let previous = r.config()?;
            sets.push([r.u64()?, r.u64()?, r.u64()?]);
            // Sorted, no node twice: one form only for one content.
            if flags & !FLAGS != 0 || rows.last().is_some_and(|last: &Row| last.member.node >= member.node) {
                return Err(Malformed);
            }
            rows.push(Row {
                member,
                version,
                number,
                rejoins,
                weight,
                ready: flags & FLAG_READY != 0,
                committing: flags & FLAG_COMMITTING != 0,
                primary: flags & FLAG_PRIMARY != 0,
                previous,
                heard: Vec::new(),
                accused: Vec::new(),
                chosen: Vec::new(),
            });
        }
        let names: Vec<Member> = rows.iter().map(|row| row.member).collect();
        for (row, [heard, accused, chosen]) in rows.iter_mut().zip(sets) {
            row.heard = members(&names, heard)?;
            row.accused = members(&names, accused)?;
            row.chosen = members(&names, chosen)?;
        }
        Ok(Self { forming, layout, ring, rows })
    }
}

fn bitmap(names: &[Member], set: &[Member]) -> u64 {
    names.iter().enumerate().filter(|(_, name)| set.contains(name)).fold(0, |bits, (i, _)| bits | 1 << i)
}

fn members(names: &[Member], bits: u64) -> Result<Vec<Member>, Malformed> {
    if names.len() < 64 && bits >> names.len() != 0 {
        return Err(Malformed);
    }
    Ok(names.iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0).map(|(_, name)| *name).collect())
}
