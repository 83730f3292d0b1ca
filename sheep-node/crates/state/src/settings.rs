//! Settings of the whole cluster, changed only by an ordered command.

use crate::limits::MAX_COPIES;
use crate::{Refusal, limits};
use serde::{Deserialize, Serialize};
use sheep_types::LogIndex;

/// What a request does when no current copy can be reached or fewer than `min_copies` are up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenUnavailable {
    /// It waits for as long as it takes.
    Wait,
    /// It fails with an I/O error after this many milliseconds.
    ErrorAfter {
        /// Milliseconds to wait first.
        ms: u64,
    },
}

/// Settings, all validated together by [`Settings::validate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Copies of each object of a new VDI.
    pub copies: u8,
    /// Copies below which writes of a new VDI wait.
    pub min_copies: u8,
    /// Most voters that automatic choice makes; odd.
    pub max_voters: u8,
    /// Whether voters are chosen automatically.
    pub automatic_voters: bool,
    /// Whether nodes that stay down are taken out of placement automatically.
    pub automatic_out: bool,
    /// How long a node stays down before "out" is proposed, milliseconds.
    pub out_delay_ms: u64,
    /// How long a gateway may serve after its last renewal, milliseconds.
    pub lease_ms: u64,
    /// Created objects of one VDI that may wait for their map entry before the gateway flushes by itself.
    pub pending_limit: u32,
    /// Acknowledged bytes of one VDI that a gateway keeps until a FLUSH.
    pub write_buffer_bytes: u64,
    /// Longest time between flushes that a gateway makes by itself while it keeps acknowledged writes,
    /// milliseconds.
    pub flush_interval_ms: u64,
    /// Nothing is moved for recovery but what a client waits for.
    pub recovery_paused: bool,
    /// Most bytes per second that a node moves for recovery, as receiver and as source; zero: any.
    pub recovery_bytes_per_second: u64,
    /// Time between two passes of scrubbing, milliseconds; zero: only when told to.
    pub scrub_interval_ms: u64,
    /// Bytes that scrubbing reads on each node in a second, at most.
    pub scrub_bytes_per_second: u64,
    /// Requests that cannot be served at the moment.
    pub when_unavailable: WhenUnavailable,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            copies: 3,
            min_copies: 2,
            max_voters: 9,
            automatic_voters: true,
            automatic_out: true,
            out_delay_ms: 600_000,
            // Five token-loss timeouts of one second: longer than a membership change.
            lease_ms: 5_000,
            pending_limit: 256,
            write_buffer_bytes: 64 << 20,
            flush_interval_ms: 1_000,
            recovery_paused: false,
            recovery_bytes_per_second: 0,
            scrub_interval_ms: 7 * 86_400_000,
            scrub_bytes_per_second: 32 << 20,
            when_unavailable: WhenUnavailable::Wait,
        }
    }
}

impl Settings {
    /// Refuses combinations that cannot work.
    ///
    /// # Errors
    /// [`Refusal::BadSetting`] names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), Refusal> {
        let bad = |setting: &str, why: &str| {
            Err(Refusal::BadSetting { setting: setting.to_owned(), why: why.to_owned() })
        };
        if self.copies == 0 || self.copies > MAX_COPIES {
            return bad("copies", "must be 1 to 16");
        }
        if self.min_copies == 0 || self.min_copies > self.copies {
            return bad("min_copies", "must be at least 1 and at most copies");
        }
        if self.max_voters.is_multiple_of(2) || self.max_voters > 31 {
            return bad("max_voters", "must be odd and at most 31");
        }
        if !(100..=3_600_000).contains(&self.lease_ms) {
            return bad("lease_ms", "must be 100 ms to one hour");
        }
        if !(1_000..=30 * 86_400_000).contains(&self.out_delay_ms) {
            return bad("out_delay_ms", "must be one second to 30 days");
        }
        if !(1..=65_536).contains(&self.pending_limit) {
            return bad("pending_limit", "must be 1 to 65536");
        }
        // One object of the largest size must fit, or a gateway could not keep a single large write.
        if !(4 << 20..=16 << 30).contains(&self.write_buffer_bytes) {
            return bad("write_buffer_bytes", "must be 4 MiB to 16 GiB");
        }
        if !(10..=600_000).contains(&self.flush_interval_ms) {
            return bad("flush_interval_ms", "must be 10 ms to 10 minutes");
        }
        // Less would not end before the next failure.
        if (1..1 << 20).contains(&self.recovery_bytes_per_second) {
            return bad("recovery_bytes_per_second", "must be 1 MiB or more, or 0 for any");
        }
        if self.scrub_interval_ms != 0 && !(10_000..=366 * 86_400_000).contains(&self.scrub_interval_ms) {
            return bad("scrub_interval_ms", "must be 0 or 10 seconds to a year");
        }
        if !(64 << 10..=64 << 30).contains(&self.scrub_bytes_per_second) {
            return bad("scrub_bytes_per_second", "must be 64 KiB to 64 GiB");
        }
        match self.when_unavailable {
            WhenUnavailable::ErrorAfter { ms } if !(100..=86_400_000).contains(&ms) => {
                bad("when_unavailable", "must be 100 ms to one day")
            }
            WhenUnavailable::Wait | WhenUnavailable::ErrorAfter { .. } => Ok(()),
        }
    }
}

/// A lease duration that was in force until a settings change. Some gateway may still hold a lease of this
/// length until `lease_ms` after the change was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastLease {
    /// The former duration, milliseconds.
    pub lease_ms: u64,
    /// Index of the entry that replaced it.
    pub replaced_at: LogIndex,
}

/// Remembers `former` and keeps the list bounded: the two oldest become one that covers both.
pub(crate) fn remember_lease(past: &mut Vec<PastLease>, former: PastLease) {
    past.push(former);
    if past.len() > limits::MAX_PAST_LEASES {
        let oldest = past.remove(0);
        if let Some(next) = past.first_mut() {
            next.lease_ms = next.lease_ms.max(oldest.lease_ms);
        }
    }
}
