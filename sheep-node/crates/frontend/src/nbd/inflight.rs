//! Requests the volume is working on.

use crate::volume_io::RequestHandle;

/// What is needed to answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub(crate) cookie: u64,
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// Bytes of payload it holds.
    pub(crate) cost: usize,
}

/// How a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read { dont_fragment: bool },
    BlockStatus { req_one: bool },
    Changes { req_one: bool },
    Plain,
}

/// A table of requests in flight. A handle is its slot in the low bits and a serial number above, so that
/// handles are not used again.
#[derive(Default)]
pub(crate) struct InFlight {
    slots: Vec<Option<(u64, Pending)>>,
    free: Vec<u16>,
    serial: u64,
    bytes: usize,
}

const SLOT_BITS: u32 = 16;

impl InFlight {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of payload held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The caller has checked that fewer than 65535 are in flight.
    pub(crate) fn insert(&mut self, pending: Pending) -> RequestHandle {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u16::try_from(self.slots.len() - 1).expect("requests in flight are limited")
        });
        self.serial += 1;
        self.bytes += pending.cost;
        self.slots[usize::from(slot)] = Some((self.serial, pending));
        RequestHandle(self.serial << SLOT_BITS | u64::from(slot))
    }

    /// Removes a request, which must be there.
    pub(crate) fn remove(&mut self, handle: RequestHandle) -> Pending {
        let slot = (handle.0 & ((1 << SLOT_BITS) - 1)) as u16;
        let entry = self.slots.get_mut(usize::from(slot)).and_then(Option::take);
        let Some((serial, pending)) = entry else { panic!("{handle:?} is not in flight") };
        assert_eq!(serial, handle.0 >> SLOT_BITS, "{handle:?} was answered before");
        self.free.push(slot);
        self.bytes -= pending.cost;
        pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(cookie: u64) -> Pending {
        Pending { cookie, kind: Kind::Plain, offset: 0, len: 0, cost: 10 }
    }

    #[test]
    fn handles_are_never_reused() {
        let mut table = InFlight::default();
        let first = table.insert(pending(1));
        let second = table.insert(pending(2));
        assert_eq!((table.len(), table.bytes()), (2, 20));
        assert_eq!(table.remove(first).cookie, 1);
        let third = table.insert(pending(3));
        assert_ne!(first, third);
        assert_eq!(table.remove(third).cookie, 3);
        assert_eq!(table.remove(second).cookie, 2);
        assert_eq!((table.len(), table.bytes()), (0, 0));
    }

    #[test]
    #[should_panic(expected = "answered before")]
    fn answering_twice_is_a_bug() {
        let mut table = InFlight::default();
        let first = table.insert(pending(1));
        table.remove(first);
        table.insert(pending(2));
        table.remove(first);
    }
}
