//! What a client may read: a register per sector, with writes that are under way, answered, or of unknown fate.

use sheep_types::Time;
use std::collections::BTreeMap;

pub(crate) const SECTOR: u64 = 512;

/// A write to one sector.
#[derive(Clone, Debug)]
struct Write {
    tag: u32,
    start: Time,
    /// When it was answered, or seen by a read; `None`: it may take effect at any time, or never.
    end: Option<Time>,
    durable: bool,
    /// All replicas have restarted since: only the gateway may have it.
    in_gateway_only: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Oracle {
    sectors: BTreeMap<u64, Vec<Write>>,
}

impl Oracle {
    fn of(&mut self, sector: u64) -> &mut Vec<Write> {
        self.sectors.entry(sector).or_insert_with(|| {
            vec![Write {
                tag: 0,
                start: Time::ZERO,
                end: Some(Time::ZERO),
                durable: true,
                in_gateway_only: false,
            }]
        })
    }

    pub(crate) fn begin(&mut self, first: u64, count: u64, tag: u32, now: Time) {
        for sector in first..first + count {
            self.of(sector).push(Write {
                tag,
                start: now,
                end: None,
                durable: false,
                in_gateway_only: false,
            });
        }
    }

    pub(crate) fn end(&mut self, first: u64, count: u64, tag: u32, now: Time, durable: bool) {
        for sector in first..first + count {
            let writes = self.of(sector);
            let write = writes.iter_mut().find(|write| write.tag == tag).unwrap();
            write.end = Some(write.end.unwrap_or(now).min(now));
            write.durable |= durable;
        }
    }

    /// A flush that began at `began` succeeded.
    pub(crate) fn flushed(&mut self, began: Time) {
        for writes in self.sectors.values_mut() {
            for write in writes.iter_mut().filter(|write| write.end.is_some_and(|end| end <= began)) {
                write.durable = true;
            }
        }
    }

    /// All replicas restart: what was not flushed is in the gateway's memory only.
    pub(crate) fn replicas_lost(&mut self) {
        for write in self.sectors.values_mut().flatten().filter(|write| !write.durable) {
            write.in_gateway_only = true;
        }
    }

    /// The gateway dies: what only it had may be lost.
    pub(crate) fn gateway_lost(&mut self) {
        for write in self.sectors.values_mut().flatten() {
            if write.in_gateway_only && !write.durable {
                write.end = None;
            }
        }
    }

    /// A read from `start` to `end` found a tag.
    pub(crate) fn check(&mut self, sector: u64, tag: u32, start: Time, end: Time) {
        let writes = self.of(sector);
        let found = writes.iter().position(|write| write.tag == tag && write.start <= end);
        let Some(found) = found else {
            panic!("sector {sector}: read {tag}, which is nowhere in {writes:?}")
        };
        if let Some(over) = writes[found].end {
            let later =
                writes.iter().find(|other| other.start > over && other.end.is_some_and(|end| end < start));
            assert!(
                later.is_none(),
                "sector {sector}: read {tag}, overwritten by {later:?}; all: {writes:?}"
            );
        }
        // From now on it has happened.
        let write = &mut writes[found];
        write.end = Some(write.end.unwrap_or(end).min(end));
    }
}
