//! The global log on top of one Totem ring.

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
