//! The regular token.

use super::{HEADER, Malformed, Reader, Writer};
use crate::limits::{MAX_CANDIDATES, MAX_MEMBERS, MAX_REQUESTS};
use crate::types::Note;
use sheep_types::{ConfigId, Member, NodeId};

const NOTE: usize = 8 + 16 + 32 + 32 + 1 + 4;
/// Bytes of the largest token.
pub(crate) const TOKEN_MAX: usize =
    HEADER + 16 + 8 * 8 + 4 + 2 + MAX_MEMBERS * (NOTE + 2 + MAX_CANDIDATES * 16) + 2 + MAX_REQUESTS * 8;

/// One member's part of the token, replaced by it at each visit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub note: Note,
    /// Nodes outside the configuration that hear this member and are heard by it.
    pub candidates: Vec<Member>,
}

/// The regular token (Amir et al. 1995, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub config: ConfigId,
    /// Grows by one with each hop: tells a repeated token from a new one.
    pub hop: u64,
    /// Grows by one with each visit of the representative, from 1.
    pub rotation: u64,
    /// Highest sequence number given to a message.
    pub seq: u64,
    /// All received up to: every member has everything up to here, once it held for two visits.
    pub aru: u64,
    /// Who lowered `aru`; zero if nobody.
    pub aru_setter: NodeId,
    /// Messages sent in the last rotation.
    pub sent: u32,
    /// The representative does not hold the token before this rotation is over.
    pub busy_until: u64,
    /// Last rotation in which a member sent, or had yet to send, messages of the last configuration.
    pub recovering: u64,
    /// Sequence number of the last recovered message.
    pub recovered_seq: u64,
    /// One per member, in the order of the configuration.
    pub slots: Vec<Slot>,
    /// Sequence numbers that somebody misses.
    pub requests: Vec<u64>,
}

impl Token {
    pub(super) fn write(&self, w: &mut Writer) {
        w.config(self.config);
        for value in [self.hop, self.rotation, self.seq, self.aru, self.aru_setter.0] {
            w.u64(value);
        }
        w.u32(self.sent);
        for value in [self.busy_until, self.recovering, self.recovered_seq] {
            w.u64(value);
        }
        w.count(self.slots.len());
        for slot in &self.slots {
            w.note(&slot.note);
            w.count(slot.candidates.len());
            slot.candidates.iter().for_each(|m| w.member(*m));
        }
        w.count(self.requests.len());
        self.requests.iter().for_each(|seq| w.u64(*seq));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let config = r.config()?;
        let (hop, rotation, seq, aru) = (r.counter()?, r.counter()?, r.counter()?, r.counter()?);
        let aru_setter = r.node()?;
        let sent = r.u32()?;
        let (busy_until, recovering, recovered_seq) = (r.counter()?, r.counter()?, r.counter()?);
        let mut slots = Vec::new();
        for _ in 0..r.count(MAX_MEMBERS)? {
            let note = r.note()?;
            let mut candidates = Vec::new();
            for _ in 0..r.count(MAX_CANDIDATES)? {
                candidates.push(r.member()?);
            }
            slots.push(Slot { note, candidates });
        }
        let mut requests = Vec::new();
        for _ in 0..r.count(MAX_REQUESTS)? {
            requests.push(r.counter()?);
        }
        if aru > seq || recovered_seq > seq || recovering > rotation {
            return Err(Malformed);
        }
        Ok(Self {
            config,
            hop,
            rotation,
            seq,
            aru,
            aru_setter,
            sent,
            busy_until,
            recovering,
            recovered_seq,
            slots,
            requests,
        })
    }
}
