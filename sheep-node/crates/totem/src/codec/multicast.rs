//! A message of the total order.

use super::{HEADER, Malformed, Reader, Writer};
use crate::limits::MAX_PAYLOAD;
use bytes::Bytes;
use sheep_types::{ConfigId, NodeId};

const FLAG_RECOVERED: u16 = 1;
/// Bytes in front of the payloads of the largest message, a recovered one with one payload.
pub(crate) const MULTICAST_OVERHEAD: usize = HEADER + 16 + 8 + 8 + 2 + 2 + 4 + 32 + 2;

/// Where a message of the last configuration had its place, when it is sent again in recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub config: ConfigId,
    pub seq: u64,
    pub origin: NodeId,
}

/// A message: some payloads of one member, packed, at one sequence number of one configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Multicast {
    pub config: ConfigId,
    /// From 1.
    pub seq: u64,
    /// The member that gave it its sequence number; the packet's sender may be another that repeats it.
    pub origin: NodeId,
    pub recovered: Option<Recovered>,
    pub payloads: Vec<Bytes>,
}

impl Multicast {
    /// Bytes that a payload takes in a message.
    pub(crate) fn payload_size(payload: &Bytes) -> usize {
        2 + payload.len()
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.config(self.config);
        w.u64(self.seq);
        w.u64(self.origin.0);
        w.u16(if self.recovered.is_some() { FLAG_RECOVERED } else { 0 });
        w.count(self.payloads.len());
        // Fragment number and number of fragments, less one: reserved.
        w.u16(0);
        w.u16(0);
        if let Some(old) = &self.recovered {
            w.config(old.config);
            w.u64(old.seq);
            w.u64(old.origin.0);
        }
        for payload in &self.payloads {
            w.count(payload.len());
            w.bytes(payload);
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let config = r.config()?;
        let seq = r.counter()?;
        let origin = r.node()?;
        let flags = r.u16()?;
        let count = r.count(usize::from(u16::MAX))?;
        if flags & !FLAG_RECOVERED != 0 || r.u32()? != 0 || seq == 0 {
            return Err(Malformed);
        }
        let recovered = if flags & FLAG_RECOVERED != 0 {
            Some(Recovered { config: r.config()?, seq: r.counter()?, origin: r.node()? })
        } else {
            None
        };
        // No capacity in advance: the count is the sender's word only.
        let mut payloads = Vec::new();
        for _ in 0..count {
            let len = r.count(MAX_PAYLOAD)?;
            payloads.push(Bytes::copy_from_slice(r.bytes(len)?));
        }
        Ok(Self { config, seq, origin, recovered, payloads })
    }
}
