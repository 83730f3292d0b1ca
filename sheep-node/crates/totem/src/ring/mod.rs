//! The ring (skeleton; the protocol follows).

use crate::config::{ConfigError, RingConfig};
use crate::stats::Stats;
use crate::types::{Configuration, Note, Output, RingState, SubmitError};
use bytes::Bytes;
use sheep_types::{ClusterId, Member, NodeId, Time};

/// One node's part of one ring.
pub struct Ring {
    config: RingConfig,
    me: Member,
}

#[allow(unused_variables, missing_docs)]
impl Ring {
    pub fn new(
        config: RingConfig,
        me: Member,
        cluster: ClusterId,
        durable_number: u64,
        seed: u64,
        now: Time,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self { config, me })
    }
    pub fn handle_packet(&mut self, now: Time, packet: &[u8]) {}
    pub fn handle_timeout(&mut self, now: Time) {}
    pub fn handle_number_durable(&mut self, now: Time, number: u64) {}
    pub fn observe_number(&mut self, number: u64) {}
    pub fn submit(&mut self, now: Time, payload: Bytes) -> Result<(), SubmitError> {
        Ok(())
    }
    pub fn set_note(&mut self, note: Note) {}
    pub fn set_primary(&mut self, primary: bool) {}
    pub fn set_cluster(&mut self, cluster: ClusterId) {}
    pub fn set_weight(&mut self, weight: u16) {}
    pub fn leave(&mut self, now: Time) {}
    pub fn rejoin(&mut self, now: Time) {}
    pub fn exclude(&mut self, now: Time, node: NodeId) {}
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }
    pub fn state(&self) -> RingState {
        RingState::Gather
    }
    pub fn configuration(&self) -> Option<&Configuration> {
        None
    }
    pub fn members(&self) -> &[Member] {
        &[]
    }
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
    pub fn me(&self) -> Member {
        self.me
    }
    pub fn ring_config(&self) -> &RingConfig {
        &self.config
    }
}
