//! The global log on top of one Totem ring: what makes the order of a ring, which every partition goes on
//! giving to itself, into one history of the cluster.
//!
//! [`Log`] is a state machine without clock, disk or network. The engine feeds it with what the ring says
//! (configurations, ordered messages, the token's notes), with datagrams of other logs and with what became
//! durable, and carries out its [`Output`]s: messages to order or to send, records to write, committed
//! entries to apply, renewals of the lease. The rules and why they hold are in
//! `docs/internals/global-log.md`.
//!
//! The terms are those of viewstamped replication and Raft (term, promise, commit in the present term), of
//! Amir and Tutu's replication over extended virtual synchrony (primary component, one end-to-end round per
//! membership change), and of Totem (configuration, transitional, token).

mod api;
mod chain;
mod codec;
mod config;
mod entry;
mod fetch_message;
mod log;
mod mutant;
mod record;
#[cfg(test)]
mod record_tests;

pub use api::{
    CommittedEntry, CommittedKind, Configuration, Delivery, LogError, LogStats, Note, Output, PersistId,
    ProposeError, TokenSeen,
};
pub use config::{ConfigError, LogConfig};
pub use log::Log;
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use record::{RecoverError, Recovered};
