//! Totem: a total order of messages and an agreed membership for one ring of nodes.
//!
//! The single-ring protocol of Amir, Moser, Melliar-Smith, Agarwal and Ciarfella (1995), with the
//! accelerated token of Babay and Amir (2016), as a state machine. [`Ring`] has no clock, socket, thread,
//! disk or source of randomness: packets, time and confirmations of durability go in, [`Output`] values
//! come out. The same calls give the same outputs, byte for byte.
//!
//! The layer above gets extended virtual synchrony: messages in agreed order, a watermark of what every
//! member has received, and configurations, regular and transitional, at the same place of the order on
//! all members that move together.
//!
//! Call order: `new`, then any `handle_*`, `submit` or `set_*` call; after each call drain
//! [`Ring::poll_output`] until it gives `None`, perform what came out in that order, and sleep until
//! [`Ring::poll_timeout`].

mod codec;
mod config;
mod graph;
mod limits;
mod mutant;
mod order;
mod ring;
mod stats;
mod types;

pub use config::{ConfigError, RingConfig};
pub use limits::{MAX_MEMBERS, MAX_NUMBER, MAX_PAYLOAD};
pub use mutant::{Mutant, Mutants};
pub use ring::Ring;
pub use stats::Stats;
pub use types::{
    Configuration, ConfigurationKind, Delivery, Destination, Note, Output, RingState, SubmitError, TokenSeen,
};
