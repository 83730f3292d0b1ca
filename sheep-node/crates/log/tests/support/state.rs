//! The replicated state of the model, and what all nodes together have committed.

use sheep_log::{CommittedEntry, CommittedKind};
use sheep_types::{Incarnation, LogIndex, Member, NodeId, Place, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What applying the log makes: per origin the last number that took effect, and a digest of all effects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub index: u64,
    pub lasts: BTreeMap<Member, u64>,
    pub digest: u64,
    pub up: BTreeSet<Member>,
}

impl State {
    pub fn apply(&mut self, entry: &CommittedEntry) {
        assert_eq!(entry.index.0, self.index + 1, "entries are applied in order");
        self.index = entry.index.0;
        match &entry.kind {
            CommittedKind::Install { members, .. } => self.up = members.iter().copied().collect(),
            CommittedKind::Command { origin, seq, command } => {
                let last = self.lasts.entry(*origin).or_default();
                if seq.0 == *last + 1 {
                    *last = seq.0;
                    if let Some(node) = command.strip_prefix(b"exclude ") {
                        self.up.retain(|m| node != m.node.0.to_string().as_bytes());
                    }
                    for byte in command {
                        self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
                    }
                }
            }
            _ => {}
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut words = vec![self.index, self.digest, self.lasts.len() as u64, self.up.len() as u64];
        self.lasts.iter().for_each(|(m, last)| words.extend([m.node.0, m.incarnation.0, *last]));
        self.up.iter().for_each(|m| words.extend([m.node.0, m.incarnation.0]));
        // Some weight, so that snapshots take several datagrams.
        words.resize(words.len() + 400, self.digest);
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    pub fn decode(bytes: &[u8]) -> Self {
        let mut words = bytes.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap()));
        let mut next = || words.next().unwrap();
        let (index, digest, lasts, up) = (next(), next(), next(), next());
        let member = |n: u64, i: u64| Member { node: NodeId(n), incarnation: Incarnation(i) };
        let lasts = (0..lasts).map(|_| (member(next(), next()), next())).collect();
        let up = (0..up).map(|_| member(next(), next())).collect();
        Self { index, digest, lasts, up }
    }
}

/// What the checkers know about all nodes together.
#[derive(Debug, Default)]
pub struct Truth {
    /// The first that anybody committed at each index.
    pub committed: BTreeMap<u64, Place>,
    /// State after each index, by digest.
    pub digests: BTreeMap<u64, u64>,
    /// One command per (term, index).
    pub places: BTreeMap<((u64, u64), u64), u64>,
    /// Who is up: from which index, and when that was first applied anywhere.
    pub up_since: Vec<(u64, Time, BTreeSet<NodeId>)>,
}

impl Truth {
    pub fn check_place(&mut self, place: Place) -> Result<(), String> {
        let key = ((place.term.number, place.term.representative.0), place.index.0);
        let known = *self.places.entry(key).or_insert(place.checksum);
        if known == place.checksum { Ok(()) } else { Err(format!("two entries at {place:?}")) }
    }

    pub fn check_commit(&mut self, now: Time, entry: &CommittedEntry, state: &State) -> Result<(), String> {
        let place = entry.place();
        let known = *self.committed.entry(entry.index.0).or_insert(place);
        if known != place {
            return Err(format!("committed {known:?}, then {place:?}"));
        }
        self.check_digest(state)?;
        let up: BTreeSet<NodeId> = state.up.iter().map(|m| m.node).collect();
        if self.up_since.last().is_none_or(|(index, _, last)| *index < entry.index.0 && *last != up) {
            self.up_since.push((entry.index.0, now, up));
        }
        Ok(())
    }

    pub fn check_digest(&mut self, state: &State) -> Result<(), String> {
        let known = *self.digests.entry(state.index).or_insert(state.digest);
        if known == state.digest { Ok(()) } else { Err(format!("two states at {}", state.index)) }
    }

    /// A lease until `deadline` of a node that has applied up to `applied`: an exclusion that it has not
    /// applied, and that somebody applied at t, allows no lease after t + `lease`.
    pub fn check_lease(
        &self,
        node: NodeId,
        applied: LogIndex,
        deadline: Time,
        lease: core::time::Duration,
    ) -> Result<(), String> {
        for (index, at, up) in &self.up_since {
            if *index > applied.0 && !up.contains(&node) && deadline > *at + lease {
                return Err(format!(
                    "lease of {node:?} until {deadline:?}, excluded at {index} since {at:?}"
                ));
            }
        }
        Ok(())
    }
}
