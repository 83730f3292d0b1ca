//! The only clock of the daemon.

use rustix::time::{ClockId, clock_gettime};
use sheep_types::Time;

/// CLOCK_BOOTTIME: goes on while the machine is suspended, so that a lease ends on time.
pub(crate) fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel gives non-negative values below 2^63 seconds.
    Time::from_nanos(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}
