//! Clients that make their volume smaller: what lies beyond the new end becomes zeros, durably, then the size is ordered under
//! the client's own lock, and when that has been answered the volume is closed. Whoever opens it next sees what came of it.

use super::{Client, Pending, bytes_of};
use crate::tree::What;
use crate::world::World;
use sheep_datapath::VolumeOp;
use sheep_state::{Command, Guard};
use sheep_types::{MIN_VOLUME_SIZE, SECTOR_SIZE};

/// Sectors of an object.
const OBJECT: usize = 128;

/// How far it is. It ends without an order when an operation fails, or the volume is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shrink {
    /// The session of the client in which it began.
    handle: u64,
    /// Sectors that stay.
    to: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// What was begun before ends.
    Wait,
    /// What lies beyond becomes zeros.
    Clear,
    /// That becomes durable.
    Flush,
    /// The size is ordered, by this number.
    Ordered(u64),
}

impl Client {
    fn shrink(&self) -> Option<Shrink> {
        self.shrink.filter(|shrink| shrink.handle == self.handle)
    }
}

impl World {
    /// Begins to make the volume smaller now and then, and goes on with that. True while the client does nothing else.
    pub(super) fn shrinks(&mut self, number: usize, node: usize) -> bool {
        let Some(shrink) = self.clients[number].shrink() else { return self.begins_to_shrink(number) };
        if !self.clients[number].is_idle() {
            return true;
        }
        let step = match shrink.step {
            Step::Wait => {
                self.clear(number, node, shrink.to);
                Step::Clear
            }
            Step::Clear => {
                self.flush(number, node);
                Step::Flush
            }
            Step::Flush => match self.order_smaller(number, node, shrink.to) {
                Some(limbo) => Step::Ordered(limbo),
                // The node does not know the lock yet, or takes no commands now.
                None => Step::Flush,
            },
            Step::Ordered(limbo) if self.tree.is_in_limbo(limbo) => return true,
            Step::Ordered(_) => {
                self.clients[number].shrink = None;
                self.close(number);
                return true;
            }
        };
        self.clients[number].shrink = Some(Shrink { step, ..shrink });
        true
    }

    fn begins_to_shrink(&mut self, number: usize) -> bool {
        let wanted = self.options.shrinks && !self.options.faults.is_empty();
        if !wanted || !self.rng.chance(8_000) || !self.clients[number].rivals.is_empty() {
            return false;
        }
        let (least, len) = ((MIN_VOLUME_SIZE / u64::from(SECTOR_SIZE)) as usize, self.oracle(number).len());
        if len <= least {
            return false;
        }
        let to = self.rng.range(least as u64, len as u64 - 1) as usize;
        // At the end of an object, of a block, or within one.
        let to = match self.rng.range(0, 2) {
            0 => (to / OBJECT * OBJECT).max(least),
            1 => to / 8 * 8,
            _ => to,
        };
        let handle = self.clients[number].handle;
        self.clients[number].shrink = Some(Shrink { handle, to, step: Step::Wait });
        true
    }

    /// The rest of an object becomes zeros, whole ones are discarded. Both leave nothing but zeros.
    fn clear(&mut self, number: usize, node: usize, to: usize) {
        let len = self.oracle(number).len();
        let whole = to.next_multiple_of(OBJECT).min(len);
        for (sectors, discard) in [(to..whole, false), (whole..len, true)] {
            if sectors.is_empty() {
                continue;
            }
            let tag = self.oracle(number).begin_write(sectors.clone(), true, false);
            let (offset, len) = bytes_of(&sectors);
            let op = match discard {
                true => VolumeOp::Discard { offset, len, fua: false },
                false => VolumeOp::WriteZeroes { offset, len, fua: false, no_hole: false, fast_zero: false },
            };
            self.submit(number, node, Pending::Write(tag, sectors, false), op);
        }
    }

    fn order_smaller(&mut self, number: usize, node: usize, to: usize) -> Option<u64> {
        let vdi = self.clients[number].vdi?;
        let view = self.nodes[node].running.as_ref().and_then(|running| running.view.clone())?;
        let lock = view.state.vdi(vdi)?.lock.filter(|lock| lock.holder == self.nodes[node].member())?;
        let (guard, size) = (Guard::Held(lock.generation), to as u64 * u64::from(SECTOR_SIZE));
        let by = self.order_at(node, &Command::ResizeVdi { vdi, size, guard, shrink: true })?;
        self.oracle(number).may_shrink(to);
        Some(self.tree.begin(by, What::Shrink))
    }
}
