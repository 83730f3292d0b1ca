//! Timers and sizes of a ring.

use crate::codec::{MULTICAST_OVERHEAD, TOKEN_MAX};
use crate::limits::MAX_PAYLOAD;
use crate::mutant::Mutants;
use core::time::Duration;
use thiserror::Error;

/// Timers and sizes of a ring. All members should use the same values; nothing breaks if they differ,
/// but the slowest decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// A member that has not seen the token for this long gives the configuration up. Default 1 s.
    pub token_loss: Duration,
    /// The token is sent again when nothing shows for this long that it went on; an idle ring adds
    /// `idle_hold`. Default `token_loss / 20`.
    pub token_retransmit: Duration,
    /// Time between joins while a configuration is formed. Default `token_loss / 20`.
    pub join_interval: Duration,
    /// How long members of the last configuration are waited for while the next one is formed. Default
    /// 1.2 times `token_loss`.
    pub consensus: Duration,
    /// Time between probes by which rings find each other. Default `token_loss / 4`.
    pub merge_probe_interval: Duration,
    /// How long the representative holds the token when nobody has work, so also the largest time
    /// between two [`crate::Output::Token`] of a ring of one. Default `min(token_loss / 8, 100 ms)`.
    pub idle_hold: Duration,
    /// Longest time that a node which was refused, or did not stay, is kept out. Default 16 times
    /// `token_loss`.
    pub max_backoff: Duration,
    /// Global window: most messages (datagrams) that all members together send in one rotation.
    pub window_size: u32,
    /// Personal window: most messages (datagrams) that one member sends in one visit of the token.
    pub max_messages_per_visit: u32,
    /// How many messages of a visit are sent after the token was passed on. Zero is the original protocol.
    pub accelerated_window: u32,
    /// Largest packet, bytes, before the edge adds its own (encryption).
    pub max_datagram: usize,
    /// Rotations (and at least `token_loss`) for which one member may hold back what all have received;
    /// then it is failed.
    pub fail_to_receive: u32,
    /// Most payloads waiting to be ordered; `submit` refuses more.
    pub queue_limit: usize,
    /// Broken variant for tests of the checkers; none in released binaries.
    pub mutants: Mutants,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self::with_token_loss(Duration::from_secs(1))
    }
}

/// Settings that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A timer is zero or out of proportion to another.
    #[error("{name} of {value:?}: {reason}")]
    Timer {
        /// Which timer.
        name: &'static str,
        /// Its value.
        value: Duration,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A size or count is out of range.
    #[error("{name} of {value}: must be from {min} to {max}")]
    Size {
        /// Which size.
        name: &'static str,
        /// Its value.
        value: usize,
        /// Smallest allowed.
        min: usize,
        /// Largest allowed.
        max: usize,
    },
    /// The node id is zero, which names nobody.
    #[error("node id is zero")]
    NoNodeId,
}

impl RingConfig {
    /// The defaults, with all timers in proportion to `token_loss`.
    pub fn with_token_loss(token_loss: Duration) -> Self {
        Self {
            token_loss,
            token_retransmit: token_loss / 20,
            join_interval: token_loss / 20,
            consensus: token_loss * 6 / 5,
            merge_probe_interval: token_loss / 4,
            idle_hold: (token_loss / 8).min(Duration::from_millis(100)),
            max_backoff: token_loss * 16,
            window_size: 256,
            max_messages_per_visit: 64,
            accelerated_window: 32,
            max_datagram: 8704,
            fail_to_receive: 500,
            queue_limit: 4096,
            mutants: Mutants::default(),
        }
    }

    /// Checks the values against each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let timer = |name, value, ok: bool, reason| {
            if ok { Ok(()) } else { Err(ConfigError::Timer { name, value, reason }) }
        };
        let zero = Duration::ZERO;
        timer(
            "token_loss",
            self.token_loss,
            self.token_loss >= Duration::from_millis(10) && self.token_loss <= Duration::from_secs(3600),
            "must be from 10 ms to 1 h",
        )?;
        timer("idle_hold", self.idle_hold, self.idle_hold > zero, "must not be zero")?;
        timer("join_interval", self.join_interval, self.join_interval > zero, "must not be zero")?;
        timer(
            "merge_probe_interval",
            self.merge_probe_interval,
            self.merge_probe_interval > zero,
            "must not be zero",
        )?;
        timer(
            "token_retransmit",
            self.token_retransmit,
            self.token_retransmit > zero && (self.token_retransmit + self.idle_hold) * 2 <= self.token_loss,
            "must leave room for two retransmissions after idle_hold within token_loss",
        )?;
        timer("consensus", self.consensus, self.consensus >= self.token_loss, "must be at least token_loss")?;
        timer(
            "consensus",
            self.consensus,
            self.consensus >= self.join_interval * 16,
            "must be at least 16 join intervals",
        )?;
        timer(
            "max_backoff",
            self.max_backoff,
            self.max_backoff >= self.token_loss,
            "must be at least token_loss",
        )?;
        let size = |name, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::Size { name, value, min, max })
            }
        };
        size("max_datagram", self.max_datagram, (MAX_PAYLOAD + MULTICAST_OVERHEAD).max(TOKEN_MAX), 65000)?;
        size("window_size", self.window_size as usize, 1, 4096)?;
        size("max_messages_per_visit", self.max_messages_per_visit as usize, 1, self.window_size as usize)?;
        size("fail_to_receive", self.fail_to_receive as usize, 10, 1_000_000)?;
        size("queue_limit", self.queue_limit, 1, 1 << 20)
    }

    /// Messages that may be on the way between the first that some member misses and the newest. Bounds
    /// what is kept for retransmission and what a hostile sequence number can make a member keep.
    pub(crate) fn outstanding(&self) -> u64 {
        u64::from(self.window_size) * 4
    }

    /// A node counts as heard for this long after its last packet while a configuration is formed.
    pub(crate) fn heard_window(&self) -> Duration {
        self.join_interval * 8
    }

    /// What is known of a node through others counts for this long after its last news.
    pub(crate) fn row_window(&self) -> Duration {
        self.join_interval * 12
    }

    /// A node outside the configuration counts as heard for this long after its last probe.
    pub(crate) fn probe_window(&self) -> Duration {
        self.merge_probe_interval * 3
    }

    /// A node that stayed this long is no longer remembered as one that comes and goes.
    pub(crate) fn stable_time(&self) -> Duration {
        self.token_loss * 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_at_many_scales() {
        for ms in [20, 100, 500, 1000, 5000, 60_000] {
            let config = RingConfig::with_token_loss(Duration::from_millis(ms));
            assert_eq!(config.validate(), Ok(()), "{ms} ms");
        }
        assert_eq!(RingConfig::default().idle_hold, Duration::from_millis(100));
    }

    #[test]
    fn retransmission_is_slower_than_the_hold_and_fits_the_loss_timeout() {
        let config = RingConfig { idle_hold: Duration::from_millis(600), ..RingConfig::default() };
        assert!(matches!(config.validate(), Err(ConfigError::Timer { name: "token_retransmit", .. })));
    }

    #[test]
    fn a_datagram_must_hold_the_largest_payload() {
        let mut config = RingConfig { max_datagram: MAX_PAYLOAD, ..RingConfig::default() };
        assert!(matches!(config.validate(), Err(ConfigError::Size { name: "max_datagram", .. })));
        config = RingConfig::default();
        config.max_messages_per_visit = config.window_size + 1;
        assert!(config.validate().is_err());
    }
}
